//! Sessions: a job's machines, an attempt at each, further attempts at those that failed.
//!
//! In: a job that is to run, or a session that an interrupted gantryd left. Out: a finished session
//! with its result. Every machine's run is a task of its own; the scheduler decides whose turn it is.
//! Must not: copy anything, decide about slots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;
use gantry_database::model::{
    Id, Job, ProxyChoice, SessionKind, SessionRecord, SessionResult, SessionState, SessionTotals,
    Severity, Trigger, VmRunRecord,
};
use gantry_scheduler::SessionVm;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::application::guest_steps;
use super::journal::RunJournal;
use super::site::{FleetSite, RunPlace};
use super::vcenters::OpenVCenter;
use super::{Parts, settings};
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
    vcenter: Arc<OpenVCenter>,
    wish: watch::Receiver<Wish>,
}

/// How a run ended, for the session's books.
struct RunEnd {
    run: RunDocument,
    attempt: u32,
    result: SessionResult,
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
    let ended = match prepare(&parts, record, wish).await {
        Ok(mut session) => session.run().await,
        Err((record, failure)) => {
            parts.say(id, Severity::Error, &failure.to_string());
            Err((record, failure))
        }
    };
    let record = match ended {
        Ok(record) => record,
        Err((mut record, failure)) => {
            record.result = Some(SessionResult::Failed);
            record.reason = Some(failure.to_string());
            record
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
    match parts.vcenters.open(job.vcenter).await {
        Ok(vcenter) => Ok(Session { parts: parts.clone(), record, job, vcenter, wish }),
        Err(failure) => Err((record, failure)),
    }
}

impl Session {
    async fn run(&mut self) -> Result<SessionRecord, (SessionRecord, Failure)> {
        match self.run_all().await {
            Ok(()) => Ok(self.record.clone()),
            Err(failure) => {
                self.say(Severity::Error, &failure.to_string());
                Err((self.record.clone(), failure))
            }
        }
    }

    async fn run_all(&mut self) -> Result<(), Failure> {
        let mut runs = self.parts.runs_of(self.record.id).await?;
        if runs.is_empty() {
            let machines = self.choose()?;
            if machines.is_empty() {
                return Err(failed(FailureKind::Usage, "the job's selection names no machine"));
            }
            runs = self.begin(&machines, 1).await?;
        }
        let mut ended = self.drive_all(runs).await;
        for attempt in 2..=self.job.retries.count + 1 {
            let again: Vec<Machine> = ended
                .values()
                .filter(|end| end.result == SessionResult::Failed && end.attempt + 1 == attempt)
                .map(|end| Machine { uuid: end.run.vm.clone(), name: end.run.vm_name.clone() })
                .collect();
            if again.is_empty() || !self.pause().await {
                break;
            }
            self.say(
                Severity::Info,
                &format!("attempt {attempt} at {} machines that failed", again.len()),
            );
            let runs = self.begin(&again, attempt).await?;
            ended.extend(self.drive_all(runs).await);
        }
        self.sum_up(&ended);
        Ok(())
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
        for vm in selected.vms {
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
            if let Some(result) = run.result {
                ended.insert(document.vm.clone(), RunEnd { run: document, attempt, result });
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
                    ended.insert(run.vm.clone(), RunEnd { run, attempt, result });
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
            priority: self.job.priority,
            proxies,
            modes: self.job.transport.modes.clone(),
            vcenter: self.vcenter.id.clone(),
            repository: repository.name.clone(),
            repository_mover: repository.mover,
            repository_address: repository.address.clone(),
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

    /// Waits before a further attempt; false: the session is to end.
    async fn pause(&self) -> bool {
        let mut wish = self.wish.clone();
        let pause = Duration::from_secs(u64::from(self.job.retries.pause_seconds));
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            _ = wish.wait_for(|wish| wish.not_to_begin().is_some()) => false,
        }
    }

    /// The session's result and sums.
    fn sum_up(&mut self, ended: &BTreeMap<String, RunEnd>) {
        let mut totals = SessionTotals { vms: ended.len() as u64, ..SessionTotals::default() };
        for end in ended.values() {
            match end.result {
                SessionResult::Failed => totals.vms_failed += 1,
                _ => totals.vms_done += 1,
            }
            let disks = end.run.frozen.iter().flat_map(|frozen| &frozen.disks);
            for disk in disks {
                totals.disks += 1;
                let Some(report) = disk.report() else { continue };
                let bytes = |field: &str| report[field].as_u64().unwrap_or(0);
                totals.processed_bytes += bytes("bytes_processed");
                totals.read_bytes += bytes("bytes_read");
                totals.transferred_bytes += bytes("bytes_transferred");
                totals.stored_bytes += bytes("bytes_stored");
            }
        }
        let worst = ended.values().map(|end| end.result).max();
        self.record.result = worst.or(Some(SessionResult::Failed));
        if totals.vms_failed > 0 {
            let text = format!("{} of {} machines failed", totals.vms_failed, totals.vms);
            self.record.reason = Some(text);
        }
        self.record.totals = totals;
    }
}
