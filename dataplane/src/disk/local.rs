//! A raw image file or a block device, open for reading only.
//!
//! In: a path. Out: its size, identity, fingerprint, data extents, and descriptors for the readers'
//! rings. Invariant: the file is open with O_RDONLY and nothing else; size, identity and
//! fingerprint are those of the moment of opening. Must not: write, lock, or interpret contents.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use gantry_uring::direct::{Access, open_read_only};

use super::{DiskError, block_device, raw_file};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    RawFile,
    BlockDevice,
}

/// What must stay the same while a disk is read, as far as the system can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) size_bytes: u64,
    /// Modification and status change, each in seconds and nanoseconds; zero for a device, whose
    /// times say nothing of its contents.
    pub(super) times: [(i64, i64); 2],
}

/// A raw file or a block device, open for reading only.
#[derive(Debug)]
pub struct LocalFile {
    path: PathBuf,
    file: File,
    kind: Kind,
    access: Access,
    state: State,
    sector_bytes: u32,
    identity: String,
    fingerprint: String,
}

impl LocalFile {
    /// Opens `path` read-only, with O_DIRECT if `direct` and possible (see [`LocalFile::access`]).
    ///
    /// # Errors
    /// [`DiskError`] for what cannot be opened, is no disk, is empty or too large.
    pub fn open(path: &Path, direct: bool) -> Result<LocalFile, DiskError> {
        let open_error = |source: io::Error| DiskError::Open {
            path: path.to_owned(),
            hint: hint(&source),
            source,
        };
        // Looked at before, since opening alone can act on a device (a tape rewinds), and again
        // after, since the path may have changed hands between.
        kind_of(path, &std::fs::metadata(path).map_err(open_error)?)?;
        let (file, access) = open_read_only(path, direct).map_err(open_error)?;
        let metadata = file.metadata().map_err(open_error)?;
        let kind = kind_of(path, &metadata)?;
        let state = state_of(&file, kind).map_err(query(path, "read the size"))?;
        super::check_size(path, state.size_bytes)?;
        let named = query(path, "find the identity");
        let (identity, fingerprint, sector_bytes) = match kind {
            Kind::RawFile => (
                raw_file::identity(path).map_err(named)?,
                raw_file::fingerprint(&metadata),
                raw_file::SECTOR_BYTES,
            ),
            Kind::BlockDevice => (
                block_device::identity(&metadata),
                block_device::fingerprint(&metadata, state.size_bytes).map_err(named)?,
                block_device::sector_bytes(&file).map_err(query(path, "read the sector size"))?,
            ),
        };
        let path = path.to_owned();
        Ok(LocalFile { path, file, kind, access, state, sector_bytes, identity, fingerprint })
    }

    /// Bytes of the disk at opening.
    pub fn size_bytes(&self) -> u64 {
        self.state.size_bytes
    }

    /// Bytes of a logical sector; 512 for a file.
    pub fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    /// Whether reads go past the page cache, their alignment, and why not if they do not.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Whether this is a block device.
    pub fn is_block_device(&self) -> bool {
        self.kind == Kind::BlockDevice
    }

    /// Identity to use when the caller has no better one: `file:` and the canonical path, or a
    /// device's own name (WWN, serial number, device-mapper UUID), else `dev:` and its numbers.
    /// At most [`limits::NAME_BYTES_MAX`] bytes.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Names the state of the contents, as far as the system can: for a file its device, inode,
    /// size and times. A device has no time that tells of writes, so its fingerprint is never the
    /// same twice: a resume needs a snapshot id from the caller.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A descriptor more of the same open file, for a ring's file table.
    pub fn descriptor(&self) -> Result<OwnedFd, DiskError> {
        let file = self.file.try_clone().map_err(query(&self.path, "duplicate the descriptor"))?;
        Ok(file.into())
    }

    /// The first data at or after `offset`, as start and end (exclusive) in bytes; nothing if only
    /// a hole follows. Holes read as zeros. Unwritten, preallocated ranges may count as data, and
    /// a device is all data.
    pub fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, DiskError> {
        let size_bytes = self.size_bytes();
        if offset >= size_bytes {
            return Ok(None);
        }
        match self.kind {
            Kind::BlockDevice => Ok(Some((offset, size_bytes))),
            Kind::RawFile => raw_file::next_data(&self.file, offset, size_bytes)
                .map_err(query(&self.path, "find the holes")),
        }
    }

    /// What has changed since opening, for a person; nothing if nothing is known to have. A write
    /// to a device cannot be seen, nor one to a file within the clock's tick of the opening.
    pub fn changed_since_open(&self) -> Result<Option<String>, DiskError> {
        let now = state_of(&self.file, self.kind).map_err(query(&self.path, "read the state"))?;
        let path = self.path.display();
        Ok(if now.size_bytes != self.state.size_bytes {
            let (before, after) = (self.state.size_bytes, now.size_bytes);
            Some(format!("{path} changed while it was read: from {before} to {after} bytes"))
        } else if now.times != self.state.times {
            Some(format!("{path} changed while it was read: it was modified"))
        } else {
            None
        })
    }
}

fn query(path: &Path, action: &'static str) -> impl Fn(io::Error) -> DiskError {
    move |source| DiskError::Query { path: path.to_owned(), action, source }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; the mover needs read permission (for devices: group disk, or root)"
        }
        _ => "",
    }
}

fn kind_of(path: &Path, metadata: &Metadata) -> Result<Kind, DiskError> {
    let found = metadata.file_type();
    let kind = match () {
        () if found.is_file() => return Ok(Kind::RawFile),
        () if found.is_block_device() => return Ok(Kind::BlockDevice),
        () if found.is_dir() => "a directory",
        () if found.is_char_device() => "a character device",
        () if found.is_fifo() => "a pipe",
        () if found.is_socket() => "a socket",
        () => "of an unknown kind",
    };
    Err(DiskError::NotADisk { path: path.to_owned(), kind })
}

fn state_of(file: &File, kind: Kind) -> io::Result<State> {
    match kind {
        Kind::RawFile => Ok(raw_file::state(&file.metadata()?)),
        Kind::BlockDevice => {
            Ok(State { size_bytes: block_device::size_bytes(file)?, times: [(0, 0); 2] })
        }
    }
}
