//! Sessions: a job's machines, an attempt at each, further attempts at those that failed.
//!
//! In: a job that is to run, or a session that an interrupted gantryd left. Out: a finished session
//! with its result. Every machine's run is a task of its own; the scheduler decides whose turn it is.
//! Must not: copy anything, decide about slots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;
use gantry_database::model::{
    Id, Job, ProxyChoice, SessionKind, SessionRecord, SessionResult, SessionState, SessionTotals,
    Severity, Trigger, VmRunRecord,
};
use gantry_scheduler::schedule::{Retry, Windows};
use gantry_scheduler::{SessionVm, VmName};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::application::guest_steps;
use super::clock::timestamp;
use super::journal::RunJournal;
use super::site::{FleetSite, RunPlace};
use super::sums::Sums;
use super::vcenters::OpenVCenter;
use super::waits::{keep_window, reach_vcenter, stopping};
use super::{Parts, attempts, settings, times};
use crate::broker::selection::{Verdict, select};
use crate::run::document::{Outcome, RunDocument};
use crate::run::site::Wish;
use crate::run::{Context, drive, failed, now_ms};

/// A machine of a session.
#[derive(Debug, Clone)]
struct Machine {
    uuid: String,
    name: String,
}

/// One session at work.
struct Session {
    parts: Parts,
    record: SessionRecord,
    job: Job,
    windows: Windows,
    vcenter: Arc<OpenVCenter>,
    wish: watch::Receiver<Wish>,
}

/// How a run ended, for the session's books.
pub(super) struct RunEnd {
    pub(super) run: RunDocument,
    pub(super) attempt: u32,
    pub(super) result: SessionResult,
    pub(super) ended_ms: u64,
}

/// A session of a job that is about to begin.
pub fn new_session(job: &Job, trigger: Trigger, full: bool, by: Option<&str>) -> SessionRecord {
    let now = now_ms();
    SessionRecord {
        id: Id::draw(now),
        kind: SessionKind::Backup,
        job: Some(job.id),
        name: job.name.clone(),
        trigger,
        requested_by: by.map(str::to_owned),
        state: SessionState::Running,
        result: None,
        reason: None,
        created_ms: now,
        started_ms: Some(now),
        ended_ms: None,
        totals: SessionTotals::default(),
        document: serde_json::json!({ "job": job, "full": full }),
    }
}

/// Runs a session to its end, from its start or from where an interrupted gantryd left it.
pub async fn run(parts: Parts, record: SessionRecord, wish: watch::Receiver<Wish>) {
    let id = record.id;
    let (record, failure) = match prepare(&parts, record, wish).await {
        Ok(mut session) => {
            let failure = session.run().await.err();
            (session.record, failure)
        }
        Err((record, failure)) => (record, Some(failure)),
    };
    let record = match failure {
        None => record,
        Some(failure) => {
            parts.say(id, Severity::Error, &failure.to_string());
            let (result, reason) = (Some(SessionResult::Failed), Some(failure.to_string()));
            SessionRecord { result, reason, ..record }
        }
    };
    parts.finish(record).await;
}

async fn prepare(
    parts: &Parts,
    record: SessionRecord,
    wish: watch::Receiver<Wish>,
) -> Result<Session, (SessionRecord, Failure)> {
    let job = serde_json::from_value::<Job>(record.document["job"].clone());
    let job = match job {
        Ok(job) => job,
        Err(error) => return Err((record, failed(FailureKind::Internal, error))),
    };
    let windows = match times::session_windows(&job, &record) {
        Ok(windows) => windows,
        Err(failure) => return Err((record, failure)),
    };
    match reach_vcenter(parts, (&job, &record), wish.clone()).await {
        Ok(vcenter) => Ok(Session { parts: parts.clone(), record, job, windows, vcenter, wish }),
        Err(failure) => Err((record, failure)),
    }
}

