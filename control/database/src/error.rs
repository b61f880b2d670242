//! Why the database did not do what was asked.
//!
//! Invariant: no message shows a secret or a key.

use std::path::PathBuf;

use crate::model::Invalid;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The record is wrong in itself.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// There is none.
    #[error("there is no {what} {key}")]
    NotFound {
        /// `job`, `session`…
        what: &'static str,
        /// Its id, name or hash's beginning.
        key: String,
    },
    /// A field names a record that is not there.
    #[error("{field}: there is no {what} {key}; create it first")]
    Reference {
        /// The field.
        field: String,
        /// What it should name.
        what: &'static str,
        /// What it names.
        key: String,
    },
    /// The name, id or hash is taken.
    #[error("there is a {what} {key} already; choose another name")]
    Taken {
        /// `job`, `token`…
        what: &'static str,
        /// Its name.
        key: String,
    },
    /// Others refer to it.
    #[error("{what} {name} is used by {users}; change those first")]
    InUse {
        /// `vcenter`…
        what: &'static str,
        /// Its name.
        name: String,
        /// `job nightly, job weekly`.
        users: String,
    },
    /// Somebody changed it in between.
    #[error("{what} {key} was changed in between (version {found}, not {expected}); read it again")]
    Stale {
        /// `job`…
        what: &'static str,
        /// Its id.
        key: String,
        /// The version that was expected.
        expected: u64,
        /// The version that is there.
        found: u64,
    },
    /// It is not in the state that was expected: somebody else acted.
    #[error("{what} {key} is in state {found}, not in {expected}")]
    StateMoved {
        /// `session` or `VM run`.
        what: &'static str,
        /// Its id.
        key: String,
        /// What was expected.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The one-time token was used, or has ended.
    #[error("the enrolment token {0}; make a new one")]
    Spent(&'static str),
    /// Another process has it open.
    #[error("{} is in use by another process; stop that first", .0.display())]
    Locked(PathBuf),
    /// It is no sound database.
    #[error("{path}: {what}; rebuild it from the copy in a repository, or restore the file", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A newer version of Gantry made it.
    #[error("made by a newer version of Gantry (schema {found}, this one knows {known}); use that")]
    Newer {
        /// Its version.
        found: i64,
        /// The newest that is known.
        known: i64,
    },
    /// The key file is not as it must be.
    #[error("{path}: {what}", path = .path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A secret cannot be read.
    #[error("the secret {0} cannot be decrypted: it was changed or moved; set it again")]
    Unsealable(String),
    /// An exported copy is not one.
    #[error("no usable copy of a configuration database: {0}")]
    BadExport(String),
    /// Too much for one copy.
    #[error("{what}: {found} bytes, and {max} are allowed")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The bound.
        max: usize,
    },
    /// A file cannot be read or written.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The database engine refused.
    #[error("database: {0}")]
    Sql(#[from] sqlx::Error),
}

impl DatabaseError {
    /// Whether the caller's request is at fault, rather than the database.
    pub fn is_refusal(&self) -> bool {
        use DatabaseError::{
            InUse, Invalid, NotFound, Reference, Spent, Stale, StateMoved, Taken, TooLarge,
        };
        matches!(
            self,
            Invalid(_)
                | NotFound { .. }
                | Reference { .. }
                | Taken { .. }
                | InUse { .. }
                | Stale { .. }
                | StateMoved { .. }
                | Spent(_)
                | TooLarge { .. }
        )
    }
}

/// A document or word of the database that this version does not understand.
pub(crate) fn unreadable(what: &str, error: impl std::fmt::Display) -> DatabaseError {
    DatabaseError::Sql(sqlx::Error::Decode(format!("{what}: {error}").into()))
}

impl From<DatabaseError> for gantry_common::failure::Failure {
    fn from(error: DatabaseError) -> gantry_common::failure::Failure {
        use gantry_common::failure::{Failure, FailureKind};
        let kind = if error.is_refusal() { FailureKind::Usage } else { FailureKind::Internal };
        Failure::new(kind, error.to_string())
    }
}
