//! A small NBD server in this process: honest, but it cuts its replies into chunks of any size and
//! order and mixes those of several requests; or wrong in one chosen way.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::disk::nbd::wire;

/// How a reply is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    OtherCookie,
    Overlap,
    Missing,
    TooLong,
    Outside,
    BeforeStart,
    UnknownKind,
    Empty,
    HugeHole,
    StatusForRead,
    NothingNotLast,
    EndlessErrors,
    SimpleReply,
    OtherMagic,
    CutErrorText,
    /// The connection ends in the middle of a chunk; nothing is wrong with the next one.
    Cut,
}

pub(super) const VIOLATIONS: [Fault; 15] = [
    Fault::OtherCookie,
    Fault::Overlap,
    Fault::Missing,
    Fault::TooLong,
    Fault::Outside,
    Fault::BeforeStart,
    Fault::UnknownKind,
    Fault::Empty,
    Fault::HugeHole,
    Fault::StatusForRead,
    Fault::NothingNotLast,
    Fault::EndlessErrors,
    Fault::SimpleReply,
    Fault::OtherMagic,
    Fault::CutErrorText,
];

const CONTEXT: u32 = 7;

/// A server of `bytes`; its `faulty_at`-th read is answered wrongly.
pub(super) struct Fake {
    pub bytes: Vec<u8>,
    pub seed: u64,
    pub fault: Option<Fault>,
    pub faulty_at: u32,
    pub reads: AtomicU32,
}

