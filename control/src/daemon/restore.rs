//! Restores, as sessions: disks of a point to files of a proxy, a mover's task for each.
//!
//! In: what is asked for. Out: a session with its log, live numbers, and what became of each disk in
//! its totals. What will be done is planned and written down before the first task is told, names of
//! tasks and files included, so that a gantryd that was interrupted takes the same tasks up again. A file has its
//! name only once its disk is whole; what is not whole the mover removes. Must not: touch block data.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_api::views::{RestoreRequest, RestoreTarget};
use gantry_common::control::TaskOutcome;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{PeerId, SessionId, TaskId};
use gantry_common::wire::PointSummary;
use gantry_common::work::{
    DiskProgress, DiskRestore, DiskRestored, RepositoryAccess, RestoreDone, RestoreWork,
};
use gantry_database::model::{
    EventRecord, Id, Repository, SessionKind, SessionRecord, SessionResult, SessionState,
    SessionTotals, Severity, Trigger,
};
use gantry_transport::Rights;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Parts;
use super::live::Change;
use crate::fleet::{TaskEvent, TaskHandle};
use crate::run::site::Wish;
use crate::run::{failed, now_ms};

/// How long a proxy that is gone is usually waited for.
pub const PROXY_BACK_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks whether it is there.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a stopped task may take to end.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// How long a ticket is good: longer than a disk takes.
const TICKET_VALID: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of a machine's name in a file's name.
const FILE_NAME_BYTES_MAX: usize = 100;

/// What will be done, as it is written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Plan {
    repository: Id,
    /// Name under which the points are kept.
    name: String,
    point: String,
    /// Name of the proxy.
    proxy: String,
    disks: Vec<Planned>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Planned {
    task: TaskId,
    work: DiskRestore,
}

impl Planned {
    /// The task in whose place another stands that was never begun, or died with an earlier gantryd.
    fn second(&self) -> TaskId {
        let mut task = self.task;
        task.0[TaskId::BYTES - 1] ^= 1;
        task
    }
}

/// One restore at work.
#[derive(Clone)]
struct Restore {
    parts: Parts,
    session: Id,
    plan: Plan,
    repository: Repository,
    proxy: PeerId,
    wish: watch::Receiver<Wish>,
}

/// Begins a restore, and gives the session that was begun.
///
/// # Errors
/// `Usage`: what is asked for is not there. `Network`: the proxy or the repository's mover is not
/// connected. Else of the database.
pub async fn begin(
    parts: &Parts,
    request: RestoreRequest,
    who: &str,
) -> Result<SessionRecord, Failure> {
    let usage = |text: String| failed(FailureKind::Usage, text);
    let RestoreTarget::Files { proxy, folder } = &request.target else {
        let text = "this version of gantryd restores to files only: restore to files, then attach \
                    them to a new machine";
        return Err(usage(text.to_owned()));
    };
    let repository = parts.repository(request.repository)?;
    let proxy = parts.proxy_names(&[*proxy]).pop_first();
    let proxy = proxy.ok_or_else(|| usage("there is no such proxy".to_owned()))?;
    if parts.mover_of_proxy(&proxy).is_none() {
        return Err(failed(FailureKind::Network, format!("proxy {proxy} is not connected")));
    }
    let points = parts.fleet.points(repository.mover, &request.name, false).await?;
    let point = choose_point(points, &request)?;
    let plan = plan(&request, &point, proxy, Path::new(folder))?;
    let now = now_ms();
    let document = json!({ "plan": plan, "request": request });
    let record = SessionRecord {
        id: Id::draw(now),
        kind: SessionKind::Restore,
        job: None,
        name: format!("restore {}", request.name),
        trigger: Trigger::Manual,
        requested_by: Some(who.to_owned()),
        state: SessionState::Running,
        result: None,
        reason: None,
        created_ms: now,
        started_ms: Some(now),
        ended_ms: None,
        totals: SessionTotals::default(),
        document,
    };
    parts.database.create_session(&record, &[]).await?;
    run(parts, record.clone(), false);
    Ok(record)
}

/// Goes on with a restore that an interrupted gantryd left.
pub(super) fn go_on(parts: &Parts, record: SessionRecord) {
    run(parts, record, true);
}

