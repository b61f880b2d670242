//! HTTP/1.1 over TLS: accepts connections within bounds, and ends them properly.
//!
//! In: a listener, a certificate, a router, and when to stop. Out: answered requests. Invariants: a
//! client that is slow, silent or one of too many costs bounded memory and time; whoever stops the
//! server waits at most [`limits::STOP_SECONDS_MAX`].

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use gantry_common::secret::Secret;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
pub use rustls::ServerConfig as TlsConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::limits;
use crate::stalled::Stalled;

/// From where a request came.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// What the server shows: a certificate chain and its key (PEM).
///
/// # Errors
/// What is wrong with them.
pub fn tls_config(chain_pem: &[u8], key_pem: &Secret) -> Result<Arc<TlsConfig>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain_pem).collect();
    let chain = chain.map_err(|error| format!("the API's certificate: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.reveal().as_bytes())
        .map_err(|error| format!("the API's key: {error}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = TlsConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| format!("the API's certificate and key: {error}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Time-outs and counts; the defaults are those of [`limits`].
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// See [`limits::CONNECTIONS_MAX`].
    pub connections: usize,
    /// See [`limits::PEER_CONNECTIONS_MAX`].
    pub peer_connections: usize,
    /// See [`limits::HANDSHAKE_SECONDS_MAX`].
    pub handshake: Duration,
    /// See [`limits::HEAD_SECONDS_MAX`].
    pub head: Duration,
    /// See [`limits::STALLED_SECONDS_MAX`].
    pub stalled: Duration,
    /// See [`limits::STOP_SECONDS_MAX`].
    pub stop: Duration,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            connections: limits::CONNECTIONS_MAX,
            peer_connections: limits::PEER_CONNECTIONS_MAX,
            handshake: Duration::from_secs(limits::HANDSHAKE_SECONDS_MAX),
            head: Duration::from_secs(limits::HEAD_SECONDS_MAX),
            stalled: Duration::from_secs(limits::STALLED_SECONDS_MAX),
            stop: Duration::from_secs(limits::STOP_SECONDS_MAX),
        }
    }
}

/// Connections of each address.
#[derive(Clone, Default)]
struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One counted connection.
struct Counted(Peers, IpAddr);

impl Peers {
    fn enter(&self, address: IpAddr, max: usize) -> Option<Counted> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = peers.entry(address).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Counted(self.clone(), address))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut peers = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.1);
            }
        }
    }
}

/// Serves until `stop` turns true (or its sender is gone), then lets running requests end.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<TlsConfig>,
    router: Router,
    bounds: Bounds,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let permits = Arc::new(Semaphore::new(bounds.connections));
    let peers = Peers::default();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = turned(&mut stop) => break,
            accepted = async {
                let permit = permits.clone().acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
        };
        let (Ok(permit), Ok((stream, address))) = accepted else {
            // Out of descriptors, or a connection that was gone at once.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let address = address.ip().to_canonical();
        let Some(counted) = peers.enter(address, bounds.peer_connections) else { continue };
        let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, address, acceptor, router, bounds, stop).await {
                tracing::debug!("connection of {address}: {error}");
            }
            drop((permit, counted));
        });
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(bounds.stop, ended).await.is_err() {
        tracing::info!("{} connections were cut at the stop", connections.len());
        connections.shutdown().await;
    }
}

/// Waits until the server is to stop. (The guard that a watch gives must not live on.)
pub(crate) async fn turned(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(
    stream: TcpStream,
    address: IpAddr,
    acceptor: TlsAcceptor,
    router: Router,
    bounds: Bounds,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let handshake = tokio::time::timeout(bounds.handshake, acceptor.accept(stream));
    let tls = handshake.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let router = router.layer(axum::Extension(Peer(address)));
    let service = TowerToHyperService::new(router.into_service::<Incoming>());
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_headers(limits::HEADERS_MAX)
        .max_buf_size(limits::HEAD_BYTES_MAX);
    let connection =
        http.serve_connection(TokioIo::new(Stalled::new(tls, bounds.stalled)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = turned(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(io::Error::other)
}
