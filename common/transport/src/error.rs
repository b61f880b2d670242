//! What can go wrong between two movers, and whether trying again helps.
//!
//! In: errors of quinn, rustls and the system. Out: [`TransportError`]s whose text says what to do.
//! Invariant: what a peer decided (certificate, protocol, ticket) is `Refused`; what a network did
//! is `Network`, and only that is tried again.

use std::io;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::PeerId;
use gantry_common::limits;
use gantry_common::wire::FrameError;
use quinn_proto::ConnectionError;
use rustls::AlertDescription;

/// Why a connection was not made, or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// Nothing answers there.
    #[error("cannot reach {address}: {cause}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        cause: String,
    },
    /// The connection broke, or the peer fell silent.
    #[error("the connection to {address} was lost: {cause}")]
    Lost {
        /// To whom.
        address: String,
        /// Why.
        cause: String,
    },
    /// The peer closed the connection before its work was done, with a reason.
    #[error("{address} closed the connection: {reason}")]
    ClosedByPeer {
        /// Who.
        address: String,
        /// Its words.
        reason: String,
    },
    /// Certificate, protocol version or ticket was refused, by us or by the peer.
    #[error("{text}")]
    Refused {
        /// Who refused what, and what to do.
        text: String,
    },
    /// The peer sent what no peer of this protocol sends.
    #[error("{address} breaks the protocol: {error}")]
    Violation {
        /// Who.
        address: String,
        /// How.
        error: FrameError,
    },
    /// This side has closed the connection.
    #[error("the connection to {address} is closed on this side")]
    ClosedHere {
        /// To whom.
        address: String,
    },
    /// The connection cannot be set up on this side.
    #[error("{text}")]
    Setup {
        /// What failed.
        text: String,
    },
}

impl TransportError {
    /// Whose failure it is.
    pub fn failure_kind(&self) -> FailureKind {
        match self {
            TransportError::Unreachable { .. }
            | TransportError::Lost { .. }
            | TransportError::ClosedByPeer { .. }
            | TransportError::ClosedHere { .. } => FailureKind::Network,
            TransportError::Refused { .. } | TransportError::Violation { .. } => {
                FailureKind::Refused
            }
            TransportError::Setup { .. } => FailureKind::Usage,
        }
    }

    pub(super) fn refused(text: impl Into<String>) -> TransportError {
        TransportError::Refused { text: text.into() }
    }

    pub(super) fn setup(text: impl Into<String>) -> TransportError {
        TransportError::Setup { text: text.into() }
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Failure {
        Failure::new(error.failure_kind(), error.to_string())
    }
}

/// Why this side closes a connection; the peer learns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// All is done.
    Done,
    /// The peer broke the protocol.
    Violation(String),
    /// The peer may not do what it asks.
    Refused(String),
    /// This side cannot go on (it stops, or it failed); a later attempt may succeed.
    Failed(String),
}

impl CloseReason {
    /// Code on the wire. 0 is what QUIC sends when a program drops a connection, so it is none.
    pub(super) fn code(&self) -> u8 {
        match self {
            CloseReason::Done => 1,
            CloseReason::Violation(_) => 2,
            CloseReason::Refused(_) => 3,
            CloseReason::Failed(_) => 4,
        }
    }

    /// Text on the wire, bounded.
    pub(super) fn text(&self) -> &str {
        match self {
            CloseReason::Done => "",
            CloseReason::Violation(text)
            | CloseReason::Refused(text)
            | CloseReason::Failed(text) => {
                let max = limits::TEXT_BYTES_MAX.min(text.len());
                let end = (0..=max).rev().find(|end| text.is_char_boundary(*end));
                &text[..end.unwrap_or(0)]
            }
        }
    }
}

/// The two ends of a connection, for the texts of its errors.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    pub(super) address: String,
    pub(super) own_pin: PeerId,
}

impl Ends {
    pub(super) fn lost(&self, cause: impl ToString) -> TransportError {
        TransportError::Lost { address: self.address.clone(), cause: cause.to_string() }
    }

