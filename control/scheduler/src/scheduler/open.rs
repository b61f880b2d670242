//! New machines: whose snapshot is made next, and whether it may be made at all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gantry_common::transport_mode::TransportMode;

use crate::decision::{Decision, HoldReason, OpenReason};
use crate::names::{ProxyName, RepositoryName, SessionName, SessionVm, TaskId, VmName};
use crate::placement::PlacementReason;
use crate::request::VmRequest;
use crate::resources::GuardState;

use super::state::{Machine, Phase, Place, RepositoryState, SessionState, TaskState};
use super::{RequestError, Scheduler};

/// A session's turn at opening machines.
struct Turn {
    session: SessionName,
    sequence: u64,
    candidates: std::vec::IntoIter<VmName>,
}

impl Scheduler {
    /// Opens machines, one for the session with the best claim at a time, until nothing fits.
    /// Among sessions of equal standing, machines that would lengthen the night go before all.
    /// Within one call resources only shrink, so that a machine is tried once.
    pub(super) fn open_machines(&mut self, now: Duration, decisions: &mut Vec<Decision>) {
        // Most calls come when every slot is taken: then only who is new must hear why it waits.
        let news = std::mem::take(&mut self.news);
        if !news && !self.has_free_slots() {
            return;
        }
        let waiting = self.sessions.iter().filter(|(_, state)| state.has_waiting());
        let mut turns: Vec<Turn> = waiting
            .map(|(name, state)| Turn {
                session: name.clone(),
                sequence: state.sequence,
                candidates: state.candidates(now).into_iter(),
            })
            .collect();
        let mut critical = self.backlog.critical(self.slots()).into_iter();
        while let Some(index) = self.best_claim(&turns, now) {
            let steps = |held: Option<&SessionState>| held.map_or(0, |state| state.steps(now));
            let least = steps(self.sessions.get(&turns[index].session));
            let opened = self.open_first(critical.by_ref(), now, decisions, |scheduler, key| {
                steps(scheduler.sessions.get(&key.session)) >= least
            });
            let turn = &mut turns[index];
            let session = turn.session.clone();
            let keys =
                turn.candidates.by_ref().map(|vm| SessionVm { session: session.clone(), vm });
            if !opened && !self.open_first(keys, now, decisions, |_, _| true) {
                turns.swap_remove(index);
            }
        }
    }

    /// Opens the first of these that may be opened now; the others hear why they wait.
    fn open_first(
        &mut self,
        keys: impl Iterator<Item = SessionVm>,
        now: Duration,
        decisions: &mut Vec<Decision>,
        has_turn: impl Fn(&Scheduler, &SessionVm) -> bool,
    ) -> bool {
        for key in keys {
            let waits = self.machines.get(&key).is_some_and(|held| held.phase == Phase::Waiting);
            if !waits || !has_turn(self, &key) {
                continue;
            }
            match self.may_open(&key) {
                Ok(repository) => {
                    decisions.push(self.open(&key, repository, now));
                    return true;
                }
                Err(reason) => self.hold(&key, reason, decisions),
            }
        }
        false
    }

    /// Tasks that can run at a time, as things are.
    fn slots(&self) -> u64 {
        let proxies = self.proxies.iter().filter(|state| state.serves());
        let proxies: u64 = proxies.map(|state| u64::from(state.facts.slots)).sum();
        let repositories = self.repositories.values().filter(|state| state.facts.enabled);
        proxies.min(repositories.map(|state| u64::from(state.facts.slots)).sum())
    }

    fn has_free_slots(&self) -> bool {
        let mut proxies = self.proxies.iter();
        let mut repositories = self.repositories.values();
        proxies.any(|state| state.serves() && state.used < state.facts.slots)
            && repositories.any(|state| state.facts.enabled && state.slots_free() > 0)
    }

    fn best_claim(&self, turns: &[Turn], now: Duration) -> Option<usize> {
        let claim = |turn: &Turn| {
            let state = self.sessions.get(&turn.session);
            state.map_or(f64::INFINITY, |state| state.claim(now))
        };
        let keyed = turns.iter().enumerate().map(|(index, turn)| (claim(turn), turn, index));
        let least = keyed.min_by(|(a, one, _), (b, other, _)| {
            a.total_cmp(b).then(one.sequence.cmp(&other.sequence))
        });
        least.map(|(_, _, index)| index)
    }

