//! What the source side measures: bytes, busy time and latency per stage and disk, and waits.
//!
//! In: durations and bytes from one worker, without locks. Out: merged summaries and the
//! bottleneck: for which share of the time each part of the road held the others up. Each worker owns its numbers and hands them over when it ends; live progress goes
//! through relaxed atomics.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use gantry_common::stages::StageNumbers;
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
    pub fn summary(&self, stage: &str) -> StageNumbers {
        let mut numbers = StageNumbers {
            stage: stage.to_owned(),
            bytes: self.bytes,
            busy_seconds: self.busy_ns as f64 / 1e9,
            blocks: self.latency_us.len(),
            p50_us: self.latency_us.value_at_quantile(0.5),
            p90_us: self.latency_us.value_at_quantile(0.9),
            p99_us: self.latency_us.value_at_quantile(0.99),
            max_us: self.latency_us.max(),
            buckets_us: Vec::new(),
        };
        for step in self.latency_us.iter_recorded() {
            numbers.count(step.value_iterated_to(), step.count_at_value());
        }
        numbers
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
    pub fn summary(&self) -> Vec<StageNumbers> {
        self.0.iter().zip(STAGE_NAMES).map(|(stage, name)| stage.summary(name)).collect()
    }
}

/// A part of the road that can hold the others up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Reading the source's disk.
    Source,
    /// Computing on the proxy.
    Proxy,
    /// The network (or the throttle).
    Network,
    /// The repository.
    Target,
}

/// What stands after the workers, as the network thread sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DownstreamState {
    /// Blocks queue up before this part; nothing: they pass at once.
    pub backlog: Option<Part>,
    /// The target has blocks that are not durable yet.
    pub unsettled: bool,
}

/// [`DownstreamState`], published by the network thread, read by the workers.
#[derive(Debug, Default)]
pub struct Downstream(AtomicU8);

impl Downstream {
    const NETWORK: u8 = 1;
    const TARGET: u8 = 2;
    const UNSETTLED: u8 = 4;

    /// Publishes the present state.
    pub fn set(&self, state: DownstreamState) {
        let backlog = match state.backlog {
            Some(Part::Target) => Self::TARGET,
            Some(_) => Self::NETWORK,
            None => 0,
        };
        let unsettled = if state.unsettled { Self::UNSETTLED } else { 0 };
        self.0.store(backlog | unsettled, Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> DownstreamState {
        let bits = self.0.load(Ordering::Relaxed);
        let backlog = match bits & (Self::NETWORK | Self::TARGET) {
            0 => None,
            Self::TARGET => Some(Part::Target),
            _ => Some(Part::Network),
        };
        DownstreamState { backlog, unsettled: bits & Self::UNSETTLED != 0 }
    }
}

/// What a worker has in hand, in blocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct InHand {
    /// Reads that are out.
    pub reading: usize,
    /// Blocks that are read or wanted and wait to be computed on.
    pub waiting: usize,
    /// Blocks whose fate the target has not told.
    pub asked: usize,
    /// Buffers for all of these.
    pub slots: usize,
}

/// Which part holds the others up at this moment: the last on the road before which blocks queue up.
/// Where none do, each part is faster than the source. Nothing: there is nothing to do.
///
/// A part that is a little faster than the slowest one is busy most of the time too: how long each
/// works or waits does not tell them apart, the queues do.
pub fn limiting(downstream: DownstreamState, hand: InHand) -> Option<Part> {
    if downstream.backlog.is_some() {
        return downstream.backlog;
    }
    if hand.asked * 2 > hand.slots {
        return Some(Part::Target);
    }
    if hand.waiting == 0 && hand.reading == 0 {
        // The end: all is sent, and what is missing is the target's word.
        let missing = hand.asked > 0 || downstream.unsettled;
        return missing.then_some(Part::Target);
    }
    match hand.waiting > hand.reading {
        true => Some(Part::Proxy),
        false => Some(Part::Source),
    }
}

/// For how long each part held the others up, nanoseconds summed over workers.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorkerTime {
    /// The source.
    pub source_ns: u64,
    /// The proxy.
    pub proxy_ns: u64,
    /// The network.
    pub network_ns: u64,
    /// The target.
    pub target_ns: u64,
}

