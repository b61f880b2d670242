//! A ring of one thread: reads, writes and syncs that own their buffers until they are done.
//!
//! In: file slots, offsets, [`PooledBuf`]s, the caller's number. Out: [`Completion`]s in the order
//! in which the kernel finished. Invariant: the kernel holds addresses only of buffers that stand
//! in [`Operations`]; the completion queue cannot overflow, since fewer operations exist than it
//! has places. Must not: hide a short transfer, retry an operation, move between threads.
//!
//! ```text
//!           read/write/fdatasync         submit, wait            completions
//!  caller ----------------------> pushed ------------> in kernel -----------> caller
//!     ^            | full: PushError                       ^
//!     +------------+ hands the buffer back       Waker ----+ ends a wait
//! ```

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use io_uring::IoUring;
use io_uring::squeue::Entry;
use rustix::io::Errno;

use crate::buffer::{BufferPool, PooledBuf};
use crate::entry::{self, Direction, Place};
use crate::files::{FileSlot, FileTable, Registration};
use crate::operations::Operations;
use crate::probe::{Features, Mode, SetupError, set_up};
use crate::registered::RegisteredPools;
use crate::wait::WakeState;
use crate::wake::Waker;

pub use crate::operations::Completion;
pub use crate::wait::Waited;

/// Most operations of a ring.
pub const ENTRIES_MAX: u32 = 4096;
/// How long a dropped ring waits, unless told otherwise: a disk may need seconds to give up.
const DROP_WAIT: Duration = Duration::from_secs(10);

/// How a ring is made.
#[derive(Debug, Clone)]
pub struct RingConfig {
    /// Operations in flight at once, 1 to [`ENTRIES_MAX`].
    pub entries: u32,
    /// Modes to try, best first.
    pub modes: Vec<Mode>,
}

impl RingConfig {
    /// A ring of `entries` operations in the best mode there is.
    pub fn new(entries: u32) -> RingConfig {
        RingConfig { entries, modes: Mode::ALL.to_vec() }
    }
}

/// Why an operation was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushRefusal {
    /// All entries are in use: hand out completions first.
    QueueFull,
    /// The slot holds no file.
    NoFile,
    /// The range is outside the buffer, or the offset beyond what files can have.
    Range,
}

/// An operation that was not taken, with its buffer.
#[derive(Debug)]
pub struct PushError {
    /// Why.
    pub refusal: PushRefusal,
    /// The buffer, if the operation had one.
    pub buf: Option<PooledBuf>,
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.refusal {
            PushRefusal::QueueFull => "the ring's queue is full",
            PushRefusal::NoFile => "the ring's file slot is empty",
            PushRefusal::Range => "the range is outside the buffer or the file's possible size",
        })
    }
}

impl std::error::Error for PushError {}

/// An io_uring of the thread that made it (it is not `Send`: the kernel takes submissions from that
/// thread only). Its drop waits for what is in flight.
pub struct Ring {
    pub(crate) ring: IoUring,
    pub(crate) features: Features,
    pub(crate) operations: Operations,
    pub(crate) files: FileTable,
    pools: RegisteredPools,
    pub(crate) wake: WakeState,
    pub(crate) drop_wait: Duration,
    one_thread: PhantomData<*const ()>,
}

