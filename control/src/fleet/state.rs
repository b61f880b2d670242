//! What gantryd knows of its movers and their tasks, and what it says to them next.
//!
//! In: connections that come and go, what comes over them, what owners of tasks want, the time.
//! Out: [`Action`]s, to be carried out in order. Pure: no clock, no network, no thread; a seeded
//! simulation drives it against movers that crash and connections that break.
//!
//! * Nothing is said on a connection before its mover's `Hello`, so that no command crosses it.
//! * A mover's newest connection counts; what still comes over an older one does not.
//! * A task is told at every `Hello` until the mover shows that it knows it ([`task`]).
//! * An end is kept until its owner forgets it, and the mover is told to forget it at every `Hello`
//!   that still names it.
//! * A mover that is silent for [`SILENCE_SECONDS_MAX`] is lost; its tasks' owners are told, and the
//!   tasks stay: what to do about them is the owners' decision.

use std::collections::BTreeMap;

use gantry_common::control::{
    Command, Question, Report, SILENCE_SECONDS_MAX, TaskOutcome, TaskStanding,
};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{PeerId, TaskId};
use gantry_common::limits::SESSION_DISKS_MAX;
use gantry_common::secret::Secret;
use gantry_transport::CloseReason;

use self::checks::{check_credential, check_hello, usage};
use self::mover::Mover;
use self::questions::Questions;
use self::task::{Phase, Step, Task};
use super::view::{EnrolledMover, MoverView, TaskEvent};
use crate::limits;

mod checks;
mod mover;
mod questions;
mod task;

pub use self::questions::Reply;

const SILENCE_MS_MAX: u64 = SILENCE_SECONDS_MAX * 1000;

/// A connection of a mover, numbered by who accepted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A question, numbered over all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// What is to be done, in order. It does not print: commands carry work and credentials.
#[derive(Clone, PartialEq, Eq)]
pub enum Action {
    /// Say this.
    Send {
        /// On which connection.
        link: LinkId,
        /// What.
        command: Command,
    },
    /// Close a connection. Nothing that still comes over it counts.
    Close {
        /// Which.
        link: LinkId,
        /// Why, for the mover and the log.
        reason: CloseReason,
    },
    /// Tell a task's owner.
    Tell {
        /// Which task.
        task: TaskId,
        /// What.
        event: TaskEvent,
    },
    /// Tell who asked.
    Reply {
        /// Which question.
        ask: AskId,
        /// The answer.
        reply: Reply,
    },
}

struct Link {
    mover: PeerId,
    since_ms: u64,
    heard_ms: u64,
    sent_ms: u64,
    greeted: bool,
}

/// Movers and tasks. See the module.
pub struct FleetState {
    software: String,
    movers: BTreeMap<PeerId, Mover>,
    links: BTreeMap<LinkId, Link>,
    /// Which mover carries out a task that somebody here has asked for.
    places: BTreeMap<TaskId, PeerId>,
    questions: Questions,
    actions: Vec<Action>,
}

impl FleetState {
    /// No mover, no task. `software` is gantryd's name and version, told to movers.
    pub fn new(software: impl Into<String>) -> FleetState {
        FleetState {
            software: software.into(),
            movers: BTreeMap::new(),
            links: BTreeMap::new(),
            places: BTreeMap::new(),
            questions: Questions::default(),
            actions: Vec::new(),
        }
    }

    /// What is to be done since the last call.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// A connection of a mover that the registry knows. It replaces an older one of the mover.
    pub fn connected(&mut self, link: LinkId, enrolled: EnrolledMover, now_ms: u64) {
        let id = enrolled.pin;
        let mover = self.movers.entry(id).or_insert_with(|| Mover::new(now_ms));
        mover.enrolled = Some(enrolled);
        if let Some(older) = mover.link {
            let reason = CloseReason::Failed("the mover has connected anew".into());
            self.drop_link(older, Some(reason));
        }
        if let Some(mover) = self.movers.get_mut(&id) {
            mover.link = Some(link);
        }
        let [since_ms, heard_ms, sent_ms] = [now_ms; 3];
        self.links.insert(link, Link { mover: id, since_ms, heard_ms, sent_ms, greeted: false });
    }

    /// A connection is gone.
    pub fn link_lost(&mut self, link: LinkId) {
        self.drop_link(link, None);
    }

