//! What a store and its readers share: the folder, the superblock, the index, the set of packs.
//!
//! In: ids. Out: locations that may be trusted to exist, records and nodes found right. Everything
//! here may be called from many threads. Must not: write anything but the index.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use gantry_common::ids::{BlockId, IdKey, PointId, RepositoryId};

use super::error::{REMEDY_VERIFY, StoreError};
use super::index::{Finding, Index, Location, PackRow};
use super::inquiries::{Inquiries, Inquiry};
use super::layout::{PackNumber, points_dir};
use super::map_node::decode_node;
use super::record::{
    RECORD_HEAD_BYTES, RecordDecoder, RecordHead, RecordKind, open_record, record_bytes,
};
use super::storage::{OpenMode, Storage, StorageFile};
use super::superblock::Superblock;

/// Nodes kept in memory, 32 KiB each.
const NODE_CACHE_NODES: usize = 96;
/// Pack files kept open.
const OPEN_PACKS_MAX: usize = 32;

/// A repository as the store and its readers see it.
#[derive(Debug)]
pub struct Repo<S: Storage> {
    /// The folder.
    pub storage: S,
    /// What it is.
    pub superblock: Superblock,
    /// The index.
    pub index: Index,
    packs: RwLock<BTreeMap<PackNumber, PackRow>>,
    nodes: Mutex<VecDeque<(BlockId, Arc<Vec<BlockId>>)>>,
    files: Mutex<VecDeque<(PackNumber, S::File)>>,
    /// What readers noticed, for the store.
    pub inquiries: Inquiries,
    reads: Mutex<Reads>,
}

/// Points that are being read, each with how many readers it has.
type Reads = BTreeMap<(String, PointId), usize>;

/// Keeps a point's blocks from being given up while it is read, also if it is deleted meanwhile.
/// It holds the folder of the point's VM and the point.
#[derive(Debug)]
pub struct ReadPin<S: Storage> {
    repo: Arc<Repo<S>>,
    point: (String, PointId),
}

impl<S: Storage> Drop for ReadPin<S> {
    fn drop(&mut self) {
        let mut reads = self.repo.reads.lock().unwrap_or_else(PoisonError::into_inner);
        match reads.get_mut(&self.point) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(reads.remove(&self.point)),
        }
    }
}

impl<S: Storage> Repo<S> {
    /// From its parts; `packs` are those on the disk.
    pub fn new(
        storage: S,
        superblock: Superblock,
        index: Index,
        packs: BTreeMap<PackNumber, PackRow>,
    ) -> Repo<S> {
        Repo {
            storage,
            superblock,
            index,
            packs: RwLock::new(packs),
            nodes: Mutex::default(),
            files: Mutex::default(),
            inquiries: Inquiries::default(),
            reads: Mutex::default(),
        }
    }

    /// Pins a point of this name. To be taken before its manifest is read.
    pub fn pin_point(self: &Arc<Self>, name: &str, point: PointId) -> ReadPin<S> {
        let point = (points_dir(name), point);
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        *reads.entry(point.clone()).or_default() += 1;
        drop(reads);
        ReadPin { repo: Arc::clone(self), point }
    }

    /// Points that are being read: folder and point.
    pub fn pinned_points(&self) -> Vec<(String, PointId)> {
        let reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        reads.keys().cloned().collect()
    }

    /// Its id.
    pub fn repository(&self) -> RepositoryId {
        self.superblock.repository
    }

    /// The key of its ids.
    pub fn id_key(&self) -> IdKey {
        self.superblock.id_key
    }

    /// Sealed packs on the disk.
    pub fn packs(&self) -> BTreeMap<PackNumber, PackRow> {
        self.packs.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a sealed pack is there.
    pub fn has_pack(&self, pack: PackNumber) -> bool {
        self.packs.read().unwrap_or_else(PoisonError::into_inner).contains_key(&pack)
    }

    /// What is known of a sealed pack.
    pub fn pack_row(&self, pack: PackNumber) -> Option<PackRow> {
        self.packs.read().unwrap_or_else(PoisonError::into_inner).get(&pack).copied()
    }

    /// What is known of a pack from now on; nothing if it goes: then its file is closed too.
    pub fn set_pack_row(&self, pack: PackNumber, row: Option<PackRow>) {
        let mut packs = self.packs.write().unwrap_or_else(PoisonError::into_inner);
        match row {
            Some(row) => drop(packs.insert(pack, row)),
            None => {
                packs.remove(&pack);
                let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
                files.retain(|(number, _)| *number != pack);
            }
        }
    }

    /// Makes a sealed pack's blocks known. `may_keep` says of another place of one of its ids
    /// whether the index may go on naming that one.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn add_pack(
        &self,
        pack: PackNumber,
        slots: &[super::footer::Slot],
        file_bytes: u64,
        may_keep: &dyn Fn(&Location) -> bool,
        durable: bool,
    ) -> Result<(), StoreError> {
        let row = PackRow::of(slots, file_bytes);
        // Before the entries: who finds one must find its pack too.
        self.set_pack_row(pack, Some(row));
        let is_usable = |other: &Location| self.has_pack(other.pack) && may_keep(other);
        let added = self.index.insert_pack(pack, &row, slots, &is_usable, durable);
        if added.is_err() {
            self.set_pack_row(pack, None);
        }
        added
    }

