//! The operations of one ring from push to hand-out: who owns the buffer meanwhile.
//!
//! In: buffers with the caller's number. Out: [`Completion`]s. Invariant: an operation holds its
//! buffer from before the kernel learns its address until after the kernel reported it done; never
//! more than `capacity` operations exist. Must not: allocate after start.

use std::collections::VecDeque;
use std::io;

use crate::buffer::PooledBuf;
use crate::files::FileSlot;

/// One operation that is done.
#[derive(Debug)]
pub struct Completion {
    /// The number given with the operation.
    pub user: u64,
    /// Bytes transferred, which may be fewer than asked (0: end of file), or the kernel's error.
    pub result: io::Result<u32>,
    /// The operation's buffer, if it had one.
    pub buf: Option<PooledBuf>,
}

struct Operation {
    user: u64,
    file: FileSlot,
    buf: Option<PooledBuf>,
    result: i32,
}

/// All operations of a ring. A key is the operation's place and its `user_data` in the kernel.
pub(crate) struct Operations {
    table: Vec<Option<Operation>>,
    vacant: Vec<u32>,
    done: VecDeque<u32>,
}

impl Operations {
    pub(crate) fn new(capacity: u32) -> Operations {
        Operations {
            table: (0..capacity).map(|_| None).collect(),
            vacant: (0..capacity).rev().collect(),
            done: VecDeque::with_capacity(capacity as usize),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.vacant.is_empty()
    }

    /// Operations that are not handed out yet.
    pub(crate) fn len(&self) -> usize {
        self.table.len() - self.vacant.len()
    }

    /// Operations that are done and not handed out yet.
    pub(crate) fn done(&self) -> usize {
        self.done.len()
    }

    /// Operations that the kernel has, or will have after the next submit.
    pub(crate) fn in_kernel(&self) -> usize {
        self.len() - self.done()
    }

    /// Takes an operation in. The caller has checked [`Operations::is_full`].
    pub(crate) fn insert(&mut self, user: u64, file: FileSlot, buf: Option<PooledBuf>) -> u32 {
        let key = self.vacant.pop();
        assert!(key.is_some(), "the table of operations is full");
        let key = key.unwrap_or_default();
        self.table[key as usize] = Some(Operation { user, file, buf, result: 0 });
        key
    }

    /// Takes an operation back that the kernel never saw.
    pub(crate) fn withdraw(&mut self, key: u32) -> Option<PooledBuf> {
        let operation = self.table[key as usize].take()?;
        self.vacant.push(key);
        operation.buf
    }

    /// Notes the kernel's result; gives the operation's file.
    pub(crate) fn finish(&mut self, key: u64, result: i32) -> Option<FileSlot> {
        let operation = self.table.get_mut(key as usize)?.as_mut()?;
        operation.result = result;
        self.done.push_back(key as u32);
        Some(operation.file)
    }

    /// Hands out the operation that was done first.
    pub(crate) fn hand_out(&mut self) -> Option<Completion> {
        let key = self.done.pop_front()?;
        let operation = self.table[key as usize].take()?;
        self.vacant.push(key);
        let result = match u32::try_from(operation.result) {
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(io::Error::from_raw_os_error(operation.result.saturating_neg())),
        };
        Some(Completion { user: operation.user, result, buf: operation.buf })
    }

    /// Gives up the buffers of operations that the kernel may still be working on: they are never
    /// returned to their pool, and so their memory is never unmapped.
    pub(crate) fn leak(&mut self) {
        for operation in self.table.drain(..) {
            std::mem::forget(operation);
        }
        self.vacant.clear();
        self.done.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::Operations;
    use crate::buffer::BufferPool;
    use crate::files::FileSlot;

    #[test]
    fn operations_come_out_in_the_order_in_which_they_finished() {
        let mut operations = Operations::new(3);
        let keys: Vec<u32> =
            (0..3).map(|user| operations.insert(user, FileSlot(0), None)).collect();
        assert!(operations.is_full());
        assert_eq!(operations.finish(u64::from(keys[2]), -5), Some(FileSlot(0)));
        assert_eq!(operations.finish(u64::from(keys[0]), 7), Some(FileSlot(0)));
        assert_eq!(operations.finish(99, 0), None);
        assert_eq!((operations.len(), operations.done(), operations.in_kernel()), (3, 2, 1));
        let first = operations.hand_out().unwrap();
        assert_eq!((first.user, first.result.unwrap_err().raw_os_error()), (2, Some(5)));
        assert_eq!(operations.hand_out().map(|done| done.result.unwrap()), Some(7));
        assert!(operations.hand_out().is_none() && operations.len() == 1);
    }

    #[test]
    fn leaked_buffers_never_return() {
        let pool = BufferPool::new(2, 1).unwrap();
        let mut operations = Operations::new(2);
        operations.insert(0, FileSlot(0), pool.try_take());
        operations.leak();
        drop(operations);
        assert_eq!(pool.free(), 1);
    }
}
