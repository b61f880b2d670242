//! FileManager and VirtualDiskManager: folders and disks on datastores.

use super::Call;
use crate::disks;
use crate::fault::Fault;
use crate::schema::Value;
use crate::sim::Sim;
use crate::storage::{DatastorePath, DiskSpec};
use crate::tasks;

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    let name = call.arguments.text("name");
    let file = disks::path(name)?;
    known_store(call, &file)?;
    match call.method {
        "MakeDirectory" => make_directory(call, &file),
        "QueryVirtualDiskUuid" => {
            let disk = call.sim.storage.find_disk(&file).ok_or_else(|| missing(&file))?;
            let info = call.sim.storage.disk(disk).map_err(|error| disks::fault(&error))?;
            Ok(info.uuid.into())
        }
        "CreateVirtualDisk_Task" => {
            let kib = call.arguments.get("spec").at("capacityKb").number().unwrap_or(0);
            let thin = call.arguments.get("spec").at("diskType").text() == Some("thin");
            let capacity_bytes = u64::try_from(kib).unwrap_or(0).saturating_mul(1024);
            let spec = DiskSpec { file, capacity_bytes, image: None, uuid: None, thin };
            Ok(tasks::start(call, None, move |sim| {
                sim.storage.create_disk(&spec).map_err(|error| disks::fault(&error))?;
                Ok(spec.file.to_string().into())
            }))
        }
        "DeleteVirtualDisk_Task" => Ok(tasks::start(call, None, move |sim| {
            let disk = sim.storage.find_disk(&file).ok_or_else(|| missing(&file))?;
            sim.storage.delete_disk(disk).map_err(|error| disks::fault(&error))?;
            Ok(Value::Absent)
        })),
        _ => Ok(tasks::start(call, None, move |sim| {
            if sim.storage.find_disk(&file).is_some() {
                let message = format!("{file} belongs to a disk.");
                return Err(Fault::new("FileLocked", message).with("file", file.to_string()));
            }
            let place = file.under(&sim.options.root);
            let gone = if place.is_dir() {
                clear(sim, &file)?;
                std::fs::remove_dir_all(&place)
            } else {
                std::fs::remove_file(&place)
            };
            gone.map(|()| Value::Absent).map_err(|_| missing(&file))
        })),
    }
}

/// Deletes the disks below a folder, unless a machine has one of them.
fn clear(sim: &Sim, folder: &DatastorePath) -> Result<(), Fault> {
    let below = format!("{}/", folder.to_string().trim_end_matches('/'));
    let within = |file: &str| file.starts_with(&below);
    let held = {
        let state = sim.lock();
        let machines = state.site.machines.values();
        let mut disks = machines.flat_map(|machine| &machine.disks).map(|disk| disk.file());
        disks.find(|file| within(file)).map(str::to_owned)
    };
    if let Some(file) = held {
        let message = format!("{file} belongs to a machine.");
        return Err(Fault::new("FileLocked", message).with("file", file));
    }
    for disk in sim.storage.disks() {
        let Ok(info) = sim.storage.disk(disk) else { continue };
        if info.chain.iter().any(|link| within(&link.file.to_string())) {
            sim.storage.delete_disk(disk).map_err(|error| disks::fault(&error))?;
        }
    }
    Ok(())
}

fn missing(file: &DatastorePath) -> Fault {
    Fault::new("FileNotFound", format!("File {file} was not found.")).with("file", file.to_string())
}

fn known_store(call: &Call, file: &DatastorePath) -> Result<(), Fault> {
    let state = call.sim.lock();
    if state.site.datastores.iter().any(|store| store.name == file.datastore()) {
        return Ok(());
    }
    let message = format!("There is no datastore {}.", file.datastore());
    Err(Fault::new("InvalidDatastore", message).with("name", file.datastore()))
}

fn make_directory(call: &Call, file: &DatastorePath) -> Result<Value, Fault> {
    let place = file.under(&call.sim.options.root);
    let made = if call.arguments.bool("createParentDirectories") {
        std::fs::create_dir_all(&place)
    } else {
        std::fs::create_dir(&place)
    };
    let text = file.to_string();
    made.map(|()| Value::Absent).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Fault::new("FileAlreadyExists", format!("{text} exists already.")).with("file", text)
        }
        _ => Fault::new("CannotAccessFile", format!("{text}: {error}")).with("file", text),
    })
}
