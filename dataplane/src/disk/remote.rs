//! Sources that no descriptor leads to: what they offer the planner and the readers.
//!
//! In: [`ReadRequest`]s, each with the worker's own buffer. Out: the same buffers, filled, on the
//! channel of the reader that asked. Invariant: every request comes back to its reader exactly
//! once, whatever becomes of the source, and comes back as read only if every byte was written.
//! A source has as many requests as its readers have buffers, so memory is bounded by the pools.

use std::fmt;

use crossbeam_channel::Sender;
use gantry_common::limits;
use gantry_uring::buffer::PooledBuf;
use gantry_uring::wake::Waker;

/// Why a remote source could not be read, once it has given up trying.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {remedy}")]
pub struct RemoteError {
    /// What happened.
    pub what: String,
    /// What a person can do.
    pub remedy: &'static str,
}

impl RemoteError {
    /// An error with its remedy.
    pub fn new(what: impl Into<String>, remedy: &'static str) -> RemoteError {
        RemoteError { what: what.into(), remedy }
    }
}

/// A disk that is read by requests. Its drop cancels what is in flight.
pub trait RemoteSource: Send + Sync + fmt::Debug {
    /// Name for messages; shows no secret.
    fn label(&self) -> &str;
    /// What the session log should say of how it is read.
    fn notes(&self) -> Vec<String>;
    /// Bytes of the disk at opening.
    fn size_bytes(&self) -> u64;
    /// Bytes of a logical sector.
    fn sector_bytes(&self) -> u32;
    /// See [`super::Disk::identity`].
    fn identity(&self) -> &str;
    /// See [`super::Disk::fingerprint`].
    fn fingerprint(&self) -> &str;
    /// See [`super::Disk::is_stream`].
    fn is_stream(&self) -> bool {
        false
    }
    /// See [`super::Disk::is_unreadable`].
    fn is_unreadable(&self) -> bool {
        false
    }
    /// See [`super::Disk::next_data`]. Called by one thread, in ascending order; may wait.
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, RemoteError>;
    /// Takes a request, without ever waiting.
    fn submit(&self, request: ReadRequest);
    /// See [`super::Disk::changed_since_open`].
    fn changed_since_open(&self) -> Result<Option<String>, RemoteError>;
}

/// A request that is over.
#[derive(Debug)]
pub struct RemoteDone {
    /// The reader's own number for it.
    pub slot: usize,
    /// Its buffer.
    pub buf: PooledBuf,
    /// Whether every byte was read.
    pub result: Result<(), RemoteError>,
}

/// Where a reader's requests come back to.
#[derive(Debug, Clone)]
pub struct ReturnPath {
    /// The reader's channel.
    pub done: Sender<RemoteDone>,
    /// Of the ring in which it waits.
    pub waker: Waker,
}

/// Bytes to be read. Dropping it gives the buffer back as not read.
#[derive(Debug)]
pub struct ReadRequest {
    offset: u64,
    len: usize,
    slot: usize,
    buf: Option<PooledBuf>,
    back: ReturnPath,
}

impl ReadRequest {
    /// `len` bytes at `offset` are to be read into the start of `buf`.
    ///
    /// # Panics
    /// If the buffer is shorter than that.
    pub fn new(
        offset: u64,
        len: usize,
        buf: PooledBuf,
        slot: usize,
        back: ReturnPath,
    ) -> ReadRequest {
        assert!(len <= buf.len(), "{len} bytes into a buffer of {}", buf.len());
        ReadRequest { offset, len, slot, buf: Some(buf), back }
    }

    /// First byte of the disk that is wanted.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes wanted.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is wanted; never so in practice.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where they go. Holds what the buffer's last user left.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        self.buf.as_mut().map_or(&mut [], |buf| &mut buf[..len])
    }

    /// Gives the buffer back to its reader. `Ok` means that every byte was written.
    pub fn complete(mut self, result: Result<(), RemoteError>) {
        self.give_back(result);
    }

    fn give_back(&mut self, result: Result<(), RemoteError>) {
        if let Some(buf) = self.buf.take() {
            // A reader that is gone has dropped its end: the buffer returns to its pool.
            let _ = self.back.done.send(RemoteDone { slot: self.slot, buf, result });
            self.back.waker.wake();
        }
    }
}

impl Drop for ReadRequest {
    fn drop(&mut self) {
        self.give_back(Err(RemoteError::new("the source was closed", "run the backup again")));
    }
}

/// An identity within the bound on names; of a longer one its BLAKE3 instead.
pub(super) fn identity(text: String) -> String {
    if text.len() <= limits::NAME_BYTES_MAX && !text.contains(char::is_control) {
        return text;
    }
    let kind = text.split(':').next().unwrap_or("source").to_owned();
    format!("{kind}-blake3:{}", blake3::hash(text.as_bytes()))
}

/// A fingerprint that is never the same twice, for a source that does not tell of writes.
pub(super) fn fingerprint_of_nothing(kind: &str, size_bytes: u64) -> Result<String, RemoteError> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).map_err(|error| {
        RemoteError::new(format!("no random numbers: {error}"), "check this machine")
    })?;
    Ok(format!("{kind} size={size_bytes} opening={:032x}", u128::from_le_bytes(random)))
}
