//! Waking a thread that waits in its ring.
//!
//! In: [`Waker::wake`] from any thread. Out: the ring's wait returns. Invariant: a wake is never
//! lost: one that comes while nobody waits ends the next wait at once. Must not: block.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// Wakes the thread of one ring. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Waker> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker { event: Arc::new(event) })
    }

    /// Ends the ring's present wait, or its next. Many wakes may count as one.
    pub fn wake(&self) {
        loop {
            match rustix::io::write(&*self.event, &1u64.to_ne_bytes()) {
                Err(Errno::INTR) => {}
                // AGAIN: the counter is full, so a wake is pending anyway. Nothing else can fail
                // on an eventfd that is open.
                _ => return,
            }
        }
    }

    /// Takes all wakes that are pending.
    pub(crate) fn drain(&self) {
        let mut count = [0u8; 8];
        while matches!(rustix::io::read(&*self.event, &mut count), Err(Errno::INTR)) {}
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
