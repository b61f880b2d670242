//! What the disk engine remembers: disks, links of their chains, snapshots, attachments.
//!
//! In and out: a JSON file under the root, written anew (tmp, fsync, rename) by every operation that
//! changes more than a disk's content, so that a killed simulator finds everything again.
//! Invariant: the files of every link named here exist; files that are not named are left-overs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{IoContext, Result, StorageError, missing};
use super::hotadd::HotAdded;
use super::path::DatastorePath;
use super::sparse::SparseFormat;
use super::tracking::TrackingState;

/// Folder of the engine's own files, beside the datastores.
pub(super) const STATE_FOLDER: &str = ".storage";
const STATE_FILE: &str = "state.json";

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub u64);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!($prefix, "-{}"), self.0)
            }
        }
    };
}

id!(
    /// A virtual disk, for as long as it exists.
    DiskId,
    "disk"
);
id!(
    /// A snapshot of one or more disks at one instant.
    SnapshotId,
    "snapshot"
);
id!(
    /// One file of a disk's chain. Numbers are never used again.
    LinkId,
    "link"
);

/// The file system of a datastore, as far as disks show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum DatastoreKind {
    /// Deltas in COWD (`vmfsSparse`).
    Vmfs5,
    /// Deltas in seSparse.
    #[default]
    Vmfs6,
    /// Deltas in COWD; `*` in a query of changed areas is refused.
    Nfs,
    /// Deltas in seSparse; `*` in a query of changed areas gives the whole disk.
    Vsan,
}

impl DatastoreKind {
    pub(super) fn delta_format(self) -> SparseFormat {
        match self {
            DatastoreKind::Vmfs6 | DatastoreKind::Vsan => SparseFormat::SeSparse,
            DatastoreKind::Vmfs5 | DatastoreKind::Nfs => SparseFormat::Cowd,
        }
    }
}

