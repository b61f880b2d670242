//! Walks a run through its states: saves, acts, saves.
//!
//! In: a document in any state, also one that an interrupted control plane left. Out: the same
//! document, ended; its outcome. Invariant: whatever a step fails with, the run goes through clearing.
//! Must not: tell a point that the repository has not committed.

use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{SessionId, TaskId};
use gantry_common::source::SourceSpec;
use gantry_common::work::{BackupWork, DiskWork};
use tokio::sync::{Mutex, watch};

use super::changes::Changes;
use super::disk::{Halt, PlannedDisk};
use super::document::{DiskTask, Event, Frozen, Outcome, RunDocument, RunState, TaskState};
use super::prepare::{self, Prepared, Subject};
use super::roads::Roads;
use super::settings::Quiesce;
use super::site::{Severity, Site, Task, TaskEvent};
use super::{Context, failed, guest};
use crate::cbt::PolicyOutcome;
use crate::ledger::Undo;
use crate::limits;
use crate::mover::PointFacts;
use crate::snapshots::create::{self, NewRequest, SnapshotError};
use crate::snapshots::{FrozenDisk, Mark, Snapshot};
use crate::transport::TransportMode;

/// How often disks are read again because the repository lost what it had.
const COMMITS_MAX: u32 = 3;

/// Copies the disks of one frozen machine.
pub(super) struct Run<'a, S: Site> {
    pub(super) context: &'a Context<'a, S>,
    pub(super) id: SessionId,
    pub(super) full: bool,
    pub(super) roads: Roads<'a, S>,
    subject: &'a Subject,
    document: Mutex<&'a mut RunDocument>,
}

/// 16 random bytes: the id of a run or of a task.
///
/// # Errors
/// `Internal`: the system gives none.
pub fn random_id() -> Result<[u8; 16], Failure> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random)
        .map_err(|error| failed(FailureKind::Internal, format!("random numbers: {error}")))?;
    Ok(random)
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Runs to the end. Errors of single steps become the outcome; what is returned as an error is that
/// the document could not be saved, so that nothing more may be done: it is gone on with later.
///
/// # Errors
/// Of saving the document.
pub async fn drive<S: Site>(
    context: &Context<'_, S>,
    document: &mut RunDocument,
) -> Result<Outcome, Failure> {
    loop {
        match &document.state {
            RunState::Ended { outcome } => return Ok(outcome.clone()),
            RunState::Clearing { .. } => {
                clear(context, document).await?;
            }
            _ => {
                let stepped = step(context, document).await;
                if let Err(failure) = stepped {
                    let is_waiting = matches!(document.state, RunState::Waiting);
                    let stopped = context.site.stopped(is_waiting);
                    let outcome =
                        stopped.map_or(Outcome::Failed(failure.clone()), Outcome::Stopped);
                    context.say(Severity::Error, None, &format!("no restore point: {failure}"));
                    note(context, document, Event::GiveUp(outcome)).await?;
                }
            }
        }
    }
}

/// Takes an event in and saves.
pub(super) async fn note<S: Site>(
    context: &Context<'_, S>,
    document: &mut RunDocument,
    event: Event,
) -> Result<(), Failure> {
    document.apply(event).map_err(|error| failed(FailureKind::Internal, error))?;
    context.site.save(document).await
}

async fn step<S: Site>(
    context: &Context<'_, S>,
    document: &mut RunDocument,
) -> Result<(), Failure> {
    match document.state.clone() {
        RunState::Waiting => {
            // A guest that waits since an interrupted attempt is waiting no longer.
            guest::thaw_left(context, document).await?;
            // A snapshot of an interrupted attempt goes first: only one of a run may stand.
            remove_snapshot(context, document).await?;
            let request = prepare::admission(context, document)?;
            let mut wish = context.site.wish();
            let stopped = async {
                let wish = wish.wait_for(|wish| wish.not_to_begin().is_some()).await;
                wish.ok().and_then(|wish| wish.not_to_begin().map(str::to_owned))
            };
            tokio::select! {
                admitted = context.site.admit(request) => admitted?,
                Some(why) = stopped => return Err(failed(FailureKind::Source, why)),
            }
            let prepared = prepare::prepare(context, &document.vm, document.full).await?;
            freeze(context, document, prepared).await
        }
        RunState::Freezing { .. } => {
            Err(failed(FailureKind::Internal, "a run was left while its snapshot was made"))
        }
        RunState::Copying | RunState::Committing => {
            let frozen = document.frozen.clone();
            let frozen = frozen.ok_or_else(|| {
                failed(FailureKind::Internal, "a run that copies has no frozen disks")
            })?;
            let (subject, snapshot, base) = recover(context, document, &frozen).await?;
            copy_and_commit(context, document, (&subject, &snapshot, base.as_ref())).await
        }
        RunState::Clearing { .. } | RunState::Ended { .. } => Ok(()),
    }
}

