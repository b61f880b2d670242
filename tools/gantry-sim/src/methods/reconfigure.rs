//! `ReconfigVM_Task`: settings, change tracking, and devices added, removed and grown.
//!
//! A disk added without a file operation is another machine's disk (hot-add): the engine shows its
//! content to the proxy. What a real host refuses is refused: files that a running machine writes
//! to, places that are taken, controllers that are not there, disks that have snapshots.

use std::collections::BTreeMap;

use super::Call;
use super::snapshots::refresh;
use crate::disks;
use crate::fault::Fault;
use crate::schema::Value;
use crate::sim::Sim;
use crate::site::machine::{Disk, Link, LinkKind, Machine};
use crate::site::{self, Power, Subject};
use crate::storage::{DatastorePath, DiskId, DiskSpec};
use crate::tasks::{machine_mut, machine_of, start_on_machine};

/// Unit number of the controller itself.
const OWN_UNIT: i32 = 7;
/// Units on a SCSI controller (its own among them).
const UNITS: i32 = 16;
/// SCSI controllers of a machine.
const CONTROLLERS_MAX: usize = 4;
/// The key of the first SCSI controller.
const CONTROLLER_KEY: i32 = 1000;
/// The first hardware version whose changes can be tracked.
const TRACKED_HARDWARE_MIN: u32 = 7;

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    let id = machine_of(call)?;
    let spec = call.arguments.get("spec").clone();
    start_on_machine(call, move |sim| reconfigure(sim, id, &spec))
}

/// Applies a `VirtualMachineConfigSpec`.
pub(super) fn reconfigure(sim: &Sim, id: u32, spec: &Value) -> Result<Value, Fault> {
    {
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?;
        let given = spec.at("changeVersion").text();
        if given.is_some_and(|given| given != site::change_version(machine)) {
            let message = "The configuration has changed since this change version.";
            return Err(Fault::new("ConcurrentAccess", message));
        }
    }
    if let Some(wanted) = spec.at("changeTrackingEnabled").bool() {
        track(sim, id, wanted)?;
    }
    let mut keys = BTreeMap::new();
    for (at, change) in spec.at("deviceChange").items().iter().enumerate() {
        device(sim, id, change, &mut keys).map_err(|fault| indexed(fault, at))?;
    }
    settings(sim, id, spec)?;
    refresh(sim, id)
}

/// A fault about a device says which one of the specification.
fn indexed(mut fault: Fault, at: usize) -> Fault {
    if crate::schema::schema().is_a(fault.detail.ty, "InvalidDeviceSpec") {
        fault.detail.set("deviceIndex", at);
    }
    fault
}

fn invalid(property: &str, message: impl Into<String>) -> Fault {
    Fault::new("InvalidDeviceSpec", message).with("property", property)
}

fn track(sim: &Sim, id: u32, wanted: bool) -> Result<(), Fault> {
    let own = {
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?;
        if wanted && site::hardware_number(machine) < TRACKED_HARDWARE_MIN {
            let message = "Changed block tracking is not supported by this hardware version.";
            return Err(Fault::not_supported(message));
        }
        machine.cbt = wanted;
        machine.own_disks()
    };
    for disk in own {
        let storage = &sim.storage;
        let done = if wanted { storage.enable_cbt(disk) } else { storage.disable_cbt(disk) };
        done.map_err(|error| disks::fault(&error))?;
    }
    Ok(())
}

fn settings(sim: &Sim, id: u32, spec: &Value) -> Result<(), Fault> {
    let mut state = sim.lock();
    let machine = machine_mut(&mut state, id)?;
    let text = |field: &str, place: &mut String| {
        if let Some(text) = spec.at(field).text() {
            text.clone_into(place);
        }
    };
    text("name", &mut machine.name);
    text("annotation", &mut machine.annotation);
    text("guestId", &mut machine.guest_id);
    text("firmware", &mut machine.firmware);
    text("uuid", &mut machine.uuid);
    text("instanceUuid", &mut machine.instance_uuid);
    let number = |field: &str| spec.at(field).number().and_then(|n| i32::try_from(n).ok());
    machine.cpus = number("numCPUs").unwrap_or(machine.cpus);
    machine.memory_mib = number("memoryMB").unwrap_or(machine.memory_mib);
    for option in spec.at("extraConfig").items() {
        let Some(key) = option.at("key").text() else { continue };
        match option.at("value").text() {
            None | Some("") => machine.extra.remove(key),
            Some(value) => machine.extra.insert(key.to_owned(), value.to_owned()),
        };
    }
    Ok(())
}

