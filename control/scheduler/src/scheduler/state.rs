//! What the scheduler remembers of each thing.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use gantry_common::transport_mode::TransportMode;

use crate::decision::HoldReason;
use crate::limits;
use crate::names::{DatastoreName, ProxyName, RepositoryName, SessionVm, VmName};
use crate::placement::{ModeSet, PlacementReason};
use crate::request::{DiskRequest, VmRequest};
use crate::resources::{Datastore, Proxy, Repository};

#[derive(Debug, Clone)]
pub(super) struct ProxyState {
    pub facts: Proxy,
    /// Reserved and running tasks.
    pub used: u32,
    pub lost: bool,
    /// Removed from the configuration; its index stays.
    pub gone: bool,
}

impl ProxyState {
    pub fn serves(&self) -> bool {
        self.facts.enabled && !self.lost && !self.gone
    }
}

#[derive(Debug, Clone)]
pub(super) struct RepositoryState {
    pub facts: Repository,
    /// Reserved and running tasks.
    pub used: u32,
    /// What open machines are expected to write yet.
    pub expected_bytes: u64,
}

impl RepositoryState {
    pub fn slots_free(&self) -> u32 {
        self.facts.slots.saturating_sub(self.used)
    }

    pub fn has_space(&self, bytes: u64) -> bool {
        let wanted = bytes
            .saturating_add(self.expected_bytes)
            .saturating_add(limits::REPOSITORY_HEADROOM_BYTES);
        self.facts.free_bytes >= wanted
    }
}

#[derive(Debug, Clone)]
pub(super) struct DatastoreState {
    pub facts: Datastore,
    /// Snapshots open or being made.
    pub open: u32,
    /// Running tasks that read it.
    pub running: u32,
}

/// Where a task is, or will be, read.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub proxy: usize,
    pub mode: TransportMode,
    pub reason: PlacementReason,
}

#[derive(Debug, Clone)]
pub(super) enum TaskState {
    Waiting,
    Reserved(Place),
    Running(Place),
    Ended,
}

#[derive(Debug, Clone)]
pub(super) struct Task {
    pub disk: DiskRequest,
    pub state: TaskState,
    /// The proxy that it had before; it is resumed then.
    pub before: Option<ProxyName>,
    pub held: Option<HoldReason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Opening,
    Open,
    /// The snapshot is gone or never came; tasks may still be ending.
    Closed,
}

#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub request: VmRequest,
    pub modes: ModeSet,
    /// Largest first.
    pub tasks: Vec<Task>,
    pub datastores: BTreeSet<DatastoreName>,
    pub phase: Phase,
    pub repository: Option<RepositoryName>,
    /// What it is expected to write yet.
    pub expected_bytes: u64,
    pub sequence: u64,
    /// When its snapshot was asked for, as a number that grows.
    pub opened: u64,
    pub added: Duration,
    pub held: Option<HoldReason>,
    /// Nothing of it begins any more.
    pub cancelled: bool,
}

impl Machine {
    pub fn new(mut request: VmRequest, sequence: u64, now: Duration) -> Machine {
        let mut disks = std::mem::take(&mut request.disks);
        disks.sort_by_key(|disk| (Reverse(disk.read_bytes), disk.task));
        let datastores = disks.iter().map(|disk| disk.datastore.clone()).collect();
        let task = |disk| Task { disk, state: TaskState::Waiting, before: None, held: None };
        Machine {
            modes: ModeSet::of(&request.modes),
            tasks: disks.into_iter().map(task).collect(),
            datastores,
            phase: Phase::Waiting,
            repository: None,
            expected_bytes: request.store_bytes,
            sequence,
            opened: 0,
            added: now,
            held: None,
            cancelled: false,
            request,
        }
    }

    pub fn priority(&self) -> u8 {
        self.request.priority.min(limits::PRIORITY_MAX)
    }

    /// The disk that decides how long the machine takes.
    pub fn largest_bytes(&self) -> u64 {
        self.tasks.first().map_or(0, |task| task.disk.read_bytes)
    }

    pub fn all_ended(&self) -> bool {
        self.tasks.iter().all(|task| matches!(task.state, TaskState::Ended))
    }
}

/// What waits over all sessions.
#[derive(Debug, Clone, Default)]
pub(super) struct Backlog {
    by_size: BTreeSet<(Reverse<u64>, u64, SessionVm)>,
    bytes: u64,
}

