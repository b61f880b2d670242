//! Folder: new folders and machines, names.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Call;
use super::reconfigure::reconfigure;
use crate::disks;
use crate::fault::Fault;
use crate::limits;
use crate::schema::Value;
use crate::sim::State;
use crate::site::{self, Machine, Power, Subject, Tree};
use crate::tasks;

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    match call.method {
        "CreateFolder" => folder(call),
        "CreateVM_Task" => {
            let place = Place::of(call)?;
            let spec = call.arguments.get("config").clone();
            let at = call.origin.endpoint;
            Ok(tasks::start(call, Some(call.this.clone()), move |sim| {
                let id = add(&mut sim.lock(), &place, &spec)?;
                if let Err(fault) = reconfigure(sim, id, &spec) {
                    sim.lock().site.machines.remove(&id);
                    return Err(fault);
                }
                let mut state = sim.lock();
                state.project();
                Ok(state.endpoints[at].reference(&Subject::Machine(id)).cloned().into())
            }))
        }
        _ => rename(call),
    }
}

pub(super) fn checked_name(name: &str) -> Result<&str, Fault> {
    if name.is_empty() || name.len() > limits::NAME_BYTES_MAX || name.contains('/') {
        let message = format!("The name '{}' is not valid.", name.escape_debug());
        return Err(Fault::new("InvalidName", message).with("name", name));
    }
    Ok(name)
}

/// The folder that the call is about.
fn folder_subject(call: &Call, state: &mut State) -> Result<(usize, Tree, String), Fault> {
    match call.endpoint(state).subject(&call.this) {
        Some(Subject::Folder(datacenter, tree, path)) => Ok((*datacenter, *tree, path.clone())),
        _ => Err(Fault::not_supported("This folder holds datacenters only.")),
    }
}

fn folder(call: &Call) -> Result<Value, Fault> {
    let name = checked_name(call.arguments.text("name"))?;
    let mut state = call.sim.lock();
    let (datacenter, tree, above) = folder_subject(call, &mut state)?;
    let path = if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
    let subject = Subject::Folder(datacenter, tree, path.clone());
    if let Some(found) = call.endpoint(&mut state).reference(&subject) {
        let message = format!("The name '{name}' already exists.");
        let fault = Fault::new("DuplicateName", message).with("name", name);
        return Err(fault.with("object", found));
    }
    state.site.datacenters[datacenter].folders.insert((tree, path));
    state.project();
    Ok(call.endpoint(&mut state).reference(&subject).cloned().into())
}

/// Where a new machine goes.
pub(super) struct Place {
    pub(super) datacenter: usize,
    pub(super) folder: String,
    pub(super) host: usize,
    pub(super) pool: String,
}

impl Place {
    pub(super) fn of(call: &Call) -> Result<Self, Fault> {
        let mut state = call.sim.lock();
        let (datacenter, tree, folder) = folder_subject(call, &mut state)?;
        if tree != Tree::Vm {
            return Err(Fault::new("InvalidFolder", "Machines do not go into this folder."));
        }
        let pool = call.arguments.get("pool").reference().cloned();
        let pool = pool.and_then(|pool| call.endpoint(&mut state).subject(&pool).cloned());
        let (compute, pool) = match pool {
            Some(Subject::Pool(compute, path)) => (Some(compute), path),
            _ if call.method == "CreateVM_Task" => return Err(Fault::invalid_argument("pool")),
            _ => (None, String::new()),
        };
        let host = call.arguments.get("host").reference().cloned();
        let host = host.and_then(|host| call.endpoint(&mut state).subject(&host).cloned());
        let mut hosts = 0..state.site.hosts.len();
        let host = match host {
            Some(Subject::Host(number)) => Some(number),
            _ => hosts.find(|number| {
                let fits = compute.is_none_or(|c| state.site.hosts[*number].compute == c);
                fits && state.site.datacenter_of(*number) == datacenter
            }),
        };
        let host = host.ok_or_else(|| Fault::invalid_argument("host"))?;
        Ok(Self { datacenter, folder, host, pool })
    }
}

