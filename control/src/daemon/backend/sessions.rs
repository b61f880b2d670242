//! Sessions: begun, shown, stopped.
//!
//! In: a job's or session's id, how to begin or end. Out: records, the machines and disks of a session
//! as its runs' documents say (there is no second copy of what they say), live numbers.

use std::collections::BTreeMap;

use gantry_api::access::Principal;
use gantry_api::backend::{Answered, Numbers, SessionFilter};
use gantry_api::views::{Progress, StartRequest, StopMode, TaskProgress, VmRun};
use gantry_api::{Problem, Records};
use gantry_common::ids::SessionId;
use gantry_database::model::{
    Id, Job, Proxy, Repository, SessionKind, SessionRecord, SessionState, TaskRecord, Trigger,
    VmRunRecord,
};
use serde_json::json;

use super::{Gantryd, refused};
use crate::daemon::live::{DiskStanding, Standings};
use crate::run::document::{DiskTask, RunDocument};
use crate::run::site::Wish;

/// Sessions of a job that are looked through for one that runs.
const PAGE: u32 = 1000;

impl Gantryd {
    pub(super) async fn begin_job(
        &self,
        id: Id,
        how: StartRequest,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        let job: Job = Records::<Job>::get(self, id).await?;
        let mut only = Vec::new();
        if !how.vms.is_empty() {
            // By what they are for good: another machine of that name is not meant.
            let taken = self.selected(id).await?;
            for vm in &how.vms {
                let found = taken.iter().filter(|one| one.name == *vm);
                let before = only.len();
                only.extend(found.filter_map(|one| one.instance_uuid.clone()));
                if only.len() == before {
                    let text = format!("job '{}' takes no machine called '{vm}'", job.name);
                    return Err(Problem::invalid(text).next("see: gantry job vms"));
                }
            }
        }
        let conflict = || {
            let text = format!("job '{}' runs already", job.name);
            Problem::conflict(text, "wait for its end, or stop it")
        };
        if self.parts.session_of(id).await?.is_some() {
            return Err(conflict());
        }
        let why = format!("started by {}", who.name);
        let asked = (Trigger::Manual, how.full, Some(who.name.as_str()));
        let begun = self.parts.start_job_on(&job, &only, asked, &why).await;
        match begun {
            Ok(session) => self.parts.database.session(session).await.map_err(refused),
            // Another request was faster.
            Err(_) if self.parts.session_of(id).await?.is_some() => Err(conflict()),
            Err(failure) => Err(failure.into()),
        }
    }

    pub(super) async fn end_job(
        &self,
        job: Id,
        mode: StopMode,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        Records::<Job>::get(self, job).await?;
        let Some(session) = self.parts.session_of(job).await? else {
            return Err(Problem::conflict("the job does not run", "nothing is to be done"));
        };
        self.end_session(session, mode, who).await
    }

    pub(super) async fn end_session(
        &self,
        id: Id,
        mode: StopMode,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        let record = self.parts.database.session(id).await.map_err(refused)?;
        if record.is_finished() {
            return Err(Problem::conflict("the session is over", "nothing is to be done"));
        }
        if record.kind == SessionKind::Maintenance {
            let text = "what looks after a repository cannot be stopped";
            return Err(Problem::conflict(text, "wait for its end"));
        }
        let why = format!("stopped by {}", who.name);
        let wish = match mode {
            StopMode::Now => Wish::Stop(why),
            StopMode::Graceful => Wish::DoNotBegin(why),
        };
        if !self.parts.stop(id, wish) {
            let text = "the session waits for movers to come back after gantryd's start";
            return Err(Problem::unavailable(text, "try again in a minute"));
        }
        let text = match mode {
            StopMode::Now => format!("{} stops the session now", who.name),
            StopMode::Graceful => {
                format!("{} stops the session after the machines at work", who.name)
            }
        };
        self.parts.say(id, gantry_database::model::Severity::Info, &text);
        self.parts.database.session(id).await.map_err(refused)
    }

    pub(super) async fn list_sessions(&self, asked: SessionFilter) -> Answered<Vec<SessionRecord>> {
        let SessionFilter { job, kind, state, after, limit } = asked;
        let mut before = after;
        let mut found: Vec<SessionRecord> = Vec::new();
        // The database knows no kind: pages are looked through until there are enough.
        loop {
            let filter =
                gantry_database::SessionFilter { job, state, result: None, before, limit: PAGE };
            let page = self.parts.database.sessions(&filter).await.map_err(refused)?;
            let is_last = (page.len() as u64) < u64::from(PAGE);
            before = page.last().map(|session| session.id);
            let fits = |session: &SessionRecord| kind.is_none_or(|kind| session.kind == kind);
            found.extend(page.into_iter().filter(fits));
            if is_last || found.len() as u64 >= u64::from(limit) {
                found.truncate(limit as usize);
                return Ok(found);
            }
        }
    }

    async fn runs(&self, session: Id) -> Answered<(SessionRecord, Vec<VmRunRecord>)> {
        let record = self.parts.database.session(session).await.map_err(refused)?;
        Ok((record, self.parts.database.vm_runs(session).await.map_err(refused)?))
    }

