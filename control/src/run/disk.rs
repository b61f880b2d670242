//! One disk of a run: a proxy and a road for it, then its mover's task, until its blocks are durable.
//!
//! In: the frozen disk, what is to be read of it. Out: the disk is held in the repository, or the
//! reason why it cannot be. A road that fails is not tried again on that proxy; a proxy that dies is
//! replaced, and what was durable is taken over. Invariant: the task stands in the document before
//! its mover is told, and what its road needed is undone after its end.

use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{SessionId, TaskId};
use gantry_common::work::{BackupWork, DiskWork};
use tokio::sync::watch;

use super::changes::Changes;
use super::document::{Event, Frozen, TaskState};
use super::drive::{Run, random_id};
use super::failed;
use super::roads::COOKIE_EVERY;
use super::site::{PlaceRequest, Placement, Release, Site, Task, TaskEvent, Wish};
use crate::snapshots::FrozenDisk;
use crate::transport::{Judged, Need, TransportMode, roads};

/// How often a disk goes on after its proxy or connection was lost.
const LOSSES_MAX: u32 = 5;
/// How long a proxy is waited for when there is none.
const PROXIES_WITHIN: Duration = Duration::from_secs(60);
/// How long a task that was told to stop may take to say so.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// A frozen disk with what is to be read of it.
pub(super) struct PlannedDisk {
    pub(super) disk: FrozenDisk,
    pub(super) changes: Changes,
}

/// What a disk is told while it is copied.
pub(super) struct Halt {
    /// The run's own wish.
    pub(super) wish: watch::Receiver<Wish>,
    /// Becomes true when another disk has failed for good.
    pub(super) abandoned: watch::Receiver<bool>,
}

impl Halt {
    /// Waits until there is a reason to stop.
    async fn halted(&mut self) -> Failure {
        let stopped = async {
            let wish = self.wish.wait_for(|wish| wish.stop().is_some()).await;
            wish.ok().and_then(|wish| wish.stop().map(str::to_owned))
        };
        let abandoned =
            async { self.abandoned.wait_for(|abandoned| *abandoned).await.ok().map(|_| ()) };
        tokio::select! {
            Some(why) = stopped => failed(FailureKind::Source, why),
            Some(()) = abandoned => {
                failed(FailureKind::Source, "another disk of this machine failed")
            }
            else => std::future::pending().await,
        }
    }
}

/// A task that runs.
struct Running<T> {
    id: TaskId,
    proxy: String,
    mode: TransportMode,
    task: T,
}

/// What came of starting a task.
enum Begun<T> {
    Running(Running<T>),
    /// It could not be started, by this road at least.
    Refused(TaskId, Failure),
}

/// What became of a try.
enum Tried {
    Held,
    Again,
}

