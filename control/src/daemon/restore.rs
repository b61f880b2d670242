//! Restores, as sessions: disks of a point to files of a proxy, or to a new machine of a vCenter, a
//! mover's task for each.
//!
//! In: what is asked for. Out: a session with its log, live numbers, and what became of each disk in
//! its totals. What will be done is planned ([`plan`]) and written down before the first task is told,
//! names of tasks, files and of the machine included, so that a gantryd that was interrupted takes the
//! same up again. A file has its name only once its disk is whole; what is not whole the mover removes,
//! and of a machine that is not whole nothing stays ([`machine`]). Must not: touch block data.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use gantry_api::views::{RestoreRequest, RestoreTarget};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{PeerId, TaskId};
use gantry_common::stages::add_up;
use gantry_common::work::DiskRestored;
use gantry_database::model::{
    EventRecord, Id, Repository, SessionKind, SessionRecord, SessionResult, SessionState,
    SessionTotals, Severity, Trigger,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Parts;
use super::live::Change;
use crate::fleet::TaskHandle;
use crate::run::site::Wish;
use crate::run::{failed, now_ms};

mod disk;
mod machine;
mod place;
mod plan;

use plan::Plan;

/// How long a proxy that is gone is usually waited for.
pub const PROXY_BACK_WITHIN: Duration = Duration::from_secs(60);

/// One restore at work.
#[derive(Clone)]
struct Restore {
    parts: Parts,
    session: Id,
    plan: Plan,
    repository: Repository,
    proxy: PeerId,
    wish: watch::Receiver<Wish>,
    /// An interrupted gantryd has begun it.
    is_left: bool,
    /// What is made of it cannot be whole any more.
    given_up: Arc<AtomicBool>,
}

/// What became of a restore.
#[derive(Default)]
struct Outcome {
    restored: Vec<DiskRestored>,
    failure: Option<Failure>,
    /// All is there, and something must be done by hand.
    warning: Option<String>,
    /// The new machine, for the session's totals.
    machine: Value,
    handles: Vec<TaskHandle>,
}

/// Begins a restore, and gives the session that was begun.
///
/// # Errors
/// `Usage`: what is asked for is not there, or is taken. `Network`: the proxy or the repository's mover
/// is not connected, vCenter does not answer. Else of the database.
pub async fn begin(
    parts: &Parts,
    request: RestoreRequest,
    who: &str,
) -> Result<SessionRecord, Failure> {
    let repository = parts.repository(request.repository)?;
    let points = parts.fleet.points(repository.mover, &request.name, false).await?;
    let point = plan::choose_point(points, &request)?;
    let plan = match &request.target {
        RestoreTarget::Files { proxy, folder } => {
            let proxy = parts.proxy_names(&[*proxy]).pop_first();
            let no_proxy = || failed(FailureKind::Usage, "there is no such proxy");
            let proxy = proxy.ok_or_else(no_proxy)?;
            if parts.mover_of_proxy(&proxy).is_none() {
                let text = format!("proxy {proxy} is not connected");
                return Err(failed(FailureKind::Network, text));
            }
            plan::to_files(&request, &point, proxy, Path::new(folder))?
        }
        RestoreTarget::NewVm { .. } => place::plan(parts, &request, &repository, &point).await?,
    };
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
        match prepare(&parts, &record, wish, is_left) {
            Ok(restore) => restore.all(record).await,
            Err(failure) => {
                let failure = Some(failure);
                parts.finish(ended(record, &Outcome { failure, ..Outcome::default() })).await;
            }
        }
    });
}

fn prepare(
    parts: &Parts,
    record: &SessionRecord,
    wish: watch::Receiver<Wish>,
    is_left: bool,
) -> Result<Restore, Failure> {
    let plan = serde_json::from_value::<Plan>(record.document["plan"].clone());
    let plan = plan.map_err(|error| failed(FailureKind::Internal, error))?;
    let repository = parts.repository(plan.repository)?;
    let proxy = parts.known_mover_of_proxy(&plan.proxy).ok_or_else(|| {
        let text = format!("proxy {} is not known any more", plan.proxy);
        failed(FailureKind::Usage, text)
    })?;
    let (parts, session) = (parts.clone(), record.id);
    let given_up = Arc::default();
    Ok(Restore { parts, session, plan, repository, proxy, wish, is_left, given_up })
}

/// A session's end.
fn ended(mut record: SessionRecord, outcome: &Outcome) -> SessionRecord {
    let Outcome { restored, failure, warning, machine, .. } = outcome;
    let mut stages = Vec::new();
    restored.iter().for_each(|disk| add_up(&mut stages, &disk.stages));
    let sum = |bytes: fn(&DiskRestored) -> u64| restored.iter().map(bytes).sum();
    record.totals = SessionTotals {
        vms: 1,
        vms_done: u64::from(failure.is_none()),
        vms_failed: u64::from(failure.is_some()),
        disks: restored.len() as u64,
        processed_bytes: sum(|disk| disk.size_bytes),
        read_bytes: sum(|disk| disk.transferred_bytes),
        transferred_bytes: sum(|disk| disk.transferred_bytes),
        stored_bytes: 0,
        more: json!({ "restored": restored, "machine": machine, "stages": stages }),
    };
    (record.result, record.reason) = match (failure, warning) {
        (Some(failure), _) => (Some(SessionResult::Failed), Some(failure.to_string())),
        (None, Some(warning)) => (Some(SessionResult::Warning), Some(warning.clone())),
        (None, None) => (Some(SessionResult::Success), None),
    };
    record
}

impl Restore {
    async fn all(self, record: SessionRecord) {
        let Plan { point, proxy, .. } = &self.plan;
        let verb = if self.is_left { "goes on" } else { "begins" };
        let outcome = match &self.plan.machine {
            None => {
                self.info(&format!("{verb}: point {point} to files of proxy {proxy}"));
                self.disks(self.plan.disks.iter().filter_map(|disk| disk.to.clone()).collect())
                    .await
            }
            Some(machine) => {
                let (name, folder, why) = (&machine.name, &machine.folder, &machine.why);
                self.info(&format!(
                    "{verb}: point {point} to the new machine '{name}' in {folder}"
                ));
                self.info(&format!("proxy {proxy} writes its disks: {why}"));
                self.machine(machine).await
            }
        };
        let record = ended(record, &outcome);
        self.parts.finish(record).await;
        // Only now: an interrupted gantryd asks for every task's end again.
        outcome.handles.into_iter().for_each(TaskHandle::forget);
    }

    fn info(&self, text: &str) {
        self.say(Severity::Info, None, text);
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
}
