//! Opening a task: which base it gets, and what an earlier attempt had made durable.
//!
//! In: `OpenTask`. Out: `TaskOpened`. A journal of the same disk in the same frozen state is taken
//! over, whoever wrote it; each id in it must resolve to a record on the disk, or its address is
//! not durable. The journal is written anew on the way, so that one whose sync once failed is
//! never trusted again. Invariant: the old journal goes only once the new one is durable.

use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::{BlockId, PointId};
use gantry_common::session::store_port::{StoreReport, TaskKey};
use gantry_common::wire::{BaseAnswer, BaseChoice, DiskOffer, Mark, MarkKind, SessionKind};

use super::Store;
use crate::store::error::StoreError;
use crate::store::index::Walked;
use crate::store::journal::{BaseRoot, Entry, Journal, JournalHead, JournalReader, SealedDisk};
use crate::store::layout::{journal_path, points_dir};
use crate::store::lost::{LostBlocks, message_runs};
use crate::store::manifest::{Manifest, list_points};
use crate::store::map_node::tree_height;
use crate::store::map_tree::TreeRoot;
use crate::store::record::RecordKind;
use crate::store::staging::Staging;
use crate::store::storage::{OpenMode, Storage};
use crate::store::task::{SealStage, Task};

/// A base, or why there is none.
struct Base {
    root: Option<BaseRoot>,
    /// Why the point that was asked for is not used.
    refused: Option<String>,
}

impl Base {
    fn answer(&self, choice: BaseChoice, damaged: Vec<Run>) -> BaseAnswer {
        match (&self.root, choice) {
            (_, BaseChoice::None) => BaseAnswer::NotAsked,
            (Some(root), _) => BaseAnswer::Usable {
                point: root.point,
                size_bytes: root.size_bytes,
                change_id: root.change_id.clone(),
                damaged,
                mask: root.mask.clone(),
                fallback_reason: self.refused.clone(),
            },
            (None, _) => BaseAnswer::Unusable {
                reason: self.refused.clone().unwrap_or_else(|| "no base was found".into()),
            },
        }
    }
}

impl<S: Storage> Store<S> {
    pub(super) fn open_task(&mut self, key: TaskKey) -> Result<(), StoreError> {
        if self.tasks.contains_key(&key) {
            return Err(StoreError::Refused(format!(
                "disk {} of session {} is open already",
                key.task, key.session
            )));
        }
        let session = self.sessions.get(&key.session).filter(|session| session.is_attached);
        let Some((offer, kind)) = session.map(|session| (session.offer.clone(), session.kind))
        else {
            return Err(StoreError::Refused(format!("session {} is not open", key.session)));
        };
        let Some(disk) = offer.disks.get(usize::from(key.task)).cloned() else {
            return Err(StoreError::Refused(format!("the session has no disk {}", key.task)));
        };
        self.seal_failed_packs();
        let fresh = self.resolve_base(&offer.name, &disk)?;
        let (earlier, base) = self.find_progress((key, kind), &offer.name, &disk, fresh);
        let head = JournalHead {
            repository: self.repo.repository(),
            session: key.session,
            task: key.task,
            offer,
            base: base.root.clone(),
            base_refused: base.refused.clone(),
            is_part: kind == SessionKind::Part,
        };
        let generation = self.repo.index.damage_generation()?;
        if let Some(root) = &base.root {
            let blocks = disk.block_size.block_count(root.size_bytes);
            self.add_root(root.root, blocks, &format!("base {} of '{}'", root.point, disk.label));
        }
        let damaged = match &base.root {
            Some(root) => self.damaged_of_base(root, &disk, generation)?,
            None => Vec::new(),
        };
        let known = (damaged.iter().copied().collect(), generation);
        let answer = base.answer(disk.base, damaged);
        let (task, sealed) = self.start_task(key, disk, base.root, known, &head, earlier)?;
        let durable: Vec<Run> = task.durable.iter().collect();
        if let Some(session) = self.sessions.get_mut(&key.session) {
            // What an earlier connection sealed counts only if the journal still says so.
            session.sealed.remove(&key.task);
            let sealed = sealed.map(|sealed| (key.task, (sealed, task.base.clone())));
            session.sealed.extend(sealed);
        }
        self.tasks.insert(key, task);
        self.reports.push_back(StoreReport::TaskOpened { key, base: answer, durable });
        Ok(())
    }

