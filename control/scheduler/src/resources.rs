//! Facts that placement stands on: proxies, repositories, datastores.
//!
//! In: configuration and measurements of gantryd. Out: plain data. Units are in the names.

use std::collections::{BTreeMap, BTreeSet};

use gantry_common::transport_mode::TransportMode;
use serde::{Deserialize, Serialize};

use crate::limits;
use crate::names::{DatastoreName, ProxyName, RepositoryName};

/// A host that reads disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// As configured.
    pub name: ProxyName,
    /// Tasks at a time.
    pub slots: u32,
    /// How busy the host is by its own measurement, 0 to 100.
    pub load_percent: u8,
    /// An administrator may take it out of service: running tasks end, none begins.
    pub enabled: bool,
    /// Modes that reach every datastore.
    pub everywhere: BTreeSet<TransportMode>,
    /// Further modes for some datastores, such as those that are mounted.
    pub datastores: BTreeMap<DatastoreName, BTreeSet<TransportMode>>,
}

/// Where restore points go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// As configured.
    pub name: RepositoryName,
    /// Tasks at a time; [`limits::REPOSITORY_SLOTS`] by default.
    pub slots: u32,
    /// An administrator may take it out of service.
    pub enabled: bool,
    /// Most that it takes in, shared by its tasks; nothing: no limit.
    pub bytes_per_second_max: Option<u64>,
    /// Free space as last measured. What running backups have yet to write is taken off by the
    /// scheduler, from their estimates.
    pub free_bytes: u64,
    /// Proxies that are preferred for it; empty: all alike. A preference, never a restriction.
    pub affinity: BTreeSet<ProxyName>,
}

impl Repository {
    /// With the defaults.
    pub fn new(name: RepositoryName, free_bytes: u64) -> Repository {
        Repository {
            name,
            slots: limits::REPOSITORY_SLOTS,
            enabled: true,
            bytes_per_second_max: None,
            free_bytes,
            affinity: BTreeSet::new(),
        }
    }
}

/// What the latency guard says of a datastore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardState {
    /// Production does not suffer.
    #[default]
    Ok,
    /// No further task is given to it.
    StopAssigning,
    /// Running tasks are slowed down too.
    Throttle,
}

/// Where disks lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datastore {
    /// Unique.
    pub name: DatastoreName,
    /// Snapshots that may be open at a time; [`limits::SNAPSHOTS_PER_DATASTORE`] by default.
    pub snapshots_max: u32,
    /// Of the latency guard.
    pub guard: GuardState,
}

impl Datastore {
    /// With the defaults: what a datastore counts as that nobody described.
    pub fn new(name: DatastoreName) -> Datastore {
        let snapshots_max = limits::SNAPSHOTS_PER_DATASTORE;
        Datastore { name, snapshots_max, guard: GuardState::Ok }
    }
}
