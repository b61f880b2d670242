//! What the source side measures: bytes, busy time and latency per stage and disk, and waits.
//!
//! In: durations and bytes from one worker, without locks. Out: merged summaries and the
//! bottleneck. Each worker owns its numbers and hands them over when it ends; live progress goes
//! through relaxed atomics.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// A stage that is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// io_uring read, from submission to completion.
    Read,
    /// Zero scan.
    Scan,
    /// BLAKE3.
    Hash,
    /// From the question to the target's answer whether it knows a block.
    Query,
    /// zstd.
    Compress,
}

/// Names of the stages, in order of [`Stage`].
pub const STAGE_NAMES: [&str; 5] = ["read", "scan", "hash", "query", "compress"];

/// Bytes, busy time and latencies of one stage.
#[derive(Debug, Clone)]
pub struct StageStats {
    /// Bytes that went in.
    pub bytes: u64,
    /// Nanoseconds of work (for `Read` and `Query`: of latency, which overlaps).
    pub busy_ns: u64,
    /// Latency of one block, microseconds.
    pub latency_us: Histogram<u64>,
}

impl Default for StageStats {
    fn default() -> Self {
        // Two digits, resizing: 17 KB at ten seconds, less for what is quick.
        let latency_us = Histogram::new(2).expect("two significant digits are valid");
        StageStats { bytes: 0, busy_ns: 0, latency_us }
    }
}

impl StageStats {
    /// Records one block.
    pub fn record(&mut self, bytes: u64, took: Duration) {
        self.bytes += bytes;
        self.busy_ns += took.as_nanos() as u64;
        // `record` resizes, which `saturating_record` does not; an hour bounds the memory.
        let us = (took.as_micros() as u64).clamp(1, 3_600_000_000);
        let _ = self.latency_us.record(us);
    }

    /// For the report.
    pub fn summary(&self, stage: &'static str) -> StageSummary {
        StageSummary {
            stage,
            bytes: self.bytes,
            busy_seconds: self.busy_ns as f64 / 1e9,
            blocks: self.latency_us.len(),
            p50_us: self.latency_us.value_at_quantile(0.5),
            p90_us: self.latency_us.value_at_quantile(0.9),
            p99_us: self.latency_us.value_at_quantile(0.99),
            max_us: self.latency_us.max(),
        }
    }

    /// Adds another worker's numbers.
    pub fn merge(&mut self, other: &StageStats) {
        self.bytes += other.bytes;
        self.busy_ns += other.busy_ns;
        // Both resize automatically, so adding cannot fail on range.
        let _ = self.latency_us.add(&other.latency_us);
    }
}

/// Stages of one disk as one worker saw them.
#[derive(Debug, Clone, Default)]
pub struct TaskStages(pub [StageStats; 5]);

impl TaskStages {
    /// The numbers of one stage.
    pub fn stage(&mut self, stage: Stage) -> &mut StageStats {
        &mut self.0[stage as usize]
    }

    /// Adds another worker's numbers.
    pub fn merge(&mut self, other: &TaskStages) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            mine.merge(theirs);
        }
    }

    /// For the report.
    pub fn summary(&self) -> Vec<StageSummary> {
        self.0.iter().zip(STAGE_NAMES).map(|(stage, name)| stage.summary(name)).collect()
    }
}

/// One stage of the report.
#[derive(Debug, Clone, Serialize)]
pub struct StageSummary {
    /// Its name.
    pub stage: &'static str,
    /// Bytes in.
    pub bytes: u64,
    /// Seconds of work over all workers.
    pub busy_seconds: f64,
    /// Blocks.
    pub blocks: u64,
    /// Median latency, microseconds.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Longest.
    pub max_us: u64,
}

/// Why a worker has nothing to do: what holds it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Reads are in flight and nothing else could be done.
    Source,
    /// Buffers wait for the network.
    Network,
    /// Buffers, credits or answers wait for the target.
    Target,
}

/// What holds up the stages after the workers, published by the network thread.
#[derive(Debug, Default)]
pub struct Downstream(AtomicU8);