impl Session {
    async fn run(&mut self) -> Result<(), Failure> {
        let mut window = JoinSet::new();
        if let Some(closes) = self.closes_at() {
            window.spawn(keep_window(
                self.parts.clone(),
                self.record.id,
                closes,
                self.shown(closes),
            ));
        }
        let mut runs = self.parts.runs_of(self.record.id).await?;
        if runs.is_empty() {
            let machines = self.choose()?;
            if machines.is_empty() {
                return Err(failed(FailureKind::Usage, "the job's selection names no machine"));
            }
            runs = self.begin(&machines, 1).await?;
        }
        let mut ended = self.drive_all(runs).await;
        while let Some((machines, attempt)) = self.again(&ended).await {
            let text = format!("attempt {attempt} at {} machines that failed", machines.len());
            self.say(Severity::Info, &text);
            let runs = self.begin(&machines, attempt).await?;
            ended.extend(self.drive_all(runs).await);
        }
        self.sum_up(&ended);
        Ok(())
    }

    /// When the session's window closes: that of the night in which it began.
    fn closes_at(&self) -> Option<Timestamp> {
        let began = timestamp(self.record.created_ms);
        match self.windows.is_open(began) {
            true => self.windows.closes_at(began),
            false => Some(began),
        }
    }

    fn shown(&self, at: Timestamp) -> String {
        let zone = &self.windows.zone;
        format!("{} ({zone})", zone.clock(at).strftime("%Y-%m-%d %H:%M"))
    }

    /// Waits for the next attempt: its machines and its number, or nothing if there is none.
    async fn again(&self, ended: &BTreeMap<String, RunEnd>) -> Option<(Vec<Machine>, u32)> {
        if self.wish.borrow().not_to_begin().is_some() {
            return None;
        }
        let plan = times::retries(&self.job);
        let (attempts, retry) = attempts::following(&plan, ended, &self.windows);
        let (at, vms) = match retry {
            Retry::At { at, vms } => (at, vms),
            Retry::GiveUp { window_closed: true, vms } => {
                let text = "machines are not tried again: the backup window closes before";
                self.say(Severity::Warning, &format!("{} {text}", vms.len()));
                return None;
            }
            Retry::Done | Retry::GiveUp { .. } => return None,
        };
        let text =
            format!("{} machines failed and are tried again at {}", vms.len(), self.shown(at));
        self.say(Severity::Info, &text);
        let mut wish = self.wish.clone();
        tokio::select! {
            biased;
            _ = stopping(&mut wish) => return None,
            () = self.parts.clock.wait_until(at) => {}
        }
        let machine = |vm: &VmName| {
            let end = ended.get(vm.as_str())?;
            Some(Machine { uuid: end.run.vm.clone(), name: end.run.vm_name.clone() })
        };
        Some((vms.iter().filter_map(machine).collect(), attempts + 1))
    }

    fn say(&self, severity: Severity, text: &str) {
        self.parts.say(self.record.id, severity, text);
    }

    /// Which machines the job takes now; those that it cannot are told.
    fn choose(&self) -> Result<Vec<Machine>, Failure> {
        let rules = settings::rules(&self.job.selection)?;
        let selected = self.vcenter.broker.read(|cache| select(cache, &rules));
        for rule in &selected.unmatched {
            self.say(Severity::Warning, &format!("{rule}: no machine fits"));
        }
        let mut machines = Vec::new();
        let only = &self.record.document["only"];
        let only: Vec<&str> =
            only.as_array().into_iter().flatten().filter_map(|uuid| uuid.as_str()).collect();
        let is_asked = |uuid: &str| only.is_empty() || only.contains(&uuid);
        for vm in selected.vms.into_iter().filter(|vm| is_asked(&vm.instance_uuid)) {
            match vm.verdict {
                Verdict::In { why } => {
                    self.say(Severity::Info, &format!("{}: taken, {why}", vm.vm.name));
                    let name = vm.vm.name.to_string();
                    machines.push(Machine { uuid: vm.instance_uuid, name });
                }
                Verdict::Impossible { why } => {
                    self.say(Severity::Warning, &format!("{}: left out: {why}", vm.vm.name));
                }
                Verdict::Excluded { .. } => {}
            }
        }
        Ok(machines)
    }

