//! A restore to a new machine: made from the configuration that the point keeps, its disks written as
//! files of the datastore or attached to the proxy.
//!
//! In: a [`Machine`] that is planned. Out: the machine, switched on if that is asked for; or nothing of it.
//! Each step looks whether it is done: an interrupted gantryd's successor takes all of them again.
//! Invariants: what is made in vSphere stands in the ledger before; disks are detached from the proxy
//! before the machine is switched on or removed.

use std::sync::Arc;
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;
use gantry_common::work::RestoreTo;
use gantry_database::model::Severity;
use serde_json::json;

use super::place::{config_of, is_ide, rebuild_failure};
use super::plan::{Machine, Plan, Road, descriptor};
use super::{Outcome, Restore};
use crate::broker::{DiskSource, Placement, Places, VmConfig, Wish, rebuild};
use crate::daemon::vcenters::OpenVCenter;
use crate::daemon::waits::stopping;
use crate::hotadd::{self, Purpose};
use crate::ledger::Undo;
use crate::limits;
use crate::run::failed;
use crate::run::undo::{detach, undo_all};
use crate::snapshots::remove::usual_pauses;
use crate::vcenter::datastore_file::{datacenter_of, flat_name};
use crate::vcenter::{TaskWait, VCenter, VimError, VmRef};

/// Between two tries to reach vCenter, when something of this restore may stand there.
const VCENTER_AGAIN: Duration = Duration::from_secs(10);

fn failure(error: VimError) -> Failure {
    error.failure()
}

/// What the new machine is to be; nothing if none is planned.
pub(super) fn wish<'a>(plan: &'a Plan, placement: &'a Placement) -> Option<Wish<'a>> {
    let machine = plan.machine.as_ref()?;
    let source = |file: &String| match machine.road {
        Road::Direct(_) => DiskSource::Existing(file.clone()),
        Road::Hotadd { .. } => DiskSource::New(file.clone()),
    };
    let devices = plan.disks.iter().filter_map(|disk| disk.device.as_ref());
    Some(Wish {
        name: Some(&machine.name),
        keep_identity: machine.keep_identity,
        folder: &machine.folder,
        disks: devices.map(|(key, file)| (*key, source(file))).collect(),
        networks: machine.networks.clone(),
        reachable: &placement.networks,
        instance_uuid: Some(&machine.uuid),
    })
}

/// A restore with the vCenter where its machine is made.
struct Making<'a> {
    restore: &'a Restore,
    machine: &'a Machine,
    vcenter: Arc<OpenVCenter>,
    placement: Placement,
    /// As the ledger knows the session.
    session: String,
}

impl Restore {
    /// Makes the machine; what it could not make whole it removes.
    pub(super) async fn machine(&self, machine: &Machine) -> Outcome {
        let vcenter = match self.vcenter(machine).await {
            Ok(vcenter) => vcenter,
            Err(failure) => return self.failed(failure),
        };
        let mut outcome = Outcome::default();
        if let Err(failure) = self.make(machine, &vcenter, &mut outcome).await {
            self.say(Severity::Error, None, &failure.to_string());
            outcome.failure = outcome.failure.or(Some(failure));
        }
        if outcome.failure.is_some() {
            self.undo(&vcenter).await;
        }
        outcome
    }

    fn failed(&self, failure: Failure) -> Outcome {
        self.say(Severity::Error, None, &failure.to_string());
        Outcome { failure: Some(failure), ..Outcome::default() }
    }

    /// Its vCenter. Where something of this restore may stand, it is tried until it is there.
    async fn vcenter(&self, machine: &Machine) -> Result<Arc<OpenVCenter>, Failure> {
        let mut wish = self.wish.clone();
        loop {
            let failure = match self.parts.vcenters.open(machine.vcenter).await {
                Ok(vcenter) => return Ok(vcenter),
                Err(failure) => failure,
            };
            if failure.kind != FailureKind::Network || !self.is_left {
                return Err(failure);
            }
            let seconds = VCENTER_AGAIN.as_secs();
            let text = format!("vCenter cannot be reached, tried again in {seconds} s: {failure}");
            self.say(Severity::Warning, None, &text);
            tokio::select! {
                () = tokio::time::sleep(VCENTER_AGAIN) => {}
                why = stopping(&mut wish) => return Err(failed(FailureKind::Source, why)),
            }
        }
    }

    async fn make(
        &self,
        machine: &Machine,
        vcenter: &Arc<OpenVCenter>,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let places = Places::read(vcenter.broker.vcenter()).await.map_err(failure)?;
        let placement = places.place(&machine.target);
        let placement = placement.map_err(|error| failed(FailureKind::Usage, error))?;
        let session = SessionId::from(self.session).to_string();
        let vcenter = Arc::clone(vcenter);
        let making = Making { restore: self, machine, vcenter, placement, session };
        making.make(outcome).await
    }

