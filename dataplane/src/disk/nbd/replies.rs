//! The transmission phase of NBD as its client sees it, without I/O.
//!
//! In: what was asked, and the server's bytes, as many as [`Replies::wants`] says. Out: where data
//! go, which stretches are zeros, which commands are done. Invariant: a read is done well only if
//! every byte of it came exactly once; a cookie that was not asked, a chunk outside its command,
//! an overlap, a gap, or too many chunks is a violation, never memory.

use std::collections::HashMap;
use std::ops::Range;

use super::error::{NbdError, server_text};
use super::spans::Spans;
use super::wire::{self, u16_at, u32_at, u64_at};

/// Chunks of one command's reply: 4 MiB in sectors, twice.
const CHUNKS_MAX: u32 = 16_384;
/// Extents in one answer to BLOCK_STATUS.
const EXTENTS_MAX: u32 = 64 << 10;
/// Bytes of an error chunk.
const ERROR_BYTES_MAX: u32 = 4096 + 64;

/// What bytes are wanted next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wants {
    /// So many bytes for [`Replies::take`].
    Head(usize),
    /// These bytes of a read, straight into its buffer; then [`Replies::data_came`].
    Data { cookie: u64, at: Range<usize> },
}

/// How a command ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Every byte came.
    Read,
    /// Lengths and flags of the extents from its offset on.
    Extents(Vec<(u32, u32)>),
    /// The server could not.
    Failed(NbdError),
}

/// What a piece of a reply brought.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// These bytes of a read are zeros.
    pub zeros: Option<(u64, Range<usize>)>,
    /// A command is done.
    pub done: Option<(u64, Outcome)>,
}

#[derive(Debug)]
enum Kind {
    Read { offset: u64, len: usize, came: Spans },
    Status { extents: Option<Vec<(u32, u32)>> },
}

#[derive(Debug)]
struct Command {
    kind: Kind,
    failed: Option<NbdError>,
    chunks: u32,
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    cookie: u64,
    kind: u16,
    last: bool,
    len: u32,
}

#[derive(Debug)]
enum State {
    Head,
    /// The last four bytes of a chunk's head are to come.
    ChunkLen {
        head: [u8; wire::REPLY_HEAD_BYTES],
    },
    /// The fixed part of a data chunk.
    DataOffset(Chunk),
    Whole(Chunk),
    Data {
        chunk: Chunk,
        at: Range<usize>,
    },
}

/// The machine of one connection.
#[derive(Debug)]
pub(super) struct Replies {
    structured: bool,
    context: Option<u32>,
    commands: HashMap<u64, Command>,
    state: State,
}

impl Replies {
    pub(super) fn new(structured: bool, context: Option<u32>) -> Replies {
        Replies { structured, context, commands: HashMap::new(), state: State::Head }
    }

    /// A read was asked.
    pub(super) fn read_asked(&mut self, cookie: u64, offset: u64, len: usize) {
        self.asked(cookie, Kind::Read { offset, len, came: Spans::default() });
    }

    /// A block status was asked.
    pub(super) fn status_asked(&mut self, cookie: u64) {
        self.asked(cookie, Kind::Status { extents: None });
    }

    fn asked(&mut self, cookie: u64, kind: Kind) {
        self.commands.insert(cookie, Command { kind, failed: None, chunks: 0 });
    }

    /// Commands without a complete answer.
    pub(super) fn in_flight(&self) -> usize {
        self.commands.len()
    }

    /// What is wanted next.
    pub(super) fn wants(&self) -> Wants {
        match &self.state {
            State::Head => Wants::Head(wire::REPLY_HEAD_BYTES),
            State::ChunkLen { .. } => Wants::Head(wire::CHUNK_HEAD_BYTES - wire::REPLY_HEAD_BYTES),
            State::DataOffset(_) => Wants::Head(8),
            State::Whole(chunk) => Wants::Head(chunk.len as usize),
            State::Data { chunk, at } => Wants::Data { cookie: chunk.cookie, at: at.clone() },
        }
    }

