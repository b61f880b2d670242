//! The disks of one session as the network thread sees them: waiting, running, sealed.
//!
//! In: what the sender machine and the pipeline say about tasks. Out: which disk begins next,
//! totals, the session's outcome. At most `tasks_max` disks are read at the same time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gantry_common::extents::Run;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{IdKey, PointId};
use gantry_common::session::source_port::SourceReport;
use gantry_common::units::BlockSize;
use gantry_common::wire::{BaseAnswer, DiskOffer, MaskRange, TaskNumber, TaskTotals};
use gantry_guest::FilterMap;

use super::fates::{Fate, Fates};
use crate::disk::Disk;
use crate::pipeline::audit::Audit;
use crate::pipeline::plan::{self, PlanOptions, ReadMode};
use crate::pipeline::{DiskFacts, Pipeline};
use crate::stats::Progress;

enum State {
    /// The target has not opened its task yet.
    Offered,
    /// Opened; waits for a slot.
    Waiting { id_key: IdKey, base: BaseAnswer, durable: Vec<Run> },
    /// Its planner lives; after the seal too, since a lost connection may bring blocks back.
    Running { sealed: Option<u64> },
}

/// One disk of the session.
pub struct SessionDisk {
    /// What the target was told of it.
    pub offer: DiskOffer,
    /// For messages.
    pub label: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Block size.
    pub block_size: BlockSize,
    /// Live numbers.
    pub progress: Arc<Progress>,
    /// How it was read, and why.
    pub plan: Option<(ReadMode, String)>,
    /// What the audit of its changed extents found.
    pub audit: Arc<Audit>,
    /// What its content has zeroed on purpose.
    pub effective: Arc<FilterMap>,
    mask: Arc<FilterMap>,
    source: Arc<Disk>,
    options: PlanOptions,
    fates: Fates,
    state: State,
}

impl SessionDisk {
    /// A disk that is about to be backed up.
    pub fn new(offer: DiskOffer, source: Disk, options: PlanOptions) -> SessionDisk {
        let (size_bytes, block_size) = (offer.size_bytes, offer.block_size);
        SessionDisk {
            label: offer.label.clone(),
            offer,
            size_bytes,
            block_size,
            progress: Arc::default(),
            plan: None,
            audit: Arc::default(),
            fates: Fates::new(block_size, size_bytes, &[]),
            effective: Arc::default(),
            mask: Arc::default(),
            source: Arc::new(source),
            options,
            state: State::Offered,
        }
    }

    /// Totals as of now.
    pub fn totals(&self) -> TaskTotals {
        let bytes_read = self.progress.read_bytes.load(Ordering::Relaxed);
        TaskTotals { bytes_read, ..self.fates.totals() }
    }

    /// What the point keeps of its mask, once all blocks have a fate. After an audit that found
    /// changed-block tracking wrong nothing is taken over unread.
    fn effective_mask(&mut self) -> Vec<MaskRange> {
        if self.source.is_unreadable() {
            // Whoever brought it in knew: a disk that is sealed already keeps what it said.
            return vec![MaskRange::UNKNOWN];
        }
        if self.audit.sum().wrong > 0 {
            self.effective = Arc::clone(&self.mask);
        }
        plan::stored_mask(&self.effective)
    }

    /// Bytes that the disk added to the repository, once it is sealed.
    pub fn bytes_stored(&self) -> u64 {
        match self.state {
            State::Running { sealed: Some(bytes_stored) } => bytes_stored,
            _ => 0,
        }
    }
}

/// All disks of the session and how it ended.
pub struct SessionDisks {
    disks: Vec<SessionDisk>,
    tasks_max: usize,
    outcome: Option<Result<Option<PointId>, Failure>>,
}

impl SessionDisks {
    /// These disks, so many at a time.
    pub fn new(disks: Vec<SessionDisk>, tasks_max: usize) -> SessionDisks {
        SessionDisks { disks, tasks_max: tasks_max.max(1), outcome: None }
    }

    /// The disks, in the session's order.
    pub fn iter(&self) -> impl Iterator<Item = &SessionDisk> {
        self.disks.iter()
    }

    fn get(&mut self, task: TaskNumber) -> &mut SessionDisk {
        &mut self.disks[usize::from(task)]
    }

    /// The target opened the disk's task.
    pub fn open(&mut self, task: TaskNumber, id_key: IdKey, base: BaseAnswer, durable: Vec<Run>) {
        let disk = self.get(task);
        disk.fates = Fates::new(disk.block_size, disk.size_bytes, &durable);
        disk.state = State::Waiting { id_key, base, durable };
    }

    /// Begins as many waiting disks as there are slots; returns what the sender must hear of it:
    /// failures, and the totals of disks that an earlier attempt had completed.
    pub fn begin_waiting<P>(
        &mut self,
        pipeline: &mut Pipeline,
        log: &mut Vec<String>,
    ) -> Vec<SourceReport<P>> {
        let mut reports = Vec::new();
        let is_running =
            |disk: &&SessionDisk| matches!(disk.state, State::Running { sealed: None });
        let mut running = self.disks.iter().filter(is_running).count();
        for number in 0..self.disks.len() {
            let disk = &mut self.disks[number];
            if running >= self.tasks_max || !matches!(disk.state, State::Waiting { .. }) {
                continue;
            }
            running += 1;
            let task = number as TaskNumber;
            match begin(disk, task, pipeline, log) {
                Ok(()) => reports.extend(self.totals_if_complete(task)),
                Err(failure) => reports.push(SourceReport::Failed { task, failure }),
            }
        }
        reports
    }

