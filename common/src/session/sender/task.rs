//! One disk's task inside the sender: the account of every block's fate.
//!
//! In: the target's answers and the pipeline's reports for this disk. Out: control messages, blocks
//! that wait for credit, commands. It knows nothing of credit, lanes or other disks.
//!
//! Invariant: `accounted` holds a block from the moment its fate left on the wire (or the target
//! called it durable at the start) until a reconnection shows that it was lost.

use std::collections::VecDeque;

use super::TaskProgress;
use super::queues::{Queues, overlap};
use crate::extents::{Run, RunSet};
use crate::failure::{Failure, FailureKind};
use crate::ids::{BlockId, IdKey, PointId};
use crate::limits;
use crate::session::source_port::{SourceCommand, SourceReport};
use crate::session::violation::{ProtocolViolation, check_run};
use crate::units::BlockSize;
use crate::wire::{BaseAnswer, DiskOffer, MaskRange, TaskNumber, TaskTotals, ToTarget};

/// Where the task stands on the present connection.
#[derive(Debug)]
enum Phase {
    Closed,
    /// `OpenTask` is sent; pages of the answer so far.
    Opening {
        base: Option<BaseAnswer>,
        durable: RunSet,
    },
    Open,
    /// `Seal` is sent.
    Sealing,
    Sealed,
}

/// The base of a started task, as the target first named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct UsableBase {
    point: PointId,
    blocks: u64,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Task<P> {
    number: TaskNumber,
    blocks: u64,
    size_bytes: u64,
    block_size: BlockSize,
    phase: Phase,
    /// `Start` was given; inside, the usable base, if any.
    started: Option<Option<UsableBase>>,
    accounted: RunSet,
    durable: RunSet,
    queues: Queues<P>,
    /// The pipeline's totals and mask, if no block was reported or redone since.
    totals: Option<(TaskTotals, Vec<MaskRange>)>,
    seal_was_sent: bool,
    sealed_was_told: bool,
}

impl<P> Task<P> {
    pub(super) fn new(number: TaskNumber, disk: &DiskOffer) -> Task<P> {
        Task {
            number,
            blocks: disk.block_size.block_count(disk.size_bytes),
            size_bytes: disk.size_bytes,
            block_size: disk.block_size,
            phase: Phase::Closed,
            started: None,
            accounted: RunSet::new(),
            durable: RunSet::new(),
            queues: Queues::new(number),
            totals: None,
            seal_was_sent: false,
            sealed_was_told: false,
        }
    }

    /// What was asked and not answered will be asked again, before anything newer.
    pub(super) fn handle_disconnected(&mut self) {
        self.phase = Phase::Closed;
        self.queues.handle_disconnected();
    }

    /// The request that opens the task on a new connection.
    pub(super) fn open(&mut self) -> ToTarget {
        assert!(matches!(self.phase, Phase::Closed), "disk {} opened twice", self.number);
        self.phase = Phase::Opening { base: None, durable: RunSet::new() };
        ToTarget::OpenTask { task: self.number }
    }

    /// A page of the answer to `OpenTask`. The base counts in the first page only. Returns a
    /// failure if the task cannot go on with what the target has now.
    pub(super) fn handle_opened(
        &mut self,
        id_key: IdKey,
        page_base: BaseAnswer,
        runs: Vec<Run>,
        more: bool,
        commands: &mut VecDeque<SourceCommand>,
    ) -> Result<Option<Failure>, ProtocolViolation> {
        let (task, blocks) = (self.number, self.blocks);
        let Phase::Opening { base, durable } = &mut self.phase else {
            return Err(ProtocolViolation::OutOfTurn {
                message: "TaskOpened",
                when: "for a task that is not being opened",
            });
        };
        insert_runs("TaskOpened", task, blocks, &runs, durable)?;
        let base = base.get_or_insert(page_base);
        if more {
            return Ok(None);
        }
        let usable = match base {
            BaseAnswer::Usable { point, size_bytes, .. } => {
                Some(UsableBase { point: *point, blocks: self.block_size.block_count(*size_bytes) })
            }
            BaseAnswer::NotAsked | BaseAnswer::Unusable { .. } => None,
        };
        let base = base.clone();
        self.durable = std::mem::take(durable);
        self.phase = Phase::Open;
        match self.started {
            None => {
                self.started = Some(usable);
                self.accounted = self.durable.clone();
                let durable = self.durable.iter().collect();
                commands.push_back(SourceCommand::Start { task, id_key, base, durable });
            }
            Some(Some(first)) if usable != Some(first) => {
                return Ok(Some(self.base_changed(first)));
            }
            Some(_) => self.redo_lost(commands),
        }
        Ok(None)
    }