fn add(state: &mut State, place: &Place, spec: &Value) -> Result<u32, Fault> {
    let name = checked_name(spec.at("name").text().unwrap_or_default())?.to_owned();
    let mut machines = state.site.machines.values();
    if machines
        .any(|m| m.name == name && m.datacenter == place.datacenter && m.folder == place.folder)
    {
        let message = format!("The name '{name}' already exists.");
        let none = crate::schema::reference("VirtualMachine", "");
        return Err(Fault::new("DuplicateName", message).with("name", name).with("object", none));
    }
    let path = spec.at("files.vmPathName").text().unwrap_or_default();
    let store = path.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let store = store.and_then(|(store, _)| state.site.datastore(place.datacenter, store));
    let datastore = store.ok_or_else(|| {
        Fault::new("InvalidDatastorePath", format!("Invalid datastore path '{path}'."))
            .with("datastorePath", path)
    })?;
    let file = disks::path(path).ok().map(|file| file.file().to_owned());
    let file = file.as_deref().and_then(|file| file.strip_suffix(".vmx")?.rsplit_once('/'));
    let number = |field: &str| spec.at(field).number().and_then(|n| i32::try_from(n).ok());
    let text = |field: &str, other: String| spec.at(field).text().map_or(other, str::to_owned);
    let mut machine = bare_machine(state, place, name, datastore);
    if let Some((home, stem)) = file {
        (machine.home, machine.stem) = (home.to_owned(), stem.to_owned());
    }
    machine.uuid = text("uuid", machine.uuid);
    machine.guest_id = text("guestId", machine.guest_id);
    machine.hardware = text("version", machine.hardware);
    machine.firmware = text("firmware", machine.firmware);
    machine.cpus = number("numCPUs").unwrap_or(machine.cpus);
    machine.memory_mib = number("memoryMB").unwrap_or(machine.memory_mib).max(4);
    let id = machine.id;
    state.site.machines.insert(id, machine);
    Ok(id)
}

/// A machine without disks, that is off, with what vSphere gives when nothing is said.
pub(super) fn bare_machine(
    state: &mut State,
    place: &Place,
    name: String,
    datastore: usize,
) -> Machine {
    let id = state.site.next_machine;
    state.site.next_machine += 1;
    Machine {
        id,
        home: name.clone(),
        stem: name.clone(),
        uuid: site::random_uuid(),
        instance_uuid: site::random_uuid(),
        datacenter: place.datacenter,
        folder: place.folder.clone(),
        host: place.host,
        pool: place.pool.clone(),
        datastore,
        power: Power::Off,
        template: false,
        guest_id: "otherGuest64".into(),
        host_name: Some(format!("{name}.guest.example")),
        ip_address: Some(format!("192.0.2.{}", id % 254 + 1)),
        tools: false,
        tools_installed: true,
        guest_users: state.site.guest_users.clone(),
        cpus: 1,
        memory_mib: 1024,
        hardware: "vmx-19".into(),
        firmware: "bios".into(),
        tpm: false,
        networks: Vec::new(),
        annotation: String::new(),
        cbt: false,
        disks: Vec::new(),
        controllers: Vec::new(),
        snapshots: Vec::new(),
        current: None,
        consolidation_needed: false,
        fields: BTreeMap::new(),
        tags: Vec::new(),
        extra: BTreeMap::new(),
        connection: "connected".into(),
        modified: Timestamp::now(),
        change_version: 1,
        busy: false,
        next_snapshot: 1,
        name,
    }
}

fn rename(call: &Call) -> Result<Value, Fault> {
    let name = checked_name(call.arguments.text("newName"))?.to_owned();
    let subject = call.endpoint(&mut call.sim.lock()).subject(&call.this).cloned();
    let Some(Subject::Machine(id)) = subject else {
        return Err(Fault::not_supported("The simulator renames machines only."));
    };
    tasks::start_on_machine(call, move |sim| {
        let mut state = sim.lock();
        let machine = tasks::machine_mut(&mut state, id)?;
        machine.name = name;
        machine.changed();
        Ok(Value::Absent)
    })
}
