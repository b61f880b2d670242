//! The store on its disk, the sources before it, and the model of what the store has promised.
//!
//! In: actions. Out: panics with seed, crash and trace where the store breaks a promise. The model
//! learns only from the store's reports: what was never reported binds nobody.

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;
use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::{PointId, RepositoryId, SessionId};
use gantry_common::session::store_port::{StoreCommand, StoreReport, TaskKey};
use gantry_dataplane::payload::{Payload, PayloadPool};
use gantry_dataplane::store::admin::init_storage;
use gantry_dataplane::store::engine::{Check, Marker, Store};
use gantry_dataplane::store::error::StoreError;
use gantry_dataplane::store::index::Finding;
use gantry_dataplane::store::storage::faulty::FaultyStorage;
use gantry_dataplane::store::superblock::Superblock;

use super::backup::{Backup, blocks_of};
use super::check::Restoring;
use super::content::{self, KEY};
use super::model::{Points, State};
use super::stats::Stats;
use super::trace::Trace;
use super::vm::Vm;

/// See the module's text.
#[derive(Debug)]
pub struct World {
    pub random: Rng,
    pub disk: FaultyStorage,
    pub store: Option<Store<FaultyStorage>>,
    pub checks: VecDeque<Check>,
    pub now_ms: u64,
    pub vms: Vec<Vm>,
    pub backups: BTreeMap<SessionId, Backup>,
    pub points: Points,
    pub stats: Stats,
    /// Errors are about in this life: commands may fail.
    pub is_faulty: bool,
    /// The next failure is what the store should say.
    pub expects_refusal: bool,
    pub marker: Option<Marker<FaultyStorage>>,
    /// Sessions bring a retention.
    pub has_retention: bool,
    /// Bytes of packs are spoilt now and then.
    pub is_spoiling: bool,
    pub was_cancelled: bool,
    /// Points that the collection that runs purges once it knows what must stay.
    pub purging: Vec<PointId>,
    /// A collection may have given something back.
    pub has_collected: bool,
    /// Restores that go on.
    pub restores: Vec<Restoring>,
    pool: PayloadPool,
    batches: u64,
    sessions: u8,
    trace: Trace,
}

impl World {
    /// A new repository on `disk`, opened, with `vms` VMs.
    pub fn new(title: String, seed: u64, disk: FaultyStorage, vms: usize) -> World {
        let superblock = Superblock::new(RepositoryId([1; 16]), KEY, 1);
        init_storage(&disk, &superblock).expect("a new repository on an empty disk");
        let mut random = Rng::with_seed(seed);
        let random_bits = random.u8(..);
        World {
            vms: (0..vms).map(|number| Vm::new(number, &mut random)).collect(),
            random,
            disk,
            store: None,
            checks: VecDeque::new(),
            now_ms: 0,
            backups: BTreeMap::new(),
            points: Points::default(),
            stats: Stats::default(),
            is_faulty: false,
            expects_refusal: false,
            marker: None,
            has_retention: random_bits & 3 == 0,
            is_spoiling: random_bits & 28 == 0,
            was_cancelled: false,
            purging: Vec::new(),
            has_collected: false,
            restores: Vec::new(),
            pool: PayloadPool::new(24, 256 << 10).expect("memory for payloads"),
            batches: 0,
            sessions: 0,
            trace: Trace::new(title),
        }
    }

    /// Notes what happens.
    pub fn note(&mut self, line: impl Into<String>) {
        let line = format!("[{}] {}", self.disk.operations(), line.into());
        self.trace.note(line);
    }

    /// Whether the power went off in this life.
    pub fn is_cut(&self) -> bool {
        self.disk.cut_operation().is_some()
    }

    /// Whether the store may fail at what it is asked.
    pub fn may_fail(&self) -> bool {
        self.is_cut() || self.is_faulty
    }

    pub fn store(&mut self) -> &mut Store<FaultyStorage> {
        self.store.as_mut().expect("the store is open")
    }

    /// Opens the store.
    ///
    /// # Errors
    /// The store's.
    pub fn try_open(&mut self) -> Result<(), StoreError> {
        let store = Store::open(self.disk.clone())?;
        let notes = store.notes().join("; ");
        let is_lost = notes.contains("is gone") && !self.points.is_damaged;
        assert!(!is_lost, "a pack is missing that nobody took away: {notes}");
        self.note(format!("opened: {notes}"));
        self.store = Some(store);
        Ok(())
    }

