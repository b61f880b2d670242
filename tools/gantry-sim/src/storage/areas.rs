//! Answers `QueryChangedDiskAreas`: the changed areas of a disk between a change id and a snapshot,
//! rounded outwards and over-reported as hosts do, in pages.
//!
//! In: a frozen map or the allocation of a frozen chain. Out: one page. Every page of one query is
//! cut from the same list: it depends on the seed, the change id and the snapshot only. Invariant:
//! nothing that changed is left out, unless a fault says so or tracking was enabled while there
//! were snapshots.

use std::ops::Range;

use super::chain::join;
use super::error::{ChangeTrackingFault, Result, StorageError};
use super::state::{DatastoreKind, DiskId, SnapshotId};
use super::world::World;

/// Most areas in one answer, as on ESXi.
pub const AREAS_PER_PAGE: usize = 2000;
/// One in so many unchanged blocks is reported anyway.
const SPURIOUS_ONE_IN: u64 = 1024;

/// A changed area, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedArea {
    /// Where it starts.
    pub start: u64,
    /// How long it is.
    pub length: u64,
}

/// One page of changed areas (`DiskChangeInfo`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeInfo {
    /// The start that was asked for.
    pub start_offset: u64,
    /// How many bytes from there this page speaks for; the next query starts behind them.
    pub length: u64,
    /// The changed areas within, in order, never overlapping.
    pub areas: Vec<ChangedArea>,
}

impl World {
    pub(super) fn changed_areas(
        &mut self,
        disk: DiskId,
        snapshot: SnapshotId,
        start_offset: u64,
        change_id: &str,
    ) -> Result<ChangeInfo> {
        let frozen = self.state.frozen(snapshot, disk)?.clone();
        let name = self.state.disk(disk)?.file.to_string();
        let refuse = |fault| StorageError::ChangeTracking { disk: name.clone(), fault };
        let capacity_bytes = frozen.capacity_bytes;
        let (Some(newest), true) = (&frozen.change_id, self.maps.contains_key(&frozen.link)) else {
            return Err(refuse(ChangeTrackingFault::NotActive));
        };
        if start_offset >= capacity_bytes {
            let fault = ChangeTrackingFault::StartBeyondEnd { start_offset, capacity_bytes };
            return Err(refuse(fault));
        }
        let ranges = if change_id == "*" {
            self.allocated_areas(disk, snapshot)?
        } else {
            let since = parse_change_id(change_id, newest).map_err(refuse)?;
            let ranges = self.changed_blocks(disk, snapshot, since)?;
            self.omit_by_fault(disk, snapshot, ranges)
        };
        Ok(page(&ranges, start_offset, capacity_bytes))
    }

    /// The answer to `*`: what some link of the chain holds, rounded outwards to blocks.
    fn allocated_areas(&self, disk: DiskId, snapshot: SnapshotId) -> Result<Vec<Range<u64>>> {
        let frozen = self.state.frozen(snapshot, disk)?;
        let state = self.state.disk(disk)?;
        match self.datastore_kind(&state.file) {
            DatastoreKind::Nfs => {
                let fault = ChangeTrackingFault::AllocationUnknown;
                return Err(StorageError::ChangeTracking { disk: state.file.to_string(), fault });
            }
            DatastoreKind::Vsan => return Ok(std::iter::once(0..frozen.capacity_bytes).collect()),
            DatastoreKind::Vmfs5 | DatastoreKind::Vmfs6 => {}
        }
        let mut link = frozen.link;
        if state.tracking.tainted {
            // What an administrator gets who enabled tracking on top of snapshots: the base alone.
            link = self.state.chain(link)?.last().copied().unwrap_or(link);
        }
        let granularity = self.maps.get(&frozen.link).map_or(1 << 20, |map| map.granularity);
        let rounded = self.allocated(link)?.into_iter().map(|range| {
            let start = range.start - range.start % granularity;
            start..range.end.next_multiple_of(granularity).min(frozen.capacity_bytes)
        });
        Ok(join(rounded.collect()))
    }

