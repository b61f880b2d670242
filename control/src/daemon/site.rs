//! The site of a run under gantryd: the fleet's proxies, the scheduler's places, the database.
//!
//! In: the wishes of one run. Out: the same, from the parts of the service. A run that was interrupted
//! queues anew for the disks that are not durable yet. Must not:
//! know anything about vSphere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{PeerId, SessionId, TaskId};
use gantry_common::secret::Secret;
use gantry_common::work::{DiskProgress, RepositoryAccess};
use gantry_database::model::Id;
use gantry_scheduler::{
    Assignment, DiskRequest, ProxyName, SessionVm, TaskId as Number, VmRequest,
};
use gantry_transport::Rights;
use tokio::sync::{mpsc, watch};

use super::Parts;
use super::dispatcher::Turn;
use super::journal::RunJournal;
use super::traffic::{FlowFacts, FlowHandle, target_address};
use crate::fleet;
use crate::mover::{PointDisk, PointFacts};
use crate::run::document::{DiskTask, RunDocument, RunState, TaskState};
use crate::run::failed;
use crate::run::site::{
    AdmitDisk, AdmitRequest, PlaceRequest, Placement, Proxy, Release, Severity, Site, Wish,
};
use crate::transport::TransportMode;

mod task;

pub use task::FleetTask;

/// How long what waits for facts that nobody may ever change is waited for.
const HOPELESS_WITHIN: Duration = Duration::from_secs(60);
/// Of a mover that went away while its task began: rules that name no sources still hold.
const UNKNOWN_SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// Name of the file with the session's cookie.
const COOKIE: &str = "cookie";
/// How long a ticket is good: longer than a disk takes; it is void once its session has ended.
const TICKET_VALID: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is fixed for a run.
pub struct RunPlace {
    /// For the scheduler: the session and the machine.
    pub machine: SessionVm,
    /// The job's name.
    pub job: String,
    /// Its priority.
    pub priority: u8,
    /// Proxies that the job allows, by name; none: all.
    pub proxies: BTreeSet<String>,
    /// Modes that the job allows; none: all.
    pub modes: Vec<TransportMode>,
    /// Which vCenter: keeps datastores of the same name apart.
    pub vcenter: String,
    /// Name of the repository.
    pub repository: String,
    /// Its mover.
    pub repository_mover: PeerId,
    /// `gantry://HOST:PORT`.
    pub repository_address: String,
    /// The session.
    pub session: Id,
    /// The job, for the throttle.
    pub job_id: Id,
    /// The job's limit on the wire when the session began.
    pub job_rate: Option<u64>,
    /// Snapshots that a datastore may have at a time, as the job says.
    pub snapshots_max: u32,
}

/// What the scheduler has said so far.
#[derive(Debug, Default)]
struct Turns {
    may_freeze: bool,
    assigned: BTreeMap<Number, Assignment>,
    hopeless: Option<String>,
}