    fn hold(&mut self, key: &SessionVm, reason: HoldReason, decisions: &mut Vec<Decision>) {
        let Some(machine) = self.machines.get_mut(key) else { return };
        if machine.held.as_ref() != Some(&reason) {
            machine.held = Some(reason.clone());
            decisions.push(Decision::Hold { machine: key.clone(), task: None, reason });
        }
    }

    /// Whether the machine's snapshot may be made: the repository it would go to, or why not.
    fn may_open(&self, key: &SessionVm) -> Result<RepositoryName, HoldReason> {
        let no_repository =
            |name: &RepositoryName| HoldReason::RepositoryDisabled { repository: name.clone() };
        let Some(machine) = self.machines.get(key) else {
            return Err(no_repository(&RepositoryName::from("")));
        };
        if let Some(session) = self.working.get(&key.vm) {
            return Err(HoldReason::OtherSession { session: session.clone() });
        }
        for state in machine.datastores.iter().filter_map(|name| self.datastores.get(name)) {
            let datastore = || state.facts.name.clone();
            if state.facts.guard != GuardState::Ok {
                return Err(HoldReason::Latency { datastore: datastore() });
            }
            let snapshots_max = state.facts.snapshots_max;
            if state.open >= snapshots_max {
                return Err(HoldReason::SnapshotLimit { datastore: datastore(), snapshots_max });
            }
        }
        let repository = self.choose_repository(machine)?;
        self.one_can_start(machine, repository)?;
        Ok(repository.facts.name.clone())
    }

    /// The repository with the most of its slots free; among equals, the one with the higher rate
    /// for each task, then with more free space.
    fn choose_repository(&self, machine: &Machine) -> Result<&RepositoryState, HoldReason> {
        let first = &machine.request.repositories[0];
        let mut refusal = HoldReason::RepositoryDisabled { repository: first.clone() };
        let mut best: Option<&RepositoryState> = None;
        for name in &machine.request.repositories {
            let Some(state) = self.repositories.get(name).filter(|state| state.facts.enabled)
            else {
                continue;
            };
            if !state.has_space(machine.request.store_bytes) {
                let (repository, wanted_bytes) = (name.clone(), machine.request.store_bytes);
                refusal = HoldReason::RepositorySpace { repository, wanted_bytes };
            } else if state.slots_free() == 0 {
                let (repository, slots) = (name.clone(), state.facts.slots);
                refusal = HoldReason::RepositorySlots { repository, slots };
            } else if best.is_none_or(|best| repository_rank(state) > repository_rank(best)) {
                best = Some(state);
            }
        }
        best.ok_or(refusal)
    }

