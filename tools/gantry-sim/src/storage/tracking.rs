//! Changed block tracking: which blocks of a disk were written to since when.
//!
//! ```text
//! write in epoch 7      marks[block] = 7
//! snapshot              its change id is UUID/7, its map is frozen, epoch becomes 8
//! changed since UUID/5  the blocks of a snapshot's map with a mark above 5
//! ```
//!
//! Every link has a map of its own (`x-ctk.vmdk`), a copy of its parent's at the fork, so that a
//! snapshot's map knows nothing of later writes. A block's size varies by seed, from disk to disk
//! and from fork to fork. A mark is in the file before the write it announces is, so a killed
//! simulator forgets no change.
//!
//! In: writes, stuns (anything that makes the host open a disk anew), wishes to turn tracking on or
//! off. Out: marks. It must not answer queries; that is `areas.rs`.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{IoContext, Result, StorageError};
use super::flat::read_or_zeros;
use super::state::{DiskId, LinkId};
use super::world::{World, remove_file};

/// Block sizes that maps have, in bytes; a large disk has large ones, so that a map stays small.
const GRANULARITIES: [u64; 8] =
    [8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];
/// Most blocks of a map, except on disks above a tebibyte.
const BLOCKS_MAX: u64 = 1 << 20;
const HEADER_BYTES: u64 = 4096;
const MAGIC: &[u8; 8] = b"GSIMCTK1";
const UUID_BYTES: usize = 64;

/// A disk's tracking, as the state keeps it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct TrackingState {
    /// `changeTrackingEnabled`, as somebody wished it. It takes effect at the next stun.
    pub(super) enabled: bool,
    /// It was enabled although there were snapshots: its answers are wrong, and nothing says so.
    pub(super) tainted: bool,
    /// The period that runs since the last stun that began one.
    pub(super) period: Option<String>,
    /// What writes are marked with now; a snapshot's change id has the value at its instant.
    pub(super) epoch: u32,
}

impl TrackingState {
    /// The id of the disk's state at this instant, if tracking is active.
    pub(super) fn change_id(&self) -> Option<String> {
        self.period.as_ref().map(|uuid| format!("{uuid}/{}", self.epoch))
    }

    /// The id of the last stun, which the live backing shows: nothing after it is lost to a reader.
    pub(super) fn last_change_id(&self) -> Option<String> {
        self.period.as_ref().map(|uuid| format!("{uuid}/{}", self.epoch.saturating_sub(1)))
    }
}

/// The marks of one link, in memory and in its file.
#[derive(Debug)]
pub(super) struct ChangeMap {
    file: File,
    path: PathBuf,
    pub(super) uuid: String,
    pub(super) granularity: u64,
    /// The epoch of each block's last write; 0 is "not since tracking began".
    pub(super) marks: Vec<u32>,
}

impl ChangeMap {
    /// A new map, which takes the place of an older one at once: there is always a whole one.
    fn create(path: &Path, uuid: &str, granularity: u64, marks: Vec<u32>) -> Result<ChangeMap> {
        let new = path.with_extension("vmdk~");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&new);
        let file = file.at("create", &new)?;
        let mut header = vec![0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(MAGIC);
        header[8..16].copy_from_slice(&granularity.to_le_bytes());
        header[16..16 + uuid.len()].copy_from_slice(uuid.as_bytes());
        file.write_all_at(&header, 0).at("write", path)?;
        let (path, uuid) = (path.to_owned(), uuid.to_owned());
        let map = ChangeMap { file, path, uuid, granularity, marks };
        map.store(0..map.marks.len())?;
        std::fs::rename(&new, &map.path).at("rename", &new)?;
        Ok(map)
    }

