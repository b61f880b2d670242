//! The superblock: what a repository is, in three copies; and the epoch of its writers.
//!
//! In: a folder. Out: repository id, id key, feature flags; a new epoch at each writable opening.
//! Invariant: one good copy is enough. Must not: print the id key.

use std::io;

use gantry_common::ids::{IdKey, RepositoryId};

use super::error::StoreError;
use super::fields::Fields;
use super::layout::{ALIGN, EPOCH, FORMAT_VERSION, SUPERBLOCKS};
use super::storage::{OpenMode, Storage, StorageFile};

const MAGIC: [u8; 8] = *b"GANTREPO";
const EPOCH_MAGIC: [u8; 8] = *b"GANTEPOC";
const BODY_BYTES: usize = 96;

/// Features that this program knows: none yet. A repository with an unknown compatible feature is
/// read and written, with an unknown read-compatible one only read, with an incompatible one
/// refused.
const KNOWN_FEATURES: u64 = 0;

/// What a repository is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Its id.
    pub repository: RepositoryId,
    /// Key of its block ids.
    pub id_key: IdKey,
    /// Milliseconds since 1970 of its creation.
    pub created_ms: u64,
    /// Features that older programs may ignore.
    pub features_compatible: u64,
    /// Features that older programs may ignore while they only read.
    pub features_read_compatible: u64,
    /// Features that older programs must know.
    pub features_incompatible: u64,
}

impl Superblock {
    /// A new repository with these random bytes.
    pub fn new(repository: RepositoryId, id_key: IdKey, created_ms: u64) -> Superblock {
        Superblock {
            repository,
            id_key,
            created_ms,
            features_compatible: 0,
            features_read_compatible: 0,
            features_incompatible: 0,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ALIGN as usize);
        out.extend(MAGIC);
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend([0; 6]);
        out.extend(self.features_compatible.to_le_bytes());
        out.extend(self.features_read_compatible.to_le_bytes());
        out.extend(self.features_incompatible.to_le_bytes());
        out.extend(self.created_ms.to_le_bytes());
        out.extend(self.repository.0);
        out.extend(self.id_key.0);
        debug_assert_eq!(out.len(), BODY_BYTES);
        out.extend(blake3::hash(&out).as_bytes());
        out.resize(ALIGN as usize, 0);
        out
    }

    fn decode(bytes: &[u8], path: &str) -> Result<Superblock, StoreError> {
        let damaged = |what: &str| {
            StoreError::damaged(path, 0, what, "another copy of the superblock is used if intact")
        };
        let body = bytes.get(..BODY_BYTES).ok_or_else(|| damaged("it is too short"))?;
        if body[..8] != MAGIC {
            return Err(damaged("no superblock's magic"));
        }
        if bytes.get(BODY_BYTES..BODY_BYTES + 32) != Some(blake3::hash(body).as_bytes()) {
            return Err(damaged("the checksum does not match"));
        }
        let mut fields = Fields::new(&body[8..]);
        let mut read = || {
            let version = fields.u16()?;
            fields.array::<6>()?;
            let superblock = Superblock {
                features_compatible: fields.u64()?,
                features_read_compatible: fields.u64()?,
                features_incompatible: fields.u64()?,
                created_ms: fields.u64()?,
                repository: RepositoryId(fields.array()?),
                id_key: IdKey(fields.array()?),
            };
            Some((version, superblock))
        };
        let (version, superblock) = read().ok_or_else(|| damaged("it is too short"))?;
        let newer = |found: u64, supported: u64| StoreError::Newer {
            path: path.to_owned(),
            found,
            supported,
        };
        if version != FORMAT_VERSION {
            return Err(newer(version.into(), FORMAT_VERSION.into()));
        }
        if superblock.features_incompatible & !KNOWN_FEATURES != 0 {
            return Err(newer(superblock.features_incompatible, KNOWN_FEATURES));
        }
        Ok(superblock)
    }

