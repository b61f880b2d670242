//! The broker: one cache of a vCenter's inventory, so that sessions do not hammer vCenter.
//!
//! In: a [`crate::vcenter::VCenter`]. Out: facts about virtual machines, disks, snapshots, hosts,
//! clusters, datastores and folders, never older than the last update; the selection of what is to
//! be backed up, with the reason for every machine and disk; a machine's configuration for its
//! restore point.
//!
//! The way of a fact: [`feed`] waits for updates, [`cache`] applies them, [`parse`] and [`devices`]
//! turn properties into [`facts`], [`selection`] reads them. The way back: [`places`] finds where a
//! machine can be made again, [`vm_spec`] says as what (pure), [`rebuild`] makes it. Only [`feed`],
//! [`vm_config`], [`places`] and [`rebuild`] talk to the network.
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
pub mod places;
pub mod vm_spec;
pub mod rebuild;

pub use cache::Cache;
pub use facts::{
    BackingKind, Controller, ControllerKind, DatastoreFacts, DiskFacts, DiskMode, HostFacts,
    SnapshotFacts, VmFacts,
};
pub use feed::{Broker, BrokerState};
pub use places::{PlaceError, Placement, Places, Target};
pub use rebuild::{RebuildError, Rebuilt, new_uuid, rebuild, refuse_taken, register};
pub use selection::{DiskRule, Rule, SelectedDisk, SelectedVm, Selection, Verdict, select};
pub use vm_config::VmConfig;
pub use vm_spec::{DiskSource, SpecError, VmSpec, Wish};
