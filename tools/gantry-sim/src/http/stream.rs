//! Bodies that are read from disks while they are sent.
//!
//! In: a blocking reader. Out: a body. The reader runs on a thread for blocking work and is at most
//! a few pieces ahead of the network; when it fails, the connection breaks, so that no client takes
//! half a body for a whole one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::Body;

/// Pieces that may wait for the network.
const PIECES_AHEAD: usize = 2;

/// A body fed by a thread.
struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// A body of the pieces that `next` gives until it gives none.
pub fn body(mut next: impl FnMut() -> io::Result<Option<Bytes>> + Send + 'static) -> Body {
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let piece = match next() {
                Ok(Some(piece)) => Ok(piece),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if sender.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    Pieces(receiver).boxed()
}

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}
