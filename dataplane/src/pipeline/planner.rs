//! Walks one disk in ascending order and says of every block what is to be done with it.
//!
//! In: the plan, blocks already durable, base ids as they come, blocks to be redone. Out: read
//! units for the workers, marks (zero holes, unchanged) for the sender. Invariant: every block of
//! the disk is given out exactly once, and once more for each `Redo`. Holes are never read. Base
//! ids are fetched a few leaves ahead, so memory does not depend on the disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use gantry_common::extents::{Run, RunSet};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::BlockId;
use gantry_common::limits::NODE_CHILDREN;
use gantry_common::session::source_port::SourceReport;
use gantry_common::wire::{Mark, MarkKind};

use super::ReportSender;
use super::audit::Audit;
use super::plan::{Plan, ReadMode};
use crate::stats::Progress;
use crate::unit::{TaskDisk, Unit};

/// Leaves of base ids asked for ahead of the reader.
const LEAVES_AHEAD: usize = 4;

/// How often an audit that waits for its reads looks whether the session is over.
const AUDIT_WAIT: std::time::Duration = std::time::Duration::from_millis(50);

/// What the network thread tells a planner.
#[derive(Debug)]
pub enum PlannerInput {
    /// Ids of a base leaf.
    Base(u64, Vec<BlockId>),
    /// Do these blocks again.
    Redo(Vec<Run>),
    /// The disk is sealed, or the session is over.
    Stop,
}

/// The planner of one disk; runs on a thread of its own.
pub struct Planner {
    disk: Arc<TaskDisk>,
    plan: Plan,
    input: Receiver<PlannerInput>,
    units: Sender<Unit>,
    reports: ReportSender,
    todo: VecDeque<Run>,
    leaves: BTreeMap<u64, Vec<BlockId>>,
    asked: BTreeSet<u64>,
    // The data extent [start, end) in bytes at or after the last position asked for.
    data: Option<(u64, u64)>,
    counted: RunSet,
    audit: Arc<Audit>,
}

/// The session is over: the planner ends without a word.
struct Stopped;

enum Ended {
    Stopped,
    Failed(Failure),
}

impl From<Stopped> for Ended {
    fn from(_: Stopped) -> Ended {
        Ended::Stopped
    }
}

impl Planner {
    /// A planner that has still to do everything outside `durable`.
    pub fn new(
        disk: Arc<TaskDisk>,
        plan: Plan,
        durable: &[Run],
        input: Receiver<PlannerInput>,
        units: Sender<Unit>,
        reports: ReportSender,
        audit: Arc<Audit>,
    ) -> Planner {
        let durable: RunSet = durable.iter().copied().collect();
        let todo = durable.gaps(disk.blocks()).into();
        Planner {
            disk,
            plan,
            input,
            units,
            reports,
            todo,
            leaves: BTreeMap::new(),
            asked: BTreeSet::new(),
            data: None,
            counted: RunSet::new(),
            audit,
        }
    }

    /// Works until told to stop.
    pub fn run(mut self) {
        let task = self.disk.task;
        match self.work() {
            Ended::Stopped => {}
            Ended::Failed(failure) => self.reports.send(SourceReport::Failed { task, failure }),
        }
    }

    fn work(&mut self) -> Ended {
        if let Err(ended) = self.audit() {
            return ended;
        }
        loop {
            while let Some(run) = self.todo.pop_front() {
                if let Err(ended) = self.walk(run) {
                    return ended;
                }
            }
            if self.wait_input().is_err() {
                return Ended::Stopped;
            }
        }
    }

    /// Compares the sample, and trusts nobody if one block of it is wrong. Before anything else: no
    /// fate must be decided by a list that is wrong.
    fn audit(&mut self) -> Result<(), Ended> {
        let sample = std::mem::take(&mut self.plan.audit);
        if sample.is_empty() {
            return Ok(());
        }
        let read = std::mem::replace(&mut self.plan.read, sample.clone());
        for block in sample.iter().flat_map(|run| run.first..run.first + run.count) {
            let expected = match self.plan.zero.contains(block) {
                true => Some(BlockId::ZERO),
                false => self.base_id(block)?,
            };
            let audit = Some(Arc::clone(&self.audit));
            // A leaf may be shorter than the disk's size says: then nothing vouches for the block.
            self.give(Unit { disk: Arc::clone(&self.disk), block, expected, audit })?;
        }
        self.plan.read = read;
        while self.audit.wait(sample.blocks(), AUDIT_WAIT).blocks < sample.blocks() {
            self.drain_input()?;
        }
        if self.audit.sum().wrong > 0 {
            let blocks = self.disk.blocks();
            self.plan = self.plan.clone().distrust(blocks);
        }
        Ok(())
    }

    /// Gives out every block of `run`.
    fn walk(&mut self, run: Run) -> Result<(), Ended> {
        let end = run.first + run.count;
        let mut at = run.first;
        while at < end {
            self.drain_input()?;
            match self.plan.read.run_at(at) {
                None => {
                    let next = self.plan.read.next_run(at).map_or(end, |next| next.first.min(end));
                    let (kind, next) = match self.plan.zero.run_at(at) {
                        Some(zero) => (MarkKind::Zero, next.min(zero.first + zero.count)),
                        None => {
                            let zero = self.plan.zero.next_run(at);
                            (MarkKind::Unchanged, zero.map_or(next, |zero| next.min(zero.first)))
                        }
                    };
                    self.mark(at, next, kind);
                    at = next;
                }
                Some(read) => {
                    let read_end = (read.first + read.count).min(end);
                    at = self.walk_read(at, read_end)?;
                }
            }
        }
        Ok(())
    }