    async fn begin(&self, machines: &[Machine], attempt: u32) -> Result<Vec<VmRunRecord>, Failure> {
        let now = now_ms();
        let full = self.record.document["full"].as_bool().unwrap_or(false);
        let mut runs = Vec::new();
        for machine in machines {
            let id = Id::draw(now);
            let document =
                RunDocument::new(SessionId::from(id), &machine.uuid, &machine.name, full);
            runs.push(VmRunRecord {
                id,
                session: self.record.id,
                vm: machine.name.clone(),
                vm_uuid: Some(machine.uuid.clone()),
                attempt,
                state: document.state.name().to_owned(),
                document: serde_json::to_value(&document)
                    .map_err(|error| failed(FailureKind::Internal, error))?,
                result: None,
                reason: None,
                point: None,
                created_ms: now,
                started_ms: None,
                ended_ms: None,
            });
        }
        self.parts.add_runs(self.record.id, &runs).await?;
        Ok(runs)
    }

    /// Drives every run that has not ended; all at once, the scheduler holds them.
    async fn drive_all(&self, runs: Vec<VmRunRecord>) -> BTreeMap<String, RunEnd> {
        let mut ended = BTreeMap::new();
        let mut driven = JoinSet::new();
        for run in runs {
            let attempt = run.attempt;
            let document = serde_json::from_value::<RunDocument>(run.document.clone());
            let document = match document {
                Ok(document) => document,
                Err(error) => {
                    self.say(
                        Severity::Error,
                        &format!("{}: its state cannot be read: {error}", run.vm),
                    );
                    continue;
                }
            };
            self.parts.live.stands(self.record.id, run.id, &document);
            if let Some(result) = run.result {
                let ended_ms = run.ended_ms.unwrap_or(run.created_ms);
                let end = RunEnd { run: document, attempt, result, ended_ms };
                later(&mut ended, end);
                continue;
            }
            match self.driver(run, document) {
                Ok(driver) => {
                    driven.spawn(async move { (driver.await, attempt) });
                }
                Err(failure) => self.say(Severity::Error, &failure.to_string()),
            }
        }
        while let Some(joined) = driven.join_next().await {
            match joined {
                Ok((Ok((run, result)), attempt)) => {
                    let ended_ms = self.parts.clock.now_ms();
                    later(&mut ended, RunEnd { run, attempt, result, ended_ms });
                }
                Ok((Err(failure), _)) => self.say(Severity::Error, &failure.to_string()),
                Err(error) => self.say(Severity::Error, &format!("a run broke down: {error}")),
            }
        }
        ended
    }

    /// One machine's run, from its document to its end.
    fn driver(
        &self,
        run: VmRunRecord,
        mut document: RunDocument,
    ) -> Result<
        impl Future<Output = Result<(RunDocument, SessionResult), Failure>> + Send + use<>,
        Failure,
    > {
        let (parts, vcenter) = (self.parts.clone(), Arc::clone(&self.vcenter));
        let journal = RunJournal::new(
            (parts.database.clone(), parts.events.clone(), parts.live.clone()),
            (self.record.id, run.id, &run.vm),
            &run.state,
        );
        let site = FleetSite::new(
            parts.clone(),
            self.place(&document)?,
            journal.clone(),
            self.wish.clone(),
        );
        let settings = settings::run_settings(&self.job);
        let excluded = self.excluded(&document.vm);
        let application = self.job.application.clone();
        Ok(async move {
            document.restart();
            if document.may_stand() {
                site.queue_again(&document)?;
            }
            let name = &document.vm_name;
            let guest = guest_steps(&parts.database, &application, name).await;
            let context = Context {
                guest: guest.as_ref(),
                broker: &vcenter.broker,
                vcenter_id: &vcenter.id,
                endpoint: &vcenter.endpoint,
                trust: &vcenter.trust,
                owner: &vcenter.owner,
                settings: &settings,
                excluded: &excluded,
                ledger: &parts.ledger,
                site: &site,
            };
            let outcome = drive(&context, &mut document).await;
            site.leave();
            parts.live.forget(document.run);
            let outcome = outcome?;
            let result = match (&outcome, journal.has_warnings()) {
                (Outcome::Point(_), false) => SessionResult::Success,
                (Outcome::Point(_), true) => SessionResult::Warning,
                _ => SessionResult::Failed,
            };
            Ok((document, result))
        })
    }

