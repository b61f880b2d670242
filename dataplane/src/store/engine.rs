//! The store itself: one owner of a repository, one thread, one loop.
//!
//! In: [`StoreCommand`]s, completions of writes, the time. Out: [`StoreReport`]s.
//! `handle` takes a command, `poll` lets work go on, `next_report` gives what came of it; all
//! three return at once, but for `Detach`, which waits until the session's blocks are durable.
//! Invariant: `Durable` only after the pack's sync and then the journal's; `Committed` only after
//! the manifest's. Deterministic on a deterministic [`Storage`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use gantry_common::ids::{BlockId, PointId, SessionId};
use gantry_common::manage::CollectReport;
use gantry_common::session::store_port::{StoreCommand, StoreReport, TaskKey};
use gantry_common::wire::{SessionKind, SessionOffer, TaskNumber};

use super::ballast;
use super::error::StoreError;
use super::index::{Finding, Location};
use super::journal::{BaseRoot, JournalHead, SealedDisk, list_journals};
use super::layout::{JOURNALS, LOCK, PACKS, POINTS, PackNumber};
use super::pack::{OpenPack, PackNumbers};
use super::points::sync_points;
use super::reader::StoreReader;
use super::reconcile::{open_index, packs_on_disk, reconcile};
use super::repo::Repo;
use super::storage::{Completion, LockError, Storage, Wake, WriteQueue};
use super::superblock::{Superblock, next_epoch, read_epoch};
use super::task::Task;
use crate::payload::Payload;

mod blocks;
mod collect;
mod commit;
mod durable;
mod failing;
mod inquiries;
mod open_task;
mod parts;
mod repair;
mod points;
mod sessions;

use self::collect::Collection;
pub use self::collect::Marker;

#[cfg(test)]
mod tests;

/// Records whose verification is under way at once; beyond, a query is answered "unknown".
pub const CHECKS_MAX: usize = 1024;

/// Writes of verification marks before the index is made durable, so that it reuses its pages.
const MARKS_UNFLUSHED_MAX: u32 = 64;

/// A record that must be read and found right before it may serve another session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// Names the check.
    pub ticket: u64,
    /// The id that the record should have.
    pub id: BlockId,
    /// Where it stands.
    pub at: Location,
}

#[derive(Debug)]
struct Session {
    offer: SessionOffer,
    kind: SessionKind,
    point: PointId,
    is_attached: bool,
    sealed: BTreeMap<TaskNumber, (SealedDisk, Option<BaseRoot>)>,
    committed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    key: TaskKey,
    pack: PackNumber,
    kind: FlightKind,
}

#[derive(Debug, Clone, Copy)]
enum FlightKind {
    Write { slot: u32, block: u64 },
    Sync,
}

/// See the module's text.
#[derive(Debug)]
pub struct Store<S: Storage> {
    repo: Arc<Repo<S>>,
    queue: S::Queue,
    numbers: PackNumbers,
    sessions: BTreeMap<SessionId, Session>,
    tasks: BTreeMap<TaskKey, Task<S>>,
    flights: HashMap<u64, Flight>,
    next_tag: u64,
    reports: VecDeque<StoreReport>,
    /// Journals of tasks that are not committed, by task; the offer without its VM configuration.
    journals: BTreeMap<TaskKey, JournalHead>,
    checks: VecDeque<Check>,
    checking: BTreeMap<u64, (Check, TaskKey, u64, usize)>,
    checked: Vec<(BlockId, Location, Finding)>,
    /// Which session wrote a pack, for packs of this process.
    written_by: BTreeMap<PackNumber, SessionId>,
    /// Packs of tasks that failed, with blocks that were acknowledged.
    failed_packs: Vec<(TaskKey, OpenPack<S::File>)>,
    /// Superseded journals that are still on the disk: they could not be removed.
    undropped: BTreeSet<TaskKey>,
    packs_unflushed: u32,
    marks_unflushed: u32,
    completions: Vec<Completion>,
    now_ms: u64,
    /// Time of day, as it was last told; 0: never.
    wall_ms: u64,
    notes: Vec<String>,
    collection: Option<Collection<S>>,
    collected: Option<Result<CollectReport, StoreError>>,
    _lock: S::Lock,
}

/// The folders that a repository has.
pub const DIRS: [&str; 3] = [PACKS, JOURNALS, POINTS];

/// Takes the lock, or says who has it.
///
/// # Errors
/// [`StoreError::Locked`].
pub fn take_lock<S: Storage>(storage: &S, exclusive: bool) -> Result<S::Lock, StoreError> {
    let host = rustix::system::uname();
    let holder = format!("process {} on {}", std::process::id(), host.nodename().to_string_lossy());
    storage.lock(LOCK, exclusive, &holder).map_err(|error| match error {
        LockError::Held(holder) => StoreError::Locked { path: storage.place(""), holder },
        LockError::Io(source) => StoreError::io("lock", storage.place(LOCK), source),
    })
}

