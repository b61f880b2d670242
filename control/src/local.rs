//! The site of `gantry vm backup`: this host is the only proxy, and there is no service.
//!
//! In: a configuration, the mover's program. Out: a [`Site`]. Its document is kept in memory only: after
//! a crash the ledger says what is to be undone, and the next run takes over what is durable. A
//! repository in a folder has one writer at a time, so its disks are copied one after another.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{SessionId, TaskId};
use gantry_common::secret::Secret;
use gantry_common::work::{DiskProgress, RepositoryAccess};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::config::Config;
use crate::durable_file;
use crate::mover::{Mover, MoverTask, PointFacts};
use crate::run::document::RunDocument;
use crate::run::failed;
use crate::run::site::{
    AdmitRequest, PlaceRequest, Placement, Proxy, Release, Severity, Site, Task, TaskEvent, Wish,
};

/// Disks at a time, where the repository takes several.
const TASKS_MAX: usize = 4;
/// The name of this host as a proxy.
const HERE: &str = "this host";

/// This host.
pub struct LocalSite<'a> {
    config: &'a Config,
    mover: Mover,
    slots: Arc<Semaphore>,
    held: Mutex<BTreeMap<i32, OwnedSemaphorePermit>>,
    log: Mutex<Vec<(Severity, Option<String>, String)>>,
    vm: String,
    #[allow(clippy::type_complexity)]
    show: Box<dyn Fn(&BTreeMap<i32, DiskProgress>) + Send + Sync + 'a>,
    progress: Mutex<BTreeMap<i32, DiskProgress>>,
    tasks: Mutex<BTreeMap<TaskId, Arc<Notify>>>,
    wish: watch::Sender<Wish>,
}

/// A task of this host.
pub struct LocalTask {
    task: MoverTask,
    stop: Arc<Notify>,
    credentials: PathBuf,
}

impl Task for LocalTask {
    async fn next(&mut self) -> TaskEvent {
        tokio::select! {
            event = self.task.next() => event,
            () = self.stop.notified() => {
                self.task.stop();
                self.task.next().await
            }
        }
    }
}

impl Drop for LocalTask {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.credentials) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", self.credentials.display());
            }
            _ => {}
        }
    }
}

impl<'a> LocalSite<'a> {
    /// A site for one machine; `show` is given the disks' live numbers.
    pub fn new(
        config: &'a Config,
        mover: Mover,
        vm: &str,
        show: impl Fn(&BTreeMap<i32, DiskProgress>) + Send + Sync + 'a,
    ) -> LocalSite<'a> {
        let is_service = config.repository.address.starts_with("gantry://");
        LocalSite {
            config,
            mover,
            slots: Arc::new(Semaphore::new(if is_service { TASKS_MAX } else { 1 })),
            held: Mutex::default(),
            log: Mutex::default(),
            vm: vm.to_owned(),
            show: Box::new(show),
            progress: Mutex::default(),
            tasks: Mutex::default(),
            wish: watch::channel(Wish::GoOn).0,
        }
    }

    /// The log so far.
    pub fn log(&self) -> Vec<(Severity, Option<String>, String)> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn folder(&self, task: TaskId) -> PathBuf {
        self.config.private().join(task.to_string())
    }
}

impl Site for LocalSite<'_> {
    type Task = LocalTask;

    fn say(&self, severity: Severity, disk: Option<&str>, text: &str) {
        tracing::info!(
            "{}: {}{text}",
            self.vm,
            disk.map(|disk| format!("{disk}: ")).unwrap_or_default()
        );
        let line = (severity, disk.map(str::to_owned), text.to_owned());
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn progress(&self, key: i32, progress: &DiskProgress) {
        let mut all = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(key, progress.clone());
        (self.show)(&all);
    }

    async fn save(&self, _: &RunDocument) -> Result<(), Failure> {
        Ok(())
    }

    async fn admit(&self, _: AdmitRequest) -> Result<(), Failure> {
        Ok(())
    }

    fn wish(&self) -> watch::Receiver<Wish> {
        self.wish.subscribe()
    }

    async fn points(&self, name: &str) -> Result<Vec<PointFacts>, Failure> {
        Ok(self.mover.points(&self.config.repository, name).await?)
    }

    fn proxies(&self) -> Vec<Proxy> {
        vec![Proxy { id: HERE.to_owned(), facts: self.config.proxy.clone() }]
    }

    async fn place(&self, request: PlaceRequest) -> Result<Placement, Failure> {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.map_err(|_| failed(FailureKind::Internal, "the site is closed"))?;
        let first = request.candidates.into_iter().next();
        let road = first.and_then(|(proxy, roads)| Some((proxy, roads.into_iter().next()?)));
        let (proxy, road) = road.ok_or_else(|| {
            failed(FailureKind::Internal, "a disk without a road is to be placed")
        })?;
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(request.key, slot);
        Ok(Placement { proxy, mode: road.mode, reason: road.reason })
    }

    fn release(&self, key: i32, _: Release) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    async fn access(&self, _: &str, _: SessionId, _: &str) -> Result<RepositoryAccess, Failure> {
        Ok(self.config.repository.clone())
    }

    fn credential_path(&self, _: &str, task: TaskId) -> Result<PathBuf, Failure> {
        Ok(self.folder(task).join("cookie"))
    }

    async fn set_credential(&self, _: &str, task: TaskId, content: Secret) -> Result<(), Failure> {
        let folder = self.folder(task);
        let fail = |error: std::io::Error| {
            failed(FailureKind::Internal, format!("cannot write in {}: {error}", folder.display()))
        };
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(fail)?;
        durable_file::replace(&folder.join("cookie"), content.reveal().as_bytes()).map_err(fail)
    }

    async fn start(&self, _: &str, task: TaskId, work: Vec<u8>) -> Result<LocalTask, Failure> {
        let stop = Arc::new(Notify::new());
        let started = self.mover.start(&work).await?;
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.insert(task, Arc::clone(&stop));
        Ok(LocalTask { task: started, stop, credentials: self.folder(task) })
    }

    async fn adopt(&self, _: &str, _: TaskId) -> Result<LocalTask, Failure> {
        Err(failed(FailureKind::Network, "a mover of this host ends with who started it"))
    }

    fn forget(&self, _: &str, task: TaskId) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).remove(&task);
    }

    async fn stop(&self, _: &str, task: TaskId) {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.get(&task).into_iter().for_each(|stop| stop.notify_one());
    }
}
