//! The resource scheduler: one for all sessions.
//!
//! ```text
//! machine:  waiting --SnapshotNow--> opening --snapshot_opened--> open --snapshot_removed--> gone
//! task:     waiting --> reserved (while its snapshot is made) --> running --finished/failed--> ended
//!              ^------------------- proxy_lost, road_failed ---------'
//! ```
//!
//! In: facts, requests, reports of what happened, `now` as a time since any fixed moment. Out:
//! [`Decision`]s from [`Scheduler::next`], to be asked after every report and every few seconds.
//! Invariants: no slot is given twice, no datastore gets more open snapshots than its limit, a machine
//! is worked on by one session at a time; the disks of open snapshots go before new machines, and what
//! a lost proxy left goes before those. Must not: believe a report about what it does not know (such
//! calls return false).
//!
//! A lost proxy may still be reading. Whoever calls `proxy_lost` sees to it that the old mover's
//! ticket is void before a task is resumed elsewhere.

mod facts;
mod state;
mod place;
mod line;
mod open;
mod reports;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::decision::Decision;
use crate::limits;
use crate::names::{
    DatastoreName, ProxyName, RepositoryName, SessionName, SessionVm, TaskId, VmName,
};
use crate::placement::ModeSet;
use crate::request::VmRequest;

use line::LineRank;
use state::{
    Backlog, DatastoreState, Machine, ProxyState, RepositoryState, SessionState, TaskState,
};

/// A request that cannot be queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The same machine twice in one session.
    #[error("{0} is queued already")]
    Twice(SessionVm),
    /// Numbers of tasks are never used again.
    #[error("{1} of {0} is known already: a task's number is used once")]
    TaskKnown(SessionVm, TaskId),
    /// There is nothing to do.
    #[error("{0} has no disk to back up")]
    NoDisk(SessionVm),
    /// Beyond [`limits::DISKS_PER_VM_MAX`].
    #[error("{0} has {1} disks, more than can be scheduled")]
    TooManyDisks(SessionVm, usize),
    /// Beyond [`limits::VMS_MAX`].
    #[error("{0} is one machine too many in the queue: let running sessions end first")]
    QueueFull(SessionVm),
    /// Nowhere to go.
    #[error("{0} names no repository")]
    NoRepository(SessionVm),
}

/// What remains to be done after a cancel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cancelled {
    /// To be stopped; report `finished` or `failed` of each.
    pub running: Vec<TaskId>,
    /// Snapshots made or being made; report `snapshot_removed` (or `snapshot_failed`) of each.
    pub snapshots: Vec<SessionVm>,
}

/// The queue and the books of who has which slot.
#[derive(Debug, Clone, Default)]
pub struct Scheduler {
    proxies: Vec<ProxyState>,
    proxy_index: BTreeMap<ProxyName, usize>,
    /// For each datastore, what each proxy (by index) can do there.
    reach: BTreeMap<DatastoreName, Vec<ModeSet>>,
    repositories: BTreeMap<RepositoryName, RepositoryState>,
    datastores: BTreeMap<DatastoreName, DatastoreState>,
    sessions: BTreeMap<SessionName, SessionState>,
    machines: BTreeMap<SessionVm, Machine>,
    task_owner: BTreeMap<TaskId, SessionVm>,
    /// Machines with a snapshot made or being made, and by which session.
    working: BTreeMap<VmName, SessionName>,
    /// Tasks of open snapshots that do not run, in the order in which they are served.
    line: BTreeSet<(LineRank, TaskId)>,
    backlog: Backlog,
    /// A machine was queued since the last look at the queue.
    news: bool,
    sequence: u64,
}

impl Scheduler {
    /// Without facts and requests.
    pub fn new() -> Scheduler {
        Scheduler::default()
    }

    /// What is to be done now. Idempotent until something is reported or the time has come for more.
    pub fn next(&mut self, now: Duration) -> Vec<Decision> {
        let mut decisions = Vec::new();
        self.serve_line(now, &mut decisions);
        self.open_machines(now, &mut decisions);
        decisions
    }

    /// Queues a machine.
    ///
    /// # Errors
    /// See [`RequestError`]; nothing is queued then.
    pub fn add_vm(&mut self, request: VmRequest, now: Duration) -> Result<(), RequestError> {
        let key = SessionVm { session: request.session.clone(), vm: request.vm.clone() };
        self.check_request(&key, &request)?;
        self.sequence += 1;
        let machine = Machine::new(request, self.sequence, now);
        for task in &machine.tasks {
            self.task_owner.insert(task.disk.task, key.clone());
        }
        for datastore in &machine.datastores {
            self.know_datastore(datastore);
        }
        let sequence = self.sequence;
        let session = self
            .sessions
            .entry(key.session.clone())
            .or_insert_with(|| SessionState::new(sequence, now));
        session.priority = machine.priority();
        session.enqueue(&machine);
        self.backlog.add(&machine);
        self.machines.insert(key, machine);
        self.news = true;
        Ok(())
    }

    fn check_request(&self, key: &SessionVm, request: &VmRequest) -> Result<(), RequestError> {
        let key = || key.clone();
        if self.machines.contains_key(&key()) {
            return Err(RequestError::Twice(key()));
        }
        if request.disks.is_empty() {
            return Err(RequestError::NoDisk(key()));
        }
        if request.disks.len() > limits::DISKS_PER_VM_MAX {
            return Err(RequestError::TooManyDisks(key(), request.disks.len()));
        }
        if request.repositories.is_empty() {
            return Err(RequestError::NoRepository(key()));
        }
        if self.machines.len() >= limits::VMS_MAX {
            return Err(RequestError::QueueFull(key()));
        }
        let mut own = BTreeSet::new();
        for disk in &request.disks {
            if self.task_owner.contains_key(&disk.task) || !own.insert(disk.task) {
                return Err(RequestError::TaskKnown(key(), disk.task));
            }
        }
        Ok(())
    }

    /// Nothing is queued, running or open.
    pub fn is_idle(&self) -> bool {
        self.machines.is_empty()
    }

    /// Machines that still wait, are open, or run.
    pub fn machines(&self) -> usize {
        self.machines.len()
    }

    /// Disks that have no place yet, of machines that nobody has cancelled.
    pub fn waiting(&self) -> usize {
        let wanted = self.machines.values().filter(|machine| !machine.cancelled);
        let tasks = wanted.flat_map(|machine| &machine.tasks);
        tasks.filter(|task| matches!(task.state, TaskState::Waiting)).count()
    }

    /// Slots in use or reserved, and all slots, of a proxy.
    pub fn proxy_slots(&self, name: &ProxyName) -> Option<(u32, u32)> {
        let state = &self.proxies[*self.proxy_index.get(name)?];
        Some((state.used, state.facts.slots))
    }

    /// Slots in use or reserved, and all slots, of a repository.
    pub fn repository_slots(&self, name: &RepositoryName) -> Option<(u32, u32)> {
        self.repositories.get(name).map(|state| (state.used, state.facts.slots))
    }

    /// Snapshots open or being made on a datastore.
    pub fn snapshots_open(&self, name: &DatastoreName) -> u32 {
        self.datastores.get(name).map_or(0, |state| state.open)
    }
}

#[cfg(test)]
mod tests;
