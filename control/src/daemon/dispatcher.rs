//! The scheduler at work: runs wait here for their snapshot's turn and for their disks' slots.
//!
//! In: facts about proxies, repositories and datastores; requests of runs. Out: turns and places, each
//! with the scheduler's reason. One for the whole service. Every change asks the scheduler anew; its
//! decisions go to whoever waits for them. Must not: decide; [`gantry_scheduler`] does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use gantry_scheduler::{
    Assignment, DatastoreName, Decision, GuardState, HoldReason, Proxy, ProxyName, Repository,
    RequestError, Scheduler, SessionVm, TaskId, TransportMode, VmRequest,
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
    /// What each machine's job allows on its datastores; the least holds.
    snapshots_max: BTreeMap<SessionVm, (u32, BTreeSet<DatastoreName>)>,
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
        let snapshots_max = BTreeMap::new();
        let books = Books { scheduler, listeners, snapshots_max, next_task: 1 };
        let books = Arc::new(Mutex::new(books));
        Dispatcher { books, started: Instant::now() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Disks that have no place yet.
    pub fn waiting(&self) -> usize {
        self.books().scheduler.waiting()
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

    /// Queues a machine; its turns come through the receiver until it leaves. `running`: its
    /// snapshot stands already, and these of its disks are copied. Its datastores may have
    /// `snapshots_max` snapshots at a time.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn add(
        &self,
        request: VmRequest,
        running: Option<&BTreeMap<TaskId, (ProxyName, TransportMode)>>,
        snapshots_max: u32,
    ) -> Result<mpsc::UnboundedReceiver<Turn>, RequestError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let key = SessionVm { session: request.session.clone(), vm: request.vm.clone() };
        let datastores = request.disks.iter().map(|disk| disk.datastore.clone()).collect();
        let (mut books, now) = (self.books(), self.started.elapsed());
        match running {
            None => books.scheduler.add_vm(request, now)?,
            Some(running) => books.scheduler.add_open(request, running, now)?,
        }
        books.listeners.insert(key.clone(), sender);
        books.set_limit(key, snapshots_max, datastores);
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
        books.drop_limit(machine);
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

    /// The latency guard changed its mind about a datastore.
    pub fn set_guard(&self, datastore: &DatastoreName, guard: GuardState) {
        self.change(|scheduler| scheduler.set_guard(datastore, guard));
    }

    /// To be called now and then: what waits long enough comes forward.
    pub fn tick(&self) {
        self.change(|_| ());
    }
}

impl Books {
    fn set_limit(&mut self, machine: SessionVm, max: u32, datastores: BTreeSet<DatastoreName>) {
        self.snapshots_max.insert(machine, (max, datastores.clone()));
        self.tell_limits(&datastores);
    }

    fn drop_limit(&mut self, machine: &SessionVm) {
        if let Some((_, datastores)) = self.snapshots_max.remove(machine) {
            self.tell_limits(&datastores);
        }
    }

    /// Where jobs of different limits meet, the strictest holds.
    fn tell_limits(&mut self, datastores: &BTreeSet<DatastoreName>) {
        for name in datastores {
            let on_it = self.snapshots_max.values().filter(|(_, all)| all.contains(name));
            if let Some(least) = on_it.map(|(max, _)| *max).min() {
                self.scheduler.set_snapshots_max(name, least);
            }
        }
    }
}

fn held(task: Option<TaskId>, reason: &HoldReason) -> Turn {
    Turn::Held { task, reason: reason.to_string(), is_hopeless: reason.is_hopeless() }
}
