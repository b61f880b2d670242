//! Space held back, so that a full file system can still be collected.
//!
//! In: a folder. Out: a file that takes space, or the space. It is made where there is plenty, given
//! up when a repository is opened or collected on a nearly full file system, and made again when
//! there is room. Its contents mean nothing. Must not: fail anything; without it a full file system
//! only needs a person's help.

use std::io;

use gantry_common::limits;

use super::error::StoreError;
use super::layout::{ALIGN, BALLAST};
use super::storage::{OpenMode, Storage, StorageFile};

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// How large it is on a file system with so many bytes free; 0: not worth it.
fn bytes_for(free: u64) -> u64 {
    let bytes = (free / limits::BALLAST_FREE_PARTS).min(limits::BALLAST_BYTES_MAX) / ALIGN * ALIGN;
    if bytes < limits::BALLAST_BYTES_MIN { 0 } else { bytes }
}

/// Makes it unless it is there or there is no room.
pub fn put<S: Storage>(storage: &S) {
    let tmp = format!("{BALLAST}.tmp");
    if let Err(error) = try_put(storage, &tmp) {
        tracing::warn!("no ballast in {}: {error}", storage.place(BALLAST));
        let _ = storage.remove(&tmp);
    }
}

fn try_put<S: Storage>(storage: &S, tmp: &str) -> io::Result<()> {
    let bytes = bytes_for(storage.free_bytes()?);
    if bytes == 0 || storage.open(BALLAST, OpenMode::Read).is_ok() {
        return Ok(());
    }
    let file = storage.open(tmp, OpenMode::Create)?;
    match file.allocate(bytes) {
        // Where space cannot be reserved, what is written takes it.
        Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported) => {
            for at in (0..bytes).step_by(ZEROS.len()) {
                let count = (bytes - at).min(ZEROS.len() as u64) as usize;
                file.write_at(at, &ZEROS[..count])?;
            }
        }
        result => result?,
    }
    file.sync_data()?;
    storage.rename(tmp, BALLAST)?;
    storage.sync_dir("")
}

/// Gives it up if fewer bytes than this are free; whether it did.
///
/// # Errors
/// [`StoreError::Io`] if it is there and cannot be removed.
pub fn give_up<S: Storage>(storage: &S, free_below: u64) -> Result<bool, StoreError> {
    let fail = |action| {
        let place = storage.place(BALLAST);
        move |source| StoreError::io(action, place, source)
    };
    if storage.free_bytes().map_err(fail("measure space for"))? >= free_below {
        return Ok(false);
    }
    match storage.remove(BALLAST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        result => result.map_err(fail("remove"))?,
    }
    storage.sync_dir("").map_err(fail("sync the folder of"))?;
    tracing::warn!("{} is given up: its file system is nearly full", storage.place(BALLAST));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::storage::memory::MemoryStorage;
    use super::*;

    #[test]
    fn it_is_made_where_there_is_plenty_and_given_up_when_there_is_little() {
        assert_eq!(bytes_for(1 << 50), limits::BALLAST_BYTES_MAX);
        assert_eq!(bytes_for(200 << 20), (200 << 20) / limits::BALLAST_FREE_PARTS / ALIGN * ALIGN);
        assert_eq!(bytes_for(20 << 20), 0);
        let disk = MemoryStorage::new();
        put(&disk);
        put(&disk);
        assert_eq!(disk.after_power_loss().files(), [BALLAST]);
        let file = disk.open(BALLAST, OpenMode::Read).unwrap();
        assert_eq!(file.allocated_bytes().unwrap(), limits::BALLAST_BYTES_MAX);
        assert!(!give_up(&disk, 1 << 20).unwrap());
        assert!(give_up(&disk, u64::MAX).unwrap() && disk.files().is_empty());
        assert!(!give_up(&disk, u64::MAX).unwrap());
    }
}