    pub(super) fn closed_here(&self) -> TransportError {
        TransportError::ClosedHere { address: self.address.clone() }
    }

    pub(super) fn violation(&self, error: FrameError) -> TransportError {
        TransportError::Violation { address: self.address.clone(), error }
    }

    /// What a close by the peer means; nothing if it ended well.
    pub(super) fn closed_by_peer(&self, code: u64, text: &[u8]) -> Option<TransportError> {
        let address = &self.address;
        let text = &text[..text.len().min(limits::TEXT_BYTES_MAX)];
        let reason = String::from_utf8_lossy(text).into_owned();
        Some(match code {
            1 => return None,
            2 => TransportError::refused(format!(
                "{address} says that we break the protocol: {reason}"
            )),
            3 => TransportError::refused(format!("{address} refuses: {reason}")),
            4 => TransportError::ClosedByPeer { address: address.clone(), reason },
            0 => self.lost("the peer dropped it"),
            code => self.lost(format!("closed by the peer with code {code}")),
        })
    }

    /// What the end of a QUIC connection means; nothing if the peer ended it well.
    pub(super) fn quic(&self, error: &ConnectionError) -> Option<TransportError> {
        let crypto = |code: u64| (0x100..0x200).contains(&code).then_some((code & 0xff) as u8);
        Some(match error {
            ConnectionError::ApplicationClosed(close) => {
                return self.closed_by_peer(close.error_code.into_inner(), &close.reason);
            }
            ConnectionError::ConnectionClosed(close) => match crypto(close.error_code.into()) {
                Some(alert) => self.refused_by_peer(alert.into()),
                None => self.lost(close),
            },
            ConnectionError::TransportError(own) => match crypto(own.code.into()) {
                Some(alert) => self.refused_here(alert.into(), &own.reason),
                None => self.lost(own),
            },
            ConnectionError::LocallyClosed => self.closed_here(),
            ConnectionError::VersionMismatch => TransportError::refused(format!(
                "{} speaks no QUIC version that we speak",
                self.address
            )),
            ConnectionError::TimedOut => self.lost("no sign of life"),
            other => self.lost(other),
        })
    }

    /// What an I/O error of a TLS connection means.
    pub(super) fn tls(&self, error: &io::Error) -> TransportError {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::AlertReceived(alert)) => self.refused_by_peer(*alert),
            Some(rustls::Error::NoApplicationProtocol) => {
                self.refused_here(AlertDescription::NoApplicationProtocol, "")
            }
            Some(rustls::Error::InvalidCertificate(certificate)) => {
                let alert = AlertDescription::from(certificate.clone());
                self.refused_here(alert, &rustls::Error::from(certificate.clone()).to_string())
            }
            Some(other) => TransportError::refused(format!("TLS with {}: {other}", self.address)),
            None => self.lost(error),
        }
    }

    fn refused_by_peer(&self, alert: AlertDescription) -> TransportError {
        let Ends { address, own_pin } = self;
        TransportError::refused(match alert {
            AlertDescription::NoApplicationProtocol => other_protocol(address),
            AlertDescription::CertificateExpired => {
                format!(
                    "{address} refuses our certificate (pin {own_pin}): it has expired, renew it"
                )
            }
            alert if is_about_certificate(alert) => format!(
                "{address} refuses our certificate: add our pin {own_pin} to its --peer file ({alert:?})"
            ),
            alert => format!("{address} refuses the connection: TLS alert {alert:?}"),
        })
    }

    fn refused_here(&self, alert: AlertDescription, detail: &str) -> TransportError {
        let address = &self.address;
        let detail = detail.trim_start_matches("invalid peer certificate: ");
        TransportError::refused(match alert {
            AlertDescription::NoApplicationProtocol => other_protocol(address),
            _ => format!("{address} is refused: {detail}"),
        })
    }
}

fn other_protocol(address: &str) -> String {
    let ours = String::from_utf8_lossy(gantry_common::wire::ALPN);
    format!("{address} speaks another protocol version (we speak {ours}): update the older side")
}

fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::CertificateRequired
    )
}