    /// Something came over a connection.
    pub fn received(&mut self, link: LinkId, report: Report, now_ms: u64) {
        let Some(known) = self.links.get_mut(&link) else { return };
        known.heard_ms = now_ms;
        let (id, greeted) = (known.mover, known.greeted);
        let Some(mover) = self.movers.get_mut(&id) else { return };
        if greeted {
            mover.heard_ms = now_ms;
        }
        let violation = match report {
            Report::Hello { protocol, software, facts, tasks } if !greeted => {
                match check_hello(protocol, &software, &facts, &tasks) {
                    Err(violation) => Some(violation),
                    Ok(()) => {
                        (mover.software, mover.facts) = (software, facts);
                        self.greet(link, id, tasks, now_ms);
                        None
                    }
                }
            }
            Report::Hello { .. } => Some("said Hello twice on one connection".into()),
            _ if !greeted => Some("did not say Hello first".into()),
            Report::Progress { disks, .. } if disks.len() > SESSION_DISKS_MAX => {
                Some(format!("reports {} disks of one task", disks.len()))
            }
            Report::Progress { task, disks } => {
                let shown = mover.progress(task);
                shown.map(|owned| owned.then(|| self.tell(task, TaskEvent::Progress(disks)))).err()
            }
            Report::Ended { task, outcome } => {
                let ended = mover.ended(task, outcome);
                ended.map(|step| self.take_step(id, task, step, now_ms)).err()
            }
            Report::Answer { number, answer, more } => {
                let ask = AskId(number);
                let reply = self.questions.answer(link, ask, answer, more);
                self.actions.extend(reply.map(|reply| Action::Reply { ask, reply }));
                None
            }
            Report::Idle { load_hundredths, free_bytes } => {
                mover.load_hundredths = load_hundredths;
                if let (Some(repository), Some(free)) = (&mut mover.facts.repository, free_bytes) {
                    repository.free_bytes = free;
                }
                None
            }
        };
        if let Some(what) = violation {
            self.refuse(link, what);
        }
    }

    /// Time has passed: to be called about every second.
    pub fn tick(&mut self, now_ms: u64) {
        for (ask, reply) in self.questions.overdue(now_ms) {
            self.actions.push(Action::Reply { ask, reply });
        }
        let mut silent = Vec::new();
        for (id, link) in &mut self.links {
            let patience = if link.greeted { SILENCE_MS_MAX } else { limits::HELLO_MS_MAX };
            if now_ms.saturating_sub(link.heard_ms) >= patience {
                silent.push(*id);
            } else if link.greeted && now_ms.saturating_sub(link.sent_ms) >= SILENCE_MS_MAX / 3 {
                link.sent_ms = now_ms;
                self.actions.push(Action::Send { link: *id, command: Command::Idle });
            }
        }
        for link in silent {
            let reason = CloseReason::Failed("nothing was heard for too long".into());
            self.drop_link(link, Some(reason));
        }
        for mover in self.movers.values_mut() {
            if now_ms.saturating_sub(mover.heard_ms) >= SILENCE_MS_MAX {
                self.actions.extend(mover.tell_lost());
            }
        }
    }

    /// A new task. Its mover is told now, or when it connects.
    ///
    /// # Errors
    /// The task is known already, too many wait, or a credential is none.
    pub fn run(
        &mut self,
        id: PeerId,
        task: TaskId,
        work: Vec<u8>,
        credentials: Vec<(String, Secret)>,
        now_ms: u64,
    ) -> Result<(), Failure> {
        if self.places.contains_key(&task) {
            return Err(usage(format!("task {task} is there already")));
        }
        if credentials.len() > limits::TASK_CREDENTIALS_MAX {
            return Err(usage(format!("task {task} has {} credentials", credentials.len())));
        }
        let mover = self.movers.entry(id).or_insert_with(|| Mover::new(now_ms));
        if mover.tasks.len() >= limits::MOVER_TASKS_MAX || mover.tasks.contains_key(&task) {
            return Err(usage(format!("mover {id} has too many tasks, or knows {task} already")));
        }
        let mut new = Task::new(Phase::Waiting { work, told: false }, true);
        for (name, content) in credentials {
            check_credential(&name, &content)?;
            new.set_credential(task, &name, content);
        }
        // Its name may be that of a task which was found dead, and forgotten: now it is wanted.
        mover.forgotten.remove(&task);
        mover.tasks.insert(task, new);
        self.places.insert(task, id);
        if let Some(link) = self.ready(id) {
            let started = self.task(task).map(|known| known.start(task));
            self.send(link, started.unwrap_or_default(), now_ms);
        }
        Ok(())
    }

