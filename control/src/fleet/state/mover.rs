//! One mover as gantryd knows it, and every task that the two share.
//!
//! In: what the mover says of its tasks. Out: steps of them. Invariant: what is kept for a mover is
//! bounded, whatever it says. Must not: know about connections.

use std::collections::{BTreeMap, BTreeSet};

use gantry_common::control::{Command, MoverFacts, TaskOutcome, TaskStanding};
use gantry_common::ids::TaskId;

use super::task::{Phase, Step, Task};
use super::{Action, LinkId};
use crate::fleet::view::{EnrolledMover, MoverView, TaskEvent};
use crate::limits;

/// A mover.
pub(super) struct Mover {
    /// As the registry knows it; nothing until it connects.
    pub(super) enrolled: Option<EnrolledMover>,
    pub(super) link: Option<LinkId>,
    /// When it was last heard after a `Hello`; at first, when it was first spoken of.
    pub(super) heard_ms: u64,
    pub(super) refused: Option<String>,
    pub(super) software: String,
    pub(super) facts: MoverFacts,
    pub(super) load_hundredths: u32,
    pub(super) tasks: BTreeMap<TaskId, Task>,
    /// Tasks that nobody wants any more, until a `Hello` does not name them.
    pub(super) forgotten: BTreeSet<TaskId>,
    is_lost: bool,
}

impl Mover {
    pub(super) fn new(now_ms: u64) -> Mover {
        Mover {
            enrolled: None,
            link: None,
            heard_ms: now_ms,
            refused: None,
            software: String::new(),
            facts: MoverFacts::default(),
            load_hundredths: 0,
            tasks: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            is_lost: false,
        }
    }

    /// Its name for a person.
    pub(super) fn name(&self) -> String {
        self.enrolled.as_ref().map_or_else(|| "(unknown)".into(), |known| known.name.clone())
    }

    /// Its `Hello` names these tasks: what each needs.
    pub(super) fn reconcile(&mut self, tasks: Vec<TaskStanding>) -> Vec<(TaskId, Step)> {
        let named: BTreeMap<TaskId, Option<TaskOutcome>> =
            tasks.into_iter().map(|standing| (standing.task, standing.ended)).collect();
        let mut steps = Vec::new();
        self.tasks.retain(|_, task| task.owned || !task.is_ended());
        for (id, task) in &mut self.tasks {
            steps.push((*id, task.greet(*id, named.get(id))));
        }
        // What nobody owns and its mover has lost is of no use to anybody.
        self.tasks.retain(|id, task| task.owned || named.contains_key(id) || task.is_untold());
        self.forgotten.retain(|id| named.contains_key(id));
        for (id, outcome) in named {
            if self.forgotten.contains(&id) {
                let command = match outcome {
                    None => Command::Stop { task: id },
                    Some(_) => Command::Forget { task: id },
                };
                steps.push((id, Step { commands: vec![command], ended: None }));
            } else {
                self.tasks.entry(id).or_insert_with(|| {
                    Task::new(outcome.map_or(Phase::Running, Phase::Ended), false)
                });
            }
        }
        steps
    }

    /// It carries this task out; whether somebody wants to hear of it.
    pub(super) fn progress(&mut self, id: TaskId) -> Result<bool, String> {
        if self.forgotten.contains(&id) {
            return Ok(false);
        }
        let task = self.shown(id)?;
        task.seen();
        Ok(task.owned && !task.is_ended())
    }

    /// This task has ended there.
    pub(super) fn ended(&mut self, id: TaskId, outcome: TaskOutcome) -> Result<Step, String> {
        if self.forgotten.contains(&id) {
            return Ok(Step { commands: vec![Command::Forget { task: id }], ended: None });
        }
        Ok(self.shown(id)?.end(outcome))
    }

    fn shown(&mut self, id: TaskId) -> Result<&mut Task, String> {
        if !self.tasks.contains_key(&id) && self.tasks.len() >= limits::MOVER_TASKS_MAX {
            return Err(format!("reports more than {} tasks", limits::MOVER_TASKS_MAX));
        }
        Ok(self.tasks.entry(id).or_insert_with(|| Task::new(Phase::Running, false)))
    }

    pub(super) fn remember_forgotten(&mut self, id: TaskId) {
        if self.forgotten.len() >= limits::MOVER_FORGOTTEN_MAX {
            self.forgotten.pop_first();
        }
        self.forgotten.insert(id);
    }

    /// It has been silent for too long: every owner that has not been told yet is.
    pub(super) fn tell_lost(&mut self) -> Vec<Action> {
        self.is_lost = true;
        let event = TaskEvent::MoverLost { since_ms: self.heard_ms };
        let untold = |task: &Task| task.owned && !task.told_lost && !task.is_ended();
        let untold = self.tasks.iter_mut().filter(|(_, task)| untold(task));
        untold
            .map(|(id, task)| {
                task.told_lost = true;
                Action::Tell { task: *id, event: event.clone() }
            })
            .collect()
    }

    /// It is back: who was told that it was lost is told so, unless the task has ended.
    pub(super) fn tell_back(&mut self) -> Vec<Action> {
        self.is_lost = false;
        let told = self.tasks.iter_mut().filter(|(_, task)| task.told_lost);
        told.filter_map(|(id, task)| {
            task.told_lost = false;
            let event = TaskEvent::MoverBack;
            (!task.is_ended()).then_some(Action::Tell { task: *id, event })
        })
        .collect()
    }

    pub(super) fn view(&self, connected_since_ms: Option<u64>) -> Option<MoverView> {
        let enrolled = self.enrolled.as_ref()?;
        let running = |task: &&Task| !task.is_ended();
        let orphans = self.tasks.iter().filter(|(_, task)| !task.owned).map(|(id, _)| *id);
        Some(MoverView {
            pin: enrolled.pin,
            name: enrolled.name.clone(),
            role: enrolled.role,
            connected_since_ms,
            lost_since_ms: self.is_lost.then_some(self.heard_ms),
            refused: self.refused.clone(),
            software: self.software.clone(),
            facts: self.facts.clone(),
            load_hundredths: self.load_hundredths,
            tasks_running: self.tasks.values().filter(running).count(),
            orphans: orphans.collect(),
        })
    }
}
