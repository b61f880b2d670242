//! An open file of the simulated disk, and the queue of pack writes.
//!
//! In: reads, writes, syncs. Out: the same as of a disk's, with the faults that were asked for. A
//! queue's operations happen when completions are asked for: in order, or, on a late disk, some at
//! a time in random order. Invariant: a sync makes durable what had completed when it was submitted.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use gantry_uring::buffer::PooledBuf;

use super::super::{Completion, StorageFile, Wake, WriteQueue};
use super::FaultyStorage;
use super::content::PAGE;
use super::inode::{Change, Inode};

/// An open file; clones share it.
#[derive(Debug, Clone)]
pub struct FaultyFile {
    pub(super) disk: FaultyStorage,
    pub(super) path: String,
    pub(super) inode: u64,
    pub(super) is_uncached: bool,
}

impl FaultyFile {
    fn look<R>(&self, operation: &str, act: impl FnOnce(&Inode) -> R) -> io::Result<R> {
        let mut state = self.disk.begin(operation, &self.path)?;
        Ok(act(state.inode(self.inode)?))
    }

    fn change(&self, operation: &str, change: Change) -> io::Result<()> {
        let mut state = self.disk.begin(operation, &self.path)?;
        let is_refused = match change {
            Change::Allocate(_) => state.cannot_allocate,
            Change::Punch { .. } => state.cannot_punch,
            Change::Write { .. } | Change::SetLen(_) => false,
        };
        if is_refused {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let inode = state.inode(self.inode)?;
        let growth = match &change {
            Change::Write { offset, bytes } => inode.growth(*offset, bytes.len() as u64),
            Change::Allocate(bytes) => bytes.saturating_sub(inode.used_bytes()),
            Change::SetLen(_) | Change::Punch { .. } => 0,
        };
        state.make_room(growth)?;
        let at = state.tick();
        state.inode(self.inode)?.change(at, change);
        Ok(())
    }

    fn sync_until(&self, until: u64) -> io::Result<()> {
        let mut state = match self.disk.begin("sync", &self.path) {
            Ok(state) => state,
            Err(error) => {
                let mut state = self.disk.state();
                if state.cut_operation.is_none() {
                    let mut random = state.random.0.fork();
                    state.inode(self.inode)?.fail_sync(&mut random);
                }
                return Err(error);
            }
        };
        if !state.lies_about(&self.path) {
            state.inode(self.inode)?.sync(until);
        }
        Ok(())
    }

    /// Begins a write that a crash may leave in part; when it began.
    fn submit(&self, offset: u64, bytes: &[u8]) -> u64 {
        let mut state = self.disk.state();
        let at = state.tick();
        if state.cut_operation.is_none()
            && let Ok(inode) = state.inode(self.inode)
        {
            inode.submit(at, offset, bytes);
        }
        at
    }

    fn complete(&self, submitted: u64, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.disk.begin("write", &self.path)?;
        let growth = state.inode(self.inode)?.growth(offset, len);
        state.make_room(growth)?;
        let at = state.tick();
        state.inode(self.inode)?.complete(submitted, at);
        Ok(())
    }
}

impl StorageFile for FaultyFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let short = self.disk.is_short(&self.path);
        let count = if short { bytes.len() / 2 } else { bytes.len() };
        self.look("read", |inode| match self.is_uncached {
            true => inode.read_uncached(offset, &mut bytes[..count]),
            false => inode.now.read(offset, &mut bytes[..count]),
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change("write", Change::Write { offset, bytes: bytes.into() })
    }

    fn len(&self) -> io::Result<u64> {
        self.look("len", |inode| inode.now.len)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.change("write", Change::SetLen(bytes))
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.change("allocate", Change::Allocate(bytes))
    }

    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.change("punch", Change::Punch { offset, bytes })
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.look("len", Inode::used_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        let now = self.disk.state().now();
        self.sync_until(now)
    }
}

#[derive(Debug)]
enum Work {
    Write { submitted: u64, offset: u64, buffer: PooledBuf, len: usize },
    Sync { until: u64 },
}

/// Its queue.
#[derive(Debug)]
pub struct FaultyQueue {
    disk: FaultyStorage,
    waiting: VecDeque<(u64, FaultyFile, Work)>,
}

impl FaultyQueue {
    pub(super) fn new(disk: FaultyStorage) -> FaultyQueue {
        FaultyQueue { disk, waiting: VecDeque::new() }
    }
}

impl WriteQueue<FaultyFile> for FaultyQueue {
    fn submit_write(
        &mut self,
        file: &FaultyFile,
        offset: u64,
        buffer: PooledBuf,
        len: usize,
        tag: u64,
    ) {
        assert!(offset.is_multiple_of(PAGE as u64) && len.is_multiple_of(PAGE), "unaligned write");
        let submitted = file.submit(offset, &buffer[..len]);
        let work = Work::Write { submitted, offset, buffer, len };
        self.waiting.push_back((tag, file.clone(), work));
    }

    fn submit_sync(&mut self, file: &FaultyFile, tag: u64) {
        let until = self.disk.state().now();
        self.waiting.push_back((tag, file.clone(), Work::Sync { until }));
    }

    fn complete(&mut self, wait: bool, out: &mut Vec<Completion>) {
        let order = self.disk.draw_completions(self.waiting.len(), wait);
        for at in order {
            let Some((tag, file, work)) = self.waiting.remove(at) else { continue };
            let result = match work {
                Work::Write { submitted, offset, len, buffer } => {
                    let result = file.complete(submitted, offset, len as u64);
                    drop(buffer);
                    result
                }
                Work::Sync { until } => file.sync_until(until),
            };
            out.push(Completion { tag, result });
        }
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn waker(&mut self) -> io::Result<Wake> {
        Ok(Arc::new(|| {}))
    }

    fn wait(&mut self, _timeout: Option<Duration>) {}
}
