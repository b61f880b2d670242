//! The client's way to a peer: QUIC, TCP, or QUIC first and TCP where UDP gets no answer.
//!
//! In: an address, an identity, a trust. Out: a [`Connection`], with a note if it is not the way
//! that was tried first. Must not: turn to TCP because a peer *refused*, only because it was silent.

use std::net::SocketAddr;
use std::time::Duration;

use gantry_common::wire;
use tokio::time::timeout;

use super::error::TransportError;
use super::identity::Identity;
use super::link::Connection;
use super::options::{Options, TransportKind};
use super::trust::Trust;
use super::{quic, tcp};

/// Addresses of one host name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Connects to a listening mover at `HOST:PORT`.
///
/// # Errors
/// Nothing answers, or either side refuses the other.
pub async fn connect(
    address: &str,
    identity: &Identity,
    trust: &Trust,
    options: &Options,
) -> Result<Connection, TransportError> {
    connect_as(address, identity, trust, wire::ALPN, options).await
}

/// As [`connect`], speaking another protocol: for tests of the refusal.
pub(super) async fn connect_as(
    address: &str,
    identity: &Identity,
    trust: &Trust,
    alpn: &[u8],
    options: &Options,
) -> Result<Connection, TransportError> {
    try_addresses(address, async |at| {
        let way = Way { at, identity, trust, alpn, options };
        way.connect().await
    })
    .await
}

/// Tries the addresses of `HOST:PORT` in turn until one answers, whatever it answers.
pub(super) async fn try_addresses<C>(
    address: &str,
    attempt: impl AsyncFn(SocketAddr) -> Result<C, TransportError>,
) -> Result<C, TransportError> {
    let unreachable =
        |cause: String| TransportError::Unreachable { address: address.into(), cause };
    let found = tokio::net::lookup_host(address).await;
    let found: Vec<SocketAddr> =
        found.map_err(|error| unreachable(error.to_string()))?.take(ADDRESSES_MAX).collect();
    let mut last = unreachable("the name has no address".into());
    for at in found {
        match attempt(at).await {
            Err(error @ (TransportError::Unreachable { .. } | TransportError::Lost { .. })) => {
                last = error;
            }
            decided => return decided,
        }
    }
    Err(last)
}

/// Bounds an attempt in time.
pub(super) async fn within<C>(
    at: SocketAddr,
    limit: Duration,
    what: &str,
    attempt: impl Future<Output = Result<C, TransportError>>,
) -> Result<C, TransportError> {
    timeout(limit, attempt).await.unwrap_or_else(|_| {
        Err(TransportError::Unreachable {
            address: at.to_string(),
            cause: format!("{what} got no answer within {} ms", limit.as_millis()),
        })
    })
}

struct Way<'a> {
    at: SocketAddr,
    identity: &'a Identity,
    trust: &'a Trust,
    alpn: &'a [u8],
    options: &'a Options,
}

impl Way<'_> {
    async fn connect(&self) -> Result<Connection, TransportError> {
        match self.options.kind {
            TransportKind::Quic => self.quic(self.options.handshake_max).await,
            TransportKind::Tcp => self.tcp().await,
            TransportKind::Memory => {
                Err(TransportError::setup("the memory transport reaches no address"))
            }
            TransportKind::Auto => {
                let silent = match self.quic(self.options.quic_attempt_max).await {
                    Err(error @ TransportError::Unreachable { .. }) => error,
                    decided => return decided,
                };
                let mut connection = self.tcp().await?;
                connection.note =
                    Some(format!("{silent}; using TLS over TCP (is UDP blocked on the way?)"));
                Ok(connection)
            }
        }
    }

    async fn quic(&self, limit: Duration) -> Result<Connection, TransportError> {
        let attempt = quic::connect(self.at, self.identity, self.trust, self.alpn, self.options);
        within(self.at, limit, "QUIC", attempt).await
    }

    async fn tcp(&self) -> Result<Connection, TransportError> {
        let attempt = tcp::connect(self.at, self.identity, self.trust, self.alpn, self.options);
        within(self.at, self.options.handshake_max, "TCP", attempt).await
    }
}
