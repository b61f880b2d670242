//! Opening a repository: bringing the index in line with the packs that are really there.
//!
//! In: the folder and the index. Out: the set of sealed packs. Packs that the index does not know
//! are read by their footer, or scanned and sealed; packs that are gone are forgotten. A read-only
//! opening does the same in memory and leaves the folder as it is.

use std::collections::BTreeMap;

use gantry_common::ids::BlockId;

use super::error::StoreError;
use super::footer::{PackFault, PackHead, Slot, read_footer};
use super::index::{Index, Location, PackRow, Sorter};
use super::layout::{INDEX, INDEX_DIR, PACKS, PackNumber};
use super::pack_scan::{Scan, scan_pack, seal_scanned};
use super::storage::{OpenMode, Storage, StorageFile};
use super::superblock::Superblock;

/// Packs from which on an index that knows none is built in the order of its rows.
const BULK_PACKS_MIN: usize = 4;
/// Rows that are written to the index at once then.
const BULK_ROWS: usize = 100_000;

/// What had to be done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reconciled {
    /// For a person, one line each.
    pub notes: Vec<String>,
    /// Packs read by their footer.
    pub read: u64,
    /// Packs scanned because they had none.
    pub scanned: u64,
}

/// Packs on the disk, sorted.
///
/// # Errors
/// [`StoreError::Io`].
pub fn packs_on_disk<S: Storage>(storage: &S) -> Result<Vec<PackNumber>, StoreError> {
    let list = |path: &str| {
        storage.list(path).map_err(|source| StoreError::io("list", storage.place(path), source))
    };
    let mut packs = Vec::new();
    for dir in list(PACKS)?.into_iter().filter(|entry| entry.is_dir) {
        let entries = list(&format!("{PACKS}/{}", dir.name))?;
        packs.extend(entries.iter().filter_map(|entry| PackNumber::from_file_name(&entry.name)));
    }
    packs.sort();
    Ok(packs)
}

/// Opens the index, a new one if it is missing or no good.
///
/// # Errors
/// [`StoreError`] if not even a new one can be made.
pub fn open_index<S: Storage>(
    storage: &S,
    superblock: &Superblock,
    writable: bool,
    notes: &mut Vec<String>,
) -> Result<Index, StoreError> {
    if writable {
        let make = storage.create_dir(INDEX_DIR);
        make.map_err(|source| StoreError::io("create", storage.place(INDEX_DIR), source))?;
    }
    let sync = || match writable {
        true => storage
            .sync_dir(INDEX_DIR)
            .map_err(|source| StoreError::io("sync", storage.place(INDEX_DIR), source)),
        false => Ok(()),
    };
    match Index::open(storage, INDEX, superblock.repository, writable) {
        Ok(index) => sync().map(|()| index),
        Err(StoreError::Index { path, what }) => {
            notes.push(format!("index {path}: {what}; rebuilding it from the packs"));
            if !writable {
                let scratch = format!("{INDEX}.absent");
                return Index::open(storage, &scratch, superblock.repository, false);
            }
            storage.remove(INDEX).map_err(|source| StoreError::io("remove", path, source))?;
            let index = Index::open(storage, INDEX, superblock.repository, true)?;
            sync().map(|()| index)
        }
        Err(error) => Err(error),
    }
}

