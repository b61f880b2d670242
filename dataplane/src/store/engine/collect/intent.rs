//! What a collection is about to change on the disk, so that a crash in the middle can be finished.
//!
//! In: packs that go, footers that are written over others. Out: a small file, durable before the
//! first change and removed after the last. Finishing is idempotent; an intent that is not whole was
//! never acted on and is dropped. Drawn in docs/repository-format.md.

use std::io;

use gantry_common::ids::{BlockId, RepositoryId};
use gantry_common::limits;
use serde::{Deserialize, Serialize};

use crate::store::error::StoreError;
use crate::store::footer::{Slot, read_footer};
use crate::store::index::{Index, PackChange, PackRow};
use crate::store::layout::{COLLECT_INTENT, FORMAT_VERSION, PackNumber};
use crate::store::storage::{OpenMode, Storage, StorageFile};
use crate::store::superblock::{read_small, write_file};

const MAGIC: [u8; 8] = *b"GANTCOLL";
const HEAD_BYTES: usize = 48;

/// A pack that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackIntent {
    /// The pack.
    pub pack: PackNumber,
    /// Its footer from now on; nothing if the pack goes.
    pub footer: Option<Footer>,
}

/// A footer that takes the place of one of the same length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footer {
    /// Where it stands.
    pub offset: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    repository: RepositoryId,
    packs: Vec<PackIntent>,
}

/// Writes the intent durably, in place of one that is done.
///
/// # Errors
/// [`StoreError::Io`]; then nothing may be changed.
pub fn write<S: Storage>(
    storage: &S,
    repository: RepositoryId,
    packs: Vec<PackIntent>,
) -> Result<(), StoreError> {
    let body = postcard::to_stdvec(&Body { repository, packs })
        .map_err(|error| StoreError::Refused(format!("an intent cannot be encoded: {error}")))?;
    let mut out = MAGIC.to_vec();
    out.extend(FORMAT_VERSION.to_le_bytes());
    out.extend([0; 2]);
    out.extend((body.len() as u32).to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&out).update(&body);
    out.extend(hasher.finalize().as_bytes());
    out.extend(body);
    write_file(storage, COLLECT_INTENT, &out)
}

/// Removes the intent: everything in it is done.
///
/// # Errors
/// [`StoreError::Io`]; it is then done once more at the next opening, which changes nothing.
pub fn remove<S: Storage>(storage: &S) -> Result<(), StoreError> {
    let fail = |action| {
        let place = storage.place(COLLECT_INTENT);
        move |source| StoreError::io(action, place, source)
    };
    match storage.remove(COLLECT_INTENT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(fail("remove")(error)),
        Ok(()) => storage.sync_dir("").map_err(fail("sync the folder of")),
    }
}

