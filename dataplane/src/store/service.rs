//! The store on a thread of its own, for the network thread and everybody else.
//!
//! In: commands from any thread. Out: each session's reports, to whom subscribed to it, called on
//! the store's thread. Verification of records runs on a second thread. Invariant: one store a
//! process and folder; dropping the service makes everything durable first.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{IdKey, RepositoryId, SessionId};
use gantry_common::manage::CollectOptions;
use gantry_common::session::store_port::{StoreCommand, StoreReport};
use gantry_uring::buffer::BufferPool;

use super::engine::{CHECKS_MAX, Check, Store};
use super::error::StoreError;
use super::index::Finding;
use super::reader::StoreReader;
use super::storage::Wake;
use super::storage::kernel::KernelStorage;
use crate::payload::Payload;

mod collect;

pub use self::collect::{CollectEvent, OnCollect};
use self::collect::{Collecting, Marked};

/// Takes a session's reports; called on the store's thread, so it must not block.
pub type OnReport = Box<dyn Fn(StoreReport) + Send>;

/// A piece of work on the store, such as deleting points: short, because backups wait meanwhile.
type Act = Box<dyn FnOnce(&mut Store<KernelStorage>) + Send>;

/// Commands taken in before completions are looked at again.
const COMMANDS_AT_ONCE: usize = 64;

enum Message {
    Command(StoreCommand<Payload>),
    Subscribe(SessionId, OnReport),
    Unsubscribe(SessionId),
    Checked(Check, Option<Finding>),
    Run(Act),
    Collect(CollectOptions, OnCollect),
    Marked(Marked),
    CancelCollection,
    Stop,
}

/// The running store. Dropping it shuts it down and waits.
#[derive(Debug)]
pub struct StoreService {
    handle: StoreHandle,
    thread: Option<JoinHandle<()>>,
}

/// A way to the running store; clones share it.
#[derive(Clone)]
pub struct StoreHandle {
    messages: Sender<Message>,
    wake: Wake,
    reader: StoreReader<KernelStorage>,
}

impl std::fmt::Debug for StoreHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoreHandle({})", self.reader.repository())
    }
}

/// The store's thread is gone: it was shut down, or it panicked (which its log says).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the repository's store is no longer running: see the log, restart the mover")]
pub struct StoreGone;

impl StoreService {
    /// Opens the repository in `dir` and starts its thread. `pools` are those whose payloads will
    /// be appended: they are registered with the ring.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn spawn(dir: &Path, pools: Vec<BufferPool>) -> Result<StoreService, StoreError> {
        let storage = KernelStorage::new(dir).with_pools(pools);
        let (messages, inbox) = unbounded();
        let (ready, opened) = bounded(1);
        let to_self = messages.clone();
        let run = move || {
            // The ring belongs to the thread that makes it, so the store is opened here.
            let store = Store::open(storage).and_then(|mut store| {
                let wake = store.waker()?;
                Ok((store, wake))
            });
            match store {
                Ok((store, wake)) => {
                    let reader = store.reader();
                    let notes = store.notes().to_vec();
                    let _ = ready.send(Ok((Arc::clone(&wake), reader.clone(), notes)));
                    drop(ready);
                    Runner::new(store, inbox, to_self, wake, &reader).run();
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        let place = dir.display().to_string();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(run)
            .map_err(|source| StoreError::io("start a thread for", place.clone(), source))?;
        let opened = opened.recv().map_err(|_| StoreError::Refused(StoreGone.to_string()))?;
        let (wake, reader, notes) = opened?;
        notes.iter().for_each(|note| tracing::warn!("{place}: {note}"));
        let handle = StoreHandle { messages, wake, reader };
        Ok(StoreService { handle, thread: Some(thread) })
    }

    /// A way to the store.
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// Makes everything durable, ends every session, and waits for the thread.
    pub fn shut_down(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let _ = self.handle.send(Message::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's thread panicked");
        }
    }
}

impl Drop for StoreService {
    fn drop(&mut self) {
        self.stop();
    }
}

impl StoreHandle {
    fn send(&self, message: Message) -> Result<(), StoreGone> {
        self.messages.send(message).map_err(|_| StoreGone)?;
        (self.wake)();
        Ok(())
    }

    /// Gives the store a command.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub fn submit(&self, command: StoreCommand<Payload>) -> Result<(), StoreGone> {
        self.send(Message::Command(command))
    }

    /// Runs a short piece of work on the store's own thread, between commands.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Store<KernelStorage>) -> T + Send + 'static,
    ) -> Result<T, StoreGone> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        // Whoever asked may be gone by then.
        self.send(Message::Run(Box::new(move |store| drop(answer.send(act(store))))))?;
        answered.await.map_err(|_| StoreGone)
    }

    /// Lets `on_report` have this session's reports from now on, in place of an earlier subscriber.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub fn subscribe(&self, session: SessionId, on_report: OnReport) -> Result<(), StoreGone> {
        self.send(Message::Subscribe(session, on_report))
    }

    /// Drops the subscriber of a session, after the reports of commands given before.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub fn unsubscribe(&self, session: SessionId) -> Result<(), StoreGone> {
        self.send(Message::Unsubscribe(session))
    }

    /// Reads beside the store.
    pub fn reader(&self) -> &StoreReader<KernelStorage> {
        &self.reader
    }

    /// The repository's id.
    pub fn repository(&self) -> RepositoryId {
        self.reader.repository()
    }

    /// The key of its ids.
    pub fn id_key(&self) -> IdKey {
        self.reader.id_key()
    }
}

