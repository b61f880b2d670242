//! What a run needs of the place where it runs: one host, or a gantryd with its fleet.
//!
//! In: the run's wishes. Out: proxies, tasks on movers, a log, a place where the run's document is
//! kept. Two of them: [`crate::local`] (this host, without a service) and gantryd's.

use std::future::Future;
use std::path::PathBuf;

use gantry_common::failure::Failure;
use gantry_common::ids::{SessionId, TaskId};
use gantry_common::secret::Secret;
use gantry_common::work::{DiskProgress, RepositoryAccess};
use tokio::sync::watch;

use super::document::RunDocument;
use crate::mover::PointFacts;
use crate::transport::{Judged, ProxyFacts, TransportMode};

/// How much a line of the log matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// A choice and its reason.
    Info,
    /// Something to look at.
    Warning,
    /// What ended the run, or an alarm.
    Error,
}

/// Whether a run is to go on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Wish {
    /// It is.
    #[default]
    GoOn,
    /// It is to end if its snapshot was not made yet, for this reason; else to go on.
    DoNotBegin(String),
    /// It is to end now, for this reason; nothing is committed.
    Stop(String),
}

impl Wish {
    /// Why a run that copies is to end.
    pub fn stop(&self) -> Option<&str> {
        match self {
            Wish::Stop(why) => Some(why),
            Wish::GoOn | Wish::DoNotBegin(_) => None,
        }
    }

    /// Why a run that has no snapshot yet is to end.
    pub fn not_to_begin(&self) -> Option<&str> {
        match self {
            Wish::Stop(why) | Wish::DoNotBegin(why) => Some(why),
            Wish::GoOn => None,
        }
    }
}

/// A proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// By which the site knows it.
    pub id: String,
    /// What it can do.
    pub facts: ProxyFacts,
}

/// A disk that needs a proxy, and which could copy it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceRequest {
    /// The run.
    pub run: SessionId,
    /// Device key of the disk.
    pub key: i32,
    /// Its label.
    pub label: String,
    /// Bytes to read, about.
    pub todo_bytes: u64,
    /// Proxies with their roads, the best first; none is empty.
    pub candidates: Vec<(String, Vec<Judged>)>,
}

/// A machine that waits for its snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmitRequest {
    /// The run.
    pub run: SessionId,
    /// The machine's instance UUID.
    pub vm: String,
    /// Its name.
    pub vm_name: String,
    /// Names of the datastores that it has files on.
    pub datastores: Vec<String>,
    /// Its disks that are to be copied.
    pub disks: Vec<AdmitDisk>,
}

/// A disk of a machine that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmitDisk {
    /// Device key.
    pub key: i32,
    /// Name of its datastore.
    pub datastore: String,
    /// Its bytes.
    pub size_bytes: u64,
}

/// Where a disk is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The proxy.
    pub proxy: String,
    /// By which road.
    pub mode: TransportMode,
    /// Why so, in a sentence.
    pub reason: String,
}

/// How a disk left its proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Its blocks are durable.
    Held,
    /// The road failed there: another is to be found.
    RoadFailed,
    /// The proxy or its connection was lost: another proxy is to be found.
    Lost,
    /// The run gives up.
    GivenUp,
}

/// What is heard of a task.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskEvent {
    /// How it goes on.
    Progress(Vec<DiskProgress>),
    /// It is done: the mover's report.
    Done(serde_json::Value),
    /// It failed, and says why.
    Failed(Failure),
    /// It went down, or its mover cannot be reached any more: another proxy may go on.
    Lost(String),
    /// It was stopped.
    Stopped,
}

/// A task that runs on a mover. Dropping it does not stop it.
pub trait Task: Send {
    /// What comes next; after an end, nothing is asked any more. The future may be dropped and asked
    /// for anew without losing anything.
    fn next(&mut self) -> impl Future<Output = TaskEvent> + Send;
}

/// The place where a run runs.
pub trait Site: Sync {
    /// Its tasks.
    type Task: Task;

    /// Takes a line of the log in.
    fn say(&self, severity: Severity, disk: Option<&str>, text: &str);

    /// Takes a disk's live numbers in.
    fn progress(&self, key: i32, progress: &DiskProgress);

    /// Makes the document durable. Only then may the run act on it.
    fn save(&self, document: &RunDocument) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Waits until the run may make its snapshot.
    fn admit(&self, request: AdmitRequest) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Whether the run is to go on.
    fn wish(&self) -> watch::Receiver<Wish>;

    /// Why the run was stopped, if it was; `is_waiting`: its snapshot was not made yet.
    fn stopped(&self, is_waiting: bool) -> Option<String> {
        let wish = self.wish();
        let wish = wish.borrow();
        let why = if is_waiting { wish.not_to_begin() } else { wish.stop() };
        why.map(str::to_owned)
    }

    /// The restore points of a name, the oldest first.
    fn points(&self, name: &str) -> impl Future<Output = Result<Vec<PointFacts>, Failure>> + Send;

    /// Every proxy that may serve this run.
    fn proxies(&self) -> Vec<Proxy>;

    /// Waits for a slot on one of the candidates.
    fn place(
        &self,
        request: PlaceRequest,
    ) -> impl Future<Output = Result<Placement, Failure>> + Send;

    /// Gives the slot of a disk back.
    fn release(&self, key: i32, release: Release);

    /// How a proxy is let in to the repository with this session of this name.
    fn access(
        &self,
        proxy: &str,
        session: SessionId,
        name: &str,
    ) -> impl Future<Output = Result<RepositoryAccess, Failure>> + Send;

    /// Where a task of this proxy finds its credential.
    fn credential_path(&self, proxy: &str, task: TaskId) -> Result<PathBuf, Failure>;

    /// Writes it there.
    fn set_credential(
        &self,
        proxy: &str,
        task: TaskId,
        content: Secret,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Starts work on a proxy.
    fn start(
        &self,
        proxy: &str,
        task: TaskId,
        work: Vec<u8>,
    ) -> impl Future<Output = Result<Self::Task, Failure>> + Send;

    /// A task that was started before the control plane was interrupted.
    fn adopt(
        &self,
        proxy: &str,
        task: TaskId,
    ) -> impl Future<Output = Result<Self::Task, Failure>> + Send;

    /// The task's end is written down: its mover need not keep it any longer.
    fn forget(&self, proxy: &str, task: TaskId);

    /// Stops a task; its end is heard as usual.
    fn stop(&self, proxy: &str, task: TaskId) -> impl Future<Output = ()> + Send;
}