    /// The journal to go on from, and the base that belongs to it; or the fresh base.
    fn find_progress(
        &self,
        (key, kind): (TaskKey, SessionKind),
        name: &str,
        disk: &DiskOffer,
        fresh: Base,
    ) -> (Option<TaskKey>, Base) {
        let is_whole = |head: &JournalHead| {
            head.base.as_ref().is_none_or(|base| self.is_base_whole(disk, base))
        };
        let its_base = |head: &JournalHead| Base {
            root: head.base.clone(),
            refused: head.base_refused.clone(),
        };
        if let Some(own) = self.journals.get(&key)
            && own.continues(name, disk)
            && is_whole(own)
        {
            return (Some(key), its_base(own));
        }
        let point = |base: &Option<BaseRoot>| base.as_ref().map(|base| base.point);
        let adoptable = self.journals.iter().filter(|(other, head)| {
            **other != key
                && !self.sessions.get(&other.session).is_some_and(|session| session.is_attached)
                && head.continues(name, disk)
                // What a part brought counts as long as the snapshot does, whatever became of its
                // base's point, or is newest, meanwhile.
                && match kind {
                    SessionKind::Backup => point(&head.base) == point(&fresh.root),
                    SessionKind::Part | SessionKind::Commit => is_whole(head),
                }
        });
        // More than one only where a crash brought back what had been superseded.
        let adoptable: Vec<_> = adoptable.collect();
        let adoptable = match adoptable[..] {
            [alone] => Some(alone),
            _ => adoptable.into_iter().max_by_key(|(other, _)| self.blocks_in_journal(**other)),
        };
        match adoptable {
            Some((other, head)) => (Some(*other), its_base(head)),
            None => (None, fresh),
        }
    }

    /// How many blocks a journal accounts for; what cannot be read counts for nothing.
    fn blocks_in_journal(&self, key: TaskKey) -> u64 {
        let path = journal_path(key.session, key.task);
        let reader = JournalReader::open(&self.repo.storage, &path, OpenMode::Read);
        let Ok(Some(mut reader)) = reader else { return 0 };
        let mut blocks = 0;
        while let Ok(Some(entry)) = reader.next_entry() {
            blocks += match entry {
                Entry::Marks(marks) => marks.iter().map(|mark| mark.run.count).sum(),
                Entry::Stored(stored) | Entry::Known(stored) => stored.len() as u64,
                Entry::Sealed(_) | Entry::Part => 0,
            };
        }
        blocks
    }

    /// Whether a base that a journal names can still serve. Its point may be deleted meanwhile: the
    /// journal pins the tree.
    fn is_base_whole(&self, disk: &DiskOffer, base: &BaseRoot) -> bool {
        let blocks = disk.block_size.block_count(base.size_bytes);
        base.root.is_zero() || self.repo.node(&base.root, tree_height(blocks) - 1).is_ok()
    }

    /// Blocks of the base that cannot be restored. Walked for only while damage is known, and only
    /// where nobody has walked this tree since.
    fn damaged_of_base(
        &self,
        root: &BaseRoot,
        disk: &DiskOffer,
        generation: u64,
    ) -> Result<Vec<Run>, StoreError> {
        let index = &self.repo.index;
        if !index.is_suspect() || root.root.is_zero() {
            return Ok(Vec::new());
        }
        if let Some(runs) = index.lost_blocks(&root.root)? {
            return Ok(runs);
        }
        let blocks = disk.block_size.block_count(root.size_bytes);
        let mut walk = LostBlocks::new(&self.repo, &|_| false);
        let lost = walk.of_tree(&TreeRoot { root: root.root, blocks })?;
        let runs = message_runs(lost);
        if !walk.had_io_errors {
            let walked = Walked { rows: vec![(root.root, runs.clone())], all: None };
            index.keep_walked(&walked, generation)?;
        }
        Ok(runs)
    }

    fn start_task(
        &mut self,
        key: TaskKey,
        disk: DiskOffer,
        base: Option<BaseRoot>,
        (damaged, damage_generation): (RunSet, u64),
        head: &JournalHead,
        earlier: Option<TaskKey>,
    ) -> Result<(Task<S>, Option<SealedDisk>), StoreError> {
        let storage = self.repo.storage.clone();
        let blocks = disk.block_size.block_count(disk.size_bytes);
        let reader = match earlier {
            Some(earlier) => {
                let path = journal_path(earlier.session, earlier.task);
                JournalReader::open(&storage, &path, OpenMode::Read)?
            }
            None => None,
        };
        let journal = Journal::begin(&storage, head)?;
        let staging = Staging::new(blocks, base.is_some());
        let mut task = Task::new(key, disk, base, staging, journal, RunSet::new());
        (task.damaged, task.damage_generation) = (damaged, damage_generation);
        let sealed = match reader {
            Some(reader) => self.replay(&mut task, reader)?,
            None => None,
        };
        task.durable = task.coverage.clone();
        task.dirty_since_ms = None;
        task.journal.publish(&storage)?;
        if let Some(sealed) = &sealed {
            task.stage = SealStage::Done(sealed.clone());
        }
        // Every other journal of this disk is now superseded.
        let identity = &task.disk.identity;
        let stale: Vec<TaskKey> = self
            .journals
            .iter()
            .filter(|(other, own)| {
                **other != key
                    && own.offer.name == head.offer.name
                    && own.disk().is_some_and(|disk| disk.identity == *identity)
            })
            .map(|(other, _)| *other)
            .collect();
        stale.into_iter().for_each(|other| self.drop_journal(other));
        let mut kept = head.clone();
        kept.offer.vm_config = Vec::new();
        self.journals.insert(key, kept);
        Ok((task, sealed))
    }

