//! From a frozen disk to its mask, and to what a person wants to know of its volumes.
//!
//! In: a [`Disk`], which filters are on, how the snapshot was made. Out: [`Inspection`]. Invariants: it
//! never fails, and never takes longer than the budget of the cache allows; what cannot be read or
//! understood, and a reader that stops over an error of its own, turn the filters of that volume off.
//! Must not: write.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;

use super::collect::{self, Collected, refusal};
use super::{Dropped, FilterMap, Refusal, build, ranges};
use crate::cache::Cache;
use crate::disk::{Disk, View};
use crate::limits;
use crate::signatures::VolumeKind;
use crate::swap::swap_partition;
use crate::volume::{Consistency, Extent, FileMasks, Reason, Refused, SnapshotKind};
use crate::volumes::{Volume, find_volumes, open_file_system};

/// Which filters are on.
#[derive(Clone, Copy)]
pub struct FilterOptions<'a> {
    /// Swap partitions, and swap, page and hibernation files.
    pub swap: bool,
    /// Deleted blocks.
    pub deleted: bool,
    /// Excluded files; none if there are no masks.
    pub excluded: Option<&'a dyn FileMasks>,
    /// Chooses the files with which the self-check is made. It should follow from the snapshot, so that
    /// a resumed task comes to the same mask.
    pub sample_seed: u64,
}

impl Default for FilterOptions<'_> {
    fn default() -> Self {
        FilterOptions { swap: true, deleted: true, excluded: None, sample_seed: 0 }
    }
}

/// A file of which content is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FilteredFile {
    /// The volume's place on the disk.
    pub volume: String,
    /// Within the volume.
    pub path: String,
    /// Why.
    pub reason: Reason,
    /// Bytes of it that are named, before they are rounded.
    pub bytes: u64,
}

/// A volume, for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InspectedVolume {
    /// `partition 2`, `logical volume vg/root`, `whole disk`.
    pub place: String,
    /// `ext4`, `Linux swap`, `unknown content`.
    pub holds: &'static str,
    /// Bytes.
    pub length: u64,
    /// Label and UUID, if it was opened.
    pub identity: Option<String>,
    /// State of its file system, if it was opened.
    pub consistency: Option<Consistency>,
    /// Bytes that its filters name, rounded, before the disk's bound on ranges.
    pub bytes: BTreeMap<Reason, u64>,
}

/// A disk, as far as filters are concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// `gpt`, `mbr`, `none`.
    pub table: &'static str,
    /// In the order of the disk; logical volumes after partitions.
    pub volumes: Vec<InspectedVolume>,
    /// The mask.
    pub map: FilterMap,
    /// Files of which content is dropped, at most [`limits::FILTERED_FILES_MAX`] of a volume.
    pub files: Vec<FilteredFile>,
    /// How many more there are.
    pub files_more: u64,
    /// Bytes that were read of the disk for this.
    pub read_bytes: u64,
}

/// The mask of a disk; see [`inspect_disk`].
pub fn filter_disk(
    disk: &dyn Disk,
    options: &FilterOptions<'_>,
    snapshot: SnapshotKind,
) -> FilterMap {
    inspect_disk(disk, options, snapshot).map
}

/// Looks into a disk: finds its volumes, opens their file systems, collects what the filters name, and
/// checks that against what is certainly in use. What is doubtful is in [`FilterMap::refused`].
pub fn inspect_disk(
    disk: &dyn Disk,
    options: &FilterOptions<'_>,
    snapshot: SnapshotKind,
) -> Inspection {
    let cache = Cache::new(disk);
    let mut disk_wide = Vec::new();
    let found = guarded(|| Ok(find_volumes(&cache)));
    let (table, volumes) = match found {
        Ok(found) => {
            disk_wide.extend(found.refused);
            (found.table, found.volumes)
        }
        Err(refused) => {
            disk_wide.push(refused);
            ("none", Vec::new())
        }
    };
    let mut gathered = Gathered::default();
    let refused = disk_wide.into_iter().map(|why| refusal("disk", "everything", why));
    gathered.refused.extend(refused);
    for volume in &volumes {
        gathered.add(look(&cache, volume, options, snapshot));
    }
    gathered.check();
    let Gathered { ranges, refused, dropped, files, files_more, volumes } = gathered;
    let mut map = FilterMap::new(disk.length(), ranges, refused);
    map.dropped.ranges += dropped.ranges;
    map.dropped.bytes += dropped.bytes;
    Inspection { table, volumes, map, files, files_more, read_bytes: cache.read_bytes() }
}

