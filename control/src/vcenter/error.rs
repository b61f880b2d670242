//! What can go wrong with a call, naming the endpoint, the object, the method and the reason.

use std::fmt;

use gantry_common::failure::{Failure, FailureKind};
use gantry_http::{HttpError, StatusCode};

use super::fault::{Fault, FaultKind};
use super::xml::XmlError;

/// A call that failed.
#[derive(Debug)]
pub struct VimError {
    /// `host:port`.
    pub endpoint: String,
    /// The method that was called.
    pub method: &'static str,
    /// The object it was called on, as a person names it: a VM by name and reference.
    pub object: String,
    /// Why.
    pub kind: Box<ErrorKind>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    /// No answer, or none that could be read.
    #[error("{0}")]
    Http(#[from] HttpError),
    /// An answer that is no SOAP, with its status.
    #[error("HTTP status {0}{1}")]
    Status(StatusCode, String),
    /// The answer's XML is not acceptable.
    #[error("{0}")]
    Document(#[from] XmlError),
    /// The answer lacks what the method promises.
    #[error("unexpected answer: {0}")]
    Unexpected(String),
    /// An argument cannot be sent.
    #[error("an argument holds a character that XML cannot carry")]
    Argument,
    /// The service answered with a fault.
    #[error("{0}")]
    Fault(Fault),
    /// A task did not end in time; what became of it is unknown.
    #[error("the task {task} did not end within {seconds} s; its outcome is unknown")]
    TaskTimeout {
        /// The task's reference.
        task: String,
        /// The limit.
        seconds: u64,
    },
    /// The caller cancelled the task, and it has ended.
    #[error("cancelled")]
    Cancelled,
}

impl fmt::Display for VimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VimError { endpoint, method, object, kind } = self;
        match &**kind {
            // It names the endpoint itself.
            ErrorKind::Http(error) => write!(f, "{object}: {method}: {error}"),
            _ => write!(f, "{endpoint}: {object}: {method}: {kind}"),
        }
    }
}

impl std::error::Error for VimError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.kind)
    }
}

impl VimError {
    /// The fault, if it is one.
    pub fn fault(&self) -> Option<&FaultKind> {
        match &*self.kind {
            ErrorKind::Fault(fault) => Some(&fault.kind),
            _ => None,
        }
    }

    /// Whether the endpoint does not offer the method.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.fault(), Some(FaultKind::MethodNotFound | FaultKind::NotSupported { .. }))
    }

    /// Whether the object is gone.
    pub fn is_gone(&self) -> bool {
        matches!(self.fault(), Some(FaultKind::ManagedObjectNotFound { .. }))
    }

    /// Whether the call may have done its work although it failed here: whoever wants to repeat it
    /// must look first.
    pub fn outcome_is_unknown(&self) -> bool {
        match &*self.kind {
            ErrorKind::Http(error) => error.may_have_been_sent(),
            ErrorKind::Status(..) | ErrorKind::Document(_) | ErrorKind::Unexpected(_) => true,
            ErrorKind::TaskTimeout { .. } => true,
            ErrorKind::Fault(fault) => {
                matches!(fault.kind, FaultKind::HostUnreachable { .. })
            }
            ErrorKind::Argument | ErrorKind::Cancelled => false,
        }
    }

    /// Whether the same may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match &*self.kind {
            ErrorKind::Http(error) => error.is_transient(),
            ErrorKind::Status(status, _) => {
                matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
            }
            ErrorKind::Fault(fault) => fault.is_transient(),
            ErrorKind::TaskTimeout { .. } => true,
            ErrorKind::Document(_)
            | ErrorKind::Unexpected(_)
            | ErrorKind::Argument
            | ErrorKind::Cancelled => false,
        }
    }

    /// As what it counts when it ends a session.
    pub fn failure(&self) -> Failure {
        let kind = match &*self.kind {
            ErrorKind::Http(HttpError::Configuration { .. }) | ErrorKind::Argument => {
                FailureKind::Usage
            }
            ErrorKind::Http(HttpError::UntrustedCertificate { .. } | HttpError::Tls { .. }) => {
                FailureKind::Refused
            }
            ErrorKind::Fault(fault) if is_refusal(&fault.kind) => FailureKind::Refused,
            ErrorKind::Http(error) if error.is_transient() => FailureKind::Network,
            ErrorKind::Status(..) if self.is_retryable() => FailureKind::Network,
            _ => FailureKind::Source,
        };
        Failure::new(kind, self.to_string())
    }
}

fn is_refusal(fault: &FaultKind) -> bool {
    matches!(
        fault,
        FaultKind::InvalidLogin | FaultKind::NoPermission { .. } | FaultKind::NotAuthenticated
    )
}
