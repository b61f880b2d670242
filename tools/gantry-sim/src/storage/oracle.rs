//! What a disk held at the instant of a snapshot, so that tests and drills can judge a restore.
//!
//! In: every write of a guest, which makes blocks of 64 KiB dirty, and snapshots, which hash the
//! dirty ones. Out: a file of BLAKE3 hashes for each snapshot and disk that outlives the snapshot
//! and the simulator. It costs a read of what changed at every snapshot, so it is off until asked
//! for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::error::{IoContext, Result, StorageError, missing};
use super::state::{DiskId, STATE_FOLDER, SnapshotId};
use super::world::World;

/// Bytes that one hash stands for.
const BLOCK_BYTES: u64 = 64 << 10;
const HASH_BYTES: usize = blake3::OUT_LEN;

/// The content of a disk at one instant, as hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oracle {
    /// The disk's size then.
    pub capacity_bytes: u64,
    /// BLAKE3 of each block of 64 KiB; the last may be shorter.
    pub hashes: Vec<[u8; HASH_BYTES]>,
}

impl Oracle {
    /// Compares an image with the disk: the first bytes of up to `limit` blocks that differ. An
    /// image of another length differs at the end of the shorter one.
    pub fn differences(&self, image: impl Read, limit: usize) -> std::io::Result<Vec<u64>> {
        let mut image = image.take(self.capacity_bytes + 1);
        let mut differences = Vec::new();
        let mut block = Vec::new();
        for (i, hash) in self.hashes.iter().enumerate() {
            let start = i as u64 * BLOCK_BYTES;
            let length = BLOCK_BYTES.min(self.capacity_bytes - start);
            block.clear();
            image.by_ref().take(length).read_to_end(&mut block)?;
            if blake3::hash(&block).as_bytes() != hash {
                differences.push(start);
            }
            if differences.len() >= limit {
                return Ok(differences);
            }
        }
        if image.read(&mut [0])? > 0 {
            differences.push(self.capacity_bytes);
        }
        Ok(differences)
    }
}

/// The hashes of a disk as it is now, except where it is dirty.
#[derive(Debug, Default)]
pub(super) struct LiveHashes {
    hashes: Vec<[u8; HASH_BYTES]>,
    dirty: Vec<bool>,
}

/// Those of all disks that are watched.
pub(super) type LiveOracles = HashMap<DiskId, LiveHashes>;

impl World {
    /// Begins to watch a disk; everything is dirty.
    pub(super) fn watch(&mut self, disk: DiskId) -> Result<()> {
        let state = self.state.disk_mut(disk)?;
        state.watched = true;
        self.oracles.insert(disk, LiveHashes::default());
        self.save()
    }

    /// A write is coming, or (over everything) the disk was reverted or has grown.
    pub(super) fn soil(&mut self, disk: DiskId, range: Range<u64>) {
        if let Some(live) = self.oracles.get_mut(&disk) {
            let first = (range.start / BLOCK_BYTES) as usize;
            let end = (range.end.div_ceil(BLOCK_BYTES) as usize).min(live.dirty.len());
            live.dirty[first.min(end)..end].fill(true);
        }
    }

    /// Hashes what is dirty and keeps the hashes of this instant for a snapshot.
    pub(super) fn keep_oracle(&mut self, disk: DiskId, snapshot: SnapshotId) -> Result<()> {
        let Some(mut live) = self.oracles.remove(&disk) else { return Ok(()) };
        let kept = self.refresh(disk, &mut live);
        self.oracles.insert(disk, live);
        kept?;
        let state = self.state.disk(disk)?;
        let hashes = self.oracles.get(&disk).map(|live| live.hashes.concat()).unwrap_or_default();
        let mut bytes = state.capacity_bytes.to_le_bytes().to_vec();
        bytes.extend_from_slice(&hashes);
        let path = self.oracle_path(snapshot, disk);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).at("create", folder)?;
        }
        std::fs::write(&path, bytes).at("write", &path)
    }

    fn refresh(&self, disk: DiskId, live: &mut LiveHashes) -> Result<()> {
        let state = self.state.disk(disk)?;
        let capacity_bytes = state.capacity_bytes;
        let blocks = capacity_bytes.div_ceil(BLOCK_BYTES) as usize;
        if live.hashes.len() != blocks {
            // New to us, or grown: what nobody has allocated is zeros, and hashed once.
            let zeros = |i: usize| (capacity_bytes - i as u64 * BLOCK_BYTES).min(BLOCK_BYTES);
            let whole = blake3::hash(&[0; BLOCK_BYTES as usize]);
            live.hashes = vec![*whole.as_bytes(); blocks];
            live.dirty = vec![false; blocks];
            live.dirty[blocks - 1] = zeros(blocks - 1) != BLOCK_BYTES;
            for range in self.allocated(state.live)? {
                let end = (range.end.div_ceil(BLOCK_BYTES) as usize).min(blocks);
                live.dirty[(range.start / BLOCK_BYTES) as usize..end].fill(true);
            }
        }
        let mut block = vec![0; BLOCK_BYTES as usize];
        for (i, dirty) in live.dirty.iter_mut().enumerate().filter(|(_, dirty)| **dirty) {
            let start = i as u64 * BLOCK_BYTES;
            let length = (capacity_bytes - start).min(BLOCK_BYTES) as usize;
            self.read_link(state.live, start, &mut block[..length])?;
            live.hashes[i] = *blake3::hash(&block[..length]).as_bytes();
            *dirty = false;
        }
        Ok(())
    }

    /// The hashes that were kept for a snapshot, also after it has gone.
    pub(super) fn oracle(&self, snapshot: SnapshotId, disk: DiskId) -> Result<Oracle> {
        let path = self.oracle_path(snapshot, disk);
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(mut file) => file.read_to_end(&mut bytes).at("read", &path)?,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(missing("oracle", format!("of {disk} at {snapshot}: watch the disk")));
            }
            Err(e) => return Err(e).at("open", &path),
        };
        let damaged = || StorageError::Invalid(format!("{} is damaged", path.display()));
        let (capacity, hashes) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let capacity_bytes = u64::from_le_bytes(*capacity);
        let (hashes, rest) = hashes.as_chunks();
        if !rest.is_empty() || hashes.len() as u64 != capacity_bytes.div_ceil(BLOCK_BYTES) {
            return Err(damaged());
        }
        Ok(Oracle { capacity_bytes, hashes: hashes.to_vec() })
    }

    /// Snapshots of which a disk's hashes were kept, the oldest first.
    pub(super) fn remembered(&self, disk: DiskId) -> Result<Vec<SnapshotId>> {
        let folder = self.oracle_folder();
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).at("read", &folder),
        };
        let suffix = format!("-{disk}");
        let number =
            |name: &str| name.strip_prefix("snapshot-")?.strip_suffix(&suffix)?.parse().ok();
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut found: Vec<_> = names.filter_map(|name| number(&name)).map(SnapshotId).collect();
        found.sort_unstable();
        Ok(found)
    }

    fn oracle_folder(&self) -> PathBuf {
        let folder: &Path = STATE_FOLDER.as_ref();
        self.root.join(folder).join("oracles")
    }

    fn oracle_path(&self, snapshot: SnapshotId, disk: DiskId) -> PathBuf {
        self.oracle_folder().join(format!("{snapshot}-{disk}"))
    }
}
