//! One task as gantryd knows it.
//!
//! ```text
//!  run ──> Waiting ──(mover shows that it knows it)──> Running ──┐
//!              │                                          │      │ Ended, or a Hello without it
//!              │ Ended                                    │      v
//!  adopt ─> Assumed ──(Hello with it)─────────────────────┘    Ended ──forget──> gone
//! ```
//!
//! In: what its mover says of it, what its owner wants. Out: commands, and the end. Invariant: a
//! task that its mover has shown once and then does not know is dead, while one that it may never
//! have heard of is told again. Must not: know about connections.

use std::collections::BTreeMap;

use gantry_common::control::{Command, TaskOutcome};
use gantry_common::ids::TaskId;
use gantry_common::secret::Secret;

/// How far a task is.
pub(super) enum Phase {
    /// Its mover is told until it shows that it knows the task.
    Waiting {
        /// The document.
        work: Vec<u8>,
        /// It was told at least once.
        told: bool,
    },
    /// An earlier life of gantryd has told the mover, which has not been heard of since.
    Assumed,
    /// The mover knows it.
    Running,
    /// It has ended.
    Ended(TaskOutcome),
}

/// A task.
pub(super) struct Task {
    pub(super) phase: Phase,
    /// Somebody here listens.
    pub(super) owned: bool,
    /// The owner has been told that the mover is lost.
    pub(super) told_lost: bool,
    stop: bool,
    rate: Option<Option<u64>>,
    credentials: BTreeMap<String, Secret>,
}

/// What comes of something that the mover said about a task.
#[derive(Default)]
pub(super) struct Step {
    pub(super) commands: Vec<Command>,
    /// It ended in this step.
    pub(super) ended: Option<TaskOutcome>,
}

impl Task {
    pub(super) fn new(phase: Phase, owned: bool) -> Task {
        let (told_lost, stop, rate) = (false, false, None);
        Task { phase, owned, told_lost, stop, rate, credentials: BTreeMap::new() }
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// The mover certainly has never heard of it.
    pub(super) fn is_untold(&self) -> bool {
        matches!(self.phase, Phase::Waiting { told: false, .. })
    }

    /// What to say to the mover after its `Hello`, which says this of the task (nothing: it does
    /// not know it).
    pub(super) fn greet(&mut self, id: TaskId, standing: Option<&Option<TaskOutcome>>) -> Step {
        match (standing, &self.phase) {
            (Some(None), Phase::Ended(_)) => {
                // The owner was told that it is dead; it must not run on.
                Step { commands: vec![Command::Stop { task: id }], ended: None }
            }
            (_, Phase::Ended(_)) => Step::default(),
            (Some(Some(outcome)), _) => self.end(outcome.clone()),
            (Some(None), _) => {
                self.phase = Phase::Running;
                Step { commands: self.wishes(id), ended: None }
            }
            (None, Phase::Waiting { .. }) if self.stop => self.end(TaskOutcome::Stopped),
            (None, Phase::Waiting { .. }) => Step { commands: self.start(id), ended: None },
            (None, Phase::Assumed | Phase::Running) => self.end(TaskOutcome::Died(
                "the mover came back without the task: it has lost its state".into(),
            )),
        }
    }

    /// The commands that begin a waiting task; nothing of any other.
    pub(super) fn start(&mut self, id: TaskId) -> Vec<Command> {
        let Phase::Waiting { work, told } = &mut self.phase else { return Vec::new() };
        *told = true;
        let start = Command::Start { task: id, work: work.clone() };
        // Credentials first: the work may need them at once.
        let mut commands = self.credential_commands(id);
        commands.push(start);
        commands.extend(self.rate_command(id));
        commands
    }

    /// The mover has shown that it carries the task out.
    pub(super) fn seen(&mut self) {
        if !self.is_ended() {
            self.phase = Phase::Running;
        }
    }

    /// Ends it, unless it has ended already.
    pub(super) fn end(&mut self, outcome: TaskOutcome) -> Step {
        if self.is_ended() {
            return Step::default();
        }
        self.phase = Phase::Ended(outcome.clone());
        self.credentials.clear();
        Step { commands: Vec::new(), ended: Some(outcome) }
    }

    /// The owner wants it to end.
    pub(super) fn stop(&mut self, id: TaskId) -> Step {
        self.stop = true;
        match &self.phase {
            Phase::Ended(_) => Step::default(),
            Phase::Waiting { told: false, .. } => self.end(TaskOutcome::Stopped),
            _ => Step { commands: vec![Command::Stop { task: id }], ended: None },
        }
    }

    pub(super) fn set_rate(&mut self, id: TaskId, rate: Option<u64>) -> Option<Command> {
        self.rate = Some(rate);
        if self.is_ended() { None } else { self.rate_command(id) }
    }

    pub(super) fn set_credential(
        &mut self,
        id: TaskId,
        name: &str,
        content: Secret,
    ) -> Option<Command> {
        if self.is_ended() {
            return None;
        }
        self.credentials.insert(name.to_owned(), content.clone());
        Some(Command::SetCredential { task: id, name: name.to_owned(), content })
    }

    pub(super) fn credentials(&self) -> &BTreeMap<String, Secret> {
        &self.credentials
    }

    /// All that was asked of a running task: a command may have been lost with its connection.
    fn wishes(&self, id: TaskId) -> Vec<Command> {
        let mut commands = self.credential_commands(id);
        commands.extend(self.rate_command(id));
        commands.extend(self.stop.then_some(Command::Stop { task: id }));
        commands
    }

    fn rate_command(&self, id: TaskId) -> Option<Command> {
        self.rate.map(|bytes_per_second| Command::SetRate { task: id, bytes_per_second })
    }

    fn credential_commands(&self, id: TaskId) -> Vec<Command> {
        let command = |(name, content): (&String, &Secret)| Command::SetCredential {
            task: id,
            name: name.clone(),
            content: content.clone(),
        };
        self.credentials.iter().map(command).collect()
    }
}