impl WorkerTime {
    /// Adds a time for which a part held the others up.
    pub fn add(&mut self, part: Part, took: Duration) {
        let ns = took.as_nanos() as u64;
        match part {
            Part::Source => self.source_ns += ns,
            Part::Proxy => self.proxy_ns += ns,
            Part::Network => self.network_ns += ns,
            Part::Target => self.target_ns += ns,
        }
    }

    /// Adds another worker's time.
    pub fn merge(&mut self, other: &WorkerTime) {
        self.source_ns += other.source_ns;
        self.proxy_ns += other.proxy_ns;
        self.network_ns += other.network_ns;
        self.target_ns += other.target_ns;
    }

    /// Shares in percent; they add up to 100 unless nothing was measured.
    pub fn bottleneck(&self) -> Bottleneck {
        let sum = self.source_ns + self.proxy_ns + self.network_ns + self.target_ns;
        let percent = |ns: u64| if sum == 0 { 0.0 } else { round1(ns as f64 * 100.0 / sum as f64) };
        Bottleneck {
            source: percent(self.source_ns),
            proxy: percent(self.proxy_ns),
            network: percent(self.network_ns),
            target: percent(self.target_ns),
        }
    }

    /// The same as times, which add up over sessions and movers.
    pub fn times(&self) -> BottleneckTimes {
        BottleneckTimes {
            source_ms: self.source_ns / 1_000_000,
            proxy_ms: self.proxy_ns / 1_000_000,
            network_ms: self.network_ns / 1_000_000,
            target_ms: self.target_ns / 1_000_000,
        }
    }
}

fn round1(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// For which share of the time each part of the road held the others up, in percent.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Bottleneck {
    /// Reading the source's disk.
    pub source: f64,
    /// Computing on the proxy.
    pub proxy: f64,
    /// The network (or the throttle).
    pub network: f64,
    /// The repository.
    pub target: f64,
}

/// The same in milliseconds, summed over workers.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct BottleneckTimes {
    /// Reading the source's disk.
    pub source_ms: u64,
    /// Computing on the proxy.
    pub proxy_ms: u64,
    /// The network (or the throttle).
    pub network_ms: u64,
    /// The repository.
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
    use super::{
        Downstream, DownstreamState, InHand, Part, Stage, TaskStages, WorkerTime, limiting,
    };
    use std::time::Duration;

    #[test]
    fn shares_add_up_and_histograms_merge() {
        let mut time = WorkerTime { proxy_ns: 2_000_000, ..WorkerTime::default() };
        time.add(Part::Network, Duration::from_millis(6));
        time.add(Part::Source, Duration::from_millis(2));
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

    #[test]
    fn the_last_queue_on_the_road_tells_what_holds_the_others_up() {
        let free = DownstreamState::default();
        let state = |part| DownstreamState { backlog: Some(part), unsettled: true };
        let hand = |reading, waiting, asked| InHand { reading, waiting, asked, slots: 8 };
        for (downstream, hand, expected) in [
            (free, hand(0, 0, 0), None),
            (free, hand(4, 1, 0), Some(Part::Source)),
            (free, hand(1, 4, 0), Some(Part::Proxy)),
            (free, hand(2, 0, 5), Some(Part::Target)),
            (free, hand(0, 0, 1), Some(Part::Target)),
            (state(Part::Network), hand(0, 6, 0), Some(Part::Network)),
            (state(Part::Target), hand(0, 0, 0), Some(Part::Target)),
            (DownstreamState { backlog: None, unsettled: true }, hand(0, 0, 0), Some(Part::Target)),
            (DownstreamState { backlog: None, unsettled: true }, hand(3, 0, 0), Some(Part::Source)),
        ] {
            assert_eq!(limiting(downstream, hand), expected, "{downstream:?} {hand:?}");
        }
        let published = Downstream::default();
        for backlog in [None, Some(Part::Network), Some(Part::Target)] {
            for unsettled in [false, true] {
                published.set(DownstreamState { backlog, unsettled });
                assert_eq!(published.get(), DownstreamState { backlog, unsettled });
            }
        }
    }
}
