//! Extents (byte ranges, as vSphere reports them) and runs (ranges of block numbers).
//!
//! In: ranges in any order from a caller, a file or a peer. Out: sorted, merged, bounded sets.
//! Invariant: a [`RunSet`]'s runs are sorted, non-empty and never touch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::BlockSize;

/// A byte range of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// A range of block numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Run {
    /// First block.
    pub first: u64,
    /// Blocks.
    pub count: u64,
}

impl Run {
    /// The block after the last; `None` on overflow (a hostile run).
    pub fn end(&self) -> Option<u64> {
        self.first.checked_add(self.count)
    }
}

/// A set was about to hold more runs than its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {max} separate runs of blocks")]
pub struct TooManyRuns {
    /// The bound.
    pub max: usize,
}

/// A set of block numbers, kept as merged runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunSet {
    // first -> end (exclusive)
    runs: BTreeMap<u64, u64>,
    blocks: u64,
}

impl RunSet {
    /// The empty set.
    pub fn new() -> RunSet {
        RunSet::default()
    }

    /// Blocks in the set.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Separate runs in the set: what it costs in memory.
    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// Whether the set has no block.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Adds a run; returns how many of its blocks were new. Runs that overflow add nothing.
    pub fn insert(&mut self, run: Run) -> u64 {
        let Some(run_end) = run.end() else { return 0 };
        if run.count == 0 {
            return 0;
        }
        let (mut first, mut end) = (run.first, run_end);
        let mut already = 0;
        if let Some((&before, &before_end)) = self.runs.range(..=first).next_back()
            && before_end >= first
        {
            already += before_end.min(end).saturating_sub(first);
            first = before;
            end = end.max(before_end);
            self.runs.remove(&before);
        }
        while let Some((&next, &next_end)) = self.runs.range(first..=end).next() {
            already += next_end.min(run_end).saturating_sub(next.max(run.first));
            end = end.max(next_end);
            self.runs.remove(&next);
        }
        self.runs.insert(first, end);
        let added = run.count - already;
        self.blocks += added;
        added
    }

    /// Adds a run unless the set would then hold more than `max` runs.
    ///
    /// # Errors
    /// [`TooManyRuns`]; the set then holds one run more than `max` at the most.
    pub fn insert_bounded(&mut self, run: Run, max: usize) -> Result<u64, TooManyRuns> {
        let added = self.insert(run);
        if self.runs.len() > max { Err(TooManyRuns { max }) } else { Ok(added) }
    }

    /// Takes a run's blocks out of the set.
    pub fn remove(&mut self, run: Run) {
        let Some(run_end) = run.end() else { return };
        if run.count == 0 {
            return;
        }
        if let Some((&before, &before_end)) = self.runs.range(..run.first).next_back()
            && before_end > run.first
        {
            self.runs.insert(before, run.first);
            self.blocks -= before_end.min(run_end) - run.first;
            if before_end > run_end {
                self.runs.insert(run_end, before_end);
                return;
            }
        }
        while let Some((&next, &next_end)) = self.runs.range(run.first..run_end).next() {
            self.runs.remove(&next);
            self.blocks -= next_end.min(run_end) - next;
            if next_end > run_end {
                self.runs.insert(run_end, next_end);
            }
        }
    }

    /// Whether the block is in the set.
    pub fn contains(&self, block: u64) -> bool {
        self.runs.range(..=block).next_back().is_some_and(|(_, &end)| end > block)
    }

    /// The run that holds `block`, if any.
    pub fn run_at(&self, block: u64) -> Option<Run> {
        let (&first, &end) = self.runs.range(..=block).next_back()?;
        (end > block).then_some(Run { first, count: end - first })
    }

    /// The first run that begins at or after `block`.
    pub fn next_run(&self, block: u64) -> Option<Run> {
        self.runs.range(block..).next().map(|(&first, &end)| Run { first, count: end - first })
    }

    /// All runs, in order.
    pub fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().map(|(&first, &end)| Run { first, count: end - first })
    }

    /// The blocks of `0..blocks` that are not in the set, as runs in order.
    pub fn gaps(&self, blocks: u64) -> Vec<Run> {
        let mut out = Vec::new();
        let mut at = 0;
        for run in self.iter() {
            if run.first >= blocks {
                break;
            }
            if run.first > at {
                out.push(Run { first: at, count: run.first - at });
            }
            at = run.first + run.count;
        }
        if at < blocks {
            out.push(Run { first: at, count: blocks - at });
        }
        out
    }
}

impl FromIterator<Run> for RunSet {
    fn from_iter<I: IntoIterator<Item = Run>>(runs: I) -> RunSet {
        let mut set = RunSet::new();
        for run in runs {
            set.insert(run);
        }
        set
    }
}

/// The blocks that these byte ranges touch, rounded outwards and cut at the disk's end.
pub fn blocks_touched(
    extents: impl IntoIterator<Item = Extent>,
    block_size: BlockSize,
    disk_bytes: u64,
) -> RunSet {
    let block = u64::from(block_size.bytes());
    let mut set = RunSet::new();
    for extent in extents {
        let end = extent.start.saturating_add(extent.length).min(disk_bytes);
        if extent.length > 0 && extent.start < end {
            let first = extent.start / block;
            set.insert(Run { first, count: end.div_ceil(block) - first });
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Extent, Run, RunSet, blocks_touched};
    use crate::units::BlockSize;

    #[test]
    fn behaves_as_a_set_of_numbers() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut set, mut model) = (RunSet::new(), BTreeSet::new());
            for _ in 0..60 {
                let run = Run { first: random.u64(0..80), count: random.u64(0..12) };
                let before = model.len() as u64;
                if random.u8(0..3) > 0 {
                    let added = set.insert(run);
                    model.extend(run.first..run.first + run.count);
                    assert_eq!(added, model.len() as u64 - before, "seed {seed}");
                } else {
                    set.remove(run);
                    model.retain(|block| *block < run.first || *block >= run.first + run.count);
                }
                assert_eq!(set.blocks(), model.len() as u64, "seed {seed}");
            }
            let runs: Vec<Run> = set.iter().collect();
            assert!(runs.windows(2).all(|w| w[0].first + w[0].count < w[1].first), "seed {seed}");
            assert!((0..100).all(|b| set.contains(b) == model.contains(&b)), "seed {seed}");
            let gaps: RunSet = set.gaps(100).into_iter().collect();
            assert!((0..100).all(|b| gaps.contains(b) != model.contains(&b)), "seed {seed}");
        }
    }

    #[test]
    fn hostile_runs_and_extents_add_nothing_absurd() {
        let mut set = RunSet::new();
        assert_eq!(set.insert(Run { first: u64::MAX, count: 2 }), 0);
        let touched = blocks_touched(
            [
                Extent { start: u64::MAX - 1, length: u64::MAX },
                Extent { start: 1, length: u64::MAX },
            ],
            BlockSize::M1,
            (3 << 20) + 5,
        );
        assert_eq!(touched.iter().collect::<Vec<_>>(), [Run { first: 0, count: 4 }]);
    }
}
