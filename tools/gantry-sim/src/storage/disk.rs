//! Disks as a whole: made, deleted, grown, started, stopped, described.
//!
//! In: what a caller wants of a disk. Out: its base files and its entry in the state. It must not
//! touch deltas; those are the snapshots' business.

use std::fmt::Write;
use std::path::PathBuf;

use super::chain::Extent;
use super::error::{IoContext, Result, StorageError};
use super::flat::FlatExtent;
use super::path::DatastorePath;
use super::sparse::SECTOR_BYTES;
use super::state::{DiskId, DiskState, LinkId, LinkKind, LinkState, SnapshotId};
use super::tracking::TrackingState;
use super::world::{World, remove_file};

/// Largest disk, as on ESXi: 62 TiB.
const CAPACITY_BYTES_MAX: u64 = 62 << 40;

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

/// How a VM stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerOff {
    /// The host closes the disks: change ids stay good.
    Clean,
    /// The host dies: change tracking begins a new period.
    HostLost,
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
    /// `CID` of its descriptor, `backing.contentId`.
    pub content_id: u32,
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
    /// `changeTrackingEnabled`, as it was last set; active only after a stun.
    pub change_tracking_enabled: bool,
    /// The live backing's `changeId`; none while tracking is not active.
    pub change_id: Option<String>,
    /// The snapshot that the guest's link was forked from.
    pub current_snapshot: Option<SnapshotId>,
}

impl World {
    pub(super) fn create_disk(&mut self, spec: &DiskSpec) -> Result<DiskId> {
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
            tracked: false,
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
            tracking: TrackingState::default(),
            watched: false,
        };
        self.state.disks.insert(id, disk);
        self.state.links.insert(live, link);
        self.extents.insert(live, Extent::Flat(extent));
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
            remove_file(&path)?;
            return Err(e);
        }
        Ok(extent)
    }

    pub(super) fn delete_disk(&mut self, id: DiskId) -> Result<()> {
        let disk = self.state.disk(id)?;
        let file = disk.file.to_string();
        if disk.powered_on {
            return Err(StorageError::Locked { file, holder: "its VM runs".into() });
        }
        if self.state.snapshots.values().any(|s| s.disks.contains_key(&id)) {
            return Err(StorageError::Locked { file, holder: "it has snapshots".into() });
        }
        let links = self.state.links_of(id);
        for link in &links {
            self.check_unattached(*link)?;
        }
        self.state.disks.remove(&id);
        self.drop_links(&links)
    }

    pub(super) fn grow_disk(&mut self, id: DiskId, capacity_bytes: u64) -> Result<()> {
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
        if let Some(Extent::Flat(extent)) = self.extents.get(&live) {
            extent.resize(capacity_bytes)?;
        }
        self.grow_map(id)?;
        self.save()?;
        self.write_descriptor(live)
    }

    pub(super) fn power_on(&mut self, disks: &[DiskId]) -> Result<()> {
        for disk in disks {
            self.check_unattached(self.state.disk(*disk)?.live)?;
        }
        for disk in disks {
            self.state.disk_mut(*disk)?.powered_on = true;
            self.stun(*disk)?;
        }
        self.save()
    }

    pub(super) fn power_off(&mut self, disks: &[DiskId], how: PowerOff) -> Result<()> {
        for disk in disks {
            self.state.disk_mut(*disk)?.powered_on = false;
            if how == PowerOff::HostLost {
                self.reset_tracking(*disk)?;
            }
        }
        self.save()
    }

    /// The links of a chain, from `link` down to the base.
    pub(super) fn links(&self, link: LinkId) -> Result<Vec<Link>> {
        let chain = self.state.chain(link)?;
        let links: Result<Vec<&LinkState>> = chain.iter().map(|id| self.state.link(*id)).collect();
        let links = links?;
        let parents = links.iter().skip(1).map(|link| Some(link.file.clone())).chain([None]);
        let link = |(link, parent): (&&LinkState, _)| Link {
            file: link.file.clone(),
            extent_file: link.extent_file(),
            kind: link.kind,
            parent,
            content_id: link.cid,
        };
        Ok(links.iter().zip(parents).map(link).collect())
    }

    pub(super) fn disk_info(&self, id: DiskId) -> Result<DiskInfo> {
        let disk = self.state.disk(id)?;
        Ok(DiskInfo {
            uuid: disk.uuid.clone(),
            capacity_bytes: disk.capacity_bytes,
            thin: disk.thin,
            chain: self.links(disk.live)?,
            locked: disk.powered_on,
            change_tracking_enabled: disk.tracking.enabled,
            change_id: disk.tracking.last_change_id(),
            current_snapshot: disk.current,
        })
    }
}

fn is_uuid(text: &str) -> bool {
    let digits = text.chars().filter(char::is_ascii_hexdigit).count();
    digits == 32 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// A UUID as vSphere gives disks: it begins with `6000C29`.
pub(super) fn disk_uuid(high: u64, low: u64) -> String {
    let mut digits = format!("6000C29{:09x}", high & 0xf_ffff_ffff);
    let _ = write!(digits, "{low:016x}");
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    parts.join("-")
}
