//! Looking after the repository on behalf of a peer: points, retention, counting, maintenance.
//!
//! In: an admitted connection and its request. Out: progress, then one report in pages or why not.
//! One maintenance job (a collection, a verification) runs at a time; others are told which. Point
//! operations run on the store's thread, between the commands of backups. A client that goes away:
//! a verification stops, because nobody would read its report; a collection goes on to its end,
//! and its report is logged.

use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::limits;
use gantry_common::manage::{
    CollectOptions, LISTED_MAX, ManageReport, ManageRequest, PruneReport, Retention, VerifyOptions,
};
use gantry_common::wire::{self, ToSource};
use tokio::sync::mpsc;

use super::{Repository, off_this_thread};
use crate::host::now_ms;
use crate::store::engine::Store;
use crate::store::error::StoreError;
use crate::store::index::Collected;
use crate::store::service::{CollectEvent, StoreGone, StoreHandle};
use crate::store::stat::stat;
use crate::store::storage::kernel::KernelStorage;
use crate::store::verify;
use crate::transport::{CloseReason, Connection, FrameSender, OutFrame, PeerInfo, TransportError};

/// Shortest time between two messages of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// The maintenance job that runs.
pub(super) struct Maintenance {
    what: &'static str,
    peer: String,
    began: Instant,
    stop: Arc<AtomicBool>,
    /// Of a job that came over a connection.
    frames: Option<FrameSender>,
}

impl Maintenance {
    /// Ends it: this mover stops.
    pub(super) fn stop(&self, why: &str) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(frames) = &self.frames {
            frames.close(CloseReason::Failed(why.to_owned()));
        }
    }
}

/// Keeps other maintenance out until it is dropped.
struct Turn(Rc<Repository>);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.maintenance.borrow_mut() = None;
    }
}

