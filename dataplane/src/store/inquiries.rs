//! What readers notice of records, for the store to look into on its own thread.
//!
//! In: records that were read wrong, good copies of records whose place is no good. Out: the same,
//! to the store. Invariant: bounded; what is dropped is noticed again by the next reader. Must
//! not: decide anything.

use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock, PoisonError};

use gantry_common::ids::BlockId;
use gantry_common::limits;

use super::index::Location;
use super::storage::Wake;

/// A record that the store should look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inquiry {
    /// It was read, and was not what it should be.
    Doubt(BlockId, Location),
    /// It is good, but the index knows of no place of its id that is.
    Copy(BlockId, Location),
}

/// The queue.
#[derive(Default)]
pub struct Inquiries {
    queue: Mutex<VecDeque<Inquiry>>,
    wake: OnceLock<Wake>,
}

impl std::fmt::Debug for Inquiries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inquiries")
    }
}

impl Inquiries {
    /// Queues an inquiry and wakes the store; false if there are too many already.
    pub fn push(&self, inquiry: Inquiry) -> bool {
        {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.contains(&inquiry) {
                return true;
            }
            if queue.len() >= limits::INQUIRIES_MAX {
                return false;
            }
            queue.push_back(inquiry);
        }
        if let Some(wake) = self.wake.get() {
            wake();
        }
        true
    }

    /// The oldest inquiry.
    pub fn pop(&self) -> Option<Inquiry> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// From now on `wake` is called with each inquiry; only the first call counts.
    pub fn wake_with(&self, wake: Wake) {
        let _ = self.wake.set(wake);
    }
}
