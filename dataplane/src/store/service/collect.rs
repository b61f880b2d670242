//! Collections of the running store: marking on a thread of its own, giving back on the store's.
//!
//! In: a request with its options. Out: events, called on the store's thread. While sessions are
//! attached the marking thread works for [`limits::COLLECT_DUTY_PERCENT`] of the time, so that it
//! leaves the machine to them. Invariant: whoever asked hears `Done` or `Failed`, once, unless the
//! store's thread itself ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use gantry_common::limits;
use gantry_common::manage::{CollectOptions, CollectReport};

use super::{Message, StoreGone, StoreHandle};
use crate::store::engine::{Marker, Store};
use crate::store::error::StoreError;
use crate::store::storage::Wake;
use crate::store::storage::kernel::KernelStorage;

/// Time between two tellings of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(300);
/// Work done before a rest, and the rest before more roots are looked for.
const WORK_AT_ONCE: Duration = Duration::from_millis(5);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// What a collection tells.
#[derive(Debug)]
pub enum CollectEvent {
    /// How far it is: points and journals marked, or packs looked at, of how many.
    Progress {
        /// What it does.
        phase: &'static str,
        /// Done.
        done: u64,
        /// There are.
        total: u64,
    },
    /// It is over.
    Done(CollectReport),
    /// It could not be done, or not to its end.
    Failed(StoreError),
}

/// Takes a collection's events; called on the store's thread, so it must not block.
pub type OnCollect = Box<dyn FnMut(CollectEvent) + Send>;

/// What the marking thread sends home.
pub(super) enum Marked {
    Progress(u64, u64),
    Done(Box<Marker<KernelStorage>>),
    Failed(StoreError),
}

impl StoreHandle {
    /// Collects; `on_event` hears how it goes. Refused with an event if a collection runs.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub fn collect(&self, options: CollectOptions, on_event: OnCollect) -> Result<(), StoreGone> {
        self.send(Message::Collect(options, on_event))
    }

    /// Stops the collection that runs, if any, as soon as it can; it is told as over.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub fn cancel_collection(&self) -> Result<(), StoreGone> {
        self.send(Message::CancelCollection)
    }
}

/// The running collection, as the store's thread sees it.
#[derive(Default)]
pub(super) struct Collecting {
    on_event: Option<OnCollect>,
    thread: Option<JoinHandle<()>>,
    /// Sessions are attached.
    is_busy: Arc<AtomicBool>,
    told: Option<Instant>,
}

impl Collecting {
    fn tell(&mut self, event: CollectEvent) {
        if let Some(on_event) = &mut self.on_event {
            on_event(event);
        }
    }

    pub(super) fn begin(
        &mut self,
        store: &mut Store<KernelStorage>,
        options: CollectOptions,
        mut on_event: OnCollect,
        home: &(Sender<Message>, Wake),
    ) {
        match store.begin_collection(options) {
            Ok(marker) => {
                self.on_event = Some(on_event);
                self.mark(store, marker, Duration::ZERO, home);
            }
            Err(error) => on_event(CollectEvent::Failed(error)),
        }
    }

    fn mark(
        &mut self,
        store: &mut Store<KernelStorage>,
        marker: Marker<KernelStorage>,
        rest: Duration,
        home: &(Sender<Message>, Wake),
    ) {
        self.join();
        let is_busy = Arc::clone(&self.is_busy);
        let (home, wake) = (home.0.clone(), Arc::clone(&home.1));
        let run = move || {
            std::thread::sleep(rest);
            let send = |marked| {
                // The store's thread is gone: nobody asks any more.
                let _ = home.send(Message::Marked(marked));
                wake();
            };
            let result = catch_unwind(AssertUnwindSafe(|| mark_all(marker, &is_busy, &send)));
            send(result.unwrap_or_else(|_| {
                let text = "marking ended with an internal error: see the log";
                Marked::Failed(StoreError::Refused(text.to_owned()))
            }));
        };
        match std::thread::Builder::new().name("store-collect".into()).spawn(run) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => {
                let text = format!("no thread to mark what is needed: {error}");
                store.fail_collection(StoreError::Refused(text));
            }
        }
    }

    pub(super) fn handle_marked(
        &mut self,
        store: &mut Store<KernelStorage>,
        marked: Marked,
        home: &(Sender<Message>, Wake),
    ) {
        match marked {
            Marked::Progress(done, total) => {
                self.tell(CollectEvent::Progress { phase: "marking", done, total });
            }
            Marked::Done(marker) => {
                if let Some(more) = store.handle_marked(*marker) {
                    self.mark(store, more, LOOK_AGAIN_AFTER, home);
                }
            }
            Marked::Failed(error) => store.fail_collection(error),
        }
    }

    /// After each round of the store's thread: progress, and the end.
    pub(super) fn look(&mut self, store: &mut Store<KernelStorage>) {
        self.is_busy.store(store.has_attached_sessions(), Ordering::Relaxed);
        if let Some(result) = store.take_collected() {
            self.tell(match result {
                Ok(report) => CollectEvent::Done(report),
                Err(error) => CollectEvent::Failed(error),
            });
            self.on_event = None;
            self.told = None;
        } else if let Some((done, total)) = store.collection_progress()
            && self.told.is_none_or(|told| told.elapsed() >= PROGRESS_EVERY)
        {
            self.told = Some(Instant::now());
            self.tell(CollectEvent::Progress { phase: "giving back", done, total });
        }
    }

    /// Waits for the marking thread; it ends soon after its collection.
    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that marks panicked");
        }
    }
}

fn mark_all(
    mut marker: Marker<KernelStorage>,
    is_busy: &AtomicBool,
    send: &impl Fn(Marked),
) -> Marked {
    let mut told = Instant::now();
    let mut began = Instant::now();
    loop {
        match marker.step() {
            Ok(false) => {}
            Ok(true) => return Marked::Done(Box::new(marker)),
            Err(error) => return Marked::Failed(error),
        }
        let worked = began.elapsed();
        if worked < WORK_AT_ONCE {
            continue;
        }
        if is_busy.load(Ordering::Relaxed) {
            let percent = limits::COLLECT_DUTY_PERCENT;
            std::thread::sleep(worked * (100 - percent) / percent);
        }
        if told.elapsed() >= PROGRESS_EVERY {
            let (done, total) = marker.progress();
            send(Marked::Progress(done, total));
            told = Instant::now();
        }
        began = Instant::now();
    }
}
