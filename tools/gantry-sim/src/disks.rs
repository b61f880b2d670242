//! Between machines and the disk engine: creating a site's disks, and showing what became of them.
//!
//! In: machines, the engine. Out: disks' chains and change ids as the engine has them. The engine
//! is never called under the site's lock: facts are gathered first and applied later.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::fault::Fault;
use crate::site::Site;
use crate::site::inventory::NewDisk;
use crate::site::machine::{Disk, Link, LinkKind, Machine, Power, Snapshot};
use crate::storage::{
    self, ChangeTrackingFault, DatastoreKind, DatastorePath, DiskId, DiskInfo, DiskSpec,
    SnapshotId, SnapshotInfo, SparseFormat, Storage, StorageError,
};

/// Reads `[datastore] folder/file`.
///
/// # Errors
/// `InvalidDatastorePath`.
pub fn path(text: &str) -> Result<DatastorePath, Fault> {
    let invalid = || {
        let message = format!("Invalid datastore path '{text}'.");
        Fault::new("InvalidDatastorePath", message).with("datastorePath", text)
    };
    let rest = text.strip_prefix('[').ok_or_else(invalid)?;
    let (store, file) = rest.split_once(']').ok_or_else(invalid)?;
    DatastorePath::new(store, file.trim_start().trim_matches('/')).map_err(|_| invalid())
}

/// Makes the datastores and disks of a site, finds those of an earlier run, starts machines.
///
/// # Errors
/// When a file cannot be made or an image not be read.
pub fn prepare(site: &mut Site, disks: &[NewDisk], storage: &Storage) -> Result<()> {
    for store in &site.datastores {
        let kind = match store.kind.as_str() {
            "VMFS" => DatastoreKind::Vmfs6,
            "VMFS5" => DatastoreKind::Vmfs5,
            "vsan" => DatastoreKind::Vsan,
            _ => DatastoreKind::Nfs,
        };
        storage.add_datastore(&store.name, kind).with_context(|| store.name.clone())?;
    }
    for new in disks {
        let Some(machine) = site.machines.get_mut(&new.machine) else { continue };
        let name = machine.name.clone();
        let Some(disk) = machine.disks.iter_mut().find(|disk| disk.key == new.key) else {
            continue;
        };
        if matches!(disk.chain.first(), Some(Link { kind: LinkKind::RawDevice { .. }, .. })) {
            continue;
        }
        let found = create(disk, new, storage);
        disk.storage = Some(found.with_context(|| format!("{name}, {}", disk.label))?);
    }
    adopt(site, storage)?;
    for machine in site.machines.values_mut() {
        let own = machine.own_disks();
        if machine.cbt {
            own.iter().try_for_each(|disk| storage.enable_cbt(*disk))?;
        }
        if machine.power == Power::On {
            storage.power_on(&own)?;
        }
        let facts = Facts::gather(storage, &own, &machine.own_snapshots())
            .map_err(|f| anyhow::anyhow!(f.message))?;
        facts.apply(machine);
    }
    Ok(())
}

/// Shows snapshots that an earlier run left, whose names are not known any more, and takes back
/// what it had attached.
fn adopt(site: &mut Site, storage: &Storage) -> Result<()> {
    for attached in storage.attached() {
        storage.hot_remove(&attached.file, &attached.proxy)?;
    }
    for id in storage.snapshots() {
        let info = storage.snapshot_info(id)?;
        let holds = |machine: &&mut Machine| {
            let own = machine.own_disks();
            info.disks.iter().any(|held| own.contains(&held.disk))
        };
        let Some(machine) = site.machines.values_mut().find(holds) else { continue };
        let parent =
            machine.snapshots.iter().find(|s| s.storage.is_some() && s.storage == info.parent);
        let parent = parent.map(|parent| parent.id);
        machine.snapshots.push(Snapshot {
            id: site.next_snapshot,
            number: machine.next_snapshot,
            name: format!("{id} of an earlier run"),
            description: String::new(),
            created: site.started,
            quiesced: false,
            power: Power::Off,
            parent,
            disks: machine.disks.clone(),
            cbt: machine.cbt,
            storage: Some(id),
        });
        machine.current = Some(site.next_snapshot);
        machine.next_snapshot += 1;
        site.next_snapshot += 1;
    }
    for machine in site.machines.values_mut() {
        for disk in machine.own_disks() {
            let Some(at) = storage.disk(disk)?.current_snapshot else { continue };
            let at = machine.snapshots.iter().find(|snapshot| snapshot.storage == Some(at));
            machine.current = at.map(|snapshot| snapshot.id).or(machine.current);
        }
    }
    Ok(())
}