/// The site of one run.
pub struct FleetSite {
    parts: Parts,
    place: RunPlace,
    journal: RunJournal,
    wish: watch::Receiver<Wish>,
    turns: watch::Sender<Turns>,
    /// The scheduler's number of each disk, by device key; empty before the run has queued.
    numbers: Mutex<BTreeMap<i32, Number>>,
    /// Cookies of tasks that are about to be started.
    cookies: Mutex<BTreeMap<TaskId, Secret>>,
    started: Mutex<BTreeSet<TaskId>>,
    /// Where the disk of each task lies, and by which road it is read.
    roads: Mutex<BTreeMap<TaskId, (String, TransportMode)>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FleetSite {
    /// A site for one run.
    pub fn new(
        parts: Parts,
        place: RunPlace,
        journal: RunJournal,
        wish: watch::Receiver<Wish>,
    ) -> FleetSite {
        FleetSite {
            parts,
            place,
            journal,
            wish,
            turns: watch::Sender::default(),
            numbers: Mutex::default(),
            cookies: Mutex::default(),
            started: Mutex::default(),
            roads: Mutex::default(),
        }
    }

    /// The run has ended: its places are given back.
    pub fn leave(&self) {
        let numbers: Vec<Number> = locked(&self.numbers).values().copied().collect();
        self.parts.dispatcher.leave(&self.place.machine, &numbers);
    }

    /// Queues the disks of a run that goes on after gantryd was interrupted: those that are copied
    /// hold the slot that they have, the others wait for one.
    ///
    /// # Errors
    /// The queue is full.
    pub fn queue_again(&self, document: &RunDocument) -> Result<(), Failure> {
        if !matches!(document.state, RunState::Copying) {
            return Ok(());
        }
        self.note_roads(document);
        let disks = document.frozen.iter().flat_map(|frozen| &frozen.disks);
        let left: Vec<&DiskTask> = disks.filter(|disk| disk.report().is_none()).collect();
        let admitted = left.iter().map(|disk| AdmitDisk {
            key: disk.key,
            datastore: disk.datastore.clone(),
            size_bytes: disk.size_bytes,
        });
        let running = left.iter().filter_map(|disk| match &disk.state {
            TaskState::Running { proxy, mode, .. } => {
                Some((disk.key, (proxy.as_str().into(), *mode)))
            }
            _ => None,
        });
        match admitted.collect::<Vec<_>>() {
            none if none.is_empty() => Ok(()),
            admitted => {
                // Its snapshot stands.
                self.turns.send_modify(|turns| turns.may_freeze = true);
                self.queue(&admitted, Some(&running.collect()))
            }
        }
    }

    /// Remembers where the disks of running tasks lie.
    fn note_roads(&self, document: &RunDocument) {
        let disks = document.frozen.iter().flat_map(|frozen| &frozen.disks);
        let running = disks.filter_map(|disk| match &disk.state {
            TaskState::Running { task, mode, .. } => Some((*task, (disk.datastore.clone(), *mode))),
            _ => None,
        });
        *locked(&self.roads) = running.collect();
    }

    /// Queues the machine with the disks that need a place; `running` are disks, by key, of a machine
    /// whose snapshot stands.
    fn queue(
        &self,
        disks: &[AdmitDisk],
        running: Option<&BTreeMap<i32, (ProxyName, TransportMode)>>,
    ) -> Result<(), Failure> {
        let numbers = self.parts.dispatcher.numbers(disks.len());
        let keyed: BTreeMap<i32, Number> =
            disks.iter().map(|disk| disk.key).zip(numbers.iter().copied()).collect();
        let requests = disks.iter().zip(&numbers).map(|(disk, number)| DiskRequest {
            task: *number,
            datastore: self.parts.datastore_name(&self.place.vcenter, &disk.datastore),
            read_bytes: disk.size_bytes,
            refused: BTreeSet::new(),
        });
        let modes: Vec<TransportMode> = match self.place.modes.as_slice() {
            [] => TransportMode::ALL.to_vec(),
            some => some.to_vec(),
        };
        let request = VmRequest {
            session: self.place.machine.session.clone(),
            job: self.place.job.as_str().into(),
            priority: self.place.priority,
            vm: self.place.machine.vm.clone(),
            repositories: vec![self.place.repository.as_str().into()],
            // What an incremental takes is not known before the snapshot; a fraction is a fair guess,
            // and the repository's minimum of free space is kept in any case.
            store_bytes: disks.iter().map(|disk| disk.size_bytes / 8).sum(),
            modes: modes.into_iter().collect(),
            proxies: self.place.proxies.iter().map(|name| ProxyName::from(name.as_str())).collect(),
            disks: requests.collect(),
        };
        let running = running.map(|running| {
            let numbered =
                running.iter().filter_map(|(key, at)| Some((*keyed.get(key)?, at.clone())));
            numbered.collect::<BTreeMap<_, _>>()
        });
        let turns = self.parts.dispatcher.add(request, running.as_ref(), self.place.snapshots_max);
        let turns = turns.map_err(|error| failed(FailureKind::Source, error))?;
        *locked(&self.numbers) = keyed;
        self.listen(turns);
        Ok(())
    }

    /// Takes the scheduler's words in, and logs what it waits for.
    fn listen(&self, mut turns: mpsc::UnboundedReceiver<Turn>) {
        let (state, journal) = (self.turns.clone(), self.journal.clone());
        tokio::spawn(async move {
            while let Some(turn) = turns.recv().await {
                match turn {
                    Turn::SnapshotNow(reason) => {
                        journal.say(Severity::Info, None, &format!("its turn has come: {reason}"));
                        state.send_modify(|turns| turns.may_freeze = true);
                    }
                    Turn::Assigned(assignment) => state.send_modify(|turns| {
                        turns.hopeless = None;
                        turns.assigned.insert(assignment.task, assignment);
                    }),
                    Turn::Held { reason, is_hopeless, .. } => {
                        journal.say(Severity::Info, None, &format!("waits: {reason}"));
                        state.send_modify(|turns| turns.hopeless = is_hopeless.then_some(reason));
                    }
                }
            }
        });
    }

    /// Waits for the scheduler to say something that `look` accepts.
    async fn wait<T>(
        &self,
        mut look: impl FnMut(&mut Turns) -> Option<T> + Send,
    ) -> Result<T, Failure>
    where
        T: Send,
    {
        let mut changes = self.turns.subscribe();
        let mut hopeless_since = None;
        loop {
            let mut found = None;
            self.turns.send_if_modified(|turns| {
                found = look(turns);
                false
            });
            if let Some(found) = found {
                return Ok(found);
            }
            // A mover that restarts is back within seconds: what only it can end is waited for.
            let hopeless = changes.borrow_and_update().hopeless.clone();
            let now = tokio::time::Instant::now();
            let patience = match &hopeless {
                None => {
                    hopeless_since = None;
                    Duration::MAX
                }
                Some(_) => {
                    let since = *hopeless_since.get_or_insert(now);
                    HOPELESS_WITHIN.saturating_sub(now - since)
                }
            };
            match (tokio::time::timeout(patience, changes.changed()).await, hopeless) {
                (Ok(Ok(())), _) => {}
                (Err(_), Some(reason)) => return Err(failed(FailureKind::Source, reason)),
                _ => return Err(failed(FailureKind::Internal, "the scheduler is gone")),
            }
        }
    }

    /// A disk's task begins to send: the throttle hears of it. Nothing of a commit, which sends next
    /// to nothing.
    async fn flow(&self, mover: PeerId, task: TaskId) -> Option<FlowHandle> {
        let (datastore, mode) = locked(&self.roads).get(&task).cloned()?;
        let fleet = &self.parts.fleet;
        let repository = fleet.address_of(self.place.repository_mover);
        let target = target_address(&self.place.repository_address, repository).await?;
        let reads_itself = matches!(mode, TransportMode::Direct | TransportMode::Hotadd);
        let facts = FlowFacts {
            task,
            session: self.place.session,
            job: self.place.job_id.to_string().into(),
            job_rate: self.place.job_rate,
            source: fleet.address_of(mover).unwrap_or(UNKNOWN_SOURCE),
            target,
            restore: false,
            datastore: reads_itself
                .then(|| self.parts.datastore_name(&self.place.vcenter, &datastore)),
        };
        Some(self.parts.traffic.begin(facts))
    }

    fn mover(&self, proxy: &str) -> Result<fleet::MoverView, Failure> {
        self.parts
            .mover_of_proxy(proxy)
            .ok_or_else(|| failed(FailureKind::Network, format!("proxy {proxy} is not connected")))
    }
}

impl Site for FleetSite {
    type Task = FleetTask;

