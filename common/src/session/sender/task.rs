//! One disk's task inside the sender: the account of every block's fate.
//!
//! In: the target's answers and the pipeline's reports for this disk. Out: control messages, blocks
//! that wait for credit, commands. It knows nothing of credit, lanes or other disks.
//!
//! Invariant: `accounted` holds a block from the moment its fate left on the wire (or the target
//! called it durable at the start) until a reconnection shows that it was lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::TaskProgress;
use crate::extents::{Run, RunSet};
use crate::failure::{Failure, FailureKind};
use crate::ids::{BlockId, IdKey, PointId};
use crate::limits;
use crate::session::source_port::{SourceCommand, SourceReport};
use crate::session::violation::{ProtocolViolation, check_run};
use crate::units::BlockSize;
use crate::wire::{
    BaseAnswer, BlockHead, DiskOffer, Mark, MarkKind, TaskNumber, TaskTotals, ToTarget,
};

/// Unanswered queries below which even a single id is asked for at once; with more in flight, ids
/// are collected until a query is full.
const QUERIES_EAGER: usize = 4;

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

#[derive(Debug)]
struct ReadyBlock<P> {
    block: u64,
    head: BlockHead,
    payload: P,
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
    /// Marks that were not sent yet; disjoint.
    zeros: RunSet,
    unchanged: RunSet,
    leaves_wanted: VecDeque<u64>,
    leaves_asked: BTreeSet<u64>,
    hashed: VecDeque<(u64, BlockId)>,
    queries: BTreeMap<u64, Vec<(u64, BlockId)>>,
    ready: VecDeque<ReadyBlock<P>>,
    /// The pipeline's totals, if no block was reported or redone since.
    totals: Option<TaskTotals>,
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
            zeros: RunSet::new(),
            unchanged: RunSet::new(),
            leaves_wanted: VecDeque::new(),
            leaves_asked: BTreeSet::new(),
            hashed: VecDeque::new(),
            queries: BTreeMap::new(),
            ready: VecDeque::new(),
            totals: None,
            seal_was_sent: false,
            sealed_was_told: false,
        }
    }

    /// What was asked and not answered will be asked again, before anything newer.
    pub(super) fn handle_disconnected(&mut self) {
        self.phase = Phase::Closed;
        let asked = std::mem::take(&mut self.queries).into_values().flatten();
        self.hashed = asked.chain(self.hashed.drain(..)).collect();
        let asked = std::mem::take(&mut self.leaves_asked).into_iter();
        self.leaves_wanted = asked.chain(self.leaves_wanted.drain(..)).collect();
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
        let (message, task) = ("BaseIds", self.number);
        if !self.leaves_asked.contains(&leaf) {
            return Err(ProtocolViolation::NotAsked { message, task, number: leaf });
        }
        let base_blocks = self.started.flatten().map_or(0, |base| base.blocks);
        let before = leaf.saturating_mul(limits::NODE_CHILDREN);
        let expected = base_blocks.saturating_sub(before).min(limits::NODE_CHILDREN);
        let found = ids.len() as u64;
        if found != expected {
            return Err(ProtocolViolation::WrongCount { message, expected, found });
        }
        self.leaves_asked.remove(&leaf);
        commands.push_back(SourceCommand::Base { task, leaf, ids });
        Ok(())
    }

    pub(super) fn handle_known(
        &mut self,
        batch: u64,
        known: &[bool],
        commands: &mut VecDeque<SourceCommand>,
    ) -> Result<(), ProtocolViolation> {
        let (message, task) = ("Known", self.number);
        let Some(asked) = self.queries.get(&batch) else {
            return Err(ProtocolViolation::NotAsked { message, task, number: batch });
        };
        let (expected, found) = (asked.len() as u64, known.len() as u64);
        if expected != found {
            return Err(ProtocolViolation::WrongCount { message, expected, found });
        }
        for (&(block, _), &is_known) in asked.iter().zip(known) {
            commands.push_back(if is_known {
                self.accounted.insert(Run { first: block, count: 1 });
                SourceCommand::Known { task, block }
            } else {
                SourceCommand::Wanted { task, block }
            });
        }
        self.queries.remove(&batch);
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
    pub(super) fn handle_report(&mut self, report: SourceReport<P>) {
        assert!(self.started.is_some(), "report of disk {} before its Start", self.number);
        if let SourceReport::Totals { totals, .. } = report {
            self.totals = Some(totals);
            return;
        }
        self.totals = None;
        match report {
            SourceReport::Marked { mark: Mark { run, kind }, .. } => {
                self.assert_on_disk(run);
                let (mine, other) = match kind {
                    MarkKind::Zero => (&mut self.zeros, &mut self.unchanged),
                    MarkKind::Unchanged => (&mut self.unchanged, &mut self.zeros),
                };
                mine.insert(run);
                other.remove(run);
            }
            SourceReport::NeedBase { leaf, .. } => {
                assert!(self.started.flatten().is_some(), "disk {} has no base", self.number);
                self.leaves_wanted.push_back(leaf);
            }
            SourceReport::Hashed { block, id, .. } => {
                self.assert_on_disk(Run { first: block, count: 1 });
                self.hashed.push_back((block, id));
            }
            SourceReport::Ready { block, head, payload, .. } => {
                let expected = self.block_size.block_len(block, self.size_bytes);
                assert_eq!(head.raw_len, expected, "block {block} of disk {}", self.number);
                self.ready.push_back(ReadyBlock { block, head, payload });
            }
            SourceReport::Totals { .. } | SourceReport::Failed { .. } => {
                unreachable!("handled before")
            }
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
        let task = self.number;
        if self.leaves_asked.len() < limits::BASE_LEAVES_IN_FLIGHT_MAX
            && let Some(leaf) = self.leaves_wanted.pop_front()
        {
            // A leaf that is already being asked for is answered once.
            if self.leaves_asked.insert(leaf) {
                return Some(ToTarget::NeedBase { task, leaf });
            }
        }
        if self.is_query_due() {
            let count = self.hashed.len().min(limits::QUERY_IDS_MAX);
            let blocks: Vec<_> = self.hashed.drain(..count).collect();
            let batch = *next_batch;
            *next_batch += 1;
            self.queries.insert(batch, blocks.clone());
            return Some(ToTarget::Query { task, batch, blocks });
        }
        self.poll_marks().or_else(|| self.poll_seal())
    }

    fn is_query_due(&self) -> bool {
        let limit = if self.hashed.len() >= limits::QUERY_IDS_MAX {
            limits::QUERIES_IN_FLIGHT_MAX
        } else {
            QUERIES_EAGER
        };
        !self.hashed.is_empty() && self.queries.len() < limit
    }

    fn poll_marks(&mut self) -> Option<ToTarget> {
        let zeros = self.zeros.iter().map(|run| Mark { run, kind: MarkKind::Zero });
        let unchanged = self.unchanged.iter().map(|run| Mark { run, kind: MarkKind::Unchanged });
        let marks: Vec<Mark> = zeros.chain(unchanged).take(limits::RUNS_MAX).collect();
        for mark in &marks {
            match mark.kind {
                MarkKind::Zero => self.zeros.remove(mark.run),
                MarkKind::Unchanged => self.unchanged.remove(mark.run),
            }
            self.accounted.insert(mark.run);
        }
        (!marks.is_empty()).then_some(ToTarget::Marks { task: self.number, marks })
    }

    fn poll_seal(&mut self) -> Option<ToTarget> {
        let is_quiet = self.hashed.is_empty()
            && self.queries.is_empty()
            && self.ready.is_empty()
            && self.leaves_wanted.is_empty()
            && self.leaves_asked.is_empty();
        let totals = self.totals?;
        if !is_quiet || self.accounted.blocks() < self.blocks {
            return None;
        }
        self.phase = Phase::Sealing;
        self.seal_was_sent = true;
        Some(ToTarget::Seal { task: self.number, totals })
    }

    /// Whether a block could go out now, but for credit.
    pub(super) fn has_block(&self) -> bool {
        matches!(self.phase, Phase::Open) && !self.ready.is_empty()
    }

    /// Takes the next block; it counts as put on the wire.
    pub(super) fn pop_block(&mut self) -> Option<(ToTarget, P)> {
        assert!(matches!(self.phase, Phase::Open), "block of disk {} out of turn", self.number);
        let ReadyBlock { block, head, payload } = self.ready.pop_front()?;
        self.accounted.insert(Run { first: block, count: 1 });
        Some((ToTarget::Block { task: self.number, block, head }, payload))
    }

    /// Separate runs of marks that wait to be sent.
    pub(super) fn marks_waiting(&self) -> usize {
        self.zeros.run_count() + self.unchanged.run_count()
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
        self.ready.clear();
        self.hashed.clear();
        self.zeros = RunSet::new();
        self.unchanged = RunSet::new();
    }

    pub(super) fn progress(&self) -> TaskProgress {
        let asked: usize = self.queries.values().map(Vec::len).sum();
        TaskProgress {
            blocks: self.blocks,
            accounted: self.accounted.blocks(),
            durable: self.durable.blocks(),
            awaiting_answer: (self.hashed.len() + asked) as u64,
            awaiting_credit: self.ready.len() as u64,
            sealed: self.sealed_was_told,
        }
    }
}

/// The parts of `run` that are in `set`.
fn overlap(set: &RunSet, run: Run) -> Vec<Run> {
    let end = run.first + run.count;
    let mut parts = Vec::new();
    let mut at = run.first;
    while at < end {
        let Some(found) = set.run_at(at).or_else(|| set.next_run(at)) else { break };
        let (first, found_end) = (found.first.max(at), (found.first + found.count).min(end));
        if first < found_end {
            parts.push(Run { first, count: found_end - first });
        }
        at = (found.first + found.count).max(at + 1);
    }
    parts
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