fn create(disk: &Disk, new: &NewDisk, storage: &Storage) -> Result<DiskId> {
    let file = path(disk.file()).map_err(|fault| anyhow::anyhow!(fault.message))?;
    if let Some(found) = storage.find_disk(&file) {
        return Ok(found);
    }
    let spec = DiskSpec {
        file,
        capacity_bytes: disk.capacity_bytes,
        image: new.image.clone(),
        uuid: Some(disk.uuid.clone()),
        thin: disk.thin,
    };
    Ok(storage.create_disk(&spec)?)
}

/// What the engine says about a machine's disks and snapshots.
#[derive(Debug, Default)]
pub struct Facts {
    disks: BTreeMap<DiskId, DiskInfo>,
    snapshots: BTreeMap<SnapshotId, SnapshotInfo>,
    consolidation_needed: bool,
}

impl Facts {
    /// Asks the engine. Not to be called under the site's lock.
    ///
    /// # Errors
    /// The engine's, as a fault.
    pub fn gather(
        storage: &Storage,
        disks: &[DiskId],
        snapshots: &[SnapshotId],
    ) -> Result<Self, Fault> {
        let mut facts = Self::default();
        for disk in disks {
            facts.disks.insert(*disk, storage.disk(*disk).map_err(|e| fault(&e))?);
        }
        for snapshot in snapshots {
            // A snapshot of nothing but independent disks is unknown to the engine.
            if let Ok(info) = storage.snapshot_info(*snapshot) {
                facts.snapshots.insert(*snapshot, info);
            }
        }
        facts.consolidation_needed =
            storage.consolidation_needed(disks).map_err(|error| fault(&error))?;
        Ok(facts)
    }

    /// Shows them in the machine: chains, change ids, frozen files, the need to consolidate.
    pub fn apply(&self, machine: &mut Machine) {
        machine.consolidation_needed = self.consolidation_needed;
        let frozen: BTreeMap<String, Option<String>> = self
            .snapshots
            .values()
            .flat_map(|info| &info.disks)
            .map(|frozen| (frozen.file.to_string(), frozen.change_id.clone()))
            .collect();
        for disk in machine.disks.iter_mut().filter(|disk| !disk.attached) {
            let Some(info) = disk.storage.and_then(|id| self.disks.get(&id)) else { continue };
            disk.chain = chain(&info.chain, info.change_id.as_ref(), &frozen);
            disk.capacity_bytes = info.capacity_bytes;
            disk.uuid.clone_from(&info.uuid);
        }
        for snapshot in &mut machine.snapshots {
            let Some(info) = snapshot.storage.and_then(|id| self.snapshots.get(&id)) else {
                continue;
            };
            for held in &info.disks {
                let disk = snapshot.disks.iter_mut().find(|disk| disk.storage == Some(held.disk));
                let Some(disk) = disk else { continue };
                disk.chain = chain(&held.chain, held.change_id.as_ref(), &frozen);
                disk.capacity_bytes = held.capacity_bytes;
            }
        }
    }
}

/// A chain as projections show it; older links have the change ids at which they were frozen.
fn chain(
    links: &[storage::Link],
    first: Option<&String>,
    frozen: &BTreeMap<String, Option<String>>,
) -> Vec<Link> {
    let links = links.iter().enumerate().map(|(at, link)| {
        let file = link.file.to_string();
        let known = frozen.get(&file).cloned().flatten();
        let change_id = if at == 0 { first.cloned() } else { known };
        let kind = match link.kind {
            storage::LinkKind::Flat => LinkKind::Flat,
            storage::LinkKind::Delta(SparseFormat::SeSparse) => LinkKind::SeSparse,
            storage::LinkKind::Delta(SparseFormat::Cowd) => LinkKind::VmfsSparse,
        };
        Link { file, kind, change_id, content_id: format!("{:08x}", link.content_id) }
    });
    links.collect()
}

/// The vSphere fault that an error of the engine becomes.
#[must_use]
pub fn fault(error: &StorageError) -> Fault {
    let message = error.to_string();
    let file = |ty: &str, file: &str| Fault::new(ty, message.clone()).with("file", file);
    match error {
        StorageError::NotFound { name, .. } => file("FileNotFound", name),
        StorageError::Locked { file: name, .. } => file("FileLocked", name),
        StorageError::Exists { file: name } => file("FileAlreadyExists", name),
        StorageError::Io { path, .. } => file("CannotAccessFile", &path.display().to_string()),
        StorageError::ChangeTracking { disk, fault } => match fault {
            ChangeTrackingFault::NotActive | ChangeTrackingFault::AllocationUnknown => {
                file("FileFault", disk)
            }
            ChangeTrackingFault::StartBeyondEnd { .. } => argument("startOffset", message),
            _ => argument("changeId", message),
        },
        StorageError::Invalid(_) | StorageError::Injected(_) => {
            Fault::new("GenericVmConfigFault", message.clone()).with("reason", message)
        }
    }
}

fn argument(name: &str, message: String) -> Fault {
    let mut fault = Fault::invalid_argument(name);
    fault.message = format!("{}: {message}", fault.message);
    fault
}
