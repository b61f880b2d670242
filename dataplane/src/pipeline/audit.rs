//! The CBT audit: re-reads a random sample of what changed-block tracking calls unchanged (or not
//! allocated) before anything relies on it.
//!
//! In: how large a sample, the blocks that nobody would read. Out: a sample, and the sum of what its
//! blocks turned out to be. Invariant: the same frozen state and base give the same sample, so that
//! a resumed attempt checks what the first one checked. Must not: decide a block's fate; audited
//! blocks are read for the comparison alone.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::BlockId;
use gantry_common::limits;
use serde::Serialize;

/// How much of what is called unchanged is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditOptions {
    /// Of a million blocks called unchanged.
    pub per_million: u32,
    /// At least so many blocks, if there are.
    pub blocks_min: u32,
    /// Which ones: derived from what is read and its base.
    pub seed: u64,
}

/// What an audit found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AuditSum {
    /// Blocks compared.
    pub blocks: u64,
    /// Blocks that are not what they were called.
    pub wrong: u64,
    /// The first of them that was found.
    pub first_wrong: Option<u64>,
}

/// An audit of one disk, while it runs and after.
#[derive(Debug, Default)]
pub struct Audit {
    sum: Mutex<AuditSum>,
    changed: Condvar,
}

impl Audit {
    fn lock(&self) -> MutexGuard<'_, AuditSum> {
        self.sum.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block of the sample was read: its id, and the one that it should have.
    pub fn found(&self, block: u64, id: BlockId, expected: BlockId) {
        let mut sum = self.lock();
        sum.blocks += 1;
        if id != expected {
            sum.wrong += 1;
            sum.first_wrong.get_or_insert(block);
        }
        drop(sum);
        self.changed.notify_all();
    }

    /// The sum so far.
    pub fn sum(&self) -> AuditSum {
        *self.lock()
    }

    /// Waits a while for so many blocks; the sum so far.
    pub fn wait(&self, blocks: u64, at_most: Duration) -> AuditSum {
        let waited =
            self.changed.wait_timeout_while(self.lock(), at_most, |sum| sum.blocks < blocks);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Draws the sample from `0..blocks` without `read`: as many as the options ask for, and no more
/// than [`limits::AUDIT_BLOCKS_MAX`]. Each block is as likely as any other.
pub fn sample(options: &AuditOptions, blocks: u64, read: &RunSet) -> RunSet {
    let unread = read.gaps(blocks);
    let total: u64 = unread.iter().map(|run| run.count).sum();
    let share = u128::from(total) * u128::from(options.per_million) / 1_000_000;
    let wanted = (share as u64).max(u64::from(options.blocks_min));
    let wanted = wanted.min(total).min(limits::AUDIT_BLOCKS_MAX);
    let mut random = Rng::with_seed(options.seed);
    let mut positions = std::collections::BTreeSet::new();
    // Floyd: each step adds exactly one of the positions, all sets are equally likely.
    for upper in total - wanted..total {
        if !positions.insert(random.u64(0..=upper)) {
            positions.insert(upper);
        }
    }
    let mut sample = RunSet::new();
    let (mut runs, mut before) = (unread.iter(), 0);
    let mut run = runs.next();
    for position in positions {
        while let Some(Run { count, .. }) = run.filter(|run| position >= before + run.count) {
            before += count;
            run = runs.next();
        }
        if let Some(Run { first, .. }) = run {
            sample.insert(Run { first: first + (position - before), count: 1 });
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::{AuditOptions, sample};
    use gantry_common::extents::{Run, RunSet};

    fn set(runs: &[(u64, u64)]) -> RunSet {
        runs.iter().map(|&(first, count)| Run { first, count }).collect()
    }

    #[test]
    fn a_sample_holds_what_is_asked_for_and_nothing_that_is_read_anyway() {
        let read = set(&[(0, 10), (500, 100), (9_990, 10)]);
        for seed in 0..200 {
            let options = AuditOptions { per_million: 1_000, blocks_min: 64, seed };
            let drawn = sample(&options, 10_000, &read);
            assert_eq!(drawn.blocks(), 64, "seed {seed}");
            assert!(read.iter().all(|run| {
                (run.first..run.first + run.count).all(|block| !drawn.contains(block))
            }));
            assert!(drawn.iter().all(|run| run.first + run.count <= 10_000));
            assert_eq!(drawn, sample(&options, 10_000, &read), "the seed decides alone");
        }
        let all = AuditOptions { per_million: 0, blocks_min: 64, seed: 1 };
        assert_eq!(sample(&all, 30, &set(&[(3, 4)])), set(&[(0, 3), (7, 23)]));
        assert!(sample(&all, 30, &set(&[(0, 30)])).is_empty());
        let many = AuditOptions { per_million: 10_000, blocks_min: 64, seed: 1 };
        assert_eq!(sample(&many, 1_000_000, &RunSet::new()).blocks(), 10_000);
    }

    /// One wrong block among 1,000 that are called unchanged is met by 100 samples of 64 about 6.4
    /// times of 100; a sample that favoured some blocks would not be near that for all of them.
    #[test]
    fn each_block_is_met_as_often_as_any_other() {
        let mut met = vec![0u32; 1_000];
        for seed in 0..4_000 {
            let options = AuditOptions { per_million: 0, blocks_min: 64, seed };
            for run in sample(&options, 1_000, &RunSet::new()).iter() {
                (run.first..run.first + run.count).for_each(|block| met[block as usize] += 1);
            }
        }
        // 4,000 × 0.064 = 256, standard deviation 15.5: six of them each way.
        assert!(met.iter().all(|&count| (163..349).contains(&count)), "{met:?}");
    }
}
