//! One restore across all its connections: what has come, what has been written, who does it.
//!
//! In: accepted blocks and zeros, results of workers. Out: jobs, coverage, checkpoints. Invariant:
//! `covered` holds only what is at the destination, `accepted` also what is on its way there; both
//! only grow. Must not: know connections.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_common::extents::{Run, RunSet};
use gantry_common::failure::Failure;
use gantry_common::units::BlockSize;
use tokio::sync::mpsc::UnboundedReceiver;

use super::keeper::Keeper;
use super::report::{Progress, Stage, Stats};
use super::requests::Ahead;
use super::workers::{Done, Job, Workers};

/// Time between checkpoints: what a killed restore does again at most.
const CHECKPOINT_TIME: Duration = Duration::from_secs(5);

/// The disk's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of the disk.
    pub(super) size_bytes: u64,
    /// Its block size.
    pub(super) block_size: BlockSize,
}

impl Shape {
    /// Blocks of the disk.
    pub(super) fn blocks(&self) -> u64 {
        self.block_size.block_count(self.size_bytes)
    }

    /// Bytes of a run within the disk.
    pub(super) fn run_bytes(&self, run: Run) -> u64 {
        let block = u64::from(self.block_size.bytes());
        let start = run.first.saturating_mul(block).min(self.size_bytes);
        let end = (run.first.saturating_add(run.count)).saturating_mul(block).min(self.size_bytes);
        end - start
    }
}

/// Numbers of the run, for the report.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) written_bytes: u64,
    pub(super) zero_bytes: u64,
    pub(super) transferred_bytes: u64,
    pub(super) blocks: u64,
    pub(super) reconnections: u64,
    /// As the repository says, microseconds.
    pub(super) reading_us: u64,
    pub(super) sending_us: u64,
}

/// The state of one restore.
#[derive(Debug)]
pub(super) struct RestoreRun {
    pub(super) shape: Shape,
    /// How far to ask ahead, and within how many blocks of the first gap.
    pub(super) ahead: Ahead,
    pub(super) window: Option<u64>,
    /// Handed to the workers, or there from an earlier run.
    pub(super) accepted: RunSet,
    /// At the destination.
    pub(super) covered: RunSet,
    /// Holes need no work.
    pub(super) zeros_are_there: bool,
    pub(super) workers: Workers,
    pub(super) done: UnboundedReceiver<Done>,
    pub(super) keeper: Option<Keeper>,
    pub(super) progress: Arc<Progress>,
    pub(super) totals: Totals,
    pub(super) stats: Stats,
    pub(super) notes: Vec<String>,
    /// Jobs that found the workers' queue full; bounded by what was asked for.
    backlog: VecDeque<Job>,
    under_way: u64,
    last_checkpoint: Instant,
    last_block: Instant,
    /// When something last went forward.
    pub(super) last_progress: Instant,
}

/// What [`RestoreRun`] starts with.
#[derive(Debug)]
pub(super) struct RunParts {
    pub(super) shape: Shape,
    pub(super) ahead: Ahead,
    pub(super) window: Option<u64>,
    pub(super) covered: RunSet,
    pub(super) zeros_are_there: bool,
    pub(super) workers: Workers,
    pub(super) done: UnboundedReceiver<Done>,
    pub(super) keeper: Option<Keeper>,
    pub(super) progress: Arc<Progress>,
}

impl RestoreRun {
    /// A restore that begins, or goes on from `covered`.
    pub(super) fn new(parts: RunParts) -> RestoreRun {
        let RunParts {
            shape,
            ahead,
            window,
            covered,
            zeros_are_there,
            workers,
            done,
            keeper,
            progress,
        } = parts;
        let now = Instant::now();
        Progress::add(&progress.todo_bytes, shape.size_bytes);
        for run in covered.iter() {
            Progress::add(&progress.done_bytes, shape.run_bytes(run));
        }
        RestoreRun {
            shape,
            ahead,
            window,
            accepted: covered.clone(),
            covered,
            zeros_are_there,
            workers,
            done,
            keeper,
            progress,
            totals: Totals::default(),
            stats: Stats::default(),
            notes: Vec::new(),
            backlog: VecDeque::new(),
            under_way: 0,
            last_checkpoint: now,
            last_block: now,
            last_progress: now,
        }
    }