    /// Gives the store a command and takes in what it says.
    pub fn give(&mut self, command: StoreCommand<Payload>) {
        let now_ms = self.now_ms;
        self.store().handle(command, now_ms);
        self.take_reports();
    }

    /// Lets the store's work go on.
    pub fn poll(&mut self) {
        let now_ms = self.now_ms;
        self.store().poll(now_ms);
        while let Some(check) = self.store().next_check() {
            self.checks.push_back(check);
        }
        self.take_reports();
        self.take_collected();
    }

    /// Answers up to `count` of the checks that wait, in random order.
    pub fn answer_checks(&mut self, count: usize) {
        for _ in 0..count.min(self.checks.len()) {
            let at = self.random.usize(0..self.checks.len());
            let Some(check) = self.checks.remove(at) else { continue };
            match self.store().reader().checker().check(&check) {
                Some(found) => self.store().handle_checked(&check, found == Finding::Good),
                None => self.store().abandon_check(&check),
            }
        }
        self.take_reports();
    }

    /// Lets everything happen that needs no time.
    pub fn settle(&mut self) {
        loop {
            self.poll();
            self.answer_checks(usize::MAX);
            if self.checks.is_empty() && self.store().in_flight() == 0 {
                return;
            }
        }
    }

    /// Sends one block.
    pub fn append(&mut self, key: TaskKey, block: u64) {
        let Some(backup) = self.backups.get_mut(&key.session) else { return };
        let number = usize::from(key.task);
        let disk = &backup.frozen.disks[number];
        let sent = content::block(disk.seed(block), disk.len_of(block));
        let task = &mut backup.disks[number];
        task.wanted.retain(|wanted| *wanted != block);
        task.accounted.insert(super::backup::one(block));
        let payload = loop {
            match self.pool.take(sent.stored.len()) {
                Some(payload) => break payload,
                None => self.poll(),
            }
        };
        let mut payload = payload;
        payload.stored_mut().copy_from_slice(&sent.stored);
        self.give(StoreCommand::Append { key, block, head: sent.head, payload });
    }

    /// Asks whether blocks are known.
    pub fn query(&mut self, key: TaskKey, blocks: Vec<(u64, gantry_common::ids::BlockId)>) {
        self.batches += 1;
        let batch = self.batches;
        if let Some(backup) = self.backups.get_mut(&key.session) {
            backup.disks[usize::from(key.task)].queries.insert(batch, blocks.clone());
        }
        self.give(StoreCommand::Query { key, batch, blocks });
    }

    /// An id for a new session.
    pub fn next_session(&mut self) -> SessionId {
        self.sessions += 1;
        SessionId([self.sessions; 16])
    }

    /// When the next session says that it was created: they are in order.
    pub fn created_ms(&self) -> u64 {
        1000 + u64::from(self.sessions)
    }

    /// The pool's buffers, all of which must come back.
    pub fn pool_is_whole(&self) -> bool {
        self.pool.free() == self.pool.slots()
    }

    /// Forgets what dies with the process.
    pub fn drop_store(&mut self) {
        // Retention may have deleted points without having said so.
        for backup in self.backups.values() {
            let is_ending = backup.disks.iter().all(|disk| disk.is_sealing);
            if is_ending && !backup.is_committed && backup.offer.retention.is_some() {
                self.points.doubt(&backup.offer.name);
            }
        }
        self.restores.clear();
        self.marker = None;
        self.store = None;
        self.checks.clear();
        self.backups.values_mut().for_each(Backup::disconnect);
    }

    fn take_reports(&mut self) {
        while let Some(report) = self.store().next_report() {
            self.report(report);
        }
    }

    fn report(&mut self, report: StoreReport) {
        match report {
            StoreReport::SessionOpened { session, committed } => {
                if let Some(point) = committed {
                    self.committed(session, point);
                }
                if let Some(backup) = self.backups.get_mut(&session) {
                    backup.is_attached = true;
                    backup.is_committed |= committed.is_some();
                }
            }
            StoreReport::TaskOpened { key, base, durable } => {
                self.task_opened(key, &base, &durable)
            }
            StoreReport::BaseIds { key, ids, .. } => {
                if let Some(base) = self.task(key).and_then(|task| task.base.as_mut()) {
                    base.ids = Some(ids);
                }
            }
            StoreReport::Answered { key, batch, known } => self.answered(key, batch, &known),
            StoreReport::Appended { .. } | StoreReport::Sealed { .. } => {}
            StoreReport::Durable { key, runs } => self.durable(key, &runs),
            StoreReport::Committed { session, point, deleted } => {
                self.note(format!("committed {point} of {session}, deleted {deleted:?}"));
                self.committed(session, point);
                self.points.set(&deleted, State::Deleted);
                // Where retention failed in the middle, points may be gone that it does not name.
                let backup = &self.backups[&session];
                if backup.offer.retention.is_some() && self.may_fail() {
                    self.points.doubt(&backup.offer.name);
                }
            }
            StoreReport::Detached { session } => {
                if let Some(backup) = self.backups.get_mut(&session) {
                    backup.disconnect();
                }
            }
            StoreReport::Failed { session, task, failure } => {
                self.note(format!("failed {session} {task:?}: {failure:?}"));
                let may_fail = self.may_fail() || self.expects_refusal;
                assert!(may_fail, "{session} disk {task:?}: {failure:?}");
                self.stats.failures += 1;
                if let Some(backup) = self.backups.get_mut(&session) {
                    backup.has_failed = true;
                }
            }
        }
    }

