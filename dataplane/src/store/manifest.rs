//! A restore point's manifest: what the point is, as bytes.
//!
//! In: a point, or foreign bytes. Out: bytes, or a point that is whole. One of a newer format is
//! named as such and hides no other. Which files hold it is in `points`.

use gantry_common::ids::{BlockId, PointId, RepositoryId, SessionId};
use gantry_common::limits;
use gantry_common::manage::PointFlags;
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::{DiskSummary, MaskRange, PointSummary, TaskTotals};
use serde::{Deserialize, Serialize};

use super::error::{REMEDY_MANIFEST, StoreError};
use super::fields::Fields;
use super::layout::{FORMAT_VERSION, PointFile};
use super::storage::Storage;
use super::superblock::read_small;

const MAGIC: [u8; 8] = *b"GANTPOIN";
const HEAD_BYTES: usize = 48;

/// A disk of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Identity that stays when the disk moves.
    pub identity: String,
    /// For a person.
    pub label: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Block size.
    pub block_size: BlockSize,
    /// Root of the tree; [`BlockId::ZERO`]: the whole disk reads as zeros.
    pub root: BlockId,
    /// CBT change id of the snapshot.
    pub change_id: Option<String>,
    /// Which frozen state was read.
    pub snapshot: String,
    /// Digest of the filter map.
    pub read_digest: [u8; 32],
    /// What is zeroed on purpose: the effective mask.
    pub mask: Vec<MaskRange>,
    /// The source's totals.
    pub totals: TaskTotals,
    /// The point that it was compared with.
    pub base: Option<PointId>,
    /// Bytes that the run added to the repository.
    pub bytes_stored: u64,
}

impl DiskRecord {
    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.block_size.block_count(self.size_bytes)
    }
}

/// A restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The repository.
    pub repository: RepositoryId,
    /// The point.
    pub point: PointId,
    /// The VM's name.
    pub name: String,
    /// The session that made it.
    pub session: SessionId,
    /// Milliseconds since 1970 of the snapshot.
    pub created_ms: u64,
    /// The newest base of its disks.
    pub parent: Option<PointId>,
    /// Epoch of the writer.
    pub epoch: u32,
    /// Compression of the run.
    pub compression: Compression,
    /// The disks.
    pub disks: Vec<DiskRecord>,
    /// The VM's configuration.
    pub vm_config: Vec<u8>,
    /// Protected, kept longer.
    pub flags: PointFlags,
    /// Fields of later versions.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

/// Whether a manifest's bytes are what was written, whatever their format: head and checksum stay as
/// they are in later formats.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    let Some((head, body)) = bytes.split_at_checked(HEAD_BYTES) else { return false };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head[..16]).update(body);
    head[16..] == *hasher.finalize().as_bytes()
}

/// The point that a session makes: the same whenever it is asked, so that committing is
/// idempotent.
pub fn point_of(created_ms: u64, session: SessionId) -> PointId {
    let mut random = [0; 10];
    random.copy_from_slice(&session.0[..10]);
    PointId::new(created_ms, random)
}

impl Manifest {
    /// As listed to a peer.
    pub fn summary(&self) -> PointSummary {
        let disk = |disk: &DiskRecord| DiskSummary {
            identity: disk.identity.clone(),
            label: disk.label.clone(),
            size_bytes: disk.size_bytes,
            block_size: disk.block_size,
            totals: disk.totals,
            change_id: disk.change_id.clone(),
        };
        PointSummary {
            point: self.point,
            name: self.name.clone(),
            created_ms: self.created_ms,
            parent: self.parent,
            flags: self.flags,
            is_deleted: false,
            disks: self.disks.iter().map(disk).collect(),
        }
    }

