//! The broker: one cache of a vCenter's inventory, so that sessions do not hammer vCenter.
//!
//! In: a [`crate::vcenter::VCenter`]. Out: facts about virtual machines, disks, snapshots, hosts,
//! clusters, datastores and folders, never older than the last update; the selection of what is to
//! be backed up, with the reason for every machine and disk; a machine's configuration for its
//! restore point.
//!
//! The way of a fact: [`feed`] waits for updates, [`cache`] applies them, [`parse`] and [`devices`]
//! turn properties into [`facts`], [`selection`] reads them. Only [`feed`] and [`vm_config`] talk to
//! the network.
//!
//! Not covered: tags, which only the separate REST API has. Custom attributes are.

pub mod facts;
pub mod devices;
pub mod parse;
mod size;
pub mod cache;
pub mod feed;
pub mod selection;
pub mod vm_config;

pub use cache::Cache;
pub use facts::{
    BackingKind, Controller, ControllerKind, DatastoreFacts, DiskFacts, DiskMode, HostFacts,
    SnapshotFacts, VmFacts,
};
pub use feed::{Broker, BrokerState};
pub use selection::{DiskRule, Rule, SelectedDisk, SelectedVm, Selection, Verdict, select};
pub use vm_config::VmConfig;
