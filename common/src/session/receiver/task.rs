//! One disk's task inside the receiver: checks what the source says of it and holds its seal.
//!
//! In: the source's frames and the store's reports for this disk. Out: store commands and answers.
//!
//! Invariant: `accounted` holds what the store said is durable when the task was opened on this
//! connection, plus every mark and block given to the store since, plus blocks answered as known.
//! A seal goes to the store only once that is the whole disk, so after all of its blocks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::extents::{Run, RunSet};
use crate::ids::BlockId;
use crate::limits;
use crate::session::store_port::{StoreCommand, TaskKey};
use crate::session::violation::{ProtocolViolation, check_run};
use crate::units::BlockSize;
use crate::wire::{BaseAnswer, BlockHead, DiskOffer, Mark, MaskRange, TaskTotals, ToSource};

/// Where the task stands on the present connection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Closed,
    /// The store was asked.
    Opening,
    Open,
    /// `Seal` came; lanes may still have to deliver blocks.
    SealHeld(TaskTotals, Vec<MaskRange>),
    /// `Seal` is with the store.
    Sealing,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Task {
    key: TaskKey,
    blocks: u64,
    size_bytes: u64,
    block_size: BlockSize,
    phase: Phase,
    accounted: RunSet,
    /// Durable and not yet told to the source.
    durable: RunSet,
    /// Leaves of the usable base; 0 without one.
    base_leaves: u64,
    leaves_asked: BTreeSet<u64>,
    /// Block numbers of each unanswered query.
    queries: BTreeMap<u64, Vec<u64>>,
}

impl Task {
    pub(super) fn new(key: TaskKey, disk: &DiskOffer) -> Task {
        Task {
            key,
            blocks: disk.block_size.block_count(disk.size_bytes),
            size_bytes: disk.size_bytes,
            block_size: disk.block_size,
            phase: Phase::Closed,
            accounted: RunSet::new(),
            durable: RunSet::new(),
            base_leaves: 0,
            leaves_asked: BTreeSet::new(),
            queries: BTreeMap::new(),
        }
    }

    pub(super) fn key(&self) -> TaskKey {
        self.key
    }

    /// Nothing that was received counts any more: the store will say what is durable.
    pub(super) fn handle_disconnected(&mut self) {
        self.phase = Phase::Closed;
        self.accounted = RunSet::new();
        self.durable = RunSet::new();
        self.base_leaves = 0;
        self.leaves_asked.clear();
        self.queries.clear();
    }

