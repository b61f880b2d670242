//! Sends requests to one endpoint over kept connections.
//!
//! In: [`Request`]s. Out: [`Response`]s. A server closes idle connections when it likes, so a
//! request on a kept one can meet a closed door: it is repeated once on a fresh connection, but
//! only if none of it was sent or if it is idempotent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use rustls::ClientConfig;

use crate::connection::{self, Connection};
use crate::endpoint::Endpoint;
use crate::error::{HttpError, TimedOut};
use crate::limits::Limits;
use crate::pool::{Permit, Pool};
use crate::request::Request;
use crate::response::Response;
use crate::trust::Trust;

/// A request's body: it is small and whole.
pub(crate) type Body = Full<Bytes>;

/// A client of one endpoint; clones share its connections. Needs a tokio runtime with I/O and time.
#[derive(Debug, Clone)]
pub struct HttpClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) endpoint: Endpoint,
    pub(crate) limits: Limits,
    pub(crate) pool: Pool,
    tls: Arc<ClientConfig>,
    opened: AtomicU64,
}

/// How one try on one connection failed.
struct Failed {
    error: HttpError,
    /// A fresh connection may help, and repeating does no harm.
    again: bool,
}

impl HttpClient {
    /// A client; nothing is connected yet.
    ///
    /// # Errors
    /// [`HttpError::Configuration`] if the trust's PEM text is unusable.
    pub fn new(endpoint: Endpoint, trust: &Trust, limits: Limits) -> Result<HttpClient, HttpError> {
        let tls = trust.client_config().map_err(|reason| HttpError::Configuration {
            endpoint: endpoint.clone(),
            reason: format!("the trusted certificate authority is unusable: {reason}"),
        })?;
        let pool = Pool::new(limits.connections_max, limits.idle_max);
        let opened = AtomicU64::new(0);
        let inner = Inner { endpoint, limits, pool, tls: Arc::new(tls), opened };
        Ok(HttpClient { inner: Arc::new(inner) })
    }

    /// The server.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Connections opened so far.
    pub fn connections_opened(&self) -> u64 {
        self.inner.opened.load(Ordering::Relaxed)
    }

    /// Closes the connections that are kept for later.
    pub fn close_idle(&self) {
        self.inner.pool.clear();
    }

    /// Sends a request and waits for the response's head; any status is a response.
    ///
    /// # Errors
    /// See [`HttpError`]; [`HttpError::may_have_been_sent`] tells whether the server may have acted.
    pub async fn send(&self, request: &Request) -> Result<Response, HttpError> {
        let inner = &self.inner;
        let timeout = request.timeout.unwrap_or(inner.limits.request_timeout);
        let permit = self.permit(timeout).await?;
        if let Some(kept) = inner.pool.take() {
            match self.attempt(kept, request, timeout).await {
                Ok((head, kept)) => return Ok(Response::new(inner.clone(), head, kept, permit)),
                Err(Failed { error, again: false }) => return Err(error),
                Err(Failed { again: true, .. }) => {}
            }
        }
        let fresh = connection::open(&inner.endpoint, &inner.tls, &inner.limits).await?;
        inner.opened.fetch_add(1, Ordering::Relaxed);
        let sent = self.attempt(fresh, request, timeout).await;
        let (head, connection) = sent.map_err(|failed| failed.error)?;
        Ok(Response::new(inner.clone(), head, connection, permit))
    }

    async fn permit(&self, after: Duration) -> Result<Permit, HttpError> {
        let permit = tokio::time::timeout(after, self.inner.pool.permit()).await;
        permit.ok().flatten().ok_or_else(|| HttpError::Timeout {
            endpoint: self.inner.endpoint.clone(),
            stage: TimedOut::Connection,
            after,
        })
    }

    /// One try on one connection.
    async fn attempt(
        &self,
        mut connection: Connection,
        request: &Request,
        after: Duration,
    ) -> Result<(hyper::Response<hyper::body::Incoming>, Connection), Failed> {
        let inner = &self.inner;
        let endpoint = &inner.endpoint;
        let built = request.build(&endpoint.to_string()).map_err(|reason| Failed {
            error: HttpError::Configuration { endpoint: endpoint.clone(), reason },
            again: false,
        })?;
        let head_bytes_max = inner.limits.header_bytes_max;
        let used = connection.used;
        let exchange = async {
            if let Err(error) = connection.sender.ready().await {
                let error = HttpError::from_hyper(endpoint, &error, false, head_bytes_max);
                return Err(Failed { error, again: used });
            }
            connection.sender.try_send_request(built).await.map_err(|mut failed| {
                let unsent = failed.take_message().is_some();
                let error =
                    HttpError::from_hyper(endpoint, failed.error(), !unsent, head_bytes_max);
                let lost = matches!(error, HttpError::Lost { .. });
                Failed { error, again: used && lost && (unsent || request.idempotent) }
            })
        };
        match tokio::time::timeout(after, exchange).await {
            Ok(answered) => answered.map(|head| (head, connection)),
            Err(_) => {
                let endpoint = endpoint.clone();
                let error = HttpError::Timeout { endpoint, stage: TimedOut::Response, after };
                Err(Failed { error, again: false })
            }
        }
    }
}
