//! Stage 2 of 7: read units in, blocks in registered buffers out.
//!
//! In: units with a free buffer each. Out: [`ReadDone`], in the order of completion. One reader
//! belongs to one worker and owns its ring. Invariant: a block is reported complete only if every
//! byte of it was read; short reads are continued. It never writes, and allocates nothing per block.
//! Disks with a descriptor are read by the ring; other sources take a request with the buffer and
//! send it back on a channel that wakes the ring.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::limits;
use gantry_common::wire::TaskNumber;
use gantry_uring::buffer::{BufferPool, PooledBuf};
use gantry_uring::files::{FileSlot, Registration};
use gantry_uring::ring::{Ring, RingConfig};
use gantry_uring::wake::Waker;

use crate::disk::remote::{ReadRequest, RemoteDone, RemoteSource, ReturnPath};
use crate::unit::Unit;

/// A block that was read, or was not.
pub struct ReadDone {
    /// What was read.
    pub unit: Unit,
    /// The bytes, in `..len`.
    pub buf: PooledBuf,
    /// Bytes of the block.
    pub len: usize,
    /// From submission to completion.
    pub took: Duration,
    /// The failure, naming disk, block and bytes.
    pub result: Result<(), Failure>,
}

struct Reading {
    unit: Unit,
    len: usize,
    got: usize,
    from: usize,
    started: Instant,
}

/// The reader of one worker.
pub struct Reader {
    ring: Ring,
    waker: Waker,
    reading: Vec<Option<Reading>>,
    vacant: Vec<usize>,
    files: HashMap<(TaskNumber, u32), FileSlot>,
    remote: crossbeam_channel::Receiver<RemoteDone>,
    back: ReturnPath,
    done: VecDeque<ReadDone>,
    notes: Vec<String>,
}

impl Reader {
    /// A reader for `depth` reads in flight into buffers of `pool`; made on the thread that uses
    /// it. Returns a note when the kernel would not register the buffers.
    ///
    /// # Errors
    /// `Internal`, saying what keeps io_uring from working.
    pub fn new(pool: &BufferPool, depth: usize) -> Result<(Reader, Option<String>), Failure> {
        let internal = |text: String| Failure::new(FailureKind::Internal, text);
        // One entry more for the waker.
        let mut ring = Ring::new(&RingConfig::new(depth as u32 + 1))
            .map_err(|error| internal(error.to_string()))?;
        let mut notes = Vec::new();
        if let Registration::Unregistered(why) = ring.register_pool(pool) {
            notes.push(format!("read buffers are not registered: {why}"));
        }
        match ring.register_files(limits::SOURCE_FILES_MAX as u32) {
            Ok(Registration::Unregistered(why)) => {
                notes.push(format!("files are not registered: {why}"));
            }
            Ok(Registration::Registered) => {}
            Err(error) => return Err(internal(format!("file table of a ring: {error}"))),
        }
        let waker = ring.waker().map_err(|error| internal(format!("eventfd: {error}")))?;
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        // Bounded by the depth: a request that is out holds one of its slots.
        let (done, remote) = crossbeam_channel::unbounded();
        let reader = Reader {
            ring,
            back: ReturnPath { done, waker: waker.clone() },
            remote,
            waker,
            reading: (0..depth).map(|_| None).collect(),
            vacant: (0..depth).collect(),
            files: HashMap::new(),
            done: VecDeque::new(),
            notes: Vec::new(),
        };
        Ok((reader, note))
    }

    /// Wakes [`Reader::wait`] from another thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Reads in flight.
    pub fn in_flight(&self) -> usize {
        self.reading.len() - self.vacant.len()
    }

