//! A model store: what is persisted survives a crash, everything else does not.
//!
//! Blocks and marks become durable at a checkpoint (at random, at `Seal`, at `Detach`). A seal is
//! not persisted, which is the worst case: after a crash every disk must be sealed again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use gantry_common::extents::Run;
use gantry_common::ids::{BlockId, PointId, SessionId};
use gantry_common::limits::NODE_CHILDREN;
use gantry_common::session::store_port::{StoreCommand, StoreReport, TaskKey};
use gantry_common::wire::{BaseAnswer, BaseChoice, BlockHead, MarkKind, SessionOffer};

use crate::images::{Content, Image, Payload, blocks_of, id_of, runs_of};
use crate::plan::Plant;

/// What identifies a resumable task: disk identity, snapshot, block size.
type JournalKey = (String, String, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Zero,
    Unchanged,
    Block(BlockId),
}

/// The persisted state of one task.
#[derive(Default)]
pub struct Journal {
    entries: BTreeMap<u64, Entry>,
    /// Blocks that a planted bug calls durable.
    claimed: BTreeSet<u64>,
    base: Option<PointId>,
}

/// A committed restore point.
pub struct Point {
    pub id: PointId,
    /// The session that made it; nothing for the base that a run begins with.
    pub session: Option<SessionId>,
    pub images: Vec<Image>,
}

struct Session {
    offer: SessionOffer,
    is_attached: bool,
    sealed: BTreeSet<u16>,
}

type Append = (TaskKey, u64, BlockHead, Payload);

/// The store process and what it has on disk.
pub struct Store {
    packs: BTreeMap<BlockId, Content>,
    journals: BTreeMap<JournalKey, Journal>,
    pub points: Vec<Point>,
    // Below: lost by a crash.
    sessions: BTreeMap<SessionId, Session>,
    appending: Vec<Append>,
    dirty: BTreeMap<TaskKey, BTreeMap<u64, (Entry, Content)>>,
    commit_due: Option<SessionId>,
    pub commands: VecDeque<StoreCommand<Payload>>,
    pub reports: VecDeque<StoreReport>,
    plant: Plant,
}

impl Store {
    /// A store that holds this base point.
    pub fn new(base: Option<Vec<Image>>, plant: Plant) -> Store {
        let point =
            |images: Vec<Image>| Point { id: PointId::new(1, [0; 10]), session: None, images };
        Store {
            packs: BTreeMap::new(),
            journals: BTreeMap::new(),
            points: base.map(point).into_iter().collect(),
            sessions: BTreeMap::new(),
            appending: Vec::new(),
            dirty: BTreeMap::new(),
            commit_due: None,
            commands: VecDeque::new(),
            reports: VecDeque::new(),
            plant,
        }
    }

    /// The process dies.
    pub fn crash(&mut self) {
        self.sessions.clear();
        self.appending.clear();
        self.dirty.clear();
        self.commit_due = None;
        self.commands.clear();
        self.reports.clear();
        if self.plant == Plant::StoreForgetsContent {
            for journal in self.journals.values_mut() {
                if let Some((block, _)) = journal.entries.pop_last() {
                    journal.claimed.insert(block);
                }
            }
        }
    }

    /// Whether these blocks really are durable for a session's disk (or in its committed point).
    pub fn holds(&self, offer: &SessionOffer, key: TaskKey, runs: &[Run]) -> bool {
        let journal = self.journals.get(&journal_key(offer, key.task));
        self.points.iter().any(|point| point.session == Some(key.session))
            || blocks_of(runs).all(|block| journal.is_some_and(|j| j.entries.contains_key(&block)))
    }

    /// Makes everything durable that was appended.
    pub fn checkpoint(&mut self) -> bool {
        let keys: Vec<TaskKey> = self.dirty.keys().copied().collect();
        keys.iter().for_each(|&key| self.checkpoint_task(key));
        !keys.is_empty()
    }

    fn checkpoint_task(&mut self, key: TaskKey) {
        let Some(entries) = self.dirty.remove(&key) else { return };
        let runs = runs_of(entries.keys().copied());
        let journal =
            self.journals.entry(journal_key(&self.sessions[&key.session].offer, key.task));
        let journal = journal.or_default();
        for (block, (entry, content)) in entries {
            journal.entries.insert(block, entry);
            if let Entry::Block(id) = entry
                && content != 0
            {
                self.packs.insert(id, content);
            }
        }
        self.reports.push_back(StoreReport::Durable { key, runs });
    }

    fn finish_append(&mut self, at: usize) {
        let (key, block, head, payload) = self.appending.swap_remove(at);
        let entry = (Entry::Block(head.id), payload.content);
        self.dirty.entry(key).or_default().insert(block, entry);
        self.reports.push_back(StoreReport::Appended { key, block });
        if self.plant == Plant::DurableTooEarly {
            let runs = vec![Run { first: block, count: 1 }];
            self.reports.push_back(StoreReport::Durable { key, runs });
        }
    }

