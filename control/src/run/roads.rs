//! The roads of a run: what each transport mode needs before the mover can read, and after.
//!
//! In: a mode, a proxy, a frozen disk. Out: a [`SourceSpec`] for the mover; attached disks, leases and
//! credentials, all of which are ended again. Invariant: what stands in vSphere stands in the ledger
//! first.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{SessionId, TaskId};
use gantry_common::secret::Secret;
use gantry_common::source::{
    HttpAuth, HttpsSource, NfcSource, ServerTrust, SourceFormat, SourceSpec,
};
use gantry_http::Thumbprint;
use tokio::sync::Mutex;

use super::prepare::Subject;
use super::site::{Proxy, Site};
use super::{Context, failed, undo};
use crate::broker::{ControllerKind, VmFacts};
use crate::hotadd::{self, Purpose};
use crate::ledger::Undo;
use crate::snapshots::FrozenDisk;
use crate::transport::{ProxyFacts, TransportMode};
use crate::vcenter::datastore_file::{datacenter_of, flat_name, folder_path};
use crate::vcenter::lease::Lease;
use crate::vcenter::{MoRef, VCenter, VmRef};

/// A lease is ready within seconds, or something is wrong.
const LEASE_WITHIN: Duration = Duration::from_secs(120);
/// How often a cookie file is written anew: vCenter ends an HTTP session after 30 minutes.
pub(super) const COOKIE_EVERY: Duration = Duration::from_secs(600);

/// The roads of one run.
pub(super) struct Roads<'a, S> {
    context: &'a Context<'a, S>,
    run: String,
    vm: VmRef,
    facts: VmFacts,
    snapshot: MoRef,
    /// One export serves every disk of the machine.
    lease: Mutex<Option<OpenLease>>,
}

struct OpenLease {
    number: u64,
    lease: Lease,
    keeper: tokio::task::AbortHandle,
}

impl Drop for OpenLease {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl<'a, S: Site> Roads<'a, S> {
    /// No road is open yet.
    pub(super) fn new(
        context: &'a Context<'a, S>,
        run: SessionId,
        subject: &Subject,
        snapshot: MoRef,
    ) -> Roads<'a, S> {
        let (vm, facts) = (subject.vm.clone(), subject.facts.clone());
        Roads { context, run: run.to_string(), vm, facts, snapshot, lease: Mutex::new(None) }
    }

    fn vcenter(&self) -> &VCenter {
        self.context.broker.vcenter()
    }

    /// Opens a road from a proxy to a disk.
    ///
    /// # Errors
    /// `Source`, if it cannot be: the next mode may.
    pub(super) async fn open(
        &self,
        proxy: &Proxy,
        task: TaskId,
        mode: TransportMode,
        disk: &FrozenDisk,
    ) -> Result<SourceSpec, Failure> {
        match mode {
            TransportMode::Direct => direct(&proxy.facts, disk),
            TransportMode::Hotadd => self.hotadd(&proxy.facts, disk).await,
            TransportMode::Nbd => self.nbd(&proxy.facts, disk),
            TransportMode::Https => self.https(&proxy.id, task, disk).await,
            TransportMode::Nfc => self.nfc(&proxy.id, task, disk).await,
        }
    }

    async fn hotadd(&self, proxy: &ProxyFacts, disk: &FrozenDisk) -> Result<SourceSpec, Failure> {
        let facts = proxy.vm.as_ref();
        let facts = facts.ok_or_else(|| failed(FailureKind::Source, "the proxy is no machine"))?;
        let found = self.vcenter().find_by_uuid(&facts.instance_uuid, true).await;
        let found = found.map_err(|error| error.failure())?.ok_or_else(|| {
            let text = format!("no machine has the proxy's UUID {}", facts.instance_uuid);
            failed(FailureKind::Source, text)
        })?;
        let undo = Undo::DetachDisk {
            vcenter: self.context.vcenter_id.to_owned(),
            proxy_vm: facts.instance_uuid.clone(),
            file: disk.facts.file.to_string(),
            disk_uuid: disk.facts.uuid.to_string(),
        };
        // It stays in the ledger also if attaching fails: its outcome may be unknown, and detaching
        // looks first.
        self.context.ledger.begin(&self.run, undo)?;
        let proxy = VmRef::new(found, "proxy");
        let (vcenter, file) = (self.vcenter(), &disk.facts.file);
        let attached = hotadd::attach(vcenter, &proxy, file, Purpose::Read).await;
        attached.map_err(|error| error.failure())?;
        let folder = facts.device_folder.clone();
        Ok(SourceSpec::DeviceByUuid { uuid: disk.facts.uuid.to_string(), folder })
    }