impl Ring {
    /// Sets a ring up for the calling thread.
    ///
    /// # Errors
    /// [`SetupError`] says what a person can do about it.
    pub fn new(config: &RingConfig) -> Result<Ring, SetupError> {
        if config.entries == 0 || config.entries > ENTRIES_MAX {
            let text =
                format!("a ring of {} entries; 1 to {ENTRIES_MAX} are possible", config.entries);
            return Err(SetupError::Other(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        let (ring, features) = set_up(config.entries, &config.modes)?;
        // At most `entries` operations and one poll: the kernel makes twice as many places.
        assert!(ring.params().cq_entries() > config.entries);
        Ok(Ring {
            ring,
            features,
            operations: Operations::new(config.entries),
            files: FileTable::default(),
            pools: RegisteredPools::default(),
            wake: WakeState::default(),
            drop_wait: DROP_WAIT,
            one_thread: PhantomData,
        })
    }

    /// Sets how long the drop waits for operations in flight, before and again after cancelling
    /// them. What is not done then loses its buffer for good.
    pub fn set_drop_wait(&mut self, limit: Duration) {
        self.drop_wait = limit;
    }

    /// What was obtained.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Operations pushed and not handed out yet.
    pub fn in_flight(&self) -> usize {
        self.operations.len()
    }

    /// Operations that can be pushed now.
    pub fn room(&self) -> usize {
        self.features.entries as usize - self.in_flight()
    }

    /// Registers the buffers of `pool`, so that the kernel need not pin pages for each operation.
    /// Several pools can be registered; if the kernel refuses this one, its buffers are used
    /// unregistered. Only possible while nothing is in flight.
    pub fn register_pool(&mut self, pool: &BufferPool) -> Registration {
        let refuse = |why: String| {
            Registration::Unregistered(format!("buffers are not registered with io_uring: {why}"))
        };
        if self.pools.contains(pool) {
            return Registration::Registered;
        }
        if !self.features.fixed_buffers {
            return refuse("this kernel cannot".to_owned());
        }
        if self.in_flight() > 0 {
            return refuse("operations are in flight".to_owned());
        }
        match self.pools.add(&self.ring, pool) {
            Ok(()) => Registration::Registered,
            Err(error) => {
                let hint = match Errno::from_io_error(&error) {
                    Some(Errno::NOMEM | Errno::PERM) => " (RLIMIT_MEMLOCK is too low)",
                    _ => "",
                };
                refuse(format!("{error}{hint}"))
            }
        }
    }

    /// Makes a table of `slots` files, registered if the kernel allows it. Once a ring.
    pub fn register_files(&mut self, slots: u32) -> io::Result<Registration> {
        self.files.register(&self.ring, slots)
    }

    /// Puts an open file into a slot; gives back what was there. Refused with `ResourceBusy` while
    /// operations on that slot are in flight.
    pub fn set_file(
        &mut self,
        slot: FileSlot,
        file: impl Into<OwnedFd>,
    ) -> io::Result<Option<OwnedFd>> {
        self.files.exchange(&self.ring, slot, Some(file.into()))
    }

    /// Empties a slot; gives back what was there. Refused as [`Ring::set_file`] is.
    pub fn clear_file(&mut self, slot: FileSlot) -> io::Result<Option<OwnedFd>> {
        self.files.exchange(&self.ring, slot, None)
    }

    /// Reads `len` bytes at `offset` of the file into the buffer's beginning.
    pub fn read(
        &mut self,
        file: FileSlot,
        offset: u64,
        len: usize,
        buf: PooledBuf,
        user: u64,
    ) -> Result<(), PushError> {
        self.transfer(Direction::Read, file, offset, 0..len, buf, user)
    }

    /// Writes the buffer's first `len` bytes at `offset` of the file.
    pub fn write(
        &mut self,
        file: FileSlot,
        offset: u64,
        len: usize,
        buf: PooledBuf,
        user: u64,
    ) -> Result<(), PushError> {
        self.transfer(Direction::Write, file, offset, 0..len, buf, user)
    }

    /// Reads at `offset` of the file into `range` of the buffer: continues a short read.
    pub fn read_range(
        &mut self,
        file: FileSlot,
        offset: u64,
        range: Range<usize>,
        buf: PooledBuf,
        user: u64,
    ) -> Result<(), PushError> {
        self.transfer(Direction::Read, file, offset, range, buf, user)
    }

    /// Writes `range` of the buffer at `offset` of the file: continues a short write.
    pub fn write_range(
        &mut self,
        file: FileSlot,
        offset: u64,
        range: Range<usize>,
        buf: PooledBuf,
        user: u64,
    ) -> Result<(), PushError> {
        self.transfer(Direction::Write, file, offset, range, buf, user)
    }

    /// Makes the file's data durable that were written by operations handed out before.
    pub fn fdatasync(&mut self, file: FileSlot, user: u64) -> Result<(), PushError> {
        let Some(target) = self.files.target(file) else {
            return Err(PushError { refusal: PushRefusal::NoFile, buf: None });
        };
        self.push(entry::fdatasync(target), user, file, None)
    }

    fn transfer(
        &mut self,
        direction: Direction,
        file: FileSlot,
        offset: u64,
        range: Range<usize>,
        buf: PooledBuf,
        user: u64,
    ) -> Result<(), PushError> {
        let fits = range.start <= range.end && range.end <= buf.len();
        let end = offset.checked_add(range.len() as u64).filter(|&end| end <= i64::MAX as u64);
        let Some(len) = u32::try_from(range.len()).ok().filter(|_| fits && end.is_some()) else {
            return Err(PushError { refusal: PushRefusal::Range, buf: Some(buf) });
        };
        let Some(target) = self.files.target(file) else {
            return Err(PushError { refusal: PushRefusal::NoFile, buf: Some(buf) });
        };
        // SAFETY: `range.start` is within the slot, as checked above.
        let address = unsafe { buf.start().as_ptr().add(range.start) };
        let place = Place { address, len, offset, registered: self.pools.index(&buf) };
        self.push(entry::transfer(direction, target, &place), user, file, Some(buf))
    }

    fn push(
        &mut self,
        entry: Entry,
        user: u64,
        file: FileSlot,
        buf: Option<PooledBuf>,
    ) -> Result<(), PushError> {
        if self.operations.is_full() {
            return Err(PushError { refusal: PushRefusal::QueueFull, buf });
        }
        let key = self.operations.insert(user, file, buf);
        if self.push_entry(&entry.user_data(u64::from(key))) {
            self.files.started(file);
            return Ok(());
        }
        let buf = self.operations.withdraw(key);
        Err(PushError { refusal: PushRefusal::QueueFull, buf })
    }

    /// Puts an entry into the submission queue, submitting once if that is full.
    pub(crate) fn push_entry(&mut self, entry: &Entry) -> bool {
        for attempt in 0..2 {
            if attempt > 0 && self.submit().is_err() {
                return false;
            }
            // SAFETY: the entry's buffer, if any, stands in `self.operations` until the kernel has
            // reported it done; its descriptor is one of `self.files` or the waker's, which stay
            // open as long.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return true;
            }
        }
        false
    }

    /// Hands out what is done, as far as [`Ring::wait`] and [`Ring::submit`] have seen it, and what
    /// the kernel has put into the queue since.
    pub fn completions(&mut self) -> impl Iterator<Item = Completion> + '_ {
        self.reap();
        std::iter::from_fn(|| self.operations.hand_out())
    }

    /// The ring's waker, for other threads.
    pub fn waker(&mut self) -> io::Result<Waker> {
        match &self.wake.waker {
            Some(waker) => Ok(waker.clone()),
            None => Ok(self.wake.waker.insert(Waker::new()?).clone()),
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("features", &self.features)
            .field("in_flight", &self.in_flight())
            .finish()
    }
}
