//! A run's record: its document, saved before each step, its log and its disks' numbers.
//!
//! In: what the run says. Out: rows of the database, changes for watchers. Lines are written in
//! batches by [`EventWriter`], in their order; a document is durable when [`RunJournal::save`]
//! returns.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;
use gantry_common::work::DiskProgress;
use gantry_database::model::{EventRecord, Id, SessionResult, Severity as Kept};
use gantry_database::{Database, Ending, Transition};
use tokio::sync::{mpsc, oneshot};

use super::live::{Change, Live};
use crate::run::document::{Outcome, RunDocument, RunState};
use crate::run::site::Severity;
use crate::run::{failed, now_ms};

/// Lines that are written at once.
const BATCH_MAX: usize = 512;
/// How long a line waits for others at most.
const BATCH_WITHIN: Duration = Duration::from_millis(200);

enum Entry {
    Line(EventRecord),
    Flush(oneshot::Sender<()>),
}

/// Writes lines in batches. Cloning is cheap.
#[derive(Clone)]
pub struct EventWriter {
    lines: mpsc::UnboundedSender<Entry>,
    live: Live,
}

impl EventWriter {
    /// Starts writing to this database.
    pub fn start(database: Database, live: Live) -> EventWriter {
        let (lines, queue) = mpsc::unbounded_channel();
        tokio::spawn(write(database, queue));
        EventWriter { lines, live }
    }

    /// Takes a line in.
    pub fn say(&self, event: EventRecord) {
        self.live.tell(Change::Event(event.clone()));
        // After the end of the service nobody reads it any more.
        let _ = self.lines.send(Entry::Line(event));
    }

    /// Returns when every line so far is in the database.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.lines.send(Entry::Flush(done)).is_ok() {
            let _ = wait.await;
        }
    }
}

async fn write(database: Database, mut queue: mpsc::UnboundedReceiver<Entry>) {
    while let Some(first) = queue.recv().await {
        let (mut batch, mut waiting) = (Vec::new(), Vec::new());
        let until = tokio::time::Instant::now() + BATCH_WITHIN;
        let mut next = Some(first);
        while let Some(entry) = next {
            match entry {
                Entry::Line(line) => batch.push(line),
                Entry::Flush(done) => waiting.push(done),
            }
            next = match batch.len() < BATCH_MAX && waiting.is_empty() {
                true => tokio::time::timeout_at(until, queue.recv()).await.ok().flatten(),
                false => None,
            };
        }
        if let Err(error) = database.append_events(&batch).await {
            tracing::error!("{} lines of the log could not be kept: {error}", batch.len());
        }
        waiting.into_iter().for_each(|done| {
            let _ = done.send(());
        });
    }
}

/// One run's journal. Cloning is cheap.
#[derive(Clone)]
pub struct RunJournal {
    database: Database,
    events: EventWriter,
    live: Live,
    session: Id,
    run: Id,
    vm: String,
    /// The state that the database has.
    kept: Arc<Mutex<String>>,
    warnings: Arc<AtomicBool>,
}

impl RunJournal {
    /// The journal of a run that the database has in `state`.
    pub fn new(
        (database, events, live): (Database, EventWriter, Live),
        (session, run, vm): (Id, Id, &str),
        state: &str,
    ) -> RunJournal {
        let kept = Arc::new(Mutex::new(state.to_owned()));
        let (vm, warnings) = (vm.to_owned(), Arc::default());
        RunJournal { database, events, live, session, run, vm, kept, warnings }
    }

    /// Takes a line of the log in.
    pub fn say(&self, severity: Severity, disk: Option<&str>, text: &str) {
        self.warnings.fetch_or(severity == Severity::Warning, Ordering::Relaxed);
        self.events.say(EventRecord {
            session: self.session,
            vm: Some(self.vm.clone()),
            disk: disk.map(str::to_owned),
            time_ms: now_ms(),
            severity: match severity {
                Severity::Info => Kept::Info,
                Severity::Warning => Kept::Warning,
                Severity::Error => Kept::Error,
            },
            text: text.to_owned(),
        });
    }

    /// Takes a disk's live numbers in.
    pub fn progress(&self, key: i32, disk: &DiskProgress) {
        self.live.progress(SessionId::from(self.run), key, disk);
        let (session, run, vm) = (self.session, self.run, self.vm.clone());
        self.live.tell(Change::Progress { session, run, vm, disk: disk.clone() });
    }

    /// Makes the document durable.
    ///
    /// # Errors
    /// `Internal`: the run must not act on it.
    pub async fn save(&self, document: &RunDocument) -> Result<(), Failure> {
        let value =
            serde_json::to_value(document).map_err(|error| failed(FailureKind::Internal, error))?;
        let expected = self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let new = document.state.name().to_owned();
        let ending = match &document.state {
            RunState::Ended { outcome } => Some(self.ending(outcome)),
            _ => None,
        };
        let (vm_run, now_ms) = (self.run, now_ms());
        let after = new.clone();
        let step = Transition { vm_run, expected, new, document: value, ending, now_ms };
        self.database.transition(&step).await?;
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = after;
        self.live.stands(self.session, self.run, document);
        self.live.tell(Change::State { session: self.session });
        Ok(())
    }

    /// Whether the log has a warning.
    pub fn has_warnings(&self) -> bool {
        self.warnings.load(Ordering::Relaxed)
    }

    fn ending(&self, outcome: &Outcome) -> Ending {
        let (result, reason, point) = match outcome {
            Outcome::Point(point) if self.has_warnings() => {
                (SessionResult::Warning, None, Some(point))
            }
            Outcome::Point(point) => (SessionResult::Success, None, Some(point)),
            Outcome::Failed(failure) => (SessionResult::Failed, Some(failure.to_string()), None),
            Outcome::Stopped(why) => (SessionResult::Failed, Some(why.clone()), None),
        };
        Ending { result, reason, point: point.and_then(|point| point.parse().ok()) }
    }
}
