//! One disk's task in the store: what it has put where, and how much of it is durable.
//!
//! In: marks, known blocks, stored blocks. Out: journal entries, runs that became durable.
//! Invariant: `coverage` counts a block once its fate is staged; `durable` only once the journal
//! that says so is synced.

use std::collections::VecDeque;

use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::BlockId;
use gantry_common::limits;
use gantry_common::session::store_port::TaskKey;
use gantry_common::wire::{DiskOffer, Mark, MarkKind, MaskRange, TaskTotals};

use super::error::StoreError;
use super::journal::{BaseRoot, Entry, Journal, SealedDisk};
use super::map_tree::TreeRoot;
use super::pack::PackSet;
use super::staging::{STAGED_ZERO, StagedLeaf, Staging};
use super::storage::Storage;

/// Entries that wait for the journal before a checkpoint is forced.
const PENDING_MAX: usize = 65_536;

/// How far the completion of a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealStage {
    /// Not asked for.
    Open,
    /// Waits for writes; then the tree is built.
    Asked(TaskTotals),
    /// The tree is written; its packs are on their way.
    Built(TaskTotals, BlockId),
    /// Done.
    Done(SealedDisk),
}

/// A query that waits for records to be verified.
#[derive(Debug)]
pub struct PendingAnswer {
    /// The batch.
    pub batch: u64,
    /// The query.
    pub blocks: Vec<(u64, BlockId)>,
    /// What is known so far.
    pub known: Vec<bool>,
    /// Checks under way.
    pub checks: usize,
}

/// See the module's text.
#[derive(Debug)]
pub struct Task<S: Storage> {
    /// Which task.
    pub key: TaskKey,
    /// The disk.
    pub disk: DiskOffer,
    /// Its base.
    pub base: Option<BaseRoot>,
    /// Address to id.
    pub staging: Staging<S::File>,
    /// The truth.
    pub journal: Journal<S::File>,
    /// Blocks accounted for.
    pub coverage: RunSet,
    /// Of those, durable.
    pub durable: RunSet,
    /// Packs being written.
    pub packs: PackSet<S::File>,
    /// Queries not yet answered, in order.
    pub answers: VecDeque<PendingAnswer>,
    /// Completion.
    pub stage: SealStage,
    /// What the content has zeroed on purpose, once completion is asked for.
    pub mask: Vec<MaskRange>,
    /// When the oldest progress that is not durable was made.
    pub dirty_since_ms: Option<u64>,
    /// Bytes written since the last checkpoint began.
    pub bytes_unsynced: u64,
    /// Blocks of the base that were lost when the task was opened.
    pub damaged: RunSet,
    /// What was known of damage then; see `Index::damage_generation`.
    pub damage_generation: u64,
    marks: Vec<Mark>,
    known: Vec<(u64, BlockId)>,
}

impl<S: Storage> Task<S> {
    /// A task whose journal says that `coverage` is durable.
    pub fn new(
        key: TaskKey,
        disk: DiskOffer,
        base: Option<BaseRoot>,
        staging: Staging<S::File>,
        journal: Journal<S::File>,
        coverage: RunSet,
    ) -> Task<S> {
        Task {
            key,
            disk,
            base,
            staging,
            journal,
            durable: coverage.clone(),
            coverage,
            packs: PackSet::new(),
            answers: VecDeque::new(),
            stage: SealStage::Open,
            mask: Vec::new(),
            dirty_since_ms: None,
            bytes_unsynced: 0,
            damaged: RunSet::new(),
            damage_generation: 0,
            marks: Vec::new(),
            known: Vec::new(),
        }
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.disk.block_size.block_count(self.disk.size_bytes)
    }

    /// The base's tree.
    pub fn base_tree(&self) -> Option<TreeRoot> {
        let block_size = self.disk.block_size;
        self.base.as_ref().map(|base| TreeRoot {
            root: base.root,
            blocks: block_size.block_count(base.size_bytes),
        })
    }

    fn refuse(&self, what: String) -> StoreError {
        StoreError::Refused(format!("disk '{}': {what}", self.disk.label))
    }

