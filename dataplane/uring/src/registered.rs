//! The pools whose buffers are registered with one ring.
//!
//! In: pools. Out: a buffer's index in the kernel's table. Invariant: what stands here is what the
//! kernel has; the memory stays mapped as long as it stands here. Must not: change the table while
//! operations are in flight (the caller sees to that).

use std::io;

use io_uring::IoUring;

use crate::buffer::{BufferPool, PooledBuf};

/// The kernel's limit of registered buffers of a ring.
const REGISTERED_BUFFERS_MAX: usize = 16_384;

/// Pools, each with the table index of its slot 0.
#[derive(Default)]
pub(crate) struct RegisteredPools {
    pools: Vec<(BufferPool, usize)>,
}

impl RegisteredPools {
    pub(crate) fn contains(&self, pool: &BufferPool) -> bool {
        self.pools.iter().any(|(known, _)| known.is_same(pool))
    }

    /// The buffer's index in the kernel's table, if its pool is registered.
    pub(crate) fn index(&self, buf: &PooledBuf) -> Option<u16> {
        let (_, base) = self.pools.iter().find(|(pool, _)| buf.is_of(pool))?;
        u16::try_from(base + buf.slot_index()).ok()
    }

    /// Registers one pool more; if that fails, all is as before.
    pub(crate) fn add(&mut self, ring: &IoUring, pool: &BufferPool) -> io::Result<()> {
        let base = self.pools.last().map_or(0, |(last, base)| base + last.slots());
        if base + pool.slots() > REGISTERED_BUFFERS_MAX {
            return Err(io::Error::other(format!(
                "{} buffers, the kernel takes {REGISTERED_BUFFERS_MAX} at most",
                base + pool.slots()
            )));
        }
        self.pools.push((pool.clone(), base));
        let result = self.register(ring);
        if result.is_err() {
            self.pools.pop();
            if self.register(ring).is_err() {
                self.pools.clear();
            }
        }
        result
    }

    fn register(&self, ring: &IoUring) -> io::Result<()> {
        // Fails when nothing is registered, which is just as well.
        let _ = ring.submitter().unregister_buffers();
        if self.pools.is_empty() {
            return Ok(());
        }
        let vectors: Vec<libc::iovec> = self
            .pools
            .iter()
            .flat_map(|(pool, _)| {
                (0..pool.slots()).map(|slot| libc::iovec {
                    iov_base: pool.slot_start(slot).as_ptr().cast(),
                    iov_len: pool.slot_bytes(),
                })
            })
            .collect();
        // SAFETY: every range is mapped, and stays so while it is registered: `self.pools` holds
        // the pools, and the kernel pins the pages besides.
        unsafe { ring.submitter().register_buffers(&vectors) }
    }
}
