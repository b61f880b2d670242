//! Stage 1 of 7: what is to be read in, an open [`Disk`] out, strictly read-only.
//!
//! In: a path, or a specification of a source elsewhere. Out: its size, identity, fingerprint and
//! data extents, and either descriptors for the readers' rings or a [`RemoteSource`] that takes
//! their requests. Invariant: nothing is ever opened for writing; size, identity and fingerprint
//! are those of the moment of opening. Must not: write, lock, or interpret contents (partition
//! tables and filesystems are `guestfs`'s).

mod local;
mod raw_file;
mod block_device;
pub mod remote;
mod work;
mod nbd;
pub mod credentials;
mod https;
mod vmdk;
mod nfc;
mod detect;
mod durable;
mod open;
pub mod random;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::limits;
use gantry_common::source::SourceSpecError;
use gantry_uring::direct::Access;
use gantry_vmdk::VmdkError;

pub(crate) use block_device::attached_name;
use local::LocalFile;
pub use open::attached_device;
use remote::{RemoteError, RemoteSource};
use vmdk::{FlatVmdk, Vmdk};

/// Why a disk cannot be backed up.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The system refused to open it.
    #[error("cannot open {path}: {source}{hint}")]
    Open {
        /// The path as given.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
        /// What may help; empty, or beginning with a separator.
        hint: &'static str,
    },
    /// It is neither a regular file nor a block device.
    #[error("{path} is {kind}; a disk is a raw image file or a block device")]
    NotADisk {
        /// The path as given.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It has no bytes.
    #[error("{path} is empty; there is nothing to back up")]
    Empty {
        /// The path as given.
        path: PathBuf,
    },
    /// It is larger than Gantry takes.
    #[error("{path} has {size_bytes} bytes; the largest disk is {max} bytes")]
    TooLarge {
        /// The path as given.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The bound.
        max: u64,
    },
    /// An open disk did not answer.
    #[error("cannot {action} of {path}: {source}")]
    Query {
        /// The path as given.
        path: PathBuf,
        /// What was asked.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Name and content disagree about what a file is.
    #[error("{path}: {why}; say which it is with --source-format raw or --source-format vmdk")]
    Unclear {
        /// The path as given.
        path: PathBuf,
        /// What speaks for which.
        why: &'static str,
    },
    /// A VMDK cannot be opened or understood.
    #[error(transparent)]
    Vmdk(#[from] VmdkError),
    /// The specification itself is wrong.
    #[error(transparent)]
    Spec(#[from] SourceSpecError),
    /// No device with this UUID came up.
    #[error(
        "no disk with the UUID {uuid} appeared under {folder} within {waited_seconds} s: is it \
         attached to this machine, and does the VM's setting disk.EnableUUID hold?"
    )]
    NoSuchUuid {
        /// As given.
        uuid: String,
        /// Where it was looked for.
        folder: PathBuf,
        /// For how long.
        waited_seconds: u64,
    },
    /// A source elsewhere failed.
    #[error("{label}: {source}")]
    Remote {
        /// The source, as [`Disk::label`] names it.
        label: String,
        /// Its error.
        source: RemoteError,
    },
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Failure {
        let kind = match error {
            DiskError::Spec(_) => FailureKind::Usage,
            _ => FailureKind::Source,
        };
        Failure::new(kind, error.to_string())
    }
}

/// Where the bytes at some offset of a disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which of the disk's files; see [`Disk::descriptor`].
    pub file: u32,
    /// Offset within it.
    pub offset: u64,
    /// Bytes that follow one another there.
    pub len: u64,
}

#[derive(Debug)]
enum Media {
    Local(LocalFile),
    Flat(Box<FlatVmdk>),
    Remote(Box<dyn RemoteSource>),
}

/// A disk that is open for reading.
#[derive(Debug)]
pub struct Disk {
    label: String,
    media: Media,
    notes: Vec<String>,
}

impl Disk {
    /// Opens the raw image file or block device `path` read-only, with O_DIRECT if `direct` and
    /// possible (see [`Disk::access`]).
    ///
    /// # Errors
    /// [`DiskError`] for what cannot be opened, is no disk, is empty or too large.
    pub fn open(path: &Path, direct: bool) -> Result<Disk, DiskError> {
        let file = LocalFile::open(path, direct)?;
        let note = file.access().note.as_ref();
        let notes = note.map(|note| format!("not read with O_DIRECT: {note}")).into_iter();
        let (label, notes) = (path.display().to_string(), notes.collect());
        Ok(Disk { label, notes, media: Media::Local(file) })
    }

    /// Opens a VMDK with all its extents and parents.
    ///
    /// # Errors
    /// [`DiskError`] for what cannot be opened or understood.
    pub fn open_vmdk(path: &Path, direct: bool) -> Result<Disk, DiskError> {
        let flat = match Vmdk::open(path, direct)? {
            Vmdk::Flat(flat) => flat,
            Vmdk::Sparse(sparse) => return Ok(Disk::of_remote(Box::new(sparse))),
        };
        let mut notes = vec![flat.opened.describe()];
        notes.extend(flat.access.note.as_ref().map(|n| format!("not read with O_DIRECT: {n}")));
        let label = path.display().to_string();
        Ok(Disk { label, notes, media: Media::Flat(flat) })
    }

    /// A disk that is read by requests to `source`.
    pub fn of_remote(source: Box<dyn RemoteSource>) -> Disk {
        let (label, notes) = (source.label().to_owned(), source.notes());
        Disk { label, notes, media: Media::Remote(source) }
    }

