//! What may happen next, drawn from the seed.
//!
//! In: the world's random numbers. Out: commands to the store, time, restores, verifications.

use std::sync::Arc;

use gantry_common::ids::SessionId;
use gantry_common::manage::Retention;
use gantry_common::session::store_port::{StoreCommand, TaskKey};
use gantry_common::wire::{BaseChoice, Mark, SessionKind, TaskTotals};
use gantry_dataplane::store::engine::Store;
use gantry_dataplane::store::error::StoreError;

use super::backup::{Backup, Step, draw_base, one};
use super::vm::offer;
use super::world::World;

/// The kinds of actions, with how often each is drawn.
const ACTIONS: [(Action, u32); 12] = [
    (Action::Advance, 50),
    (Action::Start, 7),
    (Action::Detach, 2),
    (Action::Tick, 4),
    (Action::Poll, 12),
    (Action::Check, 8),
    (Action::Restore, 1),
    (Action::Verify, 1),
    (Action::Intrude, 1),
    (Action::Keep, 3),
    (Action::Collect, 9),
    (Action::Spoil, 1),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Advance,
    Start,
    Detach,
    Tick,
    Poll,
    Check,
    Restore,
    Verify,
    Intrude,
    Keep,
    Collect,
    Spoil,
}

impl World {
    /// Does one thing.
    pub fn act(&mut self) {
        let total: u32 = ACTIONS.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.random.u32(0..total);
        let action = ACTIONS.iter().find(|(_, weight)| {
            let is_it = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            is_it
        });
        match action.map_or(Action::Poll, |(action, _)| *action) {
            Action::Advance => self.advance(),
            Action::Start => self.start(),
            Action::Detach => self.detach_some(),
            Action::Tick => {
                self.now_ms += self.random.u64(1..7000);
                self.poll();
            }
            Action::Poll => self.poll(),
            Action::Check => {
                let count = self.random.usize(1..4);
                self.answer_checks(count);
            }
            Action::Restore => self.restore_some(),
            Action::Verify => self.verify(),
            Action::Intrude => self.intrude(),
            Action::Keep => self.keep_or_delete(),
            Action::Collect if self.random.u8(0..6) == 0 => self.collect_to_the_end(),
            Action::Collect => self.collect(),
            Action::Spoil => self.spoil(),
        }
    }

    /// Begins, resumes or takes over a backup of some VM.
    fn start(&mut self) {
        let vm = self.random.usize(0..self.vms.len());
        let own: Vec<SessionId> = self
            .backups
            .iter()
            .filter(|(_, backup)| backup.vm == vm)
            .map(|(session, _)| *session)
            .collect();
        if own.iter().any(|session| self.backups[session].is_attached) {
            return;
        }
        let unfinished = own.iter().rev().find(|session| !self.backups[session].is_committed);
        match (self.random.u8(0..4), unfinished.copied(), own.last().copied()) {
            (0 | 1, Some(session), _) => self.open(session),
            (2, _, Some(session)) if self.random.bool() => self.open(session),
            (2, ..) if self.vms[vm].frozen.is_some() => {
                let session = self.begin(vm, false, None);
                self.open(session);
            }
            _ => {
                let session = self.begin(vm, true, None);
                self.open(session);
            }
        }
    }

    /// A new session of a VM: of a new snapshot, or of the one that is there.
    pub fn begin(&mut self, vm: usize, anew: bool, base: Option<BaseChoice>) -> SessionId {
        let frozen = match (&self.vms[vm].frozen, anew) {
            (Some(frozen), false) => Arc::clone(frozen),
            _ => self.vms[vm].freeze(&mut self.random),
        };
        let name = self.vms[vm].name.clone();
        let points = self.points.of(&name);
        let base = base.unwrap_or_else(|| draw_base(&mut self.random, &points));
        let session = self.next_session();
        let mut offer = offer(&name, &frozen, self.created_ms(), base);
        if self.has_retention {
            let points_min = self.random.u32(1..4);
            offer.retention = Some(Retention { points_min, ..Retention::default() });
        }
        self.backups.insert(session, Backup::new(vm, frozen, offer, session));
        session
    }

    /// Opens a session and each of its disks.
    pub fn open(&mut self, session: SessionId) {
        let backup = &self.backups[&session];
        let (offer, disks) = (backup.offer.clone(), backup.disks.len());
        self.note(format!("open {session} of {} ({})", offer.name, offer.disks[0].snapshot));
        self.give(StoreCommand::OpenSession { session, offer, kind: SessionKind::Backup });
        if self.backups[&session].is_committed && !self.backups[&session].has_failed {
            self.note(format!("{session} is committed already"));
            self.give(StoreCommand::Detach { session });
            return;
        }
        for task in 0..disks {
            if self.backups[&session].has_failed || !self.backups[&session].is_attached {
                return;
            }
            self.open_task(TaskKey { session, task: task as u16 });
        }
    }

