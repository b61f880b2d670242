//! A built-in guest: a thread that writes to a disk until it is dropped.
//!
//! In: a disk, a pace, a seed. Out: writes like any guest's: in order, anywhere, again and again to
//! the same place, zeros, unmapped ranges. Invariant: while its disk is quiesced it writes nothing;
//! each write is whole or not there at all in any snapshot.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Shared;
use super::error::{Result, StorageError};
use super::sparse::SECTOR_BYTES;
use super::state::DiskId;

/// How often a quiesced guest looks whether it may go on.
const QUIESCED_POLL: Duration = Duration::from_millis(2);
/// Where a guest that rewrites the same place does so: the first part of its disk.
const HOT_BYTES: u64 = 64 << 10;

/// Where a guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestPattern {
    /// One write behind the other, from the start again at the end.
    Sequential,
    /// Anywhere.
    Random,
    /// The same few places.
    Rewrite,
    /// All of these, and now and then zeros and unmapped ranges.
    Mixed,
}

/// What a guest does.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// Writes in a second, at most 1,000,000; 0 is as fast as it goes.
    pub writes_per_second: u32,
    /// Longest write in bytes; at least a sector is written.
    pub write_bytes_max: u64,
    /// Where and what it writes.
    pub seed: u64,
    /// Where it writes.
    pub pattern: GuestPattern,
}

/// What a guest has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestReport {
    /// Writes and unmapped ranges.
    pub writes: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A running guest. It stops when this is dropped.
#[derive(Debug)]
pub struct Guest {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<Result<GuestReport>>>,
}

impl Guest {
    pub(super) fn start(shared: &Arc<Shared>, disk: DiskId, spec: GuestSpec) -> Result<Guest> {
        let capacity_bytes = shared.lock().state.disk(disk)?.capacity_bytes;
        let (stop, stopped) = channel();
        let rng = fastrand::Rng::with_seed(spec.seed);
        let shared = Arc::clone(shared);
        let mut writer = GuestWriter {
            shared,
            disk,
            spec,
            rng,
            sectors: capacity_bytes / SECTOR_BYTES,
            next: 0,
        };
        let thread = std::thread::Builder::new()
            .name(format!("guest of {disk}"))
            .spawn(move || writer.run(&stopped))
            .map_err(|e| StorageError::Invalid(format!("no thread for a guest: {e}")))?;
        Ok(Guest { stop: Some(stop), thread: Some(thread) })
    }

    /// Stops the guest and says what it did, or why it had stopped before.
    pub fn stop(mut self) -> Result<GuestReport> {
        self.stop_and_join()
    }

    fn stop_and_join(&mut self) -> Result<GuestReport> {
        self.stop = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(report)) => report,
            Some(Err(_)) => Err(StorageError::Invalid("the guest's thread panicked".into())),
            None => Ok(GuestReport::default()),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Err(e) = self.stop_and_join() {
            tracing::warn!("a guest had stopped writing: {e}");
        }
    }
}

struct GuestWriter {
    shared: Arc<Shared>,
    disk: DiskId,
    spec: GuestSpec,
    rng: fastrand::Rng,
    sectors: u64,
    /// Where the next write in order goes, in sectors.
    next: u64,
}

impl GuestWriter {
    fn run(&mut self, stopped: &Receiver<()>) -> Result<GuestReport> {
        let mut report = GuestReport::default();
        let pause = match self.spec.writes_per_second {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        };
        let mut wait = Duration::ZERO;
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
            wait = match self.write_once()? {
                None => QUIESCED_POLL,
                Some(bytes) => {
                    report.writes += 1;
                    report.bytes += bytes;
                    pause
                }
            };
        }
        Ok(report)
    }

    /// One write, unless the disk is quiesced.
    fn write_once(&mut self) -> Result<Option<u64>> {
        let (start, count) = self.place();
        let (offset, length) = (start * SECTOR_BYTES, count * SECTOR_BYTES);
        let kind = match self.spec.pattern {
            GuestPattern::Mixed => self.rng.u32(..100),
            _ => 100,
        };
        let mut bytes = vec![0; length as usize];
        if kind >= 10 {
            self.rng.fill(&mut bytes);
        }
        let mut world = self.shared.lock();
        if world.quiesced.contains(&self.disk) {
            return Ok(None);
        }
        match kind {
            0..5 => world.guest_discard(self.disk, offset, length)?,
            _ => world.guest_write(self.disk, offset, &bytes)?,
        }
        Ok(Some(length))
    }

    /// Start and length of the next write, in sectors.
    fn place(&mut self) -> (u64, u64) {
        let most = (self.spec.write_bytes_max / SECTOR_BYTES).clamp(1, self.sectors.min(2048));
        let count = self.rng.u64(1..=most);
        let last = self.sectors - count;
        let pattern = match (self.spec.pattern, self.rng.u32(..3)) {
            (GuestPattern::Mixed, 0) => GuestPattern::Sequential,
            (GuestPattern::Mixed, 1) => GuestPattern::Rewrite,
            (GuestPattern::Mixed, _) => GuestPattern::Random,
            (pattern, _) => pattern,
        };
        let start = match pattern {
            GuestPattern::Sequential => {
                let start = if self.next > last { 0 } else { self.next };
                self.next = start + count;
                start
            }
            GuestPattern::Rewrite => self.rng.u64(..=last.min(HOT_BYTES / SECTOR_BYTES)),
            GuestPattern::Random | GuestPattern::Mixed => self.rng.u64(..=last),
        };
        (start, count)
    }
}
