//! The simulator's disk engine: datastores with real VMDK files, snapshots with real deltas.
//!
//! In: calls of the SOAP side, of `/folder` and of guests, from any thread; all of them block.
//! Out: files under a root, one folder a datastore, that other programs read as ESXi's own.
//! Everything happens under one lock, so that a snapshot of many disks is one instant, whatever
//! guests write. It must not know SOAP, VMs or names of vSphere objects.
//!
//! | file | what |
//! | --- | --- |
//! | `world.rs`, `state.rs` | what is behind the lock; what of it survives a restart |
//! | `chain.rs`, `flat.rs`, `sparse.rs`, `descriptor.rs` | links, their extents, their descriptors |
//! | `snapshot.rs` | fork, remove, revert, consolidate |

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

mod chain;
mod descriptor;
mod error;
mod flat;
mod path;
mod snapshot;
mod sparse;
mod state;
#[cfg(test)]
mod tests;
mod world;

pub use error::{ChangeTrackingFault, Result, StorageError};
pub use path::DatastorePath;
pub use snapshot::Removal;
pub use sparse::SparseFormat;
pub use state::{DatastoreKind, DiskId, LinkKind, SnapshotId};

use error::{IoContext, missing};
use flat::FlatExtent;
use sparse::SECTOR_BYTES;
use state::{DiskState, LinkId, LinkState};
use world::World;

/// Largest disk, as on ESXi: 62 TiB.
const CAPACITY_BYTES_MAX: u64 = 62 << 40;

/// The disk engine. Clones are the same engine.
#[derive(Debug, Clone)]
pub struct Storage {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
}

/// A disk to be made.
#[derive(Debug, Clone)]
pub struct DiskSpec {
    /// Its descriptor: `[ds] folder/x.vmdk`.
    pub file: DatastorePath,
    /// Its size, a multiple of 512.
    pub capacity_bytes: u64,
    /// A raw image that it starts with; at most as large.
    pub image: Option<PathBuf>,
    /// `backing.uuid`, 32 hexadecimal digits with dashes; made from the seed if absent.
    pub uuid: Option<String>,
    /// Thin: `thinProvisioned` in the backing and the descriptor.
    pub thin: bool,
}

/// One file of a disk's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its descriptor, which is what `backing.fileName` says.
    pub file: DatastorePath,
    /// The file with its data.
    pub extent_file: DatastorePath,
    /// The layout of that.
    pub kind: LinkKind,
    /// The parent's descriptor.
    pub parent: Option<DatastorePath>,
}

/// A disk as it is now.
#[derive(Debug, Clone)]
pub struct DiskInfo {
    /// `backing.uuid`.
    pub uuid: String,
    /// Its size.
    pub capacity_bytes: u64,
    /// Thin?
    pub thin: bool,
    /// The chain, from the link that the guest writes to down to the base.
    pub chain: Vec<Link>,
    /// A running VM holds the first link.
    pub locked: bool,
    /// The snapshot that the guest's link was forked from.
    pub current_snapshot: Option<SnapshotId>,
}

/// A disk as a snapshot holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenDisk {
    /// Which disk.
    pub disk: DiskId,
    /// The frozen descriptor: `backing.fileName` in the snapshot's configuration.
    pub file: DatastorePath,
    /// The disk's size then.
    pub capacity_bytes: u64,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The snapshot before it, if any.
    pub parent: Option<SnapshotId>,
    /// Its disks, by id.
    pub disks: Vec<FrozenDisk>,
}

impl Storage {
    /// Opens the datastores under `root`, with the disks and snapshots of an earlier run. All that
    /// is random comes from `seed`.
    pub fn open(root: &Path, seed: u64) -> Result<Storage> {
        let world = World::open(root, seed)?;
        Ok(Storage { shared: Arc::new(Shared { world: Mutex::new(world) }) })
    }

    /// A panic of another thread does not make the files unusable: they are consistent after every
    /// write.
    fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The VM starts: its disks' live links are locked from now on.
    pub fn power_on(&self, disks: &[DiskId]) -> Result<()> {
        self.world().set_power(disks, true)
    }

    /// The VM stops.
    pub fn power_off(&self, disks: &[DiskId]) -> Result<()> {
        self.world().set_power(disks, false)
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
}

impl World {
    fn create_disk(&mut self, spec: &DiskSpec) -> Result<DiskId> {
        let invalid = |why: &str| Err(StorageError::Invalid(format!("disk {}: {why}", spec.file)));
        let capacity_bytes = spec.capacity_bytes;
        if capacity_bytes == 0
            || !capacity_bytes.is_multiple_of(SECTOR_BYTES)
            || capacity_bytes > CAPACITY_BYTES_MAX
        {
            return invalid("its size must be a multiple of 512, up to 62 TiB");
        }
        if !spec.file.file_name().ends_with(".vmdk") || spec.file.stem().is_empty() {
            return invalid("its descriptor must be called something.vmdk");
        }
        let uuid = match &spec.uuid {
            Some(uuid) if is_uuid(uuid) => uuid.clone(),
            Some(_) => return invalid("its UUID must be 32 hexadecimal digits with dashes"),
            None => disk_uuid(self.random(), self.random()),
        };
        let id = DiskId(self.state.new_id());
        let live = LinkId(self.state.new_id());
        let link = LinkState {
            disk: id,
            file: spec.file.clone(),
            kind: LinkKind::Flat,
            parent: None,
            cid: self.new_cid(),
        };
        let extent = self.create_base(&link, spec)?;
        let disk = DiskState {
            file: spec.file.clone(),
            uuid,
            capacity_bytes,
            thin: spec.thin,
            live,
            powered_on: false,
            current: None,
        };
        self.state.disks.insert(id, disk);
        self.state.links.insert(live, link);
        self.extents.insert(live, chain::Extent::Flat(extent));
        self.write_descriptor(live)?;
        self.save()?;
        Ok(id)
    }