/// How far a job is: phase, done, of how much.
type Progress = (&'static str, u64, u64);

/// What a job is given.
struct Job {
    peer: String,
    frames: Option<FrameSender>,
    stop: Arc<AtomicBool>,
    progress: mpsc::UnboundedSender<Progress>,
}

impl Repository {
    /// Carries out a request that did not come over a connection of its own.
    ///
    /// # Errors
    /// As the same request over a connection.
    pub async fn manage_for(
        self: &Rc<Self>,
        peer: &str,
        request: ManageRequest,
    ) -> Result<ManageReport, Failure> {
        wire::check_request(&request)
            .map_err(|error| Failure::new(FailureKind::Usage, format!("this request: {error}")))?;
        // Nobody hears of the progress.
        let (progress, _) = mpsc::unbounded_channel();
        let stop = Arc::default();
        let job = Job { peer: peer.to_owned(), frames: None, stop, progress };
        self.carry_out(request, job).await
    }

    /// Serves one request to its end, whether or not the client stays.
    pub(super) async fn manage(
        self: &Rc<Self>,
        mut connection: Connection,
        request: ManageRequest,
        welcome: &ToSource,
    ) {
        let peer = connection.peer.address.clone();
        tracing::info!(%peer, "asked to {request:?}");
        let mut is_heard = tell(&connection.sender, welcome).await.is_ok();
        let stops_unheard = matches!(request, ManageRequest::Verify(_));
        let stop = Arc::new(AtomicBool::new(false));
        let (progress, mut told) = mpsc::unbounded_channel();
        let (frames, job_stop) = (Some(connection.sender.clone()), Arc::clone(&stop));
        let job = Job { peer: peer.clone(), frames, stop: job_stop, progress };
        let mut work = std::pin::pin!(self.carry_out(request, job));
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                Some((phase, done, total)) = told.recv(), if is_heard => {
                    let message = ToSource::Progress { phase: phase.to_owned(), done, total };
                    is_heard = tell(&connection.sender, &message).await.is_ok();
                }
                // Nothing belongs here but the end.
                _ = connection.receiver.recv(), if is_heard => is_heard = false,
            }
            if !is_heard && stops_unheard {
                stop.store(true, Ordering::Relaxed);
            }
        };
        match &result {
            Ok(report) if !is_heard => tracing::info!(%peer, "went away; the report: {report:?}"),
            Ok(_) => {}
            Err(failure) => tracing::warn!(%peer, "request failed: {failure}"),
        }
        if is_heard {
            // Whoever is gone by now has the log of this mover.
            let _ = answer(&connection.sender, result).await;
        }
    }

    /// Whether this peer is among those who may look after the repository.
    pub(super) fn check_manager(&self, peer: &PeerInfo) -> Result<(), Failure> {
        match &*self.managers.borrow() {
            Some(managers) if !managers.names(peer.pin) => Err(Failure::new(
                FailureKind::Refused,
                format!(
                    "the mover with pin {} may not manage this repository: add the pin to the \
                     file named as managers under [trust] on the repository host",
                    peer.pin
                ),
            )),
            _ => Ok(()),
        }
    }

    async fn carry_out(
        self: &Rc<Self>,
        request: ManageRequest,
        job: Job,
    ) -> Result<ManageReport, Failure> {
        match request {
            ManageRequest::DeletePoints { name, points, last_too } => {
                let act = move |store: &mut Store<KernelStorage>| {
                    store.delete_points(&name, &points, last_too)
                };
                self.on_store(act).await.map(ManageReport::Points)
            }
            ManageRequest::UndeletePoints { name, points } => {
                let act =
                    move |store: &mut Store<KernelStorage>| store.undelete_points(&name, &points);
                self.on_store(act).await.map(ManageReport::Points)
            }
            ManageRequest::ProtectPoints { name, points, protect } => {
                let act = move |store: &mut Store<KernelStorage>| {
                    store.protect_points(&name, &points, protect)
                };
                self.on_store(act).await.map(ManageReport::Points)
            }
            ManageRequest::Prune { name, retention, dry_run } => {
                self.prune(name, retention, dry_run).await.map(ManageReport::Prune)
            }
            ManageRequest::Abandon { name, snapshot } => {
                let act = move |store: &mut Store<KernelStorage>| {
                    store.abandon(&name, snapshot.as_deref())
                };
                let disks = self.on_store(act).await?;
                Ok(ManageReport::Abandoned { disks })
            }
            ManageRequest::Stat => {
                let reader = self.reader.clone();
                let counted = off_this_thread(move || stat(&reader).map_err(Failure::from)).await;
                counted.map(ManageReport::Stat)
            }
            ManageRequest::Verify(options) => self.verify(options, job).await,
            ManageRequest::Collect(options) => self.collect(options, job).await,
        }
    }

    fn writable(&self) -> Result<&StoreHandle, Failure> {
        self.store.as_ref().ok_or_else(|| {
            let text = "the repository is open for reading only";
            Failure::new(FailureKind::Target, text)
        })
    }

    async fn on_store<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Store<KernelStorage>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Failure> {
        let done = self.writable()?.run(act).await;
        let gone = |gone: StoreGone| Failure::new(FailureKind::Target, gone.to_string());
        done.map_err(gone)?.map_err(Failure::from)
    }

    /// Name by name, so that backups never wait for more than one name's manifests.
    async fn prune(
        &self,
        name: Option<String>,
        retention: Retention,
        dry_run: bool,
    ) -> Result<PruneReport, Failure> {
        let names = match name {
            Some(name) => vec![name],
            None => {
                let reader = self.reader.clone();
                off_this_thread(move || reader.names().map_err(Failure::from)).await?
            }
        };
        let mut all = PruneReport { dry_run, ..PruneReport::default() };
        for name in names {
            let act = move |store: &mut Store<KernelStorage>| {
                store.prune_points(&name, &retention, now_ms(), dry_run)
            };
            let report = self.on_store(act).await?;
            all.points_deleted += report.points_deleted;
            all.points_kept += report.points_kept;
            let room = LISTED_MAX - all.decisions.len();
            all.decisions.extend(report.decisions.into_iter().take(room));
            all.notes.extend(report.notes);
        }
        Ok(all)
    }

    async fn verify(
        self: &Rc<Self>,
        options: VerifyOptions,
        job: Job,
    ) -> Result<ManageReport, Failure> {
        let turn = self.take_turn("verification", &job)?;
        let reader = self.reader.clone();
        let mut told = Instant::now();
        let mut on_progress = move |done, total| {
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                // Nobody listens once the client is gone.
                let _ = job.progress.send(("verify", done, total));
            }
            match job.stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let verified = off_this_thread(move || {
            let report = verify::verify(&reader, &options, now_ms(), &mut on_progress);
            report.map_err(Failure::from)
        });
        let report = verified.await;
        drop(turn);
        report.map(ManageReport::Verify)
    }

    async fn collect(
        self: &Rc<Self>,
        options: CollectOptions,
        job: Job,
    ) -> Result<ManageReport, Failure> {
        let store = self.writable()?;
        let _turn = self.take_turn("collection", &job)?;
        let is_dry = options.dry_run;
        let gone = |gone: StoreGone| Failure::new(FailureKind::Target, gone.to_string());
        let (events, mut heard) = mpsc::unbounded_channel();
        // Whoever waits here is gone only if this mover ends.
        let on_event = Box::new(move |event| drop(events.send(event)));
        store.collect(options, on_event).map_err(gone)?;
        loop {
            match heard.recv().await.ok_or_else(|| gone(StoreGone))? {
                CollectEvent::Progress { phase, done, total } => {
                    // Nobody listens once the client is gone.
                    let _ = job.progress.send((phase, done, total));
                }
                CollectEvent::Failed(error) => return Err(error.into()),
                CollectEvent::Done(report) => {
                    if !is_dry {
                        self.remember(report.bytes_dead_left).await;
                    }
                    return Ok(ManageReport::Collect(report));
                }
            }
        }
    }

    /// For `repo stat`; if it cannot be, a line of that is missing.
    async fn remember(&self, bytes_dead_left: u64) {
        let collected = Collected { at_ms: now_ms(), bytes_dead_left };
        let act = move |store: &mut Store<KernelStorage>| store.remember_collection(collected);
        if let Err(failure) = self.on_store(act).await {
            tracing::warn!("{failure}");
        }
    }

    /// Makes this the one maintenance job, or says which one runs.
    fn take_turn(self: &Rc<Self>, what: &'static str, job: &Job) -> Result<Turn, Failure> {
        let mut running = self.maintenance.borrow_mut();
        if let Some(other) = &*running {
            return Err(Failure::new(
                FailureKind::Target,
                format!(
                    "a {} for {} runs since {} s: one maintenance job at a time, ask again later",
                    other.what,
                    other.peer,
                    other.began.elapsed().as_secs()
                ),
            ));
        }
        let (peer, frames) = (job.peer.clone(), job.frames.clone());
        let stop = Arc::clone(&job.stop);
        *running = Some(Maintenance { what, peer, began: Instant::now(), stop, frames });
        Ok(Turn(Rc::clone(self)))
    }
}

async fn tell(frames: &FrameSender, message: &ToSource) -> Result<(), TransportError> {
    frames.send_control(OutFrame::message(message)).await
}

async fn answer(
    frames: &FrameSender,
    result: Result<ManageReport, Failure>,
) -> Result<(), TransportError> {
    match result {
        Err(failure) => tell(frames, &ToSource::Failed { task: None, failure }).await?,
        Ok(report) => {
            let bytes = report.encode();
            let mut pages = bytes.chunks(limits::MANAGE_PAGE_BYTES_MAX).peekable();
            while let Some(page) = pages.next() {
                let (page, more) = (page.to_vec(), pages.peek().is_some());
                tell(frames, &ToSource::Report { page, more }).await?;
            }
        }
    }
    frames.finish().await
}
