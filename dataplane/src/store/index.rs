//! Where each block stands: an embedded database that is only a cache of the packs' footers.
//!
//! In: slots of sealed packs. Out: locations. Invariant: losing it, or its newest transactions,
//! costs time and nothing else; the packs it knows are listed in it, so that reconciliation reads
//! only the others. It stands on [`Storage`] like everything, and a read-only opening keeps its
//! writes in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use gantry_common::ids::{BlockId, RepositoryId};
use gantry_common::limits;
use redb::{Builder, ReadableDatabase, ReadableTable, TableDefinition};

use super::error::StoreError;
use super::footer::Slot;
use super::layout::PackNumber;
use super::storage::{OpenMode, Storage};

mod backend;
mod collect;
mod damage;
mod database;
mod history;
mod location;
mod sorter;

use self::backend::{FileBackend, OverlayBackend};
pub use self::collect::{Move, PackChange};
pub use self::damage::{Finding, Walked};
use self::database::Handle;
pub use self::history::Collected;
use self::location::{BLOCK_ROW_BYTES, INDEX_VERSION, PACK_ROW_BYTES};
pub use self::location::{Location, PackRow};
pub use self::sorter::Sorter;

const BLOCKS: TableDefinition<&[u8; 32], &[u8; BLOCK_ROW_BYTES]> = TableDefinition::new("blocks");
const PACKS: TableDefinition<u64, &[u8; PACK_ROW_BYTES]> = TableDefinition::new("packs");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// There while records are known to be damaged or packs to be missing.
const META_SUSPECT: &str = "suspect";
const META_REPOSITORY: &str = "repository";

/// The index of one repository; shared between threads.
#[derive(Debug)]
pub struct Index {
    db: Handle,
    place: String,
    writable: bool,
    /// Records are known to be damaged or packs to be missing, or may be.
    suspect: AtomicBool,
    /// It was made by this opening.
    fresh: AtomicBool,
}

impl Index {
    /// Opens the index at `path`, or makes an empty one. Not `writable`: changes stay in memory.
    ///
    /// # Errors
    /// [`StoreError::Index`] if it is no index of this repository: the caller removes it and
    /// begins a new one.
    pub fn open<S: Storage>(
        storage: &S,
        path: &str,
        repository: RepositoryId,
        writable: bool,
    ) -> Result<Index, StoreError> {
        let place = storage.place(path);
        let io_error = |source| StoreError::io("open", place.clone(), source);
        let file = match storage.open(path, if writable { OpenMode::Write } else { OpenMode::Read })
        {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound && writable => {
                Some(storage.open(path, OpenMode::CreateNew).map_err(io_error)?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error(error)),
        };
        let mut builder = Builder::new();
        builder.set_cache_size(limits::INDEX_CACHE_BYTES);
        let fault = |what: String| StoreError::Index { path: place.clone(), what };
        let db = guarded(&place, || {
            let opened = match (file, writable) {
                (Some(file), true) => builder.create_with_backend(FileBackend { file }),
                (file, _) => builder.create_with_backend(OverlayBackend::new(file)),
            };
            opened.map_err(|error| fault(error.to_string()))
        })?;
        let index = Index {
            db: Handle::new(db),
            place: place.clone(),
            writable,
            suspect: AtomicBool::new(false),
            fresh: AtomicBool::new(false),
        };
        index.claim(repository)?;
        Ok(index)
    }

    /// Whether changes outlive this opening.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    fn claim(&self, repository: RepositoryId) -> Result<(), StoreError> {
        guarded(&self.place, || self.claim_unguarded(repository))
    }

    fn claim_unguarded(&self, repository: RepositoryId) -> Result<(), StoreError> {
        let mut wanted = INDEX_VERSION.to_le_bytes().to_vec();
        wanted.extend(repository.0);
        let txn = self.db.begin_write().map_err(|error| self.fault(error))?;
        {
            let mut meta = txn.open_table(META).map_err(|error| self.fault(error))?;
            let found = meta
                .get(META_REPOSITORY)
                .map_err(|error| self.fault(error))?
                .map(|value| value.value().to_vec());
            match found {
                Some(found) if found == wanted => {}
                Some(_) => return Err(self.fault("it is of another repository or version")),
                None => {
                    self.fresh.store(true, Ordering::Relaxed);
                    meta.insert(META_REPOSITORY, wanted.as_slice())
                        .map_err(|error| self.fault(error))?;
                }
            }
            let suspect = meta.get(META_SUSPECT).map_err(|error| self.fault(error))?.is_some();
            self.suspect.store(suspect, Ordering::Relaxed);
            txn.open_table(BLOCKS).map_err(|error| self.fault(error))?;
            txn.open_table(PACKS).map_err(|error| self.fault(error))?;
            Index::open_damage_tables(&txn).map_err(|error| self.fault(error))?;
        }
        txn.commit().map_err(|error| self.fault(error))
    }

