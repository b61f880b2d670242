//! What is written down of a run before each of its steps: the run's pure state machine.
//!
//! A run is one attempt at one virtual machine within a session. In: [`Event`]s. Out: the next
//! [`RunState`], or a refusal of an event that cannot come now. Whoever drives it saves the document,
//! then acts; after a crash the saved document says what was about to be done, and [`RunDocument::restart`]
//! where to go on.
//!
//! ```text
//! Waiting --Freeze--> Freezing --Frozen--> Copying --AllHeld--> Committing --Committed--> Clearing
//!    |                   |                   |  ^                    |                       |
//!    '-----Failed--------+------Failed-------+--+-----Failed---------+----------> Clearing --Cleared--> Ended
//! ```
//!
//! Invariants: from `Freezing` on something may stand in vSphere, and only `Clearing` leads to
//! `Ended`; a point is told only after the repository has committed it. Must not: act.

use gantry_common::failure::Failure;
use gantry_common::ids::{SessionId, TaskId};
use serde::{Deserialize, Serialize};

use crate::transport::TransportMode;

/// A run as it is written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunDocument {
    /// The run: stands in its snapshot's name and in its tickets.
    pub run: SessionId,
    /// vCenter's instance UUID of the machine.
    pub vm: String,
    /// The machine's name.
    pub vm_name: String,
    /// Read everything.
    pub full: bool,
    /// How far it is.
    pub state: RunState,
    /// What was frozen, once it was; kept to the end for the report.
    pub frozen: Option<Frozen>,
    /// Scripts may have stopped applications in the guest, and have not let them go on yet.
    #[serde(default)]
    pub is_guest_frozen: bool,
    /// What follows success in the guest was begun.
    #[serde(default)]
    pub is_success_told: bool,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// Nothing was done yet.
    Waiting,
    /// A snapshot is about to be made.
    Freezing {
        /// Its name.
        snapshot: String,
    },
    /// Disks are being copied.
    Copying,
    /// All disks are durable in the repository; the point is about to be committed.
    Committing,
    /// What stands in vSphere is about to be undone.
    Clearing {
        /// What the run came to.
        outcome: Outcome,
    },
    /// Nothing is left to do.
    Ended {
        /// What the run came to.
        outcome: Outcome,
    },
}

/// What is known once the snapshot stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frozen {
    /// The snapshot's name.
    pub snapshot: String,
    /// When it was made, milliseconds since 1970: the point's time.
    pub created_ms: u64,
    /// The point's name in the repository.
    pub name: String,
    /// The machine's configuration at that time.
    pub vm_config: String,
    /// The base point.
    pub base: Option<String>,
    /// Each disk.
    pub disks: Vec<DiskTask>,
}

/// One disk of a run: a task of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskTask {
    /// Device key in the machine.
    pub key: i32,
    /// Label.
    pub label: String,
    /// Identity in the repository.
    pub identity: String,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Name of its datastore.
    pub datastore: String,
    /// CBT change id of the snapshot.
    pub change_id: Option<String>,
    /// How far it is.
    pub state: TaskState,
    /// Proxies and modes that were tried and failed.
    pub failed: Vec<(String, TransportMode)>,
}

/// How far a disk is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// No proxy works on it.
    Waiting,
    /// A proxy was told, or is about to be.
    Running {
        /// The mover's task.
        task: TaskId,
        /// The proxy.
        proxy: String,
        /// By which road.
        mode: TransportMode,
    },
    /// Every block is durable in the repository.
    Held {
        /// The mover's report.
        report: serde_json::Value,
        /// The proxy.
        proxy: String,
        /// By which road.
        mode: TransportMode,
    },
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The repository has this point.
    Point(String),
    /// No point was made.
    Failed(Failure),
    /// A person, or the end of the backup window, stopped it.
    Stopped(String),
}

/// What happens to a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The snapshot is about to be made.
    Freeze {
        /// Its name.
        snapshot: String,
    },
    /// Applications in the guest are about to be stopped.
    FreezeGuest,
    /// They go on, or cannot be made to.
    GuestThawed,
    /// What follows success in the guest is about to begin.
    TellSuccess,
    /// The snapshot stands.
    Frozen(Frozen),
    /// A proxy is about to be told to copy a disk.
    Start {
        /// Device key.
        key: i32,
        /// The mover's task.
        task: TaskId,
        /// The proxy.
        proxy: String,
        /// By which road.
        mode: TransportMode,
    },
    /// A disk's task ended without success; another road or proxy may be tried.
    TaskFailed {
        /// Device key.
        key: i32,
        /// The mover's task.
        task: TaskId,
        /// The road itself is at fault, not the proxy that died on it.
        is_road_at_fault: bool,
    },
    /// A disk is durable.
    Held {
        /// Device key.
        key: i32,
        /// The mover's task.
        task: TaskId,
        /// Its report.
        report: serde_json::Value,
    },
    /// Every disk is durable.
    AllHeld,
    /// The repository has no longer what a task had made durable.
    Lost {
        /// Device key.
        key: i32,
    },
    /// The repository has committed the point.
    Committed {
        /// The point.
        point: String,
    },
    /// The run cannot go on.
    GiveUp(Outcome),
    /// Nothing stands in vSphere any more, or what does is told and kept in the ledger.
    Cleared,
}

