//! What must stay: every point, what restores read, what unfinished backups have and refer to.
//!
//! In: the folder and the store's memory, at one moment. Out: roots for the marker, and the deleted
//! points that go. Invariant: what cannot be read makes the collection refuse, it is never left out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use gantry_common::ids::{BlockId, PointId, RepositoryId};
use gantry_common::manage::{CollectOptions, CollectReport};
use gantry_common::session::store_port::TaskKey;

use super::super::Store;
use crate::store::error::StoreError;
use crate::store::journal::JournalReader;
use crate::store::layout::{JOURNALS, POINTS, PointFile, journal_path};
use crate::store::manifest::{Manifest, list_files};
use crate::store::points::{purge, read_point, remove_orphaned_copies};
use crate::store::storage::{OpenMode, Storage};

/// A map tree that must stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    pub(super) id: BlockId,
    /// Blocks of the disk.
    pub(super) blocks: u64,
    /// Whose it is, for messages.
    pub(super) of: String,
}

/// Where roots come from.
#[derive(Debug)]
pub(super) enum RootSource {
    /// A point, in a folder of points. It may be deleted while marking is under way.
    Point { dir: String, point: PointId },
    /// A point that is being read; it may be gone already.
    ReadPoint { dir: String, point: PointId },
    /// A journal, which must be whole up to this byte.
    Journal { path: String, whole_to: u64 },
    /// A tree that is known in memory.
    Tree(Root),
    /// Blocks that a task refers to, and has not yet written into its journal.
    Blocks(Vec<BlockId>),
}

impl RootSource {
    /// The manifest of a point, whether or not it was deleted meanwhile; nothing if it is gone.
    pub(super) fn manifest<S: Storage>(
        storage: &S,
        dir: &str,
        point: PointId,
        repository: RepositoryId,
    ) -> Result<Option<Manifest>, StoreError> {
        // Deleted and brought back between two looks: so each is looked for twice.
        let (manifest, deleted) = (PointFile::Manifest, PointFile::Deleted);
        for file in [manifest, deleted, manifest, deleted] {
            if let Some(found) = read_point(storage, dir, point, file, repository)? {
                return Ok(Some(found.manifest));
            }
        }
        Ok(None)
    }
}

/// Deleted points of one folder.
#[derive(Debug, Clone)]
pub(super) struct PurgedDir {
    dir: String,
    points: BTreeSet<PointId>,
}

impl PurgedDir {
    pub(super) fn holds(&self, dir: &str, point: PointId) -> bool {
        self.dir == dir && self.points.contains(&point)
    }

    /// Removes what is still deleted, durably. After this none of them can come back.
    pub(super) fn purge<S: Storage>(
        self,
        storage: &S,
        report: &mut CollectReport,
    ) -> Result<(), StoreError> {
        if report.dry_run {
            report.points_purged += self.points.len() as u64;
            return Ok(());
        }
        let deleted: Vec<PointId> = list_files(storage, &self.dir, PointFile::Deleted)?
            .into_iter()
            .filter(|point| self.points.contains(point))
            .collect();
        purge(storage, &self.dir, &deleted)?;
        report.points_purged += deleted.len() as u64;
        remove_orphaned_copies(storage, &self.dir).map(drop)
    }
}

impl<S: Storage> Store<S> {
    /// What must stay, and what is to be purged, at this moment.
    pub(super) fn collection_roots(
        &self,
        options: &CollectOptions,
    ) -> Result<(VecDeque<RootSource>, VecDeque<PurgedDir>), StoreError> {
        let mut roots = VecDeque::new();
        let purge = self.point_roots(&mut roots)?;
        self.journal_roots(options, &mut roots)?;
        for (id, session) in &self.sessions {
            if options.abandon_unfinished && !session.is_attached {
                continue;
            }
            for (number, (sealed, base)) in &session.sealed {
                let Some(disk) = session.offer.disks.get(usize::from(*number)) else { continue };
                let of = format!("session {id}, disk {number}");
                let tree = |id, size_bytes| Root {
                    id,
                    blocks: disk.block_size.block_count(size_bytes),
                    of: of.clone(),
                };
                roots.push_back(RootSource::Tree(tree(sealed.root, disk.size_bytes)));
                let base = base.as_ref().map(|base| tree(base.root, base.size_bytes));
                roots.extend(base.map(RootSource::Tree));
            }
        }
        for (key, task) in &self.tasks {
            if let Some(base) = task.base_tree() {
                let of = format!("the base of session {}, disk {}", key.session, key.task);
                let root = Root { id: base.root, blocks: base.blocks, of };
                roots.push_back(RootSource::Tree(root));
            }
            let known = task.known_pending();
            if !known.is_empty() {
                roots.push_back(RootSource::Blocks(known));
            }
        }
        Ok((roots, purge))
    }

