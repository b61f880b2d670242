//! What happened: snapshots made and removed, tasks ended, proxies lost, sessions cancelled.
//!
//! A report about something unknown changes nothing and returns false, so that it may come twice.

use crate::names::{ProxyName, SessionName, SessionVm, TaskId};

use super::state::{Machine, Phase, Place, TaskState};
use super::{Cancelled, Scheduler};

impl Scheduler {
    /// The snapshot that was asked for stands: its disks may be read.
    pub fn snapshot_opened(&mut self, key: &SessionVm) -> bool {
        let Some(mut machine) = self.machines.remove(key) else { return false };
        let expected = machine.phase == Phase::Opening;
        if expected {
            machine.phase = Phase::Open;
            for index in 0..machine.tasks.len() {
                if !matches!(machine.tasks[index].state, TaskState::Ended) {
                    self.stand_in_line(&machine, index);
                }
            }
        }
        self.machines.insert(key.clone(), machine);
        expected
    }

    /// It could not be made, and none is left behind: the machine leaves the queue.
    pub fn snapshot_failed(&mut self, key: &SessionVm) -> bool {
        let opening = self.machines.get(key).is_some_and(|held| held.phase == Phase::Opening);
        opening && self.close(key, true)
    }

    /// The snapshot is gone. Tasks of it that do not run are dropped; the machine is free for another
    /// session once the running ones have ended too.
    pub fn snapshot_removed(&mut self, key: &SessionVm) -> bool {
        let held = self.machines.get(key);
        let open = held.is_some_and(|held| matches!(held.phase, Phase::Open | Phase::Opening));
        open && self.close(key, true)
    }

    /// What the machine's backup has stored so far, so that space is not counted twice.
    pub fn stored(&mut self, key: &SessionVm, stored_bytes: u64) -> bool {
        let Some(machine) = self.machines.get_mut(key) else { return false };
        let expected = machine.request.store_bytes.saturating_sub(stored_bytes);
        let (before, counted) = (machine.expected_bytes, machine.phase != Phase::Waiting);
        machine.expected_bytes = expected;
        let repository = machine.repository.as_ref().filter(|_| counted);
        if let Some(state) = repository.and_then(|name| self.repositories.get_mut(name)) {
            state.expected_bytes = state.expected_bytes.saturating_sub(before) + expected;
        }
        true
    }

    /// A task ended well.
    pub fn finished(&mut self, task: TaskId) -> bool {
        self.end(task)
    }

    /// A task ended badly, for good in this session. Its siblings go on unless cancelled.
    pub fn failed(&mut self, task: TaskId) -> bool {
        self.end(task)
    }

    fn end(&mut self, task: TaskId) -> bool {
        let Some((key, mut machine, index)) = self.take_out(task) else { return false };
        self.leave_line(&machine, index);
        self.clear(&key, &mut machine, index, TaskState::Ended);
        self.put_back(key, machine);
        true
    }

    /// The road did not work: the task is tried again by another mode or proxy, first in line.
    pub fn road_failed(&mut self, task: TaskId) -> bool {
        let Some((key, mut machine, index)) = self.take_out(task) else { return false };
        let running = matches!(machine.tasks[index].state, TaskState::Running(_));
        if running {
            let place = self.interrupt(&key, &mut machine, index);
            if let Some(Place { proxy, mode, .. }) = place {
                let refused = (self.proxies[proxy].facts.name.clone(), mode);
                machine.tasks[index].disk.refused.insert(refused);
            }
        }
        self.put_back(key, machine);
        running
    }

    /// A task went down though its road and its proxy are well: it waits again, first in line.
    pub fn interrupted(&mut self, task: TaskId) -> bool {
        let Some((key, mut machine, index)) = self.take_out(task) else { return false };
        let running = matches!(machine.tasks[index].state, TaskState::Running(_));
        if running {
            self.interrupt(&key, &mut machine, index);
        }
        self.put_back(key, machine);
        running
    }

