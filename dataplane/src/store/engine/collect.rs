//! Collection: giving back what no restore point and no unfinished backup needs.
//!
//! In: `begin_collection`, pieces of marking from any thread, `poll`. Out: a [`CollectReport`].
//! Marks first, then purges deleted points, then gives records back in small steps. Nothing is
//! given back before every mark is complete, and nothing but what was judged: packs sealed after
//! the beginning are exempt. While it runs, the store refers only to places that are marked or
//! exempt ([`Shared::may_refer`]), so that no new reference can come to what is given up.
//! Decided in docs/decisions/0004-collection.md.
//!
//! ```text
//!  begin ──> Marking ──> Purging ──> Sweeping ──> report
//!              │ marker: roots, trees, journals; new roots come through the grey queue
//!              │                          └ any fault: Failed, which guards the intent
//!              └ any fault: nothing is given back
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_common::limits;
use gantry_common::manage::{CollectOptions, CollectReport};
use gantry_common::session::store_port::TaskKey;

use super::Store;
use crate::store::ballast;
use crate::store::error::StoreError;
use crate::store::index::Location;
use crate::store::layout::{JOURNALS, journal_path};
use crate::store::live_map::{LiveMap, LiveMapFault};
use crate::store::storage::Storage;
use crate::store::task::SealStage;

pub mod intent;
pub mod policy;
mod barriers;
mod mark;
mod plan;
mod rewrite;
mod roots;
mod sweep;

pub use self::mark::Marker;
use self::roots::{PurgedDir, Root};
use self::sweep::Sweep;