/// Keys that the client invented for new controllers, and what they became.
type Keys = BTreeMap<i64, i32>;

fn device(sim: &Sim, id: u32, change: &Value, keys: &mut Keys) -> Result<(), Fault> {
    let device = change.at("device");
    let operation = change.at("operation").text().unwrap_or("add");
    if device.is_a("VirtualSCSIController") {
        return controller(sim, id, operation, device, keys);
    }
    if device.is_a("VirtualEthernetCard") {
        return card(sim, id, operation, device);
    }
    if device.is_a("VirtualTPM") {
        let mut state = sim.lock();
        machine_mut(&mut state, id)?.tpm = operation != "remove";
        return Ok(());
    }
    if !device.is_a("VirtualDisk") {
        // The rest is accepted as it is: backups do not depend on it.
        return Ok(());
    }
    match operation {
        "add" => add(sim, id, change, keys),
        "remove" => remove(sim, id, change),
        _ => grow(sim, id, device),
    }
}

/// Network cards: added by their network's name or object, removed by key, else left as they are.
fn card(sim: &Sim, id: u32, operation: &str, device: &Value) -> Result<(), Fault> {
    let mut state = sim.lock();
    let datacenter = machine_mut(&mut state, id)?.datacenter;
    let name = device.at("backing.deviceName").text().unwrap_or_default();
    let asked = device.at("backing.network").reference().cloned();
    let asked = asked.map(|asked| state.endpoints.iter().find_map(|e| e.subject(&asked).cloned()));
    let found = match asked.flatten() {
        Some(Subject::Network(number)) => Some(number),
        _ => {
            let mut networks = state.site.networks.iter();
            networks.position(|n| n.name == name && n.datacenter == datacenter)
        }
    };
    let machine = machine_mut(&mut state, id)?;
    match operation {
        "add" => {
            let message = format!("There is no network {name}.");
            machine.networks.push(found.ok_or_else(|| invalid("backing.network", message))?);
        }
        "remove" => {
            let key = device.at("key").number().unwrap_or(-1) - 4000;
            if let Some(at) = usize::try_from(key).ok().filter(|at| *at < machine.networks.len()) {
                machine.networks.remove(at);
            }
        }
        _ => {}
    }
    Ok(())
}

