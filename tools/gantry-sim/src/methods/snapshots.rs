//! Snapshots: create, remove, revert, consolidate; and which blocks changed since one.

use jiff::Timestamp;

use super::Call;
use crate::disks::{self, Facts};
use crate::fault::Fault;
use crate::limits;
use crate::schema::{Value, list, object};
use crate::sim::Sim;
use crate::site::{Machine, Power, Snapshot, Subject};
use crate::storage::{PowerOff, SnapshotId};
use crate::tasks::{machine_mut, machine_of, start_on_machine};

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    let id = machine_of(call)?;
    let consolidate = call.arguments.get("consolidate").bool().unwrap_or(true);
    match call.method {
        "CreateSnapshot_Task" | "CreateSnapshotEx_Task" => create_task(call, id),
        "RemoveSnapshot_Task" => {
            let snapshot = snapshot_of(call)?;
            let children = call.arguments.bool("removeChildren");
            start_on_machine(call, move |sim| {
                let mut going = vec![snapshot];
                if children {
                    let mut state = sim.lock();
                    going = below(machine_mut(&mut state, id)?, snapshot);
                }
                remove(sim, id, &going, consolidate)
            })
        }
        "RemoveAllSnapshots_Task" => start_on_machine(call, move |sim| {
            let all: Vec<u32> = {
                let mut state = sim.lock();
                machine_mut(&mut state, id)?.snapshots.iter().rev().map(|s| s.id).collect()
            };
            remove(sim, id, &all, consolidate)
        }),
        "RevertToSnapshot_Task" => {
            let snapshot = snapshot_of(call)?;
            start_on_machine(call, move |sim| revert(sim, id, Some(snapshot)))
        }
        "RevertToCurrentSnapshot_Task" => start_on_machine(call, move |sim| revert(sim, id, None)),
        "ConsolidateVMDisks_Task" => start_on_machine(call, move |sim| consolidate_disks(sim, id)),
        _ => rename(call, id),
    }
}

fn snapshot_of(call: &Call) -> Result<u32, Fault> {
    let mut state = call.sim.lock();
    match call.endpoint(&mut state).subject(&call.this) {
        Some(Subject::Snapshot(_, snapshot)) => Ok(*snapshot),
        _ => Err(Fault::no_object(&call.this)),
    }
}

/// What a snapshot is to be.
struct Wanted {
    name: String,
    description: String,
    quiesce: bool,
    memory: bool,
}

fn create_task(call: &Call, id: u32) -> Result<Value, Fault> {
    let arguments = &call.arguments;
    let quiesce = arguments.bool("quiesce") || !arguments.get("quiesceSpec").is_absent();
    let wanted = Wanted {
        name: arguments.text("name").to_owned(),
        description: arguments.text("description").to_owned(),
        quiesce,
        memory: arguments.bool("memory"),
    };
    if wanted.name.is_empty() || wanted.name.len() > limits::NAME_BYTES_MAX {
        return Err(Fault::invalid_argument("name"));
    }
    let at = call.origin.endpoint;
    start_on_machine(call, move |sim| create(sim, id, &wanted, at))
}

fn check(machine: &Machine, wanted: &Wanted) -> Result<(), Fault> {
    if machine.template {
        return Err(Fault::not_supported("A template has no snapshots."));
    }
    let on = machine.power == Power::On;
    let shared = machine.controllers.iter().any(|(_, sharing)| sharing != "noSharing");
    if shared && on {
        let message = "A device shares its SCSI bus: no snapshot of a running machine.";
        return Err(Fault::new("SnapshotFault", message));
    }
    if wanted.memory && on && machine.disks.iter().any(|disk| !disk.in_snapshots()) {
        let message = "A snapshot with memory is not possible with an independent disk.";
        return Err(Fault::new("SnapshotFault", message));
    }
    if wanted.quiesce && on && !machine.tools {
        let message = "Cannot quiesce: VMware Tools does not run in the guest.";
        return Err(Fault::new("FilesystemQuiesceFault", message));
    }
    let mut depth = 0;
    let mut at = machine.current;
    while let Some(snapshot) = at.and_then(|id| machine.snapshot(id)) {
        depth += 1;
        at = snapshot.parent;
    }
    if depth >= limits::SNAPSHOT_DEPTH_MAX {
        let message = "The maximum number of snapshots in a chain is reached.";
        return Err(Fault::new("TooManySnapshotLevels", message));
    }
    Ok(())
}

