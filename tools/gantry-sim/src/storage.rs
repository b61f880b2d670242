//! The simulator's disk engine: datastores with real VMDK files, snapshots with real deltas.
//!
//! In: calls of the SOAP side, of `/folder` and of guests, from any thread; all of them block.
//! Out: files under a root, one folder a datastore, that other programs read as ESXi's own.
//! Everything happens under one lock, so that a snapshot of many disks is one instant, whatever
//! guests write. It must not know SOAP, VMs or names of vSphere objects.
//!
//! | file | what |
//! | --- | --- |
//! | `disk.rs`, `adopt.rs` | disks as a whole; those that others made, and files on their way in |
//! | `world.rs`, `state.rs` | what is behind the lock; what of it survives a restart |
//! | `chain.rs`, `flat.rs`, `sparse.rs`, `descriptor.rs` | links, their extents, their descriptors |
//! | `snapshot.rs` | fork, remove, revert, consolidate |
//! | `tracking.rs`, `areas.rs` | which blocks were written to; queries of changed areas |
//! | `folder.rs`, `hotadd.rs`, `export.rs` | how others come to the data |
//! | `guest.rs`, `oracle.rs` | who writes; what a disk held at a snapshot |
//! | `fault.rs` | what drills break |

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

mod adopt;
mod areas;
mod chain;
mod descriptor;
mod disk;
mod error;
mod export;
mod fault;
mod flat;
mod folder;
mod guest;
mod hotadd;
mod oracle;
mod path;
mod snapshot;
mod sparse;
mod state;
#[cfg(test)]
mod tests;
mod tracking;
mod world;

pub use adopt::Upload;
pub use areas::{AREAS_PER_PAGE, ChangeInfo, ChangedArea};
pub use disk::{DiskInfo, DiskSpec, Link, PowerOff};
pub use error::{ChangeTrackingFault, Result, StorageError};
pub use export::ExportStream;
pub use fault::Fault;
pub use folder::FolderFile;
pub use guest::{Guest, GuestPattern, GuestReport, GuestSpec};
pub use hotadd::{HotAdded, View};
pub use oracle::Oracle;
pub use path::DatastorePath;
pub use snapshot::{FrozenDisk, Removal, SnapshotInfo};
pub use sparse::SparseFormat;
pub use state::{DatastoreKind, DiskId, LinkKind, SnapshotId};

use error::IoContext;
use world::World;

/// The disk engine. Clones are the same engine.
#[derive(Debug, Clone)]
pub struct Storage {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
}