fn controller(
    sim: &Sim,
    id: u32,
    operation: &str,
    device: &Value,
    keys: &mut Keys,
) -> Result<(), Fault> {
    let mut state = sim.lock();
    let machine = machine_mut(&mut state, id)?;
    let key = device.at("key").number().unwrap_or(-1);
    match operation {
        "add" if machine.controllers.len() >= CONTROLLERS_MAX => {
            Err(invalid("device", "A machine has at most four SCSI controllers."))
        }
        "add" => {
            let taken = |key: &i32| machine.controllers.iter().any(|(found, _)| found == key);
            let free = (CONTROLLER_KEY..).find(|key| !taken(key)).unwrap_or(CONTROLLER_KEY);
            let sharing = device.at("sharedBus").text().unwrap_or("noSharing").to_owned();
            machine.controllers.push((free, sharing));
            keys.insert(key, free);
            Ok(())
        }
        "remove" => {
            if machine.disks.iter().any(|disk| i64::from(disk.controller) == key) {
                return Err(invalid("device", "The controller still has disks."));
            }
            machine.controllers.retain(|(found, _)| i64::from(*found) != key);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Where a new disk goes: controller, unit, and the device key that follows from them.
fn place(machine: &Machine, device: &Value, keys: &Keys) -> Result<(i32, i32, i32), Fault> {
    let asked = device.at("controllerKey").number().unwrap_or(i64::from(CONTROLLER_KEY));
    let asked = keys.get(&asked).copied().or_else(|| i32::try_from(asked).ok());
    let found = machine.controllers.iter().position(|(key, _)| Some(*key) == asked);
    let Some(bus) = found else {
        // IDE and SATA controllers are there, but take no disk while the machine runs.
        let message = "The disk's controller is no SCSI controller of this machine.";
        return Err(Fault::new("InvalidController", message)
            .with("property", "controllerKey")
            .with("deviceIndex", 0)
            .with("controllerKey", asked.unwrap_or(-1)));
    };
    let controller = machine.controllers[bus].0;
    let taken = |unit: i32| {
        let mut disks = machine.disks.iter().filter(|disk| disk.controller == controller);
        unit == OWN_UNIT || disks.any(|disk| disk.unit == unit)
    };
    let unit = match device.at("unitNumber").number() {
        Some(unit) if unit >= 0 => {
            let unit = i32::try_from(unit).ok().filter(|unit| *unit < UNITS && !taken(*unit));
            unit.ok_or_else(|| invalid("unitNumber", "The unit number is taken or out of range."))?
        }
        _ => {
            let free = (0..UNITS).find(|unit| !taken(*unit));
            free.ok_or_else(|| invalid("unitNumber", "The controller has no free place."))?
        }
    };
    let bus = i32::try_from(bus).unwrap_or(0);
    Ok((controller, unit, 2000 + bus * UNITS + unit))
}

fn add(sim: &Sim, id: u32, change: &Value, keys: &Keys) -> Result<(), Fault> {
    let device = change.at("device");
    let (machine, home) = {
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?.clone();
        let home = state.site.datastores[machine.datastore].name.clone();
        (machine, home)
    };
    let (controller, unit, key) = place(&machine, device, keys)?;
    let mode = device.at("backing.diskMode").text().unwrap_or("persistent").to_owned();
    let made = if change.at("fileOperation").text() == Some("create") {
        create_disk(sim, &machine, &home, device)?
    } else {
        attach(sim, &machine, device, &mode)?
    };
    let disk = Disk {
        key,
        controller,
        unit,
        label: format!("Hard disk {}", machine.disks.len() + 1),
        mode,
        ..made
    };
    let mut state = sim.lock();
    machine_mut(&mut state, id)?.disks.push(disk);
    Ok(())
}

/// A disk's entry without its place in a machine.
pub(super) fn bare_disk(file: &DatastorePath) -> Disk {
    let link = Link {
        file: file.to_string(),
        kind: LinkKind::Flat,
        change_id: None,
        content_id: site::inventory::stable_uuid(&["content", &file.to_string()])[..8].to_owned(),
    };
    Disk {
        key: 0,
        controller: 0,
        unit: 0,
        label: String::new(),
        mode: String::new(),
        capacity_bytes: 0,
        uuid: String::new(),
        chain: vec![link],
        thin: false,
        shared: false,
        attached: false,
        storage: None,
    }
}

/// Attaches a disk that is there: another machine's, or one that nobody has.
fn attach(sim: &Sim, machine: &Machine, device: &Value, mode: &str) -> Result<Disk, Fault> {
    let name = device.at("backing.fileName").text().unwrap_or_default();
    let file = disks::path(name)?;
    if machine.disks.iter().any(|disk| disk.file() == name) {
        return Err(invalid("backing", "The machine has this disk already."));
    }
    let storage = match sim.storage.find_disk(&file) {
        Some(found) => found,
        None => sim.storage.adopt_disk(&file).map_err(|error| disks::fault(&error))?,
    };
    let info = sim.storage.disk(storage).map_err(|error| disks::fault(&error))?;
    // A disk without snapshots of a machine that is off may be written to: that is how a restore
    // through a proxy fills it.
    let idle = !info.locked && info.chain.len() == 1 && info.current_snapshot.is_none();
    let owner = owner_of(sim, storage);
    let mut disk = bare_disk(&file);
    (disk.uuid, disk.capacity_bytes, disk.thin) = (info.uuid, info.capacity_bytes, info.thin);
    disk.storage = Some(storage);
    if owner.is_none() && machine.power != Power::On {
        return Ok(disk);
    }
    if mode != "independent_nonpersistent" && !idle {
        // Any other mode would write to a disk that its owner's snapshots need unchanged.
        let owner = owner.as_deref().unwrap_or("another host");
        let message = format!("Failed to lock the file {file}: {owner} uses it.");
        return Err(Fault::new("FileLocked", message).with("file", file.to_string()));
    }
    sim.storage.hot_add(&file, &machine.name).map_err(|error| disks::fault(&error))?;
    disk.attached = true;
    Ok(disk)
}

/// The machine that a disk belongs to; those that it is only attached to do not count.
pub(super) fn owner_of(sim: &Sim, disk: DiskId) -> Option<String> {
    let state = sim.lock();
    let owns = |m: &&Machine| m.disks.iter().any(|d| !d.attached && d.storage == Some(disk));
    state.site.machines.values().find(owns).map(|machine| machine.name.clone())
}

fn create_disk(sim: &Sim, machine: &Machine, store: &str, device: &Value) -> Result<Disk, Fault> {
    let bytes = device.at("capacityInBytes").number().filter(|bytes| *bytes > 0);
    let kib = device.at("capacityInKB").number().unwrap_or(0).saturating_mul(1024);
    let capacity_bytes = u64::try_from(bytes.unwrap_or(kib)).unwrap_or(0);
    let asked = device.at("backing.fileName").text().unwrap_or_default();
    let file = if asked.ends_with(".vmdk") {
        disks::path(asked)?
    } else {
        let given = asked.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        free_name(sim, machine, given.map_or(store, |(given, _)| given))?
    };
    let thin = device.at("backing.thinProvisioned").bool().unwrap_or(false);
    let uuid = device.at("backing.uuid").text().map(str::to_owned);
    let spec = DiskSpec { file: file.clone(), capacity_bytes, image: None, uuid, thin };
    let storage = sim.storage.create_disk(&spec).map_err(|error| disks::fault(&error))?;
    if machine.power == Power::On {
        sim.storage.power_on(&[storage]).map_err(|error| disks::fault(&error))?;
    }
    let info = sim.storage.disk(storage).map_err(|error| disks::fault(&error))?;
    let mut disk = bare_disk(&file);
    (disk.uuid, disk.capacity_bytes, disk.thin) = (info.uuid, capacity_bytes, thin);
    disk.storage = Some(storage);
    Ok(disk)
}

fn free_name(sim: &Sim, machine: &Machine, store: &str) -> Result<DatastorePath, Fault> {
    let (home, stem) = (&machine.home, &machine.stem);
    let mut names = std::iter::once(format!("{home}/{stem}.vmdk"))
        .chain((1..1000).map(|at| format!("{home}/{stem}_{at}.vmdk")));
    let found = names.find_map(|name| {
        let path = disks::path(&format!("[{store}] {name}")).ok()?;
        (!path.under(&sim.options.root).exists()).then_some(path)
    });
    found.ok_or_else(|| invalid("backing.fileName", "No name is free for the disk."))
}

fn remove(sim: &Sim, id: u32, change: &Value) -> Result<(), Fault> {
    let key = change.at("device.key").number().unwrap_or(-1);
    let destroy = change.at("fileOperation").text() == Some("destroy");
    let (disk, name, running) = {
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?;
        let disk = machine.disks.iter().find(|disk| i64::from(disk.key) == key).cloned();
        let gone = || invalid("device", "The machine has no such disk.");
        (disk.ok_or_else(gone)?, machine.name.clone(), machine.power == Power::On)
    };
    if disk.attached {
        if destroy {
            let message = "A disk that another machine uses is not destroyed.";
            return Err(Fault::new("FileLocked", message).with("file", disk.file()));
        }
        let file = disks::path(disk.file())?;
        sim.storage.hot_remove(&file, &name).map_err(|error| disks::fault(&error))?;
    } else if let Some(storage) = disk.storage {
        if running {
            let off = sim.storage.power_off(&[storage], crate::storage::PowerOff::Clean);
            off.map_err(|error| disks::fault(&error))?;
        }
        if destroy {
            sim.storage.delete_disk(storage).map_err(|error| disks::fault(&error))?;
        }
    }
    let mut state = sim.lock();
    machine_mut(&mut state, id)?.disks.retain(|found| found.key != disk.key);
    Ok(())
}

fn grow(sim: &Sim, id: u32, device: &Value) -> Result<(), Fault> {
    let key = device.at("key").number().unwrap_or(-1);
    let disk = {
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?;
        machine.disks.iter().find(|disk| i64::from(disk.key) == key).cloned()
    };
    let disk = disk.ok_or_else(|| invalid("device", "The machine has no such disk."))?;
    let bytes = device.at("capacityInBytes").number().and_then(|n| u64::try_from(n).ok());
    let kib = device.at("capacityInKB").number().and_then(|n| u64::try_from(n).ok());
    let wanted = bytes.or(kib.map(|kib| kib.saturating_mul(1024))).unwrap_or(disk.capacity_bytes);
    if let Some(storage) = disk.storage.filter(|_| wanted != disk.capacity_bytes) {
        let grown = sim.storage.grow_disk(storage, wanted);
        grown.map_err(|error| invalid("capacityInBytes", error.to_string()))?;
    }
    Ok(())
}
