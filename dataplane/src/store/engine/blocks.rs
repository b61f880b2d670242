//! A task's blocks on their way in: base ids, marks, known-block queries, appends.
//!
//! In: the receiver's commands for an open task. Out: staged addresses, pack writes, answers.
//! Invariant: an id is answered "known" only if its record is durable and undamaged in a pack that
//! exists, and was verified here or written by the same session; or if this very task is writing
//! it, for then the address becomes durable with the record and not before.

use gantry_common::ids::BlockId;
use gantry_common::session::store_port::{StoreReport, TaskKey};
use gantry_common::wire::{BlockHead, Mark};

use super::{CHECKS_MAX, Check, Flight, FlightKind, Store};
use crate::payload::Payload;
use crate::store::error::StoreError;
use crate::store::index::{Finding, Location};
use crate::store::map_node::child_count;
use crate::store::map_tree::leaf_ids;
use crate::store::record::{Origin, RECORD_HEAD_BYTES, RecordHead, RecordKind};
use crate::store::staging::STAGED_ZERO;
use crate::store::storage::{Storage, WriteQueue};
use crate::store::task::{PendingAnswer, SealStage};

enum Verdict {
    Known,
    Unknown,
    Check(Location),
}

impl<S: Storage> Store<S> {
    pub(super) fn need_base(&mut self, key: TaskKey, leaf: u64) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get(&key) else { return Ok(()) };
        let Some(tree) = task.base_tree() else {
            return Err(StoreError::Refused(format!(
                "disk '{}' asks for base leaf {leaf}, but it has no base",
                task.disk.label
            )));
        };
        let mut ids = match leaf_ids(&tree, leaf, &mut |id, level| self.repo.node(id, level)) {
            Ok(ids) => ids,
            Err(error @ StoreError::Index { .. }) => return Err(error),
            Err(error) => {
                // Every block below is read and compared by its own id; the new tree does not
                // refer to the lost node.
                tracing::warn!("base leaf {leaf} of disk '{}': {error}", task.disk.label);
                vec![STAGED_ZERO; child_count(0, leaf, tree.blocks)]
            }
        };
        // A block whose record is lost or damaged gets an id that no content has: the source finds
        // it changed, sends it, and so heals it.
        let found = self.repo.find(&ids)?;
        for (id, _) in ids.iter_mut().zip(found).filter(|(id, at)| !id.is_zero() && at.is_none()) {
            *id = STAGED_ZERO;
        }
        self.reports.push_back(StoreReport::BaseIds { key, leaf, ids });
        Ok(())
    }

    pub(super) fn marks(&mut self, key: TaskKey, marks: &[Mark]) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        task_is_open(task.stage == SealStage::Open, &task.disk.label)?;
        marks.iter().try_for_each(|mark| task.mark(&self.repo.storage, *mark, self.now_ms))
    }

    pub(super) fn append(
        &mut self,
        key: TaskKey,
        block: u64,
        head: &BlockHead,
        payload: Payload,
    ) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        let taken = take_block(task, &self.repo.storage, block, head, &payload, self.now_ms);
        if taken.is_err() || task.packs.attach(&head.id, block) {
            drop(payload);
            self.reports.push_back(StoreReport::Appended { key, block });
            return taken;
        }
        let (mut buffer, stored_len) = payload.into_parts();
        let origin = Origin { session: key.session, task: key.task, block };
        let record = RecordHead::of_block(head, stored_len as u32, origin);
        let bytes = record.record_bytes() as usize;
        buffer[..RECORD_HEAD_BYTES].copy_from_slice(&record.encode(self.repo.repository()));
        buffer[RECORD_HEAD_BYTES + stored_len..bytes].fill(0);
        let (storage, repository) = (&self.repo.storage, self.repo.repository());
        let room =
            task.packs.room_for(storage, repository, key.session, &mut self.numbers, &record);
        let pack = match room {
            Ok(pack) => pack,
            Err(error) => {
                drop(buffer);
                self.reports.push_back(StoreReport::Appended { key, block });
                return Err(error);
            }
        };
        let (slot, offset) = pack.place(&record, Some(block));
        let (file, number) = (pack.file.clone(), pack.number);
        task.bytes_unsynced += record.record_bytes();
        let kind = FlightKind::Write { slot, block };
        let tag = self.tag(Flight { key, pack: number, kind });
        self.queue.submit_write(&file, offset, buffer, bytes, tag);
        self.advance(key)
    }

    pub(super) fn query(
        &mut self,
        key: TaskKey,
        batch: u64,
        blocks: Vec<(u64, BlockId)>,
    ) -> Result<(), StoreError> {
        let ids: Vec<BlockId> = blocks.iter().map(|(_, id)| *id).collect();
        let found = self.repo.find(&ids)?;
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        task_is_open(task.stage == SealStage::Open, &task.disk.label)?;
        let mut pending =
            PendingAnswer { batch, known: vec![false; blocks.len()], blocks, checks: 0 };
        for (at, found) in found.into_iter().enumerate() {
            let (block, id) = pending.blocks[at];
            match self.judge(key, block, &id, found)? {
                Verdict::Unknown => {}
                Verdict::Known => pending.known[at] = true,
                Verdict::Check(location) => {
                    self.next_tag += 1;
                    let check = Check { ticket: self.next_tag, id, at: location };
                    self.checking.insert(check.ticket, (check, key, batch, at));
                    self.checks.push_back(check);
                    pending.checks += 1;
                }
            }
        }
        if let Some(task) = self.tasks.get_mut(&key) {
            task.answers.push_back(pending);
        }
        self.answer(key);
        Ok(())
    }

    /// What can be said of one id at once; a known one is pinned in the same step.
    fn judge(
        &mut self,
        key: TaskKey,
        block: u64,
        id: &BlockId,
        found: Option<Location>,
    ) -> Result<Verdict, StoreError> {
        let now_ms = self.now_ms;
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(Verdict::Unknown) };
        if id.is_zero() || *id == STAGED_ZERO {
            return Ok(Verdict::Unknown);
        }
        if task.packs.holds(id) {
            task.stage_block(&self.repo.storage, block, id, now_ms)?;
            task.packs.attach(id, block);
            return Ok(Verdict::Known);
        }
        let raw_len = task.disk.block_size.block_len(block, task.disk.size_bytes);
        let usable = |at: &Location| at.kind == RecordKind::Block && at.raw_len == raw_len;
        let Some(at) = found.filter(usable) else { return Ok(Verdict::Unknown) };
        // A check of it may come later: the record must be there until then.
        if !self.claim_block(&at) {
            return Ok(Verdict::Unknown);
        }
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(Verdict::Unknown) };
        if at.verified || self.written_by.get(&at.pack) == Some(&key.session) {
            task.pin_known(&self.repo.storage, block, id, now_ms)?;
            return Ok(Verdict::Known);
        }
        Ok(match self.checking.len() < CHECKS_MAX {
            true => Verdict::Check(at),
            false => Verdict::Unknown,
        })
    }

    /// A record was read and found right, or not.
    pub fn handle_checked(&mut self, check: &Check, good: bool) {
        if !good && !self.is_named(check) {
            // A collection moved it or gave it up meanwhile: that is no damage.
            return self.settle_check(check, false);
        }
        // Kept also if nobody waits for it any more: the work is done.
        let finding = if good { Finding::Good } else { Finding::Damaged };
        self.checked.push((check.id, check.at, finding));
        if !good {
            tracing::warn!(
                "block {} in pack {} at byte {} is damaged: it is not used, run repo verify",
                check.id,
                check.at.pack,
                check.at.offset
            );
        }
        self.settle_check(check, good);
    }

    /// Whether the index still names the record that was checked.
    fn is_named(&self, check: &Check) -> bool {
        let found = self.repo.find_one(&check.id);
        found.is_ok_and(|found| found.is_some_and(|at| at.is_same_place(&check.at)))
    }

    /// A record cannot be checked now: it counts as unknown, and nothing is held against it.
    pub fn abandon_check(&mut self, check: &Check) {
        self.settle_check(check, false);
    }

    fn settle_check(&mut self, check: &Check, known: bool) {
        let Some((_, key, batch, position)) = self.checking.remove(&check.ticket) else { return };
        let now_ms = self.now_ms;
        // Since it was asked for, a collection may have begun, or have judged it.
        let found = if known { self.repo.find_one(&check.id).ok().flatten() } else { None };
        let known = found.is_some_and(|at| at.raw_len == check.at.raw_len && self.claim_block(&at));
        self.with_task(key, |store| {
            let Some(task) = store.tasks.get_mut(&key) else { return Ok(()) };
            let Some(answer) = task.answers.iter_mut().find(|answer| answer.batch == batch) else {
                return Ok(());
            };
            answer.checks -= 1;
            if known {
                answer.known[position] = true;
                let (block, id) = answer.blocks[position];
                task.pin_known(&store.repo.storage, block, &id, now_ms)?;
            }
            store.answer(key);
            Ok(())
        });
    }

    /// Answers queries whose checks are all done, in order.
    fn answer(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(&key) else { return };
        while task.answers.front().is_some_and(|answer| answer.checks == 0)
            && let Some(PendingAnswer { batch, known, .. }) = task.answers.pop_front()
        {
            self.reports.push_back(StoreReport::Answered { key, batch, known });
        }
    }
}

fn task_is_open(is_open: bool, label: &str) -> Result<(), StoreError> {
    match is_open {
        true => Ok(()),
        false => Err(StoreError::Refused(format!("disk '{label}' was sealed already"))),
    }
}

/// Checks a block against its disk and stages it.
fn take_block<S: Storage>(
    task: &mut crate::store::task::Task<S>,
    storage: &S,
    block: u64,
    head: &BlockHead,
    payload: &Payload,
    now_ms: u64,
) -> Result<(), StoreError> {
    task_is_open(task.stage == SealStage::Open, &task.disk.label)?;
    let expected = task.disk.block_size.block_len(block, task.disk.size_bytes);
    let stored = payload.stored().len();
    if head.raw_len != expected || stored == 0 || stored > expected as usize {
        return Err(StoreError::Refused(format!(
            "disk '{}': block {block} comes with {} raw and {stored} stored bytes, not {expected}",
            task.disk.label, head.raw_len
        )));
    }
    task.stage_block(storage, block, &head.id, now_ms)
}
