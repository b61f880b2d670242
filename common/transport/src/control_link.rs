//! The link between a mover and gantryd: one QUIC connection with one stream, both ways open for as
//! long as the mover runs.
//!
//! In: an address, an identity, a trust. Out: a [`ControlConnection`] of whole messages of
//! `gantry_common::control`. Invariants: both ends are authenticated before the first message; the
//! length of a message is checked before memory is taken for it; a peer that sends what is no message
//! loses the connection. Must not: know what a message asks for.

use std::net::{SocketAddr, UdpSocket};

use gantry_common::control::{
    self, COMMAND_BYTES_MAX, CONTROL_ALPN, CONTROL_PREFIX_BYTES, Command, ControlError,
    REPORT_BYTES_MAX, Report,
};
use quinn::{Endpoint, ReadError, RecvStream, SendStream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::connect::{try_addresses, within};
use super::error::{CloseReason, Ends, TransportError};
use super::identity::Identity;
use super::link::{FINISH_MAX, PeerInfo};
use super::listener::{BACKLOG, Door, cannot_listen};
use super::options::{Options, TransportKind};
use super::quic::{self, Greeted, write_error};
use super::trust::Trust;

/// Bytes that are read at a time: memory for a long message grows as it comes, not as it is announced.
const READ_BYTES: usize = 64 << 10;

/// What may travel on a control link, and how long it may be.
pub trait ControlMessage: Serialize + DeserializeOwned {
    /// Bytes of the longest.
    const BYTES_MAX: u32;
}

impl ControlMessage for Command {
    const BYTES_MAX: u32 = COMMAND_BYTES_MAX;
}

impl ControlMessage for Report {
    const BYTES_MAX: u32 = REPORT_BYTES_MAX;
}

fn options() -> Options {
    // Its idle time is `control::SILENCE_SECONDS_MAX`, and QUIC says something six times in it.
    Options { kind: TransportKind::Quic, mtu_bytes_max: 1472, ..Options::default() }
}

const _: () = assert!(control::SILENCE_SECONDS_MAX == 30);

/// gantryd's side: where movers dial in. Dropping it closes every connection that it accepted.
pub struct ControlListener {
    address: SocketAddr,
    endpoint: Endpoint,
    connections: mpsc::Receiver<ControlConnection>,
    /// Aborted when the listener is dropped.
    _tasks: JoinSet<()>,
}

impl ControlListener {
    /// Listens on UDP; within a tokio runtime. With port 0 the system chooses one.
    ///
    /// # Errors
    /// The address cannot be had, or the identity cannot be used.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        trust: &Trust,
    ) -> Result<ControlListener, TransportError> {
        let failed = |error: std::io::Error| cannot_listen(address, &error);
        let socket = UdpSocket::bind(address).map_err(failed)?;
        let bound = socket.local_addr().map_err(failed)?;
        let options = options();
        let config = quic::server_config(identity, trust, CONTROL_ALPN, &options)?;
        let endpoint = quic::endpoint(socket, identity, Some(config), &options)?;
        let (queue, connections) = mpsc::channel(BACKLOG);
        let door = Door { identity: identity.clone(), options, queue };
        let mut tasks = JoinSet::new();
        tasks.spawn(door.serve_quic(endpoint.clone(), |incoming, identity| async move {
            ControlConnection::of(quic::answer(incoming, &identity).await?)
        }));
        Ok(ControlListener { address: bound, endpoint, connections, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on lets in whom this trust says (see [`Trust::without`] for movers that are to stay
    /// out); connections that stand are not touched.
    ///
    /// # Errors
    /// The identity cannot be used; the old trust stays in force.
    pub fn set_trust(&self, identity: &Identity, trust: &Trust) -> Result<(), TransportError> {
        let config = quic::server_config(identity, trust, CONTROL_ALPN, &options())?;
        self.endpoint.set_server_config(Some(config));
        Ok(())
    }

    /// The next authenticated mover. May be dropped and called again without loss.
    ///
    /// # Errors
    /// The socket is gone, which only a bug brings about.
    pub async fn accept(&mut self) -> Result<ControlConnection, TransportError> {
        let next = self.connections.recv().await;
        next.ok_or_else(|| TransportError::setup(format!("{} is not listening", self.address)))
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        self.endpoint.close(4u8.into(), b"gantryd stops");
    }
}

/// The mover's side: dials gantryd at `HOST:PORT`. `trust` should demand gantryd's name
/// ([`Trust::expect_name`]): movers have certificates of the same authority.
///
/// # Errors
/// Nothing answers, or either side refuses the other.
pub async fn control_connect(
    address: &str,
    identity: &Identity,
    trust: &Trust,
) -> Result<ControlConnection, TransportError> {
    let options = options();
    let attempt = async |at| {
        let dial = quic::dial(at, identity, trust, CONTROL_ALPN, &options);
        ControlConnection::of(within(at, options.handshake_max, "QUIC", dial).await?)
    };
    try_addresses(address, attempt).await
}

/// An authenticated link. It ends when both halves are dropped.
#[derive(Debug)]
pub struct ControlConnection {
    /// The other end.
    pub peer: PeerInfo,
    /// Out.
    pub sender: ControlSender,
    /// In.
    pub receiver: ControlReceiver,
}

impl ControlConnection {
    fn of(greeted: Greeted) -> Result<ControlConnection, TransportError> {
        let peer = greeted.peer()?;
        let Greeted { endpoint, quic, ends, send, receive } = greeted;
        let sender =
            ControlSender { stream: send, quic: quic.clone(), endpoint, ends: ends.clone() };
        let receiver = ControlReceiver { stream: receive, quic, ends, buffer: Vec::new() };
        Ok(ControlConnection { peer, sender, receiver })
    }
}

/// The sending half.
#[derive(Debug)]
pub struct ControlSender {
    stream: SendStream,
    quic: quinn::Connection,
    /// A client's own, so that the end is on the wire before the program may exit.
    endpoint: Option<Endpoint>,
    ends: Ends,
}

impl ControlSender {
    /// Sends a message; waits while the peer takes none. Not to be dropped half-way: a message that
    /// was begun and not finished spoils the link.
    ///
    /// # Errors
    /// The link is lost, or the message is longer than its kind may be (nothing was sent then).
    pub async fn send<M: ControlMessage>(&mut self, message: &M) -> Result<(), TransportError> {
        let frame = control::encode(message, M::BYTES_MAX)
            .map_err(|error| TransportError::setup(error.to_string()))?;
        self.stream.write_all(&frame).await.map_err(|error| write_error(&self.ends, &error))
    }

    /// Closes the link at once, with a reason for the peer.
    pub fn close(&self, reason: &CloseReason) {
        self.quic.close(reason.code().into(), reason.text().as_bytes());
    }

    /// Ends the link once the peer has every message.
    pub async fn finish(mut self) {
        // Closed already: nothing to deliver.
        let _ = self.stream.finish();
        let _ = tokio::time::timeout(FINISH_MAX, self.stream.stopped()).await;
        self.close(&CloseReason::Done);
        if let Some(endpoint) = &self.endpoint {
            let _ = tokio::time::timeout(FINISH_MAX / 10, endpoint.wait_idle()).await;
        }
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct ControlReceiver {
    stream: RecvStream,
    quic: quinn::Connection,
    ends: Ends,
    /// What has come of the next message, its length first.
    buffer: Vec<u8>,
}

impl ControlReceiver {
    /// The next message; nothing if the peer ended the link well. May be dropped and called again
    /// without loss.
    ///
    /// # Errors
    /// The link is lost, or the peer sent what is no message: then the link is closed.
    pub async fn receive<M: ControlMessage>(&mut self) -> Result<Option<M>, TransportError> {
        loop {
            let missing = match self.missing(M::BYTES_MAX) {
                Ok(0) => return self.take().map(Some),
                Ok(missing) => missing,
                Err(error) => return Err(self.violated(&error)),
            };
            // Dropped here, nothing has been taken from the stream.
            let read = self.stream.read_chunk(missing.min(READ_BYTES), true).await;
            match read {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk.bytes),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => return Err(self.violated(&ControlError::Garbled)),
                Err(ReadError::ConnectionLost(error)) => {
                    return self.ends.quic(&error).map_or(Ok(None), Err);
                }
                Err(error) => return Err(self.ends.lost(error)),
            }
        }
    }

    /// Bytes that are still to come of the prefix or, once it is there, of the message.
    fn missing(&self, max: u32) -> Result<usize, ControlError> {
        let Some((prefix, body)) = self.buffer.split_first_chunk() else {
            return Ok(CONTROL_PREFIX_BYTES - self.buffer.len());
        };
        Ok(control::length(*prefix, max)?.saturating_sub(body.len()))
    }

    fn take<M: ControlMessage>(&mut self) -> Result<M, TransportError> {
        let message = std::mem::take(&mut self.buffer);
        let body = message.get(CONTROL_PREFIX_BYTES..).unwrap_or_default();
        control::decode(body).map_err(|error| self.violated(&error))
    }

    fn violated(&self, error: &ControlError) -> TransportError {
        let reason = CloseReason::Violation(error.to_string());
        self.quic.close(reason.code().into(), reason.text().as_bytes());
        TransportError::refused(format!("{} is refused: {error}", self.ends.address))
    }
}