impl Shared {
    /// A panic of another thread does not make the files unusable: they are consistent after every
    /// write.
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage {
    /// Opens the datastores under `root`, with the disks and snapshots of an earlier run. All that
    /// is random comes from `seed`.
    pub fn open(root: &Path, seed: u64) -> Result<Storage> {
        let world = World::open(root, seed)?;
        Ok(Storage { shared: Arc::new(Shared { world: Mutex::new(world) }) })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.shared.lock()
    }

    /// Says what kind of file system a datastore has, and makes its folder. Disks' next deltas
    /// follow it.
    pub fn add_datastore(&self, name: &str, kind: DatastoreKind) -> Result<()> {
        let probe = DatastorePath::new(name, "x")?;
        let mut world = self.world();
        let folder = world.root.join(probe.datastore());
        std::fs::create_dir_all(&folder).at("create", &folder)?;
        world.state.datastores.insert(name.to_owned(), kind);
        world.save()
    }

    /// Makes a disk: descriptor and flat extent.
    pub fn create_disk(&self, spec: &DiskSpec) -> Result<DiskId> {
        self.world().create_disk(spec)
    }

    /// Takes a flat VMDK that lies in a datastore, and that nobody made here, as a disk.
    pub fn adopt_disk(&self, file: &DatastorePath) -> Result<DiskId> {
        self.world().adopt_disk(file)
    }

    /// Begins to write a file of a datastore. Refused for what a running VM, a snapshot or a proxy
    /// needs.
    pub fn upload(&self, file: &DatastorePath) -> Result<Upload> {
        Upload::open(&self.shared, file)
    }

    /// Deletes a disk and its files. Refused while it runs or has snapshots.
    pub fn delete_disk(&self, disk: DiskId) -> Result<()> {
        self.world().delete_disk(disk)
    }

    /// Makes a disk larger. Refused while it has snapshots, as on ESXi.
    pub fn grow_disk(&self, disk: DiskId, capacity_bytes: u64) -> Result<()> {
        self.world().grow_disk(disk, capacity_bytes)
    }

    /// All disks, by id.
    pub fn disks(&self) -> Vec<DiskId> {
        self.world().state.disks.keys().copied().collect()
    }

    /// The disk whose chain this descriptor or extent belongs to.
    pub fn find_disk(&self, file: &DatastorePath) -> Option<DiskId> {
        let world = self.world();
        let link = world.state.link_of_file(file)?;
        world.state.links.get(&link).map(|link| link.disk)
    }

    /// A disk as it is now.
    pub fn disk(&self, disk: DiskId) -> Result<DiskInfo> {
        self.world().disk_info(disk)
    }

    /// The VM starts: its disks' live links are locked from now on. A stun: change tracking that
    /// was enabled becomes active.
    pub fn power_on(&self, disks: &[DiskId]) -> Result<()> {
        self.world().power_on(disks)
    }

    /// The VM stops.
    pub fn power_off(&self, disks: &[DiskId], how: PowerOff) -> Result<()> {
        self.world().power_off(disks, how)
    }

    /// Reads what the guest sees now. `buf` has whole sectors.
    pub fn read(&self, disk: DiskId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.world().guest_read(disk, offset, buf)
    }

    /// Writes as the guest does. `bytes` has whole sectors.
    pub fn write(&self, disk: DiskId, offset: u64, bytes: &[u8]) -> Result<()> {
        self.world().guest_write(disk, offset, bytes)
    }

    /// Unmaps a range as the guest does: it reads as zeros afterwards.
    pub fn discard(&self, disk: DiskId, offset: u64, length: u64) -> Result<()> {
        self.world().guest_discard(disk, offset, length)
    }

    /// Snapshots disks, all at one instant: their live links are frozen, the guest goes on in deltas.
    pub fn snapshot(&self, disks: &[DiskId]) -> Result<SnapshotId> {
        self.world().fork(disks)
    }

    /// All snapshots, by id, which is by age.
    pub fn snapshots(&self) -> Vec<SnapshotId> {
        self.world().state.snapshots.keys().copied().collect()
    }

    /// A snapshot and its frozen files as they are called now (merges below it rename them).
    pub fn snapshot_info(&self, snapshot: SnapshotId) -> Result<SnapshotInfo> {
        self.world().snapshot_info(snapshot)
    }

    /// Reads a disk as it was at a snapshot.
    pub fn read_frozen(
        &self,
        snapshot: SnapshotId,
        disk: DiskId,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let world = self.world();
        world.check_range(disk, offset, buf.len() as u64)?;
        world.read_link(world.state.frozen(snapshot, disk)?.link, offset, buf)
    }

    /// Removes a snapshot, its children stay. With `consolidate` its delta is merged at once.
    pub fn remove_snapshot(&self, snapshot: SnapshotId, consolidate: bool) -> Result<Removal> {
        self.world().remove_snapshot(snapshot, consolidate)
    }

    /// Goes back to a snapshot: what the guest wrote since is gone.
    pub fn revert(&self, snapshot: SnapshotId) -> Result<()> {
        self.world().revert(snapshot)
    }

    /// Merges all that neither a snapshot nor the guest needs.
    pub fn consolidate(&self, disks: &[DiskId]) -> Result<()> {
        self.world().consolidate(disks)
    }

    /// True if `consolidate` would find something (`runtime.consolidationNeeded`).
    pub fn consolidation_needed(&self, disks: &[DiskId]) -> Result<bool> {
        self.world().consolidation_needed(disks)
    }

    /// Wishes change tracking on (`changeTrackingEnabled`). It begins at the next stun: a snapshot
    /// made or removed, a revert, a start of the VM. Enabled while there are snapshots, it silently
    /// gives wrong answers, as on ESXi.
    pub fn enable_cbt(&self, disk: DiskId) -> Result<()> {
        self.world().set_tracking(disk, true)
    }

    /// Turns change tracking off and forgets all change ids.
    pub fn disable_cbt(&self, disk: DiskId) -> Result<()> {
        self.world().set_tracking(disk, false)
    }

    /// Begins a new tracking period, as a host does after trouble: old change ids are refused.
    pub fn reset_cbt(&self, disk: DiskId) -> Result<()> {
        self.world().reset_tracking(disk)
    }

    /// The areas of a disk that changed between a change id and a snapshot, from an offset on; with
    /// `*` those that are allocated. One page: ask again from `start_offset + length`.
    pub fn changed_areas(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
        start_offset: u64,
        change_id: &str,
    ) -> Result<ChangeInfo> {
        self.world().changed_areas(disk, snapshot, start_offset, change_id)
    }

    /// Opens any file of a datastore for ranged reads. `Locked` for the extent that a running VM
    /// writes to.
    pub fn folder_open(&self, file: &DatastorePath) -> Result<FolderFile> {
        FolderFile::open(&self.shared, file)
    }

    /// Attaches a disk by its descriptor to a proxy; it is visible at the path in the answer. With
    /// deltas in the chain this copies the disk's content.
    pub fn hot_add(&self, file: &DatastorePath, proxy: &str) -> Result<HotAdded> {
        self.shared.hot_add(file, proxy)
    }

    /// Detaches it again.
    pub fn hot_remove(&self, file: &DatastorePath, proxy: &str) -> Result<()> {
        self.world().detach(file, proxy)
    }

    /// All that is attached, also from before a restart.
    pub fn attached(&self) -> Vec<HotAdded> {
        self.world().state.attached.clone()
    }

    /// The streamOptimized VMDK of a disk at a snapshot, or of a disk whose VM is off.
    pub fn export_stream(&self, disk: DiskId, at: Option<SnapshotId>) -> Result<ExportStream> {
        ExportStream::open(&self.shared, disk, at)
    }

    /// Starts a guest that writes to a disk until it is dropped.
    pub fn start_guest(&self, disk: DiskId, spec: GuestSpec) -> Result<Guest> {
        Guest::start(&self.shared, disk, spec)
    }

    /// Guests of these disks write nothing more, from now until `thaw`.
    pub fn quiesce(&self, disks: &[DiskId]) {
        self.world().quiesced.extend(disks);
    }

    /// Guests of these disks write again.
    pub fn thaw(&self, disks: &[DiskId]) {
        self.world().quiesced.retain(|disk| !disks.contains(disk));
    }

    /// Hashes a disk's content at every snapshot from now on, for `oracle`.
    pub fn watch(&self, disk: DiskId) -> Result<()> {
        self.world().watch(disk)
    }

    /// Snapshots of which it is remembered what a disk held, the oldest first.
    pub fn remembered(&self, disk: DiskId) -> Result<Vec<SnapshotId>> {
        self.world().remembered(disk)
    }

    /// What a watched disk held at the instant of a snapshot, also after that has gone.
    pub fn oracle(&self, snapshot: SnapshotId, disk: DiskId) -> Result<Oracle> {
        self.world().oracle(snapshot, disk)
    }

    /// Turns a fault on.
    pub fn inject(&self, fault: Fault) {
        self.world().faults.add(fault);
    }

    /// Turns all faults off.
    pub fn clear_faults(&self) {
        self.world().faults.clear();
    }

    /// The areas (bytes of the disk) that `Fault::OmitChanges` left out of answers about a snapshot.
    pub fn omitted_areas(&self, snapshot: SnapshotId, disk: DiskId) -> Vec<Range<u64>> {
        self.world().faults.omitted(snapshot, disk)
    }
}
