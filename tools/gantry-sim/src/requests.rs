//! Requests as they come: counted, listed, and shown to a hook that a test has set.
//!
//! In: every request of clients, twice: before the simulator acts on it, and when it has acted but
//! not answered; and once more when the task that it started has done its work. Out: whether it goes
//! on. A hook may block, and may kill a client, so that a test walks a client's death through every
//! step of its work without a change in the client. `/gantry-sim/requests` shows the same to people.
//! Drills' own requests are not counted. Nothing here holds a lock while a hook runs.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, PoisonError};

use serde::Serialize;

use crate::limits;
use crate::sim::Sim;

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing was done yet.
    Before,
    /// It is done, its answer is not sent; of a `_Task` method the task exists and may run already.
    Acted,
    /// The work of the task that it started is done (or has failed), but the task still says that
    /// it runs.
    TaskWorked,
}

/// One request in one phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Its place among all requests since the hook was set, from 1.
    pub number: u64,
    /// Its place among the requests of its method, from 1. Unlike `number` it does not shift when
    /// a client happens to ask once more for updates.
    pub of_method: u64,
    /// The method on the wire (`CreateSnapshot_Task`, `Fetch`), or verb and route of what is not
    /// SOAP (`GET /folder`, `GET /nfc`). `unknown` is what the simulator does not know.
    pub method: &'static str,
    /// The object's id, or the address's path.
    pub object: String,
    /// The endpoint's number; 0 is vCenter.
    pub endpoint: usize,
    /// How far it is.
    pub phase: Phase,
}

/// What becomes of a request after a hook has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It takes its course.
    GoOn,
    /// The connection is cut: before acting, so that nothing is done; after it, so that the client
    /// never learns of it. Says nothing about a task.
    Cut,
}

/// A hook, called on a thread where it may block.
pub type Hook = dyn Fn(&Seen) -> Then + Send + Sync;

/// What was seen.
#[derive(Default)]
pub struct Requests {
    hook: Option<Arc<Hook>>,
    number: u64,
    counts: BTreeMap<&'static str, u64>,
    recent: VecDeque<Seen>,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("number", &self.number).finish_non_exhaustive()
    }
}

/// What `/gantry-sim/requests` tells.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// All requests.
    pub total: u64,
    /// Requests of each method.
    pub methods: BTreeMap<&'static str, u64>,
    /// The newest, oldest first, bounded.
    pub recent: Vec<Seen>,
}

impl Sim {
    /// Shows every request from now on to `hook`, and counts anew. A hook replaces the one before.
    pub fn on_request(&self, hook: impl Fn(&Seen) -> Then + Send + Sync + 'static) {
        let fresh = Requests { hook: Some(Arc::new(hook)), ..Requests::default() };
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    /// No hook from now on.
    pub fn stop_watching(&self) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).hook = None;
    }

    /// Counts anew; a hook stays.
    pub fn count_requests_anew(&self) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let hook = requests.hook.take();
        *requests = Requests { hook, ..Requests::default() };
    }

    /// What was seen since the hook was set, or since the start.
    #[must_use]
    pub fn requests(&self) -> Report {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = requests.recent.iter().cloned().collect();
        Report { total: requests.number, methods: requests.counts.clone(), recent }
    }

    /// Counts a request that has come.
    pub fn note_request(&self, endpoint: usize, method: &'static str, object: &str) -> Seen {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.number += 1;
        let of_method = requests.counts.entry(method).or_default();
        *of_method += 1;
        let of_method = *of_method;
        let object: String = object.chars().take(limits::NAME_BYTES_MAX).collect();
        let (number, phase) = (requests.number, Phase::Before);
        let seen = Seen { number, of_method, method, object, endpoint, phase };
        if requests.recent.len() >= limits::REQUESTS_LISTED_MAX {
            requests.recent.pop_front();
        }
        requests.recent.push_back(seen.clone());
        seen
    }

    /// Shows a request to the hook, if there is one, and waits for its word.
    pub async fn show_request(&self, seen: &Seen, phase: Phase) -> Then {
        let hook = self.requests.lock().unwrap_or_else(PoisonError::into_inner).hook.clone();
        let Some(hook) = hook else { return Then::GoOn };
        let seen = Seen { phase, ..seen.clone() };
        // A hook that panicked belongs to a test that fails for its own reason.
        tokio::task::spawn_blocking(move || hook(&seen)).await.unwrap_or(Then::GoOn)
    }
}
