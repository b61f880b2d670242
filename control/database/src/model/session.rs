//! What has been run: sessions, machines in them, disks of those, and what was told.
//!
//! Plain data. The engine's own state travels as an opaque JSON document beside the state's name.

use gantry_common::ids::PointId;
use gantry_common::transport_mode::TransportMode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Id, schema};

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum SessionKind {
    Backup,
    Restore,
    /// Looks after a repository: retention, collection, verification.
    Maintenance,
}

/// Who or what began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The job's schedule.
    Schedule,
    /// A person or a program, over the API.
    Manual,
    /// The end of another job's session.
    AfterJob,
    /// An attempt to make good a failed one.
    Retry,
}

/// Whether a session goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Written down, not yet begun.
    Pending,
    /// Runs.
    Running,
    /// Ends: begins nothing more, undoes what it made.
    Stopping,
    /// Over; its result stands.
    Finished,
}

/// How it ended.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SessionResult {
    /// All as asked.
    Success,
    /// There is a point, and something to look at.
    Warning,
    /// There is none.
    Failed,
}

/// Sums over a session's disks, in bytes unless they say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SessionTotals {
    /// Machines.
    pub vms: u64,
    /// Machines that ended with a point.
    pub vms_done: u64,
    /// Machines that failed.
    pub vms_failed: u64,
    /// Disks.
    pub disks: u64,
    /// Of all disks taken.
    pub processed_bytes: u64,
    /// Read from the source.
    pub read_bytes: u64,
    /// Sent over the wire.
    pub transferred_bytes: u64,
    /// New in the repository.
    pub stored_bytes: u64,
    /// Everything else that is told: skipped bytes by reason, bottleneck, load.
    #[schema(value_type = Option<Object>)]
    pub more: Value,
}

/// A run of a job, or of something a person asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionRecord {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// What it does.
    pub kind: SessionKind,
    /// The job; nothing: a run without one. It may be deleted by now.
    #[schema(value_type = Option<String>)]
    pub job: Option<Id>,
    /// The job's name when it began, or what is run.
    pub name: String,
    /// Why it began.
    pub trigger: Trigger,
    /// Who asked for it, if somebody did.
    pub requested_by: Option<String>,
    /// Whether it goes on.
    pub state: SessionState,
    /// How it ended.
    pub result: Option<SessionResult>,
    /// For a person: why it failed or warns.
    pub reason: Option<String>,
    /// When it was written down, milliseconds since 1970.
    pub created_ms: u64,
    /// When it began.
    pub started_ms: Option<u64>,
    /// When it was over.
    pub ended_ms: Option<u64>,
    /// Sums.
    pub totals: SessionTotals,
    /// What it was asked, as the engine keeps it (settings of the job at its start).
    #[schema(value_type = Object)]
    pub document: Value,
}

/// A machine in a session; its id is the mover session's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmRunRecord {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// The session.
    #[schema(value_type = String)]
    pub session: Id,
    /// The machine's name.
    pub vm: String,
    /// The machine's instance UUID: with session and attempt it is unique. One session a machine at
    /// a time is the scheduler's to see to.
    pub vm_uuid: Option<String>,
    /// 1, 2, …: attempts at this machine in this session.
    pub attempt: u32,
    /// The engine's name for its state.
    pub state: String,
    /// The engine's state.
    #[schema(value_type = Object)]
    pub document: Value,
    /// How it ended; nothing: it goes on.
    pub result: Option<SessionResult>,
    /// For a person.
    pub reason: Option<String>,
    /// The restore point that came of it.
    #[serde(with = "point")]
    #[schema(value_type = Option<String>)]
    pub point: Option<PointId>,
    /// When it was written down, milliseconds since 1970.
    pub created_ms: u64,
    /// When it left its first state.
    pub started_ms: Option<u64>,
    /// When it was over.
    pub ended_ms: Option<u64>,
}

/// A disk of a machine in a session; its id is the mover task's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskRecord {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// The machine's run.
    #[schema(value_type = String)]
    pub vm_run: Id,
    /// The disk's label.
    pub disk: String,
    /// The proxy that reads it.
    #[schema(value_type = Option<String>)]
    pub proxy: Option<Id>,
    /// The repository that takes it.
    #[schema(value_type = Option<String>)]
    pub repository: Option<Id>,
    /// The road.
    #[schema(value_type = Option<schema::TransportModeSchema>)]
    pub mode: Option<TransportMode>,
    /// The engine's name for its state.
    pub state: String,
    /// What was processed, read, skipped by reason, sent, stored; latencies; bottleneck.
    #[schema(value_type = Object)]
    pub numbers: Value,
    /// Why this proxy, this mode, full or incremental.
    pub reasons: Vec<String>,
}

/// How much a told thing matters.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Severity {
    Info,
    Warning,
    Error,
}

/// Something told of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventRecord {
    /// The session.
    #[schema(value_type = String)]
    pub session: Id,
    /// The machine's name, if it is about one.
    pub vm: Option<String>,
    /// The disk's label, if it is about one.
    pub disk: Option<String>,
    /// When, milliseconds since 1970.
    pub time_ms: u64,
    /// How much it matters.
    pub severity: Severity,
    /// For a person.
    pub text: String,
}

impl SessionRecord {
    /// Whether it is over.
    pub fn is_finished(&self) -> bool {
        self.state == SessionState::Finished
    }
}

impl VmRunRecord {
    /// Whether it is over.
    pub fn is_finished(&self) -> bool {
        self.result.is_some()
    }
}

/// A point's id as text, or nothing.
mod point {
    use gantry_common::ids::PointId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        point: &Option<PointId>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match point {
            Some(point) => to.collect_str(point),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<PointId>, D::Error> {
        let text: Option<String> = Option::deserialize(from)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}
