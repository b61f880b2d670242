//! The disks of a restore: a mover's task for each, from its begin to what its end means.
//!
//! In: where each disk goes. Out: what was restored, or why not; live numbers on the way. A gantryd that
//! was interrupted takes up the tasks that the mover knows.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gantry_common::control::TaskOutcome;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{SessionId, TaskId};
use gantry_common::work::{
    DiskProgress, DiskRestore, DiskRestored, RepositoryAccess, RestoreDone, RestoreTo, RestoreWork,
};
use gantry_database::model::Severity;
use gantry_transport::Rights;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::plan::Planned;
use super::{Outcome, Restore};
use crate::daemon::live::Change;
use crate::fleet::{TaskEvent, TaskHandle};
use crate::run::failed;

/// Between two looks whether the proxy is there.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a stopped task may take to end.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// How long a ticket is good: longer than a disk takes.
const TICKET_VALID: Duration = Duration::from_secs(7 * 24 * 3600);

impl Restore {
    /// All disks, each to its place, to their ends. One that fails stops the others of a machine, and
    /// none that goes to a file.
    pub(super) async fn disks(&self, places: Vec<RestoreTo>) -> Outcome {
        let mut tasks = JoinSet::new();
        for (disk, to) in self.plan.disks.iter().cloned().zip(places) {
            let restore = self.clone();
            tasks.spawn(async move { restore.one(disk, to).await });
        }
        let mut outcome = Outcome::default();
        while let Some(joined) = tasks.join_next().await {
            let (handle, result) = joined.unwrap_or_else(|error| {
                (None, Err(failed(FailureKind::Internal, format!("a task ended: {error}"))))
            });
            outcome.handles.extend(handle);
            match result {
                Ok(disk) => outcome.restored.push(disk),
                Err(error) => {
                    self.say(Severity::Error, None, &error.to_string());
                    outcome.failure.get_or_insert(error);
                    // Without one of its disks there will be no machine.
                    self.given_up.store(self.plan.machine.is_some(), Ordering::Relaxed);
                }
            }
        }
        outcome.restored.sort_by_key(|disk| disk.to.to_string());
        outcome
    }

    /// One disk to its end; the handle of its task, to be forgotten later.
    async fn one(
        &self,
        disk: Planned,
        to: RestoreTo,
    ) -> (Option<TaskHandle>, Result<DiskRestored, Failure>) {
        let (mut task, work) = (disk.task, disk.work(to));
        if self.is_left {
            // The mover keeps an end until it is told to forget it. A task that it does not know was
            // never begun, or died with the mover; then the second is, if it is known, the one.
            for known in [disk.task, disk.second()] {
                task = known;
                let mut handle = match self.parts.fleet.adopt_task(self.proxy, known) {
                    Ok(handle) => handle,
                    Err(failure) => return (None, Err(failure)),
                };
                match self.watch(&mut handle, &work).await {
                    Ok(TaskOutcome::Died(_)) => handle.forget(),
                    outcome => return (Some(handle), self.conclude(&work, outcome)),
                }
            }
        }
        let mut handle = match self.start(task, &work).await {
            Ok(handle) => handle,
            Err(failure) => return (None, Err(failure)),
        };
        let outcome = self.watch(&mut handle, &work).await;
        (Some(handle), self.conclude(&work, outcome))
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
        let text = format!("to {}", disk.to);
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
            let is_unwanted = self.given_up.load(Ordering::Relaxed)
                || self.wish.borrow().not_to_begin().is_some();
            if stopped.is_none() && is_unwanted {
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
                    disk.label, self.plan.proxy, disk.to
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
                let Some(restored) = restored.filter(|restored| restored.to == disk.to) else {
                    let text = format!("proxy {} reported something else", self.plan.proxy);
                    return because(FailureKind::Internal, text);
                };
                let text = format!(
                    "{} is whole: {} bytes, {} blocks checked, {:.1} s, bottleneck {}",
                    restored.to,
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
                let left = match &disk.to {
                    RestoreTo::File(file) => format!(
                        "if a file {}.*.unfinished is left there, remove it, then restore again",
                        file.display()
                    ),
                    RestoreTo::NewDevice { .. } => "restore again".to_owned(),
                };
                let text = format!("proxy {}: {why}; {left}", self.plan.proxy);
                because(FailureKind::Network, text)
            }
        }
    }
}
