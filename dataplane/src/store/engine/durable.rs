//! How what was written becomes durable: completions, checkpoints, seals.
//!
//! In: completions of the queue. Out: `Appended`, `Durable`, `Sealed`. Order: pack writes, pack
//! sync, journal, journal sync, `Durable`; at the end tree nodes, pack sync, footer, pack sync,
//! index, journal's seal, `Sealed`. Must not: sync a file again after a sync of it failed.

use std::sync::Arc;

use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::{BlockId, StoredChecksum};
use gantry_common::limits;
use gantry_common::session::store_port::{StoreReport, TaskKey};
use gantry_common::wire::{Codec, MaskRange, TaskTotals};

use super::collect::{Collection, Shared};
use super::{Flight, FlightKind, Store};
use crate::store::error::StoreError;
use crate::store::footer::Slot;
use crate::store::index::{Finding, Location, Walked};
use crate::store::journal::{Entry, SealedDisk};
use crate::store::layout::PackNumber;
use crate::store::lost::message_runs;
use crate::store::map_node::encode_node;
use crate::store::map_tree::{NodeStore, TreeBuilder};
use crate::store::pack::{PackNumbers, PackPhase, PackSet};
use crate::store::record::{Origin, RecordHead, RecordKind};
use crate::store::repo::Repo;
use crate::store::storage::{Completion, Storage, StorageFile, WriteQueue};
use crate::store::task::SealStage;

/// Sealed packs whose index entries may be lost in a crash, and are then read from the footers.
const PACKS_UNFLUSHED_MAX: u32 = 16;

impl<S: Storage> Store<S> {
    /// Takes in what has completed; waits for something if `wait` and anything is under way.
    pub(super) fn collect(&mut self, wait: bool) {
        let mut completions = std::mem::take(&mut self.completions);
        self.queue.complete(wait, &mut completions);
        for completion in completions.drain(..) {
            let Some(flight) = self.flights.remove(&completion.tag) else { continue };
            if let FlightKind::Write { block, .. } = flight.kind {
                self.reports.push_back(StoreReport::Appended { key: flight.key, block });
            }
            self.with_task(flight.key, |store| store.completed(flight, completion));
        }
        self.completions = completions;
    }