    /// Remembers what was found at records' places; see [`Index::mark`].
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn mark(&self, checked: &[(BlockId, Location, Finding)]) -> Result<(), StoreError> {
        if self.index.mark(checked)? {
            // A node that is damaged on the disk serves no longer from memory either.
            self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        Ok(())
    }

    /// Notes when every record of a pack was last read, and how many were damaged.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn set_checked(
        &self,
        pack: PackNumber,
        checked_ms: u64,
        damaged: u32,
    ) -> Result<(), StoreError> {
        self.index.set_checked(pack, checked_ms, damaged)?;
        let mut packs = self.packs.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = packs.get_mut(&pack) {
            (row.checked_ms, row.damaged) = (checked_ms, damaged);
        }
        Ok(())
    }

    /// Where these ids stand in packs that exist and as far as is known undamaged.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn find(&self, ids: &[BlockId]) -> Result<Vec<Option<Location>>, StoreError> {
        let mut found = self.index.find(ids)?;
        let packs = self.packs.read().unwrap_or_else(PoisonError::into_inner);
        for location in &mut found {
            *location = location.filter(|at| !at.damaged && packs.contains_key(&at.pack));
        }
        Ok(found)
    }

    /// As [`Repo::find`], for one id.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn find_one(&self, id: &BlockId) -> Result<Option<Location>, StoreError> {
        Ok(self.find(std::slice::from_ref(id))?.into_iter().flatten().next())
    }

    /// A pack's file, opened to read.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open_pack(&self, pack: PackNumber) -> Result<S::File, StoreError> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = files.iter().position(|(number, _)| *number == pack) {
            let entry = files.remove(at).map(|entry| {
                files.push_back(entry.clone());
                entry.1
            });
            if let Some(file) = entry {
                return Ok(file);
            }
        }
        let path = pack.path();
        let file = self
            .storage
            .open(&path, OpenMode::Read)
            .map_err(|source| StoreError::io("open", self.storage.place(&path), source))?;
        if files.len() >= OPEN_PACKS_MAX {
            files.pop_front();
        }
        files.push_back((pack, file.clone()));
        Ok(file)
    }

    /// A record's head and stored bytes, found to be the wanted one and intact.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names pack and offset.
    pub fn read_record(
        &self,
        id: &BlockId,
        at: &Location,
    ) -> Result<(RecordHead, Vec<u8>), StoreError> {
        let place = || self.storage.place(&at.pack.path());
        let file = self.open_pack(at.pack)?;
        let mut bytes = vec![0; record_bytes(at.stored_len) as usize];
        let read = file
            .read_at(at.offset, &mut bytes)
            .map_err(|source| StoreError::io("read", place(), source))?;
        bytes.truncate(read);
        let (head, _) = open_record(&bytes, self.repository(), id).map_err(|fault| {
            StoreError::damaged(place(), at.offset, fault.to_string(), REMEDY_VERIFY)
        })?;
        bytes.drain(..RECORD_HEAD_BYTES);
        bytes.truncate(head.stored_len as usize);
        Ok((head, bytes))
    }

    /// Reads a record and checks everything, its id included.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn check_record(
        &self,
        decoder: &mut RecordDecoder,
        id: &BlockId,
        at: &Location,
    ) -> Result<Vec<u8>, StoreError> {
        let (head, stored) = self.read_record(id, at)?;
        let raw = decoder.raw(&head, &stored).map_err(|fault| {
            let place = self.storage.place(&at.pack.path());
            StoreError::damaged(place, at.offset, fault.to_string(), REMEDY_VERIFY)
        })?;
        Ok(raw.to_vec())
    }

    /// The children of the node that stands here, whatever is remembered of it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is damaged or not of this level.
    pub fn node_at(
        &self,
        decoder: &mut RecordDecoder,
        id: &BlockId,
        at: &Location,
        level: u8,
    ) -> Result<Vec<BlockId>, StoreError> {
        let raw = self.check_record(decoder, id, at)?;
        decode_node(&raw, level).ok_or_else(|| {
            let what = format!("map node {id} is not of level {level}");
            let place = self.storage.place(&at.pack.path());
            StoreError::damaged(place, at.offset, what, REMEDY_VERIFY)
        })
    }

    /// The children of a node.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is missing, damaged or not of this level.
    pub fn node(&self, id: &BlockId, level: u8) -> Result<Arc<Vec<BlockId>>, StoreError> {
        {
            let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = nodes.iter().position(|(known, _)| known == id)
                && let Some(entry) = nodes.remove(at)
            {
                nodes.push_back(entry.clone());
                return Ok(entry.1);
            }
        }
        let lost = |what: String| {
            StoreError::damaged(self.storage.place(super::layout::PACKS), 0, what, REMEDY_VERIFY)
        };
        let at = self
            .find_one(id)?
            .filter(|at| at.kind == RecordKind::Node)
            .ok_or_else(|| lost(format!("map node {id} is in no pack")))?;
        let mut decoder = RecordDecoder::new(self.id_key());
        let read = self.node_at(&mut decoder, id, &at, level).inspect_err(|error| {
            if matches!(error, StoreError::Damaged { .. }) {
                self.inquiries.push(Inquiry::Doubt(*id, at));
            }
        });
        let children = Arc::new(read?);
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= NODE_CACHE_NODES {
            nodes.pop_front();
        }
        nodes.push_back((*id, Arc::clone(&children)));
        Ok(children)
    }
}
