//! What the scheduler says, with its reasons as sentences.
//!
//! Reasons are data until they are printed, so that a held machine costs a comparison, not a text.

use std::fmt;

use gantry_common::transport_mode::TransportMode;
use serde::{Deserialize, Serialize};

use crate::names::{DatastoreName, ProxyName, RepositoryName, SessionName, SessionVm, TaskId};
use crate::placement::PlacementReason;

/// One thing to do, or to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Make this machine's snapshot now; slots are reserved for the disks that can start at once.
    /// Answer with `snapshot_opened` or `snapshot_failed`.
    SnapshotNow {
        /// Whose.
        machine: SessionVm,
        /// Where the restore point will go.
        repository: RepositoryName,
        /// Why now.
        reason: OpenReason,
    },
    /// Start this task. Answer with `finished`, `failed` or `road_failed`.
    Assign(Assignment),
    /// This waits; said once for each change of the reason.
    Hold {
        /// The machine.
        machine: SessionVm,
        /// One of its disks, if the snapshot is open already; else the whole machine waits.
        task: Option<TaskId>,
        /// For what.
        reason: HoldReason,
    },
}

/// A task's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Which.
    pub task: TaskId,
    /// Whose.
    pub machine: SessionVm,
    /// Who reads.
    pub proxy: ProxyName,
    /// Where it goes.
    pub repository: RepositoryName,
    /// By which road.
    pub mode: TransportMode,
    /// It ran before on a proxy that was lost, or by a road that failed: resume it.
    pub resumed: bool,
    /// Why there.
    pub reason: PlacementReason,
}

/// Why a snapshot is made now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenReason {
    /// Disks for which slots are reserved.
    pub disks_at_once: usize,
    /// Disks of the machine.
    pub disks: usize,
    /// Where it goes.
    pub repository: RepositoryName,
    /// Free slots there, these disks already taken off.
    pub repository_slots_free: u32,
}

impl fmt::Display for OpenReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (disks_at_once, disks) = (self.disks_at_once, self.disks);
        let OpenReason { repository, repository_slots_free, .. } = self;
        write!(f, "slots are reserved for {disks_at_once} of {disks} disks, ")?;
        write!(f, "repository {repository} has space and {repository_slots_free} further slots, ")?;
        f.write_str("and its datastores may have another snapshot")
    }
}

/// Why something waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldReason {
    /// Two sessions never work on one machine at once.
    OtherSession {
        /// Who has it.
        session: SessionName,
    },
    /// As many snapshots are open as may be.
    SnapshotLimit {
        /// Where.
        datastore: DatastoreName,
        /// How many.
        snapshots_max: u32,
    },
    /// The datastore answers slowly; production goes first.
    Latency {
        /// Which.
        datastore: DatastoreName,
    },
    /// All repositories that will do are taken out of service, or none is known.
    RepositoryDisabled {
        /// The first of them.
        repository: RepositoryName,
    },
    /// Its slots are taken.
    RepositorySlots {
        /// The first that will do.
        repository: RepositoryName,
        /// How many it has.
        slots: u32,
    },
    /// Its free space would not do.
    RepositorySpace {
        /// The first that will do.
        repository: RepositoryName,
        /// Bytes that the restore point is expected to take.
        wanted_bytes: u64,
    },
    /// Every proxy that reaches the disk is at work.
    ProxySlots {
        /// How many reach it.
        proxies: usize,
    },
    /// The proxies that reach the disk are lost or taken out of service.
    ProxiesAway {
        /// How many would reach it.
        proxies: usize,
    },
    /// No proxy reaches the disk in a mode that the job allows. Waiting alone helps nothing: the
    /// caller fails the task unless it expects other facts.
    NoRoad {
        /// Where the disk lies.
        datastore: DatastoreName,
    },
}

impl HoldReason {
    /// Only a change of facts or settings ends it, not the progress of other tasks.
    pub fn is_hopeless(&self) -> bool {
        matches!(self, HoldReason::NoRoad { .. } | HoldReason::RepositoryDisabled { .. })
    }
}

impl fmt::Display for HoldReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use HoldReason as H;
        match self {
            H::OtherSession { session } => write!(f, "session {session} works on this VM"),
            H::SnapshotLimit { datastore, snapshots_max } => {
                write!(f, "datastore {datastore} has its limit of {snapshots_max} open snapshots")
            }
            H::Latency { datastore } => {
                write!(f, "datastore {datastore} answers slowly: it gets no further task for now")
            }
            H::RepositoryDisabled { repository } => {
                write!(f, "repository {repository} is not in service")
            }
            H::RepositorySlots { repository, slots } => {
                write!(f, "all {slots} task slots of repository {repository} are taken")
            }
            H::RepositorySpace { repository, wanted_bytes } => {
                let wanted_gib = *wanted_bytes as f64 / f64::from(1u32 << 30);
                write!(
                    f,
                    "repository {repository} has not the {wanted_gib:.1} GiB free that this "
                )?;
                f.write_str("restore point may take, beyond what running backups will write")
            }
            H::ProxySlots { proxies: 1 } => {
                f.write_str("the one proxy that reaches the disk has no free task slot")
            }
            H::ProxySlots { proxies } => {
                write!(f, "none of the {proxies} proxies that reach the disk has a free task slot")
            }
            H::ProxiesAway { proxies } => {
                write!(f, "{proxies} proxies would reach the disk, but are lost or not in service")
            }
            H::NoRoad { datastore } => {
                write!(f, "no proxy that this job may use reaches datastore {datastore} in a ")?;
                f.write_str("transport mode that it allows")
            }
        }
    }
}
