//! HttpNfcLease: a snapshot's (or a machine's) disks as streamOptimized downloads.
//!
//! In: a snapshot. Out: a [`Lease`] with the URLs. It ends after its time-out unless its progress is
//! told; whoever takes one completes or aborts it, whatever happens.

use std::time::{Duration, Instant};

use super::error::{ErrorKind, VimError};
use super::fault::{Fault, FaultKind};
use super::moref::{MoRef, VmRef};
use super::retry::Repeat;
use super::session::VCenter;
use super::xml::Element;
use crate::limits;

/// One disk or file of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseFile {
    /// The device it belongs to, such as `/vm-1/VirtualLsiLogicController0:0`.
    pub key: String,
    /// Where it is read; the host may be `*`, which means the lease's own endpoint.
    pub url: String,
    /// Whether it is a disk (and not NVRAM or another file).
    pub is_disk: bool,
    /// Bytes, where the service knows.
    pub size_bytes: Option<u64>,
    /// The certificate of the host that serves it, in PEM; since vSphere 7.0.3. The `sslThumbprint`
    /// beside it is a SHA-1 digest, and not used.
    pub certificate: Option<String>,
}

/// A lease that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its reference.
    pub moref: MoRef,
    /// It ends after so long without progress.
    pub timeout: Duration,
    /// Its files.
    pub files: Vec<LeaseFile>,
}

impl VCenter {
    /// Asks for a lease on a snapshot's disks and waits until it is ready. The lease is aborted if
    /// that fails.
    ///
    /// # Errors
    /// As any call; the lease's own fault; `ready_within` exceeded.
    pub async fn export_snapshot(
        &self,
        vm: &VmRef,
        snapshot: &MoRef,
        ready_within: Duration,
    ) -> Result<Lease, VimError> {
        self.export("ExportSnapshot", snapshot, vm, ready_within).await
    }

    /// As [`VCenter::export_snapshot`], of a machine that is powered off.
    ///
    /// # Errors
    /// As [`VCenter::export_snapshot`].
    pub async fn export_vm(&self, vm: &VmRef, ready_within: Duration) -> Result<Lease, VimError> {
        self.export("ExportVm", &vm.moref, vm, ready_within).await
    }

    async fn export(
        &self,
        method: &'static str,
        this: &MoRef,
        vm: &VmRef,
        ready_within: Duration,
    ) -> Result<Lease, VimError> {
        let object = vm.to_string();
        let answer = self.call(method, this, &object, Repeat::Changes, |_| {}).await?;
        let lease = answer.moref_at("returnval");
        let lease = lease.ok_or_else(|| self.unexpected(method, &object, "no lease"))?;
        let ready = self.lease_ready(method, &lease, &object, ready_within).await;
        if ready.is_err() {
            let _ = self.abort_lease(&lease, &object).await;
        }
        ready
    }

    async fn lease_ready(
        &self,
        method: &'static str,
        lease: &MoRef,
        object: &str,
        ready_within: Duration,
    ) -> Result<Lease, VimError> {
        let deadline = Instant::now() + ready_within;
        loop {
            let content = self.properties_of(lease, object, &["state", "info", "error"]).await?;
            match (content.text("state"), content.get("info")) {
                (Some("ready"), Some(info)) => return Ok(parse(lease, info)),
                (Some("error"), _) => {
                    let fault = content.get("error").map_or(
                        Fault {
                            kind: FaultKind::Other { fault: "lease failed".into() },
                            message: String::new(),
                        },
                        Fault::parse_localized,
                    );
                    return Err(self.error(method, object, ErrorKind::Fault(fault)));
                }
                _ if Instant::now() >= deadline => {
                    let (task, seconds) = (lease.to_string(), ready_within.as_secs());
                    let kind = ErrorKind::TaskTimeout { task, seconds };
                    return Err(self.error(method, object, kind));
                }
                _ => tokio::time::sleep(Duration::from_millis(limits::TASK_POLL_MS / 4)).await,
            }
        }
    }

    /// Tells a lease's progress, which also keeps it alive.
    ///
    /// # Errors
    /// As any call.
    pub async fn lease_progress(
        &self,
        lease: &MoRef,
        object: &str,
        percent: u8,
    ) -> Result<(), VimError> {
        let method = "HttpNfcLeaseProgress";
        self.call(method, lease, object, Repeat::Harmless, |w| {
            w.value("percent", percent.min(100));
        })
        .await
        .map(drop)
    }

    /// Ends a lease after everything was read.
    ///
    /// # Errors
    /// As any call.
    pub async fn complete_lease(&self, lease: &MoRef, object: &str) -> Result<(), VimError> {
        let method = "HttpNfcLeaseComplete";
        self.call(method, lease, object, Repeat::Harmless, |_| {}).await.map(drop)
    }

    /// Ends a lease after a failure.
    ///
    /// # Errors
    /// As any call.
    pub async fn abort_lease(&self, lease: &MoRef, object: &str) -> Result<(), VimError> {
        let method = "HttpNfcLeaseAbort";
        self.call(method, lease, object, Repeat::Harmless, |_| {}).await.map(drop)
    }
}

fn parse(lease: &MoRef, info: &Element) -> Lease {
    let file = |url: &Element| {
        let text = |name: &str| url.text_at(name).map(str::to_owned);
        Some(LeaseFile {
            key: text("importKey").or(text("key")).unwrap_or_default(),
            url: text("url")?,
            is_disk: url.bool_at("disk").unwrap_or(false),
            size_bytes: url.number_at("fileSize"),
            certificate: text("sslCertificate"),
        })
    };
    Lease {
        moref: lease.clone(),
        timeout: Duration::from_secs(info.number_at("leaseTimeout").unwrap_or(60).clamp(10, 3600)),
        files: info.all("deviceUrl").filter_map(file).collect(),
    }
}
