//! The site as vCenter's managed objects.
//!
//! In: the site. Out: folders, datacenters, clusters, hosts, datastores, networks in vCenter's
//! model. Setting equal values changes nothing, so a projection may be done again after any change.

use super::{Site, Subject, Tree};
use crate::schema::{Object, Ref, Value, list, object, reference};
use crate::service;
use crate::sim::{Endpoint, Kind, Options, State};

impl State {
    /// Fills all endpoints' models from the site.
    pub fn build(&mut self, options: &Options) {
        let site = &self.site;
        for endpoint in &mut self.endpoints {
            service::build(endpoint, site, options);
            match endpoint.kind {
                Kind::VCenter => vcenter(endpoint, site),
                Kind::Host(host) => super::project_host::host(endpoint, site, host),
            }
        }
        self.project();
    }

    /// Shows what may have changed, everywhere: machines, and what names them.
    pub fn project(&mut self) {
        let site = &self.site;
        for endpoint in &mut self.endpoints {
            if endpoint.kind == Kind::VCenter {
                folders(endpoint, site);
                for host in 0..site.hosts.len() {
                    host_system(endpoint, site, host);
                }
            }
            super::project_machine::machines(endpoint, site);
            for store in 0..site.datastores.len() {
                datastore(endpoint, site, store);
            }
            members(endpoint, site);
        }
        self.publish();
    }
}

fn tree_type(tree: Tree) -> (&'static str, &'static str, &'static [&'static str]) {
    match tree {
        Tree::Vm => ("vm", "group-v", &["Folder", "VirtualMachine", "VirtualApp"]),
        Tree::Host => ("host", "group-h", &["Folder", "ComputeResource"]),
        Tree::Datastore => ("datastore", "group-s", &["Folder", "Datastore", "StoragePod"]),
        Tree::Network => ("network", "group-n", &["Folder", "Network", "DistributedVirtualSwitch"]),
    }
}

/// The object of a thing, made if it is new: its type, and its id's beginning.
fn ensure(endpoint: &mut Endpoint, subject: &Subject, ty: &str, prefix: &str) -> Ref {
    if let Some(found) = endpoint.reference(subject) {
        return found.clone();
    }
    let id = match subject {
        Subject::Root => format!("{prefix}1"),
        _ => format!("{prefix}{}", endpoint.model.next_serial() + 1),
    };
    let made = reference(ty, id);
    endpoint.tie(subject.clone(), &made);
    made
}

/// What every entity has.
pub(super) fn entity(endpoint: &mut Endpoint, this: &Ref, name: &str, parent: Option<&Ref>) {
    let model = &mut endpoint.model;
    model.set(this, "name", name);
    model.set(this, "parent", parent.cloned());
    model.set(this, "overallStatus", "green");
    model.set(this, "configStatus", "green");
    model.set(this, "effectiveRole", list([-1]));
}

fn vcenter(endpoint: &mut Endpoint, site: &Site) {
    let root = ensure(endpoint, &Subject::Root, "Folder", "group-d");
    entity(endpoint, &root, "Datacenters", None);
    endpoint.model.set(&root, "childType", list(["Folder", "Datacenter"]));
    for (number, datacenter) in site.datacenters.iter().enumerate() {
        let this = ensure(endpoint, &Subject::Datacenter(number), "Datacenter", "datacenter-");
        entity(endpoint, &this, &datacenter.name, Some(&root));
        for tree in [Tree::Vm, Tree::Host, Tree::Datastore, Tree::Network] {
            let (name, prefix, types) = tree_type(tree);
            let subject = Subject::Folder(number, tree, String::new());
            let folder = ensure(endpoint, &subject, "Folder", prefix);
            entity(endpoint, &folder, name, Some(&this));
            endpoint.model.set(&folder, "childType", list(types.iter().copied()));
            endpoint.model.set(&this, &format!("{name}Folder"), &folder);
        }
    }
    for number in 0..site.computes.len() {
        compute(endpoint, site, number);
    }
    for number in 0..site.hosts.len() {
        ensure(endpoint, &Subject::Host(number), "HostSystem", "host-");
    }
    for number in 0..site.datastores.len() {
        ensure(endpoint, &Subject::Datastore(number), "Datastore", "datastore-");
    }
    for (number, network) in site.networks.iter().enumerate() {
        let this = ensure(endpoint, &Subject::Network(number), "Network", "network-");
        let parent = folder_of(endpoint, network.datacenter, Tree::Network, "");
        entity(endpoint, &this, &network.name, parent.as_ref());
        network_summary(endpoint, &this, &network.name);
    }
}