    pub(super) async fn runs_with_disks(&self, session: Id) -> Answered<Vec<VmRun>> {
        let (record, runs) = self.runs(session).await?;
        let proxies = Records::<Proxy>::list(self).await?;
        let by_name: BTreeMap<&str, Id> =
            proxies.iter().map(|proxy| (proxy.name.as_str(), proxy.id)).collect();
        let job = serde_json::from_value::<Job>(record.document["job"].clone()).ok();
        let repository = job.map(|job| job.repository);
        let with_disks = |mut run: VmRunRecord| {
            let document = serde_json::from_value::<RunDocument>(run.document.take()).ok();
            let frozen = document.and_then(|document| document.frozen);
            let disks = frozen.map(|frozen| frozen.disks).unwrap_or_default();
            let task = |disk: &DiskTask| task(&run, disk, repository, &by_name);
            let tasks = disks.iter().map(task).collect();
            VmRun { run, tasks }
        };
        Ok(runs.into_iter().map(with_disks).collect())
    }

    pub(super) async fn numbers_of(&self, session: Id) -> Answered<Progress> {
        let record = self.parts.database.session(session).await.map_err(refused)?;
        // Of a session that runs from memory: it is asked for every second.
        let standings = match self.parts.live.standings(session) {
            Some(standings) => standings,
            None => self.kept_standings(session).await?,
        };
        let (mut disks, mut bytes_per_second, mut left) = (Vec::new(), 0, 0);
        for (run, (vm, standings)) in standings {
            let (live, rate) = self.parts.live.of(SessionId::from(run));
            bytes_per_second += rate;
            for disk in standings {
                let shown = progress((run, &vm), &disk, live.get(&disk.key));
                left += shown.todo_bytes.saturating_sub(shown.done_bytes);
                disks.push(shown);
            }
        }
        let is_running = record.state != SessionState::Finished;
        let eta_seconds = (is_running && bytes_per_second > 0).then(|| left / bytes_per_second);
        let bottleneck = record.totals.more["bottleneck"].as_str().map(str::to_owned);
        Ok(Progress { state: record.state, bytes_per_second, eta_seconds, bottleneck, disks })
    }

    async fn kept_standings(&self, session: Id) -> Answered<Standings> {
        let runs = self.parts.database.vm_runs(session).await.map_err(refused)?;
        let standing = |run: VmRunRecord| {
            let document = serde_json::from_value::<RunDocument>(run.document).ok();
            let frozen = document.and_then(|document| document.frozen);
            let disks = frozen.iter().flat_map(|frozen| &frozen.disks);
            (run.id, (run.vm, disks.map(DiskStanding::of).collect()))
        };
        Ok(runs.into_iter().map(standing).collect())
    }

    pub(super) async fn metrics(&self) -> Answered<Numbers> {
        let running = self.parts.database.unfinished_sessions().await.map_err(refused)?;
        let views = self.parts.fleet.movers();
        let repositories: Vec<Repository> = Records::<Repository>::list(self).await?;
        let space = |repository: &Repository| {
            let view = views.iter().find(|view| view.pin == repository.mover)?;
            let facts = view.facts.repository.as_ref()?;
            Some((repository.name.clone(), facts.free_bytes, facts.capacity_bytes))
        };
        let mut movers: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for view in &views {
            let (connected, enrolled) = movers.entry(view.role.to_string()).or_default();
            *connected += u64::from(view.connected_since_ms.is_some());
            *enrolled += 1;
        }
        let counts = self.parts.counts();
        Ok(Numbers {
            sessions_ended: counts.sessions_ended,
            sessions_running: running.len() as u64,
            tasks_running: views.iter().map(|view| view.tasks_running as u64).sum(),
            tasks_waiting: self.parts.dispatcher.waiting() as u64,
            read_bytes: counts.read_bytes,
            transferred_bytes: counts.transferred_bytes,
            repositories: repositories.iter().filter_map(space).collect(),
            movers: movers.into_iter().map(|(role, (up, all))| (role, up, all)).collect(),
        })
    }
}

/// A disk as a task, out of its run's document.
fn task(
    run: &VmRunRecord,
    disk: &DiskTask,
    repository: Option<Id>,
    proxies: &BTreeMap<&str, Id>,
) -> TaskRecord {
    let standing = DiskStanding::of(disk);
    TaskRecord {
        id: disk_id(run.id, disk.key),
        vm_run: run.id,
        disk: disk.label.clone(),
        proxy: standing.proxy.and_then(|name| proxies.get(name.as_str()).copied()),
        repository,
        mode: standing.mode,
        state: standing.state.to_owned(),
        numbers: disk.report().cloned().unwrap_or_else(|| json!({ "bytes_processed": 0 })),
        reasons: Vec::new(),
    }
}

/// A disk's id in a session: its run's, with its key worked in. It is the same for good, whichever
/// movers work on the disk.
fn disk_id(run: Id, key: i32) -> Id {
    let mut id = run;
    id.0.iter_mut().rev().zip(key.to_le_bytes()).for_each(|(byte, key)| *byte ^= key);
    id
}

fn progress(
    (run, vm): (Id, &str),
    disk: &DiskStanding,
    live: Option<&gantry_common::work::DiskProgress>,
) -> TaskProgress {
    let live = live.cloned().unwrap_or_default();
    // What had to be read of a durable disk is done.
    let (read_bytes, transferred_bytes) = disk.done.unwrap_or((live.read_bytes, live.sent_bytes));
    let todo_bytes = disk.done.map_or(live.todo_bytes, |_| live.todo_bytes.max(read_bytes));
    TaskProgress {
        task: disk_id(run, disk.key),
        vm: vm.to_owned(),
        disk: disk.label.clone(),
        state: disk.state.to_owned(),
        proxy: disk.proxy.clone(),
        mode: disk.mode.map(|mode| mode.to_string()),
        done_bytes: disk.done.map_or(live.done_bytes, |_| todo_bytes),
        todo_bytes,
        read_bytes,
        transferred_bytes,
    }
}
