//! Commands with an effect at once: on sessions, hosts, datastores, disks, guests.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use super::Command;
use crate::disks;
use crate::limits;
use crate::methods;
use crate::sim::{Sim, State};
use crate::site::Power;
use crate::storage::{self, DiskId, Guest, GuestPattern, GuestSpec, PowerOff};
use crate::tasks::machine_mut;

/// Reads a file of commands: a JSON list, or one command.
///
/// # Errors
/// When it cannot be read or a command is unknown.
pub fn read(file: &Path) -> Result<Vec<Command>> {
    let named = || format!("faults {}", file.display());
    let size = std::fs::metadata(file).with_context(named)?.len();
    ensure!(size <= limits::COMMANDS_BYTES_MAX as u64, "{}: {size} bytes are too many", named());
    parse(&std::fs::read(file).with_context(named)?).with_context(named)
}

/// Reads commands from JSON: a list, or one command.
///
/// # Errors
/// When a command is unknown or lacks something.
pub fn parse(json: &[u8]) -> Result<Vec<Command>> {
    let first = json.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'[') {
        return Ok(serde_json::from_slice(json)?);
    }
    Ok(vec![serde_json::from_slice(json)?])
}

/// Does a command. Blocks where the disk engine does.
///
/// # Errors
/// When it names a machine, host, datastore or file that is not there.
pub fn apply(sim: &Arc<Sim>, command: Command) -> Result<()> {
    if command.when().is_some() {
        sim.rules().add(command);
        return Ok(());
    }
    match command {
        Command::ExpireSessions {} => expire_all(&mut sim.lock()),
        Command::Clear {} => {
            sim.rules().clear();
            sim.storage.clear_faults();
        }
        Command::CbtReset { machine } => {
            for disk in disks_of(sim, Some(&machine))?.into_iter().flatten() {
                sim.storage.reset_cbt(disk)?;
            }
        }
        Command::LeaseLimit { open } => sim.lock().leases_open_max = open,
        Command::HostLoss { host, crash } => lose_host(sim, &host, crash)?,
        Command::HostReturn { host } => return_host(&mut sim.lock(), &host)?,
        Command::DatastoreLoss { datastore } => set_datastore(sim, &datastore, false)?,
        Command::DatastoreReturn { datastore } => set_datastore(sim, &datastore, true)?,
        Command::GuestStart { machine, writes_per_second } => {
            guest_start(sim, &machine, writes_per_second)?;
        }
        Command::GuestStop { machine } => {
            let disks = disks_of(sim, Some(&machine))?;
            for disk in disks.into_iter().flatten() {
                let stopped = sim.guests().remove(&disk);
                drop(stopped);
            }
        }
        Command::Watch { machine } => {
            for disk in disks_of(sim, Some(&machine))?.into_iter().flatten() {
                sim.storage.watch(disk)?;
            }
        }
        Command::ToolsStop { machine } => set_tools(sim, &machine, false)?,
        Command::ToolsStart { machine } => set_tools(sim, &machine, true)?,
        storage => return inject(sim, storage),
    }
    Ok(())
}

/// The faults that the disk engine does.
fn inject(sim: &Sim, command: Command) -> Result<()> {
    let path = |file: &str| disks::path(file).map_err(|fault| anyhow::anyhow!(fault.message));
    match command {
        Command::OmitChanges { machine, probability, seed, once } => {
            for disk in disks_of(sim, machine.as_deref())? {
                sim.storage.inject(storage::Fault::OmitChanges { disk, probability, seed, once });
            }
        }
        Command::StuckConsolidation { machine, times } => {
            for disk in disks_of(sim, machine.as_deref())? {
                sim.storage.inject(storage::Fault::StuckConsolidation { disk, times });
            }
        }
        Command::SnapshotStays { machine, times } => {
            // One of the machine's disks is enough: they go together.
            let disk = disks_of(sim, machine.as_deref())?.into_iter().next().flatten();
            sim.storage.inject(storage::Fault::RemovalFails { disk, times });
        }
        Command::ReadError { file, start, length, times } => {
            let length = length.unwrap_or(u64::MAX);
            let file = path(&file)?;
            sim.storage.inject(storage::Fault::ReadError { file, start, length, times });
        }
        Command::ReadLatency { delay_ms } => {
            sim.storage.inject(storage::Fault::ReadLatency { latency_ms: delay_ms });
        }
        Command::LockFile { file } => {
            sim.storage.inject(storage::Fault::Lock { file: path(&file)? });
        }
        _ => {}
    }
    Ok(())
}

