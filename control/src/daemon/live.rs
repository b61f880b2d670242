//! What runs right now: live numbers and the newest lines of the log, for whoever watches.
//!
//! In: what runs say. Out: a snapshot of the numbers, and a stream of changes; a watcher that is too
//! slow loses changes and is told so, and nobody waits for it. Holds nothing that must survive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use gantry_common::ids::SessionId;
use gantry_common::work::DiskProgress;
use gantry_database::model::{EventRecord, Id};
use tokio::sync::broadcast;

/// Changes that a slow watcher may be behind.
const CHANGES_MAX: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A line of the log.
    Event(EventRecord),
    /// A disk's numbers.
    Progress {
        /// The session.
        session: Id,
        /// The run.
        run: Id,
        /// The machine's name.
        vm: String,
        /// The disk.
        disk: DiskProgress,
    },
    /// A session, a run or a task changed its state.
    State {
        /// The session.
        session: Id,
    },
}

impl Change {
    /// The session that it is about.
    pub fn session(&self) -> Id {
        match self {
            Change::Event(event) => event.session,
            Change::Progress { session, .. } | Change::State { session } => *session,
        }
    }
}

type Disks = BTreeMap<i32, DiskProgress>;

/// The live numbers. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Live {
    runs: Arc<Mutex<BTreeMap<SessionId, Disks>>>,
    changes: broadcast::Sender<Change>,
}

impl Default for Live {
    fn default() -> Live {
        Live { runs: Arc::default(), changes: broadcast::channel(CHANGES_MAX).0 }
    }
}

impl Live {
    /// Tells whoever watches.
    pub fn tell(&self, change: Change) {
        // Nobody may be watching.
        let _ = self.changes.send(change);
    }

    /// Everything from now on.
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// A disk's numbers.
    pub fn progress(&self, run: SessionId, key: i32, disk: &DiskProgress) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.entry(run).or_default().insert(key, disk.clone());
    }

    /// A run's numbers.
    pub fn of(&self, run: SessionId) -> Vec<DiskProgress> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.get(&run).map(|disks| disks.values().cloned().collect()).unwrap_or_default()
    }

    /// A run has ended.
    pub fn forget(&self, run: SessionId) {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
    }
}