    /// Gives out the first stretch of `at..end`, all of it in the read set; returns where it ends.
    fn walk_read(&mut self, at: u64, end: u64) -> Result<u64, Ended> {
        if self.disk.source.is_unreadable() {
            let (label, blocks) = (&self.disk.label, self.disk.blocks());
            return Err(Ended::Failed(Failure::new(
                FailureKind::Network,
                format!(
                    "disk {label}: block {at} of {blocks} is not in the repository (or what was \
                     brought of this snapshot was given up): bring this disk in again, and \
                     commit then"
                ),
            )));
        }
        let block_bytes = u64::from(self.disk.block_size.bytes());
        let from = at * block_bytes;
        let stale = self.data.is_none_or(|(start, data_end)| from < start || from >= data_end);
        if stale {
            // Keep an extent that begins further on: everything up to there is a hole.
            self.data = self.disk.source.next_data(from).map_err(|error| {
                Ended::Failed(Failure::new(
                    FailureKind::Source,
                    format!("disk {}: finding holes failed: {error}", self.disk.label),
                ))
            })?;
        }
        let data_first = match self.data {
            None => end,
            Some((start, _)) => (start / block_bytes).max(at).min(end),
        };
        if data_first > at {
            self.mark(at, data_first, MarkKind::Zero);
            return Ok(data_first);
        }
        let data_end = self.data.map_or(at + 1, |(_, end)| end.div_ceil(block_bytes));
        let data_end = data_end.clamp(at + 1, end);
        self.count_todo(at, data_end);
        for block in at..data_end {
            let expected = self.expected(block)?;
            self.give(Unit { disk: Arc::clone(&self.disk), block, expected, audit: None })?;
        }
        // A block that straddles the extent's end was given out whole: look again after it.
        self.data = None;
        Ok(data_end)
    }

    fn count_todo(&mut self, first: u64, end: u64) {
        let added = self.counted.insert(Run { first, count: end - first });
        // Bounded like every coverage: runs are given out in order.
        Progress::add(
            &self.disk.progress.todo_bytes,
            added * u64::from(self.disk.block_size.bytes()),
        );
    }

    fn mark(&self, first: u64, end: u64, kind: MarkKind) {
        let mark = Mark { run: Run { first, count: end - first }, kind };
        self.reports.send(SourceReport::Marked { task: self.disk.task, mark });
    }

    fn give(&mut self, unit: Unit) -> Result<(), Stopped> {
        let mut unit = unit;
        loop {
            match self.units.send_timeout(unit, std::time::Duration::from_millis(100)) {
                Ok(()) => {
                    self.disk.wake_workers();
                    return Ok(());
                }
                Err(crossbeam_channel::SendTimeoutError::Disconnected(_)) => return Err(Stopped),
                Err(crossbeam_channel::SendTimeoutError::Timeout(back)) => unit = back,
            }
            self.drain_input()?;
        }
    }

    /// The base's id of a block, or nothing where it must be sent whatever it is.
    fn expected(&mut self, block: u64) -> Result<Option<BlockId>, Stopped> {
        if self.plan.mode == ReadMode::Full
            || block >= self.plan.base_blocks
            || self.plan.heal.contains(block)
        {
            return Ok(None);
        }
        self.base_id(block)
    }

    /// What the base has there; the block is one of `plan.read`.
    fn base_id(&mut self, block: u64) -> Result<Option<BlockId>, Stopped> {
        let leaf = block / NODE_CHILDREN;
        self.ask_ahead(leaf);
        while !self.leaves.contains_key(&leaf) {
            self.wait_input()?;
            self.ask_ahead(leaf);
        }
        let ids = self.leaves.get(&leaf);
        Ok(ids.and_then(|ids| ids.get((block % NODE_CHILDREN) as usize)).copied())
    }

    /// Asks for this leaf and the next few that hold blocks to read; forgets those behind.
    fn ask_ahead(&mut self, leaf: u64) {
        let last = (self.plan.base_blocks - 1) / NODE_CHILDREN;
        if self.asked.contains(&leaf) && self.asked.iter().any(|asked| *asked > leaf) {
            return;
        }
        self.leaves.retain(|held, _| *held >= leaf);
        self.asked.retain(|held| *held >= leaf);
        let mut next = Some(leaf);
        while let Some(wanted) = next.filter(|wanted| *wanted <= last) {
            if self.asked.len() >= LEAVES_AHEAD && wanted != leaf {
                break;
            }
            if self.asked.insert(wanted) {
                self.reports.send(SourceReport::NeedBase { task: self.disk.task, leaf: wanted });
            }
            let after = (wanted + 1) * NODE_CHILDREN;
            next = match self.plan.read.run_at(after) {
                Some(_) => Some(wanted + 1),
                None => self.plan.read.next_run(after).map(|run| run.first / NODE_CHILDREN),
            };
        }
    }

    fn wait_input(&mut self) -> Result<(), Stopped> {
        let input = self.input.recv().map_err(|_| Stopped)?;
        self.take(input)
    }

    fn drain_input(&mut self) -> Result<(), Stopped> {
        while let Ok(input) = self.input.try_recv() {
            self.take(input)?;
        }
        Ok(())
    }

    fn take(&mut self, input: PlannerInput) -> Result<(), Stopped> {
        match input {
            PlannerInput::Base(leaf, ids) => {
                if self.asked.contains(&leaf) {
                    self.leaves.insert(leaf, ids);
                }
            }
            PlannerInput::Redo(runs) => {
                // Leaves asked for on the lost connection will never be answered: ask again.
                let held: BTreeSet<u64> = self.leaves.keys().copied().collect();
                self.asked.retain(|leaf| held.contains(leaf));
                self.todo.extend(runs);
            }
            PlannerInput::Stop => return Err(Stopped),
        }
        Ok(())
    }
}
