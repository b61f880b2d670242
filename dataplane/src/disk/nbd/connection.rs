//! One connection in the transmission phase: jobs in, answers out, many in flight.
//!
//! In: jobs from the source's queue. Out: filled buffers and extents. Data go from the socket
//! straight into the workers' buffers. Invariant: a job that the connection did not answer goes
//! back to the queue, however the connection ends. It sends READ, BLOCK_STATUS and DISC only.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::ready;
use std::time::{Duration, Instant};

use gantry_common::limits;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::sync::Semaphore;

use super::connect::Connected;
use super::error::NbdError;
use super::handshake::Agreed;
use super::replies::{Outcome, Replies, Step, Wants};
use super::wire;
use crate::disk::work::{ExtentPage, Job, Shared, Work};

/// Jobs of one connection at once: what qemu's server works on at once.
const JOBS_MAX: usize = 16;
/// Bytes that one BLOCK_STATUS asks about.
const STATUS_BYTES_MAX: u64 = 1 << 30;
/// Bytes read ahead of what is wanted: heads of replies.
const READ_AHEAD_BYTES: usize = 16 << 10;
/// A cookie is the job's number and, in these lowest bits, which part of it.
const PART_BITS: u32 = 16;

/// A job and its parts that are not answered.
struct Flying {
    job: Job,
    parts: u32,
    failed: Option<NbdError>,
    extents: Vec<(u32, u32)>,
}

/// What is in flight on one connection.
struct Table {
    agreed: Agreed,
    shared: Rc<Shared>,
    replies: Replies,
    jobs: HashMap<u64, Flying>,
    next_job: u64,
    progress: Instant,
}

impl Drop for Table {
    fn drop(&mut self) {
        for (_, flying) in self.jobs.drain() {
            self.shared.again(flying.job);
        }
    }
}

impl Table {
    fn new(agreed: Agreed, shared: &Rc<Shared>) -> Table {
        Table {
            replies: Replies::new(agreed.structured, agreed.context),
            agreed,
            shared: Rc::clone(shared),
            jobs: HashMap::new(),
            next_job: 1,
            progress: Instant::now(),
        }
    }

    /// Takes a job; returns the requests to send for it.
    fn begin(&mut self, job: Job) -> Vec<u8> {
        if self.replies.in_flight() == 0 {
            self.progress = Instant::now();
        }
        let number = self.next_job;
        self.next_job += 1;
        let first = number << PART_BITS;
        let mut requests = Vec::new();
        let mut parts = 0;
        match &job.work {
            Work::Extents { offset, .. } => {
                let len = (self.agreed.size_bytes - offset).min(STATUS_BYTES_MAX) as u32;
                requests.extend(wire::request(wire::CMD_BLOCK_STATUS, first, *offset, len));
                self.replies.status_asked(first);
                parts = 1;
            }
            Work::Read(request) => {
                let (mut offset, end) = (request.offset(), request.offset() + request.len() as u64);
                while offset < end {
                    let len = (end - offset).min(u64::from(self.agreed.read_max)) as u32;
                    let cookie = first | u64::from(parts);
                    requests.extend(wire::request(wire::CMD_READ, cookie, offset, len));
                    self.replies.read_asked(cookie, offset, len as usize);
                    offset += u64::from(len);
                    parts += 1;
                }
            }
        }
        self.jobs.insert(number, Flying { job, parts, failed: None, extents: Vec::new() });
        requests
    }

    /// Bytes of a read's part, in its block's buffer.
    fn bytes_mut(&mut self, cookie: u64, at: Range<usize>) -> Option<&mut [u8]> {
        let part = (cookie & ((1 << PART_BITS) - 1)) as usize * self.agreed.read_max as usize;
        match &mut self.jobs.get_mut(&(cookie >> PART_BITS))?.job.work {
            Work::Read(request) => request.bytes_mut().get_mut(part + at.start..part + at.end),
            Work::Extents { .. } => None,
        }
    }

    /// Applies what a piece of a reply brought; true if a job is over.
    fn apply(&mut self, step: Step) -> Result<bool, NbdError> {
        if let Some((cookie, at)) = step.zeros
            && let Some(bytes) = self.bytes_mut(cookie, at)
        {
            bytes.fill(0);
        }
        let Some((cookie, outcome)) = step.done else { return Ok(false) };
        let number = cookie >> PART_BITS;
        let Some(flying) = self.jobs.get_mut(&number) else { return Ok(false) };
        flying.parts -= 1;
        match outcome {
            Outcome::Read => {}
            Outcome::Extents(list) => flying.extents = list,
            Outcome::Failed(error) if error.is_shutdown() => {
                return Err(NbdError::Lost(io::Error::other(error.to_string())));
            }
            Outcome::Failed(error) => drop(flying.failed.get_or_insert(error)),
        }
        if flying.parts > 0 {
            return Ok(false);
        }
        if let Some(flying) = self.jobs.remove(&number) {
            self.answer(flying);
        }
        Ok(true)
    }