    /// Tasks with reads in flight.
    pub fn tasks_in_flight(&self) -> impl Iterator<Item = TaskNumber> + '_ {
        self.reading.iter().flatten().map(|reading| reading.unit.disk.task)
    }

    /// Notes for the session log (fallbacks), each once.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Starts reading a unit. The caller keeps within the depth.
    pub fn start(&mut self, unit: Unit, buf: PooledBuf) {
        let len = unit.disk.block_size.block_len(unit.block, unit.disk.size_bytes) as usize;
        let reading = Reading { unit, len, got: 0, from: 0, started: Instant::now() };
        let slot = self.vacant.pop().expect("the worker keeps within the depth");
        let disk = std::sync::Arc::clone(&reading.unit.disk);
        match disk.source.remote() {
            Some(source) => self.request(source, slot, reading, buf),
            None => self.submit(slot, reading, buf),
        }
    }

    fn request(&mut self, from: &dyn RemoteSource, slot: usize, reading: Reading, buf: PooledBuf) {
        let disk = &reading.unit.disk;
        let offset = reading.unit.block * u64::from(disk.block_size.bytes());
        let request = ReadRequest::new(offset, reading.len, buf, slot, self.back.clone());
        self.reading[slot] = Some(reading);
        from.submit(request);
    }

    fn submit(&mut self, slot: usize, reading: Reading, buf: PooledBuf) {
        let disk = &reading.unit.disk;
        let align = disk.source.offset_align();
        let offset = reading.unit.block * u64::from(disk.block_size.bytes()) + reading.from as u64;
        let place = disk.source.place(offset);
        // A short tail is read up to the alignment: the kernel stops at the end of the file.
        let end = reading.len.next_multiple_of(align).min(buf.len());
        let end = end.min(reading.from.saturating_add(place.len as usize));
        let file = match self.file_of(&reading, place.file) {
            Ok(file) => file,
            Err(failure) => return self.finish(slot, reading, buf, Err(failure)),
        };
        match self.ring.read_range(file, place.offset, reading.from..end, buf, slot as u64) {
            Ok(()) => self.reading[slot] = Some(reading),
            Err(refused) => {
                let failure = broken(&reading, &refused.to_string());
                let buf = refused.buf.expect("a read gives its buffer back");
                self.finish(slot, reading, buf, Err(failure));
            }
        }
    }

    fn file_of(&mut self, reading: &Reading, number: u32) -> Result<FileSlot, Failure> {
        let disk = &reading.unit.disk;
        if let Some(file) = self.files.get(&(disk.task, number)) {
            return Ok(*file);
        }
        let file = FileSlot(self.files.len() as u32);
        if self.files.len() >= limits::SOURCE_FILES_MAX {
            let text = format!("its session reads more than {} files", limits::SOURCE_FILES_MAX);
            return Err(broken(reading, &text));
        }
        let open = disk.source.descriptor(number).map_err(Failure::from)?;
        let open = open.ok_or_else(|| broken(reading, "it has no such file"))?;
        let set = self.ring.set_file(file, open);
        set.map_err(|error| broken(reading, &error.to_string()))?;
        self.files.insert((disk.task, number), file);
        Ok(file)
    }

    fn finish(
        &mut self,
        slot: usize,
        reading: Reading,
        buf: PooledBuf,
        result: Result<(), Failure>,
    ) {
        self.vacant.push(slot);
        let Reading { unit, len, started, .. } = reading;
        self.done.push_back(ReadDone { unit, buf, len, took: started.elapsed(), result });
    }

    /// Sleeps until a read is done, [`Reader::waker`] is used, or the time is over.
    ///
    /// # Errors
    /// `Internal`: the ring itself failed.
    pub fn wait(&mut self, timeout: Duration) -> Result<(), Failure> {
        let waited = self.ring.wait(1, Some(timeout));
        waited.map(|_| ()).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("waiting for io_uring failed: {error}"))
        })
    }

    /// Gives queued reads to the kernel without waiting.
    pub fn flush(&mut self) {
        if let Err(error) = self.ring.submit() {
            self.notes.push(format!("submitting reads failed, will try again: {error}"));
        }
    }

    /// Blocks that are done and not taken.
    pub fn ready(&mut self) -> usize {
        self.reap();
        self.done.len()
    }

    /// The next block that is done, if any.
    pub fn next_done(&mut self) -> Option<ReadDone> {
        if self.done.is_empty() {
            self.reap();
        }
        self.done.pop_front()
    }

    /// Takes in what has come since.
    fn reap(&mut self) {
        let completed: Vec<_> = self.ring.completions().collect();
        for completion in completed {
            let slot = completion.user as usize;
            let reading = self.reading[slot].take().expect("one completion for each read");
            let buf = completion.buf.expect("a read keeps its buffer");
            self.completed(slot, reading, buf, completion.result);
        }
        while let Ok(RemoteDone { slot, buf, result }) = self.remote.try_recv() {
            let reading = self.reading[slot].take().expect("one answer for each request");
            let result = result.map_err(|error| broken(&reading, &error.to_string()));
            self.finish(slot, reading, buf, result);
        }
    }

    fn completed(
        &mut self,
        slot: usize,
        mut reading: Reading,
        buf: PooledBuf,
        result: std::io::Result<u32>,
    ) {
        let got = match result {
            Ok(got) => got as usize,
            Err(error) => {
                let failure = broken(&reading, &error.to_string());
                return self.finish(slot, reading, buf, Err(failure));
            }
        };
        reading.got = reading.from + got;
        if reading.got >= reading.len {
            return self.finish(slot, reading, buf, Ok(()));
        }
        let align = reading.unit.disk.source.offset_align();
        let from = reading.got / align * align;
        if got == 0 || from == reading.from {
            let text =
                format!("only {} of {} bytes are there: did it shrink?", reading.got, reading.len);
            let failure = broken(&reading, &text);
            return self.finish(slot, reading, buf, Err(failure));
        }
        reading.from = from;
        self.submit(slot, reading, buf);
    }
}

fn broken(reading: &Reading, what: &str) -> Failure {
    let disk = &reading.unit.disk;
    let first = reading.unit.block * u64::from(disk.block_size.bytes());
    Failure::new(
        FailureKind::Source,
        format!(
            "disk {}, block {} (bytes {first}..{}): reading failed: {what}. Nothing of this session \
             was committed; check the source and run the backup again: it resumes",
            disk.label,
            reading.unit.block,
            first + reading.len as u64,
        ),
    )
}