    fn completed(&mut self, flight: Flight, completion: Completion) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get_mut(&flight.key) else { return Ok(()) };
        let Some(pack) = task.packs.get_mut(flight.pack) else { return Ok(()) };
        let action = match flight.kind {
            FlightKind::Write { .. } => "write",
            FlightKind::Sync => "sync",
        };
        completion.result.map_err(|source| StoreError::io(action, pack.place.clone(), source))?;
        match flight.kind {
            FlightKind::Write { slot, .. } => pack.handle_written(slot),
            FlightKind::Sync => self.synced(flight.key, flight.pack)?,
        }
        self.advance(flight.key)
    }

    /// A pack's sync is done: the journal says so, then the source hears it.
    fn synced(&mut self, key: TaskKey, number: PackNumber) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        let Some(pack) = task.packs.get_mut(number) else { return Ok(()) };
        let stored = pack.synced();
        if let PackPhase::Footed(bytes) = pack.phase {
            let slots = std::mem::take(&mut pack.slots);
            task.packs.packs.retain(|pack| pack.number != number);
            self.take_sealed(key, number, &slots, bytes)?;
        }
        self.journal(key, stored)
    }

    /// A pack is sealed and durable: its records may serve.
    pub(super) fn take_sealed(
        &mut self,
        key: TaskKey,
        number: PackNumber,
        slots: &[Slot],
        bytes: u64,
    ) -> Result<(), StoreError> {
        self.packs_unflushed += 1;
        let durable = self.packs_unflushed >= PACKS_UNFLUSHED_MAX;
        let collection = self.shared_collection();
        let may_keep =
            |at: &Location| collection.as_ref().is_none_or(|collection| collection.may_refer(at));
        self.repo.add_pack(number, slots, bytes, &may_keep, durable)?;
        self.written_by.insert(number, key.session);
        if durable {
            self.packs_unflushed = 0;
        }
        Ok(())
    }

    fn journal(&mut self, key: TaskKey, stored: Vec<(u64, BlockId)>) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        let runs = task.write_journal(stored)?;
        let settled = task.coverage.blocks() == task.durable.blocks();
        task.dirty_since_ms = if settled { None } else { Some(self.now_ms) };
        self.report_durable(key, &runs);
        Ok(())
    }

    pub(super) fn report_durable(&mut self, key: TaskKey, runs: &RunSet) {
        let runs: Vec<Run> = runs.iter().collect();
        for page in runs.chunks(limits::RUNS_MAX) {
            self.reports.push_back(StoreReport::Durable { key, runs: page.to_vec() });
        }
    }

    /// Begins to make durable what a task has written.
    pub(super) fn checkpoint(&mut self, key: TaskKey) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        task.bytes_unsynced = 0;
        task.dirty_since_ms = Some(self.now_ms);
        let mut to_sync = Vec::new();
        for pack in &mut task.packs.packs {
            if pack.wants_sync() && pack.phase == PackPhase::Open {
                pack.begin_sync();
                to_sync.push((pack.number, pack.file.clone()));
            }
        }
        let is_syncing = task.packs.packs.iter().any(|pack| pack.is_syncing());
        for (number, file) in to_sync {
            self.submit_sync(key, number, &file);
        }
        if is_syncing { Ok(()) } else { self.journal(key, Vec::new()) }
    }

    fn submit_sync(&mut self, key: TaskKey, pack: PackNumber, file: &S::File) {
        let tag = self.tag(Flight { key, pack, kind: FlightKind::Sync });
        self.queue.submit_sync(file, tag);
    }

    /// Takes every step of a task that can be taken now.
    pub(super) fn advance(&mut self, key: TaskKey) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        if let SealStage::Asked(totals) = task.stage
            && !task.packs.is_writing()
        {
            self.build_tree(key, totals)?;
        }
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        let mut to_sync = Vec::new();
        for pack in &mut task.packs.packs {
            if pack.is_closing_idle() {
                // First what the footer lists, then the footer: one that a crash leaves is true.
                if !pack.is_dirty() {
                    pack.write_footer()?;
                }
                pack.begin_sync();
                to_sync.push((pack.number, pack.file.clone()));
            }
        }
        for (number, file) in to_sync {
            self.submit_sync(key, number, &file);
        }
        self.finish_seal(key)
    }

    pub(super) fn seal(
        &mut self,
        key: TaskKey,
        totals: TaskTotals,
        mask: Vec<MaskRange>,
    ) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        if let SealStage::Done(sealed) = &task.stage {
            let bytes_stored = sealed.bytes_stored;
            self.reports.push_back(StoreReport::Sealed { key, bytes_stored });
            self.commit_if_complete(key.session);
            return Ok(());
        }
        if let Some(gap) = task.first_gap() {
            return Err(StoreError::Refused(format!(
                "disk '{}' cannot be completed: {} blocks from block {} on were never accounted \
                 for",
                task.disk.label, gap.count, gap.first
            )));
        }
        if task.stage == SealStage::Open {
            task.stage = SealStage::Asked(totals);
            task.mask = mask;
        }
        self.advance(key)
    }

    fn build_tree(&mut self, key: TaskKey, totals: TaskTotals) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        let (base, blocks) = (task.base_tree(), task.blocks());
        let collection = self.collection.as_ref().map(Collection::shared);
        let mut nodes = NodeWriter {
            repo: &self.repo,
            collection,
            packs: &mut task.packs,
            numbers: &mut self.numbers,
            key,
            base_is: base.is_some(),
        };
        let root = TreeBuilder {
            storage: &self.repo.storage,
            staging: &mut task.staging,
            base,
            blocks,
            nodes: &mut nodes,
        }
        .build()?;
        task.packs.close();
        task.stage = SealStage::Built(totals, root);
        if self.repo.index.is_suspect() {
            // So that the next run need not walk this tree: of it, just what is still taken over
            // from lost blocks is lost, unless more damage came to light meanwhile.
            let lost = task.lost_blocks(&self.repo.storage)?;
            let walked = Walked { rows: vec![(root, message_runs(lost))], all: None };
            self.repo.index.keep_walked(&walked, task.damage_generation)?;
        }
        Ok(())
    }

    fn finish_seal(&mut self, key: TaskKey) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        let SealStage::Built(totals, root) = task.stage else { return Ok(()) };
        if !task.packs.packs.is_empty() {
            return Ok(());
        }
        if task.has_pending() {
            self.journal(key, Vec::new())?;
        }
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        assert_eq!(task.durable.blocks(), task.blocks(), "sealing before all is durable");
        let sealed = SealedDisk {
            root,
            totals,
            bytes_stored: task.packs.bytes_stored,
            mask: std::mem::take(&mut task.mask),
        };
        task.journal.append(&[Entry::Sealed(sealed.clone())])?;
        task.stage = SealStage::Done(sealed.clone());
        let bytes_stored = sealed.bytes_stored;
        let (base, blocks) = (task.base.clone(), task.blocks());
        if let Some(session) = self.sessions.get_mut(&key.session) {
            session.sealed.insert(key.task, (sealed, base));
        }
        self.add_built_root(key, root, blocks);
        self.reports.push_back(StoreReport::Sealed { key, bytes_stored });
        self.commit_if_complete(key.session);
        Ok(())
    }
}

