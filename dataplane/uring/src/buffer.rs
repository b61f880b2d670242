//! Buffers of one fixed pool: page-aligned memory that is mapped once and never moves.
//!
//! In: a count and a size. Out: [`PooledBuf`]s, each the only owner of its slot until dropped.
//! Invariant: a slot's index is either in the free queue or in exactly one `PooledBuf`; the mapping
//! outlives the pool and every buffer of it. Must not: allocate after start, block, or lock.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Alignment in bytes of every slot's start and size; satisfies O_DIRECT on any common device.
pub const SLOT_ALIGN: usize = 4096;

/// Called after each return of a buffer, on the thread that dropped it. Must be short and must not
/// panic.
pub type ReturnHook = Arc<dyn Fn() + Send + Sync>;

/// The mapped memory; unmapped when its last user is gone.
struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a `Region` is only an address range. Access to its bytes goes through `PooledBuf`, which
// owns a disjoint slot exclusively, so sharing or moving the range itself races on nothing.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn map(bytes: usize) -> io::Result<Region> {
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice touches no
        // memory that exists.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        // Fewer TLB misses and fewer pages to pin; a kernel without THP refuses, which is fine.
        // SAFETY: the range is the mapping just made, and this advice changes no contents.
        let _ = unsafe { madvise(start, bytes, Advice::LinuxHugepage) };
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| io::Error::other("mmap returned the null address"))?;
        Ok(Region { start, bytes })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`, and nobody holds a reference into it: each
        // `PooledBuf` keeps its pool, and so this region, alive.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

struct PoolInner {
    region: Region,
    slot_bytes: usize,
    free: ArrayQueue<u32>,
    on_return: Option<ReturnHook>,
}

/// A fixed number of equal buffers in one zero-initialised, page-aligned mapping. Cloning shares it.
#[derive(Clone)]
pub struct BufferPool {
    inner: Arc<PoolInner>,
}

impl BufferPool {
    /// Maps `slots` buffers of `slot_bytes` each, rounded up to [`SLOT_ALIGN`].
    ///
    /// Fails with `InvalidInput` for zero or overflowing sizes and with the system's error when
    /// there is no memory.
    pub fn new(slots: usize, slot_bytes: usize) -> io::Result<BufferPool> {
        BufferPool::build(slots, slot_bytes, None)
    }

    /// As [`BufferPool::new`]; `on_return` is called after each return of a buffer, so that a taker
    /// who found the pool empty can be woken.
    pub fn with_notify(
        slots: usize,
        slot_bytes: usize,
        on_return: ReturnHook,
    ) -> io::Result<BufferPool> {
        BufferPool::build(slots, slot_bytes, Some(on_return))
    }

    fn build(
        slots: usize,
        slot_bytes: usize,
        on_return: Option<ReturnHook>,
    ) -> io::Result<BufferPool> {
        let sizes = || {
            let slots_u32 = u32::try_from(slots).ok().filter(|&n| n > 0)?;
            let slot_bytes =
                slot_bytes.checked_next_multiple_of(SLOT_ALIGN).filter(|&bytes| bytes > 0)?;
            let total = slots.checked_mul(slot_bytes).filter(|&n| n <= isize::MAX as usize)?;
            Some((slots_u32, slot_bytes, total))
        };
        let (slots_u32, slot_bytes, total) = sizes().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a buffer pool of {slots} slots of {slot_bytes} bytes cannot exist"),
            )
        })?;
        let region = Region::map(total)?;
        let free = ArrayQueue::new(slots);
        for slot in 0..slots_u32 {
            let full = free.push(slot);
            assert!(full.is_ok(), "the free queue has room for every slot");
        }
        Ok(BufferPool { inner: Arc::new(PoolInner { region, slot_bytes, free, on_return }) })
    }

    /// Takes a free buffer; nothing if all are in use. Its contents are what the last user left.
    pub fn try_take(&self) -> Option<PooledBuf> {
        let slot = self.inner.free.pop()?;
        Some(PooledBuf { pool: self.clone(), slot })
    }

    /// Buffers there are.
    pub fn slots(&self) -> usize {
        self.inner.free.capacity()
    }

    /// Buffers that are free now; only a hint while other threads take and return.
    pub fn free(&self) -> usize {
        self.inner.free.len()
    }

    /// Bytes of each buffer, a multiple of [`SLOT_ALIGN`].
    pub fn slot_bytes(&self) -> usize {
        self.inner.slot_bytes
    }

    /// Whether both are handles of one pool.
    pub fn is_same(&self, other: &BufferPool) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Where slot `slot` starts.
    pub(crate) fn slot_start(&self, slot: usize) -> NonNull<u8> {
        assert!(slot < self.slots(), "slot {slot} of {}", self.slots());
        // SAFETY: `slot` is below the slot count, so the offset stays inside the mapping, whose
        // size was checked not to exceed `isize::MAX`.
        unsafe { self.inner.region.start.add(slot * self.inner.slot_bytes) }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("slots", &self.slots())
            .field("free", &self.free())
            .field("slot_bytes", &self.slot_bytes())
            .finish()
    }
}

/// One slot of a [`BufferPool`], owned alone; its drop returns it. Reads and writes as `[u8]` of
/// the pool's `slot_bytes`.
pub struct PooledBuf {
    pool: BufferPool,
    slot: u32,
}

impl PooledBuf {
    /// The slot's number in its pool: the index of a registered buffer.
    pub fn slot_index(&self) -> usize {
        self.slot as usize
    }

    /// Whether this buffer belongs to `pool`.
    pub fn is_of(&self, pool: &BufferPool) -> bool {
        self.pool.is_same(pool)
    }

    /// The pool that this buffer returns to.
    pub fn pool(&self) -> &BufferPool {
        &self.pool
    }

    /// Address of the first byte, for the kernel.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.pool.slot_start(self.slot_index())
    }
}

impl Deref for PooledBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the slot is mapped, initialised (by the kernel, with zeroes) and, by the module's
        // invariant, of this `PooledBuf` alone; `&self` forbids writes for the slice's lifetime.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.pool.slot_bytes()) }
    }
}

impl DerefMut for PooledBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.pool.slot_bytes()) }
    }
}

impl AsRef<[u8]> for PooledBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        let returned = self.pool.inner.free.push(self.slot);
        assert!(returned.is_ok(), "slot {} was returned twice", self.slot);
        if let Some(hook) = &self.pool.inner.on_return {
            hook();
        }
    }
}

impl fmt::Debug for PooledBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PooledBuf(slot {} of {} bytes)", self.slot, self.pool.slot_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::{BufferPool, PooledBuf, SLOT_ALIGN};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn slots_are_aligned_zeroed_and_apart() {
        let pool = BufferPool::new(3, 5000).unwrap();
        assert_eq!((pool.slots(), pool.free(), pool.slot_bytes()), (3, 3, 8192));
        let mut bufs: Vec<PooledBuf> = std::iter::from_fn(|| pool.try_take()).collect();
        assert_eq!((bufs.len(), pool.free()), (3, 0));
        for (number, buf) in bufs.iter_mut().enumerate() {
            assert_eq!(buf.len(), 8192);
            assert_eq!(buf.as_ptr() as usize % SLOT_ALIGN, 0);
            assert!(buf.iter().all(|&byte| byte == 0));
            buf.fill(number as u8 + 1);
        }
        for (number, buf) in bufs.iter().enumerate() {
            assert!(buf.iter().all(|&byte| byte == number as u8 + 1));
        }
        assert!(pool.try_take().is_none());
        let slot = bufs[1].slot_index();
        bufs.remove(1);
        assert_eq!(pool.try_take().map(|buf| buf.slot_index()), Some(slot));
    }

    #[test]
    fn buffers_outlive_their_pool_and_know_it() {
        let (pool, other) = (BufferPool::new(1, 1).unwrap(), BufferPool::new(1, 1).unwrap());
        let mut buf = pool.try_take().unwrap();
        assert!(buf.is_of(&pool) && buf.is_of(&pool.clone()) && !buf.is_of(&other));
        drop(pool);
        buf.fill(7);
        assert_eq!(buf[4095], 7);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (slots, bytes) in [(0, 4096), (1, 0), (2, usize::MAX / 2), (1, usize::MAX)] {
            assert!(BufferPool::new(slots, bytes).is_err(), "{slots} x {bytes}");
        }
    }

    #[test]
    fn many_threads_take_and_return_without_sharing_a_slot() {
        let returns = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&returns);
        let hook = Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let pool = BufferPool::with_notify(4, 4096, hook).unwrap();
        let takes: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (1..=6u8)
                .map(|mark| {
                    let pool = pool.clone();
                    scope.spawn(move || {
                        let mut takes = 0;
                        while takes < 2000 {
                            let Some(mut buf) = pool.try_take() else {
                                std::thread::yield_now();
                                continue;
                            };
                            buf.fill(mark);
                            std::thread::yield_now();
                            assert!(buf.iter().all(|&byte| byte == mark));
                            takes += 1;
                        }
                        takes
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!((takes, pool.free()), (12_000, 4));
        assert_eq!(returns.load(Ordering::Relaxed), 12_000);
    }
}
