//! `gantry vcenter probe`: what a vCenter or ESXi says about itself and its machines, read-only.
//!
//! In: a client. Out: a [`ProbeReport`] that an administrator can read and send: versions,
//! privileges, every disk with what stands against snapshots and CBT, which transport modes would
//! work, and a measured read speed. Nothing is changed: no snapshot, no setting. What cannot be
//! asked is a note, not an error: half a report from a real vCenter is worth more than none.

use std::time::{Duration, Instant};

use gantry_http::{Request, header};
use serde::Serialize;

use crate::broker::devices::Devices;
use crate::broker::parse::snapshots;
use crate::broker::{DiskFacts, VmFacts};
use crate::snapshots::FrozenDisk;
use crate::snapshots::eligible::disk_obstacle;
use crate::transport::{Need, ProxyFacts, roads};
use crate::vcenter::datastore_file::{datacenter_of, flat_name, folder_path};
use crate::vcenter::property::{ObjectContent, Properties, Start};
use crate::vcenter::{Element, VCenter, VimError};

/// Privileges that a backup uses, on the root folder.
const PRIVILEGES: [&str; 14] = [
    "VirtualMachine.State.CreateSnapshot",
    "VirtualMachine.State.RemoveSnapshot",
    "VirtualMachine.Config.ChangeTracking",
    "VirtualMachine.Config.DiskLease",
    "VirtualMachine.Config.AddExistingDisk",
    "VirtualMachine.Config.RemoveDisk",
    "VirtualMachine.Provisioning.DiskRandomRead",
    "VirtualMachine.Provisioning.GetVmFiles",
    "VirtualMachine.Inventory.Register",
    "VApp.Export",
    "Datastore.Browse",
    "Datastore.FileManagement",
    "Global.DisableMethods",
    "Sessions.ValidateSession",
];
const VM_PATHS: [&str; 11] = [
    "name",
    "config.instanceUuid",
    "config.version",
    "config.template",
    "config.guestFullName",
    "config.changeTrackingEnabled",
    "capability.changeTrackingSupported",
    "runtime.powerState",
    "runtime.consolidationNeeded",
    "snapshot",
    "config.hardware.device",
];
/// Bytes read to measure, and the size of one request.
const MEASURE_BYTES: u64 = 64 << 20;
const MEASURE_CHUNK: u64 = 1 << 20;
const MEASURE_AT_MOST: Duration = Duration::from_secs(20);
/// Machines in a report.
const MACHINES_MAX: usize = 5_000;

/// The report.
#[derive(Debug, Clone, Serialize)]
pub struct ProbeReport {
    /// `host:port`.
    pub endpoint: String,
    /// Product name with version and build.
    pub product: String,
    /// API version.
    pub api_version: String,
    /// A vCenter, as opposed to an ESXi host.
    pub is_vcenter: bool,
    /// Instance UUID of a vCenter.
    pub instance_uuid: Option<String>,
    /// Privileges on the root folder; nothing where they cannot be asked.
    pub privileges: Vec<Privilege>,
    /// Each machine.
    pub machines: Vec<Machine>,
    /// Measured read of a flat disk through `/folder`, if one could be read.
    pub https_read: Option<Measured>,
    /// What could not be found out, and why.
    pub notes: Vec<String>,
    /// What of this is only known from simulators.
    pub support: &'static str,
}

/// A privilege.
#[derive(Debug, Clone, Serialize)]
pub struct Privilege {
    /// Its id.
    pub name: &'static str,
    /// Whether the user has it.
    pub granted: bool,
}

/// A virtual machine.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Name.
    pub name: String,
    /// Reference.
    pub moref: String,
    /// Hardware version, such as `vmx-19`.
    pub hardware: Option<String>,
    /// Guest system.
    pub guest: Option<String>,
    /// It is a template.
    pub is_template: bool,
    /// `poweredOn`, …
    pub power: Option<String>,
    /// Snapshots it has.
    pub snapshots: usize,
    /// Delta files wait to be merged.
    pub consolidation_needed: bool,
    /// CBT is on.
    pub cbt_enabled: bool,
    /// CBT is supported by the host, if it says so.
    pub cbt_supported: Option<bool>,
    /// Its disks.
    pub disks: Vec<ProbedDisk>,
}

