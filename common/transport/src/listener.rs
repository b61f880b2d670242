//! A mover that listens: UDP and TCP on one port number, connections of either out of one queue.
//!
//! In: an address, an identity, a trust. Out: authenticated [`Connection`]s. Invariant: handshakes
//! are bounded in number and time, and one that hangs holds up no other. A peer that is refused is
//! logged here, since nobody else learns of it.

use std::net::SocketAddr;
use std::sync::Arc;

use gantry_common::wire;
use quinn::Endpoint;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::error::TransportError;
use super::identity::Identity;
use super::link::Connection;
use super::options::Options;
use super::trust::Trust;
use super::{quic, tcp};

/// Handshakes at a time, over each of UDP and TCP.
const HANDSHAKES_MAX: usize = 64;
/// Handshakes at a time from which a QUIC client must show first that its address is its own.
const HANDSHAKES_TRUSTING: usize = 16;
/// Connections that wait for [`Listener::accept`].
pub(super) const BACKLOG: usize = 16;
/// Attempts to find a port that is free for both UDP and TCP.
const PORT_ATTEMPTS: usize = 16;

/// A listening mover. Dropping it closes every QUIC connection that it accepted.
pub struct Listener {
    address: SocketAddr,
    endpoint: Endpoint,
    options: Options,
    acceptor: watch::Sender<tokio_rustls::TlsAcceptor>,
    connections: mpsc::Receiver<Connection>,
    /// Aborted when the listener is dropped.
    _tasks: JoinSet<()>,
}

impl Listener {
    /// Listens on UDP and TCP. With port 0, the system chooses one that is free for both.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(
        address: SocketAddr,
        identity: &Identity,
        trust: &Trust,
        options: &Options,
    ) -> Result<Listener, TransportError> {
        let (udp, tcp_listener) = bind_both(address).await?;
        let bound = tcp_listener.local_addr().map_err(|error| cannot_listen(address, &error))?;
        let config = quic::server_config(identity, trust, wire::ALPN, options)?;
        let endpoint = quic::endpoint(udp, identity, Some(config), options)?;
        let acceptor = tcp::acceptor(identity, trust)?;
        let (queue, connections) = mpsc::channel(BACKLOG);
        let door = Door { identity: identity.clone(), options: options.clone(), queue };
        let mut tasks = JoinSet::new();
        tasks.spawn(door.clone().serve_quic(endpoint.clone(), quic::accept));
        let (acceptor, acceptors) = watch::channel(acceptor);
        tasks.spawn(door.serve_tcp(tcp_listener, acceptors));
        let options = options.clone();
        Ok(Listener { address: bound, endpoint, options, acceptor, connections, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on lets in whom this trust says; connections that stand are not touched.
    ///
    /// # Errors
    /// The trust or the identity cannot be used; the old trust stays in force.
    pub fn set_trust(&self, identity: &Identity, trust: &Trust) -> Result<(), TransportError> {
        let config = quic::server_config(identity, trust, wire::ALPN, &self.options)?;
        let acceptor = tcp::acceptor(identity, trust)?;
        self.endpoint.set_server_config(Some(config));
        self.acceptor.send_replace(acceptor);
        Ok(())
    }

    /// The next authenticated connection. May be dropped and called again without loss.
    ///
    /// # Errors
    /// The sockets are gone, which only a bug brings about.
    pub async fn accept(&mut self) -> Result<Connection, TransportError> {
        let next = self.connections.recv().await;
        next.ok_or_else(|| TransportError::setup(format!("{} is not listening", self.address)))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.endpoint.close(4u8.into(), b"the mover stops");
    }
}

pub(super) fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> TransportError {
    TransportError::setup(format!("cannot listen on {address}: {error}"))
}

async fn bind_both(
    address: SocketAddr,
) -> Result<(std::net::UdpSocket, TcpListener), TransportError> {
    let failed = |error: std::io::Error| cannot_listen(address, &error);
    for attempt in 1.. {
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        match std::net::UdpSocket::bind(tcp.local_addr().map_err(failed)?) {
            Ok(udp) => return Ok((udp, tcp)),
            Err(_) if address.port() == 0 && attempt < PORT_ATTEMPTS => {}
            Err(error) => return Err(failed(error)),
        }
    }
    unreachable!("the last attempt returns")
}

/// What the accept loops share, whatever kind of connection they make.
pub(super) struct Door<C> {
    pub(super) identity: Identity,
    pub(super) options: Options,
    pub(super) queue: mpsc::Sender<C>,
}

// Not derived: a connection need not be `Clone` for it.
impl<C> Clone for Door<C> {
    fn clone(&self) -> Door<C> {
        let Door { identity, options, queue } = self;
        Door { identity: identity.clone(), options: options.clone(), queue: queue.clone() }
    }
}

impl<C: Send + 'static> Door<C> {
    pub(super) async fn serve_quic<A, F>(self, endpoint: Endpoint, accept: A)
    where
        A: Fn(quinn::Incoming, Identity) -> F,
        F: Future<Output = Result<C, TransportError>> + Send + 'static,
    {
        let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        while let Some(incoming) = endpoint.accept().await {
            let busy = room.available_permits() <= HANDSHAKES_MAX - HANDSHAKES_TRUSTING;
            let Ok(permit) = room.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            if busy && incoming.may_retry() {
                // It comes back with a token that proves its address.
                drop(incoming.retry());
                continue;
            }
            let door = self.clone();
            let address = incoming.remote_address();
            let shaking = accept(incoming, self.identity.clone());
            tokio::spawn(async move {
                door.admit(address, shaking).await;
                drop(permit);
            });
        }
    }

    async fn admit(
        &self,
        address: SocketAddr,
        shaking: impl Future<Output = Result<C, TransportError>>,
    ) {
        match timeout(self.options.handshake_max, shaking).await {
            Ok(Ok(connection)) => drop(self.queue.send(connection).await),
            Ok(Err(error)) => tracing::warn!(%address, %error, "a peer was not let in"),
            Err(_) => tracing::warn!(%address, "a peer did not finish its handshake"),
        }
    }
}

impl Door<Connection> {
    async fn serve_tcp(
        self,
        listener: TcpListener,
        acceptors: watch::Receiver<tokio_rustls::TlsAcceptor>,
    ) {
        let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, say: the next attempt must not come at once.
                    tracing::warn!(%error, "cannot accept a TCP connection");
                    tokio::time::sleep(
                        self.options.keep_alive.min(std::time::Duration::from_secs(1)),
                    )
                    .await;
                    continue;
                }
            };
            let (door, acceptor) = (self.clone(), acceptors.borrow().clone());
            tokio::spawn(async move {
                let shaking =
                    tcp::accept(stream, address, &acceptor, &door.identity, &door.options);
                door.admit(address, shaking).await;
                drop(permit);
            });
        }
    }
}
