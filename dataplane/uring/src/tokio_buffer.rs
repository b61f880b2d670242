//! Pooled buffers for tokio-uring, which from safe code takes only `Vec`s: not aligned for O_DIRECT,
//! and of small pages (docs/decisions/0003-restore-reads.md has what that costs).
//!
//! In: [`PooledBuf`]s. Out: the same, lent to tokio-uring's operations. Invariant: the slot stays
//! mapped and of one owner while an operation holds the buffer. Must not: use tokio-uring otherwise.

use tokio_uring::buf::{IoBuf, IoBufMut};

use crate::buffer::PooledBuf;

// SAFETY: the address is that of a mapped slot, which does not move with the `PooledBuf` and stays
// mapped as long as it lives, because it holds its pool. All bytes are initialised from the start.
unsafe impl IoBuf for PooledBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.start().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }

    fn bytes_total(&self) -> usize {
        self.len()
    }
}

// SAFETY: as above; the slot is of this `PooledBuf` alone, so the kernel is the only writer.
unsafe impl IoBufMut for PooledBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start().as_ptr()
    }

    unsafe fn set_init(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use crate::buffer::BufferPool;
    use std::io::Write;
    use tokio_uring::buf::BoundedBuf;

    #[test]
    fn a_pooled_buffer_is_read_into_and_returns() {
        let mut named = tempfile::NamedTempFile::new().unwrap();
        named.write_all(&[7; 5000]).unwrap();
        let pool = BufferPool::new(1, 8192).unwrap();
        let file = named.reopen().unwrap();
        let buf = pool.try_take().unwrap();
        let buf = tokio_uring::start(async move {
            let file = tokio_uring::fs::File::from_std(file);
            let (read, slice) = file.read_at(buf.slice(4096..8192), 0).await;
            assert_eq!(read.unwrap(), 4096);
            slice.into_inner()
        });
        assert!(buf[..4096].iter().all(|&byte| byte == 0));
        assert!(buf[4096..].iter().all(|&byte| byte == 7));
        drop(buf);
        assert_eq!(pool.free(), 1);
    }
}
