//! One export stream of an HttpNfcLease as a disk: it comes front to back, once.
//!
//! In: an [`NfcSource`] and credentials. Out: a [`RemoteSource`] whose blocks are served in rising
//! order. One thread fetches, one parses; between them stand a few pieces of the body, and the
//! parser holds one grain. Invariant: it goes on only when the block that it is at has been asked
//! for, so memory does not depend on the disk; what never came is zero only because the end of data
//! is told after the stream was found whole. A stream that fails fails the disk, and an attempt can
//! never be resumed by another: its blocks were of a stream that nobody vouched for.

mod stream;

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use bytes::{Buf, Bytes};
use crossbeam_channel::{Sender, unbounded};
use gantry_common::source::NfcSource;
use gantry_http::StatusCode;
use tokio::sync::watch;

use self::stream::{Ask, Server};
use super::credentials::CredentialSource;
use super::https::client::Resource;
use super::https::error::HttpsError;
use super::remote::{ReadRequest, RemoteError, RemoteSource, fingerprint_of_nothing, identity};

/// Pieces of the body between fetcher and parser, each at most the client's read buffer.
const PIECES_MAX: usize = 16;
/// Without a piece for so long the stream is lost: a host that passes over a hole says nothing.
const STALL: Duration = Duration::from_secs(180);
const REMEDY: &str = "see the host's log, and run the backup again from a new lease";

/// An open stream.
#[derive(Debug)]
pub(super) struct NfcDisk {
    label: String,
    identity: String,
    fingerprint: String,
    size_bytes: u64,
    asks: Option<Sender<Ask>>,
    stop: watch::Sender<bool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl NfcDisk {
    /// Begins the stream and reads its header.
    ///
    /// # Errors
    /// What the host said, or that this is another disk than expected.
    pub(super) fn open(
        source: &NfcSource,
        label: String,
        credentials: CredentialSource,
    ) -> Result<NfcDisk, RemoteError> {
        let (pieces, body) = sync_channel(PIECES_MAX);
        let (stop, stopped) = watch::channel(false);
        let wanted = source.clone();
        let fetch = move || fetch(wanted, credentials, pieces, stopped);
        let (asks, asked) = unbounded();
        let (ready, opened) = std::sync::mpsc::channel();
        let size_bytes = source.size_bytes;
        let parse = move || match Server::open(Body { body, piece: Bytes::new() }, size_bytes) {
            Ok(server) => {
                let _ = ready.send(Ok(()));
                server.serve(&asked);
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
            thread.map_err(|error| {
                RemoteError::new(format!("starting a thread failed: {error}"), "free memory")
            })
        };
        let threads =
            vec![spawn("nfc-fetch", Box::new(fetch))?, spawn("nfc-parse", Box::new(parse))?];
        let place = format!("nfc:{}:{}{}", source.host, source.port, source.path_and_query);
        let disk = NfcDisk {
            label,
            identity: identity(place),
            fingerprint: fingerprint_of_nothing("nfc", size_bytes)?,
            size_bytes,
            asks: Some(asks),
            stop,
            threads,
        };
        let gone = |_| RemoteError::new("the stream's thread ended", REMEDY);
        opened.recv().map_err(gone)??;
        Ok(disk)
    }
}

impl RemoteSource for NfcDisk {
    fn label(&self) -> &str {
        &self.label
    }

    fn notes(&self) -> Vec<String> {
        vec!["an export stream: read from front to back, once".into()]
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn sector_bytes(&self) -> u32 {
        512
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, RemoteError> {
        let (reply, answer) = std::sync::mpsc::channel();
        if let Some(asks) = &self.asks {
            let _ = asks.send(Ask::NextData { offset, reply });
        }
        answer.recv().map_err(|_| RemoteError::new("the stream was closed", REMEDY))?
    }

    fn submit(&self, request: ReadRequest) {
        // Of a stream that has ended the request's drop answers.
        if let Some(asks) = &self.asks {
            let _ = asks.send(Ask::Read(request));
        }
    }

    fn changed_since_open(&self) -> Result<Option<String>, RemoteError> {
        Ok(None)
    }
}

impl Drop for NfcDisk {
    fn drop(&mut self) {
        self.asks = None;
        let _ = self.stop.send(true);
        for thread in self.threads.drain(..) {
            // A panic there was printed; all that was asked was answered by its drop.
            let _ = thread.join();
        }
    }
}

type Piece = Result<Bytes, HttpsError>;

/// The fetching thread: the whole body, piece by piece, as fast as it is taken.
fn fetch(
    source: NfcSource,
    credentials: CredentialSource,
    pieces: SyncSender<Piece>,
    mut stopped: watch::Receiver<bool>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let what = format!("starting tokio failed: {error}");
            return drop(pieces.send(Err(HttpsError::Configuration(what))));
        }
    };
    let body = async {
        let NfcSource { host, port, trust, path_and_query, .. } = &source;
        let place = (host.as_str(), *port);
        let resource = Resource::new(place, trust, path_and_query, 1, STALL, credentials)?;
        let mut response = resource.get(None).await?;
        if response.status() != StatusCode::OK {
            return Err(HttpsError::Range("a part of the stream".into()));
        }
        let announced = response.content_length();
        let mut came = 0;
        while let Some(piece) = response.next_chunk().await? {
            came += piece.len() as u64;
            if pieces.send(Ok(piece)).is_err() {
                return Ok(());
            }
        }
        match announced {
            Some(length) if length != came => {
                Err(HttpsError::Range(format!("{came} of {length} bytes of the stream")))
            }
            _ => Ok(()),
        }
    };
    runtime.block_on(async {
        tokio::select! {
            ended = body => {
                if let Err(error) = ended {
                    let _ = pieces.send(Err(error));
                }
            }
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    });
}

/// The body as the parser reads it.
#[derive(Debug)]
struct Body {
    body: Receiver<Piece>,
    piece: Bytes,
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.body.recv() {
                Ok(Ok(piece)) => self.piece = piece,
                Ok(Err(error)) => return Err(io::Error::other(error.to_string())),
                Err(_) => return Ok(0),
            }
        }
        let len = self.piece.len().min(into.len());
        self.piece.copy_to_slice(&mut into[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