/// What kind of extent a link has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkKind {
    /// A base disk: `createType="vmfs"`, all bytes in `x-flat.vmdk`.
    Flat,
    /// A delta: `createType="vmfsSparse"` or `"seSparse"`.
    Delta(SparseFormat),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DiskState {
    /// The base disk's descriptor; the disk's name in messages.
    pub(super) file: DatastorePath,
    pub(super) uuid: String,
    pub(super) capacity_bytes: u64,
    pub(super) thin: bool,
    /// The link that the guest writes to.
    pub(super) live: LinkId,
    pub(super) powered_on: bool,
    /// The snapshot that the live link was forked from.
    pub(super) current: Option<SnapshotId>,
    pub(super) tracking: TrackingState,
    /// Its content is hashed at every snapshot.
    pub(super) watched: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LinkState {
    pub(super) disk: DiskId,
    /// The descriptor.
    pub(super) file: DatastorePath,
    pub(super) kind: LinkKind,
    pub(super) parent: Option<LinkId>,
    /// Content id: changes when a link that was written to is frozen.
    pub(super) cid: u32,
    /// It has a change map.
    pub(super) tracked: bool,
}

/// A disk as a snapshot holds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FrozenState {
    pub(super) link: LinkId,
    pub(super) capacity_bytes: u64,
    /// None if tracking was not active.
    pub(super) change_id: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SnapshotState {
    pub(super) parent: Option<SnapshotId>,
    pub(super) disks: BTreeMap<DiskId, FrozenState>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    next_id: u64,
    pub(super) datastores: BTreeMap<String, DatastoreKind>,
    pub(super) disks: BTreeMap<DiskId, DiskState>,
    pub(super) links: BTreeMap<LinkId, LinkState>,
    pub(super) snapshots: BTreeMap<SnapshotId, SnapshotState>,
    pub(super) attached: Vec<HotAdded>,
}

impl State {
    fn path(root: &Path) -> PathBuf {
        root.join(STATE_FOLDER).join(STATE_FILE)
    }

    /// What an earlier simulator left under `root`; nothing, if none ran there.
    pub(super) fn load(root: &Path) -> Result<State> {
        let path = State::path(root);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                StorageError::Invalid(format!(
                    "{} is damaged ({e}): start from an empty folder",
                    path.display()
                ))
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(State::default()),
            Err(e) => Err(e).at("read", &path),
        }
    }

    pub(super) fn save(&self, root: &Path) -> Result<()> {
        let path = State::path(root);
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| StorageError::Invalid(format!("state of the disks: {e}")))?;
        let folder = root.join(STATE_FOLDER);
        std::fs::create_dir_all(&folder).at("create", &folder)?;
        let temporary = folder.join("state.tmp");
        let mut file = File::create(&temporary).at("create", &temporary)?;
        file.write_all(&bytes).at("write", &temporary)?;
        file.sync_all().at("sync", &temporary)?;
        std::fs::rename(&temporary, &path).at("rename", &path)
    }

    /// A number that no disk, link or snapshot has had.
    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn disk(&self, id: DiskId) -> Result<&DiskState> {
        self.disks.get(&id).ok_or_else(|| missing("disk", id))
    }

    pub(super) fn disk_mut(&mut self, id: DiskId) -> Result<&mut DiskState> {
        self.disks.get_mut(&id).ok_or_else(|| missing("disk", id))
    }

    pub(super) fn link(&self, id: LinkId) -> Result<&LinkState> {
        self.links.get(&id).ok_or_else(|| missing("link", id))
    }

    pub(super) fn snapshot(&self, id: SnapshotId) -> Result<&SnapshotState> {
        self.snapshots.get(&id).ok_or_else(|| missing("snapshot", id))
    }

    pub(super) fn frozen(&self, snapshot: SnapshotId, disk: DiskId) -> Result<&FrozenState> {
        let disks = &self.snapshot(snapshot)?.disks;
        disks.get(&disk).ok_or_else(|| missing("disk", format!("{disk} in {snapshot}")))
    }

    /// The links of a chain from `link` down to its base.
    pub(super) fn chain(&self, link: LinkId) -> Result<Vec<LinkId>> {
        let mut chain = vec![link];
        let mut at = self.link(link)?;
        while let Some(parent) = at.parent {
            chain.push(parent);
            at = self.link(parent)?;
        }
        Ok(chain)
    }

    pub(super) fn children(&self, link: LinkId) -> Vec<LinkId> {
        let children = self.links.iter().filter(|(_, l)| l.parent == Some(link));
        children.map(|(id, _)| *id).collect()
    }

    pub(super) fn links_of(&self, disk: DiskId) -> Vec<LinkId> {
        self.links.iter().filter(|(_, l)| l.disk == disk).map(|(id, _)| *id).collect()
    }

    /// True if a snapshot holds this link.
    pub(super) fn is_frozen(&self, link: LinkId) -> bool {
        self.snapshots.values().any(|s| s.disks.values().any(|frozen| frozen.link == link))
    }

    pub(super) fn is_live(&self, link: LinkId) -> bool {
        self.disks.values().any(|disk| disk.live == link)
    }

    /// The link whose descriptor or extent this is.
    pub(super) fn link_of_file(&self, file: &DatastorePath) -> Option<LinkId> {
        let belongs = |l: &LinkState| l.file == *file || l.extent_file() == *file;
        self.links.iter().find(|(_, l)| belongs(l)).map(|(id, _)| *id)
    }
}

impl LinkState {
    /// The file with the link's data.
    pub(super) fn extent_file(&self) -> DatastorePath {
        let ending = match self.kind {
            LinkKind::Flat => "flat",
            LinkKind::Delta(SparseFormat::Cowd) => "delta",
            LinkKind::Delta(SparseFormat::SeSparse) => "sesparse",
        };
        self.file.sibling(&format!("{}-{ending}.vmdk", self.file.stem()))
    }

    /// The file with the link's change map.
    pub(super) fn map_file(&self) -> DatastorePath {
        self.file.sibling(&format!("{}-ctk.vmdk", self.file.stem()))
    }
}
