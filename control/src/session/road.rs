//! The roads of a session: what each transport mode needs before the mover can read, and after.
//!
//! In: a mode, a frozen disk. Out: a [`SourceSpec`] for the mover; attached disks, leases and cookie
//! files, all of which [`RoadBuilder::close`] ends again. Invariant: what stands in vSphere stands in
//! the ledger first.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::source::{
    HttpAuth, HttpsSource, NfcSource, ServerTrust, SourceFormat, SourceSpec,
};
use gantry_http::Thumbprint;

use super::failed;
use crate::broker::{ControllerKind, VmFacts};
use crate::config::Config;
use crate::durable_file;
use crate::hotadd;
use crate::ledger::{Ledger, Undo};
use crate::probe::{datacenter_of, flat_name, folder_path};
use crate::snapshots::{FrozenDisk, Snapshot};
use crate::transport::TransportMode;
use crate::vcenter::lease::Lease;
use crate::vcenter::{MoRef, VCenter, VmRef};

/// A lease is ready within seconds, or something is wrong.
const LEASE_WITHIN: Duration = Duration::from_secs(120);
/// How often a cookie file is written anew: vCenter ends an HTTP session after 30 minutes.
const COOKIE_EVERY: Duration = Duration::from_secs(600);

/// Makes roads for one session.
pub struct RoadBuilder<'a> {
    pub(super) vcenter: &'a VCenter,
    pub(super) config: &'a Config,
    pub(super) vcenter_id: &'a str,
    pub(super) session: &'a str,
    pub(super) private: &'a Path,
    pub(super) vm: &'a VmRef,
    pub(super) facts: &'a VmFacts,
    pub(super) snapshot: &'a Snapshot,
}

/// What is open and must be closed.
#[derive(Debug, Default)]
pub struct OpenRoads {
    attached: Vec<(u64, VmRef, String)>,
    lease: Option<(u64, Lease)>,
    cookie: Option<CookieFile>,
    tasks: Vec<tokio::task::AbortHandle>,
}

impl Drop for OpenRoads {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// A file with the session's cookie, gone when dropped.
#[derive(Debug)]
struct CookieFile(PathBuf);

impl Drop for CookieFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

impl RoadBuilder<'_> {
    /// Opens a road.
    ///
    /// # Errors
    /// `Source`, if it cannot be: the next mode may.
    pub async fn build(
        &self,
        mode: TransportMode,
        disk: &FrozenDisk,
        ledger: &mut Ledger,
        open: &mut OpenRoads,
    ) -> Result<SourceSpec, Failure> {
        match mode {
            TransportMode::Direct => self.direct(disk),
            TransportMode::Hotadd => self.hotadd(disk, ledger, open).await,
            TransportMode::Nbd => self.nbd(disk),
            TransportMode::Https => self.https(disk, open).await,
            TransportMode::Nfc => self.nfc(disk, ledger, open).await,
        }
    }

    fn direct(&self, disk: &FrozenDisk) -> Result<SourceSpec, Failure> {
        let mount = self.config.proxy.mounts.get(disk.facts.datastore_name());
        let path = mount.zip(relative(&disk.facts.file)).map(|(mount, file)| mount.join(file));
        let path = path.ok_or_else(|| not_a_path(disk))?;
        Ok(SourceSpec::Path { path, format: SourceFormat::Vmdk })
    }