    /// A proxy is lost: its tasks wait again, first in line, to be resumed elsewhere. They are
    /// returned. Those of cancelled machines, or without a snapshot, have ended with it.
    pub fn proxy_lost(&mut self, name: &ProxyName) -> Vec<TaskId> {
        let Some(lost) = self.proxy_index.get(name).copied() else { return Vec::new() };
        self.proxies[lost].lost = true;
        let mut again = Vec::new();
        let at_work = self.machines.iter().filter(|(_, held)| held.phase != Phase::Waiting);
        let keys: Vec<SessionVm> = at_work.map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(mut machine) = self.machines.remove(&key) else { continue };
            for index in 0..machine.tasks.len() {
                match &machine.tasks[index].state {
                    TaskState::Running(place) if place.proxy == lost => {
                        self.interrupt(&key, &mut machine, index);
                        if matches!(machine.tasks[index].state, TaskState::Waiting) {
                            again.push(machine.tasks[index].disk.task);
                        }
                    }
                    // Its place in line, if it has one already, stays as it is.
                    TaskState::Reserved(place) if place.proxy == lost => {
                        self.clear(&key, &mut machine, index, TaskState::Waiting);
                    }
                    _ => {}
                }
            }
            self.put_back(key, machine);
        }
        again
    }

    /// A lost proxy answers again, with all of its slots free.
    pub fn proxy_back(&mut self, name: &ProxyName) -> bool {
        let Some(index) = self.proxy_index.get(name) else { return false };
        self.proxies[*index].lost = false;
        true
    }

    /// A proxy is taken out of the configuration; what it ran waits again, as after a loss.
    pub fn remove_proxy(&mut self, name: &ProxyName) -> Vec<TaskId> {
        let again = self.proxy_lost(name);
        if let Some(index) = self.proxy_index.get(name) {
            self.proxies[*index].lost = false;
            self.proxies[*index].gone = true;
        }
        again
    }

    /// Drops what does not run yet of a machine, and says what must be stopped and removed.
    pub fn cancel_vm(&mut self, key: &SessionVm) -> Cancelled {
        let mut cancelled = Cancelled::default();
        let Some(machine) = self.machines.get_mut(key) else { return cancelled };
        machine.cancelled = true;
        for task in &machine.tasks {
            if matches!(task.state, TaskState::Running(_)) {
                cancelled.running.push(task.disk.task);
            }
        }
        match machine.phase {
            Phase::Opening | Phase::Open => {
                cancelled.snapshots.push(key.clone());
                self.close(key, false);
            }
            Phase::Waiting | Phase::Closed => {
                self.close(key, true);
            }
        }
        cancelled
    }

    /// Cancels all machines of a session.
    pub fn cancel_session(&mut self, session: &SessionName) -> Cancelled {
        let of_session = self.machines.keys().filter(|key| key.session == *session);
        let keys: Vec<SessionVm> = of_session.cloned().collect();
        let mut all = Cancelled::default();
        for key in keys {
            let one = self.cancel_vm(&key);
            all.running.extend(one.running);
            all.snapshots.extend(one.snapshots);
        }
        all
    }

    fn take_out(&mut self, task: TaskId) -> Option<(SessionVm, Machine, usize)> {
        let key = self.task_owner.get(&task)?.clone();
        let machine = self.machines.get(&key)?;
        let index = machine.tasks.iter().position(|held| held.disk.task == task)?;
        if machine.phase == Phase::Waiting || matches!(machine.tasks[index].state, TaskState::Ended)
        {
            return None;
        }
        let machine = self.machines.remove(&key)?;
        Some((key, machine, index))
    }

    /// Frees a task's slots and gives it a new state; the place it had.
    fn clear(
        &mut self,
        key: &SessionVm,
        machine: &mut Machine,
        index: usize,
        state: TaskState,
    ) -> Option<Place> {
        let task = &mut machine.tasks[index];
        task.held = None;
        let datastore = task.disk.datastore.clone();
        match std::mem::replace(&mut task.state, state) {
            TaskState::Reserved(place) => {
                self.give_back(&place, key, machine);
                Some(place)
            }
            TaskState::Running(place) => {
                self.give_back(&place, key, machine);
                if let Some(state) = self.datastores.get_mut(&datastore) {
                    state.running = state.running.saturating_sub(1);
                }
                Some(place)
            }
            TaskState::Waiting | TaskState::Ended => None,
        }
    }

    /// A running task stands in line again, first; without a snapshot, or cancelled, it has ended.
    fn interrupt(&mut self, key: &SessionVm, machine: &mut Machine, index: usize) -> Option<Place> {
        let resumes = machine.phase == Phase::Open && !machine.cancelled;
        let state = if resumes { TaskState::Waiting } else { TaskState::Ended };
        let place = self.clear(key, machine, index, state)?;
        machine.tasks[index].before = Some(self.proxies[place.proxy].facts.name.clone());
        if resumes {
            self.stand_in_line(machine, index);
        }
        Some(place)
    }

    /// Drops the tasks that do not run; with `snapshot_gone`, the machine is no longer open.
    fn close(&mut self, key: &SessionVm, snapshot_gone: bool) -> bool {
        let Some(mut machine) = self.machines.remove(key) else { return false };
        for index in 0..machine.tasks.len() {
            if !matches!(machine.tasks[index].state, TaskState::Running(_)) {
                self.leave_line(&machine, index);
                self.clear(key, &mut machine, index, TaskState::Ended);
            }
        }
        if snapshot_gone {
            self.uncount(key, &mut machine);
        }
        self.put_back(key.clone(), machine);
        true
    }

    /// The machine no longer counts on its datastores.
    fn uncount(&mut self, key: &SessionVm, machine: &mut Machine) {
        let phase = std::mem::replace(&mut machine.phase, Phase::Closed);
        match phase {
            Phase::Opening | Phase::Open => {
                for name in &machine.datastores {
                    if let Some(state) = self.datastores.get_mut(name) {
                        state.open = state.open.saturating_sub(1);
                    }
                }
            }
            Phase::Waiting => {
                if let Some(session) = self.sessions.get_mut(&key.session) {
                    session.dequeue(machine);
                }
                self.backlog.remove(machine);
            }
            Phase::Closed => {}
        }
    }

    /// Keeps the machine if something of it is left, else strikes it off.
    fn put_back(&mut self, key: SessionVm, machine: Machine) {
        if machine.phase != Phase::Closed || !machine.all_ended() {
            self.machines.insert(key, machine);
            return;
        }
        for task in &machine.tasks {
            self.task_owner.remove(&task.disk.task);
        }
        let repository = machine.repository.as_ref();
        if let Some(state) = repository.and_then(|name| self.repositories.get_mut(name)) {
            state.expected_bytes = state.expected_bytes.saturating_sub(machine.expected_bytes);
        }
        if self.working.get(&key.vm) == Some(&key.session) {
            self.working.remove(&key.vm);
        }
        let first = SessionVm { session: key.session.clone(), vm: "".into() };
        let next = self.machines.range(first..).next();
        if next.is_none_or(|(other, _)| other.session != key.session) {
            self.sessions.remove(&key.session);
        }
    }
}
