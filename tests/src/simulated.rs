//! A simulated vCenter (`gantry-sim`) in this process, for scenarios that drive Gantry's own calls.
//!
//! In: an inventory (TOML), how long tasks take. Out: the simulator, and clients of it. Needs a tokio
//! runtime with several threads; everything on disk is in a private folder.

use std::sync::Arc;
use std::time::Duration;

use gantry_control::vcenter::{Secret, Settings, VCenter, VmRef};
use gantry_http::{Endpoint, Trust};
use gantry_sim::launch::launch;
use gantry_sim::sim::{Options, Password, Sim};
use gantry_sim::site::inventory;

use crate::scratch::Scratch;

const PASSWORD: &str = "correct horse";

/// A simulated vCenter.
#[derive(Debug)]
pub struct Simulated {
    /// The simulator.
    pub sim: Arc<Sim>,
    /// Its folder.
    pub scratch: Scratch,
}

impl Simulated {
    /// Starts one.
    pub async fn start(inventory_text: &str, task_time: Duration) -> Simulated {
        let scratch = Scratch::new();
        let file = scratch.write("inventory.toml", inventory_text);
        let options = Options {
            password: Password::new(PASSWORD),
            root: scratch.join("datastores"),
            task_time,
            ..Options::default()
        };
        let inventory = inventory::read(Some(&file)).expect("the inventory");
        let sim = launch(options, &inventory, 0).await.expect("the simulator");
        Simulated { sim, scratch }
    }

    /// A client of it.
    pub fn vcenter(&self) -> VCenter {
        let address = self.sim.vcenter().expect("it listens");
        let endpoint = Endpoint::new(&address.ip().to_string(), address.port());
        let thumbprint = self.sim.lock().endpoints[0].thumbprint_sha256.parse();
        let trust = Trust::Sha256Thumbprint(thumbprint.expect("a thumbprint"));
        let user = "administrator@vsphere.local";
        let settings =
            Settings::new(endpoint.expect("an endpoint"), trust, user, Secret::new(PASSWORD));
        VCenter::new(settings).expect("a client")
    }

    /// A machine by its name.
    pub async fn machine(&self, vcenter: &VCenter, name: &str) -> VmRef {
        let all = crate::vcsim::machines(vcenter).await;
        all.into_iter().find(|vm| vm.name == name).unwrap_or_else(|| panic!("no machine {name}"))
    }
}