    async fn hotadd(
        &self,
        disk: &FrozenDisk,
        ledger: &mut Ledger,
        open: &mut OpenRoads,
    ) -> Result<SourceSpec, Failure> {
        let facts = self.config.proxy.vm.as_ref();
        let facts = facts.ok_or_else(|| failed(FailureKind::Source, "the proxy is no machine"))?;
        let found = self.vcenter.find_by_uuid(&facts.instance_uuid, true).await;
        let found = found.map_err(|error| error.failure())?.ok_or_else(|| {
            let text = format!("no machine has the proxy's UUID {}", facts.instance_uuid);
            failed(FailureKind::Source, text)
        })?;
        let proxy = VmRef::new(found, "proxy");
        let undo = Undo::DetachDisk {
            vcenter: self.vcenter_id.to_owned(),
            proxy_vm: facts.instance_uuid.clone(),
            file: disk.facts.file.to_string(),
            disk_uuid: disk.facts.uuid.to_string(),
        };
        let number = ledger.begin(self.session, undo)?;
        // Also if attaching fails: its outcome may be unknown, and detaching looks first.
        open.attached.push((number, proxy.clone(), disk.facts.file.to_string()));
        let attached = hotadd::attach(self.vcenter, &proxy, &disk.facts.file).await;
        attached.map_err(|error| error.failure())?;
        let folder = facts.device_folder.clone();
        Ok(SourceSpec::DeviceByUuid { uuid: disk.facts.uuid.to_string(), folder })
    }

    fn nbd(&self, disk: &FrozenDisk) -> Result<SourceSpec, Failure> {
        let template = self.config.proxy.nbd_template.as_deref().unwrap_or_default();
        let address = template
            .replace("{vm}", &self.vm.name)
            .replace("{disk_uuid}", &disk.facts.uuid)
            .replace("{datastore}", disk.facts.datastore_name())
            .replace("{file}", &relative(&disk.facts.file).unwrap_or_default().to_string_lossy());
        SourceSpec::parse(&address).map_err(|error| failed(FailureKind::Source, error))
    }

    async fn https(&self, disk: &FrozenDisk, open: &mut OpenRoads) -> Result<SourceSpec, Failure> {
        let datacenter = datacenter_of(self.vcenter, &self.vm.moref).await;
        let path = folder_path(&flat_name(&disk.facts.file), datacenter.as_deref());
        let path_and_query = path.ok_or_else(|| not_a_path(disk))?;
        let endpoint = self.config.vcenter.endpoint()?;
        Ok(SourceSpec::Https(HttpsSource {
            host: endpoint.host().to_owned(),
            port: endpoint.port(),
            trust: self.config.vcenter.server_trust()?,
            path_and_query,
            size_bytes: disk.facts.capacity_bytes,
            auth: self.cookie(open).await?,
            connections: 0,
            in_flight: 0,
        }))
    }

    async fn nfc(
        &self,
        disk: &FrozenDisk,
        ledger: &mut Ledger,
        open: &mut OpenRoads,
    ) -> Result<SourceSpec, Failure> {
        if open.lease.is_none() {
            let (vm, snapshot) = (self.vm, &self.snapshot.moref);
            let lease = self.vcenter.export_snapshot(vm, snapshot, LEASE_WITHIN).await;
            let lease = lease.map_err(|error| error.failure())?;
            // A lease ends by itself if nobody tells its progress: what a crash leaves is short.
            let undo = Undo::AbortLease {
                vcenter: self.vcenter_id.to_owned(),
                lease: lease.moref.value.to_string(),
            };
            let number = ledger.begin(self.session, undo)?;
            open.tasks.push(self.keep_lease(&lease));
            open.lease = Some((number, lease));
        }
        let files = open.lease.as_ref().map(|(_, lease)| lease.files.as_slice());
        let file = files.and_then(|files| {
            let place = self.place(disk)?;
            files.iter().filter(|file| file.is_disk).find(|file| is_of(&file.key, place))
        });
        let file = file.ok_or_else(|| {
            failed(FailureKind::Source, format!("the export has no stream of {}", disk.facts.label))
        })?;
        let file_certificate = file.certificate.clone();
        let endpoint = self.config.vcenter.endpoint()?;
        let own = (endpoint.host().to_owned(), endpoint.port());
        let ((host, port), path_and_query) = split_url(&file.url, own.clone())?;
        // The address itself is the ticket; another host must not see vCenter's session.
        let auth = match (host.as_str(), port) == (own.0.as_str(), own.1) {
            true => self.cookie(open).await?,
            false => HttpAuth::None,
        };
        Ok(SourceSpec::Nfc(NfcSource {
            host,
            port,
            trust: self.lease_trust(file_certificate.as_deref())?,
            path_and_query,
            size_bytes: disk.facts.capacity_bytes,
            auth,
        }))
    }