    /// A run's fate is decided.
    pub fn decide(&mut self, task: TaskNumber, run: Run, fate: Fate) {
        self.get(task).fates.decide(run, fate);
    }

    /// A run is durable.
    pub fn settle(&mut self, task: TaskNumber, run: Run) {
        // Before validation by the machine: a hostile task number must not reach an index.
        if let Some(disk) = self.disks.get_mut(usize::from(task)) {
            disk.fates.settle(run);
        }
    }

    /// A run's fate is open again.
    pub fn forget(&mut self, task: TaskNumber, run: Run) {
        self.get(task).state = State::Running { sealed: None };
        self.get(task).fates.forget(run);
    }

    /// When every block of the disk has a fate: the totals for the seal, or the failure of a source
    /// that changed while it was read.
    pub fn totals_if_complete<P>(&mut self, task: TaskNumber) -> Option<SourceReport<P>> {
        let disk = self.get(task);
        if !matches!(disk.state, State::Running { .. }) || !disk.fates.is_complete() {
            return None;
        }
        match disk.source.changed_since_open() {
            Ok(None) => {
                let (totals, mask) = (disk.totals(), disk.effective_mask());
                Some(SourceReport::Totals { task, totals, mask })
            }
            Ok(Some(what)) => Some(SourceReport::Failed { task, failure: changed(disk, &what) }),
            Err(error) => {
                Some(SourceReport::Failed { task, failure: changed(disk, &error.to_string()) })
            }
        }
    }

    /// The disk is complete and durable.
    pub fn sealed(&mut self, task: TaskNumber, bytes_stored: u64) {
        self.get(task).state = State::Running { sealed: Some(bytes_stored) };
    }

    /// The point exists; or, without one, every disk of a part is kept.
    pub fn complete(&mut self, point: Option<PointId>) {
        self.outcome.get_or_insert(Ok(point));
    }

    /// The session failed; the first failure counts.
    pub fn fail(&mut self, task: Option<TaskNumber>, failure: Failure) {
        let label = task.and_then(|task| self.disks.get(usize::from(task))).map(|disk| &disk.label);
        let failure = match label {
            Some(label) if !failure.message.contains(label.as_str()) => {
                Failure::new(failure.kind, format!("disk {label}: {}", failure.message))
            }
            _ => failure,
        };
        self.outcome.get_or_insert(Err(failure));
    }

    /// How the session ended.
    pub fn outcome(&mut self) -> Result<Option<PointId>, Failure> {
        self.outcome.clone().unwrap_or_else(|| {
            Err(Failure::new(FailureKind::Internal, "the session ended without a result"))
        })
    }
}

fn changed(disk: &SessionDisk, what: &str) -> Failure {
    Failure::new(
        FailureKind::Source,
        format!(
            "disk {} changed while it was read ({what}): the copy would be of no single moment. \
             Back up a snapshot of it, or stop what writes to it, and run the backup again",
            disk.label
        ),
    )
}

fn begin(
    disk: &mut SessionDisk,
    task: TaskNumber,
    pipeline: &mut Pipeline,
    log: &mut Vec<String>,
) -> Result<(), Failure> {
    let State::Waiting { id_key, base, durable } =
        std::mem::replace(&mut disk.state, State::Running { sealed: None })
    else {
        return Ok(());
    };
    let plan = plan::plan(disk.size_bytes, disk.block_size, &base, &disk.options);
    log.push(format!("disk {}: {}: {}", disk.label, plan.mode, plan.reason));
    if !durable.is_empty() {
        let blocks: u64 = durable.iter().map(|run| run.count).sum();
        log.push(format!("disk {}: resumed, {blocks} blocks were durable already", disk.label));
    }
    if !plan.audit.is_empty() {
        let blocks = plan.audit.blocks();
        log.push(format!("disk {}: {blocks} blocks that are not listed are compared", disk.label));
    }
    disk.plan = Some((plan.mode, plan.reason.clone()));
    (disk.effective, disk.mask) = (Arc::clone(&plan.effective), Arc::clone(&plan.mask));
    if !plan.covered.is_empty() {
        let blocks = plan.covered.blocks();
        log.push(format!(
            "disk {}: {blocks} blocks are filtered as a whole and not read",
            disk.label
        ));
    }
    let facts = DiskFacts {
        label: disk.label.clone(),
        size_bytes: disk.size_bytes,
        block_size: disk.block_size,
        id_key,
        progress: Arc::clone(&disk.progress),
        audit: Arc::clone(&disk.audit),
    };
    pipeline.begin(task, Arc::clone(&disk.source), facts, plan, &durable)
}
