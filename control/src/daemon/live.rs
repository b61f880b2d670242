//! What runs right now: live numbers and the newest lines of the log, for whoever watches.
//!
//! In: what runs say. Out: a snapshot of the numbers, and a stream of changes; a watcher that is too
//! slow loses changes and is told so, and nobody waits for it. Holds nothing that must survive.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_common::ids::SessionId;
use gantry_common::work::DiskProgress;
use gantry_database::model::{EventRecord, Id};
use tokio::sync::broadcast;

use crate::run::document::{DiskTask, RunDocument, TaskState};
use crate::transport::TransportMode;

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

/// Over how long a rate is taken.
const RATE_OVER: Duration = Duration::from_secs(10);
/// Looks at a run that are kept for its rate.
const LOOKS_MAX: usize = 64;

/// A run's numbers.
#[derive(Debug, Default)]
struct Run {
    disks: BTreeMap<i32, DiskProgress>,
    /// What was done of all of it, and when; the oldest first.
    looks: VecDeque<(Instant, u64)>,
}

impl Run {
    fn note(&mut self, key: i32, disk: &DiskProgress, now: Instant) {
        self.disks.insert(key, disk.clone());
        let done = self.disks.values().map(|disk| disk.done_bytes).sum();
        while self.looks.len() >= LOOKS_MAX
            || self.looks.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE_OVER)
        {
            self.looks.pop_front();
        }
        self.looks.push_back((now, done));
    }

    /// Bytes a second over the last seconds.
    fn rate(&self, now: Instant) -> u64 {
        let (Some((began, first)), Some((_, last))) = (self.looks.front(), self.looks.back())
        else {
            return 0;
        };
        let over = now.duration_since(*began).max(Duration::from_secs(1));
        (last.saturating_sub(*first) as f64 / over.as_secs_f64()) as u64
    }
}

/// How a disk stands, without what its report tells besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStanding {
    /// Device key.
    pub key: i32,
    /// Label.
    pub label: String,
    /// `waiting`, `running` or `durable`.
    pub state: &'static str,
    /// The proxy that works on it, or has.
    pub proxy: Option<String>,
    /// By which road.
    pub mode: Option<TransportMode>,
    /// Of a durable disk: bytes read, bytes sent.
    pub done: Option<(u64, u64)>,
}

impl DiskStanding {
    /// Of a run's disk.
    pub fn of(disk: &DiskTask) -> DiskStanding {
        let (state, proxy, mode) = match &disk.state {
            TaskState::Waiting => ("waiting", None, None),
            TaskState::Running { proxy, mode, .. } => ("running", Some(proxy), Some(*mode)),
            TaskState::Held { proxy, mode, .. } => ("durable", Some(proxy), Some(*mode)),
        };
        let bytes = |report: &serde_json::Value, field: &str| report[field].as_u64().unwrap_or(0);
        let done = disk
            .report()
            .map(|report| (bytes(report, "bytes_read"), bytes(report, "bytes_transferred")));
        let (key, label) = (disk.key, disk.label.clone());
        DiskStanding { key, label, state, proxy: proxy.cloned(), mode, done }
    }
}

/// The disks of a session's runs: run, machine, disks.
pub type Standings = BTreeMap<Id, (String, Vec<DiskStanding>)>;

/// The live numbers. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Live {
    runs: Arc<Mutex<BTreeMap<SessionId, Run>>>,
    standings: Arc<Mutex<BTreeMap<Id, Standings>>>,
    changes: broadcast::Sender<Change>,
}

impl Default for Live {
    fn default() -> Live {
        Live {
            runs: Arc::default(),
            standings: Arc::default(),
            changes: broadcast::channel(CHANGES_MAX).0,
        }
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
        runs.entry(run).or_default().note(key, disk, Instant::now());
    }

    /// A run's numbers by its disks' keys, and the bytes that were done a second lately.
    pub fn of(&self, run: SessionId) -> (BTreeMap<i32, DiskProgress>, u64) {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.get(&run).map(|run| (run.disks.clone(), run.rate(Instant::now()))).unwrap_or_default()
    }

    /// How a run of a session stands now.
    pub fn stands(&self, session: Id, run: Id, document: &RunDocument) {
        let disks = document.frozen.iter().flat_map(|frozen| &frozen.disks);
        let standing = (document.vm_name.clone(), disks.map(DiskStanding::of).collect());
        let mut sessions = self.standings.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.entry(session).or_default().insert(run, standing);
    }

    /// How a session's disks stand; nothing of one that does not run.
    pub fn standings(&self, session: Id) -> Option<Standings> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner).get(&session).cloned()
    }

    /// A session is over.
    pub fn forget_session(&self, session: Id) {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
    }

    /// A run has ended.
    pub fn forget(&self, run: SessionId) {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_seconds_and_costs_bounded_memory() {
        let mut run = Run::default();
        let began = Instant::now();
        assert_eq!(run.rate(began), 0);
        for second in 0..1_000 {
            let disk = DiskProgress { done_bytes: second * 1_000, ..DiskProgress::default() };
            run.note(2000, &disk, began + Duration::from_secs(second));
        }
        assert_eq!(run.rate(began + Duration::from_secs(999)), 1_000);
        assert!(run.looks.len() <= 12);
        // A run that stands still slows down.
        assert!(run.rate(began + Duration::from_secs(1_009)) <= 500);
    }
}