/// An event that cannot come in this state: a bug of who drives the machine.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("a run that is {state} cannot meet {event}")]
pub struct Misplaced {
    state: &'static str,
    event: String,
}

impl RunState {
    /// Its name, as it is listed.
    pub fn name(&self) -> &'static str {
        match self {
            RunState::Waiting => "waiting",
            RunState::Freezing { .. } => "freezing",
            RunState::Copying => "copying",
            RunState::Committing => "committing",
            RunState::Clearing { .. } => "clearing",
            RunState::Ended { .. } => "ended",
        }
    }
}

impl DiskTask {
    /// The disk's report, if it is durable.
    pub fn report(&self) -> Option<&serde_json::Value> {
        match &self.state {
            TaskState::Held { report, .. } => Some(report),
            _ => None,
        }
    }

    /// What it was read by, as the mover's report says: a commit names the same.
    pub fn read_digest(&self) -> Option<String> {
        self.report()?["disks"][0]["read_digest"].as_str().map(str::to_owned)
    }
}

impl RunDocument {
    /// A run that waits.
    pub fn new(run: SessionId, vm: &str, vm_name: &str, full: bool) -> RunDocument {
        let (vm, vm_name) = (vm.to_owned(), vm_name.to_owned());
        RunDocument {
            run,
            vm,
            vm_name,
            full,
            state: RunState::Waiting,
            frozen: None,
            is_guest_frozen: false,
            is_success_told: false,
        }
    }

    /// Takes an event in.
    ///
    /// # Errors
    /// [`Misplaced`]; nothing has changed then.
    pub fn apply(&mut self, event: Event) -> Result<(), Misplaced> {
        let misplaced = Misplaced { state: self.state.name(), event: format!("{event:.80?}") };
        let next = match (&self.state, event) {
            (RunState::Waiting, Event::Freeze { snapshot }) => RunState::Freezing { snapshot },
            (state @ RunState::Freezing { .. }, Event::FreezeGuest) => {
                self.is_guest_frozen = true;
                state.clone()
            }
            (state, Event::GuestThawed) if self.is_guest_frozen => {
                self.is_guest_frozen = false;
                state.clone()
            }
            (state @ RunState::Clearing { outcome: Outcome::Point(_) }, Event::TellSuccess)
                if !self.is_success_told =>
            {
                self.is_success_told = true;
                state.clone()
            }
            (RunState::Freezing { .. }, Event::Frozen(frozen)) => {
                self.frozen = Some(frozen);
                RunState::Copying
            }
            (
                RunState::Waiting
                | RunState::Freezing { .. }
                | RunState::Copying
                | RunState::Committing,
                Event::GiveUp(outcome),
            ) => RunState::Clearing { outcome },
            (RunState::Copying, Event::AllHeld) if self.is_all_held() => RunState::Committing,
            (RunState::Copying, event) => {
                self.frozen.as_mut().and_then(|frozen| of_disk(frozen, event)).ok_or(misplaced)?;
                RunState::Copying
            }
            (RunState::Committing, event @ Event::Lost { .. }) => {
                self.frozen.as_mut().and_then(|frozen| of_disk(frozen, event)).ok_or(misplaced)?;
                RunState::Copying
            }
            (RunState::Committing, Event::Committed { point }) => {
                RunState::Clearing { outcome: Outcome::Point(point) }
            }
            (RunState::Clearing { outcome }, Event::Cleared) => {
                RunState::Ended { outcome: outcome.clone() }
            }
            _ => return Err(misplaced),
        };
        self.state = next;
        Ok(())
    }

    fn is_all_held(&self) -> bool {
        let mut disks = self.frozen.iter().flat_map(|frozen| &frozen.disks);
        disks.all(|disk| disk.report().is_some())
    }

    /// Where to go on after the control plane itself was interrupted: what was about to be done may
    /// have been done or not.
    pub fn restart(&mut self) {
        // A snapshot that may stand is taken away first, and made anew: its instant is past.
        if let RunState::Freezing { .. } = self.state {
            self.state = RunState::Waiting;
        }
    }

    /// Whether something of it may stand in vSphere.
    pub fn may_stand(&self) -> bool {
        !matches!(self.state, RunState::Waiting | RunState::Ended { .. })
    }
}

/// What happens to one disk while disks are copied; nothing if it cannot happen.
fn of_disk(frozen: &mut Frozen, event: Event) -> Option<()> {
    let key = match &event {
        Event::Start { key, .. }
        | Event::TaskFailed { key, .. }
        | Event::Held { key, .. }
        | Event::Lost { key } => *key,
        _ => return None,
    };
    let disk = frozen.disks.iter_mut().find(|disk| disk.key == key)?;
    match (disk.state.clone(), event) {
        (TaskState::Waiting, Event::Start { task, proxy, mode, .. }) => {
            disk.state = TaskState::Running { task, proxy, mode };
        }
        (
            TaskState::Running { task, proxy, mode },
            Event::TaskFailed { task: of, is_road_at_fault, .. },
        ) if task == of => {
            disk.state = TaskState::Waiting;
            if is_road_at_fault {
                disk.failed.push((proxy, mode));
            }
        }
        (TaskState::Running { task, proxy, mode }, Event::Held { task: of, report, .. })
            if task == of =>
        {
            disk.state = TaskState::Held { report, proxy, mode };
        }
        (TaskState::Held { .. }, Event::Lost { .. }) => disk.state = TaskState::Waiting,
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests;
