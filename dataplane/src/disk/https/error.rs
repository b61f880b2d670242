//! What can go wrong with a disk behind a host's datastore access, and what follows from it.
//!
//! In: errors of the connection, statuses, answers that do not fit the request. Out: one enum, and
//! whether another attempt may go better.

use gantry_http::{HttpError, StatusCode};

use crate::disk::remote::RemoteError;

/// Why bytes could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpsError {
    /// The connection, TLS, or the answer's form.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The server refused for a while or for good.
    #[error("the server answered {status}{}", said(.words))]
    Status {
        /// Its status.
        status: StatusCode,
        /// Its words; may be empty.
        words: String,
    },
    /// It took too long though bytes came.
    #[error("the answer came too slowly")]
    Slow,
    /// Another part than asked, or more.
    #[error("the server answered another range than asked: {0}")]
    Range(String),
    /// The file is no longer the one that was opened.
    #[error("the file changed while it was read: {0}")]
    Changed(String),
    /// Nobody could give credentials that are accepted.
    #[error("the server does not accept the credentials ({0}), and no fresh ones came")]
    Credentials(StatusCode),
    /// The specification cannot be used.
    #[error("{0}")]
    Configuration(String),
}

impl HttpsError {
    /// Whether another attempt may go better.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            HttpsError::Http(error) => error.is_transient(),
            // 500 also while the file is open over NFC; 503 "Out of HTTP sessions".
            HttpsError::Status { status, .. } => {
                status.is_server_error() || matches!(status.as_u16(), 408 | 429)
            }
            HttpsError::Slow | HttpsError::Range(_) => true,
            _ => false,
        }
    }
}

impl From<HttpsError> for RemoteError {
    fn from(error: HttpsError) -> RemoteError {
        let remedy = match &error {
            HttpsError::Http(HttpError::UntrustedCertificate { .. }) => {
                "compare the thumbprint with the host's own"
            }
            HttpsError::Http(_) | HttpsError::Slow => "check the host and the network",
            HttpsError::Status { status, .. } if status.is_server_error() => {
                "see the host's log (hostd, vpxd): another export may hold the file, or all HTTP \
                 sessions are in use"
            }
            HttpsError::Status { .. } => "check datastore, path and the user's privileges",
            HttpsError::Range(_) => "use another transport mode, and report this",
            HttpsError::Changed(_) => "read only disks that a snapshot has frozen",
            HttpsError::Credentials(_) => "check the user and its privilege Datastore.Browse",
            HttpsError::Configuration(_) => "correct the source's specification",
        };
        RemoteError::new(error.to_string(), remedy)
    }
}

fn said(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
