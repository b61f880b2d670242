//! Restore, stage 3 of 3 for stdout: decoded blocks in the disk's order, zeros written out.
//!
//! In: [`Job`]s in any order, no further apart than the window. Out: one stream of bytes and one
//! [`Done`] a job, in order. Invariant: never holds more than the window's buffers. Must not: seek,
//! or write a block before all earlier ones.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use gantry_common::extents::Run;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::IdKey;
use gantry_common::units::BlockSize;
use gantry_uring::buffer::{BufferPool, PooledBuf};
use tokio::sync::mpsc::UnboundedSender;

use super::decode::{BlockDecoder, bad_block};
use super::report::{Stage, Stats};
use super::workers::{Done, Job, Post};

/// Bytes of zeros written at once.
const ZERO_BYTES: usize = 256 << 10;

/// What all threads of a restore to a stream share.
#[derive(Debug, Clone)]
pub(super) struct StreamPlan {
    /// The disk's block size.
    pub(super) block_size: BlockSize,
    /// Bytes of the disk.
    pub(super) size_bytes: u64,
    /// The repository's key.
    pub(super) id_key: IdKey,
    /// Names VM, point and disk in messages.
    pub(super) label: std::sync::Arc<str>,
    /// One buffer a block of the window.
    pub(super) pool: BufferPool,
}

/// A piece of the stream, ready to be written.
pub(super) struct Piece {
    run: Run,
    /// Nothing: zeros.
    bytes: Option<(PooledBuf, usize)>,
}

/// A decoder's whole life.
pub(super) fn decode_blocks(plan: StreamPlan, post: Post, pieces: Sender<Piece>) -> Stats {
    let mut stats = Stats::default();
    let result = BlockDecoder::new(plan.id_key)
        .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))
        .and_then(|mut decoder| pass_on(&plan, &post, &pieces, &mut decoder, &mut stats));
    if let Err(failure) = result {
        post.report(Done::Failed(failure));
        post.jobs.iter().for_each(drop);
    }
    stats
}

fn pass_on(
    plan: &StreamPlan,
    post: &Post,
    pieces: &Sender<Piece>,
    decoder: &mut BlockDecoder,
    stats: &mut Stats,
) -> Result<(), Failure> {
    loop {
        let begun = Instant::now();
        let Ok(job) = post.jobs.recv() else { return Ok(()) };
        stats.waited_for_blocks += begun.elapsed();
        let piece = match job {
            Job::Zero(run) => Piece { run, bytes: None },
            Job::Block { block, head, payload } => {
                let mut buf = take(&plan.pool, stats);
                let len = plan.block_size.block_len(block, plan.size_bytes);
                decoder
                    .decode(&head, payload.stored(), &mut buf, len, stats)
                    .map_err(|error| bad_block(block, &plan.label, error))?;
                let run = Run { first: block, count: 1 };
                Piece { run, bytes: Some((buf, len as usize)) }
            }
        };
        if pieces.send(piece).is_err() {
            // The writer ends only after a failure, which it has reported.
            post.jobs.iter().for_each(drop);
            return Ok(());
        }
    }
}

/// There are as many buffers as blocks in the window, so this waits for a moment at most.
fn take(pool: &BufferPool, stats: &mut Stats) -> PooledBuf {
    let begun = Instant::now();
    loop {
        if let Some(buf) = pool.try_take() {
            stats.waited_for_target += begun.elapsed();
            return buf;
        }
        std::thread::yield_now();
    }
}

/// The writer's whole life: pieces in any order, `output` in order.
pub(super) fn write_in_order(
    plan: StreamPlan,
    pieces: Receiver<Piece>,
    done: UnboundedSender<Done>,
    mut output: Box<dyn Write + Send>,
) -> Stats {
    let mut stats = Stats::default();
    let mut early: BTreeMap<u64, Piece> = BTreeMap::new();
    let mut next = 0;
    let blocks = plan.block_size.block_count(plan.size_bytes);
    for piece in pieces {
        early.insert(piece.run.first, piece);
        while let Some(piece) = early.remove(&next) {
            let begun = Instant::now();
            let run = piece.run;
            next += run.count;
            let written = write_piece(&plan, piece, &mut output).and_then(|bytes| {
                if next == blocks { output.flush().map(|()| bytes) } else { Ok(bytes) }
            });
            match written {
                Ok(written_bytes) => {
                    stats.record(Stage::Write, written_bytes, begun.elapsed());
                    stats.waited_for_target += begun.elapsed();
                    let _ = done.send(Done::Run { run, written_bytes });
                }
                Err(error) => {
                    let _ = done.send(Done::Failed(stream_failure(run.first, &error)));
                    return stats;
                }
            }
        }
    }
    stats
}

fn stream_failure(block: u64, error: &io::Error) -> Failure {
    let why = match error.kind() {
        io::ErrorKind::BrokenPipe => "the program that reads it has ended".to_owned(),
        _ => error.to_string(),
    };
    Failure::new(FailureKind::Source, format!("cannot write block {block} to stdout: {why}"))
}

fn write_piece(
    plan: &StreamPlan,
    piece: Piece,
    output: &mut Box<dyn Write + Send>,
) -> io::Result<u64> {
    if let Some((buf, len)) = piece.bytes {
        output.write_all(&buf[..len])?;
        return Ok(len as u64);
    }
    let block = u64::from(plan.block_size.bytes());
    let start = piece.run.first * block;
    let end = (piece.run.first + piece.run.count).saturating_mul(block).min(plan.size_bytes);
    let zeros = [0u8; ZERO_BYTES];
    let mut left = end - start;
    while left > 0 {
        let len = left.min(ZERO_BYTES as u64);
        output.write_all(&zeros[..len as usize])?;
        left -= len;
    }
    Ok(end - start)
}
