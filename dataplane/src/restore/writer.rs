//! Restore, stage 3 of 3 for files and devices: decoded blocks to their places, in any order.
//!
//! In: [`Job`]s. Out: the destination's content and one [`Done`] a job. One thread, one ring, its
//! own aligned buffers. Invariant: a block is reported only when all its bytes are written; short
//! writes go on. Must not: make durable (the keeper does), write what was not verified.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::TryRecvError;
use gantry_common::extents::Run;
use gantry_common::failure::Failure;
use gantry_common::ids::IdKey;
use gantry_common::units::BlockSize;
use gantry_common::wire::BlockHead;
use gantry_uring::buffer::{BufferPool, PooledBuf};
use gantry_uring::files::FileSlot;
use gantry_uring::ring::{Completion, Ring, RingConfig};

use super::decode::{BlockDecoder, bad_block};
use super::report::{Stage, Stats};
use super::target::{Target, source_failure};
use super::workers::{Done, Job, Post};
use super::zero::zero_range;
use crate::payload::Payload;

const DIRECT: FileSlot = FileSlot(0);
const BUFFERED: FileSlot = FileSlot(1);
/// Granularity in which a block's zero ends are left as holes.
const HOLE_BYTES: usize = 4096;
/// Longest sleep, so that a lost wake could never stop a restore.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// What all writers of a restore share.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Destination.
    pub(super) target: Arc<Target>,
    /// The disk's block size.
    pub(super) block_size: BlockSize,
    /// The repository's key.
    pub(super) id_key: IdKey,
    /// Names VM, point and disk in messages.
    pub(super) label: Arc<str>,
    /// Blocks that one writer has in its hands at most.
    pub(super) depth: usize,
}

struct Flight {
    block: u64,
    offset: u64,
    range: Range<usize>,
    written_bytes: u64,
    begun: Instant,
}

struct Writer {
    plan: Plan,
    post: Post,
    ring: Ring,
    pool: BufferPool,
    decoder: BlockDecoder,
    /// By the buffer's slot.
    flights: Vec<Option<Flight>>,
    stats: Stats,
    failed: bool,
    closed: bool,
}

/// A writer's whole life. Reports a failure and then only drains, if it cannot start.
pub(super) fn write_blocks(plan: Plan, post: Post) -> Stats {
    match equip(&plan, &post) {
        Ok((ring, pool, decoder)) => {
            let flights = (0..pool.slots()).map(|_| None).collect();
            let stats = Stats::default();
            let (failed, closed) = (false, false);
            Writer { plan, post, ring, pool, decoder, flights, stats, failed, closed }.run()
        }
        Err(failure) => {
            post.report(Done::Failed(failure));
            post.jobs.iter().for_each(drop);
            Stats::default()
        }
    }
}

/// Ring, buffers and decoder of one writer.
fn equip(plan: &Plan, post: &Post) -> Result<(Ring, BufferPool, BlockDecoder), Failure> {
    let fail = |what: &dyn std::fmt::Display| source_failure(&plan.target.path, what);
    let entries = u32::try_from(plan.depth).unwrap_or(u32::MAX);
    let mut ring = Ring::new(&RingConfig::new(entries)).map_err(|error| fail(&error))?;
    let files = || -> io::Result<BufferPool> {
        let pool = BufferPool::new(plan.depth, plan.block_size.bytes() as usize)?;
        // Registration only saves time; without it all works the same.
        let _ = ring.register_pool(&pool);
        let _ = ring.register_files(2)?;
        let direct = plan.target.direct.as_ref().unwrap_or(&plan.target.buffered);
        ring.set_file(DIRECT, direct.try_clone()?)?;
        ring.set_file(BUFFERED, plan.target.buffered.try_clone()?)?;
        post.doorbell.install(ring.waker()?);
        Ok(pool)
    };
    let pool = { files }().map_err(|error| fail(&error))?;
    let decoder = BlockDecoder::new(plan.id_key).map_err(|error| fail(&error))?;
    Ok((ring, pool, decoder))
}

impl Writer {
    fn run(mut self) -> Stats {
        loop {
            self.take_jobs();
            if self.closed && self.ring.in_flight() == 0 {
                return self.stats;
            }
            self.wait();
            let done: Vec<Completion> = self.ring.completions().collect();
            for completion in done {
                self.complete(completion);
            }
        }
    }

    fn take_jobs(&mut self) {
        while !self.closed {
            let Some(buf) = self.pool.try_take() else { return };
            match self.post.jobs.try_recv() {
                Ok(_) if self.failed => {}
                Ok(Job::Block { block, head, payload }) => self.begin(block, &head, payload, buf),
                Ok(Job::Zero(run)) => self.zero(run),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.closed = true,
            }
        }
    }