    /// Finishes every append of a session and makes it durable.
    fn flush(&mut self, session: SessionId) {
        while let Some(at) = self.appending.iter().position(|(key, ..)| key.session == session) {
            self.finish_append(at);
        }
        let keys: Vec<_> =
            self.dirty.keys().filter(|key| key.session == session).copied().collect();
        keys.into_iter().for_each(|key| self.checkpoint_task(key));
    }

    /// What a failed fsync does: nothing that is not durable yet is kept. Buffers come back.
    fn discard(&mut self, session: SessionId) {
        while let Some(at) = self.appending.iter().position(|(key, ..)| key.session == session) {
            self.finish_append(at);
        }
        self.dirty.retain(|key, _| key.session != session);
    }

    /// One piece of work: an append that ends, a commit, or the next command.
    pub fn work(&mut self, random: &mut fastrand::Rng) -> Result<bool, String> {
        if !self.appending.is_empty() && random.bool() {
            self.finish_append(random.usize(0..self.appending.len()));
        } else if let Some(session) = self.commit_due.take_if(|_| random.bool()) {
            self.commit(session)?;
        } else if let Some(command) = self.commands.pop_front() {
            self.handle(command, random)?;
        } else if !self.appending.is_empty() {
            self.finish_append(random.usize(0..self.appending.len()));
        } else {
            return Ok(self.commit_due.is_some());
        }
        Ok(true)
    }

    fn handle(
        &mut self,
        command: StoreCommand<Payload>,
        random: &mut fastrand::Rng,
    ) -> Result<(), String> {
        match command {
            StoreCommand::OpenSession { session, offer, .. } => {
                let found = self.points.iter().find(|point| point.session == Some(session));
                let committed = found.map(|point| point.id);
                if self.sessions.values().any(|session| session.is_attached) {
                    return Err("two sessions of one VM at once".into());
                }
                let open = Session { offer, is_attached: true, sealed: BTreeSet::new() };
                self.sessions.insert(session, open);
                self.reports.push_back(StoreReport::SessionOpened { session, committed });
            }
            StoreCommand::OpenTask { key } => self.open_task(key)?,
            StoreCommand::NeedBase { key, leaf } => self.need_base(key, leaf)?,
            StoreCommand::Marks { key, marks } => {
                self.check_unsealed(key)?;
                let entries = self.dirty.entry(key).or_default();
                for mark in marks {
                    let entry = match mark.kind {
                        MarkKind::Zero => Entry::Zero,
                        MarkKind::Unchanged => Entry::Unchanged,
                    };
                    let run = mark.run.first..mark.run.first + mark.run.count;
                    entries.extend(run.map(|block| (block, (entry, 0))));
                }
            }
            StoreCommand::Query { key, batch, blocks } => {
                self.check_unsealed(key)?;
                let mut known = Vec::new();
                for (block, id) in blocks {
                    // A block that is not verified yet is not answered as known.
                    let is_known = match self.packs.contains_key(&id) {
                        true => random.u8(0..8) > 0,
                        false => self.plant == Plant::KnownUntrue && random.u8(0..8) == 0,
                    };
                    known.push(is_known);
                    if is_known {
                        let entry = (Entry::Block(id), 0);
                        self.dirty.entry(key).or_default().insert(block, entry);
                    }
                }
                self.reports.push_back(StoreReport::Answered { key, batch, known });
            }
            StoreCommand::Append { key, block, head, payload } => {
                self.check_unsealed(key)?;
                self.appending.push((key, block, head, payload));
            }
            StoreCommand::Seal { key, totals, .. } => {
                if totals.bytes_read == 0 {
                    return Err("a seal without the pipeline's totals".into());
                }
                self.seal(key)?;
            }
            StoreCommand::Detach { session } => {
                if random.u8(0..6) == 0 {
                    self.discard(session);
                }
                self.flush(session);
                if self.commit_due == Some(session) {
                    self.commit(session)?;
                }
                if let Some(open) = self.sessions.get_mut(&session) {
                    open.is_attached = false;
                }
                self.reports.push_back(StoreReport::Detached { session });
            }
        }
        Ok(())
    }

    fn check_unsealed(&self, key: TaskKey) -> Result<(), String> {
        let session = &self.sessions[&key.session];
        if !session.is_attached || session.sealed.contains(&key.task) {
            return Err(format!("a command for {key:?}, which is sealed or detached"));
        }
        Ok(())
    }

