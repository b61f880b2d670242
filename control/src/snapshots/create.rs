//! Makes a snapshot and finds its frozen disks.
//!
//! In: a machine and a [`Mark`]. Out: the [`Snapshot`]: its reference, and for each disk the file that
//! no longer changes, its change id and size, from the snapshot's own configuration. Undo:
//! [`super::remove::remove`] with the mark's name. A lost answer is not taken for a failure: the
//! machine's snapshots are looked through for the name.

use std::time::Duration;

use tokio::sync::watch;

use super::mark::Mark;
use crate::broker::devices::Devices;
use crate::broker::facts::{BackingKind, ControllerKind, DiskFacts, SnapshotFacts};
use crate::broker::parse;
use crate::limits;
use crate::transport;
use crate::vcenter::virtual_machine::NewSnapshot;
use crate::vcenter::{MoRef, TaskWait, VCenter, VimError, VmRef};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct NewRequest<'a> {
    /// The machine.
    pub vm: &'a VmRef,
    /// Whose it will be.
    pub mark: &'a Mark,
    /// Whether VMware Tools quiesce the guest.
    pub quiesce: bool,
    /// How long it may take.
    pub timeout: Duration,
    /// Once true, the task is cancelled.
    pub cancel: Option<watch::Receiver<bool>>,
}

/// A disk as the snapshot froze it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenDisk {
    /// The disk's facts in the snapshot: `file` is the one that no longer changes, `change_id` that of
    /// this instant.
    pub facts: DiskFacts,
    /// Kind of its controller, if known.
    pub controller: Option<ControllerKind>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its reference, good at this endpoint only.
    pub moref: MoRef,
    /// Its name.
    pub name: String,
    /// Its disks, by device key; independent ones and raw devices in physical mode are left out,
    /// since vSphere does not freeze them.
    pub disks: Vec<FrozenDisk>,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A call or the task failed; no snapshot was made.
    #[error("{0}")]
    Call(#[from] VimError),
    /// Its answer was lost and it could not be found: it may still come. Its undo stays open.
    #[error("{error}; no snapshot '{name}' was found afterwards, but one may still appear")]
    Unknown {
        /// The call's error.
        error: VimError,
        /// The name.
        name: String,
    },
    /// The task succeeded, and there is no such snapshot.
    #[error(
        "{vm}: vSphere says that the snapshot '{name}' was made, but the VM has none of that name"
    )]
    Vanished {
        /// The machine.
        vm: String,
        /// The name.
        name: String,
    },
}

impl FrozenDisk {
    /// What the choice of a transport mode depends on.
    pub fn for_transport(&self) -> transport::FrozenDisk {
        let backing = match (&self.facts.backing, self.facts.chain.is_empty()) {
            (BackingKind::Flat | BackingKind::RdmVirtual, true) => transport::FrozenBacking::Flat,
            (BackingKind::Flat | BackingKind::SeSparse | BackingKind::RdmVirtual, false) => {
                transport::FrozenBacking::Delta
            }
            _ => transport::FrozenBacking::Other,
        };
        transport::FrozenDisk {
            label: self.facts.label.to_string(),
            datastore: self.facts.datastore_name().to_owned(),
            backing,
            has_uuid: !self.facts.uuid.is_empty(),
            is_ide: self.controller == Some(ControllerKind::Ide),
            is_encrypted: self.facts.is_encrypted,
        }
    }
}

/// Makes a snapshot. Write its undo down first.
///
/// # Errors
/// See [`SnapshotError`]. After [`SnapshotError::Unknown`] the undo must stay open.
pub async fn create(vcenter: &VCenter, request: NewRequest<'_>) -> Result<Snapshot, SnapshotError> {
    let NewRequest { vm, mark, quiesce, timeout, cancel } = request;
    let (name, description) = (mark.name(), mark.description());
    let new = NewSnapshot { name: &name, description: &description, quiesce };
    let object = vm.to_string();
    let made = match vcenter.create_snapshot(vm, &new).await {
        Ok(task) => {
            let wait =
                TaskWait { cancel, ..TaskWait::new("CreateSnapshot_Task", &object, timeout) };
            vcenter.wait_for_task(&task, wait).await.map(drop)
        }
        Err(error) => Err(error),
    };
    let found = match made {
        Ok(()) => find(vcenter, vm, &name).await?,
        Err(error) if error.outcome_is_unknown() => {
            tracing::warn!(%error, "it is looked for the snapshot, since its outcome is unknown");
            match look_for(vcenter, vm, &name).await {
                Some(found) => Some(found),
                None => return Err(SnapshotError::Unknown { error, name }),
            }
        }
        Err(error) => return Err(error.into()),
    };
    let found = found.ok_or_else(|| SnapshotError::Vanished { vm: object, name: name.clone() })?;
    let disks = frozen_disks(vcenter, vm, &found.moref).await?;
    Ok(Snapshot { moref: found.moref, name, disks })
}

async fn look_for(vcenter: &VCenter, vm: &VmRef, name: &str) -> Option<SnapshotFacts> {
    for look in 0..limits::SNAPSHOT_LOOKS_MAX {
        if look > 0 {
            tokio::time::sleep(Duration::from_millis(limits::SNAPSHOT_LOOK_MS)).await;
        }
        match find(vcenter, vm, name).await {
            Ok(Some(found)) => return Some(found),
            Ok(None) => {}
            Err(error) => tracing::info!(%error, "the snapshot cannot be looked for just now"),
        }
    }
    None
}

/// The machine's snapshots, read from vCenter and not from the broker.
///
/// # Errors
/// As any call.
pub async fn list(vcenter: &VCenter, vm: &VmRef) -> Result<Vec<SnapshotFacts>, VimError> {
    let content = vcenter.properties_of(&vm.moref, &vm.to_string(), &["snapshot"]).await?;
    Ok(content.get("snapshot").map(parse::snapshots).unwrap_or_default())
}

/// The machine's snapshot of this name, if it has one.
///
/// # Errors
/// As any call.
pub async fn find(
    vcenter: &VCenter,
    vm: &VmRef,
    name: &str,
) -> Result<Option<SnapshotFacts>, VimError> {
    Ok(list(vcenter, vm).await?.into_iter().find(|snapshot| &*snapshot.name == name))
}

/// A snapshot's disks from its own configuration.
///
/// # Errors
/// As any call.
pub async fn frozen_disks(
    vcenter: &VCenter,
    vm: &VmRef,
    snapshot: &MoRef,
) -> Result<Vec<FrozenDisk>, VimError> {
    let path = "config.hardware.device";
    let content = vcenter.properties_of(snapshot, &vm.to_string(), &[path]).await?;
    let devices = content.get(path).map(Devices::parse).unwrap_or_default();
    let kinds = devices.controllers;
    let is_frozen =
        |disk: &DiskFacts| !disk.mode.is_independent() && disk.backing != BackingKind::RdmPhysical;
    let dependent = devices.disks.into_values().filter(is_frozen);
    let frozen = dependent.map(|facts| {
        let controller = kinds.get(&facts.controller_key).map(|controller| controller.kind);
        FrozenDisk { facts, controller }
    });
    Ok(frozen.collect())
}
