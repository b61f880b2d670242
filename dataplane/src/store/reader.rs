//! Reading a repository: points, maps, where blocks stand, records. For restore, verify and lists.
//!
//! In: names, points, ids. Out: manifests, ids, locations, records found right. May be cloned and
//! used from any thread, beside a running store. Must not: modify the repository; a read-only
//! opening keeps even the index's changes in memory.

use std::sync::Arc;

use gantry_common::extents::Run;
use gantry_common::ids::{BlockId, IdKey, PointId, RepositoryId};

use super::checker::Checker;
use super::engine::take_lock;
use super::error::StoreError;
use super::index::Location;
use super::inquiries::Inquiry;
use super::layout::{POINTS, PackNumber, PointFile, points_dir};
use super::manifest::{DiskRecord, Manifest, list_files, list_points};
use super::map_node::{node_blocks, tree_height};
use super::map_tree::{TreeRoot, leaf_ids, node_id};
use super::points::{copy_fault, read_point};
use super::reconcile::{open_index, reconcile};
use super::record::{RecordDecoder, RecordHead};
use super::repo::{ReadPin, Repo};
use super::storage::Storage;
use super::storage::kernel::KernelStorage;
use super::superblock::Superblock;

/// A repository that is read.
#[derive(Debug)]
pub struct StoreReader<S: Storage = KernelStorage> {
    repo: Arc<Repo<S>>,
    _lock: Option<Arc<S::Lock>>,
}

impl<S: Storage> Clone for StoreReader<S> {
    fn clone(&self) -> StoreReader<S> {
        StoreReader { repo: Arc::clone(&self.repo), _lock: self._lock.clone() }
    }
}

/// A point, or why its manifest cannot be read.
#[derive(Debug)]
pub struct ListedPoint {
    /// The point.
    pub point: PointId,
    /// The folder of its VM.
    pub dir: String,
    /// Its manifest.
    pub manifest: Result<Manifest, StoreError>,
    /// What is wrong with the manifest's first copy, if the second had to serve.
    pub fault: Option<StoreError>,
    /// It is deleted; a collection takes it away.
    pub is_deleted: bool,
}

impl ListedPoint {
    /// Its manifest's file within the repository, for messages.
    pub fn place(&self) -> String {
        let file = if self.is_deleted { PointFile::Deleted } else { PointFile::Manifest };
        file.path(&self.dir, self.point)
    }
}

impl<S: Storage> StoreReader<S> {
    pub(super) fn shared(repo: Arc<Repo<S>>) -> StoreReader<S> {
        StoreReader { repo, _lock: None }
    }

    /// Opens a repository that no writer holds, without changing anything in it. Also gives notes
    /// for a person.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if a writer holds it; no repository; the folder fails.
    pub fn open(storage: S) -> Result<(StoreReader<S>, Vec<String>), StoreError> {
        let (superblock, copy_failed) = Superblock::read(&storage)?;
        let lock = take_lock(&storage, false)?;
        let mut notes = Vec::new();
        if copy_failed {
            notes.push("a copy of the superblock is damaged or missing".into());
        }
        let index = open_index(&storage, &superblock, false, &mut notes)?;
        let (packs, reconciled) = reconcile(&storage, &superblock, &index, false)?;
        notes.extend(reconciled.notes);
        let repo = Arc::new(Repo::new(storage, superblock, index, packs));
        Ok((StoreReader { repo, _lock: Some(Arc::new(lock)) }, notes))
    }

    pub(super) fn repo(&self) -> &Arc<Repo<S>> {
        &self.repo
    }

    /// Whether it shares a serving store's view, so that packs come and go beside it.
    pub(super) fn is_beside_writer(&self) -> bool {
        self._lock.is_none()
    }

    /// What verifies single records, on whichever thread.
    pub fn checker(&self) -> Checker<S> {
        Checker::new(Arc::clone(&self.repo))
    }

    /// The repository's id.
    pub fn repository(&self) -> RepositoryId {
        self.repo.repository()
    }

    /// The key of its ids.
    pub fn id_key(&self) -> IdKey {
        self.repo.id_key()
    }

