//! How a run backs up: what its job, or a configuration file, asks for.
//!
//! Plain data, checked where it was read.

use std::time::Duration;

use gantry_common::manage::Retention;
use gantry_common::units::{BlockSize, Compression};

use crate::cbt::Policy;
use crate::transport::TransportMode;

/// What to do about the guest at the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quiesce {
    /// The snapshot is crash-consistent.
    #[default]
    Off,
    /// VMware Tools quiesce the guest, or there is no backup.
    On,
    /// VMware Tools quiesce the guest; if they cannot, the snapshot is crash-consistent, with a
    /// warning.
    Fallback,
}

/// How a run backs up.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSettings {
    /// Transport modes that may be used; none named: all.
    pub modes: Vec<TransportMode>,
    /// Whether the next mode is tried when one fails.
    pub failover: bool,
    /// What to do where changed-block tracking cannot serve.
    pub on_full: Policy,
    /// Whether to switch changed-block tracking on where it is off and can be.
    pub enable_cbt: bool,
    /// Of a million blocks called unchanged, how many are compared nevertheless.
    pub audit_per_million: Option<u32>,
    /// What to do about the guest.
    pub quiesce: Quiesce,
    /// Snapshots of Gantry that a datastore may have at a time.
    pub snapshots_per_datastore: usize,
    /// Before each further round of removing a snapshot that will not go.
    pub removal_pauses: Vec<Duration>,
    /// Block size.
    pub block_size: BlockSize,
    /// Compression.
    pub compression: Compression,
    /// Limit of the rate on the wire, bytes a second.
    pub rate: Option<u64>,
    /// What the repository keeps.
    pub retention: Option<Retention>,
}