impl<S: Storage> Store<S> {
    /// Opens a repository for writing: takes its lock, draws a new epoch, brings the index in line
    /// with the packs, and commits what a crash left sealed.
    ///
    /// # Errors
    /// [`StoreError`]: no repository, held by another process, or the folder fails.
    pub fn open(storage: S) -> Result<Store<S>, StoreError> {
        let (superblock, copy_failed) = Superblock::read(&storage)?;
        superblock.check_writable(storage.place(""))?;
        let lock = take_lock(&storage, true)?;
        let mut notes = Vec::new();
        if !ballast::give_up(&storage, gantry_common::limits::OPEN_FREE_BYTES_MIN)? {
            ballast::put(&storage);
        }
        if copy_failed {
            superblock.write(&storage)?;
            notes.push("a copy of the superblock was damaged or missing: written again".into());
        }
        if let Err(error @ StoreError::Damaged { .. }) = read_epoch(&storage) {
            notes.push(format!("{error}: done"));
        }
        let index = open_index(&storage, &superblock, true, &mut notes)?;
        let newest = packs_on_disk(&storage)?.last().map_or(0, |pack| pack.epoch());
        let epoch = next_epoch(&storage, newest.max(index.newest_epoch()?))?;
        index.note_epoch(epoch)?;
        let finished = collect::intent::finish(&storage, superblock.repository, &index)?;
        if !finished.is_empty() {
            let packs = finished.len();
            notes.push(format!("a collection was interrupted: finished with {packs} packs"));
        }
        let (packs, reconciled) = reconcile(&storage, &superblock, &index, true)?;
        notes.extend(reconciled.notes);
        if index.is_fresh() && !packs.is_empty() {
            // What the lost index knew of damage and of missing packs is lost with it.
            index.set_suspect()?;
        }
        sync_points(&storage)?;
        let queue = storage
            .write_queue()
            .map_err(|source| StoreError::io("set up writing to", storage.place(""), source))?;
        let mut store = Store {
            repo: Arc::new(Repo::new(storage, superblock, index, packs)),
            queue,
            numbers: PackNumbers::new(epoch),
            sessions: BTreeMap::new(),
            tasks: BTreeMap::new(),
            flights: HashMap::new(),
            next_tag: 0,
            reports: VecDeque::new(),
            journals: BTreeMap::new(),
            checks: VecDeque::new(),
            checking: BTreeMap::new(),
            checked: Vec::new(),
            written_by: BTreeMap::new(),
            failed_packs: Vec::new(),
            undropped: BTreeSet::new(),
            packs_unflushed: 0,
            marks_unflushed: 0,
            completions: Vec::new(),
            now_ms: 0,
            wall_ms: 0,
            notes,
            collection: None,
            collected: None,
            _lock: lock,
        };
        store.load_journals()?;
        store.commit_sealed_sessions()?;
        Ok(store)
    }

    fn load_journals(&mut self) -> Result<(), StoreError> {
        for (path, head) in list_journals(&self.repo.storage)? {
            match head {
                Some(mut head) => {
                    head.offer.vm_config = Vec::new();
                    let key = TaskKey { session: head.session, task: head.task };
                    self.journals.insert(key, head);
                }
                None if !path.ends_with(".tmp") => {
                    // It got its name only when it was durable: this is damage, and not a crash's.
                    let place = self.repo.storage.place(&path);
                    let renamed = self.repo.storage.rename(&path, &format!("{path}.damaged"));
                    renamed.map_err(|source| StoreError::io("rename", place.clone(), source))?;
                    self.notes.push(format!(
                        "{place} is damaged: it is set aside, and its backup begins anew with what \
                         the repository knows"
                    ));
                }
                None => {
                    // Never acknowledged anything: its name was not durable, or it was a copy.
                    let place = self.repo.storage.place(&path);
                    let removed = self.repo.storage.remove(&path);
                    removed.map_err(|source| StoreError::io("remove", place, source))?;
                }
            }
        }
        Ok(())
    }

    /// What a person should know of the opening, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// A reader that shares what this store knows.
    pub fn reader(&self) -> StoreReader<S> {
        StoreReader::shared(Arc::clone(&self.repo))
    }

    /// Unfinished tasks whose progress is kept: session, name, disk.
    pub fn unfinished(&self) -> impl Iterator<Item = (TaskKey, &JournalHead)> {
        self.journals.iter().map(|(key, head)| (*key, head))
    }

    /// The next report, if any.
    pub fn next_report(&mut self) -> Option<StoreReport> {
        self.reports.pop_front()
    }

    /// The next record to verify. Its answer goes to [`Store::handle_checked`].
    pub fn next_check(&mut self) -> Option<Check> {
        self.checks.pop_front()
    }

