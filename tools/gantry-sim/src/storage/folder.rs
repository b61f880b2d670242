//! Files of a datastore, as `/folder` of a host serves them: ranged reads of any file that nobody
//! holds.
//!
//! In: a datastore path from a request. Out: bytes of the file. Invariant: the extent that a running
//! VM writes to is never read (ESXi answers 500); what a snapshot has frozen is. The check is made
//! anew for every read, since a snapshot may go while a client reads. It must not write.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::Shared;
use super::error::{IoContext, Result, StorageError, missing};
use super::path::DatastorePath;
use super::world::World;

/// An open file of a datastore.
#[derive(Debug)]
pub struct FolderFile {
    shared: Arc<Shared>,
    file: File,
    path: DatastorePath,
    length: u64,
}

impl FolderFile {
    pub(super) fn open(shared: &Arc<Shared>, path: &DatastorePath) -> Result<FolderFile> {
        let place = {
            let world = shared.lock();
            world.check_unheld(path)?;
            path.under(&world.root)
        };
        let file = match File::open(&place) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(missing("file", path));
            }
            other => other.at("open", &place)?,
        };
        let metadata = file.metadata().at("read", &place)?;
        if !metadata.is_file() {
            return Err(missing("file", path));
        }
        let (shared, path) = (Arc::clone(shared), path.clone());
        Ok(FolderFile { shared, file, path, length: metadata.len() })
    }

    /// The file's length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// True for a file without bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Fills `buf` from `offset`, both within the file. Fails if somebody has come to hold the file.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.length);
        let Some(end) = end else {
            return Err(StorageError::Invalid(format!(
                "{} bytes at {offset} of {}, which has {}",
                buf.len(),
                self.path,
                self.length
            )));
        };
        self.shared.pass_read(&self.path, offset..end)?;
        self.shared.lock().check_unheld(&self.path)?;
        let read = super::flat::read_or_zeros(&self.file, offset, buf);
        read.map_err(|source| StorageError::Io {
            action: "read",
            path: self.path.to_string().into(),
            source,
        })
    }
}

impl Shared {
    /// Lets the faults delay or refuse a read. Waits outside the lock.
    pub(super) fn pass_read(&self, file: &DatastorePath, range: Range<u64>) -> Result<()> {
        let wait = self.lock().faults.read(file, range)?;
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        Ok(())
    }
}

impl World {
    /// Refuses files that an injected lock or a running VM holds. Descriptors are never held.
    pub(super) fn check_unheld(&self, file: &DatastorePath) -> Result<()> {
        let locked = |holder: &str| {
            Err(StorageError::Locked { file: file.to_string(), holder: holder.to_owned() })
        };
        if self.faults.locks(file) {
            return locked("another host");
        }
        let live = self.state.disks.values().filter(|disk| disk.powered_on).map(|disk| disk.live);
        for link in live {
            let link = self.state.link(link)?;
            if link.extent_file() == *file || link.map_file() == *file {
                return locked("a running VM writes to it");
            }
        }
        Ok(())
    }
}