    fn one_can_start(&self, machine: &Machine, to: &RepositoryState) -> Result<(), HoldReason> {
        let mut tried = BTreeSet::new();
        let mut refusal = None;
        for task in &machine.tasks {
            // Disks alike in what matters would get the same answer.
            if task.disk.refused.is_empty() && !tried.insert(&task.disk.datastore) {
                continue;
            }
            match self.find_place(machine, task, to) {
                Ok(_) => return Ok(()),
                Err(reason) => refusal = refusal.or(Some(reason)),
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Counts the machine as open and reserves slots for as many of its disks as can start.
    fn open(&mut self, key: &SessionVm, repository: RepositoryName, now: Duration) -> Decision {
        self.sequence += 1;
        let sequence = self.sequence;
        let mut reserved = 0;
        let mut disks = 0;
        if let Some(mut machine) = self.machines.remove(key) {
            machine.phase = Phase::Opening;
            machine.opened = sequence;
            machine.held = None;
            machine.repository = Some(repository.clone());
            reserved = self.reserve(key, &mut machine, &repository);
            disks = machine.tasks.len();
            self.count_open(key, &machine, &repository, now);
            self.machines.insert(key.clone(), machine);
        }
        let state = self.repositories.get(&repository);
        let reason = OpenReason {
            disks_at_once: reserved,
            disks,
            repository: repository.clone(),
            repository_slots_free: state.map_or(0, RepositoryState::slots_free),
        };
        Decision::SnapshotNow { machine: key.clone(), repository, reason }
    }

    /// Takes in a machine whose snapshot stands already, as after the caller was restarted: tasks
    /// that run hold the slots of where they run, were they beyond what is free; the others stand in
    /// line. A proxy that is not known any more holds nothing.
    ///
    /// # Errors
    /// See [`RequestError`]; nothing is taken in then.
    pub fn add_open(
        &mut self,
        request: VmRequest,
        running: &BTreeMap<TaskId, (ProxyName, TransportMode)>,
        now: Duration,
    ) -> Result<(), RequestError> {
        let key = SessionVm { session: request.session.clone(), vm: request.vm.clone() };
        let repository = request.repositories.first().cloned();
        self.add_vm(request, now)?;
        let (Some(mut machine), Some(repository)) = (self.machines.remove(&key), repository) else {
            return Ok(());
        };
        self.sequence += 1;
        machine.phase = Phase::Open;
        machine.opened = self.sequence;
        machine.repository = Some(repository.clone());
        self.count_open(&key, &machine, &repository, now);
        for index in 0..machine.tasks.len() {
            let disk = &machine.tasks[index].disk;
            let place = running.get(&disk.task).and_then(|(proxy, mode)| self.held(proxy, *mode));
            let Some(place) = place else {
                self.stand_in_line(&machine, index);
                continue;
            };
            if let Some(state) = self.datastores.get_mut(&disk.datastore) {
                state.running += 1;
            }
            self.take(&place, &key, &repository);
            machine.tasks[index].state = TaskState::Running(place);
        }
        self.machines.insert(key, machine);
        Ok(())
    }

    /// A place that is in use whatever is free.
    fn held(&self, proxy: &ProxyName, mode: TransportMode) -> Option<Place> {
        let index = *self.proxy_index.get(proxy)?;
        let state = self.proxies.get(index).filter(|state| !state.gone)?;
        let reason = PlacementReason {
            proxy: proxy.clone(),
            mode,
            candidates: 1,
            used: state.used,
            slots: state.facts.slots,
            load_percent: state.facts.load_percent,
            passed_over: None,
            affinity: None,
            before: None,
        };
        Some(Place { proxy: index, mode, reason })
    }

    fn reserve(&mut self, key: &SessionVm, machine: &mut Machine, to: &RepositoryName) -> usize {
        let mut reserved = 0;
        for index in 0..machine.tasks.len() {
            let Some(state) = self.repositories.get(to).filter(|state| state.slots_free() > 0)
            else {
                break;
            };
            if let Ok(place) = self.find_place(machine, &machine.tasks[index], state) {
                self.take(&place, key, to);
                machine.tasks[index].state = TaskState::Reserved(place);
                reserved += 1;
            }
        }
        reserved
    }

    fn count_open(
        &mut self,
        key: &SessionVm,
        machine: &Machine,
        to: &RepositoryName,
        now: Duration,
    ) {
        self.working.insert(key.vm.clone(), key.session.clone());
        self.backlog.remove(machine);
        for name in &machine.datastores {
            if let Some(state) = self.datastores.get_mut(name) {
                state.open += 1;
            }
        }
        if let Some(state) = self.repositories.get_mut(to) {
            state.expected_bytes = state.expected_bytes.saturating_add(machine.expected_bytes);
        }
        if let Some(session) = self.sessions.get_mut(&key.session) {
            session.dequeue(machine);
            session.served = now;
        }
    }
}

/// Larger is better. Shares are compared as fractions of a million to stay whole.
fn repository_rank(state: &RepositoryState) -> (u64, u64, u64) {
    let slots = u64::from(state.facts.slots.max(1));
    let free = u64::from(state.slots_free()) * 1_000_000 / slots;
    let rate = state.facts.bytes_per_second_max.unwrap_or(u64::MAX) / u64::from(state.used + 1);
    (free, rate, state.facts.free_bytes.saturating_sub(state.expected_bytes))
}