    fn say(&self, severity: Severity, disk: Option<&str>, text: &str) {
        self.journal.say(severity, disk, text);
    }

    fn progress(&self, key: i32, progress: &DiskProgress) {
        self.journal.progress(key, progress);
    }

    async fn save(&self, document: &RunDocument) -> Result<(), Failure> {
        self.note_roads(document);
        self.journal.save(document).await
    }

    async fn admit(&self, request: AdmitRequest) -> Result<(), Failure> {
        self.queue(&request.disks, None)?;
        self.wait(|turns| turns.may_freeze.then_some(())).await?;
        self.parts.dispatcher.opened(&self.place.machine);
        Ok(())
    }

    fn wish(&self) -> watch::Receiver<Wish> {
        self.wish.clone()
    }

    async fn points(&self, name: &str) -> Result<Vec<PointFacts>, Failure> {
        let points = self.parts.fleet.points(self.place.repository_mover, name, false).await?;
        let disk = |disk: gantry_common::wire::DiskSummary| PointDisk {
            identity: disk.identity,
            size_bytes: disk.size_bytes,
            change_id: disk.change_id,
        };
        let facts = points.into_iter().map(|point| PointFacts {
            point: point.point.to_string(),
            created_ms: point.created_ms,
            disks: point.disks.into_iter().map(disk).collect(),
        });
        Ok(facts.collect())
    }

    fn proxies(&self) -> Vec<Proxy> {
        let allowed =
            |name: &str| self.place.proxies.is_empty() || self.place.proxies.contains(name);
        let all = self.parts.proxies();
        all.into_iter().filter(|proxy| allowed(&proxy.id)).collect()
    }

