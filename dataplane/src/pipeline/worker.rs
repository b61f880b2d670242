//! One worker: takes a block through read, scan, hash and compress without handing it over.
//!
//! In: read units, the target's answers. Out: marks, ids and compressed blocks for the sender.
//! Invariant: the worker never blocks while it could compute, and never holds more than its
//! slots of the read pool; blocks whose answer is outstanding keep their slot.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use gantry_common::extents::Run;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{BlockId, StoredChecksum};
use gantry_common::session::source_port::SourceReport;
use gantry_common::units::Compression;
use gantry_common::wire::{BlockHead, Mark, MarkKind, TaskNumber};
use gantry_uring::buffer::{BufferPool, PooledBuf};
use gantry_uring::wake::Waker;

use super::ReportSender;
use crate::compress::Compressor;
use crate::filter;
use crate::reader::{ReadDone, Reader};
use crate::stats::{Downstream, InHand, Part, Progress, Stage, TaskStages, WorkerTime, limiting};
use crate::unit::Unit;

/// The target's answer about one block.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// Its task.
    pub task: TaskNumber,
    /// Block number.
    pub block: u64,
    /// Whether the target has it.
    pub known: bool,
}

/// What a worker needs to start.
pub struct Setup {
    pub core: Option<usize>,
    pub depth: usize,
    pub read_slots: usize,
    pub block_bytes: usize,
    pub compression: Compression,
    pub units: Receiver<Unit>,
    pub answers: Receiver<Answer>,
    pub reports: ReportSender,
    pub send_pool: BufferPool,
    pub downstream: Arc<Downstream>,
    pub stop: Arc<AtomicBool>,
}

/// What a worker measured.
#[derive(Default)]
pub struct WorkerStats {
    pub tasks: HashMap<TaskNumber, TaskStages>,
    pub time: WorkerTime,
    pub notes: Vec<String>,
}

/// A block that was read and hashed and waits for the target's word or for an output slot.
struct Held {
    unit: Unit,
    buf: PooledBuf,
    len: usize,
    id: BlockId,
    hashed_at: Instant,
}

/// A worker and all it owns.
pub struct Worker {
    setup: Setup,
    pool: BufferPool,
    reader: Reader,
    compressor: Compressor,
    asked: HashMap<(TaskNumber, u64), Held>,
    wanted: VecDeque<Held>,
    stats: WorkerStats,
    /// Until when it is told which part held the others up.
    told_until: Instant,
}