    fn task(&mut self, key: TaskKey) -> Option<&mut super::backup::DiskTask> {
        self.backups.get_mut(&key.session)?.disks.get_mut(usize::from(key.task))
    }

    fn task_opened(
        &mut self,
        key: TaskKey,
        base: &gantry_common::wire::BaseAnswer,
        durable: &[Run],
    ) {
        self.note(format!("opened {} {}: {base:?}, durable {durable:?}", key.session, key.task));
        let number = usize::from(key.task);
        let Some(backup) = self.backups.get_mut(&key.session) else { return };
        let disk = &backup.frozen.disks[number];
        let base_content = match base {
            gantry_common::wire::BaseAnswer::Usable { point, .. } => {
                self.points.disk(*point, &disk.identity).cloned()
            }
            _ => None,
        };
        let task = &mut backup.disks[number];
        let claimed: RunSet = durable.iter().copied().collect();
        // Progress is lost with the base that it refers to.
        let excused = self.points.is_damaged
            || self.is_faulty
            || task.acknowledged_base.is_some_and(|base| !self.points.is_live(base));
        for block in task.acknowledged.iter().flat_map(blocks_of) {
            assert!(
                claimed.contains(block) || excused,
                "{} disk {number}: block {block} was durable, the resumed task does not have it",
                key.session
            );
        }
        for run in claimed.iter() {
            assert!(run.end() <= Some(disk.blocks()), "durable beyond the disk: {run:?}");
        }
        self.stats.resumed += claimed.blocks();
        if task.acknowledged.is_empty() && !claimed.is_empty() {
            self.stats.adopted += claimed.blocks();
        }
        task.open(base, durable, base_content);
    }

    fn answered(&mut self, key: TaskKey, batch: u64, known: &[bool]) {
        let Some(task) = self.task(key) else { return };
        let Some(asked) = task.queries.remove(&batch) else { return };
        assert_eq!(asked.len(), known.len(), "an answer for each id");
        let mut count = 0;
        for ((block, _), known) in asked.into_iter().zip(known) {
            if *known {
                count += 1;
                task.accounted.insert(super::backup::one(block));
            } else {
                task.wanted.push(block);
            }
        }
        self.stats.known += count;
    }

    fn durable(&mut self, key: TaskKey, runs: &[Run]) {
        let Some(task) = self.task(key) else { return };
        for run in runs {
            for block in blocks_of(*run) {
                // A known block may be durable before the rest of its query is answered.
                let asked = task.queries.values().flatten().any(|(other, _)| *other == block);
                let brought = asked || task.accounted.contains(block);
                assert!(brought, "block {block} is durable, but was never brought");
            }
            task.acknowledged.insert(*run);
        }
    }

    fn committed(&mut self, session: SessionId, point: PointId) {
        let Some(backup) = self.backups.get_mut(&session) else {
            panic!("{session} is committed, which nobody began");
        };
        assert_eq!(point, backup.point, "{session} makes one point");
        backup.is_committed = true;
        let (name, frozen) = (backup.offer.name.clone(), std::sync::Arc::clone(&backup.frozen));
        self.points.commit(point, &name, frozen);
        self.stats.committed += 1;
        self.superseded(session);
    }
    /// The journals of a name up to this session are gone: nobody may count on their progress.
    pub fn superseded(&mut self, session: SessionId) {
        let Some(own) = self.backups.get(&session) else { return };
        let (name, created_ms) = (own.offer.name.clone(), own.offer.created_ms);
        let older =
            |other: &&mut Backup| other.offer.name == name && other.offer.created_ms <= created_ms;
        self.backups.values_mut().filter(older).for_each(Backup::forget);
    }
}
