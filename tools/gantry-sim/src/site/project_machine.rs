//! Machines and snapshots as managed objects.
//!
//! In: the site. Out: each machine's properties on vCenter and on its host, and each snapshot's.

use super::devices::devices;
use super::machine::{Disk, LinkKind, Machine, Snapshot};
use super::project::{entity, folder_of};
use super::{Site, Subject, Tree};
use crate::schema::{Ref, Value, list, object, reference};
use crate::sim::{Endpoint, Kind};

/// All machines that the endpoint sees; those it no longer sees go.
pub(super) fn machines(endpoint: &mut Endpoint, site: &Site) {
    let gone: Vec<Subject> = endpoint.tied().filter(|s| is_gone(endpoint, site, s)).collect();
    for subject in &gone {
        endpoint.untie(subject);
    }
    let kind = endpoint.kind;
    for machine in site.machines.values().filter(|m| sees(kind, m)) {
        let this = object_of(endpoint, machine);
        for snapshot in &machine.snapshots {
            let subject = Subject::Snapshot(machine.id, snapshot.id);
            if endpoint.reference(&subject).is_none() {
                let id = snapshot_id(endpoint, machine, snapshot);
                endpoint.tie(subject, &reference("VirtualMachineSnapshot", id));
            }
        }
        project(endpoint, site, machine, &this);
        snapshots(endpoint, site, machine, &this);
    }
}

fn sees(kind: Kind, machine: &Machine) -> bool {
    match kind {
        Kind::VCenter => true,
        Kind::Host(host) => machine.host == host,
    }
}

fn is_gone(endpoint: &Endpoint, site: &Site, subject: &Subject) -> bool {
    let machine = |id| site.machines.get(&id).filter(|m| sees(endpoint.kind, m));
    match subject {
        Subject::Machine(id) => machine(*id).is_none(),
        Subject::Snapshot(id, snapshot) => {
            machine(*id).is_none_or(|machine| machine.snapshot(*snapshot).is_none())
        }
        _ => false,
    }
}

fn object_of(endpoint: &mut Endpoint, machine: &Machine) -> Ref {
    let subject = Subject::Machine(machine.id);
    if let Some(found) = endpoint.reference(&subject) {
        return found.clone();
    }
    let id = match endpoint.kind {
        Kind::VCenter => format!("vm-{}", endpoint.model.next_serial() + 1),
        Kind::Host(_) => machine.id.to_string(),
    };
    let made = reference("VirtualMachine", id);
    endpoint.tie(subject, &made);
    made
}

fn snapshot_id(endpoint: &mut Endpoint, machine: &Machine, snapshot: &Snapshot) -> String {
    match endpoint.kind {
        Kind::VCenter => format!("snapshot-{}", endpoint.model.next_serial() + 1),
        Kind::Host(_) => format!("{}-snapshot-{}", machine.id, snapshot.number),
    }
}

fn project(endpoint: &mut Endpoint, site: &Site, machine: &Machine, this: &Ref) {
    let path = if endpoint.kind == Kind::VCenter { &machine.folder } else { "" };
    let parent = folder_of(endpoint, machine.datacenter, Tree::Vm, path);
    entity(endpoint, this, &machine.name, parent.as_ref());
    let config = config(endpoint, site, machine, &machine.disks, machine.cbt);
    let runtime = runtime(endpoint, machine);
    let stores = stores(site, machine);
    let stores = stores.iter().filter_map(|s| endpoint.reference(&Subject::Datastore(*s)).cloned());
    let stores = list(stores.collect::<Vec<_>>());
    let networks = machine.networks.iter();
    let networks = networks.filter_map(|n| endpoint.reference(&Subject::Network(*n)).cloned());
    let networks = list(networks.collect::<Vec<_>>());
    let pool = if endpoint.kind == Kind::VCenter { machine.pool.clone() } else { String::new() };
    let compute = site.hosts[machine.host].compute;
    let pool = endpoint.reference(&Subject::Pool(compute, pool)).cloned();
    let pool = pool.filter(|_| !machine.template);
    let fields = field_values(machine);
    let tags = machine.tags.iter().map(|tag| object("Tag", [("key", tag.into())]));
    let layout = layout(endpoint, site, machine);
    let summary = summary(site, machine, this, runtime.clone(), fields.clone());
    let info = snapshot_info(endpoint, machine);
    let roots = info.at("rootSnapshotList").items().iter().map(|root| root.at("snapshot").clone());
    let roots = list(roots.collect::<Vec<_>>());
    let model = &mut endpoint.model;
    model.set(this, "config", config);
    model.set(this, "runtime", runtime);
    model.set(this, "guest", guest(site, machine));
    model.set(this, "capability", capability(machine));
    model.set(this, "summary", summary);
    model.set(this, "datastore", stores);
    model.set(this, "network", networks);
    model.set(this, "resourcePool", pool);
    model.set(this, "customValue", fields.clone());
    model.set(this, "value", fields);
    model.set(this, "tag", list(tags));
    model.set(this, "layoutEx", layout);
    model.set(this, "snapshot", info);
    model.set(this, "rootSnapshot", roots);
    model.set(this, "guestHeartbeatStatus", if machine.tools { "green" } else { "gray" });
}