    fn nbd(&self, proxy: &ProxyFacts, disk: &FrozenDisk) -> Result<SourceSpec, Failure> {
        let template = proxy.nbd_template.as_deref().unwrap_or_default();
        let address = template
            .replace("{vm}", &self.vm.name)
            .replace("{disk_uuid}", &disk.facts.uuid)
            .replace("{datastore}", disk.facts.datastore_name())
            .replace("{file}", &relative(&disk.facts.file).unwrap_or_default().to_string_lossy());
        SourceSpec::parse(&address).map_err(|error| failed(FailureKind::Source, error))
    }

    async fn https(
        &self,
        proxy: &str,
        task: TaskId,
        disk: &FrozenDisk,
    ) -> Result<SourceSpec, Failure> {
        let datacenter = datacenter_of(self.vcenter(), &self.vm.moref).await;
        let path = folder_path(&flat_name(&disk.facts.file), datacenter.as_deref());
        let path_and_query = path.ok_or_else(|| not_a_path(disk))?;
        Ok(SourceSpec::Https(HttpsSource {
            host: self.context.endpoint.host().to_owned(),
            port: self.context.endpoint.port(),
            trust: self.context.trust.clone(),
            path_and_query,
            size_bytes: disk.facts.capacity_bytes,
            auth: self.cookie(proxy, task).await?,
            connections: 0,
            in_flight: 0,
        }))
    }

    async fn nfc(
        &self,
        proxy: &str,
        task: TaskId,
        disk: &FrozenDisk,
    ) -> Result<SourceSpec, Failure> {
        let no_stream = || {
            failed(FailureKind::Source, format!("the export has no stream of {}", disk.facts.label))
        };
        let place = self.place(disk).ok_or_else(no_stream)?;
        let file = {
            let mut open = self.lease.lock().await;
            if open.is_none() {
                *open = Some(self.export().await?);
            }
            let files = open.iter().flat_map(|open| &open.lease.files);
            let mut disks = files.filter(|file| file.is_disk);
            disks.find(|file| is_of(&file.key, place)).cloned().ok_or_else(no_stream)?
        };
        let own = (self.context.endpoint.host().to_owned(), self.context.endpoint.port());
        let ((host, port), path_and_query) = split_url(&file.url, own.clone())?;
        // The address itself is the ticket; another host must not see vCenter's session.
        let auth = match (host.as_str(), port) == (own.0.as_str(), own.1) {
            true => self.cookie(proxy, task).await?,
            false => HttpAuth::None,
        };
        Ok(SourceSpec::Nfc(NfcSource {
            host,
            port,
            trust: self.lease_trust(file.certificate.as_deref())?,
            path_and_query,
            size_bytes: disk.facts.capacity_bytes,
            auth,
        }))
    }

    async fn export(&self) -> Result<OpenLease, Failure> {
        let lease = self.vcenter().export_snapshot(&self.vm, &self.snapshot, LEASE_WITHIN).await;
        let lease = lease.map_err(|error| error.failure())?;
        // A lease ends by itself if nobody tells its progress: what a crash leaves is short.
        let undo = Undo::AbortLease {
            vcenter: self.context.vcenter_id.to_owned(),
            lease: lease.moref.value.to_string(),
        };
        let number = self.context.ledger.begin(&self.run, undo)?;
        let keeper = self.keep_lease(&lease);
        Ok(OpenLease { number, lease, keeper })
    }