/// Makes the snapshot, then copies: in one go, since the scheduler's place is for both.
async fn freeze<S: Site>(
    context: &Context<'_, S>,
    document: &mut RunDocument,
    prepared: Prepared,
) -> Result<(), Failure> {
    let Prepared { subject, wanted, vm_config, name, base } = prepared;
    let mark = Mark::new(document.run, context.owner);
    note(context, document, Event::Freeze { snapshot: mark.name() }).await?;
    context.ledger.begin(
        &document.run.to_string(),
        Undo::RemoveSnapshot {
            vcenter: context.vcenter_id.to_owned(),
            vm: document.vm.clone(),
            vm_name: document.vm_name.clone(),
            snapshot: mark.name(),
        },
    )?;
    guest::freeze(context, document, &subject).await?;
    let created_ms = now_ms();
    let made = make(context, &subject, &mark).await;
    let thawed = guest::thaw(context, document, &subject).await;
    let mut snapshot = made?;
    context.info(None, &format!("snapshot '{}' was made", snapshot.name));
    thawed?;
    snapshot.disks.retain(|disk| wanted.contains(&disk.facts.key));
    if snapshot.disks.len() != wanted.len() {
        return Err(failed(
            FailureKind::Source,
            format!(
                "the snapshot holds {} of the {} disks that are to be backed up: were disks removed \
                 just now? Run the backup again",
                snapshot.disks.len(),
                wanted.len()
            ),
        ));
    }
    let disk = |disk: &FrozenDisk| DiskTask {
        key: disk.facts.key,
        label: disk.facts.label.to_string(),
        identity: prepare::identity(context.vcenter_id, &subject.facts, &disk.facts),
        size_bytes: disk.facts.capacity_bytes,
        datastore: disk.facts.datastore_name().to_owned(),
        change_id: disk.facts.change_id.as_ref().map(|id| id.to_string()),
        state: TaskState::Waiting,
        failed: Vec::new(),
    };
    let frozen = Frozen {
        snapshot: snapshot.name.clone(),
        created_ms,
        name,
        vm_config,
        base: base.as_ref().map(|point| point.point.clone()),
        disks: snapshot.disks.iter().map(disk).collect(),
    };
    note(context, document, Event::Frozen(frozen)).await?;
    copy_and_commit(context, document, (&subject, &snapshot, base.as_ref())).await
}

/// Makes the snapshot, quiesced as the settings ask.
async fn make<S: Site>(
    context: &Context<'_, S>,
    subject: &Subject,
    mark: &Mark,
) -> Result<Snapshot, Failure> {
    let request = |quiesce: bool| NewRequest {
        vm: &subject.vm,
        mark,
        quiesce,
        timeout: Duration::from_secs(limits::SNAPSHOT_CREATE_SECONDS_MAX),
        cancel: None,
    };
    let vcenter = context.broker.vcenter();
    let wish = context.settings.quiesce;
    let made = match create::create(vcenter, request(wish != Quiesce::Off)).await {
        Err(SnapshotError::Call(error)) if wish == Quiesce::Fallback => {
            let text =
                format!("the guest was not quiesced, the snapshot is crash-consistent: {error}");
            context.warn(None, &text);
            create::create(vcenter, request(false)).await
        }
        made => made,
    };
    made.map_err(|error| failed(FailureKind::Source, error))
}

/// Machine, snapshot and base of a run that was interrupted while it copied.
async fn recover<S: Site>(
    context: &Context<'_, S>,
    document: &RunDocument,
    frozen: &Frozen,
) -> Result<(Subject, Snapshot, Option<PointFacts>), Failure> {
    let vcenter = context.broker.vcenter();
    let subject = prepare::subject(context, &document.vm, 1)?;
    let found = create::find(vcenter, &subject.vm, &frozen.snapshot).await;
    let found = found.map_err(|error| error.failure())?.ok_or_else(|| {
        let text = format!(
            "the snapshot '{}' is gone since the control plane was interrupted; the backup is made \
             anew",
            frozen.snapshot
        );
        failed(FailureKind::Source, text)
    })?;
    let disks = create::frozen_disks(vcenter, &subject.vm, &found.moref).await;
    let mut disks = disks.map_err(|error| error.failure())?;
    disks.retain(|disk| frozen.disks.iter().any(|task| task.key == disk.facts.key));
    if disks.len() != frozen.disks.len() {
        return Err(failed(FailureKind::Source, "the snapshot no longer holds the run's disks"));
    }
    let base = match &frozen.base {
        None => None,
        Some(base) => {
            let points = context.site.points(&frozen.name).await?;
            points.into_iter().find(|point| point.point == *base)
        }
    };
    context.info(None, "the control plane was interrupted; this run goes on from where it was");
    let snapshot = Snapshot { moref: found.moref, name: frozen.snapshot.clone(), disks };
    Ok((subject, snapshot, base))
}

