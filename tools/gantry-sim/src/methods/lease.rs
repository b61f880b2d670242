//! Exports: `ExportVm`, `ExportSnapshot` and the methods of their leases.

use std::sync::Arc;
use std::time::Instant;

use super::Call;
use super::power::wrong_power;
use crate::fault::Fault;
use crate::lease::{self, Lease, LeaseDisk};
use crate::limits;
use crate::schema::{Value, reference};
use crate::sim::{Endpoint, Kind};
use crate::site::{Disk, Power, Subject};
use crate::tasks::{machine_mut, machine_of};

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    match call.method {
        "ExportVm" | "ExportSnapshot" => export(call),
        "HttpNfcLeaseProgress" => progress(call),
        "HttpNfcLeaseGetManifest" => {
            let state = call.sim.lock();
            let lease = state.leases.get(&call.this.id);
            Ok(lease.ok_or_else(|| Fault::no_object(&call.this))?.manifest())
        }
        _ => finish(call),
    }
}

fn lease_disks(disks: &[Disk]) -> Vec<LeaseDisk> {
    let exported = disks.iter().filter(|disk| disk.in_snapshots() && !disk.attached);
    let exported = exported.filter_map(|disk| Some((disk, disk.storage?)));
    let all = exported.enumerate().map(|(at, (disk, storage))| LeaseDisk {
        key: format!(
            "/{}/ParaVirtualSCSIController{}:{}",
            disk.uuid,
            disk.controller - 1000,
            disk.unit
        ),
        name: format!("disk-{at}.vmdk"),
        disk: storage,
        capacity_bytes: disk.capacity_bytes,
        sent: None,
    });
    all.collect()
}

fn export(call: &Call) -> Result<Value, Fault> {
    let id = machine_of(call)?;
    let mut state = call.sim.lock();
    let subject = call.endpoint(&mut state).subject(&call.this).cloned();
    let machine = machine_mut(&mut state, id)?;
    let (snapshot, disks, host) = match subject {
        Some(Subject::Snapshot(_, snapshot)) => {
            let found = machine.snapshot(snapshot).ok_or_else(|| Fault::no_object(&call.this))?;
            (found.storage, lease_disks(&found.disks), machine.host)
        }
        _ if machine.power != Power::Off => return Err(wrong_power(machine, Power::Off)),
        _ => (None, lease_disks(&machine.disks), machine.host),
    };
    let open = state.leases.values().filter(|lease| lease.open).count();
    if open >= state.leases_open_max || state.leases.len() >= limits::LEASES_MAX {
        let message = "The number of open NFC leases has reached its limit.";
        return Err(Fault::new("LimitExceeded", message));
    }
    let entity = call.endpoint(&mut state).reference(&Subject::Machine(id)).cloned();
    let entity = entity.ok_or_else(|| Fault::no_object(&call.this))?;
    let lease = Lease {
        endpoint: call.origin.endpoint,
        reference: reference("HttpNfcLease", crate::site::random_uuid()),
        entity,
        snapshot,
        disks,
        deadline: Instant::now() + call.sim.options.lease_time,
        open: true,
    };
    // vCenter sends clients to the host; a host says `*` for whatever name the client knows it by.
    let shown = |endpoint: &Endpoint| (endpoint.thumbprint.clone(), endpoint.certificate.clone());
    let (origin, shown) = match call.endpoint(&mut state).kind {
        Kind::VCenter => {
            let at = state.endpoints.iter().find(|e| e.kind == Kind::Host(host));
            let at = at.and_then(|e| Some((e.address?, shown(e))));
            let (address, shown) =
                at.ok_or_else(|| Fault::new("HostNotReachable", "The host is not reachable."))?;
            (format!("https://{address}"), shown)
        }
        Kind::Host(_) => ("https://*".into(), shown(call.endpoint(&mut state))),
    };
    let seconds = call.sim.options.lease_time.as_secs();
    let key: Arc<str> = lease.reference.id.clone();
    let info = lease.info(&key, &origin, &shown, seconds);
    let answer = lease.reference.clone();
    lease::begin(&mut state, &lease);
    state.leases.insert(key.clone(), lease);
    drop(state);
    tokio::spawn(lease::watch(call.sim.clone(), key, info));
    Ok(answer.into())
}

fn not_ready(call: &Call) -> Fault {
    Fault::new("InvalidState", format!("The lease {} is not open.", call.this.id))
}

fn progress(call: &Call) -> Result<Value, Fault> {
    let percent = call.arguments.get("percent").number().unwrap_or(-1);
    if !(0..=100).contains(&percent) {
        return Err(Fault::invalid_argument("percent"));
    }
    let mut state = call.sim.lock();
    let lease = state.leases.get_mut(&call.this.id).filter(|lease| lease.open);
    let lease = lease.ok_or_else(|| not_ready(call))?;
    lease.deadline = Instant::now() + call.sim.options.lease_time;
    let model = &mut call.endpoint(&mut state).model;
    model.set(&call.this, "transferProgress", percent);
    model.publish();
    Ok(Value::Absent)
}

/// `HttpNfcLeaseComplete` and `HttpNfcLeaseAbort`.
fn finish(call: &Call) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    if !state.leases.get(&call.this.id).is_some_and(|lease| lease.open) {
        return Err(not_ready(call));
    }
    let aborted = Fault::new("RequestCanceled", "The lease was aborted by its client.");
    let error = (call.method == "HttpNfcLeaseAbort").then_some(&aborted);
    lease::end(&mut state, &call.this.id, error);
    Ok(Value::Absent)
}
