//! Tasks of open snapshots: they go first, since a snapshot costs production while it stands.

use std::cmp::Reverse;
use std::time::Duration;

use crate::decision::{Assignment, Decision, HoldReason};
use crate::names::{SessionVm, TaskId};
use crate::resources::GuardState;

use super::Scheduler;
use super::state::{Machine, Phase, Place, TaskState};

/// Order in the line: what ran before, then by priority, then the oldest snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LineRank {
    fresh: bool,
    priority: Reverse<u8>,
    opened: u64,
    order: usize,
}

impl LineRank {
    fn of(machine: &Machine, index: usize) -> LineRank {
        LineRank {
            fresh: machine.tasks[index].before.is_none(),
            priority: Reverse(machine.priority()),
            opened: machine.opened,
            order: index,
        }
    }
}

impl Scheduler {
    /// Puts a task into the line.
    pub(super) fn stand_in_line(&mut self, machine: &Machine, index: usize) {
        self.line.insert((LineRank::of(machine, index), machine.tasks[index].disk.task));
    }

    /// Takes a task out of the line; its rank must not have changed since.
    pub(super) fn leave_line(&mut self, machine: &Machine, index: usize) {
        self.line.remove(&(LineRank::of(machine, index), machine.tasks[index].disk.task));
    }

    pub(super) fn serve_line(&mut self, now: Duration, decisions: &mut Vec<Decision>) {
        let waiting: Vec<(LineRank, TaskId)> = self.line.iter().copied().collect();
        for (rank, task) in waiting {
            let Some(key) = self.task_owner.get(&task).cloned() else { continue };
            let Some(mut machine) = self.machines.remove(&key) else { continue };
            let index = machine.tasks.iter().position(|held| held.disk.task == task);
            if let Some(index) = index.filter(|_| machine.phase == Phase::Open) {
                match self.place_open(&key, &mut machine, index) {
                    Ok(place) => {
                        self.line.remove(&(rank, task));
                        decisions.push(self.start(&key, &mut machine, index, place, now));
                    }
                    Err(reason) => {
                        let held = &mut machine.tasks[index].held;
                        if held.as_ref() != Some(&reason) {
                            *held = Some(reason.clone());
                            let (machine, task) = (key.clone(), Some(task));
                            decisions.push(Decision::Hold { machine, task, reason });
                        }
                    }
                }
            }
            self.machines.insert(key, machine);
        }
    }

    /// The place that was reserved if it is still good, else another one, with its slots taken.
    fn place_open(
        &mut self,
        key: &SessionVm,
        machine: &mut Machine,
        index: usize,
    ) -> Result<Place, HoldReason> {
        let state = std::mem::replace(&mut machine.tasks[index].state, TaskState::Waiting);
        if let TaskState::Reserved(place) = state {
            if self.proxies[place.proxy].serves() {
                return Ok(place);
            }
            self.give_back(&place, key, machine);
        }
        let task = &machine.tasks[index];
        let datastore = &task.disk.datastore;
        if let Some(state) = self.datastores.get(datastore) {
            // One at a time still goes through: the snapshot that stands costs the datastore too.
            if state.facts.guard != GuardState::Ok && state.running > 0 {
                return Err(HoldReason::Latency { datastore: datastore.clone() });
            }
        }
        let Some(name) = machine.repository.clone() else {
            let repository = machine.request.repositories[0].clone();
            return Err(HoldReason::RepositoryDisabled { repository });
        };
        let place = match self.repositories.get(&name) {
            Some(repository) if repository.facts.enabled => {
                if repository.slots_free() == 0 {
                    let slots = repository.facts.slots;
                    return Err(HoldReason::RepositorySlots { repository: name, slots });
                }
                self.find_place(machine, task, repository)?
            }
            _ => return Err(HoldReason::RepositoryDisabled { repository: name }),
        };
        self.take(&place, key, &name);
        Ok(place)
    }

    fn start(
        &mut self,
        key: &SessionVm,
        machine: &mut Machine,
        index: usize,
        place: Place,
        now: Duration,
    ) -> Decision {
        let task = &mut machine.tasks[index];
        task.held = None;
        if let Some(state) = self.datastores.get_mut(&task.disk.datastore) {
            state.running += 1;
        }
        if let Some(session) = self.sessions.get_mut(&key.session) {
            session.served = now;
        }
        let repository = machine.repository.clone();
        let assignment = Assignment {
            task: task.disk.task,
            machine: key.clone(),
            proxy: place.reason.proxy.clone(),
            repository: repository.unwrap_or_else(|| machine.request.repositories[0].clone()),
            mode: place.mode,
            resumed: task.before.is_some(),
            reason: place.reason.clone(),
        };
        task.state = TaskState::Running(place);
        Decision::Assign(assignment)
    }
}
