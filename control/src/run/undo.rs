//! Undoes what an earlier process left in vSphere: before anything else at each start.
//!
//! In: the ledger's open entries, the newest first (disks are detached before a snapshot goes). Out:
//! what was done, and what is still open. Must not: touch a snapshot that bears no mark of Gantry.

use std::time::Duration;

use gantry_common::failure::Failure;

use super::{made_vm, removal, roads};
use crate::hotadd;
use crate::ledger::{Ledger, Open, Undo};
use crate::vcenter::{MoRef, VCenter, VmRef};

/// Carries out those of the `open` undos that are of this vCenter, in their order; one line for each.
///
/// # Errors
/// Only of the ledger: what could not be undone stays open and is a line.
pub async fn undo_all(
    vcenter: &VCenter,
    vcenter_id: &str,
    ledger: &Ledger,
    open: Vec<Open>,
    pauses: &[Duration],
) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    for open in open {
        let of = match &open.undo {
            Undo::RemoveSnapshot { vcenter, .. }
            | Undo::DetachDisk { vcenter, .. }
            | Undo::RemoveMadeVm { vcenter, .. }
            | Undo::AbortLease { vcenter, .. } => vcenter,
        };
        if of != vcenter_id {
            continue;
        }
        match undo(vcenter, &open, ledger, pauses).await {
            Ok(line) => {
                ledger.done(open.number)?;
                lines.push(format!("session {}: {line}", open.session));
            }
            Err(failure) => {
                lines.push(format!("session {}: still open: {failure}", open.session));
            }
        }
    }
    Ok(lines)
}

/// Carries one undo out; says what was done.
///
/// # Errors
/// It is not done, and stays open.
pub(super) async fn undo(
    vcenter: &VCenter,
    open: &Open,
    ledger: &Ledger,
    pauses: &[Duration],
) -> Result<String, Failure> {
    match &open.undo {
        Undo::RemoveSnapshot { vm, vm_name, snapshot, .. } => {
            let Some(moref) = find(vcenter, vm).await? else {
                return Ok(format!("the machine '{vm_name}' is gone, and its snapshot with it"));
            };
            let vm = VmRef::new(moref, vm_name.as_str());
            let attached = ledger.attached_of(&open.session);
            removal::remove_named(vcenter, &vm, snapshot, attached, pauses).await
        }
        Undo::DetachDisk { proxy_vm, file, .. } => detach(vcenter, proxy_vm, file).await,
        Undo::RemoveMadeVm { vm, vm_name, datacenter, folder, .. } => {
            let datacenter = MoRef::new("Datacenter", datacenter.as_str());
            made_vm::remove(vcenter, (vm, vm_name), &datacenter, folder).await
        }
        Undo::AbortLease { lease, .. } => {
            roads::abort_lease(vcenter, lease).await?;
            Ok("the export lease was ended".to_owned())
        }
    }
}

/// Detaches a disk from the proxy VM; says what was there.
///
/// # Errors
/// As any call: it may still be attached.
pub async fn detach(vcenter: &VCenter, proxy_vm: &str, file: &str) -> Result<String, Failure> {
    let Some(moref) = find(vcenter, proxy_vm).await? else {
        return Ok("the proxy is gone, and what was attached with it".to_owned());
    };
    let detached = hotadd::detach(vcenter, &VmRef::new(moref, "proxy"), file).await;
    Ok(match detached.map_err(|error| error.failure())? {
        true => format!("{file} was detached from the proxy"),
        false => format!("{file} is not attached to the proxy (any more)"),
    })
}

async fn find(vcenter: &VCenter, instance_uuid: &str) -> Result<Option<MoRef>, Failure> {
    vcenter.find_by_uuid(instance_uuid, true).await.map_err(|error| error.failure())
}