    fn answer(&self, flying: Flying) {
        let Flying { mut job, failed, extents, .. } = flying;
        if let Some(error) = failed {
            job.tries += 1;
            if error.may_pass() && job.tries < limits::SOURCE_READ_TRIES_MAX {
                let (least, _) = limits::SOURCE_BACKOFF_MS;
                let wait = Duration::from_millis(least << job.tries);
                return self.shared.again_after(job, wait);
            }
            return job.fail(error.into());
        }
        self.shared.patience.borrow_mut().success();
        match job.work {
            Work::Read(request) => request.complete(Ok(())),
            Work::Extents { offset, reply } => {
                let page = page(offset, self.agreed.size_bytes, &extents);
                // A planner that has gone does not listen.
                let _ = reply.send(Ok(page));
            }
        }
    }
}

/// What an answer to BLOCK_STATUS means. Only what reads as zeros is left out: a hole need not.
fn page(offset: u64, size_bytes: u64, extents: &[(u32, u32)]) -> ExtentPage {
    let mut data: Vec<(u64, u64)> = Vec::new();
    let mut at = offset;
    for (len, flags) in extents {
        let end = (at + u64::from(*len)).min(size_bytes);
        if flags & wire::STATE_ZERO == 0 && end > at {
            match data.last_mut() {
                Some(last) if last.1 == at => last.1 = end,
                _ => data.push((at, end)),
            }
        }
        at = end;
    }
    ExtentPage { data, start: offset, end: at }
}

/// Works on jobs until the source is dropped (`Ok`) or the connection is of no use any more.
pub(super) async fn serve(connected: Connected, shared: &Rc<Shared>) -> Result<(), NbdError> {
    let Connected { stream, agreed } = connected;
    let table = RefCell::new(Table::new(agreed, shared));
    let slots = Semaphore::new(JOBS_MAX);
    let (reader, writer) = tokio::io::split(stream);
    let reader = BufReader::with_capacity(READ_AHEAD_BYTES, reader);
    tokio::select! {
        written = write(writer, &table, &slots, shared) => written,
        read = read(reader, &table, &slots) => read,
        stalled = watch(&table) => Err(stalled),
    }
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    table: &RefCell<Table>,
    slots: &Semaphore,
    shared: &Rc<Shared>,
) -> Result<(), NbdError> {
    loop {
        if let Ok(slot) = slots.acquire().await {
            slot.forget();
        }
        let job = tokio::select! {
            job = shared.next_job() => job,
            () = shared.stopped() => None,
        };
        let Some(job) = job else {
            let end = wire::request(wire::CMD_DISC, 0, 0, 0);
            // The server may have gone already; nobody waits for it.
            let _ = writer.write_all(&end).await;
            let _ = writer.shutdown().await;
            return Ok(());
        };
        let requests = table.borrow_mut().begin(job);
        writer.write_all(&requests).await.map_err(NbdError::Lost)?;
        writer.flush().await.map_err(NbdError::Lost)?;
    }
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    table: &RefCell<Table>,
    slots: &Semaphore,
) -> Result<(), NbdError> {
    let mut head = Vec::new();
    loop {
        let wants = table.borrow().replies.wants();
        let step = match wants {
            Wants::Head(len) => {
                head.resize(len, 0);
                reader.read_exact(&mut head).await.map_err(NbdError::Lost)?;
                let mut table = table.borrow_mut();
                table.progress = Instant::now();
                table.replies.take(&head)?
            }
            Wants::Data { cookie, at } => {
                fill(&mut reader, table, cookie, at).await?;
                table.borrow_mut().replies.data_came()?
            }
        };
        if table.borrow_mut().apply(step)? {
            slots.add_permits(1);
        }
    }
}

/// Reads straight into a block's buffer.
async fn fill(
    reader: &mut (impl AsyncRead + Unpin),
    table: &RefCell<Table>,
    cookie: u64,
    mut at: Range<usize>,
) -> Result<(), NbdError> {
    while !at.is_empty() {
        let got = poll_fn(|context| {
            let mut table = table.borrow_mut();
            // The buffer is borrowed for this poll only: if the connection is dropped, the block
            // is still in the table and goes back to the queue.
            let Some(bytes) = table.bytes_mut(cookie, at.clone()) else {
                return std::task::Poll::Ready(Err(io::ErrorKind::NotFound.into()));
            };
            let mut buf = ReadBuf::new(bytes);
            ready!(Pin::new(&mut *reader).poll_read(context, &mut buf))?;
            let got = buf.filled().len();
            table.progress = Instant::now();
            std::task::Poll::Ready(Ok(got))
        });
        match got.await.map_err(NbdError::Lost)? {
            0 => return Err(NbdError::Lost(io::ErrorKind::UnexpectedEof.into())),
            got => at.start += got,
        }
    }
    Ok(())
}

/// Ends when answers are awaited and not a byte comes.
async fn watch(table: &RefCell<Table>) -> NbdError {
    let limit = Duration::from_millis(limits::SOURCE_STALL_MS_MAX);
    loop {
        tokio::time::sleep(limit / 16).await;
        let table = table.borrow();
        if table.replies.in_flight() > 0 && table.progress.elapsed() > limit {
            return NbdError::Stalled(limit.as_secs());
        }
    }
}
