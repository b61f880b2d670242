//! The memory of one stored block on its way: compressed or raw bytes, from compression to the
//! wire, or from the wire to a pack file.
//!
//! In: lengths. Out: [`Payload`]s of a fixed pool. Invariant: the stored bytes begin
//! [`Payload::HEAD_ROOM`] bytes into a page-aligned slot, so that the store puts its record header
//! in front and writes the whole with O_DIRECT, without a copy. Must not: allocate after start.

use std::fmt;
use std::io;

use gantry_uring::buffer::{BufferPool, PooledBuf, ReturnHook};

/// A fixed number of payload slots. Cloning shares it.
#[derive(Clone, Debug)]
pub struct PayloadPool {
    pool: BufferPool,
    payload_bytes_max: usize,
}

impl PayloadPool {
    /// Maps `slots` slots that hold payloads of up to `payload_bytes_max` bytes.
    pub fn new(slots: usize, payload_bytes_max: usize) -> io::Result<PayloadPool> {
        let pool = BufferPool::new(slots, slot_bytes(payload_bytes_max)?)?;
        Ok(PayloadPool { pool, payload_bytes_max })
    }

    /// As [`PayloadPool::new`]; `on_return` is called after each return of a slot, on the thread
    /// that dropped it.
    pub fn with_notify(
        slots: usize,
        payload_bytes_max: usize,
        on_return: ReturnHook,
    ) -> io::Result<PayloadPool> {
        let pool = BufferPool::with_notify(slots, slot_bytes(payload_bytes_max)?, on_return)?;
        Ok(PayloadPool { pool, payload_bytes_max })
    }

    /// A payload of `len` bytes, their contents left from an earlier use. Nothing if no slot is
    /// free or if `len` exceeds [`PayloadPool::payload_bytes_max`].
    pub fn take(&self, len: usize) -> Option<Payload> {
        if len > self.payload_bytes_max {
            return None;
        }
        self.pool.try_take().map(|buf| Payload { buf, len })
    }

    /// Slots there are.
    pub fn slots(&self) -> usize {
        self.pool.slots()
    }

    /// Slots that are free now; a hint while other threads take and return.
    pub fn free(&self) -> usize {
        self.pool.free()
    }

    /// Bytes of the longest payload.
    pub fn payload_bytes_max(&self) -> usize {
        self.payload_bytes_max
    }

    /// The memory below, for registration with a ring.
    pub fn buffers(&self) -> &BufferPool {
        &self.pool
    }
}

fn slot_bytes(payload_bytes_max: usize) -> io::Result<usize> {
    payload_bytes_max.checked_add(Payload::HEAD_ROOM).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "payload length beyond the address space")
    })
}

/// A block's stored bytes; its drop returns the slot.
pub struct Payload {
    buf: PooledBuf,
    len: usize,
}

impl Payload {
    /// Bytes in front of the stored bytes that are kept for the pack record's header.
    pub const HEAD_ROOM: usize = 128;

    /// The stored bytes.
    pub fn stored(&self) -> &[u8] {
        &self.buf[Payload::HEAD_ROOM..Payload::HEAD_ROOM + self.len]
    }

    /// The stored bytes, to be filled.
    pub fn stored_mut(&mut self) -> &mut [u8] {
        &mut self.buf[Payload::HEAD_ROOM..Payload::HEAD_ROOM + self.len]
    }

    /// Cuts the stored bytes to their first `len`; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The whole slot (head room, stored bytes, rest) and the stored length.
    pub fn into_parts(self) -> (PooledBuf, usize) {
        (self.buf, self.len)
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.stored()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes in slot {})", self.len, self.buf.slot_index())
    }
}

#[cfg(test)]
mod tests {
    use super::{Payload, PayloadPool};

    #[test]
    fn stored_bytes_stand_behind_the_head_room() {
        let pool = PayloadPool::new(2, 1 << 20).unwrap();
        assert_eq!((pool.slots(), pool.free()), (2, 2));
        let mut payload = pool.take(5).unwrap();
        payload.stored_mut().copy_from_slice(b"block");
        payload.truncate(9);
        payload.truncate(4);
        assert_eq!((payload.stored(), payload.as_ref()), (&b"bloc"[..], &b"bloc"[..]));
        let (buf, len) = payload.into_parts();
        assert_eq!((len, buf.len()), (4, (1 << 20) + 4096));
        assert_eq!(&buf[Payload::HEAD_ROOM..Payload::HEAD_ROOM + 4], b"bloc");
        assert_eq!(pool.free(), 1);
        drop(buf);
        assert_eq!(pool.free(), 2);
    }

    #[test]
    fn too_long_and_none_free_give_nothing() {
        let pool = PayloadPool::new(1, 1000).unwrap();
        assert!(pool.take(1001).is_none(), "the slot is larger, the bound is not");
        let whole = pool.take(1000).unwrap();
        assert!(pool.take(0).is_none());
        drop(whole);
        assert_eq!(pool.take(0).map(|payload| payload.stored().len()), Some(0));
        assert!(PayloadPool::new(1, usize::MAX).is_err());
    }

    #[test]
    fn a_payload_travels_between_threads() {
        fn is_send<T: Send + 'static>(_: &T) {}
        let pool = PayloadPool::new(1, 10).unwrap();
        let payload = pool.take(1).unwrap();
        is_send(&payload);
        std::thread::spawn(move || drop(payload)).join().unwrap();
        assert_eq!(pool.free(), 1);
    }
}