    async fn place(&self, request: PlaceRequest) -> Result<Placement, Failure> {
        let number = locked(&self.numbers).get(&request.key).copied();
        let number = number.ok_or_else(|| {
            // The repository lost what it had: another attempt at the machine reads it again.
            let text = format!("{} has no place any more: the backup is made anew", request.label);
            failed(FailureKind::Source, text)
        })?;
        // A run that goes on after gantryd was interrupted has its snapshot already.
        self.wait(|turns| turns.may_freeze.then_some(())).await?;
        self.parts.dispatcher.opened(&self.place.machine);
        loop {
            let assignment = self.wait(|turns| turns.assigned.remove(&number)).await?;
            let (proxy, mode) = (assignment.proxy.to_string(), assignment.mode);
            let roads = request.candidates.iter().find(|(id, _)| *id == proxy);
            match roads.is_some_and(|(_, roads)| roads.iter().any(|road| road.mode == mode)) {
                true => {
                    let reason = assignment.reason.to_string();
                    return Ok(Placement { proxy, mode, reason });
                }
                // The scheduler knows datastores; what is special about this disk is known here.
                false => self.parts.dispatcher.road_failed(number),
            }
        }
    }

    fn release(&self, key: i32, release: Release) {
        let Some(number) = locked(&self.numbers).get(&key).copied() else { return };
        match release {
            Release::Held | Release::GivenUp => {
                locked(&self.numbers).remove(&key);
                self.parts.dispatcher.finished(number);
            }
            Release::RoadFailed => self.parts.dispatcher.road_failed(number),
            Release::Lost => self.parts.dispatcher.interrupted(number),
        }
    }

    async fn access(
        &self,
        proxy: &str,
        session: SessionId,
        name: &str,
    ) -> Result<RepositoryAccess, Failure> {
        let pin = self.mover(proxy)?.pin;
        let (repository, rights) = (self.place.repository_mover, Rights::BACKUP);
        let ticket =
            self.parts.fleet.ticket(repository, session, pin, name, rights, TICKET_VALID).await?;
        Ok(RepositoryAccess {
            address: self.place.repository_address.clone(),
            ticket: Some(ticket),
            pin: Some(repository.to_string()),
            ..RepositoryAccess::default()
        })
    }

    fn credential_path(&self, proxy: &str, task: TaskId) -> Result<PathBuf, Failure> {
        let folder = self.mover(proxy)?.facts.private_folder;
        Ok(PathBuf::from(folder).join(task.to_string()).join(COOKIE))
    }

    async fn set_credential(
        &self,
        proxy: &str,
        task: TaskId,
        content: Secret,
    ) -> Result<(), Failure> {
        let _ = proxy;
        let is_started = locked(&self.started).contains(&task);
        if is_started {
            return self.parts.fleet.set_credential(task, COOKIE, content);
        }
        locked(&self.cookies).insert(task, content);
        Ok(())
    }

    async fn start(&self, proxy: &str, task: TaskId, work: Vec<u8>) -> Result<FleetTask, Failure> {
        let mover = self.mover(proxy)?.pin;
        let cookie = locked(&self.cookies).remove(&task);
        let credentials = cookie.into_iter().map(|cookie| (COOKIE.to_owned(), cookie)).collect();
        let handle = self.parts.fleet.run_task(mover, task, work, credentials)?;
        locked(&self.started).insert(task);
        let flow = self.flow(mover, task).await;
        Ok(FleetTask { handle, flow, proxy: proxy.to_owned(), lost: false })
    }

    async fn adopt(&self, proxy: &str, task: TaskId) -> Result<FleetTask, Failure> {
        let mover = self.parts.known_mover_of_proxy(proxy).ok_or_else(|| {
            failed(FailureKind::Network, format!("proxy {proxy} is not known any more"))
        })?;
        let handle = self.parts.fleet.adopt_task(mover, task)?;
        locked(&self.started).insert(task);
        if let Some(cookie) = locked(&self.cookies).remove(&task) {
            self.parts.fleet.set_credential(task, COOKIE, cookie)?;
        }
        let flow = self.flow(mover, task).await;
        Ok(FleetTask { handle, flow, proxy: proxy.to_owned(), lost: false })
    }

    async fn stop(&self, _: &str, task: TaskId) {
        self.parts.fleet.stop(task);
    }

    fn forget(&self, proxy: &str, task: TaskId) {
        locked(&self.started).remove(&task);
        locked(&self.cookies).remove(&task);
        if let Some(mover) = self.parts.known_mover_of_proxy(proxy) {
            self.parts.fleet.forget(mover, task);
        }
    }
}
