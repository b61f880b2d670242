//! The listeners: TLS on the loopback interface, HTTP/1.1, routes.
//!
//! In: connections. Out: the SOAP API, the list of versions, datastores, leases. Every connection
//! and request is bounded; a client that breaks the protocol loses its connection, nothing else.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, COOKIE, HeaderMap, HeaderValue, SET_COOKIE, USER_AGENT};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::drill::{About, TaskVerdict, Verdict};
use crate::fault::Fault;
use crate::limits;
use crate::methods::{self, Origin, Reply};
use crate::requests::{Phase, Seen, Then};
use crate::sim::{Kind, Sim};
use crate::site::Subject;
use crate::soap;

mod access;
mod certificate;
mod folder;
mod upload;
mod guest_file;
mod nfc;
mod control;
mod stream;

pub use certificate::Certificate;

/// A response's body: a text, or a stream.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// The name of the session cookie of the SOAP API.
pub const SESSION_COOKIE: &str = "vmware_soap_session";

/// Opens every endpoint's listener and serves them until the program ends. `port` is for vCenter,
/// 0 for any; hosts take any.
///
/// # Errors
/// When a port cannot be had or a certificate cannot be made.
pub async fn serve(sim: &Arc<Sim>, port: u16) -> Result<()> {
    let count = sim.lock().endpoints.len();
    for endpoint in 0..count {
        let port = if endpoint == 0 { port } else { 0 };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("listening on {address}"))?;
        let certificate = Certificate::make()?;
        {
            let mut state = sim.lock();
            let endpoint = &mut state.endpoints[endpoint];
            endpoint.address = Some(listener.local_addr()?);
            endpoint.thumbprint.clone_from(&certificate.thumbprint_sha1);
            endpoint.thumbprint_sha256.clone_from(&certificate.thumbprint_sha256);
            endpoint.certificate.clone_from(&certificate.pem);
        }
        let acceptor = TlsAcceptor::from(certificate.config);
        tokio::spawn(accept(sim.clone(), endpoint, listener, acceptor));
    }
    Ok(())
}

async fn accept(sim: Arc<Sim>, endpoint: usize, listener: TcpListener, acceptor: TlsAcceptor) {
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (sim, acceptor) = (sim.clone(), acceptor.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(sim, endpoint, stream, peer, acceptor).await {
                debug!(%peer, %error, "connection ended");
            }
            drop(place);
        });
    }
}

