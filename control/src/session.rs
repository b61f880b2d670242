//! One backup session of one virtual machine: the steps of DESIGN §2 between vCenter and the mover.
//!
//! In: a broker, the configuration, the machine's name. Out: a committed restore point and a
//! [`SessionReport`], or the failure; in both cases the session's log with the reason for every
//! choice. State: judged → CBT known → (ledger) snapshot → changed areas → roads → mover → roads
//! closed → snapshot removed. Invariant: whatever is made in vSphere stands in the ledger before,
//! and is undone afterwards, whatever happened: disks are detached before the snapshot goes.

use std::path::PathBuf;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::work::{BackupWork, DiskProgress, DiskWork};
use serde::Serialize;

use crate::broker::{Broker, VmConfig, VmFacts};
use crate::config::{Config, FullPolicy};
use crate::ledger::{Ledger, LedgerError, Undo};
use crate::mover::{Mover, MoverError, MoverReport, PointFacts};
use crate::snapshots::eligible::{disk_obstacle, remarks, vm_obstacle};
use crate::transport::{Judged, Need, TransportMode, roads};
use crate::vcenter::VmRef;

pub mod changes;
pub mod freeze;
pub mod road;
pub mod undo;

use changes::Changes;
use freeze::{Frozen, FrozenVmDisk};
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
    vcenter_id: String,
    report: SessionReport,
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
        (session, vm): (String, &str),
        full: bool,
    ) -> Session<'a> {
        let report = SessionReport {
            session,
            vm: vm.to_owned(),
            result: SessionResult::Failed,
            point: None,
            failure: None,
            disks: Vec::new(),
            log: Vec::new(),
            warnings: Vec::new(),
            mover: None,
        };
        let private = config.state.join("private");
        Session { broker, config, mover, ledger, private, full, vcenter_id: String::new(), report }
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
        let content = vcenter.content().await.map_err(|error| error.failure())?;
        self.vcenter_id = content.instance_uuid.clone().unwrap_or_else(|| "esxi".to_owned());
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
        self.see_change_tracking(&vm, &facts, base.as_ref()).await?;

        let snapshot = freeze::snapshot_name(&self.report.session);
        let undo = self.ledger.begin(
            &self.report.session,
            Undo::RemoveSnapshot {
                vcenter: self.vcenter_id.clone(),
                vm: facts.instance_uuid.to_string(),
                vm_name: facts.name.to_string(),
                snapshot: snapshot.clone(),
            },
        )?;
        let frozen = freeze::freeze(&vcenter, &vm, &snapshot, self.config.backup.quiesce).await;
        let result = match frozen {
            Ok(frozen) => {
                self.log(format!("snapshot '{snapshot}' was made"));
                let frozen = Frozen {
                    disks: frozen
                        .disks
                        .into_iter()
                        .filter(|disk| wanted.contains(&disk.key))
                        .collect(),
                    ..frozen
                };
                self.copy(&vm, &facts, &frozen, base.as_ref(), (name, vm_config), progress).await
            }
            Err(error) => Err(error),
        };
        // The snapshot goes whatever became of the copy; if it does not, the next start tries again.
        match freeze::thaw(&vcenter, &vm, &snapshot).await {
            Ok(note) => {
                self.log(note);
                self.ledger.done(undo)?;
            }
            Err(error) => self.warn(format!(
                "snapshot '{snapshot}' could not be removed and is removed at the next chance: \
                 {error}"
            )),
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

    /// Switches tracking on where it is off and can be, and applies the job's policy before the
    /// snapshot is made.
    async fn see_change_tracking(
        &mut self,
        vm: &VmRef,
        facts: &VmFacts,
        base: Option<&PointFacts>,
    ) -> Result<(), Failure> {
        if facts.change_tracking {
            return Ok(());
        }
        let outcome = changes::enable(self.broker.vcenter(), vm, facts, &self.config.backup).await;
        self.log(outcome);
        if base.is_some() {
            self.explain_full("changed-block tracking was off until now")?;
        }
        Ok(())
    }

    /// Says why everything is read, as the job's policy wants it said.
    fn explain_full(&mut self, reason: &str) -> Result<(), Failure> {
        match self.config.backup.on_full {
            FullPolicy::Continue => self.log(format!("everything is read: {reason}")),
            FullPolicy::Warn => self.warn(format!("everything is read: {reason}")),
            FullPolicy::Fail => {
                return Err(failed(
                    FailureKind::Source,
                    format!("everything would be read, and the job forbids that: {reason}"),
                ));
            }
        }
        Ok(())
    }

    /// From the frozen disks to the committed point.
    async fn copy(
        &mut self,
        vm: &VmRef,
        facts: &VmFacts,
        frozen: &Frozen,
        base: Option<&PointFacts>,
        (name, vm_config): (String, String),
        progress: &mut impl FnMut(Vec<DiskProgress>),
    ) -> Result<(), Failure> {
        let mut disks = Vec::new();
        for disk in &frozen.disks {
            let identity = self.identity(facts, disk);
            let held =
                base.and_then(|point| point.disks.iter().find(|held| held.identity == identity));
            let vcenter = self.broker.vcenter();
            let changes = changes::of_disk(vcenter, vm, frozen, disk, held, self.full).await;
            self.log(format!("{}: {}", disk.label, changes.reason));
            if changes.is_unexpected {
                let reason = format!("{}: {}", disk.label, changes.reason);
                self.explain_full(&reason)?;
            }
            disks.push((disk, identity, changes));
        }
        let audit = self.config.backup.audit_per_million()?;
        let mut work = BackupWork {
            name,
            repository: self.config.repository.clone(),
            disks: Vec::new(),
            snapshot: frozen.identity(&self.vcenter_id),
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
        let report = self.try_roads(vm, frozen, &disks, &mut work, progress).await?;
        self.take_in(report)
    }

    fn identity(&self, facts: &VmFacts, disk: &FrozenVmDisk) -> String {
        // Without a UUID of the backing its file names it: it stays as long as the disk is not
        // moved, and after that everything is read once.
        let own = if disk.uuid.is_empty() { &disk.file } else { &disk.uuid };
        format!("{}/{}/{own}", self.vcenter_id, facts.instance_uuid)
    }

    /// Runs the mover, with the next road of each disk as long as the source fails and there is
    /// one; what was durable is taken over from try to try.
    async fn try_roads(
        &mut self,
        vm: &VmRef,
        frozen: &Frozen,
        disks: &[(&FrozenVmDisk, String, Changes)],
        work: &mut BackupWork,
        progress: &mut impl FnMut(Vec<DiskProgress>),
    ) -> Result<(MoverReport, serde_json::Value), Failure> {
        let mut ways: Vec<Vec<Judged>> = Vec::new();
        for (disk, _, changes) in disks {
            ways.push(self.judge(disk, changes)?);
        }
        loop {
            let chosen: Vec<TransportMode> = ways.iter().map(|way| way[0].mode).collect();
            for (((disk, ..), way), mode) in disks.iter().zip(&ways).zip(&chosen) {
                self.log(format!("{}: transport mode {mode}: {}", disk.label, way[0].reason));
            }
            let result = self.run_mover(vm, frozen, disks, &chosen, work, progress).await;
            let failure = match result {
                Ok(report) => {
                    for ((disk, ..), mode) in disks.iter().zip(&chosen) {
                        let told = &mut self.report.disks;
                        let told = told.iter_mut().find(|told| told.label == disk.label);
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

    fn judge(&mut self, disk: &FrozenVmDisk, changes: &Changes) -> Result<Vec<Judged>, Failure> {
        let need = if changes.is_full() { Need::Full } else { Need::Parts };
        let fixed = self.config.backup.transport;
        let judged = roads(&disk.as_frozen_disk(), &self.config.proxy, fixed, need);
        for road in &judged.closed {
            self.log(format!("{}: not {}: {}", disk.label, road.mode, road.reason));
        }
        if judged.open.is_empty() {
            let reasons: Vec<String> = judged
                .closed
                .iter()
                .map(|road| format!("{}: {}", road.mode, road.reason))
                .collect();
            let text = format!("no transport mode reaches {}: {}", disk.label, reasons.join("; "));
            return Err(failed(FailureKind::Source, text));
        }
        Ok(judged.open)
    }

    async fn run_mover(
        &mut self,
        vm: &VmRef,
        frozen: &Frozen,
        disks: &[(&FrozenVmDisk, String, Changes)],
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
            vm,
            frozen,
        };
        let mut open = OpenRoads::default();
        let mut sources = Vec::new();
        let mut result = Ok(());
        for ((disk, ..), mode) in disks.iter().zip(chosen) {
            match builder.build(*mode, disk, self.ledger, &mut open).await {
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
                    .map(|(source, (disk, identity, changes))| DiskWork {
                        source,
                        identity: identity.clone(),
                        changed_extents: changes.changed.clone(),
                        allocated_extents: changes.allocated.clone(),
                        change_id: disk.change_id.clone(),
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
