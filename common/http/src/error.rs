//! What can go wrong with a request, told apart by what a caller does about it.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::trust::{Thumbprint, Untrusted};

/// What took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimedOut {
    /// Waiting for one of the client's own connections to become free.
    Connection,
    /// Name look-up, TCP or TLS.
    Connect,
    /// The response's head.
    Response,
    /// The next piece of the response's body.
    Body,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TimedOut::Connection => "no free connection",
            TimedOut::Connect => "no connection",
            TimedOut::Response => "no answer",
            TimedOut::Body => "the answer stopped",
        })
    }
}

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The trust, a header, a path or a host is not usable; nothing was sent.
    #[error("{endpoint}: {reason}")]
    Configuration {
        /// Which server.
        endpoint: Endpoint,
        /// What is wrong.
        reason: String,
    },
    /// No TCP connection.
    #[error("{endpoint}: cannot connect: {source}")]
    Connect {
        /// Which server.
        endpoint: Endpoint,
        /// What the system says.
        source: std::io::Error,
    },
    /// The server shows a certificate that is not trusted.
    #[error(
        "{endpoint}: its certificate is not trusted: {reason}. It presents the SHA-256 thumbprint \
         {presented}: if that is the server's own, pin it"
    )]
    UntrustedCertificate {
        /// Which server.
        endpoint: Endpoint,
        /// What the server showed.
        presented: Thumbprint,
        /// Why it is not trusted.
        reason: String,
    },
    /// The TLS handshake failed otherwise.
    #[error("{endpoint}: no TLS session: {reason}")]
    Tls {
        /// Which server.
        endpoint: Endpoint,
        /// What TLS says.
        reason: String,
    },
    /// It took too long.
    #[error("{endpoint}: {stage} within {:.1} s", .after.as_secs_f64())]
    Timeout {
        /// Which server.
        endpoint: Endpoint,
        /// What took too long.
        stage: TimedOut,
        /// The limit.
        after: Duration,
    },
    /// The connection was lost while the answer was awaited or read.
    #[error("{endpoint}: connection lost: {reason}")]
    Lost {
        /// Which server.
        endpoint: Endpoint,
        /// What the system says.
        reason: String,
        /// Whether the request may have reached the server.
        sent: bool,
    },
    /// The server does not speak HTTP/1.1 as it should.
    #[error("{endpoint}: not valid HTTP: {reason}")]
    Protocol {
        /// Which server.
        endpoint: Endpoint,
        /// What is wrong.
        reason: String,
    },
    /// The answer is larger than the caller allows.
    #[error("{endpoint}: the answer's {what} is larger than {bytes_max} bytes")]
    TooLarge {
        /// Which server.
        endpoint: Endpoint,
        /// Head or body.
        what: &'static str,
        /// The limit.
        bytes_max: usize,
    },
    /// The body ended before the bytes that were to be read.
    #[error("{endpoint}: the answer ended {missing} bytes early")]
    Short {
        /// Which server.
        endpoint: Endpoint,
        /// Bytes that did not come.
        missing: usize,
    },
}

impl HttpError {
    /// Whether the server may have received the request, so that repeating it may do it twice.
    pub fn may_have_been_sent(&self) -> bool {
        match self {
            HttpError::Configuration { .. }
            | HttpError::Connect { .. }
            | HttpError::UntrustedCertificate { .. }
            | HttpError::Tls { .. } => false,
            HttpError::Timeout { stage, .. } => {
                matches!(stage, TimedOut::Response | TimedOut::Body)
            }
            HttpError::Lost { sent, .. } => *sent,
            HttpError::Protocol { .. } | HttpError::TooLarge { .. } | HttpError::Short { .. } => {
                true
            }
        }
    }

    /// Whether the same request may succeed a little later (network and server trouble, as
    /// opposed to a wrong configuration or a hostile answer).
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            HttpError::Connect { .. }
                | HttpError::Timeout { .. }
                | HttpError::Lost { .. }
                | HttpError::Short { .. }
        )
    }

    /// An error of the handshake: rustls hides its own inside an I/O error.
    pub(crate) fn from_handshake(endpoint: &Endpoint, error: std::io::Error) -> HttpError {
        let endpoint = endpoint.clone();
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let other = match inner {
            Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
                other
            }
            Some(tls) => return HttpError::Tls { endpoint, reason: tls.to_string() },
            None => return HttpError::Tls { endpoint, reason: error.to_string() },
        };
        match other.0.downcast_ref::<Untrusted>() {
            Some(Untrusted { presented, reason }) => HttpError::UntrustedCertificate {
                endpoint,
                presented: *presented,
                reason: reason.clone(),
            },
            None => HttpError::Tls { endpoint, reason: other.to_string() },
        }
    }

    /// An error of hyper, once a connection stands.
    pub(crate) fn from_hyper(
        endpoint: &Endpoint,
        error: &hyper::Error,
        sent: bool,
        head_bytes_max: usize,
    ) -> HttpError {
        let endpoint = endpoint.clone();
        let reason = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        // hyper's own question for this is part of its server feature.
        if error.is_parse() && error.to_string().contains("too large") {
            HttpError::TooLarge { endpoint, what: "head", bytes_max: head_bytes_max }
        } else if error.is_parse() {
            HttpError::Protocol { endpoint, reason }
        } else {
            HttpError::Lost { endpoint, reason, sent }
        }
    }
}