    /// The host that serves a lease shows the certificate that vCenter says it has; where vCenter
    /// does not say, one that is trusted as vCenter's own.
    fn lease_trust(&self, certificate: Option<&str>) -> Result<ServerTrust, Failure> {
        match certificate {
            Some(pem) => Thumbprint::of_pem(pem.as_bytes())
                .map(|thumbprint| ServerTrust::Thumbprint(thumbprint.to_string()))
                .ok_or_else(|| failed(FailureKind::Source, "the lease's certificate is none")),
            None => self.config.vcenter.server_trust(),
        }
    }

    /// Where a disk is attached, by the machine's controllers.
    fn place(&self, disk: &FrozenDisk) -> Option<Place> {
        let controller = self.facts.controllers.get(&disk.facts.controller_key)?;
        Some((controller.kind, controller.bus, disk.facts.unit))
    }

    fn keep_lease(&self, lease: &Lease) -> tokio::task::AbortHandle {
        let (vcenter, moref) = (self.vcenter.clone(), lease.moref.clone());
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
    async fn cookie(&self, open: &mut OpenRoads) -> Result<HttpAuth, Failure> {
        if let Some(CookieFile(path)) = &open.cookie {
            return Ok(HttpAuth::File(path.clone()));
        }
        let path = self.private.join(format!("cookie-{}", self.session));
        write_cookie(self.vcenter, &path).await?;
        open.cookie = Some(CookieFile(path.clone()));
        let (vcenter, file) = (self.vcenter.clone(), path.clone());
        let renew = async move {
            loop {
                tokio::time::sleep(COOKIE_EVERY).await;
                // A call that needs a session: a lost one is replaced by it.
                let alive = vcenter.current_time().await.map_err(|error| error.failure());
                let written = match alive {
                    Ok(_) => write_cookie(&vcenter, &file).await,
                    Err(failure) => Err(failure),
                };
                if let Err(failure) = written {
                    tracing::warn!("the session's cookie could not be renewed: {failure}");
                }
            }
        };
        open.tasks.push(tokio::spawn(renew).abort_handle());
        Ok(HttpAuth::File(path))
    }

    /// Closes what is open; says what could not be.
    pub async fn close(
        &self,
        mut open: OpenRoads,
        is_complete: bool,
        ledger: &mut Ledger,
    ) -> Vec<String> {
        let mut notes = Vec::new();
        let mut end = |number: u64, what: &str, result: Result<(), Failure>| {
            let result = result.and_then(|()| ledger.done(number).map_err(Failure::from));
            notes.push(match result {
                Ok(()) => what.to_owned(),
                Err(failure) => {
                    format!("not done, and tried again at the next start: {what}: {failure}")
                }
            });
        };
        for (number, proxy, file) in std::mem::take(&mut open.attached) {
            let detached = hotadd::detach(self.vcenter, &proxy, &file).await;
            let detached = detached.map(drop).map_err(|error| error.failure());
            end(number, &format!("{file} was detached from the proxy"), detached);
        }
        if let Some((number, lease)) = open.lease.take() {
            let object = self.vm.to_string();
            let ended = match is_complete {
                true => self.vcenter.complete_lease(&lease.moref, &object).await,
                false => self.vcenter.abort_lease(&lease.moref, &object).await,
            };
            let ended = ended.or_else(|error| if error.is_gone() { Ok(()) } else { Err(error) });
            end(number, "the export lease was ended", ended.map_err(|error| error.failure()));
        }
        notes
    }
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

async fn write_cookie(vcenter: &VCenter, path: &Path) -> Result<(), Failure> {
    let cookie = vcenter.session_cookie().await.map_err(|error| error.failure())?;
    let auth = HttpAuth::Cookie(cookie);
    let text = serde_json::to_vec(&auth).map_err(|error| failed(FailureKind::Internal, error))?;
    let fail = |error: std::io::Error| {
        failed(FailureKind::Internal, format!("cannot write {}: {error}", path.display()))
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
    durable_file::replace(path, &text).map_err(fail)
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