    fn place(&self, document: &RunDocument) -> Result<RunPlace, Failure> {
        let repository = self.parts.repository(self.job.repository)?;
        let proxies: BTreeSet<String> = match &self.job.proxies {
            ProxyChoice::Automatic => BTreeSet::new(),
            ProxyChoice::Chosen { proxies } => self.parts.proxy_names(proxies),
        };
        Ok(RunPlace {
            machine: SessionVm {
                session: self.record.id.to_string().into(),
                vm: format!("{}/{}", self.vcenter.id, document.vm).into(),
            },
            job: self.job.name.clone(),
            // A record's priority has ten times as many steps as the scheduler's.
            priority: self.job.priority / 10,
            proxies,
            modes: self.job.transport.modes.clone(),
            vcenter: self.vcenter.id.clone(),
            repository: repository.name.clone(),
            repository_mover: repository.mover,
            repository_address: repository.address.clone(),
            session: self.record.id,
            job_id: self.job.id,
            job_rate: self.job.rate_bytes_per_second,
            snapshots_max: self.job.snapshots_per_datastore,
        })
    }

    /// Disks of a machine that the job leaves out.
    fn excluded(&self, uuid: &str) -> BTreeMap<i32, String> {
        let rules = &self.job.selection.exclude_disks;
        self.vcenter.broker.read(|cache| {
            let Some((_, facts)) = cache.vm_by_instance_uuid(uuid) else { return BTreeMap::new() };
            let why = |disk: &crate::broker::DiskFacts| {
                let place = facts.position(disk);
                let of = (&*disk.label, place.as_str(), disk.datastore_name());
                Some((disk.key, settings::excluded(rules, &facts.name, of)?))
            };
            facts.disks.values().filter_map(why).collect()
        })
    }

    /// The session's result and sums.
    fn sum_up(&mut self, ended: &BTreeMap<String, RunEnd>) {
        let mut sums = Sums::default();
        for end in ended.values() {
            sums.machine(end.result != SessionResult::Failed);
            for disk in end.run.frozen.iter().flat_map(|frozen| &frozen.disks) {
                let name = format!("{}: {}", end.run.vm_name, disk.label);
                sums.disk(&name, disk.report());
            }
        }
        let (totals, wrong) = sums.end();
        wrong.iter().for_each(|text| self.say(Severity::Warning, text));
        let worst = ended.values().map(|end| end.result).max();
        let worst = worst.map(|worst| match wrong.is_empty() {
            true => worst,
            false => worst.max(SessionResult::Warning),
        });
        self.record.result = worst.or(Some(SessionResult::Failed));
        let (bad, all) = (totals.vms_failed, totals.vms);
        if bad > 0 {
            let stopped = self.wish.borrow().not_to_begin().map(str::to_owned);
            self.record.reason = Some(match stopped {
                Some(why) => {
                    format!("{why}: {bad} of {all} machines have no point of this session")
                }
                None => format!("{bad} of {all} machines failed"),
            });
        }
        self.record.totals = totals;
    }
}

/// Of two runs of a machine, the later attempt counts.
fn later(ended: &mut BTreeMap<String, RunEnd>, end: RunEnd) {
    let held = ended.get(&end.run.vm);
    if held.is_none_or(|held| held.attempt <= end.attempt) {
        ended.insert(end.run.vm.clone(), end);
    }
}
