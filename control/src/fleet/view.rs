//! What others see of a mover and of its tasks.
//!
//! In: nothing. Out: plain data. All times are milliseconds since 1970 at gantryd.

use gantry_common::control::{MoverFacts, TaskOutcome};
use gantry_common::enrolment::MoverRole;
use gantry_common::ids::{PeerId, TaskId};
use gantry_common::secret::Secret;
use gantry_common::work::DiskProgress;

/// A mover as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolledMover {
    /// Its key: what it is known by. One that enrols with a new key is another mover.
    pub pin: PeerId,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: MoverRole,
    /// Of a repository mover: the key that its tickets are made with.
    pub ticket_key: Option<Secret>,
}

/// A mover as it stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoverView {
    /// Its key: what it is known by.
    pub pin: PeerId,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: MoverRole,
    /// Connected, greeted and heard of, since then.
    pub connected_since_ms: Option<u64>,
    /// Silent since then, for longer than [`gantry_common::control::SILENCE_SECONDS_MAX`].
    pub lost_since_ms: Option<u64>,
    /// Why its last connection was refused.
    pub refused: Option<String>,
    /// Its program's name and version.
    pub software: String,
    /// What it is and can do; of its last `Hello`, with the free bytes of its last sign of life.
    pub facts: MoverFacts,
    /// Load average of its host over a minute, in hundredths.
    pub load_hundredths: u32,
    /// Tasks that it carries out, as far as is known.
    pub tasks_running: usize,
    /// Tasks that it knows and nobody here owns: those of an earlier life of gantryd. They are to
    /// be adopted, or forgotten.
    pub orphans: Vec<TaskId>,
}

/// What the owner of a task hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEvent {
    /// How far it is.
    Progress(Vec<DiskProgress>),
    /// It has ended; nothing comes after.
    Ended(TaskOutcome),
    /// Nothing was heard of its mover for too long. It may go on with the task all the same.
    MoverLost {
        /// Since when.
        since_ms: u64,
    },
    /// The mover is back, and the task runs on.
    MoverBack,
}
