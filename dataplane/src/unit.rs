//! What travels from a disk's planner to the workers: one block to be read.
//!
//! In: the planner's decision. Out: everything that reading and hashing the block needs.

use std::sync::Arc;

use gantry_common::ids::{BlockId, IdKey};
use gantry_common::units::BlockSize;
use gantry_common::wire::TaskNumber;
use gantry_guest::FilterMap;
use gantry_uring::wake::Waker;

use crate::disk::Disk;
use crate::pipeline::audit::Audit;
use crate::stats::Progress;

/// One disk being backed up, shared by its planner and the workers.
pub struct TaskDisk {
    /// Its task.
    pub task: TaskNumber,
    /// The opened source.
    pub source: Arc<Disk>,
    /// Name for messages.
    pub label: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Block size.
    pub block_size: BlockSize,
    /// Key for ids.
    pub id_key: IdKey,
    /// What is zeroed of its blocks before they are looked at.
    pub mask: Arc<FilterMap>,
    /// The same where a block is compared with what its base has unread.
    pub base_mask: Arc<FilterMap>,
    /// Live numbers.
    pub progress: Arc<Progress>,
    /// Of the workers.
    pub wakers: Arc<Vec<Waker>>,
}

impl TaskDisk {
    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.block_size.block_count(self.size_bytes)
    }

    /// Tells sleeping workers that there is a unit.
    pub fn wake_workers(&self) {
        self.wakers.iter().for_each(Waker::wake);
    }
}

/// One block to be read.
pub struct Unit {
    /// Its disk.
    pub disk: Arc<TaskDisk>,
    /// Block number.
    pub block: u64,
    /// Its id in the base, if it need not be sent when it has that.
    pub expected: Option<BlockId>,
    /// It is read for an audit alone: compared, and then forgotten.
    pub audit: Option<Arc<Audit>>,
}