impl Worker {
    /// Starts the thread; returns once its ring works.
    ///
    /// # Errors
    /// `Internal` with what to do, when the ring or the memory cannot be had.
    pub fn spawn(number: usize, setup: Setup) -> Result<(JoinHandle<WorkerStats>, Waker), Failure> {
        // The ring belongs to the thread that uses it (SINGLE_ISSUER), so it is made there.
        let (ready_tx, ready_rx) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || match Worker::new(setup) {
                Ok(worker) => {
                    let _ = ready_tx.send(Ok(worker.reader.waker()));
                    drop(ready_tx);
                    worker.run()
                }
                Err(failure) => {
                    let _ = ready_tx.send(Err(failure));
                    WorkerStats::default()
                }
            })
            .map_err(|error| internal(format!("starting a worker failed: {error}")))?;
        let waker =
            ready_rx.recv().map_err(|_| internal("a worker died at its start".into()))??;
        Ok((thread, waker))
    }

    fn new(setup: Setup) -> Result<Worker, Failure> {
        let mut stats = WorkerStats::default();
        if let Some(core) = setup.core
            && let Err(error) = gantry_uring::thread::pin_current_thread(core)
        {
            stats.notes.push(format!("worker not pinned to core {core}: {error}"));
        }
        let pool = BufferPool::new(setup.read_slots, setup.block_bytes)
            .map_err(|error| internal(format!("no memory for read buffers: {error}")))?;
        let (reader, note) = Reader::new(&pool, setup.depth)?;
        stats.notes.extend(note);
        let compressor = Compressor::new(setup.compression)
            .map_err(|error| internal(format!("zstd: {error}")))?;
        let (asked, wanted) = (HashMap::new(), VecDeque::new());
        let told_until = Instant::now();
        Ok(Worker { setup, pool, reader, compressor, asked, wanted, stats, told_until })
    }

    fn run(mut self) -> WorkerStats {
        while !self.setup.stop.load(Ordering::Relaxed) {
            let mut did = self.take_answers();
            did |= self.compress_wanted();
            did |= self.handle_reads();
            self.start_reads();
            if !did && let Err(failure) = self.rest() {
                self.fail_everything(&failure);
                break;
            }
        }
        self.stats.notes.extend(self.reader.take_notes());
        self.stats
    }

    /// Sleeps until a read completes, an answer or a unit comes, or a slot returns.
    fn rest(&mut self) -> Result<(), Failure> {
        // Before the wait: what it waits for has come by its end.
        let part = self.limiting();
        // Looking may have taken a block in, for which nothing wakes the ring again.
        if self.reader.ready() == 0 {
            self.reader.wait(Duration::from_millis(200))?;
        }
        self.tell(part);
        Ok(())
    }

    /// Which part holds the others up.
    fn limiting(&mut self) -> Option<Part> {
        let waiting = self.reader.ready() + self.wanted.len();
        let hand = InHand {
            reading: self.reader.in_flight(),
            waiting,
            asked: self.asked.len(),
            slots: self.setup.read_slots,
        };
        limiting(self.setup.downstream.get(), hand)
    }

    /// Counts the time since the last telling for this part.
    fn tell(&mut self, part: Option<Part>) {
        let now = Instant::now();
        if let Some(part) = part {
            self.stats.time.add(part, now - self.told_until);
        }
        self.told_until = now;
    }

    fn tell_limiting(&mut self) {
        let part = self.limiting();
        self.tell(part);
    }

    fn start_reads(&mut self) {
        let mut started = false;
        while self.reader.in_flight() < self.setup.depth && !self.setup.units.is_empty() {
            let Some(buf) = self.pool.try_take() else { break };
            let Ok(unit) = self.setup.units.try_recv() else { break };
            self.reader.start(unit, buf);
            started = true;
        }
        if started {
            self.reader.flush();
        }
    }

    fn handle_reads(&mut self) -> bool {
        let mut did = false;
        while let Some(done) = self.reader.next_done() {
            did = true;
            self.handle_read(done);
            self.tell_limiting();
            // Keep the disk busy while the next block is being computed on.
            self.start_reads();
        }
        did
    }

    fn handle_read(&mut self, done: ReadDone) {
        let ReadDone { unit, mut buf, len, took, result } = done;
        let task = unit.disk.task;
        if let Err(failure) = result {
            self.setup.reports.send(SourceReport::Failed { task, failure });
            return;
        }
        let progress = &unit.disk.progress;
        Progress::add(&progress.read_bytes, len as u64);
        Progress::add(&progress.reads, 1);
        Progress::add(&progress.reads_us, took.as_micros() as u64);
        let offset = unit.block * u64::from(unit.disk.block_size.bytes());
        let mask = if unit.audit.is_some() { &unit.disk.base_mask } else { &unit.disk.mask };
        mask.zero(offset, &mut buf[..len]);
        if let Some(audit) = &unit.audit {
            let id = match filter::is_zero(&buf[..len]) {
                true => BlockId::ZERO,
                false => unit.disk.id_key.block_id(&buf[..len]),
            };
            audit.found(unit.block, id, unit.expected.unwrap_or(BlockId::ZERO));
            return;
        }
        Progress::add(&progress.done_bytes, len as u64);
        let stages = self.stats.tasks.entry(task).or_default();
        stages.stage(Stage::Read).record(len as u64, took);
        let from = Instant::now();
        let zero = filter::is_zero(&buf[..len]);
        let scanned = Instant::now();
        stages.stage(Stage::Scan).record(len as u64, scanned - from);
        let block = unit.block;
        let marked = |kind| SourceReport::Marked {
            task,
            mark: Mark { run: Run { first: block, count: 1 }, kind },
        };
        if zero {
            self.setup.reports.send(marked(MarkKind::Zero));
            return;
        }
        let id = unit.disk.id_key.block_id(&buf[..len]);
        let hashed_at = Instant::now();
        stages.stage(Stage::Hash).record(len as u64, hashed_at - scanned);
        if unit.expected == Some(id) {
            self.setup.reports.send(marked(MarkKind::Unchanged));
            return;
        }
        let held = Held { unit, buf, len, id, hashed_at };
        self.asked.insert((task, block), held);
        self.setup.reports.send(SourceReport::Hashed { task, block, id });
    }

    fn take_answers(&mut self) -> bool {
        let mut did = false;
        while let Ok(answer) = self.setup.answers.try_recv() {
            did = true;
            let Some(held) = self.asked.remove(&(answer.task, answer.block)) else { continue };
            let stages = self.stats.tasks.entry(answer.task).or_default();
            stages.stage(Stage::Query).record(held.len as u64, held.hashed_at.elapsed());
            if !answer.known {
                self.wanted.push_back(held);
            }
        }
        did
    }

    /// Compresses one wanted block, if there is one and a slot for its output.
    fn compress_wanted(&mut self) -> bool {
        if self.wanted.is_empty() {
            return false;
        }
        let Some(mut out) = self.setup.send_pool.try_take() else { return false };
        let Some(held) = self.wanted.pop_front() else { return false };
        let from = Instant::now();
        let raw = &held.buf[..held.len];
        let task = held.unit.disk.task;
        let compressed = self.compressor.compress(raw, &mut out);
        let stored = &out[..compressed.len];
        let head = BlockHead {
            id: held.id,
            codec: compressed.codec,
            raw_len: held.len as u32,
            checksum: StoredChecksum::of(stored),
        };
        let took = from.elapsed();
        let stages = self.stats.tasks.entry(task).or_default();
        stages.stage(Stage::Compress).record(held.len as u64, took);
        Progress::add(&held.unit.disk.progress.sent_bytes, compressed.len as u64);
        let payload = Bytes::from_owner(out).slice(..compressed.len);
        let block = held.unit.block;
        drop(held);
        self.setup.reports.send(SourceReport::Ready { task, block, head, payload });
        self.tell_limiting();
        true
    }

    fn fail_everything(&mut self, failure: &Failure) {
        let mut tasks: Vec<TaskNumber> = self.stats.tasks.keys().copied().collect();
        tasks.extend(self.reader.tasks_in_flight());
        tasks.sort_unstable();
        tasks.dedup();
        for task in tasks {
            let failure = failure.clone();
            self.setup.reports.send(SourceReport::Failed { task, failure });
        }
    }
}

fn internal(text: String) -> Failure {
    Failure::new(FailureKind::Internal, text)
}