    /// The host that serves a lease shows the certificate that vCenter says it has; where vCenter
    /// does not say, one that is trusted as vCenter's own.
    fn lease_trust(&self, certificate: Option<&str>) -> Result<ServerTrust, Failure> {
        match certificate {
            Some(pem) => Thumbprint::of_pem(pem.as_bytes())
                .map(|thumbprint| ServerTrust::Thumbprint(thumbprint.to_string()))
                .ok_or_else(|| failed(FailureKind::Source, "the lease's certificate is none")),
            None => Ok(self.context.trust.clone()),
        }
    }

    /// Where a disk is attached, by the machine's controllers.
    fn place(&self, disk: &FrozenDisk) -> Option<Place> {
        let controller = self.facts.controllers.get(&disk.facts.controller_key)?;
        Some((controller.kind, controller.bus, disk.facts.unit))
    }

    fn keep_lease(&self, lease: &Lease) -> tokio::task::AbortHandle {
        let (vcenter, moref) = (self.vcenter().clone(), lease.moref.clone());
        let (object, every) = (self.vm.to_string(), lease.timeout / 4);
        let keep = async move {
            loop {
                tokio::time::sleep(every).await;
                if let Err(error) = vcenter.lease_progress(&moref, &object, 50).await {
                    tracing::warn!("{error}");
                }
            }
        };
        tokio::spawn(keep).abort_handle()
    }

    /// The session's cookie, in a file that the mover reads again when the server refuses.
    async fn cookie(&self, proxy: &str, task: TaskId) -> Result<HttpAuth, Failure> {
        self.set_cookie(proxy, task).await?;
        Ok(HttpAuth::File(self.context.site.credential_path(proxy, task)?))
    }

    /// Writes the present session's cookie for a task, once more.
    ///
    /// # Errors
    /// As any call; of the proxy.
    pub(super) async fn set_cookie(&self, proxy: &str, task: TaskId) -> Result<(), Failure> {
        // A call that needs a session: a lost one is replaced by it.
        self.vcenter().current_time().await.map_err(|error| error.failure())?;
        let cookie = self.vcenter().session_cookie().await.map_err(|error| error.failure())?;
        let auth = serde_json::to_string(&HttpAuth::Cookie(cookie));
        let auth = auth.map_err(|error| failed(FailureKind::Internal, error))?;
        self.context.site.set_credential(proxy, task, Secret::new(auth)).await
    }

    /// Ends what the road to a disk needed: by the ledger, so that it does not matter who opened it.
    pub(super) async fn close_disk(&self, file: &str) {
        for (number, proxy_vm, of) in self.context.ledger.attached_of(&self.run) {
            if of != file {
                continue;
            }
            let detached = undo::detach(self.vcenter(), &proxy_vm, &of).await;
            let done = detached.and_then(|line| {
                self.context.ledger.done(number)?;
                Ok(line)
            });
            match done {
                Ok(line) => self.context.info(None, &line),
                Err(failure) => {
                    self.context
                        .warn(None, &format!("{of} is detached at the next chance: {failure}"));
                }
            }
        }
    }

    /// Ends the export, if there was one.
    pub(super) async fn close_lease(&self, is_complete: bool) {
        let Some(open) = self.lease.lock().await.take() else { return };
        let (object, moref) = (self.vm.to_string(), &open.lease.moref);
        let ended = match is_complete {
            true => self.vcenter().complete_lease(moref, &object).await,
            false => self.vcenter().abort_lease(moref, &object).await,
        };
        let ended = ended.or_else(|error| if error.is_gone() { Ok(()) } else { Err(error) });
        let ended = ended.map_err(|error| error.failure());
        let done =
            ended.and_then(|()| self.context.ledger.done(open.number).map_err(Failure::from));
        if let Err(failure) = done {
            self.context
                .warn(None, &format!("the export lease is ended at the next chance: {failure}"));
        }
    }
}