/// Brings the index in line with the packs.
///
/// # Errors
/// [`StoreError`] of the folder or the index. A damaged pack is a note, not an error.
pub fn reconcile<S: Storage>(
    storage: &S,
    superblock: &Superblock,
    index: &Index,
    writable: bool,
) -> Result<(BTreeMap<PackNumber, PackRow>, Reconciled), StoreError> {
    let mut done = Reconciled::default();
    let on_disk = packs_on_disk(storage)?;
    let mut known = index.packs()?;
    let gone: Vec<PackNumber> =
        known.keys().filter(|pack| on_disk.binary_search(pack).is_err()).copied().collect();
    if !gone.is_empty() {
        for pack in &gone {
            known.remove(pack);
            done.notes.push(format!(
                "pack {} is gone: run repo verify to learn which points are hit",
                storage.place(&pack.path())
            ));
        }
        index.forget_packs(&gone)?;
        find_copies(storage, index, &known)?;
    }
    let unknown: Vec<PackNumber> =
        on_disk.into_iter().filter(|pack| !known.contains_key(pack)).collect();
    if !unknown.is_empty() && known.is_empty() && unknown.len() > 1 {
        done.notes.push(format!("index: reading the footers of {} packs", unknown.len()));
    }
    let in_order = known.is_empty() && writable && unknown.len() >= BULK_PACKS_MIN;
    if in_order && build(storage, superblock, index, &unknown, &mut known, &mut done)? {
        return Ok((known, done));
    }
    for pack in unknown {
        let Some((slots, bytes)) = read_or_seal(storage, superblock, pack, writable, &mut done)?
        else {
            continue;
        };
        let row = PackRow::of(&slots, bytes);
        let is_usable = |other: &Location| known.contains_key(&other.pack);
        index.insert_pack(pack, &row, &slots, &is_usable, false)?;
        known.insert(pack, row);
    }
    if done.read + done.scanned > 0 {
        index.flush()?;
    }
    Ok((known, done))
}

/// After the loss of a pack: what stood in it may stand in others too, of which the index did not
/// know because it knows one place of each id.
fn find_copies<S: Storage>(
    storage: &S,
    index: &Index,
    known: &BTreeMap<PackNumber, PackRow>,
) -> Result<(), StoreError> {
    for &pack in known.keys() {
        let file = storage.open(&pack.path(), OpenMode::Read);
        let slots = file.ok().and_then(|file| read_footer(&file, pack).ok()).unwrap_or_default();
        let ids: Vec<BlockId> = slots.iter().map(|slot| slot.id).collect();
        let found = index.find(&ids)?;
        let copies: Vec<(BlockId, Location)> = (0..)
            .zip(&slots)
            .zip(found)
            // Ids that the index does not have at all were given up by a collection.
            .filter(|((_, slot), at)| {
                !slot.is_gone && at.is_some_and(|at| !known.contains_key(&at.pack))
            })
            .map(|((position, slot), _)| (slot.id, Location::of(slot, position, pack)))
            .collect();
        if !copies.is_empty() {
            index.point_to_copies(&copies, &|other| known.contains_key(&other))?;
        }
    }
    Ok(())
}

/// Fills an index that knows no pack: all rows in order, then the packs. A crash before the end
/// leaves an index that still knows no pack. False if there is no room for scratch files.
fn build<S: Storage>(
    storage: &S,
    superblock: &Superblock,
    index: &Index,
    packs: &[PackNumber],
    known: &mut BTreeMap<PackNumber, PackRow>,
    done: &mut Reconciled,
) -> Result<bool, StoreError> {
    let mut rows = BTreeMap::new();
    let mut sorter = Sorter::new(storage.clone());
    for &pack in packs {
        let Some((slots, bytes)) = read_or_seal(storage, superblock, pack, true, done)? else {
            continue;
        };
        for (position, slot) in (0..).zip(&slots).filter(|(_, slot)| !slot.is_gone) {
            if let Err(error) = sorter.push(slot.id, &Location::of(slot, position, pack)) {
                return without_scratch(done, &error);
            }
        }
        rows.insert(pack, PackRow::of(&slots, bytes));
    }
    let sorted = match sorter.sorted() {
        Ok(sorted) => sorted,
        Err(error) => return without_scratch(done, &error),
    };
    let mut blocks = Vec::with_capacity(BULK_ROWS);
    for row in sorted {
        match row {
            Ok(row) => blocks.push(row),
            Err(error) => return without_scratch(done, &error),
        }
        if blocks.len() == BULK_ROWS {
            index.insert_rows(&blocks, &[])?;
            // Pages are used again only after this.
            index.flush()?;
            blocks.clear();
        }
    }
    let packs: Vec<(PackNumber, PackRow)> = rows.iter().map(|(pack, row)| (*pack, *row)).collect();
    index.insert_rows(&blocks, &packs)?;
    index.flush()?;
    *known = rows;
    Ok(true)
}

