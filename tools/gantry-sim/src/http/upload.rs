//! `PUT /folder/...`: a file into a datastore, as a restore puts descriptors, extents and `.vmx`.
//!
//! In: the address as for downloads, a body of any length. Out: 201 and the file; 404 where its
//! folder is not, 500 where a running machine, a snapshot or a proxy holds it. The folder is made
//! beforehand by `MakeDirectory`, as on real hosts.

use std::sync::Arc;

use bytes::BytesMut;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};

use super::{Body, access, folder, text};
use crate::limits;
use crate::sim::Sim;
use crate::storage::{Result, StorageError, Upload};

/// Answers a request.
pub async fn serve(sim: Arc<Sim>, endpoint: usize, request: Request<Incoming>) -> Response<Body> {
    let plain = |status, what: &str| text(status, "text/plain", format!("{what}\n"));
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    if !access::allowed(&sim, endpoint, "PUT", target, request.headers()) {
        return plain(StatusCode::UNAUTHORIZED, "Authentication is required.");
    }
    let path = match folder::path(&sim, endpoint, request.uri().path(), request.uri().query()) {
        Ok(path) => path,
        Err(why) => return plain(StatusCode::NOT_FOUND, &why),
    };
    let storage = sim.storage.clone();
    let opened = blocking(move || storage.upload(&path)).await;
    let done = match opened {
        Ok(upload) => receive(&sim, upload, request.into_body()).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(()) => plain(StatusCode::CREATED, "Done."),
        Err(error) => folder::refusal(&error),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let failed = |_| StorageError::Invalid("the simulator failed".into());
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

async fn receive(sim: &Sim, mut upload: Upload, mut body: Incoming) -> Result<()> {
    let mut waiting = BytesMut::with_capacity(limits::READ_BYTES);
    loop {
        let frame = body.frame().await;
        let ended = frame.is_none();
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    waiting.extend_from_slice(data);
                }
            }
            Some(Err(error)) => return Err(StorageError::Invalid(format!("broken off: {error}"))),
            None => {}
        }
        if ended || waiting.len() >= limits::READ_BYTES {
            folder::check_accessible(sim, upload.path().datastore())?;
            let piece = waiting.split().freeze();
            upload = blocking(move || upload.write(&piece).map(|()| upload)).await?;
        }
        if ended {
            return blocking(move || upload.finish()).await;
        }
    }
}
