//! A task's journal: the truth of what is durable of one disk, until its point is committed.
//!
//! In: marks and block ids whose records are durable already. Out: the same, after any crash. The
//! first frame says which task it is; a frame is length, CRC-32C, postcard. A torn tail ends the
//! journal at the first bad frame. Invariant: an entry is appended only after what it names.

use std::io;

use gantry_common::ids::{BlockId, PointId, RepositoryId, SessionId};
use gantry_common::limits;
use gantry_common::wire::{DiskOffer, Mark, MaskRange, SessionOffer, TaskNumber, TaskTotals};
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::layout::{FORMAT_VERSION, JOURNALS, journal_path};
use super::storage::{OpenMode, Storage, StorageFile};

const MAGIC: [u8; 8] = *b"GANTJRNL";
const HEAD_BYTES: u64 = 16;
const FRAME_HEAD_BYTES: u64 = 8;
/// Blocks or marks of one entry, so that it stays below `JOURNAL_ENTRY_BYTES_MAX`.
const ENTRY_ITEMS_MAX: usize = 8192;

/// The base of a task, as it was when the task began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRoot {
    /// The point.
    pub point: PointId,
    /// Root of the disk's tree there.
    pub root: BlockId,
    /// Bytes of the disk there.
    pub size_bytes: u64,
    /// CBT change id there.
    pub change_id: Option<String>,
    /// What is zeroed on purpose there.
    pub mask: Vec<MaskRange>,
}

/// Which task a journal belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalHead {
    /// The repository.
    pub repository: RepositoryId,
    /// The session.
    pub session: SessionId,
    /// The disk.
    pub task: TaskNumber,
    /// The whole offer of the session.
    pub offer: SessionOffer,
    /// The base that unchanged blocks refer to; its tree is pinned while the journal stands.
    pub base: Option<BaseRoot>,
    /// Why the base that was asked for is not used.
    pub base_refused: Option<String>,
    /// A part's: kept for a session that commits, never committed by itself. Written as an entry
    /// of its own ([`Entry::Part`]).
    #[serde(skip)]
    pub is_part: bool,
}

impl JournalHead {
    /// The disk's own offer.
    pub fn disk(&self) -> Option<&DiskOffer> {
        self.offer.disks.get(usize::from(self.task))
    }

    /// Whether progress under this head holds for another task's disk too: the same frozen state
    /// of the same disk, cut and filtered in the same way.
    pub fn continues(&self, name: &str, disk: &DiskOffer) -> bool {
        self.offer.name == name
            && self.disk().is_some_and(|own| {
                own.identity == disk.identity
                    && own.snapshot == disk.snapshot
                    && own.size_bytes == disk.size_bytes
                    && own.block_size == disk.block_size
                    && own.read_digest == disk.read_digest
            })
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// Blocks without bytes.
    Marks(Vec<Mark>),
    /// Blocks whose records are durable in packs of this task.
    Stored(Vec<(u64, BlockId)>),
    /// Blocks that the repository knew: pinned by standing here.
    Known(Vec<(u64, BlockId)>),
    /// The tree is built and durable.
    Sealed(SealedDisk),
    /// First entry of a part's journal. A program that does not know it ends the journal here and
    /// so commits nothing.
    Part,
}

/// A disk that is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedDisk {
    /// Root of its tree.
    pub root: BlockId,
    /// The source's totals.
    pub totals: TaskTotals,
    /// Bytes that the task added to the repository.
    pub bytes_stored: u64,
    /// What its content has zeroed on purpose.
    pub mask: Vec<MaskRange>,
}

/// A journal that is written.
#[derive(Debug)]
pub struct Journal<F> {
    file: F,
    path: String,
    place: String,
    end: u64,
    seed: u32,
}

fn seed(session: SessionId, task: TaskNumber) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&session.0), &task.to_le_bytes())
}

fn frame(out: &mut Vec<u8>, seed: u32, body: &impl Serialize) {
    let body = postcard::to_stdvec(body).expect("journal entries always encode");
    assert!(body.len() <= limits::JOURNAL_ENTRY_BYTES_MAX, "entry of {} bytes", body.len());
    let len = (body.len() as u32).to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &len), &body);
    out.extend(len);
    out.extend(crc.to_le_bytes());
    out.extend(body);
}