/// Tasks of a restore that may be on a mover.
pub(super) fn tasks_of(record: &SessionRecord) -> Vec<TaskId> {
    let plan = serde_json::from_value::<Plan>(record.document["plan"].clone());
    let disks = plan.map(|plan| plan.disks).unwrap_or_default();
    disks.iter().flat_map(|disk| [disk.task, disk.second()]).collect()
}

/// The point that is asked for, or the newest.
fn choose_point(
    points: Vec<PointSummary>,
    request: &RestoreRequest,
) -> Result<PointSummary, Failure> {
    let wanted = |point: &PointSummary| match &request.point {
        Some(id) => point.point.to_string() == *id,
        None => true,
    };
    let found = points.into_iter().filter(wanted).max_by_key(|point| point.created_ms);
    found.ok_or_else(|| {
        let which = request.point.as_deref().unwrap_or("any");
        let text = format!("the repository has no such point of '{}' ({which})", request.name);
        failed(FailureKind::Usage, text)
    })
}

/// Which disks go into which files.
fn plan(
    request: &RestoreRequest,
    point: &PointSummary,
    proxy: String,
    folder: &Path,
) -> Result<Plan, Failure> {
    let is_wanted = |label: &str, identity: &str| {
        let is_it = |wanted: &String| wanted == label || wanted == identity;
        request.disks.is_empty() || request.disks.iter().any(is_it)
    };
    let known = |wanted: &&String| {
        point.disks.iter().any(|disk| **wanted == disk.label || **wanted == disk.identity)
    };
    if let Some(missing) = request.disks.iter().find(|wanted| !known(wanted)) {
        let labels: Vec<&str> = point.disks.iter().map(|disk| disk.label.as_str()).collect();
        let text = format!("the point has no disk '{missing}': it has {}", labels.join(", "));
        return Err(failed(FailureKind::Usage, text));
    }
    let now = now_ms();
    let mut disks = Vec::new();
    for (number, disk) in (0..).zip(&point.disks) {
        if is_wanted(&disk.label, &disk.identity) {
            let work = DiskRestore {
                disk: number,
                identity: disk.identity.clone(),
                label: disk.label.clone(),
                file: file_of(folder, &request.name, number),
            };
            disks.push(Planned { task: TaskId(Id::draw(now).0), work });
        }
    }
    if disks.is_empty() {
        return Err(failed(FailureKind::Usage, "the point has no disks"));
    }
    let (repository, name, point) =
        (request.repository, request.name.clone(), point.point.to_string());
    Ok(Plan { repository, name, point, proxy, disks })
}

/// Name of a disk's file: of the machine and the disk's position in the point.
fn file_of(folder: &Path, name: &str, disk: u16) -> PathBuf {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let name: String = name.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    let name = &name[..name.len().min(FILE_NAME_BYTES_MAX)];
    folder.join(format!("{}-disk{disk}.raw", name.trim_end_matches('_')))
}

/// Runs a session to its end.
fn run(parts: &Parts, record: SessionRecord, is_left: bool) {
    let (sender, wish) = watch::channel(match record.state {
        SessionState::Stopping => Wish::DoNotBegin("it was being stopped".to_owned()),
        _ => Wish::GoOn,
    });
    let mut running = parts.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    running.insert(record.id, sender);
    drop(running);
    parts.live.tell(Change::State { session: record.id });
    let parts = parts.clone();
    tokio::spawn(async move {
        match prepare(&parts, &record, wish) {
            Ok(restore) => restore.all(record, is_left).await,
            Err(failure) => parts.finish(ended(record, Vec::new(), Some(failure))).await,
        }
    });
}

fn prepare(
    parts: &Parts,
    record: &SessionRecord,
    wish: watch::Receiver<Wish>,
) -> Result<Restore, Failure> {
    let plan = serde_json::from_value::<Plan>(record.document["plan"].clone());
    let plan = plan.map_err(|error| failed(FailureKind::Internal, error))?;
    let repository = parts.repository(plan.repository)?;
    let proxy = parts.known_mover_of_proxy(&plan.proxy).ok_or_else(|| {
        let text = format!("proxy {} is not known any more", plan.proxy);
        failed(FailureKind::Usage, text)
    })?;
    Ok(Restore { parts: parts.clone(), session: record.id, plan, repository, proxy, wish })
}

