//! Faults of the storage that a drill or a test asks for.
//!
//! In: rules, each for one disk, one file, or all. Out: refusals and delays at the places that ask
//! here. Faults live in memory: a restarted simulator has none. A fault never damages a file.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::chain::join;
use super::error::{Result, StorageError};
use super::path::DatastorePath;
use super::state::{DiskId, SnapshotId};
use super::world::World;

/// A fault to inject.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Queries of changed areas leave out blocks that did change.
    OmitChanges {
        /// Of this disk; of all, if absent.
        disk: Option<DiskId>,
        /// How likely each changed area is left out, 0 to 1.
        probability: f64,
        /// Which ones.
        seed: u64,
        /// Only at the first snapshot where something was left out.
        once: bool,
    },
    /// Reads of a file by `/folder`, export or hot-add fail where they touch a range.
    ReadError {
        /// The file: an extent, or a descriptor.
        file: DatastorePath,
        /// First byte of the range in the file (of the disk, for exports).
        start: u64,
        /// Its length.
        length: u64,
        /// How many reads fail; all, if absent.
        times: Option<u32>,
    },
    /// Every read by `/folder`, export or hot-add takes so much longer.
    ReadLatency {
        /// Milliseconds.
        latency_ms: u64,
    },
    /// Merging a delta fails so many times: consolidation stays needed.
    StuckConsolidation {
        /// Of this disk; of all, if absent.
        disk: Option<DiskId>,
        /// How many times.
        times: u32,
    },
    /// Removing a snapshot fails so many times, and the snapshot stays.
    RemovalFails {
        /// Of this disk; of all, if absent.
        disk: Option<DiskId>,
        /// How many times.
        times: u32,
    },
    /// Somebody else holds this file, until the faults are cleared.
    Lock {
        /// The file: an extent, or a descriptor.
        file: DatastorePath,
    },
}

/// The faults that are on.
#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Vec<Fault>,
    omitted: BTreeMap<(SnapshotId, DiskId), BTreeSet<(u64, u64)>>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.rules.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    /// What queries about a disk at a snapshot have left out.
    pub(super) fn omitted(&self, snapshot: SnapshotId, disk: DiskId) -> Vec<Range<u64>> {
        let omitted = self.omitted.get(&(snapshot, disk));
        omitted.into_iter().flatten().map(|(start, end)| *start..*end).collect()
    }

    /// Uses up one removal that is to fail.
    pub(super) fn removal_fails(&mut self, disks: &[DiskId]) -> bool {
        self.rules.iter_mut().any(|rule| match rule {
            Fault::RemovalFails { disk, times } => use_up(*disk, times, disks),
            _ => false,
        })
    }

    /// Uses up one consolidation that is to fail.
    pub(super) fn consolidation_sticks(&mut self, disk: DiskId) -> bool {
        self.rules.iter_mut().any(|rule| match rule {
            Fault::StuckConsolidation { disk: of, times } => use_up(*of, times, &[disk]),
            _ => false,
        })
    }

    /// True if a lock on this file was injected.
    pub(super) fn locks(&self, file: &DatastorePath) -> bool {
        self.rules.iter().any(|rule| matches!(rule, Fault::Lock { file: held } if held == file))
    }

    /// How long this read waits, or that it fails.
    pub(super) fn read(&mut self, file: &DatastorePath, range: Range<u64>) -> Result<Duration> {
        let mut wait = Duration::ZERO;
        for rule in &mut self.rules {
            match rule {
                Fault::ReadLatency { latency_ms } => wait += Duration::from_millis(*latency_ms),
                Fault::ReadError { file: of, start, length, times }
                    if of == file
                        && range.start < start.saturating_add(*length)
                        && *start < range.end
                        && times.is_none_or(|times| times > 0) =>
                {
                    *times = times.map(|times| times - 1);
                    let Range { start, end } = range;
                    return Err(StorageError::Injected(format!(
                        "read error of {file} at bytes {start} to {end}"
                    )));
                }
                _ => {}
            }
        }
        Ok(wait)
    }
}

fn use_up(of: Option<DiskId>, times: &mut u32, disks: &[DiskId]) -> bool {
    let hits = *times > 0 && of.is_none_or(|disk| disks.contains(&disk));
    *times -= u32::from(hits);
    hits
}

impl World {
    /// Leaves out changed areas as the faults say, and remembers which.
    pub(super) fn omit_by_fault(
        &mut self,
        disk: DiskId,
        snapshot: SnapshotId,
        ranges: Vec<Range<u64>>,
    ) -> Vec<Range<u64>> {
        let Faults { rules, omitted } = &mut self.faults;
        let mut kept = ranges;
        for rule in rules {
            let Fault::OmitChanges { disk: of, probability, seed, once } = rule else { continue };
            let done_before = || omitted.keys().any(|key| *key != (snapshot, disk));
            if of.is_some_and(|of| of != disk) || (*once && done_before()) {
                continue;
            }
            kept.retain(|range| {
                let number = *seed ^ snapshot.0.rotate_left(40) ^ disk.0.rotate_left(20);
                let number = (number ^ range.start).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let keep = fastrand::Rng::with_seed(number).f64() >= *probability;
                if !keep {
                    let left_out = omitted.entry((snapshot, disk)).or_default();
                    left_out.insert((range.start, range.end));
                }
                keep
            });
        }
        join(kept)
    }
}