    /// Whether frames about the task may come.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::SealHeld(..) | Phase::Sealing)
    }

    pub(super) fn accounted_blocks(&self) -> u64 {
        self.accounted.blocks()
    }

    pub(super) fn handle_open<P>(&mut self) -> Result<StoreCommand<P>, ProtocolViolation> {
        if self.phase != Phase::Closed {
            let when = "twice for one disk on one connection";
            return Err(ProtocolViolation::OutOfTurn { message: "OpenTask", when });
        }
        self.phase = Phase::Opening;
        Ok(StoreCommand::OpenTask { key: self.key })
    }

    /// The store's answer, passed on in pages.
    pub(super) fn handle_opened(
        &mut self,
        base: BaseAnswer,
        durable: &[Run],
        out: &mut VecDeque<ToSource>,
    ) {
        let task = self.key.task;
        assert_eq!(self.phase, Phase::Opening, "disk {task} was opened without being asked for");
        self.phase = Phase::Open;
        for &run in durable {
            self.insert_from_store(run);
        }
        let mut base = match base {
            BaseAnswer::Usable { damaged, .. } if damaged.len() > limits::RUNS_MAX => {
                let runs = damaged.len();
                BaseAnswer::Unusable { reason: format!("its damage is in {runs} separate places") }
            }
            base => base,
        };
        if let BaseAnswer::Usable { size_bytes, .. } = &base {
            let base_blocks = self.block_size.block_count(*size_bytes);
            self.base_leaves = base_blocks.div_ceil(limits::NODE_CHILDREN);
        }
        let mut pages = durable.chunks(limits::RUNS_MAX).peekable();
        loop {
            let durable = pages.next().unwrap_or_default().to_vec();
            let more = pages.peek().is_some();
            let base = std::mem::replace(&mut base, BaseAnswer::NotAsked);
            out.push_back(ToSource::TaskOpened { task, base, durable, more });
            if !more {
                return;
            }
        }
    }

    fn insert_from_store(&mut self, run: Run) {
        let end = run.end();
        assert!(end.is_some_and(|end| end <= self.blocks), "{run:?} is beyond {:?}", self.key);
        self.accounted.insert(run);
    }

    pub(super) fn handle_need_base<P>(
        &mut self,
        leaf: u64,
    ) -> Result<StoreCommand<P>, ProtocolViolation> {
        let (message, task) = ("NeedBase", self.key.task);
        self.check_unsealed(message)?;
        if leaf >= self.base_leaves {
            return Err(ProtocolViolation::BeyondDisk {
                message,
                task,
                first: leaf.saturating_mul(limits::NODE_CHILDREN),
                count: limits::NODE_CHILDREN,
                blocks: self.base_leaves * limits::NODE_CHILDREN,
            });
        }
        let (what, max) = ("unanswered base leaves", limits::BASE_LEAVES_IN_FLIGHT_MAX);
        if self.leaves_asked.len() >= max {
            return Err(ProtocolViolation::TooMany { what, task, max });
        }
        if !self.leaves_asked.insert(leaf) {
            return Err(ProtocolViolation::Repeated { message, task, number: leaf });
        }
        Ok(StoreCommand::NeedBase { key: self.key, leaf })
    }

    pub(super) fn handle_base_ids(
        &mut self,
        leaf: u64,
        ids: Vec<BlockId>,
        out: &mut VecDeque<ToSource>,
    ) {
        let task = self.key.task;
        assert!(self.leaves_asked.remove(&leaf), "leaf {leaf} of disk {task} was not asked for");
        out.push_back(ToSource::BaseIds { task, leaf, ids });
    }

    /// Marks that say something new, as a command; runs that are wholly accounted for are dropped.
    pub(super) fn handle_marks<P>(
        &mut self,
        mut marks: Vec<Mark>,
    ) -> Result<Option<StoreCommand<P>>, ProtocolViolation> {
        for mark in &marks {
            check_run("Marks", self.key.task, mark.run, self.blocks)?;
        }
        let mut result = Ok(());
        marks.retain(|mark| match self.insert_from_source(mark.run) {
            Ok(added) => added > 0,
            Err(violation) => {
                result = Err(violation);
                false
            }
        });
        result?;
        Ok((!marks.is_empty()).then_some(StoreCommand::Marks { key: self.key, marks }))
    }

    /// Checks a block; returns whether it is new to the store.
    pub(super) fn handle_block(
        &mut self,
        block: u64,
        head: &BlockHead,
    ) -> Result<bool, ProtocolViolation> {
        let (task, run) = (self.key.task, Run { first: block, count: 1 });
        check_run("Block", task, run, self.blocks)?;
        let expected = self.block_size.block_len(block, self.size_bytes);
        if head.raw_len != expected {
            let found = head.raw_len;
            return Err(ProtocolViolation::WrongLength { task, block, expected, found });
        }
        Ok(self.insert_from_source(run)? > 0)
    }

    fn insert_from_source(&mut self, run: Run) -> Result<u64, ProtocolViolation> {
        let (what, max) = ("separate runs of blocks", limits::COVERAGE_RUNS_MAX);
        let task = self.key.task;
        let added = self.accounted.insert_bounded(run, max);
        added.map_err(|_| ProtocolViolation::TooMany { what, task, max })
    }

    pub(super) fn handle_query<P>(
        &mut self,
        batch: u64,
        blocks: Vec<(u64, BlockId)>,
    ) -> Result<StoreCommand<P>, ProtocolViolation> {
        let (message, task, key) = ("Query", self.key.task, self.key);
        self.check_unsealed(message)?;
        for &(block, _) in &blocks {
            check_run(message, task, Run { first: block, count: 1 }, self.blocks)?;
        }
        if self.queries.contains_key(&batch) {
            return Err(ProtocolViolation::Repeated { message, task, number: batch });
        }
        let (what, max) = ("unanswered queries", limits::QUERIES_IN_FLIGHT_MAX);
        if self.queries.len() >= max {
            return Err(ProtocolViolation::TooMany { what, task, max });
        }
        // Each id may make a run of its own, once it is answered.
        let (what, max) = ("separate runs of blocks", limits::COVERAGE_RUNS_MAX);
        if self.accounted.run_count() + (self.queries.len() + 1) * limits::QUERY_IDS_MAX > max {
            return Err(ProtocolViolation::TooMany { what, task, max });
        }
        self.queries.insert(batch, blocks.iter().map(|&(block, _)| block).collect());
        Ok(StoreCommand::Query { key, batch, blocks })
    }

    pub(super) fn handle_answered(
        &mut self,
        batch: u64,
        known: Vec<bool>,
        out: &mut VecDeque<ToSource>,
    ) {
        let task = self.key.task;
        let asked = self.queries.remove(&batch);
        let asked = asked.unwrap_or_else(|| panic!("query {batch} of disk {task} was not asked"));
        assert_eq!(asked.len(), known.len(), "answer to query {batch} of disk {task}");
        for (&block, _) in asked.iter().zip(&known).filter(|&(_, &is_known)| is_known) {
            self.insert_from_store(Run { first: block, count: 1 });
        }
        out.push_back(ToSource::Known { task, batch, known });
    }

    pub(super) fn handle_durable(&mut self, runs: &[Run]) {
        if self.is_open() {
            for &run in runs {
                self.durable.insert(run);
            }
        }
    }

    /// The next page of durable blocks for the source.
    pub(super) fn poll_durable(&mut self) -> Option<ToSource> {
        let runs: Vec<Run> = self.durable.iter().take(limits::RUNS_MAX).collect();
        for &run in &runs {
            self.durable.remove(run);
        }
        (!runs.is_empty()).then_some(ToSource::Durable { task: self.key.task, runs })
    }

    pub(super) fn handle_seal(
        &mut self,
        totals: TaskTotals,
        mask: Vec<MaskRange>,
    ) -> Result<(), ProtocolViolation> {
        self.check_unsealed("Seal")?;
        self.phase = Phase::SealHeld(totals, mask);
        Ok(())
    }

    /// The seal for the store, once it has come and every block is accounted for.
    pub(super) fn poll_seal<P>(&mut self) -> Option<StoreCommand<P>> {
        let Phase::SealHeld(totals, mask) = &mut self.phase else { return None };
        if self.accounted.blocks() < self.blocks {
            return None;
        }
        let (totals, mask) = (*totals, std::mem::take(mask));
        self.phase = Phase::Sealing;
        Some(StoreCommand::Seal { key: self.key, totals, mask })
    }

    /// `Sealed` follows whatever is left to tell of durable blocks.
    pub(super) fn handle_sealed(&mut self, bytes_stored: u64, out: &mut VecDeque<ToSource>) {
        assert_eq!(self.phase, Phase::Sealing, "{:?} sealed without Seal", self.key);
        while let Some(durable) = self.poll_durable() {
            out.push_back(durable);
        }
        out.push_back(ToSource::Sealed { task: self.key.task, bytes_stored });
    }

    fn check_unsealed(&self, message: &'static str) -> Result<(), ProtocolViolation> {
        if self.phase == Phase::Open {
            return Ok(());
        }
        Err(ProtocolViolation::OutOfTurn { message, when: "after the disk's Seal" })
    }
}