/// The intent that stands in the folder; nothing if there is none, or if it is not whole.
fn read<S: Storage>(
    storage: &S,
    repository: RepositoryId,
) -> Result<Option<Vec<PackIntent>>, StoreError> {
    let bytes = match read_small(storage, COLLECT_INTENT, limits::COLLECT_INTENT_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(StoreError::Damaged { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some((head, body)) = bytes.split_at_checked(HEAD_BYTES) else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head[..16]).update(body);
    if head[..8] != MAGIC || head[16..] != *hasher.finalize().as_bytes() {
        return Ok(None);
    }
    let version = u16::from_le_bytes([head[8], head[9]]);
    if version != FORMAT_VERSION {
        let path = storage.place(COLLECT_INTENT);
        let (found, supported) = (version.into(), FORMAT_VERSION.into());
        return Err(StoreError::Newer { path, found, supported });
    }
    let body: Option<Body> = postcard::from_bytes(body).ok();
    Ok(body.filter(|body| body.repository == repository).map(|body| body.packs))
}

/// Finishes what an interrupted collection had begun; before packs and index are compared. Gives
/// the packs that it was about.
///
/// # Errors
/// [`StoreError`]; the intent then stays, and may be finished later.
pub fn finish<S: Storage>(
    storage: &S,
    repository: RepositoryId,
    index: &Index,
) -> Result<Vec<PackNumber>, StoreError> {
    let Some(packs) = read(storage, repository)? else {
        return remove(storage).map(|()| Vec::new());
    };
    for intent in &packs {
        match &intent.footer {
            None => finish_removal(storage, intent.pack, index)?,
            Some(footer) => finish_footer(storage, intent.pack, footer, index)?,
        }
    }
    remove(storage).map(|()| packs.iter().map(|intent| intent.pack).collect())
}

fn finish_removal<S: Storage>(
    storage: &S,
    pack: PackNumber,
    index: &Index,
) -> Result<(), StoreError> {
    let path = pack.path();
    let fail = |action| {
        let place = storage.place(&path);
        move |source| StoreError::io(action, place, source)
    };
    let gone = match storage.open(&path, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        // A footer that cannot be read: entries of this pack stay, and are not answered.
        file => places(&read_footer(&file.map_err(fail("open"))?, pack).unwrap_or_default()),
    };
    index.change_packs(&[PackChange { pack, row: None, gone, kept: Vec::new() }])?;
    match storage.remove(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => result.map_err(fail("remove"))?,
    }
    storage.sync_dir(&pack.dir()).map_err(fail("sync the folder of"))
}

fn finish_footer<S: Storage>(
    storage: &S,
    pack: PackNumber,
    footer: &Footer,
    index: &Index,
) -> Result<(), StoreError> {
    let path = pack.path();
    let fail = |action| {
        let place = storage.place(&path);
        move |source| StoreError::io(action, place, source)
    };
    let file = match storage.open(&path, OpenMode::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(fail("open"))?,
    };
    let len = file.len().map_err(fail("measure"))?;
    if footer.offset.checked_add(footer.bytes.len() as u64) != Some(len) {
        // Sealed anew since: its footer is another one.
        return Ok(());
    }
    if let Ok(before) = read_footer(&file, pack) {
        let after = Slot::decode_all(&footer.bytes, before.len());
        let is_same = |(a, b): (&Slot, &Slot)| (a.id, a.offset) == (b.id, b.offset);
        if after.len() != before.len() || !before.iter().zip(&after).all(is_same) {
            return Ok(());
        }
    }
    file.write_at(footer.offset, &footer.bytes).map_err(fail("write the footer of"))?;
    file.sync_data().map_err(fail("sync"))?;
    let slots = read_footer(&file, pack).map_err(|fault| {
        StoreError::damaged(
            storage.place(&path),
            footer.offset,
            fault.to_string(),
            "run repo repair",
        )
    })?;
    let gone: Vec<Slot> = slots.iter().filter(|slot| slot.is_gone).copied().collect();
    // A pack that the index does not know stays unknown: its row would say that its records are
    // listed, and they are not. The comparison that follows reads its footer.
    let known = index.packs()?.get(&pack).map(|row| row.checked_ms);
    let row = known.map(|checked_ms| PackRow { checked_ms, ..PackRow::of(&slots, len) });
    index.change_packs(&[PackChange { pack, row, gone: places(&gone), kept: Vec::new() }])?;
    punch(&file, &gone).map_err(fail("make holes in"))
}

fn places(slots: &[Slot]) -> Vec<(BlockId, u64)> {
    slots.iter().map(|slot| (slot.id, slot.offset)).collect()
}

/// Gives the bytes of these records, in order, back to the file system, neighbours at once.
///
/// # Errors
/// Whatever the file gives. `Unsupported` is none: the bytes then stay.
pub fn punch<F: StorageFile>(file: &F, gone: &[Slot]) -> io::Result<()> {
    let mut gone = gone.iter().peekable();
    while let Some(slot) = gone.next() {
        let (start, mut end) = (slot.offset, slot.end());
        while let Some(next) = gone.next_if(|next| next.offset == end) {
            end = next.end();
        }
        match file.punch_hole(start, end - start) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
            result => result?,
        }
    }
    file.sync_data()
}