struct Runner {
    store: Store<KernelStorage>,
    inbox: Receiver<Message>,
    subscribers: BTreeMap<SessionId, OnReport>,
    checks: Option<Sender<Check>>,
    checks_waiting: VecDeque<Check>,
    checker: Option<JoinHandle<()>>,
    collecting: Collecting,
    /// The way to this thread.
    home: (Sender<Message>, Wake),
    started: Instant,
    stopping: bool,
}

impl Runner {
    fn new(
        store: Store<KernelStorage>,
        inbox: Receiver<Message>,
        to_self: Sender<Message>,
        wake: Wake,
        reader: &StoreReader<KernelStorage>,
    ) -> Runner {
        let (checks, to_check) = bounded::<Check>(CHECKS_MAX);
        let mut checker = reader.checker();
        let home = (to_self.clone(), Arc::clone(&wake));
        reader.repo().inquiries.wake_with(Arc::clone(&wake));
        let run = move || {
            for check in to_check {
                let found = checker.check(&check);
                if to_self.send(Message::Checked(check, found)).is_err() {
                    return;
                }
                wake();
            }
        };
        let checker = std::thread::Builder::new().name("store-check".into()).spawn(run);
        if let Err(error) = &checker {
            tracing::warn!("no thread to verify records: duplicates are sent again: {error}");
        }
        Runner {
            store,
            inbox,
            subscribers: BTreeMap::new(),
            checks: checker.is_ok().then_some(checks),
            checks_waiting: VecDeque::new(),
            checker: checker.ok(),
            collecting: Collecting::default(),
            home,
            started: Instant::now(),
            stopping: false,
        }
    }

    fn run(mut self) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            while !self.stopping {
                self.step();
            }
            self.store.shut_down();
            self.deliver();
            self.collecting.look(&mut self.store);
        }));
        if result.is_err() {
            let text = "the repository's store stopped after an internal error: see its log";
            for (session, on_report) in &self.subscribers {
                let failure = Failure::new(FailureKind::Internal, text);
                on_report(StoreReport::Failed { session: *session, task: None, failure });
            }
        }
        drop(self.checks.take());
        if let Some(checker) = self.checker.take() {
            let _ = checker.join();
        }
        self.collecting.join();
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn step(&mut self) {
        let now_ms = self.now_ms();
        self.store.set_wall_ms(crate::host::now_ms());
        for _ in 0..COMMANDS_AT_ONCE {
            let Ok(message) = self.inbox.try_recv() else { break };
            match message {
                Message::Command(command) => self.store.handle(command, now_ms),
                Message::Subscribe(session, on_report) => {
                    self.subscribers.insert(session, on_report);
                }
                Message::Unsubscribe(session) => {
                    self.deliver();
                    self.subscribers.remove(&session);
                }
                Message::Run(act) => act(&mut self.store),
                Message::Checked(check, Some(finding)) => {
                    self.store.handle_checked(&check, finding == Finding::Good);
                }
                Message::Checked(check, None) => self.store.abandon_check(&check),
                Message::Collect(options, on_event) => {
                    self.collecting.begin(&mut self.store, options, on_event, &self.home);
                }
                Message::Marked(marked) => {
                    self.collecting.handle_marked(&mut self.store, marked, &self.home);
                }
                Message::CancelCollection => self.store.cancel_collection(),
                Message::Stop => self.stopping = true,
            }
        }
        self.store.poll(now_ms);
        self.deliver();
        self.collecting.look(&mut self.store);
        self.hand_out_checks();
        if self.inbox.is_empty() && !self.stopping {
            let deadline = self.store.next_deadline_ms();
            let left =
                deadline.map(|at| Duration::from_millis(at.saturating_sub(self.now_ms()) + 1));
            self.store.wait(left);
        }
    }

    fn hand_out_checks(&mut self) {
        while let Some(check) = self.store.next_check() {
            self.checks_waiting.push_back(check);
        }
        while let Some(check) = self.checks_waiting.pop_front() {
            match &self.checks {
                Some(checks) => {
                    if checks.try_send(check).is_err() {
                        return self.checks_waiting.push_front(check);
                    }
                }
                None => self.store.abandon_check(&check),
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(report) = self.store.next_report() {
            if let Some(on_report) = self.subscribers.get(&session_of(&report)) {
                on_report(report);
            }
        }
    }
}

fn session_of(report: &StoreReport) -> SessionId {
    match report {
        StoreReport::SessionOpened { session, .. }
        | StoreReport::Committed { session, .. }
        | StoreReport::Detached { session }
        | StoreReport::Failed { session, .. } => *session,
        StoreReport::TaskOpened { key, .. }
        | StoreReport::BaseIds { key, .. }
        | StoreReport::Answered { key, .. }
        | StoreReport::Appended { key, .. }
        | StoreReport::Durable { key, .. }
        | StoreReport::Sealed { key, .. } => key.session,
    }
}

#[cfg(test)]
mod tests;
