//! Machines: power, templates, leaving the inventory.

use super::Call;
use crate::disks::{self, Facts};
use crate::fault::Fault;
use crate::schema::Value;
use crate::sim::Sim;
use crate::site::{Machine, Power, Subject};
use crate::storage::PowerOff;
use crate::tasks::{machine_mut, machine_of, start_on_machine};

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    let id = machine_of(call)?;
    match call.method {
        "PowerOnVM_Task" => start_on_machine(call, move |sim| power(sim, id, Power::On)),
        "PowerOffVM_Task" => start_on_machine(call, move |sim| power(sim, id, Power::Off)),
        "SuspendVM_Task" => start_on_machine(call, move |sim| power(sim, id, Power::Suspended)),
        "MarkAsTemplate" => template(call, id, true),
        "MarkAsVirtualMachine" => template(call, id, false),
        "UnregisterVM" => unregister(call, id),
        _ => start_on_machine(call, move |sim| destroy(sim, id)),
    }
}

/// The fault of an operation that the machine's power forbids.
pub(super) fn wrong_power(machine: &Machine, wanted: Power) -> Fault {
    let name = machine.power.name();
    let message = format!(
        "The attempted operation cannot be performed in the current state ({name}) of {}.",
        machine.name
    );
    Fault::new("InvalidPowerState", message)
        .with("requestedState", wanted.name())
        .with("existingState", name)
}

fn power(sim: &Sim, id: u32, wanted: Power) -> Result<Value, Fault> {
    let (own, snapshots) = {
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?;
        if machine.template {
            return Err(Fault::not_supported("A template cannot be started."));
        }
        let allowed = match wanted {
            Power::On => machine.power != Power::On,
            Power::Off => machine.power != Power::Off,
            Power::Suspended => machine.power == Power::On,
        };
        if !allowed {
            return Err(wrong_power(machine, wanted));
        }
        (machine.own_disks(), machine.own_snapshots())
    };
    if wanted != Power::On {
        for disk in &own {
            let stopped = sim.guests().remove(disk);
            drop(stopped);
        }
    }
    let done = match wanted {
        Power::On => sim.storage.power_on(&own),
        _ => sim.storage.power_off(&own, PowerOff::Clean),
    };
    done.map_err(|error| disks::fault(&error))?;
    let facts = Facts::gather(&sim.storage, &own, &snapshots)?;
    let mut state = sim.lock();
    let machine = machine_mut(&mut state, id)?;
    machine.power = wanted;
    machine.tools = wanted == Power::On && machine.tools_installed;
    facts.apply(machine);
    drop(state);
    if wanted == Power::Off {
        sim.guest_systems().power_lost(id);
    }
    Ok(Value::Absent)
}

fn template(call: &Call, id: u32, template: bool) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    let machine = machine_mut(&mut state, id)?;
    if machine.power != Power::Off {
        return Err(wrong_power(machine, Power::Off));
    }
    machine.template = template;
    machine.changed();
    state.project();
    Ok(Value::Absent)
}

fn unregister(call: &Call, id: u32) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    let machine = machine_mut(&mut state, id)?;
    if machine.power == Power::On {
        return Err(wrong_power(machine, Power::Off));
    }
    if let Some(machine) = state.site.machines.remove(&id) {
        let path = machine.config_file(&state.site.datastores[machine.datastore].name);
        state.unregistered.insert(path, machine);
    }
    state.project();
    Ok(Value::Absent)
}

fn destroy(sim: &Sim, id: u32) -> Result<Value, Fault> {
    let (own, snapshots, attached, name) = {
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?;
        if machine.power == Power::On {
            return Err(wrong_power(machine, Power::Off));
        }
        let attached = machine.disks.iter().filter(|disk| disk.attached);
        let attached: Vec<String> = attached.map(|disk| disk.file().to_owned()).collect();
        (machine.own_disks(), machine.own_snapshots(), attached, machine.name.clone())
    };
    for file in attached {
        let file = disks::path(&file)?;
        sim.storage.hot_remove(&file, &name).map_err(|error| disks::fault(&error))?;
    }
    for snapshot in snapshots.iter().rev() {
        sim.storage.remove_snapshot(*snapshot, true).map_err(|error| disks::fault(&error))?;
    }
    for disk in own {
        sim.storage.delete_disk(disk).map_err(|error| disks::fault(&error))?;
    }
    sim.guest_systems().destroyed(id);
    let mut state = sim.lock();
    state.site.machines.remove(&id);
    for endpoint in &mut state.endpoints {
        endpoint.untie(&Subject::Machine(id));
    }
    Ok(Value::Absent)
}