struct Asked {
    command: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

impl Fake {
    pub(super) fn listen(self, socket: &Path) -> Arc<Fake> {
        let listener = UnixListener::bind(socket).unwrap();
        let fake = Arc::new(self);
        let server = Arc::clone(&fake);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (server, Ok(stream)) = (Arc::clone(&server), stream) else { return };
                // An error is the client's hanging up, or a fault that cut the connection.
                std::thread::spawn(move || drop(server.serve(stream, number as u64)));
            }
        });
        fake
    }

    fn serve(&self, mut stream: UnixStream, number: u64) -> io::Result<()> {
        let mut random = fastrand::Rng::with_seed(self.seed ^ number);
        self.shake_hands(&mut stream)?;
        loop {
            let mut asked = vec![request(&mut stream)?];
            stream.set_read_timeout(Some(Duration::from_millis(1)))?;
            while asked.len() < 4 {
                match request(&mut stream) {
                    Ok(more) => asked.push(more),
                    Err(_) => break,
                }
            }
            stream.set_read_timeout(None)?;
            let mut replies: Vec<VecDeque<Vec<u8>>> = Vec::new();
            for asked in asked {
                match asked.command {
                    wire::CMD_DISC => return Ok(()),
                    wire::CMD_BLOCK_STATUS => replies.push([self.status(&asked)].into()),
                    _ => {
                        let count = self.reads.fetch_add(1, Ordering::Relaxed);
                        let fault = self.fault.filter(|_| count == self.faulty_at);
                        let mut chunks = self.chunks(&asked, &mut random);
                        if let Some(fault) = fault {
                            self.spoil(&asked, fault, &mut chunks);
                        }
                        replies.push(chunks.into());
                        if fault == Some(Fault::Cut) {
                            let all: Vec<u8> =
                                replies.pop().into_iter().flatten().flatten().collect();
                            stream.write_all(&all[..all.len() / 2])?;
                            return Ok(());
                        }
                    }
                }
            }
            while !replies.is_empty() {
                let at = random.usize(..replies.len());
                match replies[at].pop_front() {
                    Some(chunk) => stream.write_all(&chunk)?,
                    None => drop(replies.remove(at)),
                }
            }
        }
    }

    fn shake_hands(&self, stream: &mut UnixStream) -> io::Result<()> {
        let mut greeting = wire::MAGIC.to_be_bytes().to_vec();
        greeting.extend(wire::OPTION_MAGIC.to_be_bytes());
        greeting.extend(3u16.to_be_bytes());
        stream.write_all(&greeting)?;
        stream.read_exact(&mut [0; 4])?;
        loop {
            let mut head = [0; 16];
            stream.read_exact(&mut head)?;
            let (option, len) = (wire::u32_at(&head, 8), wire::u32_at(&head, 12));
            stream.read_exact(&mut vec![0; len as usize])?;
            if option == wire::OPT_SET_META_CONTEXT {
                let mut data = CONTEXT.to_be_bytes().to_vec();
                data.extend(wire::CONTEXT.as_bytes());
                stream.write_all(&option_reply(option, wire::REP_META_CONTEXT, &data))?;
            }
            if option == wire::OPT_GO {
                let mut data = wire::INFO_EXPORT.to_be_bytes().to_vec();
                data.extend((self.bytes.len() as u64).to_be_bytes());
                data.extend((wire::EXPORT_HAS_FLAGS | wire::EXPORT_CAN_MULTI_CONN).to_be_bytes());
                stream.write_all(&option_reply(option, wire::REP_INFO, &data))?;
            }
            stream.write_all(&option_reply(option, wire::REP_ACK, &[]))?;
            if option == wire::OPT_GO {
                return Ok(());
            }
        }
    }

    fn status(&self, asked: &Asked) -> Vec<u8> {
        let end = (asked.offset + u64::from(asked.len)).min(self.bytes.len() as u64);
        let bytes = &self.bytes[asked.offset as usize..end as usize];
        let mut data = CONTEXT.to_be_bytes().to_vec();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for piece in bytes.chunks(512) {
            let flags = if piece.iter().all(|byte| *byte == 0) { 3 } else { 0 };
            match runs.last_mut() {
                Some(last) if last.1 == flags => last.0 += piece.len() as u32,
                _ => runs.push((piece.len() as u32, flags)),
            }
        }
        // Only a few at a time, so that there are pages.
        for (len, flags) in runs.into_iter().take(3) {
            data.extend(len.to_be_bytes());
            data.extend(flags.to_be_bytes());
        }
        chunk(asked.cookie, wire::CHUNK_DONE, wire::CHUNK_BLOCK_STATUS, &data)
    }

    /// A read's reply in pieces of any size and order; zeros may be told as holes.
    fn chunks(&self, asked: &Asked, random: &mut fastrand::Rng) -> Vec<Vec<u8>> {
        let mut cuts: Vec<u32> =
            (0..random.usize(0..8)).map(|_| random.u32(1..asked.len.max(2))).collect();
        cuts.extend([0, asked.len]);
        cuts.sort_unstable();
        cuts.dedup();
        cuts.retain(|cut| *cut <= asked.len);
        let mut pieces: Vec<(u32, u32)> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
        random.shuffle(&mut pieces);
        let last_apart = random.bool();
        let count = pieces.len();
        let mut chunks: Vec<Vec<u8>> = Vec::new();
        for (number, (from, to)) in pieces.into_iter().enumerate() {
            let offset = asked.offset + u64::from(from);
            let bytes = &self.bytes[offset as usize..][..(to - from) as usize];
            let flags = if number + 1 == count && !last_apart { wire::CHUNK_DONE } else { 0 };
            let mut data = offset.to_be_bytes().to_vec();
            if bytes.iter().all(|byte| *byte == 0) && random.bool() {
                data.extend((to - from).to_be_bytes());
                chunks.push(chunk(asked.cookie, flags, wire::CHUNK_OFFSET_HOLE, &data));
            } else {
                data.extend(bytes);
                chunks.push(chunk(asked.cookie, flags, wire::CHUNK_OFFSET_DATA, &data));
            }
        }
        if last_apart {
            chunks.push(chunk(asked.cookie, wire::CHUNK_DONE, wire::CHUNK_NONE, &[]));
        }
        chunks
    }

    fn spoil(&self, asked: &Asked, fault: Fault, chunks: &mut Vec<Vec<u8>>) {
        let Asked { cookie, offset, len, .. } = *asked;
        let data = |offset: u64, len: usize| {
            let mut data = offset.to_be_bytes().to_vec();
            data.resize(8 + len, 1);
            chunk(cookie, 0, wire::CHUNK_OFFSET_DATA, &data)
        };
        let error = |text_len: u16| {
            let mut data = 5u32.to_be_bytes().to_vec();
            data.extend(text_len.to_be_bytes());
            chunk(cookie, 0, wire::CHUNK_ERROR_BIT | 1, &data)
        };
        let wrong = match fault {
            Fault::OtherCookie => chunk(cookie ^ 0xffff_0000, 1, wire::CHUNK_NONE, &[]),
            Fault::Overlap => {
                let first = data(offset, 1);
                chunks.insert(0, first.clone());
                first
            }
            Fault::Missing => chunk(cookie, wire::CHUNK_DONE, wire::CHUNK_NONE, &[]),
            Fault::TooLong => data(offset, len as usize + 1),
            Fault::Outside => data(offset + u64::from(len) - 1, 2),
            Fault::BeforeStart => data(offset.wrapping_sub(1), 1),
            Fault::UnknownKind => chunk(cookie, 0, 77, &[0; 12]),
            Fault::Empty => data(offset, 0),
            Fault::HugeHole => {
                let mut hole = offset.to_be_bytes().to_vec();
                hole.extend(u32::MAX.to_be_bytes());
                chunk(cookie, 0, wire::CHUNK_OFFSET_HOLE, &hole)
            }
            Fault::StatusForRead => {
                let status = [0, 0, 0, CONTEXT as u8, 0, 0, 2, 0, 0, 0, 0, 0];
                chunk(cookie, 0, wire::CHUNK_BLOCK_STATUS, &status)
            }
            Fault::NothingNotLast => chunk(cookie, 0, wire::CHUNK_NONE, &[]),
            Fault::EndlessErrors => {
                chunks.splice(0..0, (0..20_000).map(|_| error(0)));
                return;
            }
            Fault::SimpleReply => {
                let mut reply = wire::SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
                reply.extend([0; 4]);
                reply.extend(cookie.to_be_bytes());
                reply
            }
            Fault::OtherMagic => vec![9; 20],
            Fault::CutErrorText => error(100),
            Fault::Cut => return,
        };
        chunks.insert(0, wrong);
    }
}

fn request(stream: &mut UnixStream) -> io::Result<Asked> {
    let mut head = [0; 28];
    // A request comes whole: the client writes it at once.
    stream.read_exact(&mut head)?;
    let command = wire::u16_at(&head, 6);
    let known = [wire::CMD_READ, wire::CMD_DISC, wire::CMD_BLOCK_STATUS];
    assert!(known.contains(&command), "a client that reads sends no command {command}");
    Ok(Asked {
        command,
        cookie: wire::u64_at(&head, 8),
        offset: wire::u64_at(&head, 16),
        len: wire::u32_at(&head, 24),
    })
}

fn chunk(cookie: u64, flags: u16, kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = wire::CHUNK_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A reply to an option.
pub(super) fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = wire::OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}