    /// Counts a run as accounted for.
    ///
    /// # Errors
    /// If it is beyond the disk, or the coverage has too many holes.
    pub fn cover(&mut self, run: Run, now_ms: u64) -> Result<(), StoreError> {
        if run.end().is_none_or(|end| end > self.blocks()) {
            let (first, blocks) = (run.first, self.blocks());
            return Err(self.refuse(format!("block {first} is beyond its {blocks} blocks")));
        }
        self.dirty_since_ms.get_or_insert(now_ms);
        let max = limits::COVERAGE_RUNS_MAX;
        match self.coverage.insert_bounded(run, max) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.refuse(format!("{error} are accounted for"))),
        }
    }

    /// Stages a block's id.
    ///
    /// # Errors
    /// Of the scratch file; an id that no block can have.
    pub fn stage_block(
        &mut self,
        storage: &S,
        block: u64,
        id: &BlockId,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        if id.is_zero() || *id == STAGED_ZERO {
            return Err(self.refuse(format!("block {block} has an impossible id")));
        }
        self.cover(Run { first: block, count: 1 }, now_ms)?;
        self.staging.set(storage, block, id).map_err(|source| scratch(storage, source))
    }

    /// A block that the repository knows.
    ///
    /// # Errors
    /// As [`Task::stage_block`].
    pub fn pin_known(
        &mut self,
        storage: &S,
        block: u64,
        id: &BlockId,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        self.stage_block(storage, block, id, now_ms)?;
        self.known.push((block, *id));
        Ok(())
    }

    /// Takes a mark in.
    ///
    /// # Errors
    /// Unchanged blocks that the base does not have as they are; of the scratch file.
    pub fn mark(&mut self, storage: &S, mark: Mark, now_ms: u64) -> Result<(), StoreError> {
        self.cover(mark.run, now_ms)?;
        match mark.kind {
            MarkKind::Zero => self.staging.set_zero(storage, mark.run),
            MarkKind::Unchanged => {
                self.check_unchanged(mark.run)?;
                self.staging.clear(storage, mark.run)
            }
        }
        .map_err(|source| scratch(storage, source))?;
        match self.marks.last_mut() {
            Some(last) if last.kind == mark.kind && last.run.end() == Some(mark.run.first) => {
                last.run.count += mark.run.count;
            }
            _ => self.marks.push(mark),
        }
        Ok(())
    }

    /// As [`Task::mark`], but from the journal: it is durable already.
    ///
    /// # Errors
    /// As [`Task::mark`].
    pub fn replay_mark(&mut self, storage: &S, mark: Mark) -> Result<(), StoreError> {
        self.mark(storage, mark, 0)?;
        self.marks.clear();
        Ok(())
    }

    fn check_unchanged(&self, run: Run) -> Result<(), StoreError> {
        let Some(base) = &self.base else {
            return Err(self.refuse("blocks are marked unchanged, but there is no base".into()));
        };
        // Only a tail block can have another length in the base, or none at all.
        let last = run.first + run.count.max(1) - 1;
        let len = |size| self.disk.block_size.block_len(last, size);
        let tail = self.disk.block_size.block_count(base.size_bytes.min(self.disk.size_bytes)) - 1;
        let tail_len = |size| self.disk.block_size.block_len(tail, size);
        let (ours, bases) = (self.disk.size_bytes, base.size_bytes);
        let holds_tail = run.first <= tail && tail <= last;
        if len(ours) != len(bases) || holds_tail && tail_len(ours) != tail_len(bases) {
            return Err(self.refuse(format!(
                "block {last} is marked unchanged, but the base's disk of {bases} bytes does not \
                 have it whole: it must be read"
            )));
        }
        Ok(())
    }

    /// Blocks that the repository knew, which no journal names yet; those of queries that wait for
    /// checks among them.
    pub fn known_pending(&self) -> Vec<BlockId> {
        let asked = self.answers.iter().flat_map(|answer| answer.blocks.iter());
        self.known.iter().chain(asked).map(|(_, id)| *id).collect()
    }

    /// Whether progress waits for the journal alone.
    pub fn has_pending(&self) -> bool {
        !self.marks.is_empty() || !self.known.is_empty()
    }

    /// Whether a checkpoint is due.
    pub fn is_checkpoint_due(&self, now_ms: u64) -> bool {
        let waiting: usize = self.packs.packs.iter().map(|pack| pack.waiting_count()).sum();
        self.bytes_unsynced >= limits::CHECKPOINT_BYTES_MAX
            || self.marks.len() + self.known.len() + waiting > PENDING_MAX
            || self
                .dirty_since_ms
                .is_some_and(|since| now_ms.saturating_sub(since) >= limits::CHECKPOINT_MS_MAX)
    }

    /// Writes what waits, and these stored blocks, into the journal; returns what is durable now.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the journal must then not be written any more.
    pub fn write_journal(&mut self, stored: Vec<(u64, BlockId)>) -> Result<RunSet, StoreError> {
        let mut runs = RunSet::new();
        let mut entries = Vec::new();
        if !self.marks.is_empty() {
            let marks = std::mem::take(&mut self.marks);
            for mark in &marks {
                runs.insert(mark.run);
            }
            entries.push(Entry::Marks(marks));
        }
        for (blocks, entry) in [
            (std::mem::take(&mut self.known), Entry::Known as fn(_) -> _),
            (stored, Entry::Stored as fn(_) -> _),
        ] {
            for (block, _) in &blocks {
                runs.insert(Run { first: *block, count: 1 });
            }
            if !blocks.is_empty() {
                entries.push(entry(blocks));
            }
        }
        if !entries.is_empty() {
            self.journal.append(&entries)?;
        }
        for run in runs.iter() {
            self.durable.insert(run);
        }
        Ok(runs)
    }

    /// Blocks that the sealed disk takes over from the base although they are lost there: staged
    /// before that was known.
    ///
    /// # Errors
    /// Of the scratch file.
    pub fn lost_blocks(&mut self, storage: &S) -> Result<RunSet, StoreError> {
        let mut lost = RunSet::new();
        for run in self.damaged.iter() {
            let end = run.first.saturating_add(run.count).min(self.blocks());
            let mut at = run.first;
            while at < end {
                let leaf = at / limits::NODE_CHILDREN;
                let upto = end.min((leaf + 1) * limits::NODE_CHILDREN);
                let staged = self.staging.leaf(storage, leaf);
                let is_taken = |block: u64| match staged.as_ref() {
                    Ok(StagedLeaf::Untouched) => true,
                    Ok(StagedLeaf::Ids(ids)) => {
                        ids[(block % limits::NODE_CHILDREN) as usize].is_zero()
                    }
                    Ok(StagedLeaf::Zero) | Err(_) => false,
                };
                for block in (at..upto).filter(|block| is_taken(*block)) {
                    lost.insert(Run { first: block, count: 1 });
                }
                staged.map_err(|source| scratch(storage, source))?;
                at = upto;
            }
        }
        Ok(lost)
    }

    /// The first block that is not accounted for.
    pub fn first_gap(&self) -> Option<Run> {
        self.coverage.gaps(self.blocks()).first().copied()
    }
}

fn scratch<S: Storage>(storage: &S, source: std::io::Error) -> StoreError {
    StoreError::io("use a scratch file in", storage.place(""), source)
}