    /// Undoes what the ledger still holds of it. What cannot be undone now is undone at the next chance.
    async fn undo(&self, vcenter: &OpenVCenter) {
        let open = self.parts.ledger.open_of(&SessionId::from(self.session).to_string());
        let (client, pauses) = (vcenter.broker.vcenter(), usual_pauses());
        match undo_all(client, &vcenter.id, &self.parts.ledger, open, &pauses).await {
            Ok(lines) => lines.iter().for_each(|line| self.say(Severity::Warning, None, line)),
            Err(failure) => self.say(Severity::Error, None, &failure.to_string()),
        }
    }
}

impl Making<'_> {
    fn client(&self) -> &VCenter {
        self.vcenter.broker.vcenter()
    }

    async fn make(&self, outcome: &mut Outcome) -> Result<(), Failure> {
        self.begin_undo()?;
        match &self.machine.road {
            Road::Direct(_) => self.by_files(outcome).await?,
            Road::Hotadd { proxy_vm, .. } => self.by_attaching(proxy_vm, outcome).await?,
        }
        if outcome.failure.is_some() {
            return Ok(());
        }
        let vm = self.found().await?;
        let vm = vm.ok_or_else(|| failed(FailureKind::Source, "the new machine is gone"))?;
        // From now on it is the administrator's.
        self.end_undo()?;
        let Machine { name, uuid, .. } = self.machine;
        outcome.machine = json!({ "name": name, "instance_uuid": uuid, "moref": &*vm.moref.value });
        self.restore.info(&format!("the machine '{name}' is whole ({})", vm.moref.value));
        if self.machine.power_on {
            outcome.warning = self.switch_on(&vm).await;
        }
        Ok(())
    }

    /// Before anything is made. A ledger that holds it already is an interrupted gantryd's.
    fn begin_undo(&self) -> Result<(), Failure> {
        let ledger = &self.restore.parts.ledger;
        let undo = Undo::RemoveMadeVm {
            vcenter: self.vcenter.id.clone(),
            vm: self.machine.uuid.clone(),
            vm_name: self.machine.name.clone(),
            datacenter: self.placement.datacenter.value.to_string(),
            folder: self.machine.folder.clone(),
        };
        if ledger.open_of(&self.session).iter().all(|open| open.undo != undo) {
            ledger.begin(&self.session, undo)?;
        }
        Ok(())
    }

    fn end_undo(&self) -> Result<(), Failure> {
        let ledger = &self.restore.parts.ledger;
        for open in ledger.open_of(&self.session) {
            if matches!(open.undo, Undo::RemoveMadeVm { .. }) {
                ledger.done(open.number)?;
            }
        }
        Ok(())
    }

    /// The machine, if it is made already.
    async fn found(&self) -> Result<Option<VmRef>, Failure> {
        let found = self.client().find_by_uuid(&self.machine.uuid, true).await.map_err(failure)?;
        Ok(found.map(|moref| VmRef::new(moref, self.machine.name.as_str())))
    }

    /// The point's configuration, with the sizes that the point's disks have.
    async fn config(&self) -> Result<VmConfig, Failure> {
        let Restore { parts, repository, plan, .. } = self.restore;
        let mut config = config_of(parts, repository, &plan.name, &plan.point).await?;
        for disk in &mut config.disks {
            let is_it = |key: &i32| *key == disk.key;
            let mut planned = plan.disks.iter();
            let held = planned.find(|held| held.device.as_ref().is_some_and(|(key, _)| is_it(key)));
            disk.capacity_bytes = held.map_or(disk.capacity_bytes, |held| held.size_bytes);
        }
        Ok(config)
    }

    /// The machine: the one that is made already, or a new one.
    async fn made(&self, config: &VmConfig) -> Result<VmRef, Failure> {
        if let Some(vm) = self.found().await? {
            return Ok(vm);
        }
        let wish = wish(&self.restore.plan, &self.placement);
        let wish = wish.ok_or_else(|| failed(FailureKind::Internal, "no machine is planned"))?;
        let rebuilt = rebuild(self.client(), config, &self.placement, &wish).await;
        let rebuilt = rebuilt.map_err(rebuild_failure)?;
        rebuilt.notes.iter().for_each(|note| self.restore.info(note));
        Ok(rebuilt.vm)
    }

    /// The disks as files of the datastore, then the machine of them.
    async fn by_files(&self, outcome: &mut Outcome) -> Result<(), Failure> {
        let config = self.config().await?;
        let (datacenter, plan) = (&self.placement.datacenter, &self.restore.plan);
        let made = self.client().make_datastore_folder(datacenter, &self.machine.folder).await;
        made.map_err(failure)?;
        let places = plan.disks.iter().filter_map(|disk| disk.to.clone()).collect();
        *outcome = self.restore.disks(places).await;
        if outcome.failure.is_some() || self.found().await?.is_some() {
            return Ok(());
        }
        let path = datacenter_of(self.client(), datacenter).await;
        for disk in &plan.disks {
            let Some((key, file)) = &disk.device else { continue };
            let flat = flat_name(file);
            let flat = flat.rsplit('/').next().unwrap_or_default();
            let text = descriptor(disk.size_bytes, flat, is_ide(&config, *key), fastrand::u128(..));
            let put = self.client().put_datastore_file(file, path.as_deref(), &text).await;
            put.map_err(failure)?;
        }
        self.made(&config).await.map(drop)
    }

    /// The machine with new disks, then their content through the proxy.
    async fn by_attaching(&self, proxy: &str, outcome: &mut Outcome) -> Result<(), Failure> {
        let vm = self.made(&self.config().await?).await?;
        let new = VmConfig::capture(self.client(), &vm).await.map_err(failure)?;
        let mut disks = Vec::new();
        for planned in &self.restore.plan.disks {
            let Some((_, file)) = &planned.device else { continue };
            disks.push(self.device(&new, file, &planned.label)?);
        }
        if !self.is_on(&vm).await? {
            for (file, uuid) in &disks {
                self.attach(proxy, file, uuid).await?;
            }
        }
        let Road::Hotadd { device_folder, .. } = &self.machine.road else { return Ok(()) };
        let place = |(_, uuid): &(String, String)| RestoreTo::NewDevice {
            uuid: uuid.clone(),
            folder: device_folder.clone(),
        };
        *outcome = self.restore.disks(disks.iter().map(place).collect()).await;
        self.detach_all().await
    }

    /// File and UUID of the new machine's disk that was to have this file.
    fn device(&self, new: &VmConfig, file: &str, label: &str) -> Result<(String, String), Failure> {
        let found = new.disks.iter().find(|disk| disk.file == file);
        match found.filter(|disk| !disk.uuid.is_empty()) {
            Some(disk) => Ok((disk.file.clone(), disk.uuid.clone())),
            None => {
                let text = format!(
                    "disk {label}: vCenter says no disk {file}, or no UUID of it, by which the proxy \
                     could find it"
                );
                Err(failed(FailureKind::Source, text))
            }
        }
    }

    async fn is_on(&self, vm: &VmRef) -> Result<bool, Failure> {
        let path = "runtime.powerState";
        let facts = self.client().properties_of(&vm.moref, &vm.to_string(), &[path]).await;
        Ok(facts.map_err(failure)?.text(path) == Some("poweredOn"))
    }

    async fn attach(&self, proxy_vm: &str, file: &str, uuid: &str) -> Result<(), Failure> {
        let found = self.client().find_by_uuid(proxy_vm, true).await.map_err(failure)?;
        let found = found.ok_or_else(|| {
            failed(FailureKind::Source, format!("no machine has the proxy's UUID {proxy_vm}"))
        })?;
        let proxy = VmRef::new(found, "proxy");
        let undo = Undo::DetachDisk {
            vcenter: self.vcenter.id.clone(),
            proxy_vm: proxy_vm.to_owned(),
            file: file.to_owned(),
            disk_uuid: uuid.to_owned(),
        };
        let ledger = &self.restore.parts.ledger;
        if ledger.open_of(&self.session).iter().all(|open| open.undo != undo) {
            // It stays also if attaching fails: its outcome may be unknown, and detaching looks first.
            ledger.begin(&self.session, undo)?;
        } else if hotadd::is_attached(self.client(), &proxy, file).await.map_err(failure)? {
            return Ok(());
        }
        let attached = hotadd::attach(self.client(), &proxy, file, Purpose::Fill).await;
        attached.map_err(failure)
    }

    async fn detach_all(&self) -> Result<(), Failure> {
        let ledger = &self.restore.parts.ledger;
        for (number, proxy_vm, file) in ledger.attached_of(&self.session) {
            let line = detach(self.client(), &proxy_vm, &file).await?;
            ledger.done(number)?;
            self.restore.info(&line);
        }
        Ok(())
    }

    /// Switches it on; why it is not on. It is whole in any case.
    async fn switch_on(&self, vm: &VmRef) -> Option<String> {
        let name = &self.machine.name;
        if matches!(self.is_on(vm).await, Ok(true)) {
            return None;
        }
        let timeout = Duration::from_secs(limits::REBUILD_SECONDS_MAX);
        let on = match self.client().power_on(vm).await {
            Ok(task) => {
                let wait = TaskWait::new("PowerOnVM_Task", name, timeout);
                self.client().wait_for_task(&task, wait).await.map(drop)
            }
            Err(error) => Err(error),
        };
        match on {
            Ok(()) => {
                self.restore.info("it is switched on");
                None
            }
            Err(error) => {
                let text = format!("'{name}' is restored, and could not be switched on: {error}");
                self.restore.say(Severity::Warning, None, &text);
                Some(text)
            }
        }
    }
}