fn direct(proxy: &ProxyFacts, disk: &FrozenDisk) -> Result<SourceSpec, Failure> {
    let mount = proxy.mounts.get(disk.facts.datastore_name());
    let path = mount.zip(relative(&disk.facts.file)).map(|(mount, file)| mount.join(file));
    let path = path.ok_or_else(|| not_a_path(disk))?;
    Ok(SourceSpec::Path { path, format: SourceFormat::Vmdk })
}

/// Ends a lease that an earlier process left.
pub(super) async fn abort_lease(vcenter: &VCenter, lease: &str) -> Result<(), Failure> {
    let moref = MoRef::new("HttpNfcLease", lease);
    match vcenter.abort_lease(&moref, lease).await {
        Err(error) if !error.is_gone() && error.fault().is_none() => Err(error.failure()),
        // It ended long ago.
        _ => Ok(()),
    }
}

fn not_a_path(disk: &FrozenDisk) -> Failure {
    let text = format!("{}: '{}' is no path of a datastore", disk.facts.label, disk.facts.file);
    failed(FailureKind::Source, text)
}

/// `[ds] vm/vm.vmdk` → `vm/vm.vmdk`; nothing if it leaves the datastore.
fn relative(file: &str) -> Option<PathBuf> {
    let (_, path) = file.strip_prefix('[')?.split_once("] ")?;
    let path = Path::new(path);
    path.components().all(|part| matches!(part, Component::Normal(_))).then(|| path.to_owned())
}

/// Kind of a controller, its bus, the unit on it.
type Place = (ControllerKind, i32, i32);

/// Whether a lease's device key, such as `/vm-1/VirtualLsiLogicController0:3`, is of this disk.
fn is_of(key: &str, (kind, bus, unit): Place) -> bool {
    let Some((controller, place)) = key.rsplit('/').next().and_then(|last| {
        let at = last.find("Controller")? + "Controller".len();
        last.split_at_checked(at)
    }) else {
        return false;
    };
    let is_kind = match kind {
        ControllerKind::Ide => controller.contains("IDE"),
        ControllerKind::Sata => controller.contains("SATA") || controller.contains("AHCI"),
        ControllerKind::Nvme => controller.contains("NVME"),
        ControllerKind::Scsi => {
            !["IDE", "SATA", "AHCI", "NVME"].iter().any(|other| controller.contains(other))
        }
    };
    is_kind && place == format!("{bus}:{unit}")
}

/// Host, port, path of a device URL; `*` stands for the endpoint that was asked.
fn split_url(url: &str, own: (String, u16)) -> Result<((String, u16), String), Failure> {
    let wrong = || failed(FailureKind::Source, format!("'{url}' is no address of an export"));
    let rest = url.strip_prefix("https://").ok_or_else(wrong)?;
    let at = rest.find('/').ok_or_else(wrong)?;
    let (authority, path) = rest.split_at(at);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            (host, port.parse::<u16>().map_err(|_| wrong())?)
        }
        _ => (authority, 443),
    };
    let target = if host == "*" { own } else { (host.to_owned(), port) };
    Ok((target, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{relative, split_url};

    #[test]
    fn device_urls_and_datastore_paths_are_taken_apart() {
        let own = || ("vc".to_owned(), 8443);
        let split = |url| split_url(url, own()).ok();
        assert_eq!(split("https://*/nfc/a/d.vmdk"), Some((own(), "/nfc/a/d.vmdk".into())));
        let esx = Some((("esx".to_owned(), 9443), "/nfc/d".to_owned()));
        assert_eq!(split("https://esx:9443/nfc/d"), esx);
        assert_eq!(split("http://esx/nfc"), None);
        assert_eq!(split("https://esx"), None);
        assert_eq!(relative("[ds] a/b.vmdk").as_deref(), Some("a/b.vmdk".as_ref()));
        assert_eq!(relative("[ds] ../b.vmdk"), None);
        assert_eq!(relative("[ds] /etc/passwd"), None);
    }
}