    /// Takes exactly as many bytes as were wanted.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Step, NbdError> {
        match std::mem::replace(&mut self.state, State::Head) {
            State::Head => self.head(bytes),
            State::ChunkLen { head } => self.chunk(&head, u32_at(bytes, 0)),
            State::DataOffset(chunk) => self.data_chunk(chunk, u64_at(bytes, 0)),
            State::Whole(chunk) => self.whole(chunk, bytes),
            state @ State::Data { .. } => {
                self.state = state;
                Err(NbdError::violation("bytes where a buffer was to be filled"))
            }
        }
    }

    /// The bytes that [`Wants::Data`] named are in their buffer.
    pub(super) fn data_came(&mut self) -> Result<Step, NbdError> {
        match std::mem::replace(&mut self.state, State::Head) {
            State::Data { chunk, .. } => self.end_of(chunk),
            _ => Err(NbdError::violation("no data was awaited")),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<Step, NbdError> {
        let cookie = u64_at(bytes, 8);
        match u32_at(bytes, 0) {
            wire::SIMPLE_REPLY_MAGIC => self.simple(cookie, u32_at(bytes, 4)),
            wire::CHUNK_MAGIC if self.structured => {
                let mut head = [0; wire::REPLY_HEAD_BYTES];
                head.copy_from_slice(&bytes[..wire::REPLY_HEAD_BYTES]);
                self.state = State::ChunkLen { head };
                Ok(Step::default())
            }
            other => Err(NbdError::Violation(format!("a reply begins with {other:#010x}"))),
        }
    }

    fn simple(&mut self, cookie: u64, error: u32) -> Result<Step, NbdError> {
        let structured = self.structured;
        let command = self.command(cookie)?;
        if error != 0 {
            let failure = NbdError::Server { code: error, message: String::new() };
            command.failed.get_or_insert(failure);
            return self.done(cookie);
        }
        match &mut command.kind {
            Kind::Read { len, came, .. } if !structured => {
                let at = 0..*len;
                came.insert(at.clone());
                let chunk = Chunk { cookie, kind: wire::CHUNK_OFFSET_DATA, last: true, len: 0 };
                self.state = State::Data { chunk, at };
                Ok(Step::default())
            }
            _ => Err(NbdError::violation("a simple reply where chunks were agreed on")),
        }
    }

    fn chunk(&mut self, head: &[u8], len: u32) -> Result<Step, NbdError> {
        let (flags, kind, cookie) = (u16_at(head, 4), u16_at(head, 6), u64_at(head, 8));
        let chunk = Chunk { cookie, kind, last: flags & wire::CHUNK_DONE != 0, len };
        let context = self.context;
        let command = self.command(cookie)?;
        command.chunks += 1;
        let most = match (&command.kind, kind) {
            _ if command.chunks > CHUNKS_MAX => None,
            (_, wire::CHUNK_NONE) if chunk.last => Some(0..=0),
            (Kind::Read { len, .. }, wire::CHUNK_OFFSET_DATA) => Some(9..=8 + *len as u32),
            (Kind::Read { .. }, wire::CHUNK_OFFSET_HOLE) => Some(12..=12),
            (Kind::Status { extents: None }, wire::CHUNK_BLOCK_STATUS) if context.is_some() => {
                Some(12..=4 + 8 * EXTENTS_MAX)
            }
            (_, kind) if kind & wire::CHUNK_ERROR_BIT != 0 => Some(6..=ERROR_BYTES_MAX),
            _ => None,
        };
        if !most.is_some_and(|most| most.contains(&len)) {
            let what = format!("a chunk of kind {kind} with {len} bytes is out of place");
            return Err(NbdError::Violation(what));
        }
        match kind {
            wire::CHUNK_NONE => return self.end_of(chunk),
            wire::CHUNK_OFFSET_DATA => self.state = State::DataOffset(chunk),
            _ => self.state = State::Whole(chunk),
        }
        Ok(Step::default())
    }

    fn data_chunk(&mut self, chunk: Chunk, offset: u64) -> Result<Step, NbdError> {
        let at = self.place(chunk.cookie, offset, u64::from(chunk.len) - 8)?;
        self.state = State::Data { chunk, at };
        Ok(Step::default())
    }

    /// Where a stretch of the disk is in its read's buffer; it must not have come before.
    fn place(&mut self, cookie: u64, offset: u64, len: u64) -> Result<Range<usize>, NbdError> {
        let command = self.command(cookie)?;
        let Kind::Read { offset: start, len: asked, came } = &mut command.kind else {
            return Err(NbdError::violation("data in answer to a block status"));
        };
        let from = offset.checked_sub(*start);
        let end = from.and_then(|from| from.checked_add(len));
        let (Some(from), Some(end)) = (from, end.filter(|end| *end <= *asked as u64)) else {
            return Err(NbdError::violation("data outside what was asked"));
        };
        let at = from as usize..end as usize;
        if at.is_empty() || !came.insert(at.clone()) {
            return Err(NbdError::violation("bytes of a read came twice"));
        }
        Ok(at)
    }

    fn whole(&mut self, chunk: Chunk, bytes: &[u8]) -> Result<Step, NbdError> {
        match chunk.kind {
            wire::CHUNK_OFFSET_HOLE => {
                let len = u64::from(u32_at(bytes, 8));
                let at = self.place(chunk.cookie, u64_at(bytes, 0), len)?;
                let mut step = self.end_of(chunk)?;
                step.zeros = Some((chunk.cookie, at));
                Ok(step)
            }
            wire::CHUNK_BLOCK_STATUS => {
                self.extents(chunk, bytes)?;
                self.end_of(chunk)
            }
            _ => {
                let text = bytes.get(6..6 + usize::from(u16_at(bytes, 4)));
                let text = text.ok_or_else(|| NbdError::violation("an error's text is cut"))?;
                let (code, message) = (u32_at(bytes, 0), server_text(text));
                let failure = NbdError::Server { code, message };
                self.command(chunk.cookie)?.failed.get_or_insert(failure);
                self.end_of(chunk)
            }
        }
    }

    fn extents(&mut self, chunk: Chunk, bytes: &[u8]) -> Result<(), NbdError> {
        let context = self.context;
        let (_, pairs) = bytes.split_at(4);
        if Some(u32_at(bytes, 0)) != context || pairs.len() % 8 != 0 {
            return Err(NbdError::violation("a block status of another context or length"));
        }
        let list: Vec<(u32, u32)> =
            pairs.chunks_exact(8).map(|pair| (u32_at(pair, 0), u32_at(pair, 4))).collect();
        if list.iter().any(|(len, _)| *len == 0) {
            return Err(NbdError::violation("an extent without bytes"));
        }
        if let Kind::Status { extents } = &mut self.command(chunk.cookie)?.kind {
            *extents = Some(list);
        }
        Ok(())
    }

    fn end_of(&mut self, chunk: Chunk) -> Result<Step, NbdError> {
        if chunk.last { self.done(chunk.cookie) } else { Ok(Step::default()) }
    }

    fn done(&mut self, cookie: u64) -> Result<Step, NbdError> {
        let command = self.commands.remove(&cookie);
        let command = command.ok_or_else(|| NbdError::violation("an answer to nothing"))?;
        let outcome = match (command.failed, command.kind) {
            (Some(failure), _) => Outcome::Failed(failure),
            (None, Kind::Read { len, came, .. }) => {
                if !came.covers(len) {
                    return Err(NbdError::violation("a read ended before all of its bytes came"));
                }
                Outcome::Read
            }
            (None, Kind::Status { extents }) => {
                let none = || NbdError::violation("a block status without extents");
                Outcome::Extents(extents.ok_or_else(none)?)
            }
        };
        Ok(Step { zeros: None, done: Some((cookie, outcome)) })
    }

    fn command(&mut self, cookie: u64) -> Result<&mut Command, NbdError> {
        let none = || NbdError::Violation(format!("an answer to a cookie not asked, {cookie:#x}"));
        self.commands.get_mut(&cookie).ok_or_else(none)
    }
}