fn stores(site: &Site, machine: &Machine) -> Vec<usize> {
    let uses = |(at, name): (usize, &str)| {
        let prefix = format!("[{name}]");
        let disk = machine.disks.iter().any(|disk| disk.file().starts_with(&prefix));
        (disk || machine.datastore == at).then_some(at)
    };
    site.datastores
        .iter()
        .enumerate()
        .map(|(at, s)| (at, s.name.as_str()))
        .filter_map(uses)
        .collect()
}

fn field_values(machine: &Machine) -> Value {
    let values = machine.fields.iter().map(|(key, value)| {
        object("CustomFieldStringValue", [("key", (*key).into()), ("value", value.into())])
    });
    list(values)
}

fn guest_name(machine: &Machine) -> String {
    match machine.guest_id.as_str() {
        "otherLinux64Guest" => "Other Linux (64-bit)".into(),
        "windows2019srv_64Guest" => "Microsoft Windows Server 2019 (64-bit)".into(),
        other => other.to_owned(),
    }
}

/// A machine's configuration with these disks: its own now, or a snapshot's.
fn config(endpoint: &Endpoint, site: &Site, machine: &Machine, disks: &[Disk], cbt: bool) -> Value {
    let store = &site.datastores[machine.datastore];
    let home = format!("[{}] {}/", store.name, machine.home);
    let hardware = object(
        "VirtualHardware",
        [
            ("numCPU", machine.cpus.into()),
            ("numCoresPerSocket", 1.into()),
            ("memoryMB", machine.memory_mib.into()),
            ("device", devices(endpoint, site, machine, disks)),
        ],
    );
    let url = object(
        "VirtualMachineConfigInfoDatastoreUrlPair",
        [("name", (&store.name).into()), ("url", format!("/vmfs/volumes/{}", store.uuid).into())],
    );
    let extra = machine
        .extra
        .iter()
        .map(|(key, value)| object("OptionValue", [("key", key.into()), ("value", value.into())]));
    let ctk = disks.iter().filter(|d| cbt && d.in_snapshots() && !d.attached).map(|disk| {
        let bus = disk.controller - 1000;
        let key = format!("scsi{bus}:{}.ctkEnabled", disk.unit);
        object("OptionValue", [("key", key.into()), ("value", "TRUE".into())])
    });
    let extra: Vec<Value> = extra.chain(ctk).collect();
    let files = object(
        "VirtualMachineFileInfo",
        [
            ("vmPathName", machine.config_file(&store.name).into()),
            ("snapshotDirectory", home.as_str().into()),
            ("suspendDirectory", home.as_str().into()),
            ("logDirectory", home.as_str().into()),
        ],
    );
    object(
        "VirtualMachineConfigInfo",
        [
            ("changeVersion", change_version(machine).into()),
            ("modified", machine.modified.into()),
            ("name", (&machine.name).into()),
            ("guestFullName", guest_name(machine).into()),
            ("version", (&machine.hardware).into()),
            ("uuid", (&machine.uuid).into()),
            ("createDate", site.started.into()),
            ("instanceUuid", (&machine.instance_uuid).into()),
            ("template", machine.template.into()),
            ("guestId", (&machine.guest_id).into()),
            ("alternateGuestName", "".into()),
            ("annotation", (&machine.annotation).into()),
            ("files", files),
            ("tools", object("ToolsConfigInfo", [("toolsVersion", 12_389.into())])),
            ("flags", object("VirtualMachineFlagInfo", [("diskUuidEnabled", true.into())])),
            ("defaultPowerOps", object("VirtualMachineDefaultPowerOpInfo", [])),
            ("hardware", hardware),
            ("extraConfig", list(extra)),
            ("datastoreUrl", list([url])),
            (
                "bootOptions",
                object("VirtualMachineBootOptions", [("enterBIOSSetup", false.into())]),
            ),
            ("changeTrackingEnabled", cbt.into()),
            ("firmware", (&machine.firmware).into()),
        ],
    )
}