/// What the marker's thread and the store's thread share.
#[derive(Debug)]
pub(super) struct Shared<S: Storage> {
    live: Mutex<LiveMap<S>>,
    /// Trees that became roots while marking was under way.
    grey: Mutex<VecDeque<Root>>,
    /// Why the collection cannot go on.
    fault: Mutex<Option<StoreError>>,
    stopped: AtomicBool,
    /// Nothing will be given back, so nothing need be spared.
    dry_run: bool,
    /// For messages.
    place: String,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Storage> Shared<S> {
    fn fault(&self, fault: LiveMapFault) -> StoreError {
        match fault {
            LiveMapFault::Io(source) => {
                StoreError::io("use a scratch file in", self.place.clone(), source)
            }
            wrong @ LiveMapFault::NoSuchSlot { .. } => {
                StoreError::Index { path: self.place.clone(), what: wrong.to_string() }
            }
        }
    }

    /// Ends the collection with this error.
    fn fail(&self, error: StoreError) {
        locked(&self.fault).get_or_insert(error);
        self.stopped.store(true, Ordering::Release);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Makes the record at a place live; whether it was, or need not be because it is exempt.
    fn set_live(&self, at: &Location) -> Result<Option<bool>, StoreError> {
        let was = locked(&self.live).set_live(at.pack, at.slot);
        was.map_err(|fault| self.fault(fault))
    }
}

#[derive(Debug)]
enum Stage<S: Storage> {
    Marking,
    Purging(VecDeque<PurgedDir>),
    Sweeping(Box<Sweep<S>>),
    /// It failed while giving back: its intent may stand and be carried out at the next opening,
    /// so what was judged dead must stay unreferred to until then.
    Failed,
}

/// The collection that runs.
#[derive(Debug)]
pub(super) struct Collection<S: Storage> {
    options: CollectOptions,
    shared: Arc<Shared<S>>,
    stage: Stage<S>,
    report: CollectReport,
    /// Deleted points that were there at the beginning.
    purge: VecDeque<PurgedDir>,
    /// Tasks whose trees were built when it began, but not yet sealed.
    built: BTreeSet<TaskKey>,
    /// Journals that are superseded, and stay until marking ends.
    dropped: BTreeSet<TaskKey>,
    /// Trees or blocks were missing: a record without an entry may be one of them.
    has_lost: bool,
    next_step_ms: u64,
    began_ms: u64,
    marked_ms: u64,
}

impl<S: Storage> Store<S> {
    /// Begins a collection: notes what must stay. The marker is to be stepped until it is done, on
    /// any thread, and then given to [`Store::handle_marked`].
    ///
    /// # Errors
    /// [`StoreError::Refused`] if one runs; whatever makes it impossible to tell what must stay.
    pub fn begin_collection(&mut self, options: CollectOptions) -> Result<Marker<S>, StoreError> {
        if self.is_collecting() {
            return Err(StoreError::Refused(format!(
                "a collection of repository {} is running already: wait for it",
                self.repo.storage.place("")
            )));
        }
        if !options.dry_run {
            ballast::give_up(&self.repo.storage, limits::COLLECT_FREE_BYTES_MIN)?;
            self.finish_failed_collection()?;
        } else if self.collection.is_some() {
            return Err(StoreError::Refused(format!(
                "the last collection of repository {} failed half way: run one that is no dry run",
                self.repo.storage.place("")
            )));
        }
        self.collected = None;
        if options.abandon_unfinished && !options.dry_run {
            self.abandon_unfinished()?;
        }
        let (roots, purge) = self.collection_roots(&options)?;
        let storage = self.repo.storage.clone();
        let shared = Arc::new(Shared {
            place: storage.place(""),
            live: Mutex::new(LiveMap::new(storage, &self.repo.packs())),
            grey: Mutex::default(),
            fault: Mutex::default(),
            stopped: AtomicBool::new(false),
            dry_run: options.dry_run,
        });
        let built = |(key, task): (&TaskKey, &crate::store::task::Task<S>)| {
            matches!(task.stage, SealStage::Built(..)).then_some(*key)
        };
        let marker = Marker::new(Arc::clone(&self.repo), Arc::clone(&shared), roots);
        self.collection = Some(Collection {
            report: CollectReport { dry_run: options.dry_run, ..CollectReport::default() },
            options,
            shared,
            stage: Stage::Marking,
            purge,
            built: self.tasks.iter().filter_map(built).collect(),
            dropped: BTreeSet::new(),
            has_lost: false,
            next_step_ms: 0,
            began_ms: self.now_ms,
            marked_ms: self.now_ms,
        });
        Ok(marker)
    }

    /// Carries out the intent that a failed collection left. It holds still, because nothing has
    /// come to refer to what it names.
    fn finish_failed_collection(&mut self) -> Result<(), StoreError> {
        if !matches!(self.collection, Some(Collection { stage: Stage::Failed, .. })) {
            return Ok(());
        }
        let repo = &self.repo;
        let packs = intent::finish(&repo.storage, repo.repository(), &repo.index)?;
        let rows = repo.index.packs()?;
        for pack in packs {
            repo.set_pack_row(pack, rows.get(&pack).copied());
        }
        self.collection = None;
        Ok(())
    }

    /// Takes a marker back that is done. It comes back if there is more to mark: roots that came
    /// meanwhile, or a backup whose tree is on its way to the disk.
    pub fn handle_marked(&mut self, marker: Marker<S>) -> Option<Marker<S>> {
        let collection = self.collection.as_mut()?;
        if !marker.is_of(&collection.shared) || !matches!(collection.stage, Stage::Marking) {
            return None;
        }
        let is_built = |key| {
            let task = self.tasks.get(key);
            task.is_some_and(|task| matches!(task.stage, SealStage::Built(..)))
        };
        let waits = collection.built.iter().any(is_built);
        if waits || !marker.is_done() || !locked(&collection.shared.grey).is_empty() {
            return Some(marker);
        }
        marker.report_to(&mut collection.report);
        collection.has_lost = marker.has_lost();
        collection.marked_ms = self.now_ms;
        collection.stage = Stage::Purging(std::mem::take(&mut collection.purge));
        let dropped = std::mem::take(&mut collection.dropped);
        if let Err(error) = self.remove_dropped_journals(dropped) {
            self.end_collection(Err(error));
        }
        None
    }

    /// Ends a collection that could not be marked: nothing was given back.
    pub fn fail_collection(&mut self, error: StoreError) {
        if let Some(collection) = &self.collection {
            collection.shared.fail(error);
        }
        self.advance_collection();
    }

    /// Stops a collection. What it has given back stays given back; a marker that is still under
    /// way ends with an error.
    pub fn cancel_collection(&mut self) {
        let Some(collection) = &mut self.collection else { return };
        collection.shared.stopped.store(true, Ordering::Release);
        self.advance_collection();
    }

    /// What the last collection did, once it is over.
    pub fn take_collected(&mut self) -> Option<Result<CollectReport, StoreError>> {
        self.collected.take()
    }

    /// Whether backups are under way, to which a collection leaves the machine.
    pub fn has_attached_sessions(&self) -> bool {
        self.sessions.values().any(|session| session.is_attached)
    }

    /// Whether a collection runs.
    pub fn is_collecting(&self) -> bool {
        !matches!(self.collection, None | Some(Collection { stage: Stage::Failed, .. }))
    }

    /// How far giving back is: packs looked at, packs there are. Nothing while marking.
    pub fn collection_progress(&self) -> Option<(u64, u64)> {
        match &self.collection.as_ref()?.stage {
            Stage::Sweeping(sweep) => Some(sweep.progress()),
            _ => None,
        }
    }

    /// When the next step of giving back is due.
    pub(super) fn collection_due_ms(&self) -> Option<u64> {
        let collection = self.collection.as_ref()?;
        (!matches!(collection.stage, Stage::Marking | Stage::Failed))
            .then_some(collection.next_step_ms)
    }

    /// One step of giving back, if it is time.
    pub(super) fn advance_collection(&mut self) {
        let is_busy = self.has_attached_sessions();
        let Some(collection) = &mut self.collection else { return };
        if matches!(collection.stage, Stage::Failed) {
            return;
        }
        if collection.shared.is_stopped() {
            return self.stop_collection();
        }
        if is_busy && self.now_ms < collection.next_step_ms {
            return;
        }
        collection.next_step_ms = self.now_ms;
        if is_busy {
            collection.next_step_ms += limits::COLLECT_STEP_MS_MIN;
        }
        let done = match &mut collection.stage {
            Stage::Marking | Stage::Failed => return,
            Stage::Purging(dirs) => match dirs.pop_front() {
                Some(dir) => dir.purge(&self.repo.storage, &mut collection.report).map(|()| false),
                None => {
                    let (options, has_lost) = (&collection.options, collection.has_lost);
                    let sweep = Sweep::new(&self.repo, &collection.shared, options, has_lost);
                    collection.stage = Stage::Sweeping(Box::new(sweep));
                    Ok(false)
                }
            },
            Stage::Sweeping(sweep) => {
                let (shared, report) = (&collection.shared, &mut collection.report);
                sweep.step(&self.repo, shared, &mut self.numbers, report)
            }
        };
        match done {
            Ok(false) => {}
            Ok(true) => self.end_collection(Ok(())),
            Err(error) => self.end_collection(Err(error)),
        }
    }

    fn stop_collection(&mut self) {
        let Some(collection) = &mut self.collection else { return };
        let fault = locked(&collection.shared.fault).take();
        let began = matches!(collection.stage, Stage::Sweeping(_));
        match fault {
            Some(error) => self.end_collection(Err(error)),
            None if began => {
                let note = "it was stopped before its end: run it again for the rest";
                collection.report.notes.push(note.to_owned());
                self.end_collection(Ok(()));
            }
            None => {
                let text = "the collection was stopped before it gave anything back";
                self.end_collection(Err(StoreError::Refused(text.to_owned())));
            }
        }
    }

    fn end_collection(&mut self, result: Result<(), StoreError>) {
        let Some(mut collection) = self.collection.take() else { return };
        let dropped = std::mem::take(&mut collection.dropped);
        let result = result.and_then(|()| match collection.options.dry_run {
            true => Ok(()),
            false => intent::remove(&self.repo.storage),
        });
        if let Err(error) = self.remove_dropped_journals(dropped) {
            tracing::warn!("{error}");
        }
        collection.report.ms_mark = collection.marked_ms.saturating_sub(collection.began_ms);
        collection.report.ms_sweep = self.now_ms.saturating_sub(collection.marked_ms);
        match &result {
            Ok(()) => tracing::info!("collection: {} bytes freed", collection.report.bytes_freed),
            Err(error) => tracing::error!("collection: {error}"),
        }
        if let Stage::Sweeping(sweep) = &mut collection.stage {
            sweep.abandon(&self.repo);
        }
        if !collection.options.dry_run {
            ballast::put(&self.repo.storage);
        }
        // Whoever still marks for it stops.
        collection.shared.stopped.store(true, Ordering::Release);
        let was_giving_back = matches!(collection.stage, Stage::Sweeping(_));
        self.collected = Some(result.map(|()| collection.report.clone()));
        if was_giving_back && matches!(self.collected, Some(Err(_))) {
            collection.stage = Stage::Failed;
            self.collection = Some(collection);
        }
    }

    /// Gives up the journals of sessions that nobody works on.
    fn abandon_unfinished(&mut self) -> Result<(), StoreError> {
        let attached = |store: &Store<S>, key: &TaskKey| {
            store.sessions.get(&key.session).is_some_and(|session| session.is_attached)
        };
        let left: Vec<TaskKey> =
            self.journals.keys().filter(|key| !attached(self, key)).copied().collect();
        left.into_iter().for_each(|key| self.drop_journal(key));
        self.sessions.retain(|_, session| session.is_attached);
        self.sync_journals()
    }

    fn sync_journals(&self) -> Result<(), StoreError> {
        let storage = &self.repo.storage;
        let synced = storage.sync_dir(JOURNALS);
        synced.map_err(|source| StoreError::io("sync", storage.place(JOURNALS), source))
    }

    /// Removes journals that were superseded while they had to stay, and those whose removal failed
    /// before. A journal that came back in life under the same name stays. Durable: a sealed
    /// journal that came back after a crash could commit a point whose blocks are given up.
    fn remove_dropped_journals(&mut self, keys: BTreeSet<TaskKey>) -> Result<(), StoreError> {
        self.undropped.extend(keys);
        while let Some(key) = self.undropped.first().copied() {
            let path = journal_path(key.session, key.task);
            if !self.journals.contains_key(&key)
                && let Err(source) = self.repo.storage.remove(&path)
                && source.kind() != io::ErrorKind::NotFound
            {
                return Err(StoreError::io("remove", self.repo.storage.place(&path), source));
            }
            self.undropped.remove(&key);
        }
        self.sync_journals()
    }
}