pub(super) fn network_summary(endpoint: &mut Endpoint, this: &Ref, name: &str) {
    let fields = [
        ("network", this.into()),
        ("name", name.into()),
        ("accessible", true.into()),
        ("ipPoolName", "".into()),
    ];
    endpoint.model.set(this, "summary", object("NetworkSummary", fields));
}

pub(super) fn folder_of(endpoint: &Endpoint, dc: usize, tree: Tree, path: &str) -> Option<Ref> {
    endpoint.reference(&Subject::Folder(dc, tree, path.to_owned())).cloned()
}

fn compute(endpoint: &mut Endpoint, site: &Site, number: usize) {
    let compute = &site.computes[number];
    let (ty, prefix) = if compute.cluster {
        ("ClusterComputeResource", "domain-c")
    } else {
        ("ComputeResource", "domain-s")
    };
    let this = ensure(endpoint, &Subject::Compute(number), ty, prefix);
    let parent = folder_of(endpoint, compute.datacenter, Tree::Host, "");
    entity(endpoint, &this, &compute.name, parent.as_ref());
    let root = Subject::Pool(number, String::new());
    let pool = ensure(endpoint, &root, "ResourcePool", "resgroup-");
    entity(endpoint, &pool, "Resources", Some(&this));
    endpoint.model.set(&pool, "owner", &this);
    endpoint.model.set(&this, "resourcePool", &pool);
    for path in &compute.pools {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = endpoint.reference(&Subject::Pool(number, above.to_owned())).cloned();
        let subject = Subject::Pool(number, path.clone());
        let pool = ensure(endpoint, &subject, "ResourcePool", "resgroup-");
        entity(endpoint, &pool, name, parent.as_ref());
        endpoint.model.set(&pool, "owner", &this);
    }
    let hosts = site.hosts.iter().filter(|host| host.compute == number).count();
    let ty =
        if compute.cluster { "ClusterComputeResourceSummary" } else { "ComputeResourceSummary" };
    let mut summary = Object::new(ty);
    for (field, each) in [("totalCpu", 40_000), ("effectiveCpu", 38_000)] {
        summary.set(field, each * hosts);
    }
    summary.set("totalMemory", (hosts as u64) << 38);
    summary.set("effectiveMemory", (hosts as u64) << 18);
    summary.set("numCpuCores", 16 * hosts);
    summary.set("numCpuThreads", 32 * hosts);
    summary.set("numHosts", hosts);
    summary.set("numEffectiveHosts", hosts);
    summary.set("overallStatus", "green");
    endpoint.model.set(&this, "summary", summary);
}

/// The folders of machines, which clients may add to.
fn folders(endpoint: &mut Endpoint, site: &Site) {
    for (number, datacenter) in site.datacenters.iter().enumerate() {
        for (tree, path) in &datacenter.folders {
            let (_, prefix, types) = tree_type(*tree);
            let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = folder_of(endpoint, number, *tree, above);
            let subject = Subject::Folder(number, *tree, path.clone());
            let this = ensure(endpoint, &subject, "Folder", prefix);
            entity(endpoint, &this, name, parent.as_ref());
            endpoint.model.set(&this, "childType", list(types.iter().copied()));
        }
    }
}

fn host_system(endpoint: &mut Endpoint, site: &Site, number: usize) {
    let host = &site.hosts[number];
    let Some(this) = endpoint.reference(&Subject::Host(number)).cloned() else { return };
    let parent = endpoint.reference(&Subject::Compute(host.compute)).cloned();
    entity(endpoint, &this, &host.name, parent.as_ref());
    host_properties(endpoint, site, number, &this);
}

