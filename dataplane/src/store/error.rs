//! What can go wrong in a repository, with the file, the place in it, and what to do.
//!
//! In: I/O errors and bytes that are not what they should be. Out: [`StoreError`], and the
//! [`Failure`] that crosses to the receiver or the command line.

use std::io;

use gantry_common::failure::{Failure, FailureKind};

/// A failure of the repository.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}{}", advice(.source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// Bytes that are not what was written.
    #[error("{path} is damaged at byte {offset}: {what}; {remedy}")]
    Damaged {
        /// File.
        path: String,
        /// Where in it.
        offset: u64,
        /// What was expected.
        what: String,
        /// What a person can do.
        remedy: &'static str,
    },
    /// Written by a later Gantry.
    #[error("{path} has format {found}, this program reads up to {supported}: use a newer Gantry")]
    Newer {
        /// File.
        path: String,
        /// Its format.
        found: u64,
        /// Ours.
        supported: u64,
    },
    /// Another process holds the repository.
    #[error(
        "repository {path} is in use by {holder}: send backups to the gantry:// address of the \
         mover that serves it, or stop that process"
    )]
    Locked {
        /// Folder.
        path: String,
        /// Who, from the lock file.
        holder: String,
    },
    /// The index database failed.
    #[error("index of {path}: {what}; it is only a cache: run repo rebuild-index")]
    Index {
        /// File.
        path: String,
        /// What redb said.
        what: String,
    },
    /// A request that cannot be met.
    #[error("{0}")]
    Refused(String),
    /// A command or argument that makes no sense here.
    #[error("{0}")]
    Usage(String),
}

/// Remedy for a damaged record, node or footer.
pub const REMEDY_VERIFY: &str = "run repo verify to learn which points are hit; the next backup \
                                 sends the block again";
/// Remedy for a damaged manifest.
pub const REMEDY_MANIFEST: &str = "this point cannot be restored; use another one";

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free space there and run the backup again: it resumes"
        }
        io::ErrorKind::PermissionDenied => "; run as the repository's owner",
        io::ErrorKind::ReadOnlyFilesystem => "; remount the file system writable",
        _ => "",
    }
}

impl StoreError {
    /// An I/O error on `path` during `action` ("write", "open").
    pub fn io(action: &'static str, path: impl Into<String>, source: io::Error) -> StoreError {
        StoreError::Io { action, path: path.into(), source }
    }

    /// Damage found in a file.
    pub fn damaged(
        path: impl Into<String>,
        offset: u64,
        what: impl Into<String>,
        remedy: &'static str,
    ) -> StoreError {
        StoreError::Damaged { path: path.into(), offset, what: what.into(), remedy }
    }

    /// Whose failure it is.
    pub fn kind(&self) -> FailureKind {
        match self {
            StoreError::Usage(_) => FailureKind::Usage,
            _ => FailureKind::Target,
        }
    }
}

impl From<&StoreError> for Failure {
    fn from(error: &StoreError) -> Failure {
        Failure::new(error.kind(), error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::from(&error)
    }
}