    fn wait(&mut self) {
        let begun = Instant::now();
        let full = self.pool.free() == 0;
        if !full {
            self.post.doorbell.fall_asleep();
        }
        let awaited = full || self.closed || self.post.jobs.is_empty();
        let min = usize::from(awaited);
        let waited = self.ring.wait(min, Some(SLEEP_MAX));
        self.post.doorbell.wake_up();
        if full || self.closed {
            self.stats.waited_for_target += begun.elapsed();
        } else {
            self.stats.waited_for_blocks += begun.elapsed();
        }
        if let Err(error) = waited {
            self.fail(source_failure(&self.plan.target.path, format!("io_uring: {error}")));
        }
    }

    fn begin(&mut self, block: u64, head: &BlockHead, payload: Payload, mut buf: PooledBuf) {
        let len = self.plan.block_size.block_len(block, self.plan.target.size_bytes);
        let decoded = self.decoder.decode(head, payload.stored(), &mut buf, len, &mut self.stats);
        drop(payload);
        if let Err(error) = decoded {
            return self.fail(bad_block(block, &self.plan.label, error));
        }
        let range = match self.plan.target.is_fresh {
            true => without_zero_ends(&buf[..len as usize]),
            false => 0..len as usize,
        };
        let offset = block * u64::from(self.plan.block_size.bytes()) + range.start as u64;
        let written_bytes = range.len() as u64;
        let flight = Flight { block, offset, range, written_bytes, begun: Instant::now() };
        match flight.range.is_empty() {
            true => self.post.report(done(&flight)),
            false => self.push(flight, buf),
        }
    }

    fn push(&mut self, flight: Flight, buf: PooledBuf) {
        let align = self.plan.target.align.max(1);
        let is_aligned = |bytes: u64| bytes.is_multiple_of(u64::from(align));
        let aligned = is_aligned(flight.offset)
            && is_aligned(flight.range.len() as u64)
            && is_aligned(flight.range.start as u64);
        let file = if aligned { DIRECT } else { BUFFERED };
        let slot = buf.slot_index();
        let range = flight.range.clone();
        let pushed = self.ring.write_range(file, flight.offset, range, buf, slot as u64);
        match pushed {
            Ok(()) => self.flights[slot] = Some(flight),
            Err(error) => self.fail(source_failure(&self.plan.target.path, error)),
        }
    }

    fn complete(&mut self, completion: Completion) {
        let flight = self.flights.get_mut(completion.user as usize).and_then(Option::take);
        let (Some(mut flight), Some(buf)) = (flight, completion.buf) else { return };
        match completion.result {
            Ok(0) => self.write_failed(&flight, &io::ErrorKind::WriteZero.into()),
            Ok(bytes) if (bytes as usize) < flight.range.len() => {
                flight.range.start += bytes as usize;
                flight.offset += u64::from(bytes);
                self.push(flight, buf);
            }
            Ok(_) => {
                self.stats.record(Stage::Write, flight.written_bytes, flight.begun.elapsed());
                self.post.report(done(&flight));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.push(flight, buf),
            Err(error) => self.write_failed(&flight, &error),
        }
    }

    fn write_failed(&mut self, flight: &Flight, error: &io::Error) {
        let Flight { block, offset, .. } = flight;
        let place = format!("write block {block} at byte {offset}");
        self.fail(self.plan.target.write_failure(&place, error));
    }

    fn zero(&mut self, run: Run) {
        let block = u64::from(self.plan.block_size.bytes());
        let start = run.first * block;
        let end = (run.first + run.count).saturating_mul(block).min(self.plan.target.size_bytes);
        match zero_range(&self.plan.target, start, end) {
            Ok(()) => self.post.report(Done::Run { run, written_bytes: 0 }),
            Err(error) => {
                let place = format!("zero blocks from {} at byte {start}", run.first);
                self.fail(self.plan.target.write_failure(&place, &error));
            }
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.failed = true;
        self.post.report(Done::Failed(failure));
    }
}

fn done(flight: &Flight) -> Done {
    let run = Run { first: flight.block, count: 1 };
    Done::Run { run, written_bytes: flight.written_bytes }
}

/// The part of a block that a file of holes must be given: without zero pages at both ends.
fn without_zero_ends(raw: &[u8]) -> Range<usize> {
    let is_zero = |page: &[u8]| page.iter().all(|&byte| byte == 0);
    let pages = raw.len().div_ceil(HOLE_BYTES);
    let first = raw.chunks(HOLE_BYTES).position(|page| !is_zero(page));
    let last = raw.chunks(HOLE_BYTES).rev().position(|page| !is_zero(page));
    match (first, last) {
        (Some(first), Some(last)) => {
            first * HOLE_BYTES..((pages - last) * HOLE_BYTES).min(raw.len())
        }
        _ => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::without_zero_ends;

    #[test]
    fn zero_ends_are_left_out_page_by_page() {
        assert_eq!(without_zero_ends(&[0; 10_000]), 0..0);
        let mut raw = vec![0u8; 10_000];
        raw[9_999] = 1;
        assert_eq!(without_zero_ends(&raw), 8192..10_000);
        raw[4096] = 1;
        assert_eq!(without_zero_ends(&raw), 4096..10_000);
        raw[9_999] = 0;
        assert_eq!(without_zero_ends(&raw), 4096..8192);
    }
}
