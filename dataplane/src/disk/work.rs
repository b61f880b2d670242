//! One thread for each source on a network, and the jobs that it is given.
//!
//! In: jobs from planner and readers, on any thread. Out: the jobs' answers. The thread runs one
//! tokio runtime; connections take jobs from one queue in turn. Invariant: a job is answered once;
//! when the source has failed for good every job is answered with the reason at once. Must not:
//! block a caller, or outlive its [`SourceThread`].

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gantry_common::limits;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Mutex, watch};

use super::remote::{ReadRequest, RemoteError};

/// Data extents that were asked for: sorted, apart, within the disk; and up to where they tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentPage {
    /// Start and end (exclusive) of each stretch of data.
    pub data: Vec<(u64, u64)>,
    /// First byte of which the page says anything.
    pub start: u64,
    /// First byte of which it says nothing more.
    pub end: u64,
}

type PageReply = std::sync::mpsc::Sender<Result<ExtentPage, RemoteError>>;

/// What is to be done.
#[derive(Debug)]
pub(super) enum Work {
    /// Read a block.
    Read(ReadRequest),
    /// Say which bytes from `offset` on are data.
    Extents { offset: u64, reply: PageReply },
}

/// Work and how often it was tried.
#[derive(Debug)]
pub(super) struct Job {
    pub work: Work,
    pub tries: u32,
}

impl Job {
    /// Answers with a failure.
    pub(super) fn fail(self, error: RemoteError) {
        match self.work {
            Work::Read(request) => request.complete(Err(error)),
            // A planner that has gone does not listen.
            Work::Extents { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// How long failures are borne: until so long has passed without one success.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Duration,
    failing_since: Option<Instant>,
    failures: u32,
    waits_until: Option<Instant>,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Patience {
        Patience { limit, failing_since: None, failures: 0, waits_until: None }
    }

    /// Something was read.
    pub(super) fn success(&mut self) {
        (self.failing_since, self.failures, self.waits_until) = (None, 0, None);
    }

    /// Something failed that may pass: how long to wait before the next attempt, or nothing if it
    /// has lasted too long.
    pub(super) fn failure(&mut self, now: Instant) -> Option<Duration> {
        let since = *self.failing_since.get_or_insert(now);
        if now.duration_since(since) >= self.limit {
            return None;
        }
        // Several connections that fail at once are one failure.
        if let Some(until) = self.waits_until.filter(|until| now < *until) {
            return Some(until - now);
        }
        let (least, most) = limits::SOURCE_BACKOFF_MS;
        let wait =
            Duration::from_millis(least.saturating_mul(1 << self.failures.min(10)).min(most));
        self.failures += 1;
        self.waits_until = Some(now + wait);
        Some(wait)
    }
}

/// What the connections of one source share, on its thread.
pub(super) struct Shared {
    queue: Mutex<UnboundedReceiver<Job>>,
    again: UnboundedSender<Job>,
    failed: Arc<OnceLock<RemoteError>>,
    stop: watch::Receiver<bool>,
    pub patience: RefCell<Patience>,
}

impl Shared {
    /// The next job. Callers that wait get jobs in turn.
    pub(super) async fn next_job(&self) -> Option<Job> {
        self.queue.lock().await.recv().await
    }

    /// Keeps a job while it is worked on.
    pub(super) fn hold(self: &Rc<Self>, job: Job) -> Held {
        Held { job: Some(job), shared: Rc::clone(self) }
    }

    /// Puts a job back: it was not done.
    pub(super) fn again(&self, job: Job) {
        if let Err(refused) = self.again.send(job) {
            drop(refused);
        }
    }

    /// Puts a job back after a while.
    pub(super) fn again_after(self: &Rc<Self>, job: Job, wait: Duration) {
        let shared = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(wait).await;
            shared.again(job);
        });
    }

    /// Ends once the source is dropped.
    pub(super) async fn stopped(&self) {
        let mut stop = self.stop.clone();
        // An error means that the sender is gone, which is the same.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Whether the source is being dropped.
    pub(super) fn is_stopping(&self) -> bool {
        *self.stop.borrow() || self.stop.has_changed().is_err()
    }

    /// Gives the source up: this is the answer to every job from now on.
    pub(super) fn give_up(&self, error: RemoteError) {
        let _ = self.failed.set(error);
    }

    /// Why the source was given up.
    pub(super) fn failure(&self) -> Option<&RemoteError> {
        self.failed.get()
    }

    /// Answers every job with the reason for which the source was given up, until it is dropped.
    pub(super) async fn refuse_all(&self) {
        while let Some(job) = self.next_job().await {
            let reason = self.failed.get().cloned();
            job.fail(reason.unwrap_or_else(|| RemoteError::new("it was given up", "try again")));
        }
    }
}

/// A job that is worked on; dropped without an answer, it goes back to the queue.
pub(super) struct Held {
    job: Option<Job>,
    shared: Rc<Shared>,
}

impl Held {
    /// The block that is to be read, if that is the job.
    pub(super) fn request(&mut self) -> Option<&mut ReadRequest> {
        match &mut self.job.as_mut()?.work {
            Work::Read(request) => Some(request),
            Work::Extents { .. } => None,
        }
    }

    /// Answers a read.
    pub(super) fn complete(mut self, result: Result<(), RemoteError>) {
        match (self.job.take(), result) {
            (Some(Job { work: Work::Read(request), .. }), result) => request.complete(result),
            (Some(job), Err(error)) => job.fail(error),
            // Sources that tell no extents are not asked for them.
            (other, _) => drop(other),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            self.shared.again(job);
        }
    }
}

/// Where a source's thread says what it found when it opened the source.
pub(super) struct Ready<T>(std::sync::mpsc::Sender<Result<T, RemoteError>>);

impl<T> Ready<T> {
    /// Says it.
    pub(super) fn tell(self, found: Result<T, RemoteError>) {
        // Who opens the source waits for this.
        let _ = self.0.send(found);
    }
}

/// The thread of a source; its drop ends it.
#[derive(Debug)]
pub(super) struct SourceThread {
    jobs: UnboundedSender<Job>,
    failed: Arc<OnceLock<RemoteError>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl SourceThread {
    /// Starts it and waits for what `run` tells [`Ready`]; `run` goes on until it ends or the
    /// source is dropped (see [`Shared::stopped`]).
    ///
    /// # Errors
    /// What `run` says at its beginning, or that no thread can be had.
    pub(super) fn start<T, R, Running>(
        name: &str,
        patience: Duration,
        run: R,
    ) -> Result<(SourceThread, T), RemoteError>
    where
        T: Send + 'static,
        R: FnOnce(Rc<Shared>, Ready<T>) -> Running + Send + 'static,
        Running: Future<Output = ()>,
    {
        let (jobs, queue) = unbounded_channel();
        let (stop, stop_seen) = watch::channel(false);
        let failed = Arc::new(OnceLock::new());
        let (ready, opened) = std::sync::mpsc::channel();
        let (again, reason) = (jobs.clone(), Arc::clone(&failed));
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(no_thread(&error)))),
            };
            let queue = Mutex::new(queue);
            let patience = RefCell::new(Patience::new(patience));
            let shared =
                Rc::new(Shared { queue, again, failed: reason, stop: stop_seen, patience });
            tokio::task::LocalSet::new().block_on(&runtime, run(shared, Ready(ready)));
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        let thread = thread.map_err(|error| no_thread(&error))?;
        let thread = SourceThread { jobs, failed, stop, thread: Some(thread) };
        let facts = opened.recv().unwrap_or_else(|_| {
            Err(RemoteError::new("its thread ended at the start", "please report this"))
        })?;
        Ok((thread, facts))
    }

