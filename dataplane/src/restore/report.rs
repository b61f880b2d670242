//! What a restore measures and says in the end.
//!
//! In: durations and bytes from one worker, without locks. Out: live [`Progress`], merged
//! [`StageSummary`]s, the [`Bottleneck`] and the [`RestoreReport`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gantry_common::ids::PointId;
use hdrhistogram::Histogram;
use serde::Serialize;

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

#[derive(Debug, Clone)]
struct StageStats {
    bytes: u64,
    busy: Duration,
    latency_us: Histogram<u64>,
}

/// Stages as one thread saw them, and where its time went.
#[derive(Debug, Clone)]
pub(super) struct Stats {
    stages: [StageStats; 4],
    /// Nothing to do: no block had come.
    pub(super) waited_for_blocks: Duration,
    /// Nothing to do but wait for the destination.
    pub(super) waited_for_target: Duration,
}

impl Default for Stats {
    fn default() -> Stats {
        let stage = || StageStats {
            bytes: 0,
            busy: Duration::ZERO,
            latency_us: Histogram::new(2).expect("two significant digits are valid"),
        };
        Stats {
            stages: std::array::from_fn(|_| stage()),
            waited_for_blocks: Duration::ZERO,
            waited_for_target: Duration::ZERO,
        }
    }
}

impl Stats {
    /// Counts one block of a stage.
    pub(super) fn record(&mut self, stage: Stage, bytes: u64, took: Duration) {
        let stats = &mut self.stages[stage as usize];
        stats.bytes += bytes;
        stats.busy += took;
        stats.latency_us.saturating_record(took.as_micros().max(1) as u64);
    }

    /// Adds another thread's numbers.
    pub(super) fn merge(&mut self, other: &Stats) {
        for (mine, theirs) in self.stages.iter_mut().zip(&other.stages) {
            mine.bytes += theirs.bytes;
            mine.busy += theirs.busy;
            // Both resize automatically, so adding cannot fail on range.
            let _ = mine.latency_us.add(&theirs.latency_us);
        }
        self.waited_for_blocks += other.waited_for_blocks;
        self.waited_for_target += other.waited_for_target;
    }

    /// For the report.
    pub(super) fn summary(&self) -> Vec<StageSummary> {
        let of = |(stage, name): &(Stage, &'static str)| {
            let stats = &self.stages[*stage as usize];
            StageSummary {
                stage: name,
                bytes: stats.bytes,
                busy_seconds: stats.busy.as_secs_f64(),
                blocks: stats.latency_us.len(),
                p50_us: stats.latency_us.value_at_quantile(0.5),
                p99_us: stats.latency_us.value_at_quantile(0.99),
                max_us: stats.latency_us.max(),
            }
        };
        STAGES.iter().map(of).collect()
    }

    /// Where the workers' time went. While no block came, `repository` is the share (0 to 1) that
    /// the repository's disks were the reason.
    pub(super) fn bottleneck(&self, repository: f64) -> Bottleneck {
        let busy = |stage: Stage| self.stages[stage as usize].busy.as_secs_f64();
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

/// One stage of the report.
#[derive(Debug, Clone, Serialize)]
pub struct StageSummary {
    /// Its name.
    pub stage: &'static str,
    /// Bytes in.
    pub bytes: u64,
    /// Seconds over all workers (of latency, which overlaps, for `receive` and `write`).
    pub busy_seconds: f64,
    /// Blocks.
    pub blocks: u64,
    /// Median latency, microseconds.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Longest.
    pub max_us: u64,
}

/// What the workers' time was spent on or waiting for, in percent.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Bottleneck {
    /// Waiting for the repository to read its packs.
    pub source: f64,
    /// Decompressing and verifying here.
    pub proxy: f64,
    /// Waiting for the network.
    pub network: f64,
    /// Waiting for the destination's writes.
    pub target: f64,
}

impl Bottleneck {
    /// The largest share's name.
    pub fn name(&self) -> &'static str {
        let shares = [
            (self.source, "source"),
            (self.proxy, "proxy"),
            (self.network, "network"),
            (self.target, "target"),
        ];
        shares.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or("none", |(_, name)| name)
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
    /// Stages with their latencies.
    pub stages: Vec<StageSummary>,
    /// Where the time went.
    pub bottleneck: Bottleneck,
    /// The point that was restored.
    pub point: PointId,
    /// What a person should know (no O_DIRECT, resumed...).
    pub notes: Vec<String>,
}

/// CPU seconds of this process so far, all threads.
pub(super) fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Largest resident set of this process so far, bytes (`VmHWM`, proc(5)).
pub(super) fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
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
        assert_eq!((verify.stage, verify.bytes, verify.blocks), ("verify", 30, 2));
        let shares = one.bottleneck(0.25);
        assert_eq!((shares.source, shares.proxy, shares.network), (20.0, 20.0, 60.0));
        assert_eq!(shares.name(), "network");
        assert_eq!(Stats::default().bottleneck(0.5).target, 0.0);
    }
}
