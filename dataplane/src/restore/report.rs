//! What a restore measures and says in the end.
//!
//! In: durations and bytes from one worker, without locks. Out: live [`Progress`], merged stages,
//! the bottleneck and the [`RestoreReport`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gantry_common::ids::PointId;
use serde::Serialize;

use crate::stats::{Bottleneck, StageStats};
use gantry_common::stages::StageNumbers;

/// Live numbers of one restore, for progress displays. Bytes.
#[derive(Debug, Default)]
pub struct Progress {
    /// Of the disk; 0 until the point is open.
    pub todo_bytes: AtomicU64,
    /// Of these at the destination, zeros and resumed ones included.
    pub done_bytes: AtomicU64,
    /// Of these, zeros.
    pub zero_bytes: AtomicU64,
    /// Stored bytes that came over the network.
    pub received_bytes: AtomicU64,
}

impl Progress {
    /// Adds to a counter.
    pub(super) fn add(counter: &AtomicU64, bytes: u64) {
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Reads a counter.
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// A stage that is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// From one delivered block to the next.
    Receive,
    /// zstd.
    Decompress,
    /// BLAKE3.
    Verify,
    /// From submission to completion.
    Write,
}

const STAGES: [(Stage, &str); 4] = [
    (Stage::Receive, "receive"),
    (Stage::Decompress, "decompress"),
    (Stage::Verify, "verify"),
    (Stage::Write, "write"),
];

/// Stages as one thread saw them, and where its time went.
#[derive(Debug, Clone, Default)]
pub(super) struct Stats {
    stages: [StageStats; 4],
    /// Nothing to do: no block had come.
    pub(super) waited_for_blocks: Duration,
    /// Nothing to do but wait for the destination.
    pub(super) waited_for_target: Duration,
}

impl Stats {
    /// Counts one block of a stage.
    pub(super) fn record(&mut self, stage: Stage, bytes: u64, took: Duration) {
        self.stages[stage as usize].record(bytes, took);
    }

    /// Adds another thread's numbers.
    pub(super) fn merge(&mut self, other: &Stats) {
        for (mine, theirs) in self.stages.iter_mut().zip(&other.stages) {
            mine.merge(theirs);
        }
        self.waited_for_blocks += other.waited_for_blocks;
        self.waited_for_target += other.waited_for_target;
    }

    /// For the report.
    pub(super) fn summary(&self) -> Vec<StageNumbers> {
        STAGES.iter().map(|(stage, name)| self.stages[*stage as usize].summary(name)).collect()
    }

    /// Where the workers' time went. While no block came, `repository` is the share (0 to 1) that
    /// the repository's disks were the reason.
    pub(super) fn bottleneck(&self, repository: f64) -> Bottleneck {
        let busy = |stage: Stage| self.stages[stage as usize].busy_ns as f64 / 1e9;
        let blocks = self.waited_for_blocks.as_secs_f64();
        let proxy = busy(Stage::Decompress) + busy(Stage::Verify);
        let target = self.waited_for_target.as_secs_f64();
        let sum = blocks + proxy + target;
        let percent = |seconds: f64| match sum > 0.0 {
            true => (seconds * 1000.0 / sum).round() / 10.0,
            false => 0.0,
        };
        Bottleneck {
            source: percent(blocks * repository),
            proxy: percent(proxy),
            network: percent(blocks * (1.0 - repository)),
            target: percent(target),
        }
    }
}

/// A restore that succeeded: every block is durable at the destination.
#[derive(Debug, Clone, Serialize)]
pub struct RestoreReport {
    /// Bytes of the disk.
    pub bytes_virtual: u64,
    /// Bytes written to the destination in this run (to stdout: zeros included).
    pub bytes_written: u64,
    /// Bytes that read as zeros: left as holes, punched or zeroed.
    pub bytes_zero: u64,
    /// Stored bytes that came over the network.
    pub bytes_transferred: u64,
    /// Bytes that an earlier, interrupted run had brought.
    pub bytes_resumed: u64,
    /// Blocks that came with bytes.
    pub blocks: u64,
    /// Wall time.
    pub wall_seconds: f64,
    /// CPU time of this process meanwhile.
    pub cpu_seconds: f64,
    /// Largest resident set of this process so far.
    pub peak_rss_bytes: u64,
    /// Connections that were lost and made again.
    pub reconnections: u64,
    /// Stages with their latencies (`receive` and `write` overlap).
    pub stages: Vec<StageNumbers>,
    /// Where the workers' time went: waiting for the repository to read (`source`), decompressing
    /// and verifying (`proxy`), waiting for the network, waiting for the destination (`target`).
    pub bottleneck: Bottleneck,
    /// The point that was restored.
    #[serde(serialize_with = "as_text")]
    pub point: PointId,
    /// What a person should know (no O_DIRECT, resumed...).
    pub notes: Vec<String>,
}

/// Ids stand in JSON as people type them.
fn as_text<S: serde::Serializer>(point: &PointId, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(point)
}

#[cfg(test)]
mod tests {
    use super::{Stage, Stats};
    use std::time::Duration;

    #[test]
    fn shares_add_up_and_stages_merge() {
        let mut one = Stats::default();
        one.record(Stage::Verify, 10, Duration::from_millis(2));
        one.waited_for_blocks = Duration::from_millis(8);
        let mut two = Stats::default();
        two.record(Stage::Verify, 20, Duration::from_secs(100));
        two.merge(&one);
        let verify = &two.summary()[Stage::Verify as usize];
        assert_eq!((verify.stage.as_str(), verify.bytes, verify.blocks), ("verify", 30, 2));
        assert!(verify.max_us >= 99_000_000 && verify.p50_us < 2_100, "{verify:?}");
        let shares = one.bottleneck(0.25);
        assert_eq!((shares.source, shares.proxy, shares.network), (20.0, 20.0, 60.0));
        assert_eq!(shares.name(), "network");
        assert_eq!(Stats::default().bottleneck(0.5).target, 0.0);
    }
}
