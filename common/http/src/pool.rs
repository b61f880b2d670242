//! Connections that are kept for the next request, and the bound on how many there are.
//!
//! In: connections whose response was read to its end. Out: one of them, the youngest first, or
//! the leave to open one. Invariant: connections in use never exceed the limit; kept ones are
//! counted when they are taken, and there are never more of them than of that limit.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::connection::Connection;

/// The kept connections of one client.
#[derive(Debug)]
pub(crate) struct Pool {
    permits: Arc<Semaphore>,
    kept: Mutex<Vec<Connection>>,
    kept_max: usize,
    idle_max: Duration,
}

/// The right to have one connection in use.
pub(crate) type Permit = OwnedSemaphorePermit;

impl Pool {
    pub(crate) fn new(connections_max: usize, idle_max: Duration) -> Pool {
        let count = connections_max.clamp(1, Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(count));
        Pool { permits, kept: Mutex::new(Vec::new()), kept_max: count, idle_max }
    }

    /// Waits until fewer connections than the limit are in use; nothing if the pool is gone.
    pub(crate) async fn permit(&self) -> Option<Permit> {
        self.permits.clone().acquire_owned().await.ok()
    }

    /// A kept connection that still looks alive.
    pub(crate) fn take(&self) -> Option<Connection> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        kept.retain(|connection| {
            !connection.sender.is_closed()
                && now.saturating_duration_since(connection.idle_since) < self.idle_max
        });
        kept.pop()
    }

    /// Keeps a connection for later.
    pub(crate) fn put(&self, mut connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        connection.idle_since = Instant::now();
        connection.used = true;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < self.kept_max {
            kept.push(connection);
        }
    }

    /// Closes all kept connections.
    pub(crate) fn clear(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