/// A host's own properties, on vCenter and on itself.
pub(super) fn host_properties(endpoint: &mut Endpoint, site: &Site, number: usize, this: &Ref) {
    let host = &site.hosts[number];
    let state = if host.connected { "connected" } else { "notResponding" };
    let runtime = object(
        "HostRuntimeInfo",
        [
            ("connectionState", state.into()),
            ("powerState", if host.connected { "poweredOn" } else { "unknown" }.into()),
            ("inMaintenanceMode", host.maintenance.into()),
            ("bootTime", site.started.into()),
        ],
    );
    let hardware = object(
        "HostHardwareSummary",
        [
            ("vendor", "Gantry".into()),
            ("model", "Simulated host".into()),
            ("uuid", (&host.uuid).into()),
            ("memorySize", (256u64 << 30).into()),
            ("cpuModel", "Simulated CPU".into()),
            ("cpuMhz", 2500.into()),
            ("numCpuPkgs", 2.into()),
            ("numCpuCores", 16.into()),
            ("numCpuThreads", 32.into()),
            ("numNics", 2.into()),
            ("numHBAs", 1.into()),
        ],
    );
    let config = object(
        "HostConfigSummary",
        [
            ("name", (&host.name).into()),
            ("port", 443.into()),
            ("product", service::about(site, Kind::Host(number))),
            ("vmotionEnabled", true.into()),
            ("faultToleranceEnabled", false.into()),
        ],
    );
    let summary = object(
        "HostListSummary",
        [
            ("host", this.into()),
            ("hardware", hardware),
            ("runtime", runtime.clone()),
            ("config", config),
            ("quickStats", object("HostListSummaryQuickStats", [])),
            ("overallStatus", "green".into()),
            ("rebootRequired", false.into()),
        ],
    );
    endpoint.model.set(this, "runtime", runtime);
    endpoint.model.set(this, "summary", summary);
}

/// A datastore, on vCenter and on the hosts that mount it.
fn datastore(endpoint: &mut Endpoint, site: &Site, number: usize) {
    let store = &site.datastores[number];
    let Some(this) = endpoint.reference(&Subject::Datastore(number)).cloned() else { return };
    let tree_root = folder_of(endpoint, store.datacenter, Tree::Datastore, "");
    let parent = tree_root.or_else(|| Some(reference("Folder", "ha-folder-datastore")));
    entity(endpoint, &this, &store.name, parent.as_ref());
    let url = format!("ds:///vmfs/volumes/{}/", store.uuid);
    let used: u64 = disk_bytes(site, number);
    let free = store.capacity_bytes.saturating_sub(used);
    let summary = object(
        "DatastoreSummary",
        [
            ("datastore", (&this).into()),
            ("name", (&store.name).into()),
            ("url", url.as_str().into()),
            ("capacity", store.capacity_bytes.into()),
            ("freeSpace", free.into()),
            ("uncommitted", 0i64.into()),
            ("accessible", store.accessible.into()),
            ("multipleHostAccess", (store.hosts.len() > 1).into()),
            ("type", (&store.kind).into()),
            ("maintenanceMode", "normal".into()),
        ],
    );
    endpoint.model.set(&this, "summary", summary);
    endpoint.model.set(&this, "info", datastore_info(site, number, &url, free));
    let mounts = store.hosts.iter().filter_map(|host| {
        let key = endpoint.reference(&Subject::Host(*host))?;
        let mount = object(
            "HostMountInfo",
            [
                ("path", format!("/vmfs/volumes/{}", store.uuid).into()),
                ("accessMode", "readWrite".into()),
                ("mounted", true.into()),
                ("accessible", store.accessible.into()),
            ],
        );
        Some(object("DatastoreHostMount", [("key", key.into()), ("mountInfo", mount)]))
    });
    let mounts = list(mounts.collect::<Vec<_>>());
    endpoint.model.set(&this, "host", mounts);
    let vmfs = store.kind == "VMFS";
    let capability = [
        ("directoryHierarchySupported", true),
        ("rawDiskMappingsSupported", vmfs),
        ("perFileThinProvisioningSupported", true),
        ("storageIORMSupported", true),
        ("nativeSnapshotSupported", false),
        ("topLevelDirectoryCreateSupported", true),
        ("seSparseSupported", vmfs),
    ];
    let capability = capability.map(|(name, has)| (name, Value::from(has)));
    endpoint.model.set(&this, "capability", object("DatastoreCapability", capability));
}