    fn point_roots(
        &self,
        roots: &mut VecDeque<RootSource>,
    ) -> Result<VecDeque<PurgedDir>, StoreError> {
        let storage = &self.repo.storage;
        let listed = storage.list(POINTS);
        let dirs =
            listed.map_err(|source| StoreError::io("list", storage.place(POINTS), source))?;
        let mut read: BTreeMap<String, BTreeSet<PointId>> = BTreeMap::new();
        for (dir, point) in self.repo.pinned_points() {
            read.entry(dir.clone()).or_default().insert(point);
            roots.push_back(RootSource::ReadPoint { dir, point });
        }
        let mut purge = VecDeque::new();
        for entry in dirs.into_iter().filter(|entry| entry.is_dir) {
            let dir = format!("{POINTS}/{}", entry.name);
            let files = |file| list_files(storage, &dir, file);
            let manifests = files(PointFile::Manifest)?;
            let is_read = |point: &PointId| read.get(&dir).is_some_and(|read| read.contains(point));
            let (kept, points): (BTreeSet<_>, BTreeSet<_>) =
                files(PointFile::Deleted)?.into_iter().partition(is_read);
            let is_alone = |point: &PointId| {
                !manifests.contains(point) && !kept.contains(point) && !points.contains(point)
            };
            let has_orphans = files(PointFile::Copy)?.iter().any(is_alone);
            let root = |point: &PointId| RootSource::Point { dir: dir.clone(), point: *point };
            roots.extend(manifests.iter().map(root));
            if has_orphans || !points.is_empty() {
                purge.push_back(PurgedDir { dir, points });
            }
        }
        Ok(purge)
    }

    fn journal_roots(
        &self,
        options: &CollectOptions,
        roots: &mut VecDeque<RootSource>,
    ) -> Result<(), StoreError> {
        let storage = &self.repo.storage;
        let entries = storage
            .list(JOURNALS)
            .map_err(|source| StoreError::io("list", storage.place(JOURNALS), source))?;
        let key_of = |path: &str| {
            let mut keys = self.journals.keys();
            keys.find(|key| journal_path(key.session, key.task) == path).copied()
        };
        let is_left = |key: TaskKey| {
            !self.sessions.get(&key.session).is_some_and(|session| session.is_attached)
        };
        for entry in entries.iter().filter(|entry| entry.name.ends_with(".journal")) {
            let path = format!("{JOURNALS}/{}", entry.name);
            let key = key_of(&path);
            if options.abandon_unfinished && key.is_some_and(is_left) {
                continue;
            }
            let task = key.and_then(|key| self.tasks.get(&key));
            let whole_to = task.map_or(0, |task| task.journal.end());
            roots.push_back(RootSource::Journal { path, whole_to });
        }
        Ok(())
    }
}

/// A journal as a source of roots.
///
/// # Errors
/// Also if its head cannot be read: whatever it pinned is not known then.
pub(super) fn open_journal<S: Storage>(
    storage: &S,
    path: &str,
) -> Result<JournalReader<S::File>, StoreError> {
    JournalReader::open(storage, path, OpenMode::Read)?.ok_or_else(|| {
        let what = "its beginning cannot be read, so it is not known which blocks it needs";
        let remedy = "stop the mover and start it again, which gives up what that backup had \
                      brought, or let that backup finish";
        StoreError::damaged(storage.place(path), 0, what, remedy)
    })
}