/// The disks of a machine, or one "all".
pub(super) fn disks_of(sim: &Sim, machine: Option<&str>) -> Result<Vec<Option<DiskId>>> {
    let Some(name) = machine else { return Ok(vec![None]) };
    let state = sim.lock();
    let found = state.site.machines.values().find(|machine| machine.name == name);
    let found = found.with_context(|| format!("there is no machine {name}"))?;
    Ok(found.own_disks().into_iter().map(Some).collect())
}

fn expire_all(state: &mut State) {
    for endpoint in &mut state.endpoints {
        for session in endpoint.sessions.close_all() {
            methods::forget(endpoint, Some(session));
        }
    }
}

fn host_number(state: &State, name: &str) -> Result<usize> {
    let found = state.site.hosts.iter().position(|host| host.name == name);
    found.with_context(|| format!("there is no host {name}"))
}

fn lose_host(sim: &Sim, name: &str, crash: bool) -> Result<()> {
    let (mut dead, mut lost) = (Vec::new(), Vec::new());
    {
        let mut state = sim.lock();
        let number = host_number(&state, name)?;
        state.site.hosts[number].connected = false;
        for machine in state.site.machines.values_mut().filter(|m| m.host == number) {
            machine.connection = "disconnected".into();
            if crash && machine.power == Power::On {
                machine.power = Power::Off;
                machine.tools = false;
                dead.extend(machine.own_disks());
                lost.push(machine.id);
            }
        }
        state.project();
    }
    for machine in lost {
        sim.guest_systems().power_lost(machine);
    }
    sim.storage.power_off(&dead, PowerOff::HostLost)?;
    Ok(())
}

fn return_host(state: &mut State, name: &str) -> Result<()> {
    let number = host_number(state, name)?;
    state.site.hosts[number].connected = true;
    for machine in state.site.machines.values_mut().filter(|m| m.host == number) {
        machine.connection = "connected".into();
    }
    state.project();
    Ok(())
}

fn set_datastore(sim: &Sim, name: &str, accessible: bool) -> Result<()> {
    let mut state = sim.lock();
    let found = state.site.datastores.iter_mut().find(|store| store.name == name);
    found.with_context(|| format!("there is no datastore {name}"))?.accessible = accessible;
    state.project();
    Ok(())
}

/// Starts the guest of a machine: it writes to every disk of its own.
///
/// # Errors
/// When there is no such machine.
pub fn guest_start(sim: &Sim, machine: &str, writes_per_second: u32) -> Result<()> {
    for (at, disk) in disks_of(sim, Some(machine))?.into_iter().flatten().enumerate() {
        let spec = GuestSpec {
            writes_per_second,
            write_bytes_max: limits::GUEST_WRITE_BYTES,
            seed: sim.options.seed.wrapping_add(disk.0).wrapping_add(at as u64),
            pattern: GuestPattern::Mixed,
        };
        let guest = Some(sim.storage.start_guest(disk, spec.clone())?);
        let old = sim.guests().insert(disk, Writer { spec, guest });
        drop(old);
    }
    Ok(())
}

/// What writes to a disk for its machine's guest.
#[derive(Debug)]
pub struct Writer {
    spec: GuestSpec,
    // Nothing while a program in the guest has stopped it.
    guest: Option<Guest>,
}

/// Stops or goes on with what a machine's guest writes; what does not write is left alone.
///
/// # Errors
/// When the machine has gone or its disks cannot be written to.
pub fn pause(sim: &Sim, machine: u32, stop: bool) -> Result<()> {
    let own = machine_mut(&mut sim.lock(), machine).map(|machine| machine.own_disks());
    for disk in own.unwrap_or_default() {
        if stop {
            let stopped = sim.guests().get_mut(&disk).and_then(|writer| writer.guest.take());
            // Outside the lock: this waits for the write that is under way.
            drop(stopped);
            continue;
        }
        let paused = {
            let guests = sim.guests();
            let writer = guests.get(&disk).filter(|writer| writer.guest.is_none());
            writer.map(|writer| writer.spec.clone())
        };
        let Some(spec) = paused else { continue };
        let guest = sim.storage.start_guest(disk, spec)?;
        if let Some(writer) = sim.guests().get_mut(&disk) {
            writer.guest = Some(guest);
        }
    }
    Ok(())
}

fn set_tools(sim: &Sim, name: &str, run: bool) -> Result<()> {
    let mut state = sim.lock();
    let found = state.site.machines.values_mut().find(|machine| machine.name == name);
    let machine = found.with_context(|| format!("there is no machine {name}"))?;
    machine.tools = run && machine.power == Power::On;
    state.project();
    Ok(())
}
