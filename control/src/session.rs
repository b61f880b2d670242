//! One backup session of one virtual machine: the steps of DESIGN §2 between vCenter and the mover.
//!
//! In: a broker, the configuration, the machine's name. Out: a committed restore point and a
//! [`SessionReport`], or the failure; in both cases the session's log with the reason for every
//! choice. State: judged → CBT known → (ledger) snapshot → changed areas → roads → mover → roads
//! closed → snapshot removed. Invariant: whatever is made in vSphere stands in the ledger before,
//! and is undone afterwards, whatever happened: disks are detached before the snapshot goes.

use std::path::PathBuf;
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;
use gantry_common::work::{BackupWork, DiskProgress, DiskWork};
use serde::Serialize;

use crate::broker::{Broker, DiskFacts, HostFacts, VmConfig, VmFacts};
use crate::cbt::{PolicyOutcome, Tracking, enable_tracking, tracking};
use crate::config::Config;
use crate::ledger::{Ledger, LedgerError, Undo};
use crate::limits;
use crate::mover::{Mover, MoverError, MoverReport, PointDisk, PointFacts};
use crate::snapshots::Mark;
use crate::snapshots::create::{self, FrozenDisk, NewRequest, Snapshot};
use crate::snapshots::eligible::{disk_obstacle, remarks, vm_obstacle};
use crate::transport::{Judged, Need, TransportMode, roads};
use crate::vcenter::{VCenter, VmRef};

pub mod changes;
pub mod removal;
pub mod road;
pub mod undo;

use changes::{Changes, VmTracking};
use road::{OpenRoads, RoadBuilder};

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionResult {
    /// As asked.
    Success,
    /// A point stands, and there is something to look at.
    Warning,
    /// No point was made.
    Failed,
}

/// A disk of a session.
#[derive(Debug, Clone, Serialize)]
pub struct SessionDisk {
    /// Label.
    pub label: String,
    /// Where it is attached.
    pub position: String,
    /// The transport mode that was used.
    pub transport: Option<TransportMode>,
    /// Why it was left out.
    pub skipped: Option<String>,
}

/// What came of a session.
#[derive(Debug, Clone, Serialize)]
pub struct SessionReport {
    /// The session.
    pub session: String,
    /// The machine.
    pub vm: String,
    /// How it ended.
    pub result: SessionResult,
    /// The restore point.
    pub point: Option<String>,
    /// Why it failed.
    pub failure: Option<String>,
    /// Each disk.
    pub disks: Vec<SessionDisk>,
    /// Choices and their reasons, warnings.
    pub log: Vec<String>,
    /// What deserves a look: a subset of the log.
    pub warnings: Vec<String>,
    /// The mover's report.
    pub mover: Option<serde_json::Value>,
}

/// What a session works with.
pub struct Session<'a> {
    broker: &'a Broker,
    config: &'a Config,
    mover: &'a Mover,
    ledger: &'a mut Ledger,
    /// Folder for cookies, private.
    private: PathBuf,
    /// Read everything.
    full: bool,
    id: SessionId,
    /// vCenter's instance UUID.
    vcenter_id: String,
    /// This installation and vCenter, for the snapshot's mark.
    owner: String,
    report: SessionReport,
}

/// What a session copies.
#[derive(Clone, Copy)]
struct Plan<'a> {
    vm: &'a VmRef,
    facts: &'a VmFacts,
    snapshot: &'a Snapshot,
    base: Option<&'a PointFacts>,
}

/// A disk of it, with what is to be read.
struct PlannedDisk<'a> {
    disk: &'a FrozenDisk,
    identity: String,
    changes: Changes,
}

/// By what points and the ledger name this vCenter: its instance UUID. An ESXi host has none.
///
/// # Errors
/// As any call.
pub async fn vcenter_id(vcenter: &VCenter) -> Result<String, Failure> {
    let content = vcenter.content().await.map_err(|error| error.failure())?;
    let host = || format!("esxi {}", vcenter.http().endpoint());
    Ok(content.instance_uuid.clone().unwrap_or_else(host))
}

pub(crate) fn failed(kind: FailureKind, text: impl std::fmt::Display) -> Failure {
    Failure::new(kind, text.to_string())
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Failure {
        failed(FailureKind::Internal, error)
    }
}