    /// Whether this program may write the repository.
    ///
    /// # Errors
    /// [`StoreError::Newer`] names the feature bits.
    pub fn check_writable(&self, place: String) -> Result<(), StoreError> {
        match self.features_read_compatible & !KNOWN_FEATURES {
            0 => Ok(()),
            found => Err(StoreError::Newer { path: place, found, supported: KNOWN_FEATURES }),
        }
    }

    /// Writes every copy and makes them durable.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write<S: Storage>(&self, storage: &S) -> Result<(), StoreError> {
        for path in SUPERBLOCKS {
            write_file(storage, path, &self.encode())?;
        }
        Ok(())
    }

    /// The copies that are missing, damaged, or not like the first good one: place and what is
    /// wrong.
    pub fn faults<S: Storage>(storage: &S) -> Vec<(String, String)> {
        let mut good: Option<Superblock> = None;
        let mut faults = Vec::new();
        for path in SUPERBLOCKS {
            let place = storage.place(path);
            let read = read_small(storage, path, ALIGN as usize)
                .and_then(|bytes| Superblock::decode(&bytes, &place));
            match read {
                Ok(superblock) if good.is_none_or(|good| good == superblock) => {
                    good = Some(superblock);
                }
                Ok(_) => faults.push((place, "it differs from another copy".to_owned())),
                Err(error) => faults.push((place, error.to_string())),
            }
        }
        faults
    }

    /// Reads the first good copy; the second value says whether a copy is missing or damaged.
    ///
    /// # Errors
    /// The first copy's error if none is good; a newer format at once.
    pub fn read<S: Storage>(storage: &S) -> Result<(Superblock, bool), StoreError> {
        let (mut good, mut first_error) = (None, None);
        let mut failed = false;
        for path in SUPERBLOCKS {
            let place = storage.place(path);
            let read = read_small(storage, path, ALIGN as usize)
                .and_then(|bytes| Superblock::decode(&bytes, &place));
            match read {
                Ok(superblock) => good = good.or(Some(superblock)),
                Err(newer @ StoreError::Newer { .. }) => return Err(newer),
                Err(error) => {
                    failed = true;
                    first_error.get_or_insert(error);
                }
            }
        }
        match (good, first_error) {
            (Some(superblock), _) => Ok((superblock, failed)),
            (None, Some(StoreError::Io { source, .. }))
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Err(StoreError::Usage(format!(
                    "{} is no repository: create one with gantry-mover repo init",
                    storage.place("")
                )))
            }
            (None, Some(error)) => Err(error),
            (None, None) => Err(StoreError::Usage("no superblock".into())),
        }
    }
}

/// Writes a small file so that after a crash either the old or the new contents stand there.
///
/// # Errors
/// [`StoreError::Io`] names the step.
pub fn write_file<S: Storage>(storage: &S, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let tmp = format!("{path}.tmp");
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    let fail = |action| {
        let place = storage.place(path);
        move |source| StoreError::io(action, place, source)
    };
    let file = storage.open(&tmp, OpenMode::Create).map_err(fail("create"))?;
    file.write_at(0, bytes).map_err(fail("write"))?;
    file.sync_data().map_err(fail("sync"))?;
    storage.rename(&tmp, path).map_err(fail("rename"))?;
    storage.sync_dir(dir).map_err(fail("sync the folder of"))
}