    fn create_base(&self, link: &LinkState, spec: &DiskSpec) -> Result<FlatExtent> {
        let path = link.extent_file().under(&self.root);
        if link.file.under(&self.root).exists() || path.exists() {
            return Err(StorageError::Exists { file: link.file.to_string() });
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).at("create", folder)?;
        }
        let extent = FlatExtent::create(&path, spec.capacity_bytes)?;
        if let Some(image) = &spec.image
            && let Err(e) = extent.import(image)
        {
            world::remove_file(&path)?;
            return Err(e);
        }
        Ok(extent)
    }

    fn delete_disk(&mut self, id: DiskId) -> Result<()> {
        let disk = self.state.disk(id)?;
        let file = disk.file.to_string();
        if disk.powered_on {
            return Err(StorageError::Locked { file, holder: "its VM runs".into() });
        }
        if self.state.snapshots.values().any(|s| s.disks.contains_key(&id)) {
            return Err(StorageError::Locked { file, holder: "it has snapshots".into() });
        }
        let links = self.state.links_of(id);
        self.state.disks.remove(&id);
        self.drop_links(&links)
    }

    fn grow_disk(&mut self, id: DiskId, capacity_bytes: u64) -> Result<()> {
        let links = self.state.links_of(id);
        let disk = self.state.disk_mut(id)?;
        let grows = capacity_bytes > disk.capacity_bytes
            && capacity_bytes <= CAPACITY_BYTES_MAX
            && capacity_bytes.is_multiple_of(SECTOR_BYTES);
        let (1, true) = (links.len(), grows) else {
            return Err(StorageError::Invalid(format!(
                "{} cannot be made {capacity_bytes} bytes: only larger, and without snapshots",
                disk.file
            )));
        };
        disk.capacity_bytes = capacity_bytes;
        let live = disk.live;
        if let Some(chain::Extent::Flat(extent)) = self.extents.get(&live) {
            extent.resize(capacity_bytes)?;
        }
        self.save()?;
        self.write_descriptor(live)
    }

    fn set_power(&mut self, disks: &[DiskId], on: bool) -> Result<()> {
        for disk in disks {
            self.state.disk_mut(*disk)?.powered_on = on;
        }
        self.save()
    }

    fn disk_info(&self, id: DiskId) -> Result<DiskInfo> {
        let disk = self.state.disk(id)?;
        let chain = self.state.chain(disk.live)?;
        let links: Result<Vec<&LinkState>> = chain.iter().map(|id| self.state.link(*id)).collect();
        let links = links?;
        let parents = links.iter().skip(1).map(|link| Some(link.file.clone())).chain([None]);
        let link = |(link, parent): (&&LinkState, _)| Link {
            file: link.file.clone(),
            extent_file: link.extent_file(),
            kind: link.kind,
            parent,
        };
        Ok(DiskInfo {
            uuid: disk.uuid.clone(),
            capacity_bytes: disk.capacity_bytes,
            thin: disk.thin,
            chain: links.iter().zip(parents).map(link).collect(),
            locked: disk.powered_on,
            current_snapshot: disk.current,
        })
    }

    fn snapshot_info(&self, id: SnapshotId) -> Result<SnapshotInfo> {
        let snapshot = self.state.snapshot(id)?;
        let disks = snapshot.disks.iter().map(|(disk, frozen)| {
            let link = self.state.links.get(&frozen.link);
            let link = link.ok_or_else(|| missing("link", frozen.link))?;
            let (file, capacity_bytes) = (link.file.clone(), frozen.capacity_bytes);
            Ok(FrozenDisk { disk: *disk, file, capacity_bytes })
        });
        Ok(SnapshotInfo { parent: snapshot.parent, disks: disks.collect::<Result<_>>()? })
    }
}

fn is_uuid(text: &str) -> bool {
    let digits = text.chars().filter(char::is_ascii_hexdigit).count();
    digits == 32 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// A UUID as vSphere gives disks: it begins with `6000C29`.
fn disk_uuid(high: u64, low: u64) -> String {
    let mut digits = format!("6000C29{:09x}", high & 0xf_ffff_ffff);
    let _ = write!(digits, "{low:016x}");
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    parts.join("-")
}
