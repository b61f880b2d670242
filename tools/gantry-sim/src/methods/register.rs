//! `RegisterVM_Task`: a machine that was unregistered comes back as it was; a `.vmx` that somebody
//! put into a datastore becomes a machine with the disks that it names.

use super::Call;
use super::create::{Place, bare_machine, checked_name};
use super::reconfigure::{bare_disk, owner_of};
use super::snapshots::refresh;
use crate::disks;
use crate::fault::Fault;
use crate::schema::Value;
use crate::sim::{Sim, State};
use crate::site::vmx::{self, Vmx};
use crate::site::{Disk, Machine, Subject};
use crate::storage::DatastorePath;
use crate::tasks;

pub(super) fn register(call: &Call) -> Result<Value, Fault> {
    let place = Place::of(call)?;
    let path = disks::path(call.arguments.text("path"))?;
    let at = call.origin.endpoint;
    let name = call.arguments.get("name").text().map(str::to_owned);
    let template = call.arguments.bool("asTemplate");
    Ok(tasks::start(call, Some(call.this.clone()), move |sim| {
        let known = again(&mut sim.lock(), &place, &path.to_string())?;
        let mut machine = match known {
            Some(machine) => machine,
            None => from_file(sim, &place, &path)?,
        };
        machine.name = name.unwrap_or(machine.name);
        machine.template = template;
        let id = machine.id;
        sim.lock().site.machines.insert(id, machine);
        refresh(sim, id)?;
        let mut state = sim.lock();
        state.project();
        crate::events::note(
            &mut state,
            at,
            &sim.options.user,
            "VmRegisteredEvent",
            Some(id),
            format!("Registered {path}"),
        );
        Ok(state.endpoints[at].reference(&Subject::Machine(id)).cloned().into())
    }))
}

/// A machine that was unregistered earlier.
fn again(state: &mut State, place: &Place, path: &str) -> Result<Option<Machine>, Fault> {
    let mut machines = state.site.machines.values();
    if machines.any(|m| m.config_file(&state.site.datastores[m.datastore].name) == path) {
        let message = format!("'{path}' is registered already.");
        return Err(Fault::new("AlreadyExists", message).with("name", path));
    }
    let Some(mut machine) = state.unregistered.remove(path) else { return Ok(None) };
    machine.folder.clone_from(&place.folder);
    machine.pool.clone_from(&place.pool);
    machine.host = place.host;
    Ok(Some(machine))
}

fn from_file(sim: &Sim, place: &Place, path: &DatastorePath) -> Result<Machine, Fault> {
    let missing = || {
        let message = format!("File {path} was not found.");
        Fault::new("FileNotFound", message).with("file", path.to_string())
    };
    let file = path.under(&sim.options.root);
    let size = std::fs::metadata(&file).map_err(|_| missing())?.len();
    let text = if size <= vmx::BYTES_MAX { std::fs::read_to_string(&file).ok() } else { None };
    let Some(text) = text else {
        return Err(Fault::new("InvalidVmConfig", format!("{path} is no configuration file.")));
    };
    let vmx = Vmx::parse(&text);
    let (home, _) = path.file().rsplit_once('/').ok_or_else(missing)?;
    let stem = path.file_name().trim_end_matches(".vmx").to_owned();
    let name = checked_name(vmx.get("displayName").unwrap_or(&stem))?.to_owned();
    let mut machine = {
        let mut state = sim.lock();
        let store = state.site.datastore(place.datacenter, path.datastore());
        let store = store.ok_or_else(missing)?;
        let mut machine = bare_machine(&mut state, place, name, store);
        let networks = state.site.networks.iter().enumerate();
        let wanted = vmx.networks();
        machine.networks = networks
            .filter(|(_, n)| n.datacenter == place.datacenter && wanted.contains(&n.name.as_str()))
            .map(|(at, _)| at)
            .collect();
        machine
    };
    (machine.home, machine.stem) = (home.to_owned(), stem);
    machine.guest_id = vmx.guest_id();
    machine.cpus = vmx.number("numvcpus").unwrap_or(machine.cpus);
    machine.memory_mib = vmx.number("memSize").unwrap_or(machine.memory_mib);
    machine.firmware = vmx.get("firmware").unwrap_or("bios").to_owned();
    machine.annotation = vmx.get("annotation").unwrap_or_default().to_owned();
    if let Some(version) = vmx.number("virtualHW.version") {
        machine.hardware = format!("vmx-{version}");
    }
    machine.uuid = vmx.uuid("uuid.bios").unwrap_or(machine.uuid);
    machine.instance_uuid = vmx.uuid("vc.uuid").unwrap_or(machine.instance_uuid);
    let controllers = vmx.controllers().into_iter();
    machine.controllers = controllers.map(|(bus, sharing)| (1000 + bus, sharing)).collect();
    for (at, disk) in vmx.disks().into_iter().enumerate() {
        let place = format!("[{}] {home}/{}", path.datastore(), disk.file);
        let made = existing_disk(sim, &disks::path(&place)?)?;
        machine.disks.push(Disk {
            key: 2000 + disk.bus * 16 + disk.unit,
            controller: 1000 + disk.bus,
            unit: disk.unit,
            label: format!("Hard disk {}", at + 1),
            mode: disk.mode,
            ..made
        });
    }
    Ok(machine)
}

/// A disk that lies in a datastore and that no machine has.
pub(super) fn existing_disk(sim: &Sim, file: &DatastorePath) -> Result<Disk, Fault> {
    let storage = match sim.storage.find_disk(file) {
        Some(found) => found,
        None => sim.storage.adopt_disk(file).map_err(|error| disks::fault(&error))?,
    };
    if let Some(owner) = owner_of(sim, storage) {
        let message = format!("Failed to lock the file {file}: {owner} uses it.");
        return Err(Fault::new("FileLocked", message).with("file", file.to_string()));
    }
    let info = sim.storage.disk(storage).map_err(|error| disks::fault(&error))?;
    let mut disk = bare_disk(file);
    (disk.uuid, disk.capacity_bytes, disk.thin) = (info.uuid, info.capacity_bytes, info.thin);
    disk.storage = Some(storage);
    Ok(disk)
}
