//! `/guestFile`: a file into a guest (`PUT`) or out of it (`GET`), once for each address.
//!
//! In: `?id=N&token=T` as `InitiateFileTransfer*Guest` gave it; the token is all that is asked for, as
//! on real hosts. Out: the file. The body of a `PUT` must be as long as was announced.

use std::sync::Arc;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};

use super::{Body, text};
use crate::guest::Transfer;
use crate::limits;
use crate::sim::Sim;
use crate::site::Power;

/// Answers a request.
pub async fn serve(sim: Arc<Sim>, request: Request<Incoming>) -> Response<Body> {
    let plain = |status, what: &str| text(status, "text/plain", format!("{what}\n"));
    let upload = request.method() == Method::PUT;
    if !upload && request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET or PUT");
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let Some(transfer) = take(&sim, &query, upload) else {
        return plain(StatusCode::NOT_FOUND, "There is no such transfer, or no more.");
    };
    if !runs(&sim, transfer.machine) {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "The guest does not run any more.");
    }
    let Some((size, permissions)) = transfer.upload else {
        let mut systems = sim.guest_systems();
        let content = systems.of(transfer.machine).files.read(&transfer.path);
        return match content {
            Ok(content) => {
                let content = bytes::Bytes::copy_from_slice(content);
                Response::new(Full::new(content).map_err(|never| match never {}).boxed())
            }
            Err(error) => plain(StatusCode::NOT_FOUND, &error.to_string()),
        };
    };
    let body = Limited::new(request.into_body(), limits::GUEST_FILE_BYTES_MAX).collect().await;
    let Ok(body) = body.map(|body| body.to_bytes()) else {
        return plain(StatusCode::PAYLOAD_TOO_LARGE, "The file is too large, or broke off.");
    };
    if body.len() as u64 != size {
        let what = format!("{size} bytes were announced, {} came.", body.len());
        return plain(StatusCode::INTERNAL_SERVER_ERROR, &what);
    }
    let mut systems = sim.guest_systems();
    let files = &mut systems.of(transfer.machine).files;
    match files.write(&transfer.path, body.to_vec(), Some(permissions)) {
        Ok(()) => plain(StatusCode::OK, "Done."),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// The transfer of an address, which is used up.
fn take(sim: &Sim, query: &str, upload: bool) -> Option<Transfer> {
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let id: u64 = value("id")?.parse().ok()?;
    let token = value("token")?;
    let mut systems = sim.guest_systems();
    let found = systems.transfers.get(&id)?;
    if found.token != token || found.upload.is_some() != upload {
        return None;
    }
    systems.transfers.remove(&id)
}

fn runs(sim: &Sim, machine: u32) -> bool {
    let state = sim.lock();
    state.site.machines.get(&machine).is_some_and(|found| found.power == Power::On && found.tools)
}