/// A session's end.
fn ended(
    mut record: SessionRecord,
    disks: Vec<DiskRestored>,
    failure: Option<Failure>,
) -> SessionRecord {
    let sum = |bytes: fn(&DiskRestored) -> u64| disks.iter().map(bytes).sum();
    record.totals = SessionTotals {
        vms: 1,
        vms_done: u64::from(failure.is_none()),
        vms_failed: u64::from(failure.is_some()),
        disks: disks.len() as u64,
        processed_bytes: sum(|disk| disk.size_bytes),
        read_bytes: sum(|disk| disk.transferred_bytes),
        transferred_bytes: sum(|disk| disk.transferred_bytes),
        stored_bytes: 0,
        more: json!({ "restored": disks }),
    };
    record.result = Some(match failure {
        None => SessionResult::Success,
        Some(_) => SessionResult::Failed,
    });
    record.reason = failure.map(|failure| failure.to_string());
    record
}

impl Restore {
    async fn all(self, record: SessionRecord, is_left: bool) {
        let Plan { point, proxy, .. } = &self.plan;
        let verb = if is_left { "goes on" } else { "begins" };
        self.say(Severity::Info, None, &format!("{verb}: point {point} to files of proxy {proxy}"));
        let mut tasks = JoinSet::new();
        for disk in self.plan.disks.clone() {
            let restore = self.clone();
            tasks.spawn(async move { restore.one(disk, is_left).await });
        }
        let (mut restored, mut failure, mut handles) = (Vec::new(), None, Vec::new());
        while let Some(joined) = tasks.join_next().await {
            let (handle, result) = joined.unwrap_or_else(|error| {
                (None, Err(failed(FailureKind::Internal, format!("a task ended: {error}"))))
            });
            handles.extend(handle);
            match result {
                Ok(disk) => restored.push(disk),
                Err(error) => {
                    self.say(Severity::Error, None, &error.to_string());
                    failure.get_or_insert(error);
                }
            }
        }
        restored.sort_by(|one, other| one.file.cmp(&other.file));
        self.parts.finish(ended(record, restored, failure)).await;
        // Only now: an interrupted gantryd asks for every task's end again.
        handles.into_iter().for_each(TaskHandle::forget);
    }

    fn say(&self, severity: Severity, disk: Option<&str>, text: &str) {
        self.parts.events.say(EventRecord {
            session: self.session,
            vm: Some(self.plan.name.clone()),
            disk: disk.map(str::to_owned),
            time_ms: now_ms(),
            severity,
            text: text.to_owned(),
        });
    }

    /// One disk to its end; the handle of its task, to be forgotten later.
    async fn one(
        &self,
        disk: Planned,
        is_left: bool,
    ) -> (Option<TaskHandle>, Result<DiskRestored, Failure>) {
        let mut task = disk.task;
        if is_left {
            // The mover keeps an end until it is told to forget it. A task that it does not know was
            // never begun, or died with the mover; then the second is, if it is known, the one.
            for known in [disk.task, disk.second()] {
                task = known;
                let mut handle = match self.parts.fleet.adopt_task(self.proxy, known) {
                    Ok(handle) => handle,
                    Err(failure) => return (None, Err(failure)),
                };
                match self.watch(&mut handle, &disk.work).await {
                    Ok(TaskOutcome::Died(_)) => handle.forget(),
                    outcome => return (Some(handle), self.conclude(&disk.work, outcome)),
                }
            }
        }
        let mut handle = match self.start(task, &disk.work).await {
            Ok(handle) => handle,
            Err(failure) => return (None, Err(failure)),
        };
        let outcome = self.watch(&mut handle, &disk.work).await;
        (Some(handle), self.conclude(&disk.work, outcome))
    }