    /// The block at which requests must end for now.
    pub(super) fn request_limit(&self) -> u64 {
        match self.window {
            None => u64::MAX,
            Some(window) => {
                let written = self.covered.run_at(0).map_or(0, |run| run.count);
                written.saturating_add(window)
            }
        }
    }

    /// Takes in a block that was asked for.
    pub(super) fn block(&mut self, job: Job, block: u64, stored_bytes: u64) {
        let now = Instant::now();
        self.stats.record(Stage::Receive, stored_bytes, now - self.last_block);
        (self.last_block, self.last_progress) = (now, now);
        self.accepted.insert(Run { first: block, count: 1 });
        self.totals.blocks += 1;
        self.totals.transferred_bytes += stored_bytes;
        Progress::add(&self.progress.received_bytes, stored_bytes);
        self.under_way += 1;
        self.backlog.push_back(job);
        self.hand_out();
    }

    /// Takes in a run of zeros that was asked for.
    pub(super) fn zeros(&mut self, run: Run) {
        let bytes = self.shape.run_bytes(run);
        self.last_progress = Instant::now();
        self.accepted.insert(run);
        self.totals.zero_bytes += bytes;
        Progress::add(&self.progress.zero_bytes, bytes);
        if self.zeros_are_there {
            self.cover(run);
            return;
        }
        self.under_way += 1;
        self.backlog.push_back(Job::Zero(run));
        self.hand_out();
    }

    fn hand_out(&mut self) {
        while let Some(job) = self.backlog.pop_front() {
            if let Err(job) = self.workers.give(job) {
                self.backlog.push_front(job);
                return;
            }
        }
    }

    fn cover(&mut self, run: Run) {
        self.covered.insert(run);
        Progress::add(&self.progress.done_bytes, self.shape.run_bytes(run));
    }

    /// Takes in what became of a job.
    ///
    /// # Errors
    /// The destination failed, or a block did not pass.
    pub(super) fn settle(&mut self, done: Done) -> Result<(), Failure> {
        match done {
            Done::Failed(failure) => return Err(failure),
            Done::Run { run, written_bytes } => {
                self.under_way = self.under_way.saturating_sub(1);
                self.totals.written_bytes += written_bytes;
                self.last_progress = Instant::now();
                self.cover(run);
            }
        }
        self.hand_out();
        Ok(())
    }

    /// Takes in what is there already, without waiting.
    ///
    /// # Errors
    /// As [`RestoreRun::settle`].
    pub(super) fn settle_all(&mut self) -> Result<(), Failure> {
        while let Ok(done) = self.done.try_recv() {
            self.settle(done)?;
        }
        Ok(())
    }

    /// Whether the workers have done everything that came.
    pub(super) fn is_settled(&self) -> bool {
        self.under_way == 0
    }

    /// Waits until the workers have done everything that came.
    ///
    /// # Errors
    /// As [`RestoreRun::settle`].
    pub(super) async fn settle_rest(&mut self) -> Result<(), Failure> {
        while self.under_way > 0 {
            let Some(done) = self.done.recv().await else { return Ok(()) };
            self.settle(done)?;
        }
        Ok(())
    }

    /// Ends a restore that failed, so that the next run goes on from what is there.
    pub(super) async fn give_up(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        // The destination is free again once this returns.
        self.workers.finish();
        while let Ok(done) = self.done.try_recv() {
            if let Done::Run { run, .. } = done {
                self.covered.insert(run);
            }
        }
        keeper.leave(&self.covered).await;
    }

    /// Whether every block of the disk is at the destination.
    pub(super) fn is_complete(&self) -> bool {
        self.covered.blocks() == self.shape.blocks() && self.covered.run_count() <= 1
    }

    /// Orders a checkpoint if it is time.
    pub(super) fn checkpoint_if_due(&mut self) {
        if let Some(keeper) = &mut self.keeper
            && self.last_checkpoint.elapsed() >= CHECKPOINT_TIME
            && !keeper.is_busy()
        {
            self.last_checkpoint = Instant::now();
            keeper.checkpoint(&self.covered);
        }
    }

    /// Share of the waiting for blocks that the repository's disks were the reason for.
    pub(super) fn repository_share(&self) -> f64 {
        let Totals { reading_us, sending_us, .. } = self.totals;
        match reading_us + sending_us {
            0 => 0.5,
            sum => reading_us as f64 / sum as f64,
        }
    }
}