async fn connection(
    sim: Arc<Sim>,
    endpoint: usize,
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
) -> Result<()> {
    let _ = stream.set_nodelay(true);
    let limit = Duration::from_secs(limits::HANDSHAKE_SECONDS_MAX);
    let stream = timeout(limit, acceptor.accept(stream)).await.context("TLS handshake")??;
    let service = service_fn(move |request| {
        let sim = sim.clone();
        async move { route(sim, endpoint, peer, request).await }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

async fn route(
    sim: Arc<Sim>,
    endpoint: usize,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    if is_lost(&sim, endpoint) {
        return Err(cut());
    }
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let response = match (request.method(), path.as_str()) {
        (&Method::POST, "/sdk" | "/sdk/vimService") => soap(sim, endpoint, peer, request).await?,
        (_, "/gantry-sim/faults") => control::serve(sim, peer, request).await,
        (&Method::POST, "/gantry-sim/judge") => control::judge(sim, peer, request).await,
        (_, "/gantry-sim/requests") => control::requests(&sim, peer, request.method()),
        (&Method::GET, "/sdk/vimServiceVersions.xml") => {
            text(StatusCode::OK, "text/xml", soap::VERSIONS.to_owned())
        }
        (_, path) if path == "/folder" || path.starts_with("/folder/") => {
            let name = match *request.method() {
                Method::GET => "GET /folder",
                Method::HEAD => "HEAD /folder",
                Method::PUT => "PUT /folder",
                _ => "unknown",
            };
            let seen = sim.note_request(endpoint, name, path);
            if request.method() == Method::PUT {
                return watched(&sim, &seen, upload::serve(sim.clone(), endpoint, request)).await;
            }
            let head = request.into_parts().0;
            watched(&sim, &seen, folder::serve(sim.clone(), endpoint, &head)).await?
        }
        (method, "/guestFile") => {
            let put = method == Method::PUT;
            let name = if put { "PUT /guestFile" } else { "GET /guestFile" };
            let seen = sim.note_request(endpoint, name, "/guestFile");
            watched(&sim, &seen, guest_file::serve(sim.clone(), request)).await?
        }
        (&Method::GET, path) if path.starts_with("/nfc/") => {
            let seen = sim.note_request(endpoint, "GET /nfc", path);
            watched(&sim, &seen, nfc::serve(sim.clone(), path)).await?
        }
        (&Method::GET, "") => {
            text(StatusCode::OK, "text/plain", "A vCenter simulated by gantry-sim\n".into())
        }
        _ => text(StatusCode::NOT_FOUND, "text/plain", "404 Not Found\n".into()),
    };
    Ok(response)
}

/// A request that is no SOAP call, shown to the hook before and after.
async fn watched(
    sim: &Sim,
    seen: &Seen,
    act: impl Future<Output = Response<Body>>,
) -> io::Result<Response<Body>> {
    show(sim, seen, Phase::Before).await?;
    let response = act.await;
    show(sim, seen, Phase::Acted).await?;
    Ok(response)
}

/// Shows a request to the hook; an error if the connection is to be cut.
async fn show(sim: &Sim, seen: &Seen, phase: Phase) -> io::Result<()> {
    match sim.show_request(seen, phase).await {
        Then::GoOn => Ok(()),
        Then::Cut => Err(cut()),
    }
}

/// A response with a text.
pub fn text(status: StatusCode, content_type: &'static str, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

async fn soap(
    sim: Arc<Sim>,
    endpoint: usize,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let headers = request.headers();
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let agent = agent.to_owned();
    let cookie = session_cookie(headers);
    let task = TaskVerdict::default();
    let mut origin = Origin { endpoint, peer, agent, cookie, task, seen: None };
    let body = Limited::new(request.into_body(), limits::REQUEST_BYTES_MAX).collect().await;
    let Ok(body) = body.map(|body| body.to_bytes()) else {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        return Ok(text(status, "text/plain", "too large\n".into()));
    };
    let answered = match soap::request(&body) {
        Ok(request) => {
            let method = request.method.clone();
            let seen = sim.note_request(endpoint, methods::known_name(&request), &request.this.id);
            show(&sim, &seen, Phase::Before).await?;
            origin.seen = Some(seen.clone());
            let verdict = judge(&sim, &mut origin, &request);
            tokio::time::sleep(verdict.delay).await;
            if verdict.drop {
                return Err(cut());
            }
            let reply = match verdict.fault {
                Some(fault) => Err(fault),
                None => methods::invoke(sim.clone(), origin, request).await,
            };
            show(&sim, &seen, Phase::Acted).await?;
            debug!(method, ok = reply.is_ok(), "call");
            if verdict.lose_answer {
                return Err(cut());
            }
            reply.map(|reply| (method, reply))
        }
        Err(fault) => Err(fault),
    };
    Ok(answer(answered))
}

/// An error that makes the connection end without an answer.
fn cut() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// Whether the endpoint is a host that a drill has taken away.
fn is_lost(sim: &Sim, endpoint: usize) -> bool {
    let state = sim.lock();
    match state.endpoints[endpoint].kind {
        Kind::VCenter => false,
        Kind::Host(host) => !state.site.hosts[host].connected,
    }
}

/// What drills have in store for a call.
fn judge(sim: &Sim, origin: &mut Origin, request: &soap::Request) -> Verdict {
    let mut state = sim.lock();
    let endpoint = &state.endpoints[origin.endpoint];
    let machine = match endpoint.subject(&request.this) {
        Some(Subject::Machine(id) | Subject::Snapshot(id, _)) => state.site.machines.get(id),
        _ => None,
    };
    let about = About {
        method: &request.method,
        object: &request.this.id,
        machine: machine.map(|machine| machine.name.as_str()),
        endpoint: match endpoint.kind {
            Kind::VCenter => "vcenter",
            Kind::Host(host) => &state.site.hosts[host].name,
        },
    };
    let verdict = sim.rules().decide(about);
    if verdict.expire_session
        && let Some(cookie) = &origin.cookie
    {
        let endpoint = &mut state.endpoints[origin.endpoint];
        let closed = endpoint.sessions.close(cookie);
        methods::forget(endpoint, closed);
    }
    origin.task = verdict.task.clone();
    verdict
}

fn answer(answered: Result<(String, Reply), Fault>) -> Response<Body> {
    match answered {
        Ok((method, reply)) => {
            let answer = soap::answer(&method, &reply.value, reply.returns);
            let mut response = text(StatusCode::OK, "text/xml; charset=utf-8", answer);
            let cookie = reply
                .cookie
                .map(|cookie| format!("{SESSION_COOKIE}=\"{cookie}\"; Path=/; HttpOnly; Secure;"));
            if let Some(Ok(value)) = cookie.map(|cookie| HeaderValue::from_str(&cookie)) {
                response.headers_mut().insert(SET_COOKIE, value);
            }
            response
        }
        Err(fault) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            text(status, "text/xml; charset=utf-8", soap::fault(&fault))
        }
    }
}

/// The session cookie's value, with or without quotes.
pub fn session_cookie(headers: &HeaderMap) -> Option<Arc<str>> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs =
        cookies.flat_map(|text| text.split(';')).filter_map(|p| p.trim().split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == SESSION_COOKIE)?;
    Some(value.trim_matches('"').into())
}