impl<S: Site> Run<'_, S> {
    /// Copies one disk.
    ///
    /// # Errors
    /// What keeps the whole run from its point.
    pub(super) async fn copy_disk(
        &self,
        frozen: &Frozen,
        planned: &PlannedDisk,
        halt: Halt,
    ) -> Result<(), Failure> {
        let copied = self.try_disk(frozen, planned, halt).await;
        let release = if copied.is_ok() { Release::Held } else { Release::GivenUp };
        self.context.site.release(planned.disk.facts.key, release);
        copied
    }

    async fn try_disk(
        &self,
        frozen: &Frozen,
        planned: &PlannedDisk,
        mut halt: Halt,
    ) -> Result<(), Failure> {
        let key = planned.disk.facts.key;
        let mut losses = 0;
        loop {
            let begun = match self.disk_state(key).await {
                TaskState::Held { .. } => return Ok(()),
                TaskState::Running { task, proxy, mode } => {
                    self.adopt(planned, task, proxy, mode).await
                }
                TaskState::Waiting => self.begin(frozen, planned, &mut halt).await?,
            };
            let (id, proxy, event) = match begun {
                Begun::Running(mut running) => {
                    let event = self.follow(planned, &mut running, &mut halt).await;
                    (running.id, Some(running.proxy), event)
                }
                Begun::Refused(id, failure) => (id, None, Ok(TaskEvent::Failed(failure))),
            };
            self.roads.close_disk(&planned.disk.facts.file).await;
            let tried = match event {
                Ok(event) => self.take_in(planned, id, event, &mut losses).await,
                Err(failure) => Err(failure),
            };
            // Only now: what a mover has said is written down.
            if let Some(proxy) = proxy {
                self.context.site.forget(&proxy, id);
            }
            match tried? {
                Tried::Held => return Ok(()),
                Tried::Again => {}
            }
        }
    }

    /// A task that ran when the control plane was interrupted.
    async fn adopt(
        &self,
        planned: &PlannedDisk,
        id: TaskId,
        proxy: String,
        mode: TransportMode,
    ) -> Begun<S::Task> {
        let label = &planned.disk.facts.label;
        self.context.info(Some(label), &format!("goes on on proxy {proxy}, by {mode}"));
        if needs_cookie(mode)
            && let Err(failure) = self.roads.set_cookie(&proxy, id).await
        {
            return Begun::Refused(id, failure);
        }
        match self.context.site.adopt(&proxy, id).await {
            Ok(task) => Begun::Running(Running { id, proxy, mode, task }),
            Err(failure) => {
                let text = format!("proxy {proxy}: {failure}");
                Begun::Refused(id, failed(FailureKind::Network, text))
            }
        }
    }

    /// Finds a proxy, opens a road, starts the task.
    async fn begin(
        &self,
        frozen: &Frozen,
        planned: &PlannedDisk,
        halt: &mut Halt,
    ) -> Result<Begun<S::Task>, Failure> {
        let label = planned.disk.facts.label.to_string();
        self.wait_for_proxies().await;
        let request = self.request(planned).await?;
        let placement = tokio::select! {
            placement = self.context.site.place(request) => placement?,
            why = halt.halted() => return Err(why),
        };
        let Placement { proxy, mode, reason } = placement;
        self.context.info(Some(&label), &format!("proxy {proxy}, transport mode {mode}: {reason}"));
        let id = TaskId(random_id()?);
        let start =
            Event::Start { key: planned.disk.facts.key, task: id, proxy: proxy.clone(), mode };
        self.record(start).await?;
        Ok(match self.start(frozen, planned, (id, &proxy, mode)).await {
            Ok(task) => Begun::Running(Running { id, proxy, mode, task }),
            Err(failure) => Begun::Refused(id, failure),
        })
    }

    /// Waits until any proxy is there: all may be away for the moment that a restart takes.
    async fn wait_for_proxies(&self) {
        let until = tokio::time::Instant::now() + PROXIES_WITHIN;
        while self.context.site.proxies().is_empty() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Which proxies could copy the disk, and by which roads that have not failed.
    async fn request(&self, planned: &PlannedDisk) -> Result<PlaceRequest, Failure> {
        let label = planned.disk.facts.label.to_string();
        let key = planned.disk.facts.key;
        let need = if planned.changes.is_full() { Need::Full } else { Need::Parts };
        let settings = self.context.settings;
        let failed_roads = self.failed_roads(key).await;
        let (mut candidates, mut reasons) = (Vec::new(), Vec::new());
        for proxy in self.context.site.proxies() {
            let judged = roads(&planned.disk.for_transport(), &proxy.facts, &settings.modes, need);
            for road in judged.closed {
                reasons.push(format!("not {} by {}: {}", road.mode, proxy.id, road.reason));
            }
            let is_new = |road: &Judged| match settings.failover {
                true => !failed_roads.contains(&(proxy.id.clone(), road.mode)),
                // Another proxy may still try the same mode.
                false => {
                    failed_roads.iter().all(|(id, mode)| *mode == road.mode && *id != proxy.id)
                }
            };
            let open: Vec<Judged> = judged.open.into_iter().filter(is_new).collect();
            if !open.is_empty() {
                candidates.push((proxy.id, open));
            }
        }
        if failed_roads.is_empty() {
            reasons.iter().for_each(|reason| self.context.info(Some(&label), reason));
        }
        if candidates.is_empty() {
            let tried: Vec<String> = failed_roads
                .iter()
                .map(|(proxy, mode)| format!("{mode} by {proxy} failed"))
                .collect();
            let all: Vec<String> = tried.into_iter().chain(reasons).collect();
            let text = format!("no transport mode reaches {label}: {}", all.join("; "));
            return Err(failed(FailureKind::Source, text));
        }
        let todo_bytes = planned.changes.todo_bytes(planned.disk.facts.capacity_bytes);
        Ok(PlaceRequest { run: self.id, key, label, todo_bytes, candidates })
    }

    async fn start(
        &self,
        frozen: &Frozen,
        planned: &PlannedDisk,
        (id, proxy, mode): (TaskId, &str, TransportMode),
    ) -> Result<S::Task, Failure> {
        let site = self.context.site;
        let facts = site.proxies().into_iter().find(|known| known.id == proxy);
        let facts = facts.ok_or_else(|| {
            failed(FailureKind::Network, format!("proxy {proxy} is not there any more"))
        })?;
        let source = self.roads.open(&facts, id, mode, &planned.disk).await?;
        let Changes { changed, allocated, .. } = &planned.changes;
        let disk = DiskWork {
            source,
            identity: self.identity(&planned.disk),
            changed_extents: changed.clone(),
            allocated_extents: allocated.clone(),
            change_id: planned.disk.facts.change_id.as_ref().map(|id| id.to_string()),
            read_digest: None,
        };
        let work = BackupWork {
            hold: true,
            full: self.full || mode == TransportMode::Nfc,
            disks: vec![disk],
            ..self.work(frozen, proxy, id).await?
        };
        let work =
            serde_json::to_vec(&work).map_err(|error| failed(FailureKind::Internal, error))?;
        site.start(proxy, id, work).await
    }

    /// Listens to the task until it ends, renews its cookie, stops it if there is a reason.
    async fn follow(
        &self,
        planned: &PlannedDisk,
        running: &mut Running<S::Task>,
        halt: &mut Halt,
    ) -> Result<TaskEvent, Failure> {
        let site = self.context.site;
        let mut renewal = tokio::time::interval(COOKIE_EVERY);
        renewal.tick().await;
        loop {
            tokio::select! {
                event = running.task.next() => match event {
                    TaskEvent::Progress(disks) => {
                        disks.iter().for_each(|disk| site.progress(planned.disk.facts.key, disk));
                    }
                    end => return Ok(end),
                },
                _ = renewal.tick(), if needs_cookie(running.mode) => {
                    if let Err(failure) = self.roads.set_cookie(&running.proxy, running.id).await {
                        let text = format!("the session's cookie could not be renewed: {failure}");
                        self.context.warn(Some(&planned.disk.facts.label), &text);
                    }
                }
                why = halt.halted() => {
                    site.stop(&running.proxy, running.id).await;
                    let end = async {
                        while let TaskEvent::Progress(_) = running.task.next().await {}
                    };
                    let _ = tokio::time::timeout(STOP_WITHIN, end).await;
                    return Err(why);
                }
            }
        }
    }

    /// What a task's end means for the disk.
    async fn take_in(
        &self,
        planned: &PlannedDisk,
        task: TaskId,
        event: TaskEvent,
        losses: &mut u32,
    ) -> Result<Tried, Failure> {
        let (key, label) = (planned.disk.facts.key, &*planned.disk.facts.label);
        let failure = match event {
            TaskEvent::Done(report) => {
                self.tell_mover_log(label, &report);
                self.record(Event::Held { key, task, report }).await?;
                return Ok(Tried::Held);
            }
            TaskEvent::Failed(failure) if failure.kind == FailureKind::Source => {
                let text = format!("the next transport mode is tried: {failure}");
                self.context.warn(Some(label), &text);
                self.record(Event::TaskFailed { key, task, is_road_at_fault: true }).await?;
                self.context.site.release(key, Release::RoadFailed);
                return Ok(Tried::Again);
            }
            TaskEvent::Failed(failure) if failure.kind == FailureKind::Network => failure,
            TaskEvent::Failed(failure) => return Err(failure),
            TaskEvent::Lost(why) => failed(FailureKind::Network, why),
            TaskEvent::Stopped => {
                return Err(failed(FailureKind::Source, "the task was stopped on its mover"));
            }
            TaskEvent::Progress(_) => failed(FailureKind::Internal, "a task without an end"),
        };
        *losses += 1;
        if *losses > LOSSES_MAX {
            return Err(failure);
        }
        let text = format!("goes on from what is durable, on a proxy that is there: {failure}");
        self.context.warn(Some(label), &text);
        self.record(Event::TaskFailed { key, task, is_road_at_fault: false }).await?;
        self.context.site.release(key, Release::Lost);
        // Not in a tight loop while nobody is there.
        tokio::time::sleep(Duration::from_secs(u64::from(*losses))).await;
        Ok(Tried::Again)
    }

    /// The choices and remarks of a mover, and the alarm of its audit.
    fn tell_mover_log(&self, label: &str, report: &serde_json::Value) {
        for line in report["log"].as_array().into_iter().flatten().filter_map(|line| line.as_str())
        {
            self.context.info(Some(label), &format!("mover: {line}"));
        }
        let disks = report["disks"].as_array().into_iter().flatten();
        let wrong: u64 = disks.filter_map(|disk| disk["audit"]["wrong"].as_u64()).sum();
        if wrong > 0 {
            self.context.say(
                super::site::Severity::Warning,
                Some(label),
                &format!(
                    "ALARM: changed-block tracking left out {wrong} audited blocks that had changed; \
                     everything was read, and this point is right. Reset CBT of this machine"
                ),
            );
        }
    }

    /// What is the same for all work of this run.
    pub(super) async fn work(
        &self,
        frozen: &Frozen,
        proxy: &str,
        task: TaskId,
    ) -> Result<BackupWork, Failure> {
        let settings = self.context.settings;
        let session = SessionId(task.0);
        Ok(BackupWork {
            name: frozen.name.clone(),
            repository: self.context.site.access(proxy, session, &frozen.name).await?,
            session: Some(session.to_string()),
            created_ms: Some(frozen.created_ms),
            hold: false,
            disks: Vec::new(),
            snapshot: format!("{}/{}", self.context.vcenter_id, frozen.snapshot),
            base: frozen.base.clone(),
            full: self.full,
            audit_per_million: settings.audit_per_million,
            vm_config: frozen.vm_config.clone(),
            retention: settings.retention,
            block_size: settings.block_size,
            compression: settings.compression,
            rate: settings.rate,
            workers: None,
            tasks: 1,
            reconnect_seconds: 300,
        })
    }
}

fn needs_cookie(mode: TransportMode) -> bool {
    matches!(mode, TransportMode::Https | TransportMode::Nfc)
}
