//! What a job session asks for: a machine with its disks.

use std::collections::BTreeSet;

use gantry_common::transport_mode::TransportMode;
use serde::{Deserialize, Serialize};

use crate::names::{
    DatastoreName, JobName, ProxyName, RepositoryName, SessionName, TaskId, VmName,
};

/// One machine of one session. All of its disks go to one repository, from one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRequest {
    /// The run of the job.
    pub session: SessionName,
    /// The job, for reasons.
    pub job: JobName,
    /// 0 to [`PRIORITY_MAX`](crate::limits::PRIORITY_MAX); holds for the whole session.
    pub priority: u8,
    /// The machine.
    pub vm: VmName,
    /// Repositories that will do; one, unless several stand for one target.
    pub repositories: Vec<RepositoryName>,
    /// What the restore point is expected to take there.
    pub store_bytes: u64,
    /// Modes that the job allows.
    pub modes: BTreeSet<TransportMode>,
    /// Proxies that the job allows; empty: all.
    pub proxies: BTreeSet<ProxyName>,
    /// One task each; at least one.
    pub disks: Vec<DiskRequest>,
}

/// One disk: one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    /// Unique over all sessions.
    pub task: TaskId,
    /// Where it lies.
    pub datastore: DatastoreName,
    /// What is expected to be read: the whole disk, or what changed.
    pub read_bytes: u64,
    /// Roads that are known not to work for this disk.
    pub refused: BTreeSet<(ProxyName, TransportMode)>,
}