    fn base_changed(&self, first: UsableBase) -> Failure {
        let text = format!(
            "disk {}: the repository no longer offers restore point {} as its base, which the \
             session began with; run the session again",
            self.number, first.point
        );
        Failure::new(FailureKind::Target, text)
    }

    /// After a reconnection: what was accounted for and is not durable goes back to the pipeline.
    fn redo_lost(&mut self, commands: &mut VecDeque<SourceCommand>) {
        let mut lost = std::mem::take(&mut self.accounted);
        for run in self.durable.iter() {
            for kept in overlap(&lost, run) {
                self.accounted.insert(kept);
            }
            lost.remove(run);
        }
        if lost.is_empty() {
            return;
        }
        self.totals = None;
        self.sealed_was_told = false;
        let runs = lost.iter().collect();
        commands.push_back(SourceCommand::Redo { task: self.number, runs });
    }

    pub(super) fn handle_base_ids(
        &mut self,
        leaf: u64,
        ids: Vec<BlockId>,
        commands: &mut VecDeque<SourceCommand>,
    ) -> Result<(), ProtocolViolation> {
        let (expected, found) = (self.base_children(leaf), ids.len() as u64);
        if found != expected {
            return Err(ProtocolViolation::WrongCount { message: "BaseIds", expected, found });
        }
        self.queues.answer_leaf(leaf)?;
        commands.push_back(SourceCommand::Base { task: self.number, leaf, ids });
        Ok(())
    }

    /// Blocks of the base in this leaf; 0 beyond its end.
    fn base_children(&self, leaf: u64) -> u64 {
        let base_blocks = self.started.flatten().map_or(0, |base| base.blocks);
        let before = leaf.saturating_mul(limits::NODE_CHILDREN);
        base_blocks.saturating_sub(before).min(limits::NODE_CHILDREN)
    }

    pub(super) fn handle_known(
        &mut self,
        batch: u64,
        known: &[bool],
        commands: &mut VecDeque<SourceCommand>,
    ) -> Result<(), ProtocolViolation> {
        let task = self.number;
        for (block, &is_known) in self.queues.answer_query(batch, known.len())?.zip(known) {
            commands.push_back(if is_known {
                self.accounted.insert(Run { first: block, count: 1 });
                SourceCommand::Known { task, block }
            } else {
                SourceCommand::Wanted { task, block }
            });
        }
        Ok(())
    }

    pub(super) fn handle_durable(&mut self, runs: &[Run]) -> Result<(), ProtocolViolation> {
        let (message, task) = ("Durable", self.number);
        if matches!(self.phase, Phase::Closed | Phase::Opening { .. }) {
            return Err(ProtocolViolation::TaskNotOpen { message, task });
        }
        insert_runs(message, task, self.blocks, runs, &mut self.durable)
    }

    pub(super) fn handle_sealed(
        &mut self,
        bytes_stored: u64,
        commands: &mut VecDeque<SourceCommand>,
    ) -> Result<(), ProtocolViolation> {
        if !matches!(self.phase, Phase::Sealing) {
            let when = "for a disk whose Seal is not outstanding";
            return Err(ProtocolViolation::OutOfTurn { message: "Sealed", when });
        }
        self.phase = Phase::Sealed;
        self.durable = self.accounted.clone();
        if !self.sealed_was_told {
            self.sealed_was_told = true;
            commands.push_back(SourceCommand::Sealed { task: self.number, bytes_stored });
        }
        Ok(())
    }

