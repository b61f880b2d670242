//! Serves a stream's grains to a planner and its readers, who ask in rising order.
//!
//! In: what is asked, on any thread. Out: answers. One thread: a question about data is answered
//! with the next grain; the stream then waits there until the blocks that hold the grain have been
//! asked for, fills them, and goes on. Invariant: nothing that was told as data is passed over.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::mpsc;

use crossbeam_channel::Receiver;
use gantry_vmdk::stream::Parser;

use super::REMEDY;
use crate::disk::remote::{ReadRequest, RemoteError};

type Extent = Option<(u64, u64)>;

/// What is asked of a stream.
#[derive(Debug)]
pub(super) enum Ask {
    /// A block.
    Read(ReadRequest),
    /// The first data at or after a byte.
    NextData { offset: u64, reply: mpsc::Sender<Result<Extent, RemoteError>> },
}

/// A grain that the parser has and nobody has taken yet.
#[derive(Debug)]
struct Held {
    start: u64,
    bytes: Vec<u8>,
}

impl Held {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// A stream that is being served.
pub(super) struct Server<R> {
    parser: Parser<R>,
    grain: Held,
    at_end: bool,
    /// Blocks that were asked for and are not complete, by their first byte.
    reads: BTreeMap<u64, ReadRequest>,
    /// Data was told up to here.
    told: u64,
    /// Blocks up to here are complete.
    served: u64,
    question: Option<(u64, mpsc::Sender<Result<Extent, RemoteError>>)>,
}

impl<R: Read> Server<R> {
    /// Reads the stream's header.
    ///
    /// # Errors
    /// It is no such stream, or that of another disk.
    pub(super) fn open(body: R, size_bytes: u64) -> Result<Server<R>, RemoteError> {
        let parser = Parser::new(body).map_err(|error| wrong(error.to_string()))?;
        let found = parser.info().size_bytes;
        if found != size_bytes {
            let what = format!("the stream is of a disk of {found} bytes, expected {size_bytes}");
            return Err(wrong(what));
        }
        let mut server = Server {
            parser,
            grain: Held { start: 0, bytes: Vec::new() },
            at_end: false,
            reads: BTreeMap::new(),
            told: 0,
            served: 0,
            question: None,
        };
        server.advance()?;
        Ok(server)
    }

    /// Serves until nobody asks any more.
    pub(super) fn serve(mut self, asks: &Receiver<Ask>) {
        let mut failed: Option<RemoteError> = None;
        while let Ok(ask) = asks.recv() {
            if failed.is_none() {
                failed = self.take(ask).and_then(|()| self.work()).err();
            } else if let Some(error) = &failed {
                refuse(ask, error);
            }
            if let Some(error) = &failed {
                while let Some((_, request)) = self.reads.pop_first() {
                    request.complete(Err(error.clone()));
                }
                if let Some((_, reply)) = self.question.take() {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    fn take(&mut self, ask: Ask) -> Result<(), RemoteError> {
        match ask {
            Ask::NextData { offset, reply } => self.question = Some((offset, reply)),
            Ask::Read(request) if request.offset() < self.served => {
                let what = format!("byte {} of the stream has passed already", request.offset());
                let error = wrong(what);
                request.complete(Err(error.clone()));
                return Err(error);
            }
            Ask::Read(mut request) => {
                // What does not come is zero.
                request.bytes_mut().fill(0);
                self.reads.insert(request.offset(), request);
            }
        }
        Ok(())
    }

    /// Goes on as far as what was asked allows.
    fn work(&mut self) -> Result<(), RemoteError> {
        loop {
            self.complete_passed();
            if !self.at_end && self.fill() {
                self.advance()?;
                continue;
            }
            if let Some((offset, reply)) = self.question.take() {
                if !self.at_end && self.grain.end() <= offset {
                    if self.told <= self.grain.start {
                        // Never told as data: nobody will ask for it.
                        self.advance()?;
                        self.question = Some((offset, reply));
                        continue;
                    }
                    // Told, and the block that holds it has yet to be asked for.
                    self.question = Some((offset, reply));
                    return Ok(());
                }
                let found =
                    (!self.at_end).then(|| (self.grain.start.max(offset), self.grain.end()));
                self.told = self.told.max(found.map_or(self.told, |(_, end)| end));
                // A planner that has gone does not listen.
                let _ = reply.send(Ok(found));
            }
            return Ok(());
        }
    }

    /// Gives the held grain to the blocks that it belongs to; true if all of it was taken.
    fn fill(&mut self) -> bool {
        let (start, end) = (self.grain.start, self.grain.end());
        let mut taken = start;
        for (offset, request) in &mut self.reads {
            let block_end = offset + request.len() as u64;
            if *offset <= taken && taken < block_end {
                let to = end.min(block_end);
                let from = (taken - start) as usize..(to - start) as usize;
                let at = (taken - offset) as usize..(to - offset) as usize;
                request.bytes_mut()[at].copy_from_slice(&self.grain.bytes[from]);
                taken = to;
            }
        }
        if taken > start && taken < end {
            // The rest belongs to a block that was not asked for yet.
            self.grain.bytes.drain(..(taken - start) as usize);
            self.grain.start = taken;
        }
        taken >= end
    }

    /// Completes the blocks that the stream has left behind.
    fn complete_passed(&mut self) {
        let position = if self.at_end { u64::MAX } else { self.grain.start };
        while let Some(first) = self.reads.first_entry() {
            let end = first.key() + first.get().len() as u64;
            if end > position {
                return;
            }
            self.served = end;
            first.remove().complete(Ok(()));
        }
    }

    fn advance(&mut self) -> Result<(), RemoteError> {
        match self.parser.next_grain() {
            Ok(Some(grain)) => {
                self.grain.start = grain.offset;
                self.grain.bytes.clear();
                self.grain.bytes.extend_from_slice(grain.data);
            }
            Ok(None) => self.at_end = true,
            Err(error) => return Err(wrong(error.to_string())),
        }
        Ok(())
    }
}

fn wrong(what: String) -> RemoteError {
    RemoteError::new(what, REMEDY)
}

fn refuse(ask: Ask, error: &RemoteError) {
    match ask {
        Ask::Read(request) => request.complete(Err(error.clone())),
        Ask::NextData { reply, .. } => drop(reply.send(Err(error.clone()))),
    }
}
