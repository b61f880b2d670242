//! A place for one task: asks `placement`, keeps the books of slots.

use gantry_common::transport_mode::TransportMode;

use crate::decision::HoldReason;
use crate::names::{RepositoryName, SessionVm};
use crate::placement::{Candidate, PlacementReason, choose};

use super::Scheduler;
use super::state::{Machine, Place, ProxyState, RepositoryState, Task};

/// How many proxies reach a disk, how many of them are in service, and the best mode of all.
#[derive(Default)]
struct Survey {
    reaching: usize,
    serving: usize,
    best: Option<TransportMode>,
}

impl Scheduler {
    /// Where this task could run now, or why nowhere.
    pub(super) fn find_place(
        &self,
        machine: &Machine,
        task: &Task,
        repository: &RepositoryState,
    ) -> Result<Place, HoldReason> {
        let mut survey = Survey::default();
        let reach = self.reach.get(&task.disk.datastore).map_or(&[][..], Vec::as_slice);
        let affinity = &repository.facts.affinity;
        let candidates = self.proxies.iter().enumerate().filter_map(|(index, state)| {
            let mode = road(machine, task, state, *reach.get(index)?)?;
            survey.reaching += 1;
            survey.best = Some(survey.best.map_or(mode, |best| best.min(mode)));
            if !state.serves() {
                return None;
            }
            survey.serving += 1;
            (state.used < state.facts.slots).then(|| Candidate {
                index,
                name: &state.facts.name,
                used: state.used,
                slots: state.facts.slots,
                load_percent: state.facts.load_percent,
                mode,
                preferred: affinity.is_empty() || affinity.contains(&state.facts.name),
            })
        });
        let Some((chosen, count)) = choose(candidates) else {
            return Err(survey.hold(task));
        };
        let has_list = !affinity.is_empty();
        let reason = PlacementReason {
            proxy: chosen.name.clone(),
            mode: chosen.mode,
            candidates: count,
            used: chosen.used,
            slots: chosen.slots,
            load_percent: chosen.load_percent,
            passed_over: survey.best.filter(|best| *best < chosen.mode),
            affinity: has_list.then(|| (repository.facts.name.clone(), chosen.preferred)),
            before: task.before.clone(),
        };
        Ok(Place { proxy: chosen.index, mode: chosen.mode, reason })
    }

    /// Takes the slots of a place.
    pub(super) fn take(&mut self, place: &Place, key: &SessionVm, repository: &RepositoryName) {
        self.proxies[place.proxy].used += 1;
        if let Some(state) = self.repositories.get_mut(repository) {
            state.used += 1;
        }
        if let Some(session) = self.sessions.get_mut(&key.session) {
            session.used += 1;
        }
    }

    /// Gives them back.
    pub(super) fn give_back(&mut self, place: &Place, key: &SessionVm, machine: &Machine) {
        let proxy = &mut self.proxies[place.proxy];
        proxy.used = proxy.used.saturating_sub(1);
        let repository = machine.repository.as_ref();
        if let Some(state) = repository.and_then(|name| self.repositories.get_mut(name)) {
            state.used = state.used.saturating_sub(1);
        }
        if let Some(session) = self.sessions.get_mut(&key.session) {
            session.used = session.used.saturating_sub(1);
        }
    }
}

/// The best mode by which this proxy may read this disk.
fn road(
    machine: &Machine,
    task: &Task,
    state: &ProxyState,
    reach: crate::placement::ModeSet,
) -> Option<TransportMode> {
    if state.gone {
        return None;
    }
    let (name, allowed) = (&state.facts.name, &machine.request.proxies);
    let refused = &task.disk.refused;
    let mut modes = reach.and(machine.modes).iter();
    let mode =
        modes.find(|mode| refused.is_empty() || !refused.contains(&(name.clone(), *mode)))?;
    (allowed.is_empty() || allowed.contains(name)).then_some(mode)
}

impl Survey {
    fn hold(&self, task: &Task) -> HoldReason {
        match (self.reaching, self.serving) {
            (0, _) => HoldReason::NoRoad { datastore: task.disk.datastore.clone() },
            (proxies, 0) => HoldReason::ProxiesAway { proxies },
            (_, proxies) => HoldReason::ProxySlots { proxies },
        }
    }
}