    async fn start(&self, task: TaskId, disk: &DiskRestore) -> Result<TaskHandle, Failure> {
        if let Some(why) = self.wish.borrow().not_to_begin() {
            return Err(failed(FailureKind::Source, format!("stopped: {why}")));
        }
        let (session, mover) = (SessionId::from(self.session), self.repository.mover);
        let (name, rights) = (self.plan.name.as_str(), Rights::RESTORE);
        let fleet = &self.parts.fleet;
        let ticket = fleet.ticket(mover, session, self.proxy, name, rights, TICKET_VALID).await?;
        let work = RestoreWork {
            name: self.plan.name.clone(),
            point: self.plan.point.clone(),
            repository: RepositoryAccess {
                address: self.repository.address.clone(),
                ticket: Some(ticket),
                pin: Some(mover.to_string()),
                ..RepositoryAccess::default()
            },
            session: session.to_string(),
            disks: vec![disk.clone()],
            reconnect_seconds: 300,
        };
        let work = work.to_json().map_err(|error| failed(FailureKind::Internal, error))?;
        let text = format!("to {}", disk.file.display());
        self.say(Severity::Info, Some(&disk.label), &text);
        fleet.run_task(self.proxy, task, work, Vec::new())
    }

    /// Listens to a task until it ends, or is given up with its proxy.
    async fn watch(
        &self,
        handle: &mut TaskHandle,
        disk: &DiskRestore,
    ) -> Result<TaskOutcome, Failure> {
        let mut wish = self.wish.clone();
        let (mut gone, mut stopped): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            tokio::select! {
                event = handle.next() => match event {
                    TaskEvent::Progress(disks) => disks.iter().for_each(|disk| self.show(disk)),
                    TaskEvent::Ended(outcome) => return Ok(outcome),
                    TaskEvent::MoverLost { .. } | TaskEvent::MoverBack => {}
                },
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = wish.changed(), if stopped.is_none() => {}
            }
            let now = Instant::now();
            if stopped.is_none() && self.wish.borrow().not_to_begin().is_some() {
                stopped = Some(now);
                handle.stop();
            }
            gone = match self.parts.mover_of_proxy(&self.plan.proxy) {
                Some(_) => None,
                None => gone.or(Some(now)),
            };
            let is_over = gone.is_some_and(|since| now - since > self.parts.proxy_back_within)
                || stopped.is_some_and(|since| now - since > STOPPED_WITHIN);
            if is_over {
                handle.stop();
                let text = format!(
                    "disk {}: proxy {} is gone in the middle of it; {} is not there, or is whole",
                    disk.label,
                    self.plan.proxy,
                    disk.file.display()
                );
                return Err(failed(FailureKind::Network, text));
            }
        }
    }

    fn show(&self, disk: &DiskProgress) {
        let (session, vm) = (self.session, self.plan.name.clone());
        self.parts.live.tell(Change::Progress { session, run: session, vm, disk: disk.clone() });
    }

    /// What a task's end means.
    fn conclude(
        &self,
        disk: &DiskRestore,
        outcome: Result<TaskOutcome, Failure>,
    ) -> Result<DiskRestored, Failure> {
        let because = |kind, why: String| Err(failed(kind, format!("disk {}: {why}", disk.label)));
        match outcome? {
            TaskOutcome::Done(report) => {
                let done = serde_json::from_slice::<RestoreDone>(&report);
                let restored = done.ok().and_then(|mut done| done.disks.pop());
                let Some(restored) = restored.filter(|restored| restored.file == disk.file) else {
                    let text = format!("proxy {} reported something else", self.plan.proxy);
                    return because(FailureKind::Internal, text);
                };
                let text = format!(
                    "{} is whole: {} bytes, {} blocks checked, {:.1} s, bottleneck {}",
                    restored.file.display(),
                    restored.size_bytes,
                    restored.verified_blocks,
                    restored.seconds,
                    restored.bottleneck
                );
                self.say(Severity::Info, Some(&disk.label), &text);
                Ok(restored)
            }
            TaskOutcome::Failed(failure) => Err(failure),
            TaskOutcome::Stopped => {
                because(FailureKind::Source, "stopped; nothing of it is left".to_owned())
            }
            TaskOutcome::Died(why) => {
                let text = format!(
                    "proxy {}: {why}; if a file {}.*.unfinished is left there, remove it, then \
                     restore again",
                    self.plan.proxy,
                    disk.file.display()
                );
                because(FailureKind::Network, text)
            }
        }
    }
}

#[cfg(test)]
#[path = "restore/tests.rs"]
mod tests;
