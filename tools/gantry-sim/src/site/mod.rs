//! The simulated site: datacenters, clusters, hosts, datastores, networks, machines.
//!
//! In: an inventory. Out: plain structures that methods change; `project*` shows them as managed
//! objects of each endpoint. Nothing here knows SOAP.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::sim::Password;

pub mod inventory;
pub mod machine;
pub mod vmx;
mod project;
mod project_host;
mod project_machine;
mod devices;

pub use machine::{Disk, Machine, Power, Snapshot};
pub use project_machine::{change_version, hardware_number};

/// A thing of the site, independent of how an endpoint calls it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The top folder.
    Root,
    /// A datacenter.
    Datacenter(usize),
    /// A folder in one of a datacenter's four trees; the empty path is the tree's root.
    Folder(usize, Tree, String),
    /// A cluster, or a host's own compute resource.
    Compute(usize),
    /// A resource pool of a compute resource; the empty path is its root.
    Pool(usize, String),
    /// A host.
    Host(usize),
    /// A datastore.
    Datastore(usize),
    /// A network.
    Network(usize),
    /// A machine.
    Machine(u32),
    /// A snapshot of a machine.
    Snapshot(u32, u32),
}

/// The four folder trees of a datacenter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tree {
    /// Machines and templates.
    Vm,
    /// Hosts and clusters.
    Host,
    /// Datastores.
    Datastore,
    /// Networks.
    Network,
}

/// A datacenter.
#[derive(Debug, Clone)]
pub struct Datacenter {
    /// Its name.
    pub name: String,
    /// Its folders by tree and path (`Prod/Web`).
    pub folders: BTreeSet<(Tree, String)>,
}

/// A cluster, or a standalone host's compute resource.
#[derive(Debug, Clone)]
pub struct Compute {
    /// Its name.
    pub name: String,
    /// Its datacenter.
    pub datacenter: usize,
    /// Whether it is a cluster.
    pub cluster: bool,
    /// Its resource pools by path, without the root.
    pub pools: Vec<String>,
}

/// A host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its cluster or own compute resource.
    pub compute: usize,
    /// Its hardware's UUID.
    pub uuid: String,
    /// Whether vCenter reaches it.
    pub connected: bool,
    /// Whether it is in maintenance mode.
    pub maintenance: bool,
}

/// A datastore.
#[derive(Debug, Clone)]
pub struct Datastore {
    /// Its name.
    pub name: String,
    /// Its datacenter.
    pub datacenter: usize,
    /// `VMFS`, `NFS`, `NFS41`, `vsan`.
    pub kind: String,
    /// Its size.
    pub capacity_bytes: u64,
    /// The numbers of the hosts that mount it.
    pub hosts: Vec<usize>,
    /// The last part of its address (`/vmfs/volumes/...`).
    pub uuid: String,
    /// Whether hosts reach it.
    pub accessible: bool,
}

/// A network.
#[derive(Debug, Clone)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its datacenter.
    pub datacenter: usize,
}

/// A custom attribute's definition.
#[derive(Debug, Clone)]
pub struct CustomField {
    /// Its number.
    pub key: i32,
    /// Its name.
    pub name: String,
}

/// The site.
#[derive(Debug, Clone)]
pub struct Site {
    /// What vCenter calls itself.
    pub name: String,
    /// `8.0.3` and the like.
    pub version: String,
    /// The build's number.
    pub build: String,
    /// vCenter's own identity.
    pub instance_uuid: String,
    /// Datacenters.
    pub datacenters: Vec<Datacenter>,
    /// Clusters and standalone hosts' compute resources.
    pub computes: Vec<Compute>,
    /// Hosts.
    pub hosts: Vec<Host>,
    /// Datastores.
    pub datastores: Vec<Datastore>,
    /// Networks.
    pub networks: Vec<Network>,
    /// Machines and templates by their number.
    pub machines: BTreeMap<u32, Machine>,
    /// Custom attributes.
    pub fields: Vec<CustomField>,
    /// Who may log in to guests of machines that name no users of their own.
    pub guest_users: BTreeMap<String, Password>,
    /// When the simulator started.
    pub started: Timestamp,
    /// The number of the next machine.
    pub next_machine: u32,
    /// The number of the next snapshot.
    pub next_snapshot: u32,
}

impl Site {
    /// A datastore by its name, in that datacenter.
    #[must_use]
    pub fn datastore(&self, datacenter: usize, name: &str) -> Option<usize> {
        let mut all = self.datastores.iter();
        all.position(|store| store.name == name && store.datacenter == datacenter)
    }

    /// The datacenter of a host.
    #[must_use]
    pub fn datacenter_of(&self, host: usize) -> usize {
        self.hosts.get(host).and_then(|h| self.computes.get(h.compute)).map_or(0, |c| c.datacenter)
    }
}

/// A random UUID (RFC 9562, version 4).
#[must_use]
pub fn random_uuid() -> String {
    uuid(u128::from_str_radix(&crate::session::secret(16), 16).unwrap_or_default())
}

/// A UUID of those bits, marked as version 4.
#[must_use]
pub fn uuid(bits: u128) -> String {
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let text = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}
