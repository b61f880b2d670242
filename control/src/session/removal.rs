//! Removes a session's snapshot, and those that lost sessions left.
//!
//! In: the machine, the snapshot's name. Out: what was done, in words. The disks that the session
//! attached to a proxy are gone before (the ledger's order); [`crate::snapshots::remove`] does the
//! rounds. Must not: remove a snapshot whose name is not this installation's.

use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};

use super::failed;
use crate::broker::Broker;
use crate::snapshots::{Detach, Mark, Removal, Removed, Whose, remove};
use crate::vcenter::{VCenter, VmRef};

/// Whoever removes here has detached before.
fn nothing_attached() -> Box<Detach<'static>> {
    Box::new(|_| Box::pin(async { Ok(()) }))
}

/// Removes the snapshot of this name and merges what it leaves; succeeds if it is not there.
///
/// # Errors
/// `Source`: it is still there, or the disks still need consolidation.
pub async fn remove_named(
    vcenter: &VCenter,
    vm: &VmRef,
    name: &str,
    pauses: &[Duration],
) -> Result<String, Failure> {
    let detach = nothing_attached();
    let whose = Whose::Named(name.to_owned());
    let removed = remove(vcenter, Removal::new(vm, whose, &*detach, pauses)).await;
    tell(removed.map_err(|error| error.failure())?)
}

/// Removes what lost sessions of this installation left: of machines that the broker sees with such
/// a snapshot. One line for each; snapshots of other installations are only told.
pub async fn remove_stranded(broker: &Broker, owner: &str, pauses: &[Duration]) -> Vec<String> {
    let marked: Vec<(VmRef, Vec<String>)> = broker.read(|cache| {
        let machines = cache.vms().map(|(moref, facts)| {
            let names = facts.snapshots.iter().map(|snapshot| snapshot.name.to_string());
            (facts.vm_ref(moref), names.filter(|name| Mark::is_gantrys(name)).collect::<Vec<_>>())
        });
        machines.filter(|(_, names)| !names.is_empty()).collect()
    });
    let mut lines = Vec::new();
    for (vm, names) in marked {
        let foreign = names.iter().filter(|name| Mark::session_of(name, owner).is_none());
        lines.extend(foreign.map(|name| {
            format!(
                "{vm} has the snapshot '{name}' of another Gantry: if that does not run any more, \
                 remove it in vCenter"
            )
        }));
        if names.iter().all(|name| Mark::session_of(name, owner).is_none()) {
            continue;
        }
        let detach = nothing_attached();
        let whose = Whose::Stranded { owner: owner.to_owned(), running: Vec::new() };
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