impl<F: StorageFile> Journal<F> {
    /// Begins a journal beside the one that may stand under its name; see [`Journal::publish`].
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn begin<S: Storage<File = F>>(
        storage: &S,
        head: &JournalHead,
    ) -> Result<Journal<F>, StoreError> {
        let path = journal_path(head.session, head.task);
        let place = storage.place(&path);
        let fail = |action| {
            let place = place.clone();
            move |source| StoreError::io(action, place, source)
        };
        let seed = seed(head.session, head.task);
        let mut out = MAGIC.to_vec();
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend([0; 2]);
        out.extend(seed.to_le_bytes());
        frame(&mut out, seed, head);
        if head.is_part {
            frame(&mut out, seed, &Entry::Part);
        }
        let tmp = format!("{path}.tmp");
        let file = storage.open(&tmp, OpenMode::Create).map_err(fail("create"))?;
        file.write_at(0, &out).map_err(fail("write"))?;
        Ok(Journal { file, path, place, end: out.len() as u64, seed })
    }

    /// Makes the journal durable and gives it its name, in place of an older one.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn publish<S: Storage<File = F>>(&self, storage: &S) -> Result<(), StoreError> {
        let fail = |action| {
            let place = self.place.clone();
            move |source| StoreError::io(action, place, source)
        };
        self.file.sync_data().map_err(fail("sync"))?;
        storage.rename(&format!("{}.tmp", self.path), &self.path).map_err(fail("rename"))?;
        storage.sync_dir(JOURNALS).map_err(fail("sync the folder of"))
    }

    /// Bytes of it so far.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Appends entries and makes them durable. After an error the journal must not be used again.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        self.write(entries)?;
        self.file.sync_data().map_err(|source| StoreError::io("sync", self.place.clone(), source))
    }

    /// Appends entries without making them durable.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let mut out = Vec::new();
        for entry in entries {
            match entry {
                Entry::Marks(marks) => {
                    for part in marks.chunks(ENTRY_ITEMS_MAX) {
                        frame(&mut out, self.seed, &Entry::Marks(part.to_vec()));
                    }
                }
                Entry::Stored(blocks) => {
                    for part in blocks.chunks(ENTRY_ITEMS_MAX) {
                        frame(&mut out, self.seed, &Entry::Stored(part.to_vec()));
                    }
                }
                Entry::Known(blocks) => {
                    for part in blocks.chunks(ENTRY_ITEMS_MAX) {
                        frame(&mut out, self.seed, &Entry::Known(part.to_vec()));
                    }
                }
                Entry::Sealed(_) | Entry::Part => frame(&mut out, self.seed, entry),
            }
        }
        self.file
            .write_at(self.end, &out)
            .map_err(|source| StoreError::io("write", self.place.clone(), source))?;
        self.end += out.len() as u64;
        Ok(())
    }
}

/// A journal that is read from its start.
#[derive(Debug)]
pub struct JournalReader<F> {
    file: F,
    place: String,
    seed: u32,
    at: u64,
    /// Which task it belongs to.
    pub head: JournalHead,
}

