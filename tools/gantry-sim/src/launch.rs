//! Starting a simulator inside another program: tests, benchmarks, the program itself.
//!
//! In: options and an inventory. Out: a simulator that listens, with its disks made and its guests
//! writing.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;

use crate::sim::{Kind, Options, Sim};
use crate::site::inventory::Inventory;
use crate::storage::Storage;
use crate::{disks, drill, http};

/// Starts it. vCenter listens on `port` of the loopback interface, 0 for any. Call it in a tokio
/// runtime with several threads or one; disk work runs on threads of its own.
///
/// # Errors
/// When the inventory is wrong, a disk cannot be made or a port not be had.
pub async fn launch(options: Options, inventory: &Inventory, port: u16) -> Result<Arc<Sim>> {
    let (mut site, disks) = inventory.site()?;
    let (root, seed) = (options.root.clone(), options.seed);
    let (site, storage) = tokio::task::spawn_blocking(move || -> Result<_> {
        std::fs::create_dir_all(&root)?;
        let storage = Storage::open(&root, seed)?;
        disks::prepare(&mut site, &disks, &storage)?;
        Ok((site, storage))
    })
    .await??;
    let sim = Sim::new(options, site, storage);
    for machine in inventory.vm.iter().filter(|machine| machine.on && !machine.template) {
        if let Some(writes) = machine.guest_writes_per_second {
            drill::guest_start(&sim, &machine.name, writes)?;
        }
    }
    http::serve(&sim, port).await?;
    Ok(sim)
}

impl Sim {
    /// Where vCenter listens.
    #[must_use]
    pub fn vcenter(&self) -> Option<SocketAddr> {
        self.lock().endpoints.first().and_then(|endpoint| endpoint.address)
    }

    /// Where a host listens, by its name.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<SocketAddr> {
        let state = self.lock();
        let number = state.site.hosts.iter().position(|host| host.name == name)?;
        let found = state.endpoints.iter().find(|e| e.kind == Kind::Host(number))?;
        found.address
    }

    /// The SHA-1 thumbprint of vCenter's certificate.
    #[must_use]
    pub fn thumbprint(&self) -> String {
        self.lock().endpoints.first().map(|e| e.thumbprint.clone()).unwrap_or_default()
    }
}