    /// Gives it a block to read.
    pub(super) fn read(&self, request: ReadRequest) {
        self.give(Work::Read(request));
    }

    /// Asks for extents and waits.
    pub(super) fn extents(&self, offset: u64) -> Result<ExtentPage, RemoteError> {
        let (reply, answer) = std::sync::mpsc::channel();
        self.give(Work::Extents { offset, reply });
        let gone = |_| RemoteError::new("the source was closed", "run the backup again");
        answer.recv().map_err(gone)?
    }

    fn give(&self, work: Work) {
        let job = Job { work, tries: 0 };
        match self.failed.get() {
            Some(error) => job.fail(error.clone()),
            // Its thread has ended: the job's drop answers.
            None => drop(self.jobs.send(job)),
        }
    }
}

impl Drop for SourceThread {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed; all its jobs were answered by their drops.
            let _ = thread.join();
        }
    }
}

fn no_thread(error: &std::io::Error) -> RemoteError {
    let what = format!("starting its thread failed: {error}");
    RemoteError::new(what, "free memory or processes and run the backup again")
}

#[cfg(test)]
mod tests {
    use super::Patience;
    use std::time::{Duration, Instant};

    #[test]
    fn patience_waits_longer_each_time_and_ends() {
        let start = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(60));
        let at = |ms| start + Duration::from_millis(ms);
        let mut now = 0;
        let waits: Vec<u128> = (0..8)
            .map(|_| {
                let wait = patience.failure(at(now)).unwrap().as_millis();
                assert_eq!(patience.failure(at(now + 10)).unwrap().as_millis(), wait - 10);
                now += wait as u64;
                wait
            })
            .collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert!(patience.failure(at(59_999)).is_some());
        assert!(patience.failure(at(60_000)).is_none());
        patience.success();
        assert_eq!(patience.failure(at(70_000)).unwrap().as_millis(), 100);
    }
}