impl From<MoverError> for Failure {
    fn from(error: MoverError) -> Failure {
        match error {
            MoverError::Failed(failure) => failure,
            other => failed(FailureKind::Internal, other),
        }
    }
}

impl<'a> Session<'a> {
    /// A session of the machine `vm`, under this id.
    pub fn new(
        broker: &'a Broker,
        config: &'a Config,
        mover: &'a Mover,
        ledger: &'a mut Ledger,
        (id, vm): (SessionId, &str),
        full: bool,
    ) -> Session<'a> {
        let report = SessionReport {
            session: id.to_string(),
            vm: vm.to_owned(),
            result: SessionResult::Failed,
            point: None,
            failure: None,
            disks: Vec::new(),
            log: Vec::new(),
            warnings: Vec::new(),
            mover: None,
        };
        let private = config.private();
        let (vcenter_id, owner) = (String::new(), String::new());
        Session { broker, config, mover, ledger, private, full, id, vcenter_id, owner, report }
    }

    /// Runs it to its end. `progress` hears the mover's numbers.
    pub async fn run(
        mut self,
        mut progress: impl FnMut(Vec<DiskProgress>),
    ) -> (SessionReport, Result<(), Failure>) {
        let result = self.back_up(&mut progress).await;
        match &result {
            Ok(()) if self.report.warnings.is_empty() => {
                self.report.result = SessionResult::Success;
            }
            Ok(()) => self.report.result = SessionResult::Warning,
            Err(failure) => {
                self.report.failure = Some(failure.to_string());
                self.log(format!("failed: {failure}"));
            }
        }
        (self.report, result)
    }

    fn log(&mut self, line: impl Into<String>) {
        let line = line.into();
        tracing::info!("{}: {line}", self.report.vm);
        self.report.log.push(line);
    }

    fn warn(&mut self, line: impl Into<String>) {
        let line = line.into();
        self.log(format!("warning: {line}"));
        self.report.warnings.push(line);
    }

    async fn back_up(
        &mut self,
        progress: &mut impl FnMut(Vec<DiskProgress>),
    ) -> Result<(), Failure> {
        let vcenter = self.broker.vcenter().clone();
        self.vcenter_id = vcenter_id(&vcenter).await?;
        self.owner = self.config.owner(&self.vcenter_id)?;
        let (vm, facts) = self.find()?;
        if let Some(obstacle) = vm_obstacle(&facts) {
            return Err(failed(FailureKind::Source, format!("{}: {obstacle}", facts.name)));
        }
        remarks(&facts).into_iter().for_each(|remark| self.warn(remark));
        let wanted = self.wanted_disks(&facts)?;
        let vm_config = self.capture(&vm).await?;
        let name = self.point_name(&facts);
        let points = self.mover.points(&self.config.repository, &name).await?;
        let base = points.last().filter(|_| !self.full).cloned();
        let host = facts.host.as_ref().and_then(|host| {
            let version = |host: &HostFacts| (host.version.to_string(), host.build.to_string());
            self.broker.read(|cache| cache.host(host).map(version))
        });
        let tracking = VmTracking {
            vm: &vm,
            hardware_version: facts.hardware_version,
            tracking: self.see_tracking(&vm, &facts).await,
            host: host.as_ref().map(|(version, build)| (version.as_str(), build.as_str())),
            is_full_asked: self.full,
            block_bytes: u64::from(self.config.backup.block_size()?.bytes()),
            policy: self.config.backup.on_full,
        };
        for disk in facts.disks.values().filter(|disk| wanted.contains(&disk.key)) {
            let held = self.held(base.as_ref(), &facts, disk);
            // What is known before the snapshot may be enough to forbid it.
            if let PolicyOutcome::Stop(why) = tracking.foresee(disk, held) {
                return Err(failed(FailureKind::Source, why));
            }
        }
        self.see_open_snapshots(&facts)?;
        let mark = Mark::new(self.id, &self.owner);
        let undo = self.ledger.begin(
            &self.report.session,
            Undo::RemoveSnapshot {
                vcenter: self.vcenter_id.clone(),
                vm: facts.instance_uuid.to_string(),
                vm_name: facts.name.to_string(),
                snapshot: mark.name(),
            },
        )?;
        let request = NewRequest {
            vm: &vm,
            mark: &mark,
            quiesce: self.config.backup.quiesce,
            timeout: Duration::from_secs(limits::SNAPSHOT_CREATE_SECONDS_MAX),
            cancel: None,
        };
        let result = match create::create(&vcenter, request).await {
            Ok(mut snapshot) => {
                self.log(format!("snapshot '{}' was made", snapshot.name));
                snapshot.disks.retain(|disk| wanted.contains(&disk.facts.key));
                let plan =
                    Plan { vm: &vm, facts: &facts, snapshot: &snapshot, base: base.as_ref() };
                match snapshot.disks.len() == wanted.len() {
                    true => self.copy(&plan, &tracking, (name, vm_config), progress).await,
                    false => Err(failed(
                        FailureKind::Source,
                        format!(
                            "the snapshot holds {} of the {} disks that are to be backed up: were \
                             disks removed just now? Run the backup again",
                            snapshot.disks.len(),
                            wanted.len()
                        ),
                    )),
                }
            }
            Err(error) => Err(failed(FailureKind::Source, error)),
        };
        // The snapshot goes whatever became of the copy; if it does not, the next start tries again.
        let pauses = self.config.backup.removal_pauses();
        let attached = self.ledger.attached_of(&self.report.session);
        match removal::remove_named(&vcenter, &vm, &mark.name(), attached, &pauses).await {
            Ok(note) => {
                self.log(note);
                self.ledger.done(undo)?;
            }
            Err(failure) => self.warn(format!("it is removed at the next chance: {failure}")),
        }
        result
    }

    fn find(&self) -> Result<(VmRef, VmFacts), Failure> {
        let name = &self.report.vm;
        self.broker.read(|cache| {
            let mut found = cache.vms().filter(|(_, facts)| *facts.name == **name);
            match (found.next(), found.next()) {
                (Some((moref, facts)), None) => Ok((facts.vm_ref(moref), facts.clone())),
                (Some(_), Some(_)) => Err(failed(
                    FailureKind::Usage,
                    format!("several virtual machines are named '{name}'"),
                )),
                (None, _) => Err(failed(
                    FailureKind::Usage,
                    format!("no virtual machine is named '{name}'; 'gantry vm list' shows them"),
                )),
            }
        })
    }

    /// Keys of the disks to back up; the others are told, with the reason.
    fn wanted_disks(&mut self, facts: &VmFacts) -> Result<Vec<i32>, Failure> {
        let mut wanted = Vec::new();
        for disk in facts.disks.values() {
            let position = facts.position(disk);
            let obstacle = disk_obstacle(facts, disk).map(|obstacle| obstacle.to_string());
            if let Some(obstacle) = &obstacle {
                self.warn(format!("{} ({position}) is left out: {obstacle}", disk.label));
            } else {
                wanted.push(disk.key);
            }
            self.report.disks.push(SessionDisk {
                label: disk.label.to_string(),
                position,
                transport: None,
                skipped: obstacle,
            });
        }
        if wanted.is_empty() {
            let text = format!("{} has no disk that can be backed up", facts.name);
            return Err(failed(FailureKind::Source, text));
        }
        Ok(wanted)
    }

    async fn capture(&mut self, vm: &VmRef) -> Result<String, Failure> {
        let captured = VmConfig::capture(self.broker.vcenter(), vm).await;
        let captured = captured.map_err(|error| error.failure())?;
        let bytes = captured.to_bytes().map_err(|error| failed(FailureKind::Source, error))?;
        String::from_utf8(bytes).map_err(|error| failed(FailureKind::Internal, error))
    }

    /// Points are kept under the name of the machine; the instance UUID keeps namesakes apart.
    fn point_name(&self, facts: &VmFacts) -> String {
        format!("{} ({})", facts.name, facts.instance_uuid)
    }

    /// Whether changes are tracked; switches it on where that is safe and wanted.
    async fn see_tracking(&mut self, vm: &VmRef, facts: &VmFacts) -> Tracking {
        let found = tracking(facts, 0);
        if found == Tracking::CanTurnOn && self.config.backup.enable_cbt {
            match enable_tracking(self.broker.vcenter(), vm).await {
                Ok(()) => self
                    .log("changed-block tracking was switched on: it counts from this snapshot on"),
                Err(error) => {
                    self.warn(format!("changed-block tracking could not be switched on: {error}"));
                }
            }
        }
        found
    }

    /// Refuses to add a snapshot to a datastore that has as many of Gantry as it may.
    fn see_open_snapshots(&self, facts: &VmFacts) -> Result<(), Failure> {
        let max = self.config.backup.snapshots_per_datastore.max(1);
        let is_open = |vm: &VmFacts| vm.snapshots.iter().any(|one| Mark::is_gantrys(&one.name));
        for datastore in &facts.datastores {
            let (open, name) = self.broker.read(|cache| {
                let on_it = |vm: &&VmFacts| vm.datastores.contains(datastore);
                let machines = cache.vms().map(|(_, vm)| vm).filter(on_it);
                let open = machines.filter(|vm| is_open(vm)).count();
                (open, cache.datastore(datastore).map(|found| found.name.to_string()))
            });
            if open >= max {
                return Err(failed(
                    FailureKind::Source,
                    format!(
                        "datastore {} has {open} open snapshots of backups, and may have {max} \
                         (snapshots_per_datastore): run this again when they are gone",
                        name.unwrap_or_else(|| datastore.to_string())
                    ),
                ));
            }
        }
        Ok(())
    }

    /// What the base point holds of a disk.
    fn held<'b>(
        &self,
        base: Option<&'b PointFacts>,
        facts: &VmFacts,
        disk: &DiskFacts,
    ) -> Option<&'b PointDisk> {
        let identity = self.identity(facts, disk);
        base.and_then(|point| point.disks.iter().find(|held| held.identity == identity))
    }

    /// From the frozen disks to the committed point.
    async fn copy(
        &mut self,
        plan: &Plan<'_>,
        tracking: &VmTracking<'_>,
        (name, vm_config): (String, String),
        progress: &mut impl FnMut(Vec<DiskProgress>),
    ) -> Result<(), Failure> {
        let Plan { facts, snapshot, base, .. } = *plan;
        let mut disks = Vec::new();
        for disk in &snapshot.disks {
            let held = self.held(base, facts, &disk.facts);
            let changes = tracking.of_disk(self.broker.vcenter(), snapshot, disk, held).await;
            self.log(format!("{}: {}", disk.facts.label, changes.reason));
            match &changes.outcome {
                PolicyOutcome::Go => {}
                PolicyOutcome::Warn(why) => self.warn(why.clone()),
                PolicyOutcome::Stop(why) => return Err(failed(FailureKind::Source, why)),
            }
            disks.push(PlannedDisk { disk, identity: self.identity(facts, &disk.facts), changes });
        }
        let audit = self.config.backup.audit_per_million()?;
        let mut work = BackupWork {
            name,
            repository: self.config.repository.clone(),
            disks: Vec::new(),
            snapshot: format!("{}/{}", self.vcenter_id, snapshot.name),
            session: None,
            created_ms: None,
            hold: false,
            base: base.map(|point| point.point.clone()),
            full: self.full,
            audit_per_million: audit,
            vm_config,
            retention: self.config.backup.retention,
            block_size: self.config.backup.block_size()?,
            compression: self.config.backup.compression()?,
            rate: self.config.backup.rate()?,
            workers: None,
            tasks: 4,
            reconnect_seconds: 300,
        };
        let report = self.try_roads(plan, &disks, &mut work, progress).await?;
        self.take_in(report)
    }

    fn identity(&self, facts: &VmFacts, disk: &DiskFacts) -> String {
        // Without a UUID of the backing its base file names it: it stays as long as the disk is not
        // moved, and after that everything is read once.
        let own = if disk.uuid.is_empty() { disk.base_file() } else { &*disk.uuid };
        format!("{}/{}/{own}", self.vcenter_id, facts.instance_uuid)
    }

    /// Runs the mover, with the next road of each disk as long as the source fails and there is
    /// one; what was durable is taken over from try to try.
    async fn try_roads(
        &mut self,
        plan: &Plan<'_>,
        disks: &[PlannedDisk<'_>],
        work: &mut BackupWork,
        progress: &mut impl FnMut(Vec<DiskProgress>),
    ) -> Result<(MoverReport, serde_json::Value), Failure> {
        let mut ways: Vec<Vec<Judged>> = Vec::new();
        for planned in disks {
            ways.push(self.judge(planned)?);
        }
        loop {
            let chosen: Vec<TransportMode> = ways.iter().map(|way| way[0].mode).collect();
            for (planned, way) in disks.iter().zip(&ways) {
                let label = &planned.disk.facts.label;
                self.log(format!("{label}: transport mode {}: {}", way[0].mode, way[0].reason));
            }
            let result = self.run_mover(plan, disks, &chosen, work, progress).await;
            let failure = match result {
                Ok(report) => {
                    for (planned, mode) in disks.iter().zip(&chosen) {
                        let label = &*planned.disk.facts.label;
                        let told = self.report.disks.iter_mut().find(|told| told.label == label);
                        told.into_iter().for_each(|told| told.transport = Some(*mode));
                    }
                    return Ok(report);
                }
                Err(failure) => failure,
            };
            let can_change = failure.kind == FailureKind::Source;
            let mut changed = false;
            for way in &mut ways {
                if way.len() > 1 && can_change {
                    way.remove(0);
                    changed = true;
                }
            }
            if !changed {
                return Err(failure);
            }
            self.warn(format!("the next transport mode is tried: {failure}"));
        }
    }

    fn judge(&mut self, planned: &PlannedDisk<'_>) -> Result<Vec<Judged>, Failure> {
        let label = planned.disk.facts.label.to_string();
        let need = if planned.changes.is_full() { Need::Full } else { Need::Parts };
        let fixed = self.config.backup.transport;
        let judged = roads(&planned.disk.for_transport(), &self.config.proxy, fixed, need);
        for road in &judged.closed {
            self.log(format!("{label}: not {}: {}", road.mode, road.reason));
        }
        if judged.open.is_empty() {
            let reasons: Vec<String> = judged
                .closed
                .iter()
                .map(|road| format!("{}: {}", road.mode, road.reason))
                .collect();
            let text = format!("no transport mode reaches {label}: {}", reasons.join("; "));
            return Err(failed(FailureKind::Source, text));
        }
        Ok(judged.open)
    }

    async fn run_mover(
        &mut self,
        plan: &Plan<'_>,
        disks: &[PlannedDisk<'_>],
        chosen: &[TransportMode],
        work: &mut BackupWork,
        progress: &mut impl FnMut(Vec<DiskProgress>),
    ) -> Result<(MoverReport, serde_json::Value), Failure> {
        let builder = RoadBuilder {
            vcenter: self.broker.vcenter(),
            config: self.config,
            vcenter_id: &self.vcenter_id,
            session: &self.report.session,
            private: &self.private,
            vm: plan.vm,
            facts: plan.facts,
            snapshot: plan.snapshot,
        };
        let mut open = OpenRoads::default();
        let mut sources = Vec::new();
        let mut result = Ok(());
        for (planned, mode) in disks.iter().zip(chosen) {
            match builder.build(*mode, planned.disk, self.ledger, &mut open).await {
                Ok(source) => sources.push(source),
                Err(failure) => {
                    result = Err(failure);
                    break;
                }
            }
        }
        let result = match result {
            Err(failure) => Err(failure),
            Ok(()) => {
                let with_source = sources.into_iter().zip(disks);
                work.disks = with_source
                    .map(|(source, PlannedDisk { disk, identity, changes })| DiskWork {
                        source,
                        identity: identity.clone(),
                        changed_extents: changes.changed.clone(),
                        allocated_extents: changes.allocated.clone(),
                        change_id: disk.facts.change_id.as_ref().map(|id| id.to_string()),
                        read_digest: None,
                    })
                    .collect();
                let is_nfc = chosen.contains(&TransportMode::Nfc);
                let work = BackupWork { full: work.full || is_nfc, ..work.clone() };
                self.mover.backup(&work, progress).await.map_err(Failure::from)
            }
        };
        let notes = builder.close(open, result.is_ok(), self.ledger).await;
        notes.into_iter().for_each(|note| self.log(note));
        result
    }

    fn take_in(
        &mut self,
        (report, whole): (MoverReport, serde_json::Value),
    ) -> Result<(), Failure> {
        for line in &report.log {
            self.log(format!("mover: {line}"));
        }
        let wrong = report.disks.iter().filter_map(|disk| disk.audit).map(|audit| audit.wrong);
        let wrong: u64 = wrong.sum();
        if wrong > 0 {
            self.warn(format!(
                "ALARM: changed-block tracking left out {wrong} audited blocks that had changed; \
                 everything was read, and this point is right. Reset CBT of this machine"
            ));
        }
        self.report.point = Some(report.point);
        self.report.mover = Some(whole);
        Ok(())
    }
}