    pub(super) fn open(path: &Path) -> Result<ChangeMap> {
        let file = File::options().read(true).write(true).open(path).at("open", path)?;
        let length = file.metadata().at("read", path)?.len().max(HEADER_BYTES);
        let mut bytes = vec![0; length as usize];
        read_or_zeros(&file, 0, &mut bytes).at("read", path)?;
        let (header, marks) = bytes.split_at(HEADER_BYTES as usize);
        let granularity = header[8..16].try_into().map_or(0, u64::from_le_bytes);
        if !header.starts_with(MAGIC) || !GRANULARITIES.contains(&granularity) {
            return Err(StorageError::Invalid(format!("{} is no change map", path.display())));
        }
        let uuid = String::from_utf8_lossy(&header[16..16 + UUID_BYTES]);
        let uuid = uuid.trim_end_matches('\0').to_owned();
        let marks = marks.chunks_exact(4).map(|mark| mark.try_into().map_or(0, u32::from_le_bytes));
        Ok(ChangeMap { marks: marks.collect(), path: path.to_owned(), file, uuid, granularity })
    }

    fn store(&self, blocks: Range<usize>) -> Result<()> {
        let bytes: Vec<u8> =
            self.marks[blocks.clone()].iter().flat_map(|mark| mark.to_le_bytes()).collect();
        let offset = HEADER_BYTES + blocks.start as u64 * 4;
        self.file.write_all_at(&bytes, offset).at("write", &self.path)
    }

    fn mark(&mut self, range: Range<u64>, epoch: u32) -> Result<()> {
        let end = (range.end.div_ceil(self.granularity) as usize).min(self.marks.len());
        let first = ((range.start / self.granularity) as usize).min(end);
        if self.marks[first..end].iter().all(|mark| *mark == epoch) {
            return Ok(());
        }
        self.marks[first..end].fill(epoch);
        self.store(first..end)
    }

    /// The same marks in blocks of another size; never fewer bytes are marked.
    fn marks_in_blocks_of(&self, granularity: u64, capacity_bytes: u64) -> Vec<u32> {
        let blocks = capacity_bytes.div_ceil(granularity);
        let mark = |block: u64| {
            let start = block * granularity;
            let first = (start / self.granularity) as usize;
            let end =
                ((start + granularity).div_ceil(self.granularity) as usize).min(self.marks.len());
            self.marks[first.min(end)..end].iter().copied().max().unwrap_or(0)
        };
        (0..blocks).map(mark).collect()
    }
}

impl World {
    /// Wishes tracking on or off. Off is at once; on takes effect at the next stun.
    pub(super) fn set_tracking(&mut self, disk: DiskId, enabled: bool) -> Result<()> {
        let live = self.state.disk(disk)?.live;
        let has_snapshots = self.state.link(live)?.parent.is_some();
        let tracking = &mut self.state.disk_mut(disk)?.tracking;
        if tracking.enabled == enabled {
            return Ok(());
        }
        *tracking =
            TrackingState { enabled, tainted: enabled && has_snapshots, ..Default::default() };
        self.save()?;
        if !enabled {
            for link in self.state.links_of(disk) {
                self.drop_map(link)?;
            }
        }
        Ok(())
    }

    /// Begins a new period at once: change ids of earlier ones are worth nothing any more.
    pub(super) fn reset_tracking(&mut self, disk: DiskId) -> Result<()> {
        if self.state.disk(disk)?.tracking.period.is_none() {
            return Ok(());
        }
        for link in self.state.links_of(disk) {
            self.drop_map(link)?;
        }
        let live = self.state.disk(disk)?.live;
        let has_snapshots = self.state.link(live)?.parent.is_some();
        self.state.disk_mut(disk)?.tracking.tainted &= has_snapshots;
        self.begin_period(disk)?;
        self.save()
    }

    /// The host opened the disk anew: tracking that was wished begins. A live link without a map,
    /// as a simulator leaves that was killed in the middle of a reset, begins anew too. The caller
    /// saves the state.
    pub(super) fn stun(&mut self, disk: DiskId) -> Result<()> {
        let state = self.state.disk(disk)?;
        let runs = state.tracking.period.is_some() && self.maps.contains_key(&state.live);
        if state.tracking.enabled && !runs {
            self.begin_period(disk)?;
        }
        Ok(())
    }

    /// A new UUID, an empty map for the live link. The caller saves the state.
    pub(super) fn begin_period(&mut self, disk: DiskId) -> Result<()> {
        let uuid = period_uuid(self.random(), self.random());
        let granularity = self.new_granularity(disk)?;
        let state = self.state.disk_mut(disk)?;
        state.tracking.period = Some(uuid.clone());
        state.tracking.epoch = 1;
        let (live, blocks) = (state.live, state.capacity_bytes.div_ceil(granularity));
        self.create_map(live, &uuid, granularity, vec![0; blocks as usize])
    }

