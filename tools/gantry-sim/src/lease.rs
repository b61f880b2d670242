//! NFC leases: the right to fetch a machine's disks as streamOptimized VMDK, for a limited time.
//!
//! In: exports of machines and snapshots. Out: leases by id, for the `HttpNfcLease` methods and the
//! `/nfc` route. A lease whose client says nothing for its time ends with an error.

use std::sync::Arc;
use std::time::Instant;

use crate::fault::Fault;
use crate::schema::{Object, Ref, Value, list, object};
use crate::sim::{Sim, State};
use crate::storage::{DiskId, SnapshotId};

/// A disk of a lease.
#[derive(Debug, Clone)]
pub struct LeaseDisk {
    /// `/vm-12/ParaVirtualSCSIController0:0`.
    pub key: String,
    /// The last part of its address.
    pub name: String,
    /// The engine's number.
    pub disk: DiskId,
    /// Its size.
    pub capacity_bytes: u64,
    /// What was sent of it to the end: bytes and SHA-1.
    pub sent: Option<(u64, String)>,
}

/// A lease.
#[derive(Debug)]
pub struct Lease {
    /// The endpoint's number.
    pub endpoint: usize,
    /// The managed object.
    pub reference: Ref,
    /// What is exported.
    pub entity: Ref,
    /// The snapshot that is exported; absent for a machine that is off.
    pub snapshot: Option<SnapshotId>,
    /// The disks.
    pub disks: Vec<LeaseDisk>,
    /// When it ends unless the client reports progress.
    pub deadline: Instant,
    /// Whether disks may be fetched.
    pub open: bool,
}

impl Lease {
    /// `HttpNfcLeaseInfo`; `origin` is the part of addresses before the path; thumbprint and PEM are
    /// of the certificate that stands there.
    #[must_use]
    pub fn info(
        &self,
        id: &str,
        origin: &str,
        (thumbprint, certificate): &(String, String),
        timeout_seconds: u64,
    ) -> Value {
        let urls = self.disks.iter().map(|disk| {
            object(
                "HttpNfcLeaseDeviceUrl",
                [
                    ("key", (&disk.key).into()),
                    ("importKey", (&disk.key).into()),
                    ("url", format!("{origin}/nfc/{id}/{}", disk.name).into()),
                    ("sslThumbprint", thumbprint.as_str().into()),
                    ("sslCertificate", certificate.as_str().into()),
                    ("disk", true.into()),
                    ("targetId", (&disk.name).into()),
                    ("datastoreKey", format!("{origin}/").into()),
                    ("fileSize", (-1i64).into()),
                ],
            )
        });
        let kib: u64 = self.disks.iter().map(|disk| disk.capacity_bytes / 1024).sum();
        object(
            "HttpNfcLeaseInfo",
            [
                ("lease", (&self.reference).into()),
                ("entity", (&self.entity).into()),
                ("deviceUrl", list(urls)),
                ("totalDiskCapacityInKB", kib.into()),
                ("leaseTimeout", timeout_seconds.into()),
            ],
        )
    }

    /// The manifest of what was sent.
    #[must_use]
    pub fn manifest(&self) -> Value {
        let sent = self.disks.iter().filter_map(|disk| {
            let (size, sha1) = disk.sent.as_ref()?;
            Some(object(
                "HttpNfcLeaseManifestEntry",
                [
                    ("key", (&disk.key).into()),
                    ("sha1", sha1.into()),
                    ("size", (*size).into()),
                    ("disk", true.into()),
                    ("capacity", disk.capacity_bytes.into()),
                    ("populatedSize", (*size).into()),
                ],
            ))
        });
        list(sent.collect::<Vec<_>>())
    }
}

/// Puts a lease's object into a final state. It stays readable.
pub fn end(state: &mut State, id: &str, error: Option<&Fault>) {
    let Some(lease) = state.leases.get_mut(id) else { return };
    lease.open = false;
    let (reference, at) = (lease.reference.clone(), lease.endpoint);
    let model = &mut state.endpoints[at].model;
    model.set(&reference, "error", error.map(Fault::localized));
    model.set(&reference, "state", if error.is_some() { "error" } else { "done" });
    model.publish();
}

/// Makes the lease ready after a moment, and ends it when its client falls silent.
pub async fn watch(sim: Arc<Sim>, id: Arc<str>, info: Value) {
    tokio::time::sleep(sim.options.task_time).await;
    {
        let mut state = sim.lock();
        let Some(lease) = state.leases.get_mut(&id) else { return };
        lease.deadline = Instant::now() + sim.options.lease_time;
        let (reference, at) = (lease.reference.clone(), lease.endpoint);
        let model = &mut state.endpoints[at].model;
        model.set(&reference, "info", info);
        model.set(&reference, "initializeProgress", 100);
        model.set(&reference, "state", "ready");
        model.publish();
    }
    loop {
        let deadline = match sim.lock().leases.get(&id) {
            Some(lease) if lease.open => lease.deadline,
            _ => return,
        };
        if deadline <= Instant::now() {
            let fault = Fault::new("Timedout", "The lease timed out without progress.");
            end(&mut sim.lock(), &id, Some(&fault));
            return;
        }
        tokio::time::sleep_until(deadline.into()).await;
    }
}

/// The properties of a lease that has just been made.
pub fn begin(state: &mut State, lease: &Lease) {
    let model = &mut state.endpoints[lease.endpoint].model;
    let this = &lease.reference;
    model.add(this);
    model.set(this, "initializeProgress", 0);
    model.set(this, "transferProgress", 0);
    model.set(this, "mode", "pushOrGet");
    model.set(this, "state", "initializing");
    let mut capabilities = Object::new("HttpNfcLeaseCapabilities");
    capabilities.set("pullModeSupported", false);
    capabilities.set("corsSupported", false);
    model.set(this, "capabilities", capabilities);
    model.publish();
}