/// What changes whenever the configuration does.
#[must_use]
pub fn change_version(machine: &Machine) -> String {
    format!("{:.6}-{}", machine.modified, machine.change_version)
}

fn runtime(endpoint: &Endpoint, machine: &Machine) -> Value {
    let on = machine.power == super::Power::On;
    object(
        "VirtualMachineRuntimeInfo",
        [
            ("host", endpoint.reference(&Subject::Host(machine.host)).cloned().into()),
            ("connectionState", machine.connection.as_str().into()),
            ("powerState", machine.power.name().into()),
            ("faultToleranceState", "notConfigured".into()),
            ("toolsInstallerMounted", false.into()),
            ("maxCpuUsage", on.then_some(5000).into()),
            ("maxMemoryUsage", on.then_some(machine.memory_mib).into()),
            ("numMksConnections", 0.into()),
            ("recordReplayState", "inactive".into()),
            ("onlineStandby", false.into()),
            ("consolidationNeeded", machine.consolidation_needed.into()),
        ],
    )
}

fn guest(site: &Site, machine: &Machine) -> Value {
    let running = if machine.tools { "guestToolsRunning" } else { "guestToolsNotRunning" };
    let status = if machine.tools { "toolsOk" } else { "toolsNotRunning" };
    let cards = machine.networks.iter().enumerate().map(|(at, network)| {
        let addresses: Vec<&str> = machine.ip_address.as_deref().into_iter().collect();
        object(
            "GuestNicInfo",
            [
                ("network", (&site.networks[*network].name).into()),
                ("ipAddress", list(addresses)),
                ("connected", (machine.power == super::Power::On).into()),
                ("deviceConfigId", (4000 + at).into()),
            ],
        )
    });
    let on = machine.tools;
    object(
        "GuestInfo",
        [
            ("toolsStatus", status.into()),
            ("toolsRunningStatus", running.into()),
            ("toolsVersion", "12389".into()),
            ("guestId", on.then_some(machine.guest_id.as_str()).into()),
            ("guestFullName", on.then(|| guest_name(machine)).into()),
            ("hostName", machine.host_name.clone().filter(|_| on).into()),
            ("ipAddress", machine.ip_address.clone().filter(|_| on).into()),
            ("net", if on { list(cards.collect::<Vec<_>>()) } else { Value::Absent }),
            ("guestState", if on { "running" } else { "notRunning" }.into()),
            ("guestOperationsReady", on.into()),
        ],
    )
}

fn capability(machine: &Machine) -> Value {
    let tracked = hardware_number(machine) >= 7;
    let all = [
        "snapshotOperationsSupported",
        "multipleSnapshotsSupported",
        "snapshotConfigSupported",
        "poweredOffSnapshotsSupported",
        "memorySnapshotsSupported",
        "revertToSnapshotSupported",
        "quiescedSnapshotsSupported",
        "diskSharesSupported",
        "bootOptionsSupported",
    ];
    let fields = all.into_iter().map(|name| (name, Value::from(true)));
    object("VirtualMachineCapability", fields.chain([("changeTrackingSupported", tracked.into())]))
}