impl Backlog {
    fn row(machine: &Machine) -> (Reverse<u64>, u64, SessionVm) {
        let (session, vm) = (machine.request.session.clone(), machine.request.vm.clone());
        (Reverse(machine.largest_bytes()), machine.sequence, SessionVm { session, vm })
    }

    fn bytes_of(machine: &Machine) -> u64 {
        machine.tasks.iter().fold(0, |sum, task| sum.saturating_add(task.disk.read_bytes))
    }

    pub fn add(&mut self, machine: &Machine) {
        if self.by_size.insert(Backlog::row(machine)) {
            self.bytes = self.bytes.saturating_add(Backlog::bytes_of(machine));
        }
    }

    pub fn remove(&mut self, machine: &Machine) {
        if self.by_size.remove(&Backlog::row(machine)) {
            self.bytes = self.bytes.saturating_sub(Backlog::bytes_of(machine));
        }
    }

    /// Machines whose largest disk takes a slot half as long as the whole backlog takes all slots,
    /// or longer, largest first: begun much later, they alone would lengthen the night.
    pub fn critical(&self, slots: u64) -> Vec<SessionVm> {
        let rest_bytes = self.bytes / slots.max(1);
        let critical =
            self.by_size.iter().take_while(|(size, _, _)| size.0.saturating_mul(2) >= rest_bytes);
        critical.map(|(_, _, key)| key.clone()).collect()
    }
}

/// A session's waiting machines and its share.
#[derive(Debug, Clone)]
pub(super) struct SessionState {
    pub priority: u8,
    pub sequence: u64,
    /// Reserved and running tasks.
    pub used: u32,
    /// When it last got something, or came.
    pub served: Duration,
    /// Largest first: what takes longest begins first, so that the night ends early.
    by_size: BTreeSet<(Reverse<u64>, u64, VmName)>,
    /// In the order of coming, for those that waited too long.
    by_age: BTreeSet<(u64, Duration, VmName)>,
}

impl SessionState {
    pub fn new(sequence: u64, now: Duration) -> SessionState {
        SessionState {
            priority: 0,
            sequence,
            used: 0,
            served: now,
            by_size: BTreeSet::new(),
            by_age: BTreeSet::new(),
        }
    }

    pub fn enqueue(&mut self, machine: &Machine) {
        let (sequence, vm) = (machine.sequence, machine.request.vm.clone());
        self.by_size.insert((Reverse(machine.largest_bytes()), sequence, vm.clone()));
        self.by_age.insert((sequence, machine.added, vm));
    }

    pub fn dequeue(&mut self, machine: &Machine) {
        let (sequence, vm) = (machine.sequence, machine.request.vm.clone());
        self.by_size.remove(&(Reverse(machine.largest_bytes()), sequence, vm.clone()));
        self.by_age.remove(&(sequence, machine.added, vm));
    }

    /// Waiting machines in the order in which they are tried.
    pub fn candidates(&self, now: Duration) -> Vec<VmName> {
        let overdue = |added: Duration| now.saturating_sub(added) >= limits::OVERDUE;
        let old = self.by_age.iter().take_while(|(_, added, _)| overdue(*added));
        let mut all: Vec<VmName> = old.map(|(_, _, vm)| vm.clone()).collect();
        let first: BTreeSet<VmName> = all.iter().cloned().collect();
        let rest = self.by_size.iter().map(|(_, _, vm)| vm);
        all.extend(rest.filter(|vm| first.is_empty() || !first.contains(vm)).cloned());
        all
    }

    pub fn has_waiting(&self) -> bool {
        !self.by_age.is_empty()
    }

    /// The session with the least claim figure goes next: slots in use over a weight that doubles
    /// with each priority step and each [`limits::AGING_STEP`] without being served.
    pub fn claim(&self, now: Duration) -> f64 {
        (f64::from(self.used) + 1.0) / steps_to_weight(self.steps(now))
    }

    /// Priority with what was earned by waiting.
    pub fn steps(&self, now: Duration) -> u64 {
        let waited = now.saturating_sub(self.served).as_secs() / limits::AGING_STEP.as_secs();
        u64::from(self.priority) + waited.min(48)
    }
}

fn steps_to_weight(steps: u64) -> f64 {
    // At most 2^58, exact.
    (1u64 << steps.min(58)) as f64
}