    /// Every name that has points, sorted. A name whose manifests all fail is listed as its
    /// folder.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn names(&self) -> Result<Vec<String>, StoreError> {
        let storage = &self.repo.storage;
        let entries = storage
            .list(POINTS)
            .map_err(|source| StoreError::io("list", storage.place(POINTS), source))?;
        let mut names = Vec::new();
        for entry in entries.into_iter().filter(|entry| entry.is_dir) {
            let dir = format!("{POINTS}/{}", entry.name);
            let points = self.points_in(&dir, PointFile::Manifest)?;
            let readable = points.iter().find_map(|listed| listed.manifest.as_ref().ok());
            match (readable, points.is_empty()) {
                (Some(manifest), _) => names.push(manifest.name.clone()),
                (None, false) => names.push(entry.name),
                (None, true) => {}
            }
        }
        names.sort();
        Ok(names)
    }

    /// A VM's points, oldest first; those that cannot be read among them.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn points(&self, name: &str) -> Result<Vec<ListedPoint>, StoreError> {
        self.points_in(&points_dir(name), PointFile::Manifest)
    }

    /// A VM's deleted points that no collection has taken yet, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn deleted_points(&self, name: &str) -> Result<Vec<ListedPoint>, StoreError> {
        self.points_in(&points_dir(name), PointFile::Deleted)
    }

    fn points_in(&self, dir: &str, file: PointFile) -> Result<Vec<ListedPoint>, StoreError> {
        let storage = &self.repo.storage;
        let mut listed = Vec::new();
        for point in list_files(storage, dir, file)? {
            let (manifest, fault) =
                match read_point(storage, dir, point, file, self.repo.repository()) {
                    Ok(Some(found)) => (Ok(found.manifest), found.fault),
                    // It changed its state this moment.
                    Ok(None) => continue,
                    Err(error) => (Err(error), None),
                };
            let (dir, is_deleted) = (dir.to_owned(), file == PointFile::Deleted);
            listed.push(ListedPoint { point, dir, manifest, fault, is_deleted });
        }
        Ok(listed)
    }

    /// All points of all VMs.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn all_points(&self) -> Result<Vec<ListedPoint>, StoreError> {
        self.everywhere(PointFile::Manifest)
    }

    /// All deleted points of all VMs that no collection has taken yet.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn all_deleted_points(&self) -> Result<Vec<ListedPoint>, StoreError> {
        self.everywhere(PointFile::Deleted)
    }

    fn everywhere(&self, file: PointFile) -> Result<Vec<ListedPoint>, StoreError> {
        let storage = &self.repo.storage;
        let entries = storage
            .list(POINTS)
            .map_err(|source| StoreError::io("list", storage.place(POINTS), source))?;
        let mut all = Vec::new();
        for entry in entries.into_iter().filter(|entry| entry.is_dir) {
            all.extend(self.points_in(&format!("{POINTS}/{}", entry.name), file)?);
        }
        Ok(all)
    }

    /// A point's manifest; the newest without an id.
    ///
    /// # Errors
    /// [`StoreError::Usage`] if there is none; [`StoreError::Damaged`], [`StoreError::Newer`].
    pub fn manifest(&self, name: &str, point: Option<PointId>) -> Result<Manifest, StoreError> {
        let storage = &self.repo.storage;
        let point = match point {
            Some(point) => point,
            None => list_points(storage, &points_dir(name))?
                .pop()
                .ok_or_else(|| StoreError::Usage(format!("'{name}' has no restore point")))?,
        };
        if let Some(manifest) = Manifest::find(storage, name, point, self.repo.repository())? {
            return Ok(manifest);
        }
        if self.is_deleted(name, point)? {
            return Err(StoreError::Usage(format!(
                "restore point {point} of '{name}' is deleted: bring it back with point undelete, \
                 which works until the next repo gc"
            )));
        }
        Err(StoreError::Usage(format!("'{name}' has no restore point {point}")))
    }

    /// Whether a point is deleted and can still be brought back.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn is_deleted(&self, name: &str, point: PointId) -> Result<bool, StoreError> {
        let dir = points_dir(name);
        Ok(list_files(&self.repo.storage, &dir, PointFile::Deleted)?.contains(&point))
    }

    /// As [`StoreReader::manifest`], with a pin: while it is held no collection gives the point's
    /// blocks up, also if the point is deleted.
    ///
    /// # Errors
    /// As [`StoreReader::manifest`].
    pub fn open_point(
        &self,
        name: &str,
        point: Option<PointId>,
    ) -> Result<(Manifest, ReadPin<S>), StoreError> {
        let newest = || list_points(&self.repo.storage, &points_dir(name)).map(|mut all| all.pop());
        let point = match point {
            Some(point) => point,
            None => newest()?
                .ok_or_else(|| StoreError::Usage(format!("'{name}' has no restore point")))?,
        };
        // The pin first: from the moment that its manifest is read, the point must stay.
        let pin = self.repo.pin_point(name, point);
        Ok((self.manifest(name, Some(point))?, pin))
    }

    /// What is wrong with the second copy of a listed point's manifest; nothing if it is whole.
    pub fn copy_fault(&self, listed: &ListedPoint) -> Option<StoreError> {
        let manifest = listed.manifest.as_ref().ok()?;
        copy_fault(&self.repo.storage, &listed.dir, manifest)
    }

    /// Block ids of a disk's leaf: 1024, fewer at the disk's end.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a node on the way is missing or damaged.
    pub fn leaf(&self, disk: &DiskRecord, leaf: u64) -> Result<Vec<BlockId>, StoreError> {
        let tree = TreeRoot { root: disk.root, blocks: disk.blocks() };
        leaf_ids(&tree, leaf, &mut |id, level| self.repo.node(id, level))
    }

    /// The blocks of the largest map subtree around `block` that reads as zeros; nothing if its leaf
    /// has blocks. What a sparse disk costs is so what its map costs, not its size.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a node on the way is missing or damaged.
    pub fn zero_subtree(&self, disk: &DiskRecord, block: u64) -> Result<Option<Run>, StoreError> {
        let tree = TreeRoot { root: disk.root, blocks: disk.blocks() };
        for level in (0..tree_height(tree.blocks)).rev() {
            let span = node_blocks(level);
            let index = block / span;
            let id = node_id(&tree, level, index, &mut |id, level| self.repo.node(id, level))?;
            if id.is_some_and(|id| id.is_zero()) {
                let first = index * span;
                return Ok(Some(Run { first, count: span.min(tree.blocks - first) }));
            }
        }
        Ok(None)
    }

    /// Where these blocks stand; `None` for those in no pack, or known to be damaged.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Location>>, StoreError> {
        self.repo.find(ids)
    }

    /// A pack's file, for reads through the page cache.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open_pack(&self, pack: PackNumber) -> Result<S::File, StoreError> {
        self.repo.open_pack(pack)
    }

    /// A pack's name, for messages and for opening it oneself.
    pub fn pack_place(&self, pack: PackNumber) -> String {
        self.repo.storage.place(&pack.path())
    }

    /// A record's head and stored bytes, intact and the one that was wanted. Decoding, and checking
    /// the id, is the caller's.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn read_record(
        &self,
        id: &BlockId,
        at: &Location,
    ) -> Result<(RecordHead, Vec<u8>), StoreError> {
        self.repo.read_record(id, at).inspect_err(|error| self.doubt_if_damaged(error, id, at))
    }

    /// A record was read here and is not what it should be: the store looks at it once more, and
    /// remembers it. For damage only, never for an I/O error, which may be a moment's.
    pub fn doubt(&self, id: &BlockId, at: &Location) {
        if self.repo.index.is_writable() {
            self.repo.inquiries.push(Inquiry::Doubt(*id, *at));
        }
    }

    fn doubt_if_damaged(&self, error: &StoreError, id: &BlockId, at: &Location) {
        if matches!(error, StoreError::Damaged { .. }) {
            self.doubt(id, at);
        }
    }

    /// A block's raw bytes, checked against its id.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn read_block(
        &self,
        decoder: &mut RecordDecoder,
        id: &BlockId,
    ) -> Result<Vec<u8>, StoreError> {
        let at = self.repo.find_one(id)?.ok_or_else(|| {
            StoreError::damaged(
                self.repo.storage.place(super::layout::PACKS),
                0,
                format!("block {id} is in no pack"),
                super::error::REMEDY_VERIFY,
            )
        })?;
        let checked = self.repo.check_record(decoder, id, &at);
        checked.inspect_err(|error| self.doubt_if_damaged(error, id, &at))
    }
}