fn create(sim: &Sim, id: u32, wanted: &Wanted, endpoint: usize) -> Result<Value, Fault> {
    let (frozen, own, mut snapshots, quiesced) = {
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?;
        check(machine, wanted)?;
        let frozen: Vec<_> =
            machine.disks.iter().filter(|d| d.in_snapshots() && !d.attached).cloned().collect();
        let quiesced = wanted.quiesce && machine.power == Power::On;
        (frozen, machine.own_disks(), machine.own_snapshots(), quiesced)
    };
    let ids: Vec<_> = frozen.iter().filter_map(|disk| disk.storage).collect();
    let storage: Option<SnapshotId> = if ids.is_empty() {
        None
    } else {
        if quiesced {
            sim.storage.quiesce(&ids);
        }
        let made = sim.storage.snapshot(&ids);
        sim.storage.thaw(&ids);
        Some(made.map_err(|error| disks::fault(&error))?)
    };
    snapshots.extend(storage);
    let facts = Facts::gather(&sim.storage, &own, &snapshots)?;
    let mut state = sim.lock();
    let number = state.site.next_snapshot;
    state.site.next_snapshot += 1;
    let machine = machine_mut(&mut state, id)?;
    machine.snapshots.push(Snapshot {
        id: number,
        number: machine.next_snapshot,
        name: wanted.name.clone(),
        description: wanted.description.clone(),
        created: Timestamp::now(),
        quiesced,
        power: if wanted.memory { machine.power } else { Power::Off },
        parent: machine.current,
        disks: machine.disks.iter().filter(|disk| !disk.attached).cloned().collect(),
        cbt: machine.cbt,
        storage,
    });
    machine.next_snapshot += 1;
    machine.current = Some(number);
    machine.changed();
    facts.apply(machine);
    state.project();
    Ok(state.endpoints[endpoint].reference(&Subject::Snapshot(id, number)).cloned().into())
}

/// A snapshot and all below it, the deepest first.
fn below(machine: &Machine, snapshot: u32) -> Vec<u32> {
    let mut found = vec![snapshot];
    let mut at = 0;
    while at < found.len() {
        let children = machine.snapshots.iter().filter(|s| s.parent == Some(found[at]));
        found.extend(children.map(|s| s.id).collect::<Vec<_>>());
        at += 1;
    }
    found.reverse();
    found
}

fn remove(sim: &Sim, id: u32, going: &[u32], consolidate: bool) -> Result<Value, Fault> {
    for snapshot in going {
        let storage = {
            let mut state = sim.lock();
            machine_mut(&mut state, id)?.snapshot(*snapshot).map(|found| found.storage)
        };
        let Some(storage) = storage else {
            return Err(Fault::new("NotFound", "The snapshot has gone meanwhile."));
        };
        if let Some(storage) = storage {
            let removed = sim.storage.remove_snapshot(storage, consolidate);
            removed.map_err(|error| disks::fault(&error))?;
        }
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?;
        let parent = machine.snapshot(*snapshot).and_then(|found| found.parent);
        machine.snapshots.retain(|found| found.id != *snapshot);
        for child in machine.snapshots.iter_mut().filter(|s| s.parent == Some(*snapshot)) {
            child.parent = parent;
        }
        if machine.current == Some(*snapshot) {
            machine.current = parent;
        }
    }
    refresh(sim, id)
}

/// Shows what the engine has made of the machine's disks.
pub(super) fn refresh(sim: &Sim, id: u32) -> Result<Value, Fault> {
    let (own, snapshots) = {
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?;
        (machine.own_disks(), machine.own_snapshots())
    };
    let facts = Facts::gather(&sim.storage, &own, &snapshots)?;
    let mut state = sim.lock();
    let machine = machine_mut(&mut state, id)?;
    facts.apply(machine);
    machine.changed();
    Ok(Value::Absent)
}