    /// Blocks with a mark above `since`, their neighbours now and then, and some that never changed.
    fn changed_blocks(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
        since: u32,
    ) -> Result<Vec<Range<u64>>> {
        let frozen = self.state.frozen(snapshot, disk)?;
        let Some(map) = self.maps.get(&frozen.link) else { return Ok(Vec::new()) };
        let tainted = self.state.disk(disk)?.tracking.tainted;
        let mut rng = self.query_rng(disk, snapshot, since);
        let mut blocks = vec![false; map.marks.len()];
        let last = blocks.len().saturating_sub(1);
        for (block, mark) in map.marks.iter().enumerate() {
            if *mark > since && !(tainted && rng.bool()) {
                blocks[block] = true;
                match rng.u32(..8) {
                    0 => blocks[block.saturating_sub(1)] = !tainted,
                    1 => blocks[(block + 1).min(last)] = !tainted,
                    _ => {}
                }
            } else if !tainted && rng.u64(..SPURIOUS_ONE_IN) == 0 {
                blocks[block] = true;
            }
        }
        let ranges =
            blocks.iter().enumerate().filter(|(_, reported)| **reported).map(|(block, _)| {
                let start = block as u64 * map.granularity;
                start..(start + map.granularity).min(frozen.capacity_bytes)
            });
        Ok(join(ranges.collect()))
    }

    /// The same numbers for every page of one query.
    fn query_rng(&self, disk: DiskId, snapshot: SnapshotId, since: u32) -> fastrand::Rng {
        let mut hash = self.seed;
        for part in [disk.0, snapshot.0, u64::from(since)] {
            hash = (hash ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        fastrand::Rng::with_seed(hash)
    }
}

/// Takes `UUID/sequence` apart and checks it against a snapshot's own id.
fn parse_change_id(given: &str, newest: &str) -> std::result::Result<u32, ChangeTrackingFault> {
    let malformed = || ChangeTrackingFault::Malformed(given.chars().take(80).collect());
    let (uuid, sequence) = given.rsplit_once('/').ok_or_else(malformed)?;
    let sequence: u64 = sequence.parse().map_err(|_| malformed())?;
    let (current, newest) = newest.rsplit_once('/').ok_or_else(malformed)?;
    let newest: u64 = newest.parse().map_err(|_| malformed())?;
    if uuid != current {
        let (given, current) = (given.to_owned(), current.to_owned());
        return Err(ChangeTrackingFault::UnknownId { given, current });
    }
    if sequence > newest {
        return Err(ChangeTrackingFault::FutureId { given: given.to_owned(), newest });
    }
    u32::try_from(sequence).map_err(|_| malformed())
}

fn page(ranges: &[Range<u64>], start_offset: u64, capacity_bytes: u64) -> ChangeInfo {
    let from = ranges.partition_point(|range| range.end <= start_offset);
    let rest = &ranges[from..];
    let areas = rest.iter().take(AREAS_PER_PAGE).map(|range| {
        let start = range.start.max(start_offset);
        ChangedArea { start, length: range.end - start }
    });
    let areas: Vec<ChangedArea> = areas.collect();
    let end = match areas.last() {
        Some(last) if rest.len() > AREAS_PER_PAGE => last.start + last.length,
        _ => capacity_bytes,
    };
    ChangeInfo { start_offset, length: end - start_offset, areas }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_join_to_the_whole_list() {
        let ranges: Vec<Range<u64>> = (0..4500).map(|i| i * 8192..i * 8192 + 4096).collect();
        let capacity_bytes = 1 << 30;
        let (mut at, mut all, mut sizes) = (0, Vec::new(), Vec::new());
        while at < capacity_bytes {
            let page = page(&ranges, at, capacity_bytes);
            assert_eq!(page.start_offset, at);
            at += page.length;
            sizes.push(page.areas.len());
            all.extend(page.areas.iter().map(|area| area.start..area.start + area.length));
        }
        assert_eq!((at, sizes), (capacity_bytes, vec![2000, 2000, 500]));
        assert_eq!(all, ranges);
        let within = page(&ranges, 8192 + 1000, capacity_bytes);
        assert_eq!(within.areas[0], ChangedArea { start: 9192, length: 3096 });
    }

    #[test]
    fn change_ids_are_checked() {
        use ChangeTrackingFault::*;
        assert_eq!(parse_change_id("52 de/3", "52 de/4"), Ok(3));
        assert!(matches!(parse_change_id("52 de/5", "52 de/4"), Err(FutureId { newest: 4, .. })));
        assert!(matches!(parse_change_id("52 df/3", "52 de/4"), Err(UnknownId { .. })));
        for bad in ["", "**", "52 de", "52 de/", "52 de/-1", "52 de/99999999999999999999"] {
            assert!(matches!(parse_change_id(bad, "52 de/4"), Err(Malformed(_))), "{bad}");
        }
    }
}