/// A disk.
#[derive(Debug, Clone, Serialize)]
pub struct ProbedDisk {
    /// Label.
    pub label: String,
    /// Device key.
    pub key: i32,
    /// Bytes.
    pub capacity_bytes: u64,
    /// UUID, if vSphere says one.
    pub uuid: Option<String>,
    /// Backing file.
    pub file: String,
    /// Kind of backing.
    pub backing: String,
    /// Disk mode.
    pub mode: String,
    /// Change id, if CBT is on.
    pub change_id: Option<String>,
    /// Why it cannot be snapshotted, if so.
    pub refused: Option<String>,
    /// Transport modes that would work for a full of it, in order.
    pub transports: Vec<String>,
    /// Why the others would not.
    pub not: Vec<String>,
}

/// A measured read.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// What was read.
    pub file: String,
    /// Bytes.
    pub bytes: u64,
    /// Seconds.
    pub seconds: f64,
}

/// Asks everything.
///
/// # Errors
/// Only if the endpoint cannot be reached, refuses the log-in, or does not list its machines.
pub async fn probe(vcenter: &VCenter, proxy: &ProxyFacts) -> Result<ProbeReport, VimError> {
    let content = vcenter.content().await?.clone();
    let mut notes = Vec::new();
    let privileges = match vcenter.has_privileges(&content.root_folder, &PRIVILEGES).await {
        Ok(granted) => PRIVILEGES
            .into_iter()
            .zip(granted)
            .map(|(name, granted)| Privilege { name, granted })
            .collect(),
        Err(error) => {
            notes.push(format!("privileges: {error}"));
            Vec::new()
        }
    };
    let view = vcenter.container_view(None, &["VirtualMachine"]).await?;
    let mut found: Vec<ObjectContent> = Vec::new();
    let properties = [Properties { kind: "VirtualMachine", paths: &VM_PATHS }];
    let listed = vcenter
        .retrieve(&properties, &Start::View(&view), |machine| {
            if found.len() < MACHINES_MAX {
                found.push(machine);
            }
        })
        .await;
    if let Err(error) = vcenter.destroy_view(&view).await {
        notes.push(format!("view: {error}"));
    }
    listed?;
    if found.len() == MACHINES_MAX {
        notes.push(format!("only the first {MACHINES_MAX} machines are listed"));
    }
    for machine in &found {
        let name = machine.text("name").unwrap_or("?");
        for (path, fault) in &machine.missing {
            notes.push(format!("{name}: {path} cannot be read: {fault}"));
        }
    }
    let machines: Vec<Machine> = found.iter().map(|content| machine(content, proxy)).collect();
    let https_read = measure(vcenter, &found, &machines, &mut notes).await;
    Ok(ProbeReport {
        endpoint: vcenter.http().endpoint().to_string(),
        product: format!("{} build {}", content.full_name, content.build),
        api_version: content.api_version,
        is_vcenter: content.is_vcenter,
        instance_uuid: content.instance_uuid,
        privileges,
        machines,
        https_read,
        notes,
        support: "Gantry's vSphere support is tested on simulators; please send this report",
    })
}

fn machine(content: &ObjectContent, proxy: &ProxyFacts) -> Machine {
    let text = |path: &str| content.text(path).map(str::to_owned);
    let flag = |path: &str| content.get(path).and_then(Element::as_bool);
    let devices = content.get("config.hardware.device");
    let disks = devices.map(|devices| disks(devices, proxy)).unwrap_or_default();
    Machine {
        name: text("name").unwrap_or_default(),
        moref: content.object.to_string(),
        hardware: text("config.version"),
        guest: text("config.guestFullName"),
        is_template: flag("config.template").unwrap_or(false),
        power: text("runtime.powerState"),
        snapshots: content.get("snapshot").map_or(0, |tree| snapshots(tree).len()),
        consolidation_needed: flag("runtime.consolidationNeeded").unwrap_or(false),
        cbt_enabled: flag("config.changeTrackingEnabled").unwrap_or(false),
        cbt_supported: flag("capability.changeTrackingSupported"),
        disks,
    }
}