impl<F: StorageFile> JournalReader<F> {
    /// Opens a journal; `None` if it was never begun (its first frame is not whole).
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Newer`].
    pub fn open<S: Storage<File = F>>(
        storage: &S,
        path: &str,
        mode: OpenMode,
    ) -> Result<Option<JournalReader<F>>, StoreError> {
        let place = storage.place(path);
        let fail = |action| {
            let place = place.clone();
            move |source| StoreError::io(action, place, source)
        };
        let file = storage.open(path, mode).map_err(fail("open"))?;
        let mut first = [0; HEAD_BYTES as usize];
        match file.read_exact_at(0, &mut first) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result.map_err(fail("read"))?,
        }
        let [.., v0, v1, _, _, s0, s1, s2, s3] = first;
        if first[..8] != MAGIC {
            return Ok(None);
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != FORMAT_VERSION {
            let (found, supported) = (version.into(), FORMAT_VERSION.into());
            return Err(StoreError::Newer { path: place, found, supported });
        }
        let seed = u32::from_le_bytes([s0, s1, s2, s3]);
        let Some(body) = read_frame(&file, HEAD_BYTES, seed).map_err(fail("read"))? else {
            return Ok(None);
        };
        let at = HEAD_BYTES + FRAME_HEAD_BYTES + body.len() as u64;
        let Ok(head) = postcard::from_bytes(&body) else { return Ok(None) };
        let mut reader = JournalReader { file, place, seed, at, head };
        if reader.next_entry()? == Some(Entry::Part) {
            reader.head.is_part = true;
        } else {
            reader.at = at;
        }
        Ok(Some(reader))
    }

    /// Its file, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Where the next entry begins.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next entry; nothing at the end or at the first frame that is not whole.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, StoreError> {
        let body = read_frame(&self.file, self.at, self.seed)
            .map_err(|source| StoreError::io("read", self.place.clone(), source))?;
        let Some(body) = body else { return Ok(None) };
        let Ok(entry) = postcard::from_bytes(&body) else { return Ok(None) };
        self.at += FRAME_HEAD_BYTES + body.len() as u64;
        Ok(Some(entry))
    }
}

impl<F: StorageFile> JournalReader<F> {
    /// Once the entries have ended: the byte at which a damaged frame hides whole ones, if any
    /// does. What a crash tore off has nothing whole behind it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn hidden_fault(&self) -> Result<Option<u64>, StoreError> {
        let fail = |source| StoreError::io("read", self.place.clone(), source);
        let len = self.file.len().map_err(fail)?;
        let frame_max = limits::JOURNAL_ENTRY_BYTES_MAX as u64 + FRAME_HEAD_BYTES;
        let end = len.min(self.at + frame_max + FRAME_HEAD_BYTES);
        let mut bytes = vec![0; end.saturating_sub(self.at) as usize];
        self.file.read_exact_at(self.at, &mut bytes).map_err(fail)?;
        for (behind, head) in (1..).zip(bytes.windows(4).skip(1)) {
            let mut body = [0; 4];
            body.copy_from_slice(head);
            let body = u64::from(u32::from_le_bytes(body));
            let fits =
                (1..frame_max).contains(&body) && self.at + behind + FRAME_HEAD_BYTES + body <= len;
            if fits && read_frame(&self.file, self.at + behind, self.seed).map_err(fail)?.is_some()
            {
                return Ok(Some(self.at));
            }
        }
        Ok(None)
    }
}

fn read_frame<F: StorageFile>(file: &F, at: u64, seed: u32) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; FRAME_HEAD_BYTES as usize];
    if file.read_at(at, &mut head)? < head.len() {
        return Ok(None);
    }
    let [l0, l1, l2, l3, crc @ ..] = head;
    let len = [l0, l1, l2, l3];
    let bytes = u32::from_le_bytes(len) as usize;
    if bytes == 0 || bytes > limits::JOURNAL_ENTRY_BYTES_MAX {
        return Ok(None);
    }
    let mut body = vec![0; bytes];
    if file.read_at(at + FRAME_HEAD_BYTES, &mut body)? < bytes {
        return Ok(None);
    }
    let found = crc32c::crc32c_append(crc32c::crc32c_append(seed, &len), &body);
    Ok((found.to_le_bytes() == crc).then_some(body))
}

/// The heads of all journals, with their paths; those that never began are listed without a head.
///
/// # Errors
/// [`StoreError::Io`] of the folder; a journal that cannot be read is left out with a warning.
pub fn list_journals<S: Storage>(
    storage: &S,
) -> Result<Vec<(String, Option<JournalHead>)>, StoreError> {
    let entries = storage
        .list(JOURNALS)
        .map_err(|source| StoreError::io("list", storage.place(JOURNALS), source))?;
    let mut heads = Vec::new();
    let is_journal = |name: &str| name.ends_with(".journal") || name.ends_with(".tmp");
    for entry in entries.iter().filter(|entry| !entry.is_dir && is_journal(&entry.name)) {
        let path = format!("{JOURNALS}/{}", entry.name);
        if entry.name.ends_with(".tmp") {
            heads.push((path, None));
            continue;
        }
        match JournalReader::open(storage, &path, OpenMode::Read) {
            Ok(reader) => heads.push((path, reader.map(|reader| reader.head))),
            Err(error) => tracing::warn!("{error}; this journal is left alone"),
        }
    }
    Ok(heads)
}
