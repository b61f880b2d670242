//! Joins the source side: planners and workers between the disks and the sender.
//!
//! In: opened disks, settings, [`SourceCommand`]s from the sender. Out: `SourceReport`s to the
//! sender, statistics. One planner thread a running disk, one pinned worker a core; a block stays
//! with one worker from read to hand-over. Invariant: memory is the two pools plus a bounded part
//! for each disk; a full report channel stops reading.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::IdKey;
use gantry_common::limits;
use gantry_common::session::source_port::SourceReport;
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::TaskNumber;
use gantry_uring::buffer::BufferPool;
use gantry_uring::wake::Waker;

use crate::disk::Disk;
use crate::unit::{TaskDisk, Unit};

pub mod audit;
pub mod plan;
mod planner;
mod worker;

use crate::stats::{Downstream, Progress, TaskStages, WorkerTime};
use planner::Planner;
pub use planner::PlannerInput;
use worker::{Answer, Worker};

/// How the source side runs.
#[derive(Debug, Clone)]
pub struct PipelineSettings {
    /// Cores to pin workers to, one worker each.
    pub cores: Vec<usize>,
    /// Reads in flight for each worker.
    pub queue_depth: usize,
    /// Block size of every disk of the session.
    pub block_size: BlockSize,
    /// Compression.
    pub compression: Compression,
}

/// A report with the worker it came from (planners use `usize::MAX`).
pub type TaggedReport = (usize, SourceReport<Bytes>);

/// Way of planners and workers to the network thread: bounded; wakes it.
#[derive(Clone)]
pub struct ReportSender {
    worker: usize,
    reports: Sender<TaggedReport>,
    notify: Arc<tokio::sync::Notify>,
}

impl ReportSender {
    /// Sends, waiting while the channel is full. After the network thread is gone reports are
    /// dropped: the session is over.
    pub fn send(&self, report: SourceReport<Bytes>) {
        let sent = self.reports.send((self.worker, report));
        if sent.is_ok() {
            self.notify.notify_one();
        }
    }
}

/// What the source side measured, once it has ended.
#[derive(Debug, Default)]
pub struct PipelineStats {
    /// Stages of each disk, over all workers.
    pub tasks: HashMap<TaskNumber, TaskStages>,
    /// Where the workers' time went.
    pub time: WorkerTime,
    /// What workers and readers had to say (fallbacks).
    pub notes: Vec<String>,
}

struct RunningWorker {
    answers: Sender<Answer>,
    waker: Waker,
    thread: JoinHandle<worker::WorkerStats>,
}

/// The running source side of one session.
pub struct Pipeline {
    workers: Vec<RunningWorker>,
    wakers: Arc<Vec<Waker>>,
    units: Sender<Unit>,
    reports: ReportSender,
    planners: HashMap<TaskNumber, (Sender<PlannerInput>, JoinHandle<()>)>,
    stop: Arc<AtomicBool>,
}

/// What the network thread holds of a pipeline.
pub struct PipelineEnds {
    /// Reports of planners and workers.
    pub reports: Receiver<TaggedReport>,
    /// Fires after each report.
    pub notify: Arc<tokio::sync::Notify>,
    /// Where the network thread publishes what holds it up.
    pub downstream: Arc<Downstream>,
    /// Compressed blocks: a slot is in use until the transport has let go of it.
    pub send_pool: BufferPool,
}