async fn copy_and_commit<S: Site>(
    context: &Context<'_, S>,
    document: &mut RunDocument,
    (subject, snapshot, base): (&Subject, &Snapshot, Option<&PointFacts>),
) -> Result<(), Failure> {
    let (id, full) = (document.run, document.full);
    let planned = plan(context, document, (subject, snapshot, base)).await?;
    let roads = Roads::new(context, id, subject, snapshot.moref.clone());
    let run = Run { context, id, full, roads, subject, document: Mutex::new(document) };
    let result = run.copy_and_commit(&planned).await;
    run.roads.close_lease(result.is_ok()).await;
    result
}

/// What is to be read of each disk.
async fn plan<S: Site>(
    context: &Context<'_, S>,
    document: &RunDocument,
    (subject, snapshot, base): (&Subject, &Snapshot, Option<&PointFacts>),
) -> Result<Vec<PlannedDisk>, Failure> {
    let tracking = subject.tracking(context, document.full);
    let mut planned = Vec::new();
    for disk in &snapshot.disks {
        let identity = prepare::identity(context.vcenter_id, &subject.facts, &disk.facts);
        let held = prepare::held(base, &identity);
        let changes: Changes =
            tracking.of_disk(context.broker.vcenter(), snapshot, disk, held).await;
        let label = Some(&*disk.facts.label);
        context.info(label, &changes.reason);
        match &changes.outcome {
            PolicyOutcome::Go => {}
            PolicyOutcome::Warn(why) => context.warn(label, why),
            PolicyOutcome::Stop(why) => return Err(failed(FailureKind::Source, why)),
        }
        planned.push(PlannedDisk { disk: disk.clone(), changes });
    }
    Ok(planned)
}

