//! An ext4 as it will be once its journal is replayed, block by block.
//!
//! In: the volume, and what the journal will write over it. Out: blocks. Invariant: a block is read from
//! the journal if replay writes it, with the checksum of its tag verified, else from its place. Must
//! not: replay.

use super::journal::{Copy, Journal};
use super::superblock::Superblock;
use crate::disk::Disk;
use crate::volume::{Extent, Refused};

/// A volume and its journal.
pub(super) struct Image<'a> {
    pub(super) volume: &'a dyn Disk,
    pub(super) superblock: Superblock,
    pub(super) journal: Journal,
}

impl Image<'_> {
    /// A block as it is after replay.
    pub(super) fn block(&self, block: u64) -> Result<Vec<u8>, Refused> {
        match self.journal.last(block) {
            Some(copy) => self.copy(copy),
            None => self.block_on_disk(block),
        }
    }

    /// A block as it is at its place.
    pub(super) fn block_on_disk(&self, block: u64) -> Result<Vec<u8>, Refused> {
        let range = self.bytes(block, 1)?;
        let mut bytes = vec![0; range.length as usize];
        self.volume.read_at(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// A block as the journal has it.
    pub(super) fn copy(&self, copy: &Copy) -> Result<Vec<u8>, Refused> {
        let bytes = self.block_on_disk(copy.at)?;
        self.journal.verified(copy, bytes)
    }

    /// A range of blocks in bytes of the volume.
    ///
    /// # Errors
    /// It is not within the file system.
    pub(super) fn bytes(&self, block: u64, count: u64) -> Result<Extent, Refused> {
        let end = block.checked_add(count);
        if end.is_none_or(|end| end > self.superblock.blocks) {
            return Err(Refused::new(format!("block {block} is not within the file system")));
        }
        let block_bytes = self.superblock.block_bytes;
        Ok(Extent { start: block * block_bytes, length: count * block_bytes })
    }
}
