//! The snapshot of a session: made, looked into, removed.
//!
//! In: a machine, the snapshot's name. Out: the frozen disks, as the snapshot's own configuration
//! names them; or the snapshot gone. Each is found by its name: an answer that was lost is no
//! reason for a second snapshot.

use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};

use super::failed;
use crate::broker::devices::Devices;
use crate::broker::parse::snapshots;
use crate::broker::{BackingKind, ControllerKind, SnapshotFacts};
use crate::transport::{FrozenBacking, FrozenDisk};
use crate::vcenter::virtual_machine::NewSnapshot;
use crate::vcenter::{Element, MoRef, TaskWait, VCenter, VimError, VmRef};

/// Begins the name of every snapshot of Gantry; nobody else's begins so.
pub const MARK: &str = "gantry-backup ";
/// A snapshot of a large machine with quiescing takes minutes; removing one can take hours.
const CREATE_WITHIN: Duration = Duration::from_secs(15 * 60);
const REMOVE_WITHIN: Duration = Duration::from_secs(6 * 3600);

/// The name of a session's snapshot.
pub fn snapshot_name(session: &str) -> String {
    format!("{MARK}{session}")
}

/// A machine's disks as a snapshot holds them.
#[derive(Debug, Clone)]
pub struct Frozen {
    /// The snapshot.
    pub snapshot: MoRef,
    /// Its name.
    pub name: String,
    /// The disks.
    pub disks: Vec<FrozenVmDisk>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenVmDisk {
    /// Device key.
    pub key: i32,
    /// Label.
    pub label: String,
    /// UUID of its backing; may be empty.
    pub uuid: String,
    /// Bytes.
    pub capacity_bytes: u64,
    /// Backing file, `[datastore] folder/file.vmdk`.
    pub file: String,
    /// Name of its datastore.
    pub datastore: String,
    /// Change id of this instant.
    pub change_id: Option<String>,
    /// Kind of the controller, its bus, the unit on it.
    pub place: Option<(ControllerKind, i32, i32)>,
    backing: FrozenBacking,
}

impl FrozenVmDisk {
    /// What the choice of transport modes needs to know.
    pub fn as_frozen_disk(&self) -> FrozenDisk {
        FrozenDisk {
            label: self.label.clone(),
            datastore: self.datastore.clone(),
            backing: self.backing,
            has_uuid: !self.uuid.is_empty(),
            is_ide: matches!(self.place, Some((ControllerKind::Ide, ..))),
        }
    }
}

impl Frozen {
    /// Names the frozen state: another session has another one, a resume has the same.
    pub fn identity(&self, vcenter: &str) -> String {
        format!("{vcenter}/{}/{}", self.snapshot.value, self.name)
    }
}

/// Makes the snapshot and looks into it.
///
/// # Errors
/// As any call. The snapshot may be there nevertheless: [`thaw`] looks.
pub async fn freeze(
    vcenter: &VCenter,
    vm: &VmRef,
    name: &str,
    quiesce: bool,
) -> Result<Frozen, Failure> {
    let made = make(vcenter, vm, name, quiesce).await;
    let snapshot = match made {
        Ok(snapshot) => snapshot,
        Err(error) if error.outcome_is_unknown() => {
            let found = find(vcenter, vm, name).await.map_err(|error| error.failure())?;
            found.ok_or_else(|| error.failure())?.moref
        }
        Err(error) => return Err(error.failure()),
    };
    let disks = frozen_disks(vcenter, vm, &snapshot).await?;
    Ok(Frozen { snapshot, name: name.to_owned(), disks })
}

async fn make(vcenter: &VCenter, vm: &VmRef, name: &str, quiesce: bool) -> Result<MoRef, VimError> {
    let description = "made by Gantry for a backup; it removes it itself";
    let snapshot = NewSnapshot { name, description, quiesce };
    let task = vcenter.create_snapshot(vm, &snapshot).await?;
    let object = vm.to_string();
    let wait = TaskWait::new("CreateSnapshot_Task", &object, CREATE_WITHIN);
    let end = vcenter.wait_for_task(&task, wait).await?;
    match end.result.as_ref().and_then(Element::as_moref) {
        Some(snapshot) => Ok(snapshot),
        None => match find(vcenter, vm, name).await? {
            Some(found) => Ok(found.moref),
            None => Err(vcenter.unexpected("CreateSnapshot_Task", &object, "no snapshot")),
        },
    }
}

/// The machine's snapshots.
///
/// # Errors
/// As any call.
pub async fn list(vcenter: &VCenter, vm: &VmRef) -> Result<Vec<SnapshotFacts>, VimError> {
    let content = vcenter.properties_of(&vm.moref, &vm.to_string(), &["snapshot"]).await?;
    Ok(content.get("snapshot").map(snapshots).unwrap_or_default())
}

async fn find(
    vcenter: &VCenter,
    vm: &VmRef,
    name: &str,
) -> Result<Option<SnapshotFacts>, VimError> {
    Ok(list(vcenter, vm).await?.into_iter().find(|snapshot| *snapshot.name == *name))
}

async fn frozen_disks(
    vcenter: &VCenter,
    vm: &VmRef,
    snapshot: &MoRef,
) -> Result<Vec<FrozenVmDisk>, Failure> {
    let path = "config.hardware.device";
    let content = vcenter.properties_of(snapshot, &vm.to_string(), &[path]).await;
    let content = content.map_err(|error| error.failure())?;
    let Some(value) = content.get(path) else {
        let text = format!("{vm}: the snapshot does not tell its disks");
        return Err(failed(FailureKind::Source, text));
    };
    let devices = Devices::parse(value);
    Ok(devices
        .disks
        .values()
        .map(|disk| {
            let controller = devices.controllers.get(&disk.controller_key);
            FrozenVmDisk {
                key: disk.key,
                label: disk.label.to_string(),
                uuid: disk.uuid.to_string(),
                capacity_bytes: disk.capacity_bytes,
                file: disk.file.to_string(),
                datastore: disk.datastore_name().to_owned(),
                change_id: disk.change_id.as_ref().map(|id| id.to_string()),
                place: controller.map(|found| (found.kind, found.bus, disk.unit)),
                backing: match (&disk.backing, disk.chain.is_empty()) {
                    (BackingKind::Flat, true) => FrozenBacking::Flat,
                    (BackingKind::Flat | BackingKind::SeSparse, _) => FrozenBacking::Delta,
                    _ => FrozenBacking::Other,
                },
            }
        })
        .collect())
}

/// Removes the snapshot of this name, and merges what it leaves; says what was done.
///
/// # Errors
/// As any call; then it may still be there.
pub async fn thaw(vcenter: &VCenter, vm: &VmRef, name: &str) -> Result<String, Failure> {
    let fail = |error: VimError| error.failure();
    let Some(snapshot) = find(vcenter, vm, name).await.map_err(fail)? else {
        return Ok(format!("snapshot '{name}' is not there (any more)"));
    };
    let object = vm.to_string();
    let removed = async {
        let task = vcenter.remove_snapshot(vm, &snapshot.moref).await?;
        let wait = TaskWait::new("RemoveSnapshot_Task", &object, REMOVE_WITHIN);
        vcenter.wait_for_task(&task, wait).await
    };
    if let Err(error) = removed.await {
        // What counts is whether it is gone.
        if find(vcenter, vm, name).await.map_err(fail)?.is_some() {
            return Err(fail(error));
        }
    }
    let path = "runtime.consolidationNeeded";
    let content = vcenter.properties_of(&vm.moref, &object, &[path]).await.map_err(fail)?;
    if content.get(path).and_then(Element::as_bool) == Some(true) {
        let task = vcenter.consolidate_disks(vm).await.map_err(fail)?;
        let wait = TaskWait::new("ConsolidateVMDisks_Task", &object, REMOVE_WITHIN);
        vcenter.wait_for_task(&task, wait).await.map_err(fail)?;
        return Ok(format!("snapshot '{name}' was removed, and its files were merged"));
    }
    Ok(format!("snapshot '{name}' was removed"))
}
