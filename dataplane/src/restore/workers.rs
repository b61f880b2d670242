//! The threads between the network and the destination: how jobs reach them and what comes back.
//!
//! In: [`Job`]s, bounded by what the client asks for. Out: one [`Done`] a job. Invariant: a worker
//! that has gone to sleep is woken for a new job; after a failure every further job is still taken,
//! so that its buffer returns. Must not: block the network's thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use gantry_common::extents::Run;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::wire::BlockHead;
use gantry_uring::wake::Waker;
use tokio::sync::mpsc::UnboundedSender;

use super::report::Stats;
use crate::payload::Payload;

/// What a worker is to bring to the destination.
#[derive(Debug)]
pub(super) enum Job {
    /// A block with bytes.
    Block {
        /// Number.
        block: u64,
        /// What the payload claims to be.
        head: BlockHead,
        /// Stored bytes.
        payload: Payload,
    },
    /// Blocks that read as zeros.
    Zero(Run),
}

/// What became of a job.
#[derive(Debug)]
pub(super) enum Done {
    /// It is at the destination (not yet durable).
    Run {
        /// The blocks.
        run: Run,
        /// Bytes written for it.
        written_bytes: u64,
    },
    /// The restore cannot go on.
    Failed(Failure),
}

/// How a sleeping worker is woken.
#[derive(Debug, Default)]
pub(super) struct Doorbell {
    sleeping: AtomicBool,
    waker: OnceLock<Waker>,
}

impl Doorbell {
    /// Called once, by the worker.
    pub(super) fn install(&self, waker: Waker) {
        // A second waker cannot come: each worker has one ring.
        let _ = self.waker.set(waker);
    }

    /// The worker is about to sleep; it looks at its jobs once more after this.
    pub(super) fn fall_asleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
    }

    /// The worker is awake.
    pub(super) fn wake_up(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    fn ring_if_asleep(&self) -> bool {
        let asleep = self.sleeping.swap(false, Ordering::SeqCst);
        if asleep {
            self.ring();
        }
        asleep
    }

    fn ring(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }
}

/// What every worker thread has.
pub(super) struct Post {
    /// Its jobs, shared with its siblings.
    pub(super) jobs: Receiver<Job>,
    /// Where results go.
    pub(super) done: UnboundedSender<Done>,
    /// For waking it.
    pub(super) doorbell: Arc<Doorbell>,
    /// Core to stay on.
    pub(super) core: usize,
}

impl Post {
    /// Reports; nobody listens any more when the restore was given up.
    pub(super) fn report(&self, done: Done) {
        let _ = self.done.send(done);
    }
}

/// All threads of one restore.
pub(super) struct Workers {
    /// Nothing once they are to end.
    jobs: Option<Sender<Job>>,
    doorbells: Vec<Arc<Doorbell>>,
    next: usize,
    threads: Vec<JoinHandle<Stats>>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({} threads)", self.threads.len())
    }
}

impl Workers {
    /// Starts one thread a core; `work` is what it does until its jobs end. `jobs_max` jobs may
    /// wait.
    ///
    /// # Errors
    /// `Internal`: no thread.
    pub(super) fn start(
        cores: &[usize],
        jobs_max: usize,
        done: &UnboundedSender<Done>,
        work: impl Fn(Post) -> Stats + Clone + Send + 'static,
    ) -> Result<Workers, Failure> {
        let (sender, receiver) = crossbeam_channel::bounded(jobs_max);
        let mut workers =
            Workers { jobs: Some(sender), doorbells: Vec::new(), next: 0, threads: Vec::new() };
        for &core in cores {
            let doorbell = Arc::new(Doorbell::default());
            workers.doorbells.push(Arc::clone(&doorbell));
            let post = Post { jobs: receiver.clone(), done: done.clone(), doorbell, core };
            let work = work.clone();
            workers.spawn(format!("restore-{core}"), move || {
                // Without its core a worker is slower, not wrong.
                let _ = gantry_uring::thread::pin_current_thread(post.core);
                work(post)
            })?;
        }
        Ok(workers)
    }

    /// Adds a thread that ends when the workers have ended.
    ///
    /// # Errors
    /// `Internal`: no thread.
    pub(super) fn spawn(
        &mut self,
        name: String,
        work: impl FnOnce() -> Stats + Send + 'static,
    ) -> Result<(), Failure> {
        let thread = std::thread::Builder::new().name(name).spawn(work).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("cannot start a thread: {error}"))
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Hands over a job, or gives it back while too many wait.
    pub(super) fn give(&mut self, job: Job) -> Result<(), Job> {
        let Some(jobs) = &self.jobs else { return Err(job) };
        jobs.try_send(job).map_err(crossbeam_channel::TrySendError::into_inner)?;
        // One sleeper is enough for one job; those that are awake look by themselves.
        for _ in 0..self.doorbells.len() {
            self.next = (self.next + 1) % self.doorbells.len();
            if self.doorbells[self.next].ring_if_asleep() {
                break;
            }
        }
        Ok(())
    }

    /// Ends the threads once they have done their jobs; gives what they measured.
    pub(super) fn finish(&mut self) -> Stats {
        self.hang_up();
        let mut stats = Stats::default();
        for thread in self.threads.drain(..) {
            if let Ok(theirs) = thread.join() {
                stats.merge(&theirs);
            }
        }
        stats
    }

    fn hang_up(&mut self) {
        self.jobs = None;
        for doorbell in &self.doorbells {
            doorbell.ring();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.hang_up();
    }
}
