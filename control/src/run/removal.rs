//! Removes a run's snapshot, and those that lost sessions left.
//!
//! In: the machine, the snapshot's name. Out: what was done, in words. [`crate::snapshots::remove`] does the
//! rounds; what the ledger still holds as attached to a proxy is detached before each, and while that
//! fails the snapshot stays. Must not: remove a snapshot whose name is not this installation's.

use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;

use super::{failed, undo};
use crate::broker::Broker;
use crate::ledger::Ledger;
use crate::snapshots::{Detach, Mark, Removal, Removed, Whose, remove};
use crate::vcenter::{VCenter, VmRef};

/// Detaches these disks (undo's number, proxy VM's UUID and file); usually they are gone already.
fn detaching(vcenter: &VCenter, attached: Vec<(u64, String, String)>) -> Box<Detach<'static>> {
    let vcenter = vcenter.clone();
    Box::new(move |_| {
        let (vcenter, attached) = (vcenter.clone(), attached.clone());
        Box::pin(async move {
            for (_, proxy_vm, file) in attached {
                let detached = undo::detach(&vcenter, &proxy_vm, &file).await;
                detached.map_err(|failure| failure.to_string())?;
            }
            Ok(())
        })
    })
}

/// Removes the snapshot of this name and merges what it leaves; succeeds if it is not there. Before,
/// the disks of the session that may still be attached are detached.
///
/// # Errors
/// `Source`: it is still there, or the disks still need consolidation.
pub async fn remove_named(
    vcenter: &VCenter,
    vm: &VmRef,
    name: &str,
    attached: Vec<(u64, String, String)>,
    pauses: &[Duration],
) -> Result<String, Failure> {
    let detach = detaching(vcenter, attached);
    let whose = Whose::Named(name.to_owned());
    let removed = remove(vcenter, Removal::new(vm, whose, &*detach, pauses)).await;
    tell(removed.map_err(|error| error.failure())?)
}

/// Removes what lost sessions of this installation left: of machines that the broker sees with such
/// a snapshot. Those that stand in the ledger are the ledger's business. One line for each; snapshots
/// of other installations are only told.
pub async fn remove_stranded(
    broker: &Broker,
    owner: &str,
    ledger: &Ledger,
    pauses: &[Duration],
) -> Vec<String> {
    let marked: Vec<(VmRef, Vec<String>)> = broker.read(|cache| {
        let machines = cache.vms().map(|(moref, facts)| {
            let names = facts.snapshots.iter().map(|snapshot| snapshot.name.to_string());
            (facts.vm_ref(moref), names.filter(|name| Mark::is_gantrys(name)).collect::<Vec<_>>())
        });
        machines.filter(|(_, names)| !names.is_empty()).collect()
    });
    // Read after the snapshots: each of a run that goes on stood in the ledger before it was made.
    let open = ledger.open_undos();
    let known: Vec<SessionId> = open.iter().filter_map(|undo| undo.session.parse().ok()).collect();
    let mut lines = Vec::new();
    for (vm, names) in marked {
        let foreign = names.iter().filter(|name| Mark::session_of(name, owner).is_none());
        lines.extend(foreign.map(|name| {
            format!(
                "{vm} has the snapshot '{name}' of another Gantry: if that does not run any more, \
                 remove it in vCenter"
            )
        }));
        let own = names.iter().filter_map(|name| Mark::session_of(name, owner));
        if own.into_iter().all(|session| known.contains(&session)) {
            continue;
        }
        let detach = detaching(broker.vcenter(), Vec::new());
        let whose = Whose::Stranded { owner: owner.to_owned(), running: known.clone() };
        let removal = Removal::new(&vm, whose, &*detach, pauses);
        let line = match remove(broker.vcenter(), removal).await {
            Ok(removed) => tell(removed).unwrap_or_else(|failure| failure.to_string()),
            Err(error) => error.to_string(),
        };
        lines.push(format!("{vm}: {line}"));
    }
    lines
}

fn tell(removed: Removed) -> Result<String, Failure> {
    let gone = removed.gone.join(", ");
    if removed.is_clean() {
        let in_rounds = if removed.rounds > 1 {
            format!(" in {} rounds", removed.rounds)
        } else {
            String::new()
        };
        return Ok(match gone.as_str() {
            "" => "the snapshot is not there (any more)".to_owned(),
            gone => format!("snapshot {gone} was removed{in_rounds}"),
        });
    }
    let mut text = match removed.left.as_slice() {
        [] => "the disks still need consolidation".to_owned(),
        left => format!("snapshot {} would not go", left.join(", ")),
    };
    text.push_str(&format!(" after {} rounds", removed.rounds));
    if !removed.errors.is_empty() {
        text.push_str(&format!(": {}", removed.errors.join("; ")));
    }
    Err(failed(FailureKind::Source, text))
}