    /// A report of the pipeline about this disk.
    pub(super) fn handle_report(
        &mut self,
        report: SourceReport<P>,
        commands: &mut VecDeque<SourceCommand>,
    ) {
        assert!(self.started.is_some(), "report of disk {} before its Start", self.number);
        if !matches!(report, SourceReport::Totals { .. }) {
            self.totals = None;
        }
        match report {
            SourceReport::Marked { mark, .. } => {
                self.assert_on_disk(mark.run);
                self.queues.push_mark(mark);
            }
            SourceReport::NeedBase { leaf, .. } => {
                assert!(self.started.flatten().is_some(), "disk {} has no base", self.number);
                if self.base_children(leaf) > 0 {
                    self.queues.push_leaf(leaf);
                } else {
                    let ids = Vec::new();
                    commands.push_back(SourceCommand::Base { task: self.number, leaf, ids });
                }
            }
            SourceReport::Hashed { block, id, .. } => {
                self.assert_on_disk(Run { first: block, count: 1 });
                self.queues.push_hashed(block, id);
            }
            SourceReport::Ready { block, head, payload, .. } => {
                let expected = self.block_size.block_len(block, self.size_bytes);
                assert_eq!(head.raw_len, expected, "block {block} of disk {}", self.number);
                self.queues.push_ready(block, head, payload);
            }
            SourceReport::Totals { totals, mask, .. } => self.totals = Some((totals, mask)),
            SourceReport::Failed { .. } => unreachable!("ends the session, not the task"),
        }
    }

    fn assert_on_disk(&self, run: Run) {
        check_run("the pipeline", self.number, run, self.blocks)
            .unwrap_or_else(|violation| panic!("{violation}"));
    }

    /// The next control message of an open task. `next_batch` numbers the connection's queries.
    pub(super) fn poll_control(&mut self, next_batch: &mut u64) -> Option<ToTarget> {
        if !matches!(self.phase, Phase::Open) {
            return None;
        }
        let asking = self.queues.poll_need_base();
        let asking = asking.or_else(|| self.queues.poll_query(next_batch));
        asking.or_else(|| self.poll_marks()).or_else(|| self.poll_seal())
    }

    fn poll_marks(&mut self) -> Option<ToTarget> {
        let marks = self.queues.take_marks();
        for mark in &marks {
            self.accounted.insert(mark.run);
        }
        (!marks.is_empty()).then_some(ToTarget::Marks { task: self.number, marks })
    }

    fn poll_seal(&mut self) -> Option<ToTarget> {
        if self.accounted.blocks() < self.blocks || !self.queues.is_quiet() {
            return None;
        }
        let (totals, mask) = self.totals.clone()?;
        self.phase = Phase::Sealing;
        self.seal_was_sent = true;
        Some(ToTarget::Seal { task: self.number, totals, mask })
    }

    /// Whether a block could go out now, but for credit.
    pub(super) fn has_block(&self) -> bool {
        matches!(self.phase, Phase::Open) && self.queues.awaiting_credit() > 0
    }

    /// Takes the next block; it counts as put on the wire.
    pub(super) fn pop_block(&mut self) -> Option<(ToTarget, P)> {
        assert!(matches!(self.phase, Phase::Open), "block of disk {} out of turn", self.number);
        let (block, head, payload) = self.queues.pop_ready()?;
        self.accounted.insert(Run { first: block, count: 1 });
        Some((ToTarget::Block { task: self.number, block, head }, payload))
    }

    /// Separate runs of marks that wait to be sent.
    pub(super) fn marks_waiting(&self) -> usize {
        self.queues.marks_waiting()
    }

    /// Whether `Seal` was sent on any connection.
    pub(super) fn was_seal_sent(&self) -> bool {
        self.seal_was_sent
    }

    /// Whether the disk is sealed as far as this connection knows.
    pub(super) fn is_sealed(&self) -> bool {
        matches!(self.phase, Phase::Sealed)
    }

    /// The session is over: buffers go back to their pools.
    pub(super) fn drop_queues(&mut self) {
        self.queues = Queues::new(self.number);
    }

    pub(super) fn progress(&self) -> TaskProgress {
        TaskProgress {
            blocks: self.blocks,
            accounted: self.accounted.blocks(),
            durable: self.durable.blocks(),
            awaiting_answer: self.queues.awaiting_answer() as u64,
            awaiting_credit: self.queues.awaiting_credit() as u64,
            sealed: self.sealed_was_told,
        }
    }
}

/// Adds runs that the target names to a set, checked against the disk and the set's bound.
fn insert_runs(
    message: &'static str,
    task: TaskNumber,
    blocks: u64,
    runs: &[Run],
    set: &mut RunSet,
) -> Result<(), ProtocolViolation> {
    for &run in runs {
        check_run(message, task, run, blocks)?;
        let (what, max) = ("separate durable runs", limits::COVERAGE_RUNS_MAX);
        set.insert_bounded(run, max).map_err(|_| ProtocolViolation::TooMany { what, task, max })?;
    }
    Ok(())
}
