//! `/gantry-sim/faults`, `/gantry-sim/judge` and `/gantry-sim/requests`: drills at run time, for
//! whoever sits on the same machine.
//!
//! To faults, `POST` takes a command or a list of them as JSON, `GET` tells the rules and how often
//! each was applied, `DELETE` ends all rules and faults of storage. Of requests, `GET` tells which
//! came and how many, `DELETE` counts anew. The judge answers `POST`ed questions about watched disks.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};

use super::{Body, text};
use crate::drill::{self, Command};
use crate::limits;
use crate::sim::Sim;

/// Answers a request.
pub async fn serve(sim: Arc<Sim>, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    if let Some(refused) = refused(peer) {
        return refused;
    }
    match *request.method() {
        Method::GET => {
            let report = serde_json::to_string(&sim.rules().report()).unwrap_or_default();
            text(StatusCode::OK, "application/json", report)
        }
        Method::DELETE => done(drill::apply(&sim, Command::Clear {})),
        Method::POST => {
            let body = Limited::new(request.into_body(), limits::COMMANDS_BYTES_MAX);
            let Ok(body) = body.collect().await else {
                return text(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "too large\n".into());
            };
            let body = body.to_bytes();
            let applied = tokio::task::spawn_blocking(move || {
                let commands = drill::parse(&body)?;
                commands.into_iter().try_for_each(|command| drill::apply(&sim, command))
            });
            done(applied.await.unwrap_or_else(|_| Err(anyhow::anyhow!("the command failed"))))
        }
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET, POST, DELETE\n".into()),
    }
}

/// Answers a question about watched disks.
pub async fn judge(sim: Arc<Sim>, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    if let Some(refused) = refused(peer) {
        return refused;
    }
    let body = Limited::new(request.into_body(), limits::COMMANDS_BYTES_MAX).collect().await;
    let Ok(body) = body.map(|body| body.to_bytes()) else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "too large\n".into());
    };
    let judged = tokio::task::spawn_blocking(move || {
        let answer = drill::judge(&sim, &serde_json::from_slice(&body)?)?;
        Ok(serde_json::to_string(&answer)?)
    });
    match judged.await.unwrap_or_else(|_| Err(anyhow::anyhow!("it failed"))) {
        Ok(answer) => text(StatusCode::OK, "application/json", answer),
        Err(error) => text(StatusCode::BAD_REQUEST, "text/plain", format!("{error:#}\n")),
    }
}

/// Tells the requests that came.
pub fn requests(sim: &Sim, peer: SocketAddr, method: &Method) -> Response<Body> {
    if let Some(refused) = refused(peer) {
        return refused;
    }
    match *method {
        Method::GET => {
            let report = serde_json::to_string(&sim.requests()).unwrap_or_default();
            text(StatusCode::OK, "application/json", report)
        }
        Method::DELETE => {
            sim.count_requests_anew();
            done(Ok(()))
        }
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET, DELETE\n".into()),
    }
}

/// Whoever is not on this machine is told so.
fn refused(peer: SocketAddr) -> Option<Response<Body>> {
    let text = || text(StatusCode::FORBIDDEN, "text/plain", "only from this machine\n".into());
    (!peer.ip().is_loopback()).then(text)
}

fn done(result: anyhow::Result<()>) -> Response<Body> {
    match result {
        Ok(()) => text(StatusCode::OK, "application/json", "{}\n".into()),
        Err(error) => text(StatusCode::BAD_REQUEST, "text/plain", format!("{error:#}\n")),
    }
}
