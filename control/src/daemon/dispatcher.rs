//! The scheduler at work: runs wait here for their snapshot's turn and for their disks' slots.
//!
//! In: facts about proxies, repositories and datastores; requests of runs. Out: turns and places, each
//! with the scheduler's reason. One for the whole service. Every change asks the scheduler anew; its
//! decisions go to whoever waits for them. Must not: decide; [`gantry_scheduler`] does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use gantry_scheduler::{
    Assignment, Decision, HoldReason, Proxy, ProxyName, Repository, RequestError, Scheduler,
    SessionVm, TaskId, VmRequest,
};
use tokio::sync::mpsc;

/// What a run hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Its snapshot may be made now, for this reason.
    SnapshotNow(String),
    /// A disk has its place.
    Assigned(Assignment),
    /// It waits, for this reason; a hopeless one ends only with other facts.
    Held {
        /// The disk, if the snapshot stands.
        task: Option<TaskId>,
        /// In words.
        reason: String,
        /// Waiting alone helps nothing.
        is_hopeless: bool,
    },
}

#[derive(Debug)]
struct Books {
    scheduler: Scheduler,
    listeners: BTreeMap<SessionVm, mpsc::UnboundedSender<Turn>>,
    next_task: u64,
}

/// The scheduler, and who waits. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    books: Arc<Mutex<Books>>,
    started: Instant,
}

impl Default for Dispatcher {
    fn default() -> Dispatcher {
        Dispatcher::new()
    }
}

impl Dispatcher {
    /// Knows nobody yet.
    pub fn new() -> Dispatcher {
        let (scheduler, listeners) = (Scheduler::new(), BTreeMap::new());
        let books = Arc::new(Mutex::new(Books { scheduler, listeners, next_task: 1 }));
        Dispatcher { books, started: Instant::now() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the books, then asks the scheduler what is to be done now.
    fn change<T>(&self, change: impl FnOnce(&mut Scheduler) -> T) -> T {
        let mut books = self.books();
        let changed = change(&mut books.scheduler);
        self.serve(&mut books);
        changed
    }

    fn serve(&self, books: &mut Books) {
        for decision in books.scheduler.next(self.started.elapsed()) {
            let (machine, turn) = match decision {
                Decision::SnapshotNow { machine, reason, .. } => {
                    (machine, Turn::SnapshotNow(reason.to_string()))
                }
                Decision::Assign(assignment) => {
                    (assignment.machine.clone(), Turn::Assigned(assignment))
                }
                Decision::Hold { machine, task, reason } => (machine, held(task, &reason)),
            };
            // Who has left hears nothing; the books follow with its leaving.
            if let Some(listener) = books.listeners.get(&machine) {
                let _ = listener.send(turn);
            }
        }
    }

    /// Numbers for `count` tasks, never given again.
    pub fn numbers(&self, count: usize) -> Vec<TaskId> {
        let mut books = self.books();
        let first = books.next_task;
        books.next_task += count as u64;
        (first..books.next_task).map(TaskId).collect()
    }

    /// Queues a machine; its turns come through the receiver until it leaves.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn add(&self, request: VmRequest) -> Result<mpsc::UnboundedReceiver<Turn>, RequestError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let key = SessionVm { session: request.session.clone(), vm: request.vm.clone() };
        let mut books = self.books();
        books.scheduler.add_vm(request, self.started.elapsed())?;
        books.listeners.insert(key, sender);
        self.serve(&mut books);
        Ok(receiver)
    }

    /// The machine's snapshot stands.
    pub fn opened(&self, machine: &SessionVm) {
        self.change(|scheduler| scheduler.snapshot_opened(machine));
    }

    /// A disk is done with its place for good.
    pub fn finished(&self, task: TaskId) {
        self.change(|scheduler| scheduler.finished(task));
    }

    /// A disk's road does not work there.
    pub fn road_failed(&self, task: TaskId) {
        self.change(|scheduler| scheduler.road_failed(task));
    }

    /// A disk's task went down, its road is not at fault: it waits again, first in line.
    pub fn interrupted(&self, task: TaskId) {
        self.change(|scheduler| scheduler.interrupted(task));
    }

    /// The machine's run has ended, and its snapshot is gone or will be taken away later.
    pub fn leave(&self, machine: &SessionVm, tasks: &[TaskId]) {
        let mut books = self.books();
        books.listeners.remove(machine);
        let scheduler = &mut books.scheduler;
        scheduler.cancel_vm(machine);
        tasks.iter().for_each(|task| {
            scheduler.finished(*task);
        });
        if !scheduler.snapshot_removed(machine) {
            scheduler.snapshot_failed(machine);
        }
        self.serve(&mut books);
    }

    /// A proxy as it is now; `is_there`: its mover is connected.
    pub fn set_proxy(&self, proxy: Proxy, is_there: bool) {
        let name = proxy.name.clone();
        self.change(|scheduler| {
            scheduler.set_proxy(proxy);
            if is_there {
                scheduler.proxy_back(&name);
            } else {
                scheduler.proxy_lost(&name);
            }
        });
    }

    /// A proxy is no longer configured.
    pub fn remove_proxy(&self, name: &ProxyName) {
        self.change(|scheduler| scheduler.remove_proxy(name));
    }

    /// A repository as it is now.
    pub fn set_repository(&self, repository: Repository) {
        self.change(|scheduler| scheduler.set_repository(repository));
    }

    /// To be called now and then: what waits long enough comes forward.
    pub fn tick(&self) {
        self.change(|_| ());
    }
}

fn held(task: Option<TaskId>, reason: &HoldReason) -> Turn {
    Turn::Held { task, reason: reason.to_string(), is_hopeless: reason.is_hopeless() }
}
