//! The disk engine behind its lock: the state, the open extents, and what every operation shares.
//!
//! In: calls of the other files of this module, one at a time. Out: changed files and state.
//! Invariant: `extents` has an open extent for every link of the state, and only for those;
//! `maps` has the change map of every link that is tracked.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::chain::Extent;
use super::descriptor;
use super::error::{IoContext, Result, StorageError};
use super::fault::Faults;
use super::oracle::{LiveHashes, LiveOracles};
use super::path::DatastorePath;
use super::sparse::{SECTOR_BYTES, SparseExtent};
use super::state::{DatastoreKind, DiskId, LinkId, LinkKind, LinkState, State};
use super::tracking::ChangeMap;

/// Most bytes that one call may read or write.
const TRANSFER_BYTES_MAX: u64 = 64 << 20;

/// All that the lock guards.
#[derive(Debug)]
pub(super) struct World {
    pub(super) root: PathBuf,
    pub(super) seed: u64,
    pub(super) state: State,
    pub(super) extents: HashMap<LinkId, Extent>,
    pub(super) maps: HashMap<LinkId, ChangeMap>,
    pub(super) faults: Faults,
    pub(super) oracles: LiveOracles,
    /// Disks whose guests must not write. Not kept: a restarted host has no frozen guest.
    pub(super) quiesced: BTreeSet<DiskId>,
}

impl World {
    pub(super) fn open(root: &Path, seed: u64) -> Result<World> {
        std::fs::create_dir_all(root).at("create", root)?;
        let root = root.canonicalize().at("find", root)?;
        let state = State::load(&root)?;
        let mut world = World {
            root,
            seed,
            state,
            extents: HashMap::new(),
            maps: HashMap::new(),
            faults: Faults::default(),
            oracles: LiveOracles::new(),
            quiesced: BTreeSet::new(),
        };
        for (id, link) in world.state.links.clone() {
            let extent = world.open_extent(&link)?;
            world.extents.insert(id, extent);
            if link.tracked {
                let map = ChangeMap::open(&link.map_file().under(&world.root))?;
                world.maps.insert(id, map);
            }
            world.write_descriptor(id)?;
        }
        for (id, _) in world.state.disks.iter().filter(|(_, disk)| disk.watched) {
            world.oracles.insert(*id, LiveHashes::default());
        }
        Ok(world)
    }

    pub(super) fn save(&self) -> Result<()> {
        self.state.save(&self.root)
    }

    /// A number that depends on the seed and on what was made before, nothing else.
    pub(super) fn random(&mut self) -> u64 {
        let id = self.state.new_id();
        fastrand::Rng::with_seed(self.seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15)).u64(..)
    }

    /// A content id: never the one that means "no parent", nor the one that means "unset".
    pub(super) fn new_cid(&mut self) -> u32 {
        (self.random() as u32).clamp(1, 0xffff_fffd)
    }

    pub(super) fn write_descriptor(&self, id: LinkId) -> Result<()> {
        let link = self.state.link(id)?;
        let parent = link.parent.map(|parent| self.state.link(parent)).transpose()?;
        let text = descriptor::render(self.state.disk(link.disk)?, link, parent);
        let path = link.file.under(&self.root);
        let temporary = path.with_extension("vmdk~");
        std::fs::write(&temporary, text).at("write", &temporary)?;
        std::fs::rename(&temporary, &path).at("rename", &path)
    }

    /// Makes an empty delta on `parent`: its files and its entry in the state, which is not saved.
    pub(super) fn fork_link(&mut self, parent: LinkId) -> Result<LinkId> {
        let disk_id = self.state.link(parent)?.disk;
        let disk = self.state.disk(disk_id)?.clone();
        let format = self.datastore_kind(&disk.file).delta_format();
        let link = LinkState {
            disk: disk_id,
            file: self.free_name(disk_id, &disk.file)?,
            kind: LinkKind::Delta(format),
            parent: Some(parent),
            cid: self.new_cid(),
            tracked: false,
        };
        let path = link.extent_file().under(&self.root);
        let parent_name = self.state.link(parent)?.file.file_name();
        let extent = SparseExtent::create(&path, format, disk.capacity_bytes, parent_name)?;
        let id = LinkId(self.state.new_id());
        self.extents.insert(id, Extent::Sparse(extent));
        self.state.links.insert(id, link);
        self.write_descriptor(id)?;
        Ok(id)
    }

    pub(super) fn datastore_kind(&self, file: &DatastorePath) -> DatastoreKind {
        self.state.datastores.get(file.datastore()).copied().unwrap_or_default()
    }

    /// The first of `x-000001.vmdk`, `x-000002.vmdk`, … that no link of the disk has.
    fn free_name(&self, disk: DiskId, base: &DatastorePath) -> Result<DatastorePath> {
        let links = self.state.links_of(disk);
        let taken =
            |file: &DatastorePath| links.iter().any(|id| self.state.links[id].file == *file);
        let mut names =
            (1..1_000_000).map(|n| base.sibling(&format!("{}-{n:06}.vmdk", base.stem())));
        names.find(|name| !taken(name)).ok_or_else(|| {
            StorageError::Invalid(format!("{base} has too many deltas: consolidate it"))
        })
    }

    /// Takes a link out of the state and gives back its files, once the state is saved.
    pub(super) fn drop_links(&mut self, ids: &[LinkId]) -> Result<()> {
        let mut gone = Vec::new();
        for id in ids {
            self.extents.remove(id);
            self.maps.remove(id);
            gone.extend(self.state.links.remove(id));
        }
        self.save()?;
        for link in gone {
            remove_file(&link.file.under(&self.root))?;
            remove_file(&link.extent_file().under(&self.root))?;
            remove_file(&link.map_file().under(&self.root))?;
        }
        Ok(())
    }

    /// Checks a guest's range: whole sectors, within the disk, not too much at once.
    pub(super) fn check_range(&self, disk: DiskId, offset: u64, length: u64) -> Result<Range<u64>> {
        let disk = self.state.disk(disk)?;
        let end = offset.checked_add(length).filter(|end| *end <= disk.capacity_bytes);
        let sectors = offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES);
        match end {
            Some(end) if sectors && length <= TRANSFER_BYTES_MAX => Ok(offset..end),
            _ => Err(StorageError::Invalid(format!(
                "{length} bytes at {offset} of {} ({} bytes): whole sectors within the disk, at \
                 most {TRANSFER_BYTES_MAX} bytes",
                disk.file, disk.capacity_bytes
            ))),
        }
    }

    pub(super) fn guest_read(&self, disk: DiskId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check_range(disk, offset, buf.len() as u64)?;
        self.read_link(self.state.disk(disk)?.live, offset, buf)
    }

    pub(super) fn guest_write(&mut self, disk: DiskId, offset: u64, bytes: &[u8]) -> Result<()> {
        let range = self.check_range(disk, offset, bytes.len() as u64)?;
        self.mark(disk, range.clone())?;
        self.soil(disk, range);
        self.write_link(self.state.disk(disk)?.live, offset, bytes)
    }

    pub(super) fn guest_discard(&mut self, disk: DiskId, offset: u64, length: u64) -> Result<()> {
        let range = self.check_range(disk, offset, length)?;
        self.mark(disk, range.clone())?;
        self.soil(disk, range.clone());
        self.zero_link(self.state.disk(disk)?.live, range)
    }
}

/// Removes a file; one that is not there is no error.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}