    /// The bytes of its file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("manifests always encode");
        let mut out = MAGIC.to_vec();
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend([0; 2]);
        out.extend((body.len() as u32).to_le_bytes());
        let mut hasher = blake3::Hasher::new();
        hasher.update(&out).update(&body);
        out.extend(hasher.finalize().as_bytes());
        out.extend(body);
        out
    }

    fn decode(bytes: &[u8], place: &str) -> Result<Manifest, StoreError> {
        let damaged = |what: &str| StoreError::damaged(place, 0, what.to_owned(), REMEDY_MANIFEST);
        let (head, body) =
            bytes.split_at_checked(HEAD_BYTES).ok_or_else(|| damaged("it is cut off"))?;
        let mut fields = Fields::new(&head[8..]);
        let (version, _, len) = (fields.u16(), fields.u16(), fields.u32());
        if head[..8] != MAGIC {
            return Err(damaged("no manifest's magic"));
        }
        let version = u64::from(version.unwrap_or(0));
        if version > u64::from(FORMAT_VERSION) {
            let supported = FORMAT_VERSION.into();
            return Err(StoreError::Newer { path: place.to_owned(), found: version, supported });
        }
        if len != Some(body.len() as u32) || !is_whole(bytes) {
            return Err(damaged("the checksum does not match"));
        }
        let manifest: Manifest =
            postcard::from_bytes(body).map_err(|_| damaged("its fields cannot be read"))?;
        let sane = manifest.disks.len() <= limits::SESSION_DISKS_MAX
            && manifest.disks.iter().all(|disk| disk.size_bytes <= limits::DISK_BYTES_MAX);
        if sane { Ok(manifest) } else { Err(damaged("its disks are impossible")) }
    }

    /// Reads the manifest at `path`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Newer`], [`StoreError::Io`].
    pub fn read<S: Storage>(
        storage: &S,
        path: &str,
        repository: RepositoryId,
    ) -> Result<Manifest, StoreError> {
        let bytes = read_small(storage, path, limits::MANIFEST_BYTES_MAX)?;
        let place = storage.place(path);
        let manifest = Manifest::decode(&bytes, &place)?;
        if manifest.repository != repository {
            let what = "it belongs to another repository";
            return Err(StoreError::damaged(place, 0, what, REMEDY_MANIFEST));
        }
        Ok(manifest)
    }
}

/// Points of a folder, oldest first, by their files' names.
///
/// # Errors
/// [`StoreError::Io`].
pub fn list_points<S: Storage>(storage: &S, dir: &str) -> Result<Vec<PointId>, StoreError> {
    list_files(storage, dir, PointFile::Manifest)
}

/// Deleted points of a folder that no collection has taken yet, oldest first.
///
/// # Errors
/// [`StoreError::Io`].
pub fn list_deleted<S: Storage>(storage: &S, dir: &str) -> Result<Vec<PointId>, StoreError> {
    list_files(storage, dir, PointFile::Deleted)
}

/// Points of which a folder holds such a file, oldest first.
///
/// # Errors
/// [`StoreError::Io`].
pub fn list_files<S: Storage>(
    storage: &S,
    dir: &str,
    file: PointFile,
) -> Result<Vec<PointId>, StoreError> {
    let entries =
        storage.list(dir).map_err(|source| StoreError::io("list", storage.place(dir), source))?;
    let point = |name: &str| name.strip_suffix(file.ending())?.parse::<PointId>().ok();
    let mut points: Vec<PointId> = entries.iter().filter_map(|entry| point(&entry.name)).collect();
    points.sort();
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::super::layout::{manifest_path, points_dir};
    use super::super::storage::memory::MemoryStorage;
    use super::*;

    #[test]
    fn a_flipped_byte_is_found_and_a_newer_one_is_named() {
        let session = SessionId([7; 16]);
        let manifest = Manifest {
            repository: RepositoryId([1; 16]),
            point: point_of(99, session),
            name: "web/01".into(),
            session,
            created_ms: 99,
            parent: None,
            epoch: 1,
            compression: Compression::Optimal,
            disks: Vec::new(),
            vm_config: vec![1, 2, 3],
            flags: PointFlags::default(),
            extensions: Vec::new(),
        };
        let disk = MemoryStorage::new();
        disk.create_dir("points").unwrap();
        disk.sync_dir("").unwrap();
        manifest.commit(&disk).unwrap();
        let disk = disk.after_power_loss();
        let path = manifest_path("web/01", manifest.point);
        let read = || Manifest::read(&disk, &path, manifest.repository);
        assert_eq!(read().unwrap(), manifest);
        for at in 0..manifest.encode().len() as u64 {
            disk.flip(&path, at);
            assert!(read().is_err(), "byte {at}");
            disk.flip(&path, at);
        }
        disk.flip(&path, 8);
        assert!(matches!(read(), Err(StoreError::Newer { found: 65, .. })));
        assert_eq!(list_points(&disk, &points_dir("web/01")).unwrap(), [manifest.point]);
        assert!(Manifest::read(&disk, &path, RepositoryId([2; 16])).is_err());
    }
}
