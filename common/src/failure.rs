//! Failures that callers decide on: whose fault, and whether trying again can help.
//!
//! In: a stage's own error. Out: kind, message with the place, and the process exit code.

use serde::{Deserialize, Serialize};

/// Whose failure it is; decides the exit code and whether a session resumes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The person's command or configuration is wrong.
    Usage,
    /// The disk that is read (or, at a restore, written) failed.
    Source,
    /// The peer cannot be reached, or the connection was lost. A resume may help.
    Network,
    /// The peer or its certificate, ticket or protocol was refused. Trying again does not help.
    Refused,
    /// The repository failed: full, damaged, unreadable, locked.
    Target,
    /// A bug of Gantry.
    Internal,
}

impl FailureKind {
    /// The exit code of a command that ends this way (see `gantry-mover --help`).
    pub const fn exit_code(self) -> u8 {
        match self {
            FailureKind::Internal => 1,
            FailureKind::Usage => 2,
            FailureKind::Source => 3,
            FailureKind::Network | FailureKind::Refused => 4,
            FailureKind::Target => 5,
        }
    }

    /// Whether reconnecting and resuming may succeed.
    pub const fn is_retryable(self) -> bool {
        matches!(self, FailureKind::Network)
    }
}

/// A failure that crossed a boundary (thread or wire): kind and a text that names VM, disk, block
/// or file and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// Whose failure.
    pub kind: FailureKind,
    /// For a person.
    pub message: String,
}

impl Failure {
    /// A failure of this kind with this text.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into() }
    }
}
