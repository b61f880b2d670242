//! The waiting half of a ring: submitting, waiting, reaping, and the end.
//!
//! In: what was pushed. Out: finished operations, wakes. Invariant: a wait ends for completions, the
//! timeout or a wake, never for a signal; the drop gives no buffer back that the kernel still uses.

use std::io;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use rustix::io::Errno;

use crate::entry::poll_readable;
use crate::ring::Ring;
use crate::wake::Waker;

/// `user_data` of the poll on the waker; keys of operations are below [`ENTRIES_MAX`].
const WAKE_KEY: u64 = u64::MAX;
/// Pause before trying again when the kernel is short of memory for requests.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// Pauses in a row after which that is an error.
const BUSY_PAUSES_MAX: u32 = 5_000;

/// What a wait found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    /// Completions that can be handed out now.
    pub ready: usize,
    /// Whether a [`Waker`] was used since the last wait.
    pub woken: bool,
}

#[derive(Default)]
pub(crate) struct WakeState {
    pub(crate) waker: Option<Waker>,
    armed: bool,
    woken: bool,
    error: Option<i32>,
}

enum Entered {
    Done,
    Busy,
}

impl Ring {
    /// Gives the kernel what was pushed, without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        self.enter(0, None)?;
        self.reap();
        Ok(())
    }

    /// Submits, then waits until `min` completions can be handed out (fewer if fewer operations are
    /// in flight), the timeout is over, or the [`Waker`] was used. With a waker, nothing in flight
    /// and `min` > 0, waits for the waker or the timeout. A signal does not end the wait.
    pub fn wait(&mut self, min: usize, timeout: Option<Duration>) -> io::Result<Waited> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut pauses = 0;
        let mut first = true;
        loop {
            self.arm_waker();
            self.reap();
            let lacking = self.lacking(min);
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let over = left == Some(Duration::ZERO);
            if !first && (lacking == 0 || over) {
                break;
            }
            // A wake is one completion, so with a waker wait for them one by one.
            let want = if over { 0 } else { lacking };
            let want = if self.wake.waker.is_some() { want.min(1) } else { want };
            match self.enter(want, left)? {
                Entered::Done => pauses = 0,
                Entered::Busy if pauses == BUSY_PAUSES_MAX => {
                    return Err(io::Error::other(
                        "io_uring has had no memory for requests for long",
                    ));
                }
                Entered::Busy => {
                    pauses += 1;
                    std::thread::sleep(BUSY_PAUSE);
                }
            }
            self.reap();
            first = false;
        }
        if let Some(errno) = self.wake.error.take() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let woken = std::mem::take(&mut self.wake.woken);
        Ok(Waited { ready: self.operations.done(), woken })
    }

    /// Completions a wait still has to see; 0 ends it.
    fn lacking(&self, min: usize) -> usize {
        if self.wake.woken || self.wake.error.is_some() {
            return 0;
        }
        let in_flight = self.operations.len();
        if in_flight == 0 && self.wake.waker.is_some() {
            return min.min(1);
        }
        min.min(in_flight).saturating_sub(self.operations.done())
    }

    /// One system call; errors that another try may cure are `Busy`.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<Entered> {
        let queue = self.ring.submission();
        if want == 0 && queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return Ok(Entered::Done);
        }
        drop(queue);
        let submitter = self.ring.submitter();
        let result = match timeout {
            Some(timeout) if want > 0 => {
                let limit = Timespec::from(timeout);
                submitter.submit_with_args(want, &SubmitArgs::new().timespec(&limit))
            }
            _ => submitter.submit_and_wait(want),
        };
        match result.map_err(|error| (Errno::from_io_error(&error), error)) {
            // TIME: the timeout is over. INTR: a signal came. The caller's loop looks again.
            Ok(_) | Err((Some(Errno::TIME | Errno::INTR), _)) => Ok(Entered::Done),
            Err((Some(Errno::AGAIN | Errno::BUSY), _)) => Ok(Entered::Busy),
            Err((_, error)) => Err(error),
        }
    }

    /// Moves what the kernel has finished into the queue of completions.
    pub(crate) fn reap(&mut self) {
        for entry in self.ring.completion() {
            if entry.user_data() == WAKE_KEY {
                self.wake.armed = false;
                if entry.result() < 0 {
                    self.wake.error = Some(entry.result().saturating_neg());
                } else if let Some(waker) = &self.wake.waker {
                    waker.drain();
                    self.wake.woken = true;
                }
            } else if let Some(file) = self.operations.finish(entry.user_data(), entry.result()) {
                self.files.finished(file);
            }
        }
    }

    fn arm_waker(&mut self) {
        let Some(fd) = self.wake.waker.as_ref().map(Waker::raw) else { return };
        if !self.wake.armed {
            // If there is no room even after a submit, the wait's next round tries again.
            self.wake.armed = self.push_entry(&poll_readable(fd).user_data(WAKE_KEY));
        }
    }

    /// Waits until the kernel has finished everything; false if it did not within `limit`.
    fn quiesce(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.operations.in_kernel() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.enter(1, Some(left)) {
                _ if left.is_zero() => return false,
                Err(_) => return false,
                Ok(Entered::Busy) => std::thread::sleep(BUSY_PAUSE),
                Ok(Entered::Done) => {}
            }
            self.reap();
        }
        true
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.quiesce(self.drop_wait) {
            return;
        }
        let limit = Timespec::from(self.drop_wait);
        let _ = self.ring.submitter().register_sync_cancel(Some(limit), CancelBuilder::any());
        if !self.quiesce(self.drop_wait) {
            // The kernel may still write into these buffers: better lost than used twice.
            self.operations.leak();
        }
    }
}
