//! Hot-add: a frozen disk becomes visible to a proxy VM, independent and non-persistent.
//!
//! ```text
//! <root>/.proxies/<proxy>/by-uuid/<backing.uuid>
//!     a symbolic link to x-flat.vmdk        where the chain is the base alone
//!     a read-only sparse raw copy           where deltas lie between: QEMU or a host would resolve
//!                                           the chain, a plain file cannot
//! ```
//!
//! In: a descriptor and a proxy. Out: a path with the disk's bytes at that link. Invariant: while a
//! link is attached, no link of its chain is merged or deleted: a snapshot that goes meanwhile
//! leaves an orphan and the need to consolidate. Attachments survive a restart.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Shared;
use super::chain::parts;
use super::error::{IoContext, Result, StorageError, missing};
use super::path::DatastorePath;
use super::state::LinkId;
use super::world::{World, remove_file};

const PROXIES_FOLDER: &str = ".proxies";

/// How a proxy sees an attached disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// The path is a symbolic link to the base's flat extent.
    Base,
    /// The path is a read-only raw copy of the chain's content.
    Flattened,
}

/// A disk that is attached to a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotAdded {
    /// The attached descriptor.
    pub file: DatastorePath,
    /// The proxy.
    pub proxy: String,
    /// Where the proxy finds the disk's bytes.
    pub path: PathBuf,
    /// `backing.uuid`, the path's last part.
    pub uuid: String,
    /// The disk's size.
    pub capacity_bytes: u64,
    /// What the path is.
    pub view: View,
    pub(super) link: LinkId,
}

impl Shared {
    pub(super) fn hot_add(&self, file: &DatastorePath, proxy: &str) -> Result<HotAdded> {
        let added = self.lock().attach(file, proxy)?;
        let made = match added.view {
            View::Base => Ok(()),
            View::Flattened => self.flatten(&added),
        };
        if let Err(e) = made {
            self.lock().detach(file, proxy)?;
            return Err(e);
        }
        Ok(added)
    }

    /// Copies what the chain holds; it cannot change, since it is attached already. The lock is held
    /// for a part at a time, so that guests go on.
    fn flatten(&self, added: &HotAdded) -> Result<()> {
        let temporary = added.path.with_extension("tmp");
        let copy = File::create(&temporary).at("create", &temporary)?;
        copy.set_len(added.capacity_bytes).at("size", &temporary)?;
        let ranges = self.lock().allocated(added.link)?;
        for part in ranges.into_iter().flat_map(parts) {
            self.pass_read(&added.file, part.clone())?;
            let mut buf = vec![0; (part.end - part.start) as usize];
            self.lock().read_link(added.link, part.start, &mut buf)?;
            copy.write_all_at(&buf, part.start).at("write", &temporary)?;
        }
        copy.set_permissions(Permissions::from_mode(0o444)).at("protect", &temporary)?;
        std::fs::rename(&temporary, &added.path).at("rename", &added.path)
    }
}

impl World {
    /// Registers an attachment and makes the symbolic link, if that is its view.
    fn attach(&mut self, file: &DatastorePath, proxy: &str) -> Result<HotAdded> {
        if proxy.is_empty() || proxy.starts_with('.') || proxy.contains(['/', '\0']) {
            return Err(StorageError::Invalid(format!("{proxy:?} is no name of a proxy")));
        }
        let link = self.state.link_of_file(file).ok_or_else(|| missing("disk", file))?;
        let state = self.state.link(link)?;
        let disk = self.state.disk(state.disk)?;
        let running = disk.powered_on && disk.live == link;
        if running || self.faults.locks(file) || self.faults.locks(&state.extent_file()) {
            let holder = if running { "its VM runs" } else { "another host" };
            return Err(StorageError::Locked { file: file.to_string(), holder: holder.into() });
        }
        let path = self.root.join(PROXIES_FOLDER).join(proxy).join("by-uuid").join(&disk.uuid);
        if self.state.attached.iter().any(|a| a.path == path) {
            let file = format!("{} of proxy {proxy}", path.display());
            return Err(StorageError::Exists { file });
        }
        let view = if state.parent.is_none() { View::Base } else { View::Flattened };
        let base = state.extent_file().under(&self.root);
        let (uuid, capacity_bytes) = (disk.uuid.clone(), disk.capacity_bytes);
        let (file, proxy) = (file.clone(), proxy.to_owned());
        let added = HotAdded { file, proxy, path, uuid, capacity_bytes, view, link };
        self.state.attached.push(added.clone());
        self.save()?;
        prepare(&added, &base)?;
        Ok(added)
    }

    pub(super) fn detach(&mut self, file: &DatastorePath, proxy: &str) -> Result<()> {
        let attached = &mut self.state.attached;
        let place = attached.iter().position(|a| a.file == *file && a.proxy == proxy);
        let place = place.ok_or_else(|| missing("attachment of", file))?;
        let gone = attached.remove(place);
        remove_file(&gone.path)?;
        remove_file(&gone.path.with_extension("tmp"))?;
        self.save()
    }

    /// The links that must stay as they are: of attached chains, and those with an injected lock.
    pub(super) fn held_links(&self) -> Result<BTreeSet<LinkId>> {
        let mut held = BTreeSet::new();
        for attached in &self.state.attached {
            held.extend(self.state.chain(attached.link)?);
        }
        for (id, link) in &self.state.links {
            if self.faults.locks(&link.file) || self.faults.locks(&link.extent_file()) {
                held.insert(*id);
            }
        }
        Ok(held)
    }

    /// Refuses what would change or delete this link's file while it is attached.
    pub(super) fn check_unattached(&self, link: LinkId) -> Result<()> {
        match self.state.attached.iter().find(|a| a.link == link) {
            None => Ok(()),
            Some(attached) => Err(StorageError::Locked {
                file: attached.file.to_string(),
                holder: format!("it is attached to proxy {}", attached.proxy),
            }),
        }
    }
}

fn prepare(added: &HotAdded, base: &Path) -> Result<()> {
    if let Some(folder) = added.path.parent() {
        std::fs::create_dir_all(folder).at("create", folder)?;
    }
    remove_file(&added.path)?;
    match added.view {
        View::Base => std::os::unix::fs::symlink(base, &added.path).at("link", &added.path),
        View::Flattened => Ok(()),
    }
}