impl<S: Site> Run<'_, S> {
    async fn copy_and_commit(&self, planned: &[PlannedDisk]) -> Result<(), Failure> {
        let mut commits = 0;
        loop {
            let frozen = self.frozen().await?;
            self.copy_all(&frozen, planned).await?;
            if matches!(self.document.lock().await.state, RunState::Copying) {
                self.record(Event::AllHeld).await?;
            }
            commits += 1;
            match self.commit().await {
                Ok(point) => {
                    self.context.info(None, &format!("restore point {point} was committed"));
                    return self.record(Event::Committed { point }).await;
                }
                Err(failure)
                    if matches!(failure.kind, FailureKind::Source | FailureKind::Network)
                        && commits < COMMITS_MAX =>
                {
                    // What was held is not all there any more: the snapshot still is.
                    self.context
                        .warn(None, &format!("the disks are gone through again: {failure}"));
                    for disk in &frozen.disks {
                        self.record(Event::Lost { key: disk.key }).await?;
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Copies every disk that is not held yet, all at once as far as there are slots.
    async fn copy_all(&self, frozen: &Frozen, planned: &[PlannedDisk]) -> Result<(), Failure> {
        let (abandon, abandoned) = watch::channel(false);
        let copies = planned.iter().map(|planned| {
            let halt = Halt { wish: self.context.site.wish(), abandoned: abandoned.clone() };
            let abandon = &abandon;
            async move {
                let result = self.copy_disk(frozen, planned, halt).await;
                if let Err(failure) = &result
                    && !abandon.send_replace(true)
                {
                    return Err(failure.clone());
                }
                Ok(())
            }
        });
        // The first failure counts; the others are its consequence.
        let results = futures_util::future::join_all(copies).await;
        results.into_iter().collect()
    }

    /// Commits the point out of what the tasks have made durable. Doing it twice does no harm.
    async fn commit(&self) -> Result<String, Failure> {
        let frozen = self.frozen().await?;
        let site = self.context.site;
        let known = site.proxies();
        let held_by = frozen.disks.iter().find_map(|disk| match &disk.state {
            TaskState::Held { proxy, .. } => Some(proxy),
            _ => None,
        });
        let proxy = known.iter().find(|proxy| Some(&proxy.id) == held_by).or(known.first());
        let proxy = proxy.ok_or_else(|| failed(FailureKind::Network, "no proxy is there"))?;
        let task = TaskId(random_id()?);
        let disks = frozen.disks.iter().map(|disk| DiskWork {
            source: SourceSpec::Durable { label: disk.label.clone(), size_bytes: disk.size_bytes },
            identity: disk.identity.clone(),
            changed_extents: None,
            allocated_extents: None,
            change_id: disk.change_id.clone(),
            read_digest: disk.read_digest(),
        });
        let is_nfc = |disk: &DiskTask| {
            matches!(disk.state, TaskState::Held { mode: TransportMode::Nfc, .. })
        };
        let full = self.full || frozen.disks.iter().any(is_nfc);
        let work = BackupWork {
            disks: disks.collect(),
            full,
            ..self.work(&frozen, &proxy.id, task).await?
        };
        let work =
            serde_json::to_vec(&work).map_err(|error| failed(FailureKind::Internal, error))?;
        let mut running = site.start(&proxy.id, task, work).await?;
        let end = loop {
            match running.next().await {
                TaskEvent::Progress(_) => {}
                end => break end,
            }
        };
        site.forget(&proxy.id, task);
        match end {
            TaskEvent::Done(report) => {
                let point = report["point"].as_str().map(str::to_owned);
                point.ok_or_else(|| {
                    failed(FailureKind::Internal, "the mover committed and named no point")
                })
            }
            TaskEvent::Failed(failure) => Err(failure),
            TaskEvent::Lost(why) => Err(failed(FailureKind::Network, why)),
            TaskEvent::Stopped | TaskEvent::Progress(_) => {
                Err(failed(FailureKind::Source, "the commit was stopped"))
            }
        }
    }

    async fn frozen(&self) -> Result<Frozen, Failure> {
        let document = self.document.lock().await;
        let frozen = document.frozen.clone();
        frozen.ok_or_else(|| failed(FailureKind::Internal, "the run has no frozen disks"))
    }

    pub(super) fn identity(&self, disk: &FrozenDisk) -> String {
        prepare::identity(self.context.vcenter_id, &self.subject.facts, &disk.facts)
    }

    /// Takes an event in and saves.
    pub(super) async fn record(&self, event: Event) -> Result<(), Failure> {
        let mut document = self.document.lock().await;
        note(self.context, &mut document, event).await
    }

    pub(super) async fn disk_state(&self, key: i32) -> TaskState {
        self.of_disk(key, |disk| disk.state.clone()).await.unwrap_or(TaskState::Waiting)
    }

    pub(super) async fn failed_roads(&self, key: i32) -> Vec<(String, TransportMode)> {
        self.of_disk(key, |disk| disk.failed.clone()).await.unwrap_or_default()
    }

    async fn of_disk<T>(&self, key: i32, look: impl FnOnce(&DiskTask) -> T) -> Option<T> {
        let document = self.document.lock().await;
        let disks = &document.frozen.as_ref()?.disks;
        disks.iter().find(|disk| disk.key == key).map(look)
    }
}

/// Undoes what stands in vSphere. What cannot be undone stays in the ledger, and is told.
async fn clear<S: Site>(
    context: &Context<'_, S>,
    document: &mut RunDocument,
) -> Result<(), Failure> {
    guest::thaw_left(context, document).await?;
    if let Err(failure) = remove_snapshot(context, document).await {
        context.warn(None, &format!("it is removed at the next chance: {failure}"));
    }
    guest::after_success(context, document).await?;
    note(context, document, Event::Cleared).await
}

/// Removes the run's snapshot, if the ledger says that one may stand.
async fn remove_snapshot<S: Site>(
    context: &Context<'_, S>,
    document: &RunDocument,
) -> Result<(), Failure> {
    let run = document.run.to_string();
    let pauses = &context.settings.removal_pauses;
    let vcenter = context.broker.vcenter();
    let mut open = context.ledger.open_of(&run);
    // The snapshot's removal detaches disks itself, in each of its rounds; a lease holds it.
    open.sort_by_key(|open| match open.undo {
        Undo::AbortLease { .. } => 0,
        Undo::RemoveSnapshot { .. } => 1,
        Undo::DetachDisk { .. } => 2,
        Undo::RemoveMadeVm { .. } => 3,
    });
    for open in open {
        let undone = super::undo::undo(vcenter, &open, context.ledger, pauses).await;
        let line = undone?;
        context.ledger.done(open.number)?;
        context.info(None, &line);
    }
    Ok(())
}