fn without_scratch(done: &mut Reconciled, error: &std::io::Error) -> Result<bool, StoreError> {
    (done.read, done.scanned) = (0, 0);
    done.notes.push(format!(
        "index: no scratch file to put its rows in order ({error}): it is built pack by pack, \
         which takes much longer"
    ));
    Ok(false)
}

fn read_or_seal<S: Storage>(
    storage: &S,
    superblock: &Superblock,
    pack: PackNumber,
    writable: bool,
    done: &mut Reconciled,
) -> Result<Option<(Vec<Slot>, u64)>, StoreError> {
    let place = storage.place(&pack.path());
    let fail = |action| {
        let place = place.clone();
        move |source| StoreError::io(action, place, source)
    };
    let file = storage.open(&pack.path(), OpenMode::ReadUncached).map_err(fail("open"))?;
    let head = match PackHead::read(&file, superblock.repository, pack) {
        Ok(head) => Some(head),
        Err(PackFault::Io(source)) => return Err(StoreError::io("read", place, source)),
        Err(fault) => {
            done.notes.push(format!("pack {place}: {fault}; its records are read one by one"));
            None
        }
    };
    match read_footer(&file, pack) {
        Ok(slots) => {
            done.read += 1;
            if writable {
                // Its writer may have been killed before it synced: what is indexed is answered as
                // durable, so it must be.
                file.sync_data().map_err(fail("sync"))?;
                storage.sync_dir(&pack.dir()).map_err(fail("sync the folder of"))?;
            }
            return Ok(Some((slots, file.len().map_err(fail("measure"))?)));
        }
        Err(PackFault::NoFooter) => {}
        Err(fault) => done.notes.push(format!("pack {place}: {fault}; it is scanned")),
    }
    let scan = scan_pack(&file, superblock.repository).map_err(fail("scan"))?;
    done.scanned += 1;
    for (offset, fault) in &scan.damaged {
        done.notes.push(format!("pack {place} at byte {offset}: {fault}; the record is left out"));
    }
    if scan.pages_unreadable > 0 {
        // Perhaps only for the moment: the file stays as it is, and what can be read serves.
        let pages = scan.pages_unreadable;
        done.notes.push(format!(
            "pack {place}: the disk does not give {pages} of its pages; it is not sealed: see to \
             the disk, then run repo rebuild-index"
        ));
        let bytes = file.len().map_err(fail("measure"))?;
        return Ok((!scan.slots.is_empty()).then_some((scan.slots, bytes)));
    }
    if scan.slots.is_empty() && scan.damaged.is_empty() && scan.data_end == 0 {
        // Nothing but a header, whole or torn: its writer got no further.
        if writable {
            storage.remove(&pack.path()).map_err(fail("remove"))?;
            storage.sync_dir(&pack.dir()).map_err(fail("sync the folder of"))?;
        }
        return Ok(None);
    }
    if scan.slots.is_empty() {
        done.notes.push(format!("pack {place}: not one record in it is whole"));
    }
    seal(storage, superblock, pack, head, &scan, writable).map(Some)
}

fn seal<S: Storage>(
    storage: &S,
    superblock: &Superblock,
    pack: PackNumber,
    head: Option<PackHead>,
    scan: &Scan,
    writable: bool,
) -> Result<(Vec<Slot>, u64), StoreError> {
    let place = storage.place(&pack.path());
    if !writable {
        return Ok((scan.slots.clone(), scan.end()));
    }
    let fail = |action| {
        let place = place.clone();
        move |source| StoreError::io(action, place, source)
    };
    let head = head.unwrap_or(PackHead {
        repository: superblock.repository,
        number: pack,
        session: gantry_common::ids::SessionId([0; 16]),
    });
    let file = storage.open(&pack.path(), OpenMode::Write).map_err(fail("open"))?;
    let bytes = seal_scanned(&file, scan, &head).map_err(fail("seal"))?;
    storage.sync_dir(&pack.dir()).map_err(fail("sync the folder of"))?;
    Ok((scan.slots.clone(), bytes))
}