/// Reads a file of at most `max` bytes.
///
/// # Errors
/// [`StoreError::Io`]; longer files are damage.
pub fn read_small<S: Storage>(storage: &S, path: &str, max: usize) -> Result<Vec<u8>, StoreError> {
    let fail = |action| move |source| StoreError::io(action, storage.place(path), source);
    let file = storage.open(path, OpenMode::Read).map_err(fail("open"))?;
    let len = file.len().map_err(fail("measure"))?;
    if len > max as u64 {
        let what = format!("it has {len} bytes, {max} at the most are right");
        return Err(StoreError::damaged(storage.place(path), 0, what, "restore it from a copy"));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(0, &mut bytes).map_err(fail("read"))?;
    Ok(bytes)
}

/// Draws the next epoch and makes it durable, before anything is written under it.
/// `floor` is the highest epoch seen in the names of packs: the epoch never falls behind it.
///
/// # Errors
/// [`StoreError::Io`].
pub fn next_epoch<S: Storage>(storage: &S, floor: u32) -> Result<u32, StoreError> {
    let stored = match read_epoch(storage) {
        Ok(stored) => stored,
        Err(StoreError::Damaged { .. }) => None,
        Err(error) => return Err(error),
    };
    let epoch =
        stored.unwrap_or(0).max(floor).checked_add(1).ok_or_else(|| {
            StoreError::Refused(format!("{} used up its epochs", storage.place("")))
        })?;
    let mut out = EPOCH_MAGIC.to_vec();
    out.extend(epoch.to_le_bytes());
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    write_file(storage, EPOCH, &out)?;
    Ok(epoch)
}

/// The newest epoch; nothing before the first writable opening.
///
/// # Errors
/// [`StoreError::Damaged`], [`StoreError::Io`].
pub fn read_epoch<S: Storage>(storage: &S) -> Result<Option<u32>, StoreError> {
    let bytes = match read_small(storage, EPOCH, 64) {
        Ok(bytes) => bytes,
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    decode_epoch(&bytes).map(Some).ok_or_else(|| {
        let remedy = "the next writable opening writes it anew";
        StoreError::damaged(storage.place(EPOCH), 0, "the checksum does not match", remedy)
    })
}

fn decode_epoch(bytes: &[u8]) -> Option<u32> {
    let (body, crc) = bytes.split_at_checked(12)?;
    if body[..8] != EPOCH_MAGIC || *crc != crc32c::crc32c(body).to_le_bytes() {
        return None;
    }
    Fields::new(&body[8..]).u32()
}

#[cfg(test)]
mod tests {
    use super::super::storage::memory::MemoryStorage;
    use super::*;

    #[test]
    fn one_good_copy_is_enough_and_every_byte_counts() {
        let disk = MemoryStorage::new();
        let superblock = Superblock::new(RepositoryId([1; 16]), IdKey([2; 32]), 3);
        superblock.write(&disk).unwrap();
        let disk = disk.after_power_loss();
        assert_eq!(Superblock::read(&disk).unwrap(), (superblock, false));
        for at in 0..(BODY_BYTES + 32) as u64 {
            disk.flip("superblock", at);
            disk.flip("superblock.2", at);
            assert_eq!(Superblock::read(&disk).unwrap(), (superblock, true), "byte {at}");
            disk.flip("superblock.1", at);
            assert!(Superblock::read(&disk).is_err(), "byte {at}");
            SUPERBLOCKS.iter().for_each(|path| disk.flip(path, at));
        }
    }

    #[test]
    fn unknown_features_are_refused() {
        let disk = MemoryStorage::new();
        let mut superblock = Superblock::new(RepositoryId([1; 16]), IdKey([2; 32]), 3);
        superblock.features_read_compatible = 4;
        superblock.write(&disk).unwrap();
        let (read, _) = Superblock::read(&disk).unwrap();
        assert!(matches!(read.check_writable("r".into()), Err(StoreError::Newer { .. })));
        superblock.features_incompatible = 1;
        superblock.write(&disk).unwrap();
        assert!(matches!(Superblock::read(&disk), Err(StoreError::Newer { .. })));
    }

    #[test]
    fn epochs_only_grow() {
        let disk = MemoryStorage::new();
        assert_eq!(next_epoch(&disk, 0).unwrap(), 1);
        assert_eq!(next_epoch(&disk.after_power_loss(), 0).unwrap(), 2);
        disk.flip(EPOCH, 9);
        assert_eq!(next_epoch(&disk, 7).unwrap(), 8, "a lost epoch file follows the packs");
    }
}
