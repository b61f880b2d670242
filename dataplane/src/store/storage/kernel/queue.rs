//! The pack writes of a store on a real file system: blocking for now.
//!
//! In: pooled buffers. Out: completions. Invariant: a buffer is returned to its pool only when
//! the kernel has its bytes.

use std::collections::VecDeque;

use gantry_uring::buffer::PooledBuf;

use super::super::{Completion, StorageFile, WriteQueue};
use super::KernelFile;

/// Completions that wait to be collected.
#[derive(Debug, Default)]
pub struct KernelQueue {
    done: VecDeque<Completion>,
}

impl KernelQueue {
    pub(super) fn new() -> KernelQueue {
        KernelQueue::default()
    }
}

impl WriteQueue<KernelFile> for KernelQueue {
    fn submit_write(
        &mut self,
        file: &KernelFile,
        offset: u64,
        buffer: PooledBuf,
        len: usize,
        tag: u64,
    ) {
        let result = file.write_at(offset, &buffer[..len]);
        self.done.push_back(Completion { tag, result });
    }

    fn submit_sync(&mut self, file: &KernelFile, tag: u64) {
        self.done.push_back(Completion { tag, result: file.sync_data() });
    }

    fn complete(&mut self, _wait: bool, out: &mut Vec<Completion>) {
        out.extend(self.done.drain(..));
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }
}