impl Pipeline {
    /// Starts the workers.
    ///
    /// # Errors
    /// `Internal` when io_uring or memory cannot be had; the text says what to do.
    pub fn start(settings: &PipelineSettings) -> Result<(Pipeline, PipelineEnds), Failure> {
        let (report_tx, report_rx) = bounded(256);
        let notify = Arc::new(tokio::sync::Notify::new());
        let downstream = Arc::new(Downstream::default());
        let stop = Arc::new(AtomicBool::new(false));
        let block_bytes = settings.block_size.bytes() as usize;
        // Two read buffers each at the least, within the pool's bytes.
        let count = settings.cores.len().clamp(1, limits::READ_POOL_BYTES / 2 / block_bytes);
        let read_slots = (limits::READ_POOL_BYTES / count / block_bytes).max(2);
        let depth = settings.queue_depth.clamp(1, read_slots);
        let (unit_tx, unit_rx) = bounded(count * depth * 2);
        let send_slots = (limits::SEND_POOL_BYTES / block_bytes).max(2 * count);
        let wake_all: Arc<std::sync::OnceLock<Arc<Vec<Waker>>>> = Arc::default();
        let hook = Arc::clone(&wake_all);
        let send_pool = BufferPool::with_notify(
            send_slots,
            block_bytes,
            Arc::new(move || {
                hook.get().into_iter().for_each(|all| all.iter().for_each(Waker::wake))
            }),
        )
        .map_err(no_memory)?;
        let mut workers = Vec::with_capacity(count);
        let reports = |worker| ReportSender {
            worker,
            reports: report_tx.clone(),
            notify: Arc::clone(&notify),
        };
        for number in 0..count {
            let (answer_tx, answer_rx) = unbounded();
            let worker = worker::Setup {
                core: settings.cores.get(number).copied(),
                depth,
                read_slots,
                block_bytes,
                compression: settings.compression,
                units: unit_rx.clone(),
                answers: answer_rx,
                reports: reports(number),
                send_pool: send_pool.clone(),
                downstream: Arc::clone(&downstream),
                stop: Arc::clone(&stop),
            };
            let (thread, waker) = Worker::spawn(number, worker)?;
            workers.push(RunningWorker { answers: answer_tx, waker, thread });
        }
        let wakers =
            Arc::new(workers.iter().map(|worker| worker.waker.clone()).collect::<Vec<_>>());
        let _ = wake_all.set(Arc::clone(&wakers));
        let ends =
            PipelineEnds { reports: report_rx, notify: Arc::clone(&notify), downstream, send_pool };
        let reports = reports(usize::MAX);
        let planners = HashMap::new();
        Ok((Pipeline { workers, wakers, units: unit_tx, reports, planners, stop }, ends))
    }

    /// Begins a disk by this plan.
    pub fn begin(
        &mut self,
        task: TaskNumber,
        source: Arc<Disk>,
        facts: DiskFacts,
        plan: plan::Plan,
        durable: &[gantry_common::extents::Run],
    ) -> Result<(), Failure> {
        let disk = Arc::new(TaskDisk {
            task,
            source,
            label: facts.label,
            size_bytes: facts.size_bytes,
            block_size: facts.block_size,
            id_key: facts.id_key,
            mask: Arc::clone(&plan.mask),
            base_mask: Arc::clone(&plan.base_mask),
            progress: facts.progress,
            wakers: Arc::clone(&self.wakers),
        });
        let (input_tx, input_rx) = unbounded();
        let (units, reports) = (self.units.clone(), self.reports.clone());
        let planner = Planner::new(disk, plan, durable, input_rx, units, reports, facts.audit);
        let thread = std::thread::Builder::new()
            .name(format!("plan-{task}"))
            .spawn(move || planner.run())
            .map_err(|error| {
                Failure::new(FailureKind::Internal, format!("starting a planner failed: {error}"))
            })?;
        self.planners.insert(task, (input_tx, thread));
        Ok(())
    }

    /// Passes base ids or blocks to be redone to a disk's planner.
    pub fn tell_planner(&self, task: TaskNumber, input: PlannerInput) {
        if let Some((planner, _)) = self.planners.get(&task) {
            // A planner that ended has failed and said so.
            let _ = planner.send(input);
        }
    }

    /// Passes the target's answer about a block to the worker that holds it.
    pub fn answer(&self, worker: usize, task: TaskNumber, block: u64, known: bool) {
        if let Some(worker) = self.workers.get(worker) {
            let _ = worker.answers.send(Answer { task, block, known });
            worker.waker.wake();
        }
    }

    /// Ends everything and gathers the statistics. The network thread must have dropped its end
    /// of the reports, or be still draining them.
    pub fn stop(mut self) -> PipelineStats {
        self.stop.store(true, Ordering::Relaxed);
        let mut stats = PipelineStats::default();
        for (planner, _) in self.planners.values() {
            let _ = planner.send(PlannerInput::Stop);
        }
        self.wakers.iter().for_each(Waker::wake);
        for worker in self.workers.drain(..) {
            worker.waker.wake();
            match worker.thread.join() {
                Ok(done) => {
                    stats.time.merge(&done.time);
                    for (task, stages) in done.tasks {
                        stats.tasks.entry(task).or_default().merge(&stages);
                    }
                    stats.notes.extend(done.notes);
                }
                Err(_) => stats.notes.push("a worker panicked: please report this".into()),
            }
        }
        for (_, (_, thread)) in self.planners.drain() {
            let _ = thread.join();
        }
        stats.notes.sort();
        stats.notes.dedup();
        stats
    }
}

/// Facts of a disk that are known once its task is open.
pub struct DiskFacts {
    /// Name for messages.
    pub label: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Block size.
    pub block_size: BlockSize,
    /// Key for ids.
    pub id_key: IdKey,
    /// Live numbers.
    pub progress: Arc<Progress>,
    /// Where the audit of its changed-block tracking counts.
    pub audit: Arc<audit::Audit>,
}

fn no_memory(error: std::io::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("no memory for the buffer pools: {error}"))
}
