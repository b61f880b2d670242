//! Allocation groups of XFS: their headers and their trees of free space, inodes and shares.
//!
//! In: a volume and its [`Geometry`]. Out: the records of a tree, each in its place. Invariant: every
//! block has its magic number, checksum, address, owner and the file system's UUID; records ascend, so
//! that a tree that bites its tail ends. Must not: hold a tree in memory.
//! Source: Linux `fs/xfs/libxfs/xfs_format.h` (`xfs_agf`, `xfs_agi`, `xfs_agfl`, `xfs_btree_block`).

use crate::bytes::{be16, be32, be64};
use crate::disk::Disk;
use crate::limits;
use crate::volume::{Extent, Refused};
use crate::xfs::superblock::{Geometry, checksum_fits};

/// A volume with its geometry.
pub(super) struct Reader<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) geometry: Geometry,
}

/// The header of a group's free space.
pub(super) struct FreeHeader {
    tree: Root,
    shares: Root,
    list_first: u32,
    list_count: u32,
    free_blocks: u64,
}

#[derive(Clone, Copy)]
struct Root {
    block: u32,
    levels: u32,
}

/// What distinguishes one tree of a group from another.
struct Tree {
    magic: u32,
    key_bytes: usize,
    record_bytes: usize,
}

const FREE: Tree = Tree { magic: 0x4142_3342, key_bytes: 8, record_bytes: 8 };
const INODES: Tree = Tree { magic: 0x4941_4233, key_bytes: 4, record_bytes: 16 };
const FREE_INODES: Tree = Tree { magic: 0x4649_4233, key_bytes: 4, record_bytes: 16 };
const SHARES: Tree = Tree { magic: 0x5233_4643, key_bytes: 4, record_bytes: 12 };

const BLOCK_HEADER_BYTES: usize = 56;
const GROUP_SECTORS: u64 = 4;
/// More means free inodes among them, and no sparse chunk has fewer than one bit per four inodes.
const CHUNK_INODES: u32 = 64;
const INODES_PER_HOLE_BIT: u32 = 4;

/// Inodes that were allocated together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub(super) group: u32,
    first: u32,
    holes: u16,
    free: u64,
}

impl Chunk {
    /// Numbers, within the file system, of the inodes in use.
    pub(super) fn used(self, geometry: &Geometry) -> impl Iterator<Item = u64> + use<> {
        let base = u64::from(self.group) << (geometry.group_log + geometry.inodes_log);
        let used = (0..CHUNK_INODES).filter(move |number| {
            self.holes >> (number / INODES_PER_HOLE_BIT) & 1 == 0 && self.free >> number & 1 == 0
        });
        used.map(move |number| base + u64::from(self.first) + u64::from(number))
    }
}

fn damaged(group: u32, what: &str) -> Refused {
    Refused::new(format!("allocation group {group} of this XFS is damaged ({what})"))
}

impl<'a> Reader<'a> {
    /// A sector of a group's beginning, checked.
    fn sector(
        &self,
        group: u32,
        number: u64,
        magic: u32,
        uuid_at: usize,
        sum_at: usize,
    ) -> Result<Vec<u8>, Refused> {
        let sector = self.geometry.sector_bytes;
        let begin = self.geometry.extent_in(group, 0, 1).ok_or_else(|| damaged(group, "place"))?;
        let mut bytes = vec![0; sector as usize];
        self.disk.read_at(begin.start + number * sector, &mut bytes)?;
        let fits = be32(&bytes, 0)? == magic
            && bytes[uuid_at..uuid_at + 16] == self.geometry.metadata_uuid
            && checksum_fits(&bytes, sum_at);
        if fits { Ok(bytes) } else { Err(damaged(group, "header")) }
    }

    /// The header of a group's free space.
    pub(super) fn free_header(&self, group: u32) -> Result<FreeHeader, Refused> {
        let sector = self.sector(group, 1, 0x5841_4746, 64, 216)?;
        let place = be32(&sector, 8)? == group
            && u64::from(be32(&sector, 12)?) == self.geometry.group_length(group);
        if !place {
            return Err(damaged(group, "header of free space"));
        }
        Ok(FreeHeader {
            tree: Root { block: be32(&sector, 16)?, levels: be32(&sector, 28)? },
            shares: Root { block: be32(&sector, 88)?, levels: be32(&sector, 92)? },
            list_first: be32(&sector, 40)?,
            list_count: be32(&sector, 48)?,
            free_blocks: u64::from(be32(&sector, 52)?),
        })
    }

    /// Gives every free extent of a group.
    pub(super) fn free_in_group(
        &self,
        group: u32,
        give: &mut dyn FnMut(Extent),
    ) -> Result<(), Refused> {
        let header = self.free_header(group)?;
        let reserved =
            (GROUP_SECTORS * self.geometry.sector_bytes).div_ceil(self.geometry.block_bytes);
        let (mut last_end, mut sum) = (reserved, 0);
        let mut records = |record: &[u8]| {
            let (first, blocks) = (u64::from(be32(record, 0)?), u64::from(be32(record, 4)?));
            let extent = self.geometry.extent_in(group, first, blocks);
            let extent = extent.filter(|_| first >= last_end);
            let extent = extent.ok_or_else(|| damaged(group, "free space"))?;
            last_end = first + blocks;
            sum += blocks;
            give(extent);
            Ok(())
        };
        self.walk(&FREE, group, header.tree, &mut |_| {}, &mut records)?;
        if sum != header.free_blocks {
            return Err(damaged(group, "sum of free blocks"));
        }
        Ok(())
    }