    fn with_note(mut self, note: Option<&str>) -> Disk {
        self.notes.extend(note.map(str::to_owned));
        self
    }

    /// Name for messages: the path, or where the source is.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What the session log should say of how it is read.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Bytes of the disk at opening.
    pub fn size_bytes(&self) -> u64 {
        match &self.media {
            Media::Local(file) => file.size_bytes(),
            Media::Flat(flat) => flat.opened.size_bytes(),
            Media::Remote(source) => source.size_bytes(),
        }
    }

    /// Bytes of a logical sector; 512 for a file.
    pub fn sector_bytes(&self) -> u32 {
        match &self.media {
            Media::Local(file) => file.sector_bytes(),
            Media::Flat(_) => raw_file::SECTOR_BYTES,
            Media::Remote(source) => source.sector_bytes(),
        }
    }

    /// Whether reads go past the page cache, their alignment, and why not if they do not; nothing
    /// for a source that has no descriptor.
    pub fn access(&self) -> Option<&Access> {
        match &self.media {
            Media::Local(file) => Some(file.access()),
            Media::Flat(flat) => Some(&flat.access),
            Media::Remote(_) => None,
        }
    }

    /// Bytes to which offsets and lengths of reads by descriptor must be aligned.
    pub fn offset_align(&self) -> usize {
        self.access().map_or(1, |access| access.offset_align.max(1) as usize)
    }

    /// Whether this is a block device.
    pub fn is_block_device(&self) -> bool {
        matches!(&self.media, Media::Local(file) if file.is_block_device())
    }

    /// Identity to use when the caller has no better one: `file:` and the canonical path, a
    /// device's own name (WWN, serial number, device-mapper UUID), else `dev:` and its numbers;
    /// for other sources their address. At most [`gantry_common::limits::NAME_BYTES_MAX`] bytes.
    pub fn identity(&self) -> &str {
        match &self.media {
            Media::Local(file) => file.identity(),
            Media::Flat(flat) => flat.opened.identity(),
            Media::Remote(source) => source.identity(),
        }
    }

    /// Names the state of the contents, as far as can be told: for a file its device, inode, size
    /// and times. Nothing tells of writes to a device or most remote sources, so theirs is never
    /// the same twice: a resume needs a snapshot id from the caller.
    pub fn fingerprint(&self) -> &str {
        match &self.media {
            Media::Local(file) => file.fingerprint(),
            Media::Flat(flat) => flat.opened.fingerprint(),
            Media::Remote(source) => source.fingerprint(),
        }
    }

    /// What takes read requests, if the disk is not read by descriptor.
    pub fn remote(&self) -> Option<&dyn RemoteSource> {
        match &self.media {
            Media::Local(_) | Media::Flat(_) => None,
            Media::Remote(source) => Some(&**source),
        }
    }

    /// Whether it can be read only once, from front to back: then only everything can be backed up,
    /// and an interrupted attempt cannot be resumed.
    pub fn is_stream(&self) -> bool {
        self.remote().is_some_and(RemoteSource::is_stream)
    }

    /// Whether there is no way to read it: the repository must have all of it.
    pub fn is_unreadable(&self) -> bool {
        self.remote().is_some_and(RemoteSource::is_unreadable)
    }

    /// Where the bytes at `offset` are, of a disk that is read by descriptor.
    pub fn place(&self, offset: u64) -> Place {
        match &self.media {
            Media::Flat(flat) => flat.place(offset),
            _ => Place { file: 0, offset, len: u64::MAX - offset },
        }
    }

    /// A descriptor more of one of the disk's open files, for a ring's file table; nothing if it
    /// has no such file.
    pub fn descriptor(&self, file: u32) -> Result<Option<OwnedFd>, DiskError> {
        match &self.media {
            Media::Local(local) if file == 0 => local.descriptor().map(Some),
            Media::Flat(flat) => flat.descriptor(file).map_err(|source| DiskError::Query {
                path: self.label.clone().into(),
                action: "duplicate the descriptor",
                source,
            }),
            _ => Ok(None),
        }
    }

    /// The first data at or after `offset`, as start and end (exclusive) in bytes; nothing if only
    /// a hole follows. Holes read as zeros. Unwritten, preallocated ranges may count as data, and
    /// a device is all data. May wait for a network.
    pub fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, DiskError> {
        match &self.media {
            Media::Local(file) => file.next_data(offset),
            Media::Flat(flat) => flat.opened.next_data(offset),
            Media::Remote(source) => source.next_data(offset).map_err(self.remote_error()),
        }
    }

    /// What has changed since opening, for a person; nothing if nothing is known to have. A write
    /// to a device cannot be seen, nor one to a file within the clock's tick of the opening.
    pub fn changed_since_open(&self) -> Result<Option<String>, DiskError> {
        match &self.media {
            Media::Local(file) => file.changed_since_open(),
            Media::Flat(flat) => flat.opened.changed_since_open(),
            Media::Remote(source) => source.changed_since_open().map_err(self.remote_error()),
        }
    }

    fn remote_error(&self) -> impl Fn(RemoteError) -> DiskError {
        |source| DiskError::Remote { label: self.label.clone(), source }
    }
}

fn check_size(path: &Path, size_bytes: u64) -> Result<(), DiskError> {
    let path = path.to_owned();
    match size_bytes {
        0 => Err(DiskError::Empty { path }),
        size_bytes if size_bytes > limits::DISK_BYTES_MAX => {
            Err(DiskError::TooLarge { path, size_bytes, max: limits::DISK_BYTES_MAX })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod test_reader;
#[cfg(test)]
mod tests;