fn disk_bytes(site: &Site, store: usize) -> u64 {
    let prefix = format!("[{}]", site.datastores[store].name);
    let disks = site.machines.values().flat_map(|machine| &machine.disks);
    disks.filter(|disk| disk.base_file().starts_with(&prefix)).map(|d| d.capacity_bytes).sum()
}

fn datastore_info(site: &Site, number: usize, url: &str, free: u64) -> Value {
    let store = &site.datastores[number];
    let volume = [
        ("type", Value::from(&store.kind)),
        ("name", (&store.name).into()),
        ("capacity", store.capacity_bytes.into()),
    ];
    let common = [
        ("name", Value::from(&store.name)),
        ("url", url.into()),
        ("freeSpace", free.into()),
        ("maxFileSize", (62u64 << 40).into()),
        ("maxVirtualDiskCapacity", (62u64 << 40).into()),
    ];
    if store.kind == "VMFS" {
        let extent = object(
            "HostScsiDiskPartition",
            [("diskName", format!("naa.{}", store.uuid).into()), ("partition", 1.into())],
        );
        let vmfs = volume.into_iter().chain([
            ("blockSizeMb", 1.into()),
            ("maxBlocks", 63_963_136.into()),
            ("majorVersion", 6.into()),
            ("version", "6.82".into()),
            ("uuid", (&store.uuid).into()),
            ("extent", list([extent])),
            ("vmfsUpgradable", false.into()),
            ("ssd", true.into()),
            ("local", false.into()),
        ]);
        let vmfs = object("HostVmfsVolume", vmfs);
        let own = [
            ("maxPhysicalRDMFileSize", Value::from(62u64 << 40)),
            ("maxVirtualRDMFileSize", (62u64 << 40).into()),
            ("vmfs", vmfs),
        ];
        return object("VmfsDatastoreInfo", common.into_iter().chain(own));
    }
    let nas = volume.into_iter().chain([
        ("remoteHost", "nas.sim.example".into()),
        ("remotePath", format!("/export/{}", store.name).into()),
    ]);
    let own = [("nas", object("HostNasVolume", nas))];
    object("NasDatastoreInfo", common.into_iter().chain(own))
}

/// What holds others says whom: folders, clusters, pools, hosts, datastores, networks.
fn members(endpoint: &mut Endpoint, site: &Site) {
    let mut children: std::collections::BTreeMap<Ref, Vec<Ref>> = Default::default();
    let mut holders = Vec::new();
    for entry in endpoint.model.entries() {
        if matches!(entry.reference.ty, "Folder") {
            holders.push(entry.reference.clone());
        }
        if let Some(parent) = entry.get("parent").reference() {
            children.entry(parent.clone()).or_default().push(entry.reference.clone());
        }
    }
    for folder in holders {
        let content = children.remove(&folder).unwrap_or_default();
        endpoint.model.set(&folder, "childEntity", list(content));
    }
    for number in 0..site.computes.len() {
        let Some(this) = endpoint.reference(&Subject::Compute(number)).cloned() else { continue };
        let hosts: Vec<usize> =
            (0..site.hosts.len()).filter(|host| site.hosts[*host].compute == number).collect();
        let references = hosts.iter().filter_map(|h| endpoint.reference(&Subject::Host(*h)));
        let references = list(references.cloned().collect::<Vec<_>>());
        endpoint.model.set(&this, "host", references);
        let stores = (0..site.datastores.len())
            .filter(|store| hosts.iter().any(|h| site.datastores[*store].hosts.contains(h)));
        let stores: Vec<Ref> =
            stores.filter_map(|s| endpoint.reference(&Subject::Datastore(s)).cloned()).collect();
        endpoint.model.set(&this, "datastore", list(stores));
        let dc = site.computes[number].datacenter;
        endpoint.model.set(&this, "network", list(networks(endpoint, site, dc)));
        pools(endpoint, site, number);
    }
    for number in 0..site.datacenters.len() {
        let Some(this) = endpoint.reference(&Subject::Datacenter(number)).cloned() else {
            continue;
        };
        let stores = (0..site.datastores.len())
            .filter(|s| site.datastores[*s].datacenter == number)
            .filter_map(|s| endpoint.reference(&Subject::Datastore(s)).cloned());
        let stores = list(stores.collect::<Vec<_>>());
        endpoint.model.set(&this, "datastore", stores);
        endpoint.model.set(&this, "network", list(networks(endpoint, site, number)));
    }
    for number in 0..site.hosts.len() {
        host_members(endpoint, site, number);
    }
    holders_of_machines(endpoint, site);
}