    /// A task of an earlier life of gantryd, or one whose owner went away. If its end is known, its
    /// owner hears it (again); if its mover is here and does not know it, it is dead.
    ///
    /// # Errors
    /// Somebody owns it, or it is known to be another mover's.
    pub fn adopt(&mut self, id: PeerId, task: TaskId, now_ms: u64) -> Result<(), Failure> {
        if self.places.get(&task).is_some_and(|place| *place != id) {
            return Err(usage(format!("task {task} is another mover's")));
        }
        let ready = self.ready(id).is_some();
        let mover = self.movers.entry(id).or_insert_with(|| Mover::new(now_ms));
        let known = mover.tasks.entry(task).or_insert_with(|| Task::new(Phase::Assumed, false));
        if known.owned {
            return Err(usage(format!("task {task} has its owner already")));
        }
        known.owned = true;
        mover.forgotten.remove(&task);
        self.places.insert(task, id);
        let ended = match &known.phase {
            Phase::Ended(outcome) => Some(outcome.clone()),
            Phase::Assumed if ready => known.greet(task, None).ended,
            _ => None,
        };
        if let Some(outcome) = ended {
            self.tell(task, TaskEvent::Ended(outcome));
        }
        Ok(())
    }

    /// Nobody listens to this task any more; it goes on, and may be adopted.
    pub fn disown(&mut self, task: TaskId) {
        if let Some(known) = self.task(task) {
            (known.owned, known.told_lost) = (false, false);
        }
    }

    /// Ends a task; its end is told as usual.
    pub fn stop(&mut self, task: TaskId, now_ms: u64) {
        let Some(id) = self.places.get(&task).copied() else { return };
        let Some(step) = self.task(task).map(|known| known.stop(task)) else { return };
        self.take_step(id, task, step, now_ms);
    }

    /// Limits a task's rate (bytes a second) on the wire, or no longer.
    pub fn set_rate(&mut self, task: TaskId, rate: Option<u64>, now_ms: u64) {
        let command = self.task(task).and_then(|known| known.set_rate(task, rate));
        self.send_if_told(task, command, now_ms);
    }

    /// Gives a task a credential, or another content of it.
    ///
    /// # Errors
    /// No such task, a name that is no file name, too long, or too many.
    pub fn set_credential(
        &mut self,
        task: TaskId,
        name: &str,
        content: Secret,
        now_ms: u64,
    ) -> Result<(), Failure> {
        check_credential(name, &content)?;
        let known = self.task(task).ok_or_else(|| usage(format!("there is no task {task}")))?;
        let held = known.credentials();
        if held.len() >= limits::TASK_CREDENTIALS_MAX && !held.contains_key(name) {
            return Err(usage(format!("task {task} has {} credentials already", held.len())));
        }
        let command = known.set_credential(task, name, content);
        self.send_if_told(task, command, now_ms);
        Ok(())
    }

    /// The task's end is taken in (durably), or nobody wants it any more: its mover forgets it. One
    /// that runs is stopped first.
    pub fn forget(&mut self, id: PeerId, task: TaskId, now_ms: u64) {
        let Some(mover) = self.movers.get_mut(&id) else { return };
        let Some(known) = mover.tasks.remove(&task) else { return };
        self.places.remove(&task);
        if known.is_untold() {
            return;
        }
        mover.remember_forgotten(task);
        let command =
            if known.is_ended() { Command::Forget { task } } else { Command::Stop { task } };
        if let Some(link) = self.ready(id) {
            self.send(link, vec![command], now_ms);
        }
    }

    /// Asks a mover; the answer comes as [`Action::Reply`].
    ///
    /// # Errors
    /// The mover is not connected, or too many questions wait.
    pub fn ask(&mut self, id: PeerId, question: Question, now_ms: u64) -> Result<AskId, Failure> {
        let name = self.movers.get(&id).map_or_else(|| id.to_string(), Mover::name);
        let away = || format!("mover '{name}' is not connected: see gantry proxy list");
        let link = self.ready(id).ok_or_else(|| Failure::new(FailureKind::Network, away()))?;
        let ask = self.questions.ask(link, &name, &question, now_ms)?;
        self.send(link, vec![Command::Ask { number: ask.0, question }], now_ms);
        Ok(ask)
    }

    /// Nobody waits for this answer any more.
    pub fn give_up(&mut self, ask: AskId) {
        self.questions.give_up(ask);
    }

    /// A mover is no longer let in. Its tasks are dead for their owners: it may go on reading, but
    /// nothing that it says counts.
    pub fn revoke(&mut self, id: PeerId, now_ms: u64) {
        let Some(mover) = self.movers.get_mut(&id) else { return };
        let text = format!("mover '{}' was revoked", mover.name());
        mover.refused = Some(text.clone());
        let link = mover.link;
        let running: Vec<TaskId> = mover.tasks.keys().copied().collect();
        if let Some(link) = link {
            self.drop_link(link, Some(CloseReason::Refused(text.clone())));
        }
        for task in running {
            let step = self.movers.get_mut(&id).and_then(|mover| mover.tasks.get_mut(&task));
            let step = step.map(|known| known.end(TaskOutcome::Died(text.clone())));
            self.take_step(id, task, step.unwrap_or_default(), now_ms);
        }
    }

