//! Folder: new folders and machines, machines that come back, names.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Call;
use super::power::vmx;
use super::reconfigure::reconfigure;
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
        "RegisterVM_Task" => register(call),
        _ => rename(call),
    }
}

fn checked_name(name: &str) -> Result<&str, Fault> {
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
struct Place {
    datacenter: usize,
    folder: String,
    host: usize,
    pool: String,
}

impl Place {
    fn of(call: &Call) -> Result<Self, Fault> {
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
    let number = |field: &str| spec.at(field).number().and_then(|n| i32::try_from(n).ok());
    let text = |field: &str, other: &str| spec.at(field).text().unwrap_or(other).to_owned();
    let id = state.site.next_machine;
    state.site.next_machine += 1;
    let machine = Machine {
        id,
        home: name.clone(),
        uuid: spec.at("uuid").text().map_or_else(site::random_uuid, str::to_owned),
        instance_uuid: site::random_uuid(),
        name,
        datacenter: place.datacenter,
        folder: place.folder.clone(),
        host: place.host,
        pool: place.pool.clone(),
        datastore,
        power: Power::Off,
        template: false,
        guest_id: text("guestId", "otherGuest64"),
        host_name: None,
        ip_address: None,
        tools: false,
        tools_installed: true,
        guest_users: state.site.guest_users.clone(),
        cpus: number("numCPUs").unwrap_or(1),
        memory_mib: number("memoryMB").unwrap_or(1024),
        hardware: text("version", "vmx-19"),
        firmware: text("firmware", "bios"),
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
    };
    state.site.machines.insert(id, machine);
    Ok(id)
}

fn register(call: &Call) -> Result<Value, Fault> {
    let place = Place::of(call)?;
    let (path, at) = (call.arguments.text("path").to_owned(), call.origin.endpoint);
    let name = call.arguments.get("name").text().map(str::to_owned);
    let template = call.arguments.bool("asTemplate");
    Ok(tasks::start(call, Some(call.this.clone()), move |sim| {
        let mut state = sim.lock();
        let found =
            state.site.machines.values().any(|machine| {
                vmx(&state.site.datastores[machine.datastore].name, machine) == path
            });
        if found {
            let message = format!("'{path}' is registered already.");
            return Err(Fault::new("AlreadyExists", message).with("name", path));
        }
        let Some(mut machine) = state.unregistered.remove(&path) else {
            let message = format!("File {path} was not found.");
            return Err(Fault::new("FileNotFound", message).with("file", path));
        };
        machine.name = name.unwrap_or(machine.name);
        machine.template = template;
        (machine.folder, machine.host, machine.pool) = (place.folder, place.host, place.pool);
        let id = machine.id;
        state.site.machines.insert(id, machine);
        state.project();
        Ok(state.endpoints[at].reference(&Subject::Machine(id)).cloned().into())
    }))
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
