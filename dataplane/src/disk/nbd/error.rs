//! What can go wrong with an NBD server, and whether trying again can help.
//!
//! In: errors of the system, of TLS, of the server, and violations of the protocol. Out: one enum
//! and its meaning for the source.

use std::io;

use super::wire::ESHUTDOWN;
use crate::disk::remote::RemoteError;

/// Why an NBD server cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum NbdError {
    /// It cannot be connected to.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection was lost.
    #[error("the connection was lost: {0}")]
    Lost(io::Error),
    /// Bytes were awaited and none came.
    #[error("nothing came for {0} s")]
    Stalled(u64),
    /// TLS could not be agreed on.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// A certificate or key file cannot serve.
    #[error("{0}")]
    Credentials(String),
    /// It speaks no fixed-newstyle NBD.
    #[error("this is no NBD server of the fixed newstyle: {0}")]
    NotNbd(&'static str),
    /// It refused an option of the handshake.
    #[error("the server refused {option}: {why}")]
    Refused {
        /// What was asked.
        option: &'static str,
        /// Error and the server's words.
        why: String,
    },
    /// It answers with other bytes than the protocol allows.
    #[error("the server broke the protocol: {0}")]
    Violation(String),
    /// It cannot carry out a command.
    #[error("the server failed with {}{}", errno_name(*.code), words(.message))]
    Server {
        /// The protocol's error number.
        code: u32,
        /// Its words; may be empty.
        message: String,
    },
    /// The export is not one that can be backed up, or no longer the one that was opened.
    #[error("{0}")]
    Export(String),
}

impl NbdError {
    /// Whether another attempt, perhaps on a new connection, may go better.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            NbdError::Connect(_) | NbdError::Lost(_) | NbdError::Stalled(_) => true,
            // EPERM and EINVAL: the request itself is refused.
            NbdError::Server { code, .. } => !matches!(code, 1 | 22),
            _ => false,
        }
    }

    /// Whether the server said that it is going away.
    pub(super) fn is_shutdown(&self) -> bool {
        matches!(self, NbdError::Server { code: ESHUTDOWN, .. })
    }

    pub(super) fn violation(what: impl Into<String>) -> NbdError {
        NbdError::Violation(what.into())
    }
}

impl From<NbdError> for RemoteError {
    fn from(error: NbdError) -> RemoteError {
        let remedy = match &error {
            NbdError::Connect(_) => "check that the NBD server runs and can be reached",
            NbdError::Lost(_) => "check the NBD server and the network",
            NbdError::Stalled(_) => {
                "check the NBD server and the network, and whether another client has the export \
                 (qemu-nbd serves one at a time unless it is given -e)"
            }
            NbdError::Tls(_) | NbdError::Credentials(_) => {
                "check the certificates on both sides (CA, server name, thumbprint)"
            }
            NbdError::NotNbd(_) => "check host and port",
            NbdError::Refused { .. } => {
                "check the export's name and whether it wants TLS (nbds://)"
            }
            NbdError::Violation(_) => "update the NBD server, or report this",
            NbdError::Server { .. } => "see the NBD server's own log",
            NbdError::Export(_) => "check which export is served",
        };
        RemoteError::new(error.to_string(), remedy)
    }
}

/// The protocol's name of an error number.
fn errno_name(code: u32) -> String {
    let name = match code {
        1 => "EPERM",
        5 => "EIO",
        12 => "ENOMEM",
        22 => "EINVAL",
        28 => "ENOSPC",
        75 => "EOVERFLOW",
        95 => "ENOTSUP",
        ESHUTDOWN => "ESHUTDOWN",
        other => return format!("error {other}"),
    };
    name.to_owned()
}

fn words(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

/// A server's text for a person: bounded, without control characters.
pub(super) fn server_text(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().take(300).collect();
    text.replace(char::is_control, " ")
}
