//! A response whose body is read in bounded pieces.
//!
//! In: a response's head and its connection. Out: the body, whole up to a limit, or piece by piece.
//! A body read to its end gives the connection back; one dropped halfway closes it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::{HeaderMap, StatusCode};

use crate::client::Inner;
use crate::connection::Connection;
use crate::error::{HttpError, TimedOut};
use crate::pool::Permit;

/// A response; its head has arrived.
#[derive(Debug)]
pub struct Response {
    client: Arc<Inner>,
    head: hyper::http::response::Parts,
    body: Incoming,
    /// Received, not yet read by the caller.
    left: Bytes,
    /// Given back at the body's end.
    held: Option<(Connection, Permit)>,
}

impl Response {
    pub(crate) fn new(
        client: Arc<Inner>,
        response: hyper::Response<Incoming>,
        connection: Connection,
        permit: Permit,
    ) -> Response {
        let (head, body) = response.into_parts();
        let held = Some((connection, permit));
        let mut response = Response { client, head, body, left: Bytes::new(), held };
        response.release_at_end();
        response
    }

    /// The status, of any kind: what it means is the caller's business.
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// One header as text; nothing when absent or no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    /// The body's length, if the server said it.
    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The next piece of the body; nothing at its end. Pieces are as large as they arrive, at
    /// most the client's read buffer.
    ///
    /// # Errors
    /// Timeout between pieces, lost connection, invalid framing.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        if !self.left.is_empty() {
            return Ok(Some(std::mem::take(&mut self.left)));
        }
        let after = self.client.limits.chunk_timeout;
        loop {
            let frame = match tokio::time::timeout(after, self.body.frame()).await {
                Err(_) => return Err(self.timed_out(after)),
                Ok(None) => {
                    self.release();
                    return Ok(None);
                }
                Ok(Some(Err(error))) => {
                    self.held = None;
                    let head_bytes_max = self.client.limits.header_bytes_max;
                    let endpoint = &self.client.endpoint;
                    return Err(HttpError::from_hyper(endpoint, &error, true, head_bytes_max));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers carry nothing that we use.
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                self.release_at_end();
                return Ok(Some(data));
            }
        }
    }

    /// The whole body, which must not be longer than `bytes_max`.
    ///
    /// # Errors
    /// [`HttpError::TooLarge`] without reading further; else as [`Response::next_chunk`].
    pub async fn body_bounded(mut self, bytes_max: usize) -> Result<Bytes, HttpError> {
        if self.content_length().is_some_and(|length| length > bytes_max as u64) {
            return Err(self.too_large(bytes_max));
        }
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.next_chunk().await? {
            if whole.len() + chunk.len() > bytes_max {
                return Err(self.too_large(bytes_max));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// Fills `target` with the body's next bytes.
    ///
    /// # Errors
    /// [`HttpError::Short`] when the body ends before; else as [`Response::next_chunk`].
    pub async fn read_exact_into(&mut self, target: &mut [u8]) -> Result<(), HttpError> {
        let mut filled = 0;
        while filled < target.len() {
            let Some(mut chunk) = self.next_chunk().await? else {
                let endpoint = self.client.endpoint.clone();
                return Err(HttpError::Short { endpoint, missing: target.len() - filled });
            };
            let count = chunk.len().min(target.len() - filled);
            chunk.copy_to_slice(&mut target[filled..filled + count]);
            filled += count;
            self.left = chunk;
        }
        Ok(())
    }

    /// Reads what is left, up to `bytes_max`, so that the connection can be used again; beyond
    /// that, or on any failure, the connection is closed instead.
    pub async fn discard(mut self, bytes_max: usize) {
        let mut read = 0;
        while let Ok(Some(chunk)) = self.next_chunk().await {
            read += chunk.len();
            if read > bytes_max {
                return;
            }
        }
    }

    fn timed_out(&mut self, after: Duration) -> HttpError {
        self.held = None;
        let endpoint = self.client.endpoint.clone();
        HttpError::Timeout { endpoint, stage: TimedOut::Body, after }
    }

    fn too_large(&self, bytes_max: usize) -> HttpError {
        HttpError::TooLarge { endpoint: self.client.endpoint.clone(), what: "body", bytes_max }
    }

    fn release_at_end(&mut self) {
        if self.body.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some((connection, permit)) = self.held.take() {
            self.client.pool.put(connection);
            drop(permit);
        }
    }
}
