//! One file of an image, open for reading only, and what it was when it was opened.
//!
//! In: an open descriptor. Out: bytes at a place, where data is, and whether the file changed.
//! Invariant: reads are positional, so that any number of threads may read at once. Must not: write.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::datastore::Place;
use crate::error::VmdkError;

/// What identifies a file and changes when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileState {
    /// Device number of the filesystem.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Last modification: seconds and nanoseconds of the system's clock.
    pub modified: (i64, i64),
    /// Last change of status: seconds and nanoseconds of the system's clock.
    pub changed: (i64, i64),
}

impl FileState {
    pub(crate) fn of(file: &File) -> io::Result<FileState> {
        let metadata = file.metadata()?;
        Ok(FileState {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// An open file of an image.
#[derive(Debug)]
pub(crate) struct SourceFile {
    path: PathBuf,
    place: Place,
    file: Arc<File>,
    state: FileState,
}

impl SourceFile {
    /// Takes an open descriptor, if it is of a regular file.
    pub(crate) fn new(path: PathBuf, place: Place, file: OwnedFd) -> Result<SourceFile, VmdkError> {
        let file = File::from(file);
        let open = |source| VmdkError::Open { path: path.clone(), source, hint: "" };
        if !file.metadata().map_err(open)?.is_file() {
            return Err(VmdkError::NotADisk { path, why: "it is no regular file".into() });
        }
        let state = FileState::of(&file).map_err(open)?;
        Ok(SourceFile { path, place, file: Arc::new(file), state })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// As it was when it was opened.
    pub(crate) fn state(&self) -> FileState {
        self.state
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.state.size_bytes
    }

    /// As it is now.
    pub(crate) fn state_now(&self) -> io::Result<FileState> {
        FileState::of(&self.file)
    }

    /// Fills `buffer` from `offset`; `what` is for the error.
    pub(crate) fn read_exact_at(
        &self,
        offset: u64,
        buffer: &mut [u8],
        what: &'static str,
    ) -> Result<(), VmdkError> {
        let count = self.read_up_to(offset, buffer)?;
        if count == buffer.len() {
            return Ok(());
        }
        Err(VmdkError::Truncated {
            path: self.path.clone(),
            offset: offset.saturating_add(count as u64),
            size_bytes: self.state_now().map_or(self.state.size_bytes, |state| state.size_bytes),
            what,
        })
    }

    /// Fills as much of `buffer` as the file has from `offset`, and gives how much that is.
    pub(crate) fn read_up_to(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, VmdkError> {
        let mut count = 0;
        // The system takes offsets as signed numbers.
        if i64::try_from(offset.saturating_add(buffer.len() as u64)).is_err() {
            return Ok(0);
        }
        while count < buffer.len() {
            match self.file.read_at(&mut buffer[count..], offset + count as u64) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let offset = offset + count as u64;
                    return Err(VmdkError::Read { path: self.path.clone(), offset, source });
                }
            }
        }
        Ok(count)
    }

    /// The run of data or of hole from `offset` on, as the filesystem knows it: its end, and whether
    /// it is data. A filesystem that knows no holes has data everywhere.
    pub(crate) fn data_or_hole(&self, offset: u64) -> Result<(u64, bool), VmdkError> {
        let end = self.state.size_bytes.max(offset.saturating_add(1));
        let seek = |to| rustix::fs::seek(&*self.file, to);
        match seek(SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok((data, false)),
            Ok(_) => match seek(SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => Ok((hole, true)),
                _ => Ok((end, true)),
            },
            Err(Errno::NXIO) => Ok((end, false)),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok((end, true)),
            Err(errno) => {
                Err(VmdkError::Read { path: self.path.clone(), offset, source: errno.into() })
            }
        }
    }
}