    /// Gives every chunk of inodes of a group.
    pub(super) fn chunks(
        &self,
        group: u32,
        block: &mut dyn FnMut(Extent),
        give: &mut dyn FnMut(Chunk),
    ) -> Result<(), Refused> {
        let sector = self.sector(group, 2, 0x5841_4749, 296, 312)?;
        if be32(&sector, 8)? != group {
            return Err(damaged(group, "header of inodes"));
        }
        let root = Root { block: be32(&sector, 20)?, levels: be32(&sector, 24)? };
        let mut records = |record: &[u8]| {
            let first = be32(record, 0)?;
            give(Chunk { group, first, holes: be16(record, 4)?, free: be64(record, 8)? });
            Ok(())
        };
        self.walk(&INODES, group, root, block, &mut records)?;
        if self.geometry.free_inode_tree {
            let root = Root { block: be32(&sector, 328)?, levels: be32(&sector, 332)? };
            self.walk(&FREE_INODES, group, root, block, &mut |_| Ok(()))?;
        }
        Ok(())
    }

    /// Gives what a group needs for itself: headers, trees of free space and shares, reserve list.
    pub(super) fn group_metadata(
        &self,
        group: u32,
        give: &mut dyn FnMut(Extent),
    ) -> Result<(), Refused> {
        let geometry = &self.geometry;
        let header = self.free_header(group)?;
        let begin = geometry.extent_in(group, 0, 1).ok_or_else(|| damaged(group, "place"))?;
        give(Extent { start: begin.start, length: GROUP_SECTORS * geometry.sector_bytes });
        self.walk(&FREE, group, header.tree, give, &mut |_| Ok(()))?;
        if geometry.reflink {
            self.walk(&SHARES, group, header.shares, give, &mut |_| Ok(()))?;
        }
        let list = self.sector(group, 3, 0x5841_464c, 8, 32)?;
        let slots = (list.len() - 36) / 4;
        if header.list_first as usize >= slots || header.list_count as usize > slots {
            return Err(damaged(group, "reserve list"));
        }
        for number in 0..header.list_count as usize {
            let slot = (header.list_first as usize + number) % slots;
            let block = u64::from(be32(&list, 36 + slot * 4)?);
            give(
                geometry
                    .extent_in(group, block, 1)
                    .ok_or_else(|| damaged(group, "reserve list"))?,
            );
        }
        Ok(())
    }

    /// Walks a tree's records in order; `blocks` gets the place of each of its blocks.
    fn walk(
        &self,
        tree: &Tree,
        group: u32,
        root: Root,
        blocks: &mut dyn FnMut(Extent),
        records: &mut dyn FnMut(&[u8]) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        if root.levels == 0 || root.levels > limits::XFS_TREE_LEVELS_MAX {
            return Err(damaged(group, "height of a tree"));
        }
        let mut last = None;
        let mut ordered = |record: &[u8]| {
            let first = be32(record, 0)?;
            if last.is_some_and(|last| last >= first) {
                return Err(damaged(group, "order of a tree"));
            }
            last = Some(first);
            records(record)
        };
        self.walk_block(tree, group, root, true, blocks, &mut ordered)
    }

    fn walk_block(
        &self,
        tree: &Tree,
        group: u32,
        at: Root,
        is_root: bool,
        blocks: &mut dyn FnMut(Extent),
        records: &mut dyn FnMut(&[u8]) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let wrong = || damaged(group, "a block of a tree");
        let extent = self.geometry.extent_in(group, u64::from(at.block), 1).ok_or_else(wrong)?;
        let mut bytes = vec![0; self.geometry.block_bytes as usize];
        self.disk.read_at(extent.start, &mut bytes)?;
        let (level, count) = (u32::from(be16(&bytes, 4)?), usize::from(be16(&bytes, 6)?));
        let room = bytes.len() - BLOCK_HEADER_BYTES;
        let slots = if level == 0 { tree.record_bytes } else { tree.key_bytes + 4 };
        let slots = room / slots;
        let fits = be32(&bytes, 0)? == tree.magic
            && level + 1 == at.levels
            && count <= slots
            && (count > 0 || is_root && level == 0)
            && be64(&bytes, 16)? == extent.start / 512
            && bytes[32..48] == self.geometry.metadata_uuid
            && be32(&bytes, 48)? == group
            && checksum_fits(&bytes, 52);
        if !fits {
            return Err(wrong());
        }
        blocks(extent);
        let body = &bytes[BLOCK_HEADER_BYTES..];
        if level == 0 {
            return body.chunks_exact(tree.record_bytes).take(count).try_for_each(records);
        }
        for number in 0..count {
            let block = be32(body, slots * tree.key_bytes + number * 4)?;
            let child = Root { block, levels: level };
            self.walk_block(tree, group, child, false, blocks, records)?;
        }
        Ok(())
    }
}