    /// Every mover that has connected since the start.
    pub fn views(&self) -> Vec<MoverView> {
        let view = |mover: &Mover| {
            let link = mover.link.and_then(|link| self.links.get(&link));
            mover.view(link.filter(|link| link.greeted).map(|link| link.since_ms))
        };
        self.movers.values().filter_map(view).collect()
    }

    /// Pins of the movers with a connection.
    pub fn connected_movers(&self) -> Vec<EnrolledMover> {
        let linked = self.movers.values().filter(|mover| mover.link.is_some());
        linked.filter_map(|mover| mover.enrolled.clone()).collect()
    }

    /// The mover that was enrolled under this id, if it has connected since the start.
    pub fn enrolled(&self, id: PeerId) -> Option<&EnrolledMover> {
        self.movers.get(&id)?.enrolled.as_ref()
    }

    fn greet(&mut self, link: LinkId, id: PeerId, tasks: Vec<TaskStanding>, now_ms: u64) {
        if let Some(known) = self.links.get_mut(&link) {
            known.greeted = true;
        }
        let Some(mover) = self.movers.get_mut(&id) else { return };
        (mover.heard_ms, mover.refused) = (now_ms, None);
        let ticket_key = mover.enrolled.as_ref().and_then(|enrolled| enrolled.ticket_key.clone());
        let welcome = Command::Welcome { software: self.software.clone(), now_ms, ticket_key };
        let steps = mover.reconcile(tasks);
        let back = mover.tell_back();
        self.places.retain(|task, place| *place != id || mover.tasks.contains_key(task));
        self.send(link, vec![welcome], now_ms);
        // Who is told of an end need not be told that the mover is back before it.
        for (task, step) in steps {
            self.take_step(id, task, step, now_ms);
        }
        self.actions.extend(back);
    }

    /// Closes a connection with a reason, or takes note that it is gone.
    fn drop_link(&mut self, link: LinkId, reason: Option<CloseReason>) {
        let Some(gone) = self.links.remove(&link) else { return };
        if let Some(mover) = self.movers.get_mut(&gone.mover)
            && mover.link == Some(link)
        {
            mover.link = None;
        }
        self.actions.extend(reason.map(|reason| Action::Close { link, reason }));
        let lost = self.questions.link_lost(link).into_iter();
        self.actions.extend(lost.map(|(ask, reply)| Action::Reply { ask, reply }));
    }

    fn refuse(&mut self, link: LinkId, what: String) {
        let mover = self.links.get(&link).and_then(|link| self.movers.get_mut(&link.mover));
        if let Some(mover) = mover {
            mover.refused = Some(what.clone());
        }
        self.drop_link(link, Some(CloseReason::Refused(format!("the mover {what}"))));
    }

    /// The mover's connection, if commands may go over it.
    fn ready(&self, id: PeerId) -> Option<LinkId> {
        let link = self.movers.get(&id)?.link?;
        self.links.get(&link)?.greeted.then_some(link)
    }

    fn task(&mut self, task: TaskId) -> Option<&mut Task> {
        let mover = self.movers.get_mut(self.places.get(&task)?)?;
        mover.tasks.get_mut(&task)
    }

    fn tell(&mut self, task: TaskId, event: TaskEvent) {
        self.actions.push(Action::Tell { task, event });
    }

    fn send(&mut self, link: LinkId, commands: Vec<Command>, now_ms: u64) {
        if let (Some(known), false) = (self.links.get_mut(&link), commands.is_empty()) {
            known.sent_ms = now_ms;
        }
        let sends = commands.into_iter().map(|command| Action::Send { link, command });
        self.actions.extend(sends);
    }

    fn send_if_told(&mut self, task: TaskId, command: Option<Command>, now_ms: u64) {
        let untold = self.task(task).is_none_or(|known| known.is_untold());
        let link = self.places.get(&task).and_then(|id| self.ready(*id));
        if let (Some(link), Some(command), false) = (link, command, untold) {
            self.send(link, vec![command], now_ms);
        }
    }

    fn take_step(&mut self, id: PeerId, task: TaskId, step: Step, now_ms: u64) {
        if let Some(link) = self.ready(id) {
            self.send(link, step.commands, now_ms);
        }
        let owned =
            self.places.get(&task) == Some(&id) && self.task(task).is_some_and(|known| known.owned);
        if let (Some(outcome), true) = (step.ended, owned) {
            self.tell(task, TaskEvent::Ended(outcome));
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