    /// Pack writes and syncs under way.
    pub fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    /// A waker for [`Store::wait`], for other threads.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn waker(&mut self) -> Result<Wake, StoreError> {
        let waker = self.queue.waker();
        waker.map_err(|source| StoreError::io("watch", self.repo.storage.place(""), source))
    }

    /// Sleeps until a write completes, the waker is used, or the timeout is over.
    pub fn wait(&mut self, timeout: Option<Duration>) {
        self.queue.wait(timeout);
    }

    /// When [`Store::poll`] has something to do even if nothing completes.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        if !self.repo.inquiries.is_empty() && self.checks.len() < CHECKS_MAX {
            return Some(self.now_ms);
        }
        let due = |since| since + gantry_common::limits::CHECKPOINT_MS_MAX;
        let dirty = self.tasks.values().filter_map(|task| task.dirty_since_ms.map(due));
        dirty.chain(self.collection_due_ms()).min()
    }

    /// Takes a command in.
    pub fn handle(&mut self, command: StoreCommand<Payload>, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        match command {
            StoreCommand::OpenSession { session, offer, kind } => {
                self.open_session(session, offer, kind);
            }
            StoreCommand::OpenTask { key } => {
                if let Err(error) = self.open_task(key) {
                    self.fail(key, &error);
                }
            }
            StoreCommand::NeedBase { key, leaf } => {
                self.with_task(key, |store| store.need_base(key, leaf));
            }
            StoreCommand::Marks { key, marks } => {
                self.with_task(key, |store| store.marks(key, &marks));
            }
            StoreCommand::Query { key, batch, blocks } => {
                self.with_task(key, |store| store.query(key, batch, blocks));
            }
            StoreCommand::Append { key, block, head, payload } => {
                if self.tasks.contains_key(&key) {
                    self.with_task(key, |store| store.append(key, block, &head, payload));
                } else {
                    // The task has failed; the buffer goes back all the same.
                    drop(payload);
                    self.reports.push_back(StoreReport::Appended { key, block });
                }
            }
            StoreCommand::Seal { key, totals, mask } => {
                self.with_task(key, |store| store.seal(key, totals, mask));
            }
            StoreCommand::Detach { session } => self.detach(session),
        }
    }

    /// Runs a piece of a task's work; its error ends the task. Nothing if the task is not open: it
    /// has failed, which was reported.
    fn with_task(
        &mut self,
        key: TaskKey,
        act: impl FnOnce(&mut Store<S>) -> Result<(), StoreError>,
    ) {
        if self.tasks.contains_key(&key)
            && let Err(error) = act(self)
        {
            self.fail(key, &error);
        }
    }

    /// Lets work go on: completions, checkpoints that are due.
    pub fn poll(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.collect(false);
        let due: Vec<TaskKey> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.is_checkpoint_due(self.now_ms))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            self.with_task(key, |store| store.checkpoint(key));
        }
        self.look_into_inquiries();
        self.write_marks();
        self.advance_collection();
    }

    /// Verifies what waits to be verified on this thread: for tests and simulations.
    pub fn run_checks(&mut self) {
        let mut checker = super::checker::Checker::new(Arc::clone(&self.repo));
        while let Some(check) = self.next_check() {
            match checker.check(&check) {
                Some(finding) => self.handle_checked(&check, finding == Finding::Good),
                None => self.abandon_check(&check),
            }
        }
    }

    /// Makes everything durable and lets every session go: the end of a mover.
    pub fn shut_down(&mut self) {
        self.cancel_collection();
        let attached = self.sessions.iter().filter(|(_, session)| session.is_attached);
        let attached: Vec<SessionId> = attached.map(|(session, _)| *session).collect();
        let leaving = StoreError::Refused(format!(
            "the mover of repository {} is being stopped: run the backup again, it resumes",
            self.repo.storage.place("")
        ));
        for session in attached {
            self.release(session);
            self.fail_session(session, &leaving);
        }
        while !self.repo.inquiries.is_empty() && self.checks.len() < CHECKS_MAX {
            self.look_into_inquiries();
        }
        self.write_marks();
        if let Err(error) = self.repo.index.flush() {
            tracing::warn!("{error}");
        }
    }

    fn write_marks(&mut self) {
        if !self.checked.is_empty() {
            let checked = std::mem::take(&mut self.checked);
            self.marks_unflushed += 1;
            let flush = self.marks_unflushed >= MARKS_UNFLUSHED_MAX;
            let marked = self.repo.mark(&checked);
            let flushed =
                marked.and_then(|()| if flush { self.repo.index.flush() } else { Ok(()) });
            if flush {
                self.marks_unflushed = 0;
            }
            if let Err(error) = flushed {
                tracing::warn!("{error}");
            }
        }
    }

    fn tag(&mut self, flight: Flight) -> u64 {
        self.next_tag += 1;
        self.flights.insert(self.next_tag, flight);
        self.next_tag
    }
}
