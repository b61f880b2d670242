//! The server's state, and what every request passes: an id, the log, who asks.
//!
//! In: a [`Backend`]. Out: a router that [`crate::server::serve`] runs. Invariants: a route's role is
//! checked before its body is read; every change is in the log with the token's name and the
//! request's id.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use crate::access::{Access, LoginLimiter, Principal, bearer, find};
use crate::backend::Backend;
use crate::limits;
use crate::problem::{Fault, Problem};
use crate::server::Peer;
use crate::table::{Asker, router};

/// What may differ between installations and tests.
#[derive(Debug, Clone, Copy)]
pub struct ApiSettings {
    /// See [`limits::STREAM_POLL_MS`].
    pub stream_poll: Duration,
    /// See [`limits::ANSWER_SECONDS_MAX`].
    pub answer: Duration,
}

impl Default for ApiSettings {
    fn default() -> ApiSettings {
        ApiSettings {
            stream_poll: Duration::from_millis(limits::STREAM_POLL_MS),
            answer: Duration::from_secs(limits::ANSWER_SECONDS_MAX),
        }
    }
}

/// The server's state; clones share it.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Arc<dyn Backend>,
    settings: ApiSettings,
    failures: Mutex<LoginLimiter>,
    streams: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
    document: Bytes,
    /// Answers by the first digit of their status.
    answers: [AtomicU64; 6],
}

impl Api {
    /// An API over this backend; live streams end once `stop` turns true.
    pub fn new(
        backend: Arc<dyn Backend>,
        settings: ApiSettings,
        stop: watch::Receiver<bool>,
    ) -> Api {
        let document = crate::routes::document().to_json().unwrap_or_default();
        let inner = Inner {
            backend,
            settings,
            failures: Mutex::default(),
            streams: Arc::new(Semaphore::new(limits::STREAMS_MAX)),
            stop,
            document: document.into(),
            answers: Default::default(),
        };
        Api { inner: Arc::new(inner) }
    }

    /// The router, for [`crate::server::serve`].
    pub fn router(&self) -> Router {
        router(crate::routes::all())
            .layer(from_fn_with_state(self.clone(), around))
            .with_state(self.clone())
    }

    /// gantryd.
    pub fn backend(&self) -> &(dyn Backend + 'static) {
        &*self.inner.backend
    }

    pub(crate) fn shared_backend(&self) -> Arc<dyn Backend> {
        self.inner.backend.clone()
    }

    pub(crate) fn settings(&self) -> ApiSettings {
        self.inner.settings
    }

    pub(crate) fn streams(&self) -> Arc<Semaphore> {
        self.inner.streams.clone()
    }

    pub(crate) fn stop(&self) -> watch::Receiver<bool> {
        self.inner.stop.clone()
    }

    pub(crate) fn document(&self) -> Bytes {
        self.inner.document.clone()
    }

    /// Answers so far, by the first digit of their status.
    pub(crate) fn answers(&self) -> [u64; 6] {
        self.inner.answers.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Lets a request in, or not.
    pub(crate) async fn admit(
        &self,
        access: Access,
        token: Option<&HeaderValue>,
        address: IpAddr,
    ) -> Result<Principal, Problem> {
        if access == Access::Public {
            return Ok(Principal::nobody());
        }
        let (token, now_ms) = (bearer(token)?, now_ms());
        self.guard(address, now_ms)?;
        let known = self.backend().known_tokens().await?;
        let Some(who) = find(token, &known, now_ms) else {
            self.failed(address, now_ms);
            tracing::warn!("a request of {address} carries a token that is unknown or has ended");
            return Err(Problem::unauthorized("the token is unknown or has ended"));
        };
        self.backend().token_used(&who.token, now_ms).await;
        if !access.allows(who.role) {
            let Access::Role(needed) = access else { return Ok(who) };
            let role = crate::routes::role_name(needed);
            let detail = format!("token '{}' may not do that: it needs role {role}", who.name);
            let next = "use a token of that role";
            return Err(Problem::new(StatusCode::FORBIDDEN, Fault::Refused, detail, next));
        }
        Ok(who)
    }

    /// Refuses an address that fails too often.
    ///
    /// # Errors
    /// 429.
    pub(crate) fn guard(&self, address: IpAddr, now_ms: u64) -> Result<(), Problem> {
        let failures = self.inner.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.admit(address, now_ms)
    }

    /// Notes that an address tried something that lets nobody in.
    pub(crate) fn failed(&self, address: IpAddr, now_ms: u64) {
        let mut failures = self.inner.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.failed(address, now_ms);
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// From where a request comes.
pub(crate) fn peer(request: &Request) -> IpAddr {
    let peer = request.extensions().get::<Peer>();
    peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0)
}

fn request_id() -> String {
    let mut random = [0; 8];
    // Without random bytes the id is of no use, and of no harm.
    let _ = getrandom::fill(&mut random);
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Around every request: its id, a limit of its time, the log.
async fn around(State(api): State<Api>, request: Request, next: Next) -> Response {
    let (id, since) = (request_id(), Instant::now());
    let (method, peer) = (request.method().clone(), peer(&request));
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let path = path.unwrap_or_else(|| "(no route)".to_owned());
    let answered = tokio::time::timeout(api.inner.settings.answer, next.run(request)).await;
    let mut response = answered.unwrap_or_else(|_| {
        let detail = format!("no answer within {} s", api.inner.settings.answer.as_secs());
        Problem::unavailable(detail, "try again; gantryd's log may tell what is slow")
            .into_response()
    });
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let (extensions, status) = (response.extensions().clone(), response.status());
        if status.is_server_error() {
            tracing::error!("request {id}: {method} {path}: {}", problem.detail);
        }
        response = Problem { request_id: id.clone(), ..problem }.into_response();
        *response.extensions_mut() = extensions;
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", value);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let status = response.status().as_u16();
    if let Some(count) = api.inner.answers.get(usize::from(status / 100)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
    let asker = response.extensions().get::<Asker>().map_or("nobody", |asker| asker.0.as_str());
    let ms = since.elapsed().as_millis();
    if method == Method::GET || method == Method::HEAD {
        tracing::debug!("request {id}: {method} {path} by {asker} of {peer}: {status}, {ms} ms");
    } else {
        tracing::info!("request {id}: {method} {path} by {asker} of {peer}: {status}, {ms} ms");
    }
    response
}