impl Downstream {
    /// Publishes the present state.
    pub fn set(&self, wait: Wait) {
        self.0.store(u8::from(wait == Wait::Target), Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> Wait {
        if self.0.load(Ordering::Relaxed) == 1 { Wait::Target } else { Wait::Network }
    }
}

/// Where the workers' time went, nanoseconds summed over workers while a disk was being read.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorkerTime {
    /// Computing: scan, hash, compress.
    pub busy_ns: u64,
    /// Waiting for reads.
    pub source_ns: u64,
    /// Waiting for the network.
    pub network_ns: u64,
    /// Waiting for the target.
    pub target_ns: u64,
}

impl WorkerTime {
    /// Adds a wait.
    pub fn add_wait(&mut self, wait: Wait, took: Duration) {
        let ns = took.as_nanos() as u64;
        match wait {
            Wait::Source => self.source_ns += ns,
            Wait::Network => self.network_ns += ns,
            Wait::Target => self.target_ns += ns,
        }
    }

    /// Adds another worker's time.
    pub fn merge(&mut self, other: &WorkerTime) {
        self.busy_ns += other.busy_ns;
        self.source_ns += other.source_ns;
        self.network_ns += other.network_ns;
        self.target_ns += other.target_ns;
    }

    /// Shares in percent; they add up to 100 unless nothing was measured.
    pub fn bottleneck(&self) -> Bottleneck {
        let sum = self.busy_ns + self.source_ns + self.network_ns + self.target_ns;
        let percent = |ns: u64| if sum == 0 { 0.0 } else { round1(ns as f64 * 100.0 / sum as f64) };
        Bottleneck {
            source: percent(self.source_ns),
            proxy: percent(self.busy_ns),
            network: percent(self.network_ns),
            target: percent(self.target_ns),
        }
    }

    /// The same as times, which add up over sessions and movers.
    pub fn times(&self) -> BottleneckTimes {
        BottleneckTimes {
            source_ms: self.source_ns / 1_000_000,
            proxy_ms: self.busy_ns / 1_000_000,
            network_ms: self.network_ns / 1_000_000,
            target_ms: self.target_ns / 1_000_000,
        }
    }
}

fn round1(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Which part of the road the workers' time was spent on or waiting for, in percent.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Bottleneck {
    /// Waiting for the source's disk.
    pub source: f64,
    /// Computing on the proxy.
    pub proxy: f64,
    /// Waiting for the network (or the throttle).
    pub network: f64,
    /// Waiting for the repository.
    pub target: f64,
}

/// The same in milliseconds, summed over workers.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct BottleneckTimes {
    /// Waiting for the source's disk.
    pub source_ms: u64,
    /// Computing on the proxy.
    pub proxy_ms: u64,
    /// Waiting for the network (or the throttle).
    pub network_ms: u64,
    /// Waiting for the repository.
    pub target_ms: u64,
}

impl Bottleneck {
    /// The largest share's name.
    pub fn name(&self) -> &'static str {
        let all = [
            (self.source, "source"),
            (self.proxy, "proxy"),
            (self.network, "network"),
            (self.target, "target"),
        ];
        let largest = all.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        largest.map_or("none", |(_, name)| name)
    }
}

/// Live numbers of one disk, for progress displays.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes to do: changed or allocated bytes, not the virtual size. Grows while planned.
    pub todo_bytes: AtomicU64,
    /// Of these, read and handled.
    pub done_bytes: AtomicU64,
    /// Bytes read from the source.
    pub read_bytes: AtomicU64,
    /// Stored bytes handed to the network.
    pub sent_bytes: AtomicU64,
    /// Reads that have ended.
    pub reads: AtomicU64,
    /// What they took together, in microseconds.
    pub reads_us: AtomicU64,
}

impl Progress {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, bytes: u64) {
        counter.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{Stage, TaskStages, Wait, WorkerTime};
    use std::time::Duration;

    #[test]
    fn shares_add_up_and_histograms_merge() {
        let mut time = WorkerTime { busy_ns: 2_000_000, ..WorkerTime::default() };
        time.add_wait(Wait::Network, Duration::from_millis(6));
        time.add_wait(Wait::Source, Duration::from_millis(2));
        let shares = time.bottleneck();
        assert_eq!((shares.source, shares.proxy, shares.network), (20.0, 20.0, 60.0));
        assert_eq!(shares.name(), "network");
        assert_eq!((time.times().network_ms, time.times().proxy_ms), (6, 2));
        let (mut one, mut two) = (TaskStages::default(), TaskStages::default());
        one.stage(Stage::Hash).record(1, Duration::from_micros(10));
        two.stage(Stage::Hash).record(2, Duration::from_secs(100));
        one.merge(&two);
        let hash = &one.summary()[Stage::Hash as usize];
        assert_eq!((hash.bytes, hash.blocks, hash.p50_us), (3, 2, 10));
        assert!(hash.max_us >= 99_000_000);
    }
}