    fn open_task(&mut self, key: TaskKey) -> Result<(), String> {
        self.check_unsealed(key)?;
        let offer = &self.sessions[&key.session].offer;
        let disk = &offer.disks[usize::from(key.task)];
        let latest = self.points.last().map(|point| point.id);
        // The base is persisted with the journal, before the answer.
        let journal =
            self.journals.entry(journal_key(offer, key.task)).or_insert_with(|| Journal {
                base: if disk.base == BaseChoice::Latest { latest } else { None },
                ..Journal::default()
            });
        let mut durable: BTreeSet<u64> = journal.entries.keys().copied().collect();
        durable.extend(&journal.claimed);
        if self.plant == Plant::StoreClaimsTooMuch {
            let blocks = disk.block_size.block_count(disk.size_bytes);
            durable.extend((0..blocks).find(|block| !durable.contains(block)));
        }
        let base = journal.base;
        let durable = runs_of(durable);
        let base = match self.points.iter().find(|point| Some(point.id) == base) {
            None => BaseAnswer::NotAsked,
            Some(point) => BaseAnswer::Usable {
                point: point.id,
                size_bytes: point.images[usize::from(key.task)].size_bytes,
                change_id: None,
                damaged: Vec::new(),
                mask: Vec::new(),
                fallback_reason: None,
            },
        };
        self.reports.push_back(StoreReport::TaskOpened { key, base, durable });
        Ok(())
    }

    fn need_base(&mut self, key: TaskKey, leaf: u64) -> Result<(), String> {
        let offer = &self.sessions[&key.session].offer;
        let base = self.journals[&journal_key(offer, key.task)].base;
        let point = self.points.iter().find(|point| Some(point.id) == base);
        let image = &point.ok_or("NeedBase without a base")?.images[usize::from(key.task)];
        let end = ((leaf + 1) * NODE_CHILDREN).min(image.blocks.len() as u64);
        let ids: Vec<BlockId> = (leaf * NODE_CHILDREN..end).map(|block| image.id(block)).collect();
        if ids.is_empty() {
            return Err(format!("NeedBase of leaf {leaf}, beyond the base"));
        }
        self.reports.push_back(StoreReport::BaseIds { key, leaf, ids });
        Ok(())
    }

    fn seal(&mut self, key: TaskKey) -> Result<(), String> {
        self.flush(key.session);
        let session = self.sessions.get_mut(&key.session).ok_or("Seal of no session")?;
        session.sealed.insert(key.task);
        let early =
            usize::from(self.plant == Plant::CommitTooEarly && session.offer.disks.len() > 1);
        if session.sealed.len() + early >= session.offer.disks.len() {
            self.commit_due = Some(key.session);
        }
        self.reports.push_back(StoreReport::Sealed { key, bytes_stored: 1 });
        Ok(())
    }

    fn commit(&mut self, session: SessionId) -> Result<(), String> {
        self.commit_due = None;
        let offer = self.sessions[&session].offer.clone();
        let mut images = Vec::new();
        for task in 0..offer.disks.len() {
            images.push(self.content_of(&offer, task as u16)?);
        }
        for task in 0..offer.disks.len() {
            self.journals.remove(&journal_key(&offer, task as u16));
        }
        let id = PointId::new(2 + self.points.len() as u64, [0; 10]);
        self.points.push(Point { id, session: Some(session), images });
        self.reports.push_back(StoreReport::Committed { session, point: id, deleted: Vec::new() });
        Ok(())
    }

    /// The disk as a restore would find it.
    fn content_of(&self, offer: &SessionOffer, task: u16) -> Result<Image, String> {
        let disk = &offer.disks[usize::from(task)];
        let journal = self.journals.get(&journal_key(offer, task)).ok_or("no journal to commit")?;
        let base = self.points.iter().find(|point| Some(point.id) == journal.base);
        let base = base.map(|point| &point.images[usize::from(task)]);
        let mut image = Image {
            identity: disk.identity.clone(),
            size_bytes: disk.size_bytes,
            block_size: disk.block_size,
            blocks: Vec::new(),
        };
        for block in 0..disk.block_size.block_count(disk.size_bytes) {
            let missing = || format!("disk {task} is committed without block {block}");
            image.blocks.push(match journal.entries.get(&block).ok_or_else(missing)? {
                Entry::Zero => 0,
                Entry::Unchanged => {
                    let base = base.ok_or("unchanged without a base")?;
                    *base.blocks.get(block as usize).ok_or("unchanged beyond the base's end")?
                }
                Entry::Block(id) => *self.packs.get(id).ok_or("a block whose bytes never came")?,
            });
            if let Some(Entry::Block(id)) = journal.entries.get(&block)
                && *id != id_of(image.blocks[block as usize], image.len(block))
            {
                return Err(format!("block {block} of disk {task} is another block"));
            }
        }
        Ok(image)
    }
}

fn journal_key(offer: &SessionOffer, task: u16) -> JournalKey {
    let disk = &offer.disks[usize::from(task)];
    (disk.identity.clone(), disk.snapshot.clone(), disk.block_size.bytes())
}
