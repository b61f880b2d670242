//! What can go wrong in the disk engine, in kinds that the SOAP side turns into vSphere faults.
//!
//! In: errors of the file system, refusals of the engine, injected faults. Out: one enum whose text
//! names the file, disk or snapshot. It must not know any SOAP fault: that mapping stands there.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// The result of an operation of the disk engine.
pub type Result<T> = std::result::Result<T, StorageError>;

/// Why an operation of the disk engine failed.
#[derive(Debug, Error)]
pub enum StorageError {
    /// No such disk, snapshot, file or attachment.
    #[error("no {what} {name}")]
    NotFound {
        /// What was looked for: `disk`, `snapshot`, `file`, `attachment`.
        what: &'static str,
        /// Its name or id.
        name: String,
    },
    /// The file is held by a running VM, an attachment or an injected lock (ESXi: `FileLocked`, 500
    /// from `/folder`).
    #[error("{file} is locked: {holder}")]
    Locked {
        /// Datastore path of the file.
        file: String,
        /// Who holds it.
        holder: String,
    },
    /// A file of that name is there already.
    #[error("{file} exists already")]
    Exists {
        /// Datastore path of the file.
        file: String,
    },
    /// The request makes no sense in this state; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// A query of changed areas was refused.
    #[error("changed areas of disk {disk}: {fault}")]
    ChangeTracking {
        /// The disk's descriptor.
        disk: String,
        /// Why.
        fault: ChangeTrackingFault,
    },
    /// A fault that a drill asked for.
    #[error("injected fault: {0}")]
    Injected(String),
    /// The file system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why `QueryChangedDiskAreas` has no answer. ESXi says `InvalidArgument` (with the parameter's
/// name) or `FileFault`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChangeTrackingFault {
    /// CBT is off, or was not on yet when the snapshot was made.
    #[error("change tracking was not active at that snapshot")]
    NotActive,
    /// The text is no `UUID/sequence`.
    #[error("change id {0:?} is malformed")]
    Malformed(String),
    /// The change id is of another tracking period: CBT was reset, reverted or enabled anew.
    #[error("change id {given:?} is not of the current tracking period {current}")]
    UnknownId {
        /// What the caller sent.
        given: String,
        /// The UUID of the period that the snapshot belongs to.
        current: String,
    },
    /// The sequence lies after the snapshot's.
    #[error("change id {given:?} is younger than the snapshot's sequence {newest}")]
    FutureId {
        /// What the caller sent.
        given: String,
        /// The snapshot's own sequence.
        newest: u64,
    },
    /// The start lies at or behind the end of the disk.
    #[error("start offset {start_offset} is not below the disk's {capacity_bytes} bytes")]
    StartBeyondEnd {
        /// What the caller sent, in bytes.
        start_offset: u64,
        /// The disk's size at that snapshot.
        capacity_bytes: u64,
    },
    /// `*` is only answered where the datastore knows what is allocated.
    #[error("this datastore cannot tell allocated areas")]
    AllocationUnknown,
}

/// Adds what was tried on which file to an error of the file system.
pub(super) trait IoContext<T> {
    /// `action` is a verb: `read`, `write`, `create`.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|e| StorageError::Io { action, path: path.to_owned(), source: e.into() })
    }
}

/// Shorthand for a missing thing.
pub(super) fn missing(what: &'static str, name: impl ToString) -> StorageError {
    StorageError::NotFound { what, name: name.to_string() }
}