    /// Takes over what a journal says, as far as it still holds, into the task's new journal.
    fn replay(
        &self,
        task: &mut Task<S>,
        mut reader: JournalReader<S::File>,
    ) -> Result<Option<SealedDisk>, StoreError> {
        let storage = &self.repo.storage;
        let mut sealed = None;
        while let Some(entry) = reader.next_entry()? {
            let kept = match entry {
                Entry::Marks(marks) => {
                    let marks = without_damaged(marks, &task.damaged);
                    for mark in &marks {
                        task.replay_mark(storage, *mark)?;
                    }
                    Entry::Marks(marks)
                }
                Entry::Stored(blocks) => Entry::Stored(self.still_there(task, blocks)?),
                Entry::Known(blocks) => Entry::Known(self.still_there(task, blocks)?),
                Entry::Sealed(disk) => {
                    sealed = Some(disk);
                    continue;
                }
                // Whether the new journal is a part's was written with its head.
                Entry::Part => continue,
            };
            task.journal.write(&[kept])?;
        }
        let complete = task.coverage.blocks() == task.blocks();
        let Some(disk) = sealed.filter(|_| complete) else { return Ok(None) };
        if !disk.root.is_zero() && self.repo.find_one(&disk.root)?.is_none() {
            return Ok(None);
        }
        task.journal.write(&[Entry::Sealed(disk.clone())])?;
        Ok(Some(disk))
    }

    fn still_there(
        &self,
        task: &mut Task<S>,
        blocks: Vec<(u64, BlockId)>,
    ) -> Result<Vec<(u64, BlockId)>, StoreError> {
        let ids: Vec<BlockId> = blocks.iter().map(|(_, id)| *id).collect();
        let found = self.repo.find(&ids)?;
        let mut kept = Vec::with_capacity(blocks.len());
        for ((block, id), at) in blocks.into_iter().zip(found) {
            if at.is_some_and(|at| at.kind == RecordKind::Block && self.claim_block(&at)) {
                task.stage_block(&self.repo.storage, block, &id, 0)?;
                kept.push((block, id));
            }
        }
        Ok(kept)
    }

    fn resolve_base(&self, name: &str, disk: &DiskOffer) -> Result<Base, StoreError> {
        let refused = match disk.base {
            BaseChoice::None => return Ok(Base { root: None, refused: None }),
            BaseChoice::Latest => None,
            BaseChoice::Point(point) => match self.candidate(name, disk, point) {
                Ok(root) => return Ok(Base { root: Some(root), refused: None }),
                Err(reason) => Some(reason),
            },
        };
        let mut newest_reason = None;
        for point in list_points(&self.repo.storage, &points_dir(name))?.into_iter().rev() {
            match self.candidate(name, disk, point) {
                Ok(root) => return Ok(Base { root: Some(root), refused }),
                Err(reason) => newest_reason = newest_reason.or(Some(reason)),
            }
        }
        let none = || format!("'{name}' has no restore point yet");
        Ok(Base { root: None, refused: refused.or(newest_reason).or_else(|| Some(none())) })
    }

    /// A point's disk as a base, or why it cannot be.
    fn candidate(&self, name: &str, disk: &DiskOffer, point: PointId) -> Result<BaseRoot, String> {
        let found = Manifest::find(&self.repo.storage, name, point, self.repo.repository());
        let manifest = found
            .map_err(|error| error.to_string())?
            .ok_or_else(|| format!("'{name}' has no restore point {point}"))?;
        let held = manifest.disks.iter().find(|held| held.identity == disk.identity);
        let held = held
            .ok_or_else(|| format!("restore point {point} does not hold disk '{}'", disk.label))?;
        if held.block_size != disk.block_size {
            return Err(format!(
                "restore point {point} has blocks of {}, this job of {}",
                held.block_size, disk.block_size
            ));
        }
        if !held.root.is_zero() {
            let level = tree_height(held.blocks()) - 1;
            self.repo.node(&held.root, level).map_err(|error| error.to_string())?;
        }
        Ok(BaseRoot {
            point,
            root: held.root,
            size_bytes: held.size_bytes,
            change_id: held.change_id.clone(),
            mask: held.mask.clone(),
        })
    }
}

/// Marks as they still hold: a block that is lost in the base by now is not taken over from it.
fn without_damaged(marks: Vec<Mark>, damaged: &RunSet) -> Vec<Mark> {
    if damaged.is_empty() {
        return marks;
    }
    let kept = |mark: Mark| {
        let mut runs: RunSet = [mark.run].into_iter().collect();
        if mark.kind == MarkKind::Unchanged {
            damaged.iter().for_each(|run| runs.remove(run));
        }
        let runs: Vec<Run> = runs.iter().collect();
        runs.into_iter().map(move |run| Mark { run, kind: mark.kind })
    };
    marks.into_iter().flat_map(kept).collect()
}