/// What the volumes of a disk come to.
#[derive(Default)]
struct Gathered {
    ranges: Vec<(Extent, Reason)>,
    refused: Vec<Refusal>,
    dropped: Dropped,
    files: Vec<FilteredFile>,
    files_more: u64,
    volumes: Vec<InspectedVolume>,
}

impl Gathered {
    fn add(&mut self, (volume, collected): (InspectedVolume, Collected)) {
        self.volumes.push(volume);
        self.ranges.extend(collected.ranges);
        self.refused.extend(collected.refused);
        self.files.extend(collected.files);
        self.files_more += collected.files_more;
        self.count(collected.dropped);
        // So that memory does not grow with the number of volumes.
        let less = build::keep_largest(&mut self.ranges, limits::COLLECTED_RANGES_MAX);
        self.count(less);
    }

    /// Masks nothing if two volumes name the same bytes: they cannot both be right.
    fn check(&mut self) {
        let all: Vec<Extent> = self.ranges.iter().map(|(range, _)| *range).collect();
        let sum: u64 = all.iter().map(|range| range.length).sum();
        let joined: u64 = ranges::joined(all).iter().map(|range| range.length).sum();
        if sum != joined {
            self.ranges.clear();
            let refused = Refused::new("two of its volumes name the same bytes");
            self.refused.push(refusal("disk", "everything", refused));
        }
    }

    fn count(&mut self, less: Dropped) {
        self.dropped.ranges += less.ranges;
        self.dropped.bytes += less.bytes;
    }
}

/// What a panic in a reader comes to: hostile bytes may have found an error of ours, and that is no
/// reason for a backup to fail.
fn guarded<T>(run: impl FnOnce() -> Result<T, Refused>) -> Result<T, Refused> {
    let text = "its reader stopped over an error of its own; please report it to Gantry's makers";
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(Refused::new(text)))
}

fn look(
    disk: &Cache<'_>,
    volume: &Volume,
    options: &FilterOptions<'_>,
    snapshot: SnapshotKind,
) -> (InspectedVolume, Collected) {
    let mut seen = InspectedVolume {
        place: volume.place.clone(),
        holds: volume.kind.name(),
        length: volume.length(),
        identity: None,
        consistency: None,
        bytes: BTreeMap::new(),
    };
    let collected = match &volume.opaque {
        Some(refused) => Err(refused.clone()),
        // Its logical volumes are looked at instead.
        None if volume.kind == VolumeKind::LvmPhysicalVolume => Ok(Collected::default()),
        None => guarded(|| look_into(disk, volume, options, snapshot, &mut seen)),
    };
    let collected = collected.unwrap_or_else(|refused| Collected {
        refused: vec![refusal(&volume.place, "everything", refused)],
        ..Collected::default()
    });
    seen.bytes = build::bytes_by_reason(&collected.ranges);
    (seen, collected)
}

fn look_into(
    disk: &Cache<'_>,
    volume: &Volume,
    options: &FilterOptions<'_>,
    snapshot: SnapshotKind,
    seen: &mut InspectedVolume,
) -> Result<Collected, Refused> {
    let view = View::of(disk, volume.pieces.clone())?;
    if volume.kind == VolumeKind::Swap {
        let (header, range) = swap_partition(&view)?;
        seen.identity = Some(header.identity);
        return Ok(if options.swap {
            collect::plain(&view, range, Reason::Swap)
        } else {
            Collected::default()
        });
    }
    let system = open_file_system(volume.kind, &view, snapshot)?;
    seen.identity = Some(system.identity());
    seen.consistency = Some(system.consistency());
    Ok(collect::file_system(&volume.place, &view, &*system, options))
}