    fn fault(&self, what: impl ToString) -> StoreError {
        StoreError::Index { path: self.place.clone(), what: what.to_string() }
    }

    /// Where these ids stand, whether or not their packs still exist.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn find(&self, ids: &[BlockId]) -> Result<Vec<Option<Location>>, StoreError> {
        guarded(&self.place, || self.find_unguarded(ids))
    }

    fn find_unguarded(&self, ids: &[BlockId]) -> Result<Vec<Option<Location>>, StoreError> {
        let txn = self.db.begin_read().map_err(|error| self.fault(error))?;
        let table = txn.open_table(BLOCKS).map_err(|error| self.fault(error))?;
        ids.iter()
            .map(|id| {
                let value = table.get(&id.0).map_err(|error| self.fault(error))?;
                Ok(value.and_then(|value| Location::decode(value.value())))
            })
            .collect()
    }

    /// Every pack that it knows.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn packs(&self) -> Result<BTreeMap<PackNumber, PackRow>, StoreError> {
        guarded(&self.place, || self.packs_unguarded())
    }

    fn packs_unguarded(&self) -> Result<BTreeMap<PackNumber, PackRow>, StoreError> {
        let txn = self.db.begin_read().map_err(|error| self.fault(error))?;
        let table = txn.open_table(PACKS).map_err(|error| self.fault(error))?;
        let mut rows = BTreeMap::new();
        for row in table.iter().map_err(|error| self.fault(error))? {
            let (number, row) = row.map_err(|error| self.fault(error))?;
            if let Some(row) = PackRow::decode(row.value()) {
                rows.insert(PackNumber(number.value()), row);
            }
        }
        Ok(rows)
    }

    /// Adds a sealed pack. A block is written a second time only where its first record could not
    /// be used, so the newest pack wins, unless the other record was verified. `is_usable` says
    /// whether a place exists and is not about to be given up. `durable` also makes every earlier
    /// change durable; without it a crash costs a reconciliation of this pack.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn insert_pack(
        &self,
        pack: PackNumber,
        row: &PackRow,
        slots: &[Slot],
        is_usable: &dyn Fn(&Location) -> bool,
        durable: bool,
    ) -> Result<(), StoreError> {
        self.transact(durable, |txn| {
            let mut healed = false;
            {
                let mut blocks = txn.open_table(BLOCKS)?;
                for (position, slot) in (0..).zip(slots).filter(|(_, slot)| !slot.is_gone) {
                    let old =
                        blocks.get(&slot.id.0)?.and_then(|value| Location::decode(value.value()));
                    let usable =
                        |old: &Location| !old.damaged && old.pack != pack && is_usable(old);
                    let kept =
                        old.is_some_and(|old| usable(&old) && (old.verified || old.pack > pack));
                    if !kept {
                        healed |= old.is_some_and(|old| !usable(&old));
                        let at = Location::of(slot, position, pack);
                        blocks.insert(&slot.id.0, &at.encode())?;
                    }
                }
            }
            txn.open_table(PACKS)?.insert(pack.0, &row.encode())?;
            if healed { Index::forget_healed(txn) } else { Ok(()) }
        })
    }

    /// Adds rows as they are, replacing what stands under their keys: for who knows all of them,
    /// and fastest in the order of the ids. Not durable before [`Index::flush`].
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn insert_rows(
        &self,
        blocks: &[(BlockId, Location)],
        packs: &[(PackNumber, PackRow)],
    ) -> Result<(), StoreError> {
        self.transact(false, |txn| {
            let mut block_table = txn.open_table(BLOCKS)?;
            for (id, at) in blocks {
                block_table.insert(&id.0, &at.encode())?;
            }
            let mut pack_table = txn.open_table(PACKS)?;
            for (pack, row) in packs {
                pack_table.insert(pack.0, &row.encode())?;
            }
            Ok(())
        })
    }

    /// Forgets packs that are gone from the disk; their blocks' entries stay and are not answered.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn forget_packs(&self, gone: &[PackNumber]) -> Result<(), StoreError> {
        self.transact(true, |txn| {
            let mut packs = txn.open_table(PACKS)?;
            gone.iter().try_for_each(|pack| packs.remove(pack.0).map(drop))?;
            Ok(())
        })?;
        if gone.is_empty() { Ok(()) } else { self.set_suspect() }
    }

    /// Whether this opening made it anew.
    pub fn is_fresh(&self) -> bool {
        self.fresh.load(Ordering::Relaxed)
    }

    /// Makes every change so far durable.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn flush(&self) -> Result<(), StoreError> {
        self.transact(true, |_| Ok(()))
    }
}

/// redb asserts on some kinds of damage; here that means: not an index.
fn guarded<T>(place: &str, act: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).unwrap_or_else(|_| {
        Err(StoreError::Index { path: place.to_owned(), what: "it is damaged".into() })
    })
}
