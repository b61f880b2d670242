//! What a stage of the road took, as reports tell it and sessions add it up.
//!
//! In: one disk's numbers of a stage, from the mover that timed it. Out: the same for many disks, with
//! quantiles of all of them. Latencies are counted in buckets of a quarter octave, so that what came
//! from several movers adds up; a quantile is off by 19 % at the most. Plain data, bounded by
//! [`BUCKETS_MAX`].

use serde::{Deserialize, Serialize};

/// Buckets in an octave.
const PER_OCTAVE: f64 = 4.0;
/// Buckets of a stage: up to 2^40 microseconds, twelve days.
pub const BUCKETS_MAX: usize = 160;
/// Stages that are added up: more than any report has.
const STAGES_MAX: usize = 32;
/// Bytes of a stage's name.
const NAME_BYTES_MAX: usize = 32;

/// One stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageNumbers {
    /// Its name.
    pub stage: String,
    /// Bytes in.
    pub bytes: u64,
    /// Seconds of work over all workers.
    pub busy_seconds: f64,
    /// Blocks.
    pub blocks: u64,
    /// Median latency of a block, microseconds.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Longest.
    pub max_us: u64,
    /// Upper ends of the buckets that are not empty, in microseconds and rising, and the blocks in them.
    #[serde(default)]
    pub buckets_us: Vec<(u64, u64)>,
}

/// Upper end of the bucket that a latency falls into, in microseconds.
pub fn bucket_of(us: u64) -> u64 {
    let end = |step: usize| (step as f64 / PER_OCTAVE).exp2().ceil() as u64;
    let last = BUCKETS_MAX - 1;
    // Never too far: ends are rounded up.
    let below = (((us.max(1) as f64).log2() * PER_OCTAVE) as usize).saturating_sub(1);
    (below.min(last)..last).map(end).find(|end| *end >= us).unwrap_or_else(|| end(last))
}

impl StageNumbers {
    /// Puts blocks into the bucket of a latency.
    pub fn count(&mut self, us: u64, blocks: u64) {
        let end = bucket_of(us);
        match self.buckets_us.binary_search_by_key(&end, |(end, _)| *end) {
            Ok(at) => self.buckets_us[at].1 = self.buckets_us[at].1.saturating_add(blocks),
            Err(at) => self.buckets_us.insert(at, (end, blocks)),
        }
    }

    /// Adds the numbers of another disk. Quantiles are then those of the buckets.
    pub fn merge(&mut self, other: &StageNumbers) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.busy_seconds += other.busy_seconds;
        self.blocks = self.blocks.saturating_add(other.blocks);
        self.max_us = self.max_us.max(other.max_us);
        // Whatever ends another names, it is counted in ours.
        for (end, blocks) in other.buckets_us.iter().take(BUCKETS_MAX) {
            self.count(*end, *blocks);
        }
        self.p50_us = self.quantile(0.5);
        self.p90_us = self.quantile(0.9);
        self.p99_us = self.quantile(0.99);
    }

    /// The latency that this share of the blocks did not exceed.
    fn quantile(&self, share: f64) -> u64 {
        let all: u64 =
            self.buckets_us.iter().fold(0, |sum, (_, blocks)| sum.saturating_add(*blocks));
        let wanted = (all as f64 * share).ceil() as u64;
        let mut sum = 0u64;
        let found = self.buckets_us.iter().find(|(_, blocks)| {
            sum = sum.saturating_add(*blocks);
            sum >= wanted
        });
        found.map_or(0, |(end, _)| (*end).min(self.max_us))
    }
}

/// Adds a disk's stages to those of a session, by name.
pub fn add_up(sum: &mut Vec<StageNumbers>, more: &[StageNumbers]) {
    for stage in more.iter().filter(|stage| stage.stage.len() <= NAME_BYTES_MAX) {
        match sum.iter().position(|known| known.stage == stage.stage) {
            Some(at) => sum[at].merge(stage),
            None if sum.len() < STAGES_MAX => {
                let mut first =
                    StageNumbers { stage: stage.stage.clone(), ..StageNumbers::default() };
                first.merge(stage);
                sum.push(first);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_no_further_than_a_fifth_and_there_are_not_too_many() {
        let mut ends = std::collections::BTreeSet::new();
        for us in (1..5000).chain((1..40).map(|octave| (1 << octave) + 7)) {
            let end = bucket_of(us);
            assert!(end >= us && end as f64 <= us as f64 * 1.19 + 1.0, "{us} in {end}");
            assert_eq!(bucket_of(end), end, "an end is in its own bucket");
            ends.insert(end);
        }
        assert!(ends.len() <= BUCKETS_MAX);
        assert_eq!(bucket_of(u64::MAX), bucket_of(u64::MAX / 3));
    }

    #[test]
    fn stages_of_several_disks_add_up_with_their_quantiles() {
        let stage = |name: &str, us: u64, blocks: u64| {
            let mut stage =
                StageNumbers { stage: name.into(), blocks, max_us: us, ..StageNumbers::default() };
            stage.count(us, blocks);
            stage
        };
        let mut sum = Vec::new();
        add_up(&mut sum, &[stage("read", 100, 90), stage("hash", 5, 1)]);
        add_up(&mut sum, &[stage("read", 10_000, 10)]);
        assert_eq!((sum.len(), sum[0].blocks, sum[0].max_us), (2, 100, 10_000));
        assert!((100..=120).contains(&sum[0].p50_us), "{sum:?}");
        assert!((100..=120).contains(&sum[0].p90_us), "{sum:?}");
        assert_eq!(sum[0].p99_us, 10_000);
        let again: StageNumbers =
            serde_json::from_str(&serde_json::to_string(&sum[0]).unwrap()).unwrap();
        assert_eq!(again, sum[0]);
        // What another says does not make it grow.
        let many: Vec<_> = (0..100).map(|n| stage(&n.to_string(), 1, 1)).collect();
        let hostile = StageNumbers {
            stage: "read".into(),
            buckets_us: (0..1_000_000).map(|end| (end, u64::MAX)).collect(),
            ..StageNumbers::default()
        };
        add_up(&mut sum, &many);
        add_up(&mut sum, &[hostile, stage(&"x".repeat(99), 1, 1)]);
        assert!(sum.len() <= STAGES_MAX && sum[0].buckets_us.len() <= BUCKETS_MAX);
    }
}