fn revert(sim: &Sim, id: u32, snapshot: Option<u32>) -> Result<Value, Fault> {
    let (snapshot, storage, own, on) = {
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?;
        let wanted = snapshot.or(machine.current).and_then(|id| machine.snapshot(id));
        let found = wanted.ok_or_else(|| Fault::new("NotFound", "There is no such snapshot."))?;
        (found.clone(), found.storage, machine.own_disks(), machine.power == Power::On)
    };
    if on {
        let stopped = sim.storage.power_off(&own, PowerOff::Clean);
        stopped.map_err(|error| disks::fault(&error))?;
    }
    if let Some(storage) = storage {
        sim.storage.revert(storage).map_err(|error| disks::fault(&error))?;
    }
    {
        let mut state = sim.lock();
        let machine = machine_mut(&mut state, id)?;
        machine.current = Some(snapshot.id);
        // Without memory a machine comes back switched off.
        machine.power = Power::Off;
        machine.tools = false;
        machine.cbt = snapshot.cbt;
    }
    refresh(sim, id)
}

fn consolidate_disks(sim: &Sim, id: u32) -> Result<Value, Fault> {
    let own = {
        let mut state = sim.lock();
        machine_mut(&mut state, id)?.own_disks()
    };
    let done = sim.storage.consolidate(&own);
    refresh(sim, id)?;
    done.map_err(|error| disks::fault(&error)).map(|()| Value::Absent)
}

fn rename(call: &Call, id: u32) -> Result<Value, Fault> {
    let snapshot = snapshot_of(call)?;
    let mut state = call.sim.lock();
    let machine = machine_mut(&mut state, id)?;
    for found in machine.snapshots.iter_mut().filter(|found| found.id == snapshot) {
        if let Some(name) = call.arguments.get("name").text() {
            name.clone_into(&mut found.name);
        }
        if let Some(text) = call.arguments.get("description").text() {
            text.clone_into(&mut found.description);
        }
    }
    state.project();
    Ok(Value::Absent)
}

/// `QueryChangedDiskAreas`.
pub(super) fn changed_areas(call: &Call) -> Result<Value, Fault> {
    let id = machine_of(call)?;
    let key = call.arguments.get("deviceKey").number().unwrap_or_default();
    let start = u64::try_from(call.arguments.get("startOffset").number().unwrap_or_default());
    let start = start.map_err(|_| Fault::invalid_argument("startOffset"))?;
    let change_id = call.arguments.text("changeId").to_owned();
    let (disk, snapshot) = {
        let mut state = call.sim.lock();
        let chosen = match call.arguments.get("snapshot").reference() {
            None => None,
            Some(given) => match call.endpoint(&mut state).subject(given) {
                Some(Subject::Snapshot(_, snapshot)) => Some(*snapshot),
                _ => return Err(Fault::no_object(given)),
            },
        };
        let machine = machine_mut(&mut state, id)?;
        if chosen.is_none() && machine.power == Power::On {
            let message = "Changed areas of a running machine need a snapshot.";
            return Err(Fault::new("FileFault", message).with("file", ""));
        }
        let found = chosen.or(machine.current).and_then(|id| machine.snapshot(id));
        let found = found.ok_or_else(|| Fault::invalid_argument("snapshot"))?;
        let disk = found.disks.iter().find(|disk| i64::from(disk.key) == key);
        let disk = disk.ok_or_else(|| Fault::invalid_argument("deviceKey"))?;
        let disk = disk.storage.filter(|_| disk.in_snapshots());
        let both = disk.zip(found.storage);
        both.ok_or_else(|| Fault::new("FileFault", "The disk is not tracked.").with("file", ""))?
    };
    let page = call.sim.storage.changed_areas(disk, snapshot, start, &change_id);
    let page = page.map_err(|error| disks::fault(&error))?;
    let areas = page.areas.iter().map(|area| {
        object("DiskChangeExtent", [("start", area.start.into()), ("length", area.length.into())])
    });
    Ok(object(
        "DiskChangeInfo",
        [
            ("startOffset", page.start_offset.into()),
            ("length", page.length.into()),
            ("changedArea", list(areas)),
        ],
    ))
}