/// Puts a tree's new nodes into the task's packs.
pub(super) struct NodeWriter<'a, S: Storage> {
    pub(super) repo: &'a Repo<S>,
    pub(super) collection: Option<Arc<Shared<S>>>,
    pub(super) packs: &'a mut PackSet<S::File>,
    pub(super) numbers: &'a mut PackNumbers,
    pub(super) key: TaskKey,
    pub(super) base_is: bool,
}

impl<S: Storage> NodeStore for NodeWriter<'_, S> {
    fn node(&mut self, id: &BlockId, level: u8) -> Result<Arc<Vec<BlockId>>, StoreError> {
        debug_assert!(self.base_is);
        self.repo.node(id, level)
    }

    fn put(&mut self, level: u8, index: u64, children: &[BlockId]) -> Result<BlockId, StoreError> {
        let raw = encode_node(level, children);
        let id = self.repo.id_key().node_key().block_id(&raw);
        if self.packs.holds(&id) {
            return Ok(id);
        }
        // Whoever wrote it: it serves only if it reads back as what it should be, and if no
        // collection may give it up.
        let spared = |at: &Location| {
            self.collection.as_ref().is_none_or(|collection| collection.may_refer(at))
        };
        if let Some(at) = self.repo.find_one(&id)?.filter(spared) {
            match self.repo.node(&id, level) {
                Ok(stored) if stored[..] == *children => return Ok(id),
                // Known before the new record is indexed, which then takes its place.
                Err(StoreError::Damaged { .. }) => {
                    self.repo.mark(&[(id, at, Finding::Damaged)])?;
                }
                _ => {}
            }
        }
        let mut packed = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
        let (codec, stored) = match zstd_safe::compress(&mut packed, &raw, 1) {
            Ok(len) if len < raw.len() => (Codec::Zstd, packed),
            _ => (Codec::Raw, raw.clone()),
        };
        let head = RecordHead {
            kind: RecordKind::Node,
            codec,
            raw_len: raw.len() as u32,
            stored_len: stored.len() as u32,
            id,
            checksum: StoredChecksum::of(&stored),
            origin: Origin { session: self.key.session, task: self.key.task, block: index },
        };
        let (storage, repository) = (&self.repo.storage, self.repo.repository());
        let pack =
            self.packs.room_for(storage, repository, self.key.session, self.numbers, &head)?;
        let (slot, offset) = pack.place(&head, None);
        let mut bytes = head.encode(repository).to_vec();
        bytes.extend(stored);
        bytes.resize(head.record_bytes() as usize, 0);
        pack.file
            .write_at(offset, &bytes)
            .map_err(|source| StoreError::io("write", pack.place.clone(), source))?;
        pack.handle_written(slot);
        Ok(id)
    }
}