fn networks(endpoint: &Endpoint, site: &Site, datacenter: usize) -> Vec<Ref> {
    (0..site.networks.len())
        .filter(|n| site.networks[*n].datacenter == datacenter)
        .filter_map(|n| endpoint.reference(&Subject::Network(n)).cloned())
        .collect()
}

fn pools(endpoint: &mut Endpoint, site: &Site, number: usize) {
    let mut paths = vec![String::new()];
    paths.extend(site.computes[number].pools.iter().cloned());
    for path in &paths {
        let subject = Subject::Pool(number, path.clone());
        let Some(this) = endpoint.reference(&subject).cloned() else { continue };
        let below = site.computes[number]
            .pools
            .iter()
            .filter(|below| below.rsplit_once('/').map_or("", |(above, _)| above) == path);
        let below = below.filter_map(|b| endpoint.reference(&Subject::Pool(number, b.clone())));
        let below = list(below.cloned().collect::<Vec<_>>());
        endpoint.model.set(&this, "resourcePool", below);
        let machines = site.machines.values().filter(|machine| {
            site.hosts[machine.host].compute == number && machine.pool == *path && !machine.template
        });
        let machines = machines.filter_map(|m| endpoint.reference(&Subject::Machine(m.id)));
        let machines = list(machines.cloned().collect::<Vec<_>>());
        endpoint.model.set(&this, "vm", machines);
    }
}

fn host_members(endpoint: &mut Endpoint, site: &Site, number: usize) {
    let Some(this) = endpoint.reference(&Subject::Host(number)).cloned() else { return };
    let machines = site.machines.values().filter(|machine| machine.host == number);
    let machines = machines.filter_map(|m| endpoint.reference(&Subject::Machine(m.id)));
    let machines = list(machines.cloned().collect::<Vec<_>>());
    endpoint.model.set(&this, "vm", machines);
    let stores = (0..site.datastores.len())
        .filter(|store| site.datastores[*store].hosts.contains(&number))
        .filter_map(|s| endpoint.reference(&Subject::Datastore(s)).cloned());
    let stores = list(stores.collect::<Vec<_>>());
    endpoint.model.set(&this, "datastore", stores);
    let here = networks(endpoint, site, site.datacenter_of(number));
    endpoint.model.set(&this, "network", list(here));
}

/// Datastores and networks name the machines that use them.
fn holders_of_machines(endpoint: &mut Endpoint, site: &Site) {
    for number in 0..site.datastores.len() {
        let Some(this) = endpoint.reference(&Subject::Datastore(number)).cloned() else { continue };
        let prefix = format!("[{}]", site.datastores[number].name);
        let machines = site.machines.values().filter(|machine| {
            machine.datastore == number
                || machine.disks.iter().any(|disk| disk.file().starts_with(&prefix))
        });
        let machines = machines.filter_map(|m| endpoint.reference(&Subject::Machine(m.id)));
        let machines = list(machines.cloned().collect::<Vec<_>>());
        endpoint.model.set(&this, "vm", machines);
    }
    for number in 0..site.networks.len() {
        let Some(this) = endpoint.reference(&Subject::Network(number)).cloned() else { continue };
        let machines = site.machines.values().filter(|m| m.networks.contains(&number));
        let machines = machines.filter_map(|m| endpoint.reference(&Subject::Machine(m.id)));
        let machines = list(machines.cloned().collect::<Vec<_>>());
        endpoint.model.set(&this, "vm", machines);
    }
}