    /// After a fork: freezes the parent's map and gives the new live link its own. The caller has
    /// taken the change id of the snapshot before, and saves the state after.
    pub(super) fn fork_map(&mut self, disk: DiskId, parent: LinkId, child: LinkId) -> Result<()> {
        let (new, keep) = (self.new_granularity(disk)?, self.random().is_multiple_of(2));
        let capacity_bytes = self.state.disk(disk)?.capacity_bytes;
        let Some(map) = self.maps.get(&parent) else { return Ok(()) };
        let granularity = if keep { map.granularity } else { new };
        let marks = map.marks_in_blocks_of(granularity, capacity_bytes);
        let uuid = map.uuid.clone();
        self.create_map(child, &uuid, granularity, marks)
    }

    /// A merged link takes over the map of the child whose content it has now.
    pub(super) fn inherit_map(&mut self, link: LinkId, child: LinkId) -> Result<()> {
        let Some(map) = self.maps.get(&child) else { return self.drop_map(link) };
        let (uuid, granularity, marks) = (map.uuid.clone(), map.granularity, map.marks.clone());
        self.create_map(link, &uuid, granularity, marks)
    }

    /// Marks a range that is about to be written.
    pub(super) fn mark(&mut self, disk: DiskId, range: Range<u64>) -> Result<()> {
        let disk = self.state.disk(disk)?;
        match self.maps.get_mut(&disk.live) {
            Some(map) => map.mark(range, disk.tracking.epoch),
            None => Ok(()),
        }
    }

    /// After a disk has grown: what is new counts as changed.
    pub(super) fn grow_map(&mut self, disk: DiskId) -> Result<()> {
        let state = self.state.disk(disk)?;
        let Some(map) = self.maps.get_mut(&state.live) else { return Ok(()) };
        let old = map.marks.len();
        let blocks = state.capacity_bytes.div_ceil(map.granularity) as usize;
        map.marks.resize(blocks.max(old), state.tracking.epoch);
        map.store(old.saturating_sub(1)..blocks.max(old))
    }

    fn create_map(
        &mut self,
        link: LinkId,
        uuid: &str,
        granularity: u64,
        marks: Vec<u32>,
    ) -> Result<()> {
        let path = self.state.link(link)?.map_file().under(&self.root);
        self.maps.insert(link, ChangeMap::create(&path, uuid, granularity, marks)?);
        self.set_tracked(link, true)
    }

    fn drop_map(&mut self, link: LinkId) -> Result<()> {
        if self.maps.remove(&link).is_none() {
            return Ok(());
        }
        self.set_tracked(link, false)?;
        self.save()?;
        remove_file(&self.state.link(link)?.map_file().under(&self.root))
    }

    fn set_tracked(&mut self, link: LinkId, tracked: bool) -> Result<()> {
        if let Some(state) = self.state.links.get_mut(&link) {
            state.tracked = tracked;
        }
        self.write_descriptor(link)
    }

    fn new_granularity(&mut self, disk: DiskId) -> Result<u64> {
        let capacity_bytes = self.state.disk(disk)?.capacity_bytes;
        let fits = |g: &&u64| capacity_bytes.div_ceil(**g) <= BLOCKS_MAX;
        let choices: Vec<u64> = GRANULARITIES.iter().filter(fits).copied().collect();
        let pick = self.random() as usize % choices.len().max(1);
        Ok(choices.get(pick).copied().unwrap_or(1 << 20))
    }
}

/// The UUID of a tracking period, as hosts write it: `52 de c0 d9 b9 43 9d 10-61 d5 …`.
fn period_uuid(high: u64, low: u64) -> String {
    let half = |number: u64| {
        let bytes: Vec<String> = number.to_be_bytes().iter().map(|b| format!("{b:02x}")).collect();
        bytes.join(" ")
    };
    format!("{}-{}", half(high & (u64::MAX >> 8) | 0x52 << 56), half(low))
}