/// The number in `vmx-19`.
#[must_use]
pub fn hardware_number(machine: &Machine) -> u32 {
    machine.hardware.strip_prefix("vmx-").and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn summary(site: &Site, machine: &Machine, this: &Ref, runtime: Value, fields: Value) -> Value {
    let store = &site.datastores[machine.datastore].name;
    let config = object(
        "VirtualMachineConfigSummary",
        [
            ("name", (&machine.name).into()),
            ("template", machine.template.into()),
            ("vmPathName", machine.config_file(store).into()),
            ("memorySizeMB", machine.memory_mib.into()),
            ("numCpu", machine.cpus.into()),
            ("numEthernetCards", machine.networks.len().into()),
            ("numVirtualDisks", machine.disks.len().into()),
            ("uuid", (&machine.uuid).into()),
            ("instanceUuid", (&machine.instance_uuid).into()),
            ("guestId", (&machine.guest_id).into()),
            ("guestFullName", guest_name(machine).into()),
            ("annotation", (&machine.annotation).into()),
            ("tpmPresent", machine.tpm.into()),
            ("hwVersion", (&machine.hardware).into()),
        ],
    );
    let bytes: u64 = machine.disks.iter().map(|disk| disk.capacity_bytes).sum();
    let storage = object(
        "VirtualMachineStorageSummary",
        [
            ("committed", bytes.into()),
            ("uncommitted", 0i64.into()),
            ("unshared", bytes.into()),
            ("timestamp", machine.modified.into()),
        ],
    );
    let status = if machine.tools { "toolsOk" } else { "toolsNotRunning" };
    let guest = object(
        "VirtualMachineGuestSummary",
        [
            ("guestId", (&machine.guest_id).into()),
            ("toolsStatus", status.into()),
            ("hostName", machine.host_name.clone().into()),
            ("ipAddress", machine.ip_address.clone().into()),
        ],
    );
    let stats = object("VirtualMachineQuickStats", [("guestHeartbeatStatus", "green".into())]);
    object(
        "VirtualMachineSummary",
        [
            ("vm", this.into()),
            ("runtime", runtime),
            ("guest", guest),
            ("config", config),
            ("storage", storage),
            ("quickStats", stats),
            ("overallStatus", "green".into()),
            ("customValue", fields),
        ],
    )
}

fn snapshot_info(endpoint: &Endpoint, machine: &Machine) -> Value {
    if machine.snapshots.is_empty() {
        return Value::Absent;
    }
    let current = machine.current.map(|id| Subject::Snapshot(machine.id, id));
    let current = current.and_then(|subject| endpoint.reference(&subject).cloned());
    object(
        "VirtualMachineSnapshotInfo",
        [
            ("currentSnapshot", current.into()),
            ("rootSnapshotList", trees(endpoint, machine, None, 0)),
        ],
    )
}

fn trees(endpoint: &Endpoint, machine: &Machine, above: Option<u32>, depth: usize) -> Value {
    let here = machine.snapshots.iter().filter(|s| s.parent == above && depth < 64);
    let trees = here.map(|snapshot| {
        let subject = Subject::Snapshot(machine.id, snapshot.id);
        object(
            "VirtualMachineSnapshotTree",
            [
                ("snapshot", endpoint.reference(&subject).cloned().into()),
                ("vm", endpoint.reference(&Subject::Machine(machine.id)).cloned().into()),
                ("name", (&snapshot.name).into()),
                ("description", (&snapshot.description).into()),
                ("id", snapshot.number.into()),
                ("createTime", snapshot.created.into()),
                ("state", snapshot.power.name().into()),
                ("quiesced", snapshot.quiesced.into()),
                ("childSnapshotList", trees(endpoint, machine, Some(snapshot.id), depth + 1)),
                ("replaySupported", false.into()),
            ],
        )
    });
    list(trees.collect::<Vec<_>>())
}

fn snapshots(endpoint: &mut Endpoint, site: &Site, machine: &Machine, this: &Ref) {
    for snapshot in &machine.snapshots {
        let subject = Subject::Snapshot(machine.id, snapshot.id);
        let Some(object) = endpoint.reference(&subject).cloned() else { continue };
        let config = config(endpoint, site, machine, &snapshot.disks, snapshot.cbt);
        let children = machine.snapshots.iter().filter(|s| s.parent == Some(snapshot.id));
        let children = children
            .filter_map(|s| endpoint.reference(&Subject::Snapshot(machine.id, s.id)).cloned());
        let children = list(children.collect::<Vec<_>>());
        endpoint.model.set(&object, "config", config);
        endpoint.model.set(&object, "vm", this);
        endpoint.model.set(&object, "childSnapshot", children);
    }
}

/// The machine's files: descriptors and extents of each link of each disk.
fn layout(endpoint: &Endpoint, site: &Site, machine: &Machine) -> Value {
    let store = &site.datastores[machine.datastore].name;
    let home = format!("[{store}] {}/{}", machine.home, machine.stem);
    let mut files = Files::default();
    files.add(format!("{home}.vmx"), "config", 4096);
    files.add(format!("{home}.vmsd"), "snapshotList", 64);
    files.add(format!("{home}.nvram"), "nvram", 8684);
    let disks: Vec<Value> = machine.disks.iter().map(|disk| files.disk(disk)).collect();
    let mut snapshots = Vec::new();
    for snapshot in &machine.snapshots {
        let subject = Subject::Snapshot(machine.id, snapshot.id);
        let Some(key) = endpoint.reference(&subject).cloned() else { continue };
        let name = format!("{home}-Snapshot{}.vmsn", snapshot.number);
        let data = files.add(name, "snapshotData", 20_480);
        let disks: Vec<Value> = snapshot.disks.iter().map(|disk| files.disk(disk)).collect();
        snapshots.push(object(
            "VirtualMachineFileLayoutExSnapshotLayout",
            [
                ("key", key.into()),
                ("dataKey", data.into()),
                ("memoryKey", (-1).into()),
                ("disk", list(disks)),
            ],
        ));
    }
    object(
        "VirtualMachineFileLayoutEx",
        [
            ("file", list(files.all)),
            ("disk", list(disks)),
            ("snapshot", list(snapshots)),
            ("timestamp", machine.modified.into()),
        ],
    )
}

#[derive(Default)]
struct Files {
    all: Vec<Value>,
    keys: std::collections::BTreeMap<String, i32>,
}

impl Files {
    fn add(&mut self, name: String, ty: &str, size: u64) -> i32 {
        let next = i32::try_from(self.all.len()).unwrap_or(i32::MAX);
        *self.keys.entry(name.clone()).or_insert_with(|| {
            self.all.push(object(
                "VirtualMachineFileLayoutExFileInfo",
                [
                    ("key", next.into()),
                    ("name", name.into()),
                    ("type", ty.into()),
                    ("size", size.into()),
                    ("uniqueSize", size.into()),
                    ("accessible", true.into()),
                ],
            ));
            next
        })
    }

    fn disk(&mut self, disk: &Disk) -> Value {
        // Oldest first, as layoutEx has it.
        let units = disk.chain.iter().rev().map(|link| {
            let stem = link.file.strip_suffix(".vmdk").unwrap_or(&link.file).to_owned();
            let extent = match link.kind {
                LinkKind::Flat => "-flat.vmdk",
                LinkKind::VmfsSparse => "-delta.vmdk",
                LinkKind::SeSparse => "-sesparse.vmdk",
                LinkKind::RawDevice { physical: true } => "-rdmp.vmdk",
                LinkKind::RawDevice { physical: false } => "-rdm.vmdk",
            };
            let descriptor = self.add(link.file.clone(), "diskDescriptor", 512);
            let extent = self.add(stem + extent, "diskExtent", disk.capacity_bytes);
            object("VirtualMachineFileLayoutExDiskUnit", [("fileKey", list([descriptor, extent]))])
        });
        let units = units.collect::<Vec<_>>();
        let fields = [("key", disk.key.into()), ("chain", list(units))];
        object("VirtualMachineFileLayoutExDiskLayout", fields)
    }
}