fn disks(devices: &Element, proxy: &ProxyFacts) -> Vec<ProbedDisk> {
    let Devices { controllers, disks, .. } = Devices::parse(devices);
    let vm = VmFacts { controllers, disks, ..VmFacts::default() };
    let backing = |key: i32| {
        let device = devices.children.iter().find(|device| device.number_at("key") == Some(key));
        device.and_then(|device| device.child("backing")).cloned().unwrap_or_default()
    };
    vm.disks.values().map(|disk| probed(&vm, disk, &backing(disk.key), proxy)).collect()
}

/// `backing` tells type and mode as vSphere writes them: the report is evidence.
fn probed(vm: &VmFacts, facts: &DiskFacts, backing: &Element, proxy: &ProxyFacts) -> ProbedDisk {
    let controller = vm.controllers.get(&facts.controller_key).map(|controller| controller.kind);
    let disk = FrozenDisk { facts: facts.clone(), controller };
    let judged = roads(&disk.for_transport(), proxy, &[], Need::Full);
    ProbedDisk {
        label: facts.label.to_string(),
        key: facts.key,
        capacity_bytes: facts.capacity_bytes,
        uuid: (!facts.uuid.is_empty()).then(|| facts.uuid.to_string()),
        file: facts.file.to_string(),
        backing: backing.kind().to_owned(),
        mode: backing.text_at("diskMode").unwrap_or_default().to_owned(),
        change_id: facts.change_id.as_ref().map(|id| id.to_string()),
        refused: disk_obstacle(vm, facts).map(|obstacle| obstacle.to_string()),
        transports: judged.open.iter().map(|road| road.mode.to_string()).collect(),
        not: judged.closed.iter().map(|road| format!("{}: {}", road.mode, road.reason)).collect(),
    }
}

/// Reads from the flat file of a machine that is off: of one that runs, it is locked.
async fn measure(
    vcenter: &VCenter,
    found: &[ObjectContent],
    machines: &[Machine],
    notes: &mut Vec<String>,
) -> Option<Measured> {
    let off = machines.iter().zip(found).filter(|(machine, _)| {
        machine.power.as_deref() == Some("poweredOff") && machine.snapshots == 0
    });
    for (machine, content) in off.take(8) {
        let flat = machine.disks.iter().find(|disk| disk.file.ends_with(".vmdk"));
        let Some(disk) = flat else { continue };
        let datacenter = datacenter_of(vcenter, &content.object).await;
        let Some(path) = folder_path(&flat_name(&disk.file), datacenter.as_deref()) else {
            continue;
        };
        match read_for_a_while(vcenter, &path, disk.capacity_bytes).await {
            Ok((bytes, seconds)) => {
                return Some(Measured { file: disk.file.clone(), bytes, seconds });
            }
            Err(what) => notes.push(format!("{}: reading {path}: {what}", machine.name)),
        }
    }
    notes.push(
        "read speed over https was not measured: no disk of a machine that is off could be read"
            .to_owned(),
    );
    None
}

async fn read_for_a_while(
    vcenter: &VCenter,
    path: &str,
    capacity: u64,
) -> Result<(u64, f64), String> {
    let cookie = vcenter.session_cookie().await.map_err(|error| error.to_string())?;
    let began = Instant::now();
    let mut read = 0;
    while read < MEASURE_BYTES.min(capacity) && began.elapsed() < MEASURE_AT_MOST {
        let length = MEASURE_CHUNK.min(capacity - read);
        let request = Request::get(path.to_owned())
            .range(read, length)
            .header(header::COOKIE, cookie.reveal());
        let answer = vcenter.http().send(&request).await.map_err(|error| error.to_string())?;
        if answer.status().as_u16() != 206 {
            return Err(format!("HTTP status {}", answer.status()));
        }
        let body = answer.body_bounded(length as usize).await.map_err(|error| error.to_string())?;
        if body.len() as u64 != length {
            return Err(format!("{} of {length} bytes came", body.len()));
        }
        read += length;
    }
    Ok((read, began.elapsed().as_secs_f64()))
}
