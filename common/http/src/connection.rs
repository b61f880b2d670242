//! One connection: TCP, TLS, HTTP/1.1 handshake.
//!
//! In: an endpoint and a TLS configuration. Out: a [`Connection`] that takes one request at a time.
//! The task that drives it ends by itself once the connection is dropped or lost.

use std::sync::Arc;
use std::time::Instant;

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::client::Body;
use crate::endpoint::Endpoint;
use crate::error::{HttpError, TimedOut};
use crate::limits::Limits;

/// An open connection without a request in it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<Body>,
    pub(crate) idle_since: Instant,
    /// Whether an earlier request went over it: then the server may have closed it meanwhile.
    pub(crate) used: bool,
}

/// Opens a connection within the limits' `connect_timeout`.
pub(crate) async fn open(
    endpoint: &Endpoint,
    tls: &Arc<ClientConfig>,
    limits: &Limits,
) -> Result<Connection, HttpError> {
    let after = limits.connect_timeout;
    match tokio::time::timeout(after, open_unhurried(endpoint, tls, limits)).await {
        Ok(opened) => opened,
        Err(_) => {
            let endpoint = endpoint.clone();
            Err(HttpError::Timeout { endpoint, stage: TimedOut::Connect, after })
        }
    }
}

async fn open_unhurried(
    endpoint: &Endpoint,
    tls: &Arc<ClientConfig>,
    limits: &Limits,
) -> Result<Connection, HttpError> {
    let name = endpoint.server_name().map_err(|error| HttpError::Configuration {
        endpoint: endpoint.clone(),
        reason: error.to_string(),
    })?;
    let stream = TcpStream::connect((endpoint.host(), endpoint.port()))
        .await
        .map_err(|source| HttpError::Connect { endpoint: endpoint.clone(), source })?;
    // Requests are small and answered before the next: waiting to fill packets only costs time.
    let _ = stream.set_nodelay(true);
    let stream = TlsConnector::from(tls.clone())
        .connect(name, stream)
        .await
        .map_err(|error| HttpError::from_handshake(endpoint, error))?;
    let head_bytes_max = limits.header_bytes_max.max(Limits::HEADER_BYTES_LEAST);
    let (sender, connection) = Builder::new()
        .max_buf_size(head_bytes_max)
        .max_headers(limits.headers_max)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| HttpError::from_hyper(endpoint, &error, false, head_bytes_max))?;
    // Its failures reach whoever waits for the response.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(Connection { sender, idle_since: Instant::now(), used: false })
}