    fn open_task(&mut self, key: TaskKey) {
        // What others had of this disk may be taken over, and then goes.
        let identity = {
            let own = &self.backups[&key.session];
            (own.offer.name.clone(), own.frozen.disks[usize::from(key.task)].identity.clone())
        };
        for (session, other) in &mut self.backups {
            if *session != key.session && other.offer.name == identity.0 {
                for (disk, task) in other.frozen.disks.iter().zip(&mut other.disks) {
                    if disk.identity == identity.1 {
                        task.acknowledged = Default::default();
                    }
                }
            }
        }
        self.give(StoreCommand::OpenTask { key });
    }

    /// Brings some disk of some session further.
    fn advance(&mut self) {
        let open: Vec<TaskKey> = self
            .backups
            .iter()
            .filter(|(_, backup)| backup.is_attached)
            .flat_map(|(session, backup)| {
                let key = |task| TaskKey { session: *session, task: task as u16 };
                backup.unfinished().into_iter().map(key)
            })
            .collect();
        if open.is_empty() {
            return self.start();
        }
        let key = open[self.random.usize(0..open.len())];
        if self.backups[&key.session].has_failed {
            return self.detach(key.session);
        }
        for _ in 0..self.random.u8(1..4) {
            self.step(key);
        }
    }

    /// One step of a disk.
    pub fn step(&mut self, key: TaskKey) {
        let number = usize::from(key.task);
        let Some(backup) = self.backups.get_mut(&key.session) else { return };
        if backup.has_failed || !backup.is_attached || backup.disks[number].is_sealing {
            return;
        }
        if !backup.disks[number].is_open {
            return self.open_task(key);
        }
        let step = backup.disks[number].step(&backup.frozen.disks[number], &mut self.random);
        if !matches!(step, Step::Wait) {
            self.note(format!("{} {number}: {step:?}", key.session));
        }
        let Some(backup) = self.backups.get_mut(&key.session) else { return };
        let task = &mut backup.disks[number];
        match step {
            Step::AskBase => {
                task.asked_base = true;
                self.give(StoreCommand::NeedBase { key, leaf: 0 });
            }
            Step::Mark(block, kind) => {
                task.accounted.insert(one(block));
                let marks = vec![Mark { run: one(block), kind }];
                self.give(StoreCommand::Marks { key, marks });
            }
            Step::Query(blocks) => self.query(key, blocks),
            Step::Append(block) => self.append(key, block),
            Step::Seal => {
                task.is_sealing = true;
                self.give(StoreCommand::Seal {
                    key,
                    totals: TaskTotals::default(),
                    mask: Vec::new(),
                });
            }
            Step::Wait => {
                self.poll();
                self.answer_checks(1);
            }
        }
    }

    fn detach_some(&mut self) {
        let attached: Vec<SessionId> = self
            .backups
            .iter()
            .filter(|(_, backup)| backup.is_attached)
            .map(|(session, _)| *session)
            .collect();
        if !attached.is_empty() {
            let session = attached[self.random.usize(0..attached.len())];
            self.detach(session);
        }
    }

    /// The connection of a session is lost, or over.
    pub fn detach(&mut self, session: SessionId) {
        self.note(format!("detach {session}"));
        self.give(StoreCommand::Detach { session });
        let backup = &self.backups[&session];
        assert!(!backup.is_attached, "{session} is detached when the store says so");
    }

    /// Brings a session to its end, if nothing fails.
    pub fn finish(&mut self, session: SessionId) {
        for _ in 0..10_000 {
            let backup = &self.backups[&session];
            if backup.has_failed || backup.is_committed || !backup.is_attached {
                break;
            }
            for task in 0..backup.disks.len() {
                self.step(TaskKey { session, task: task as u16 });
            }
            self.settle();
        }
        if self.backups[&session].is_attached {
            self.detach(session);
        }
    }

    /// Spoils a byte of a pack, in runs that are about damage.
    fn spoil(&mut self) {
        let packs = self.disk.files().into_iter().filter(|path| path.ends_with(".pack"));
        let packs: Vec<String> = packs.collect();
        if !self.is_spoiling || packs.is_empty() {
            return;
        }
        let path = &packs[self.random.usize(0..packs.len())];
        let offset = self.random.u64(0..64 << 10);
        self.disk.rot(path, offset, 1 << self.random.u8(0..8));
        self.note(format!("{path} is spoilt at byte {offset}"));
        self.points.is_damaged = true;
        self.stats.spoilt += 1;
    }

    /// Another process tries to open the repository.
    fn intrude(&mut self) {
        match Store::open(self.disk.clone()) {
            Err(StoreError::Locked { .. }) => {}
            _ if self.may_fail() => {}
            other => panic!("a second writer came in: {other:?}"),
        }
    }
}
