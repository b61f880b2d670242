//! Inodes of XFS and where their content is.
//!
//! In: an inode's number. Out: [`Inode`], and its mapped extents in the file's order. Invariant: extents
//! ascend in the file, are within the file system and as many as the inode says. Must not: interpret
//! content. Source: Linux `fs/xfs/libxfs/xfs_format.h` (`xfs_dinode`, `xfs_bmbt_rec`).

use crate::bytes::{be16, be32, be64};
use crate::limits;
use crate::volume::{Extent, Refused};
use crate::xfs::group::Reader;
use crate::xfs::superblock::checksum_fits;

const CORE_BYTES: usize = 176;
const FORMAT_LOCAL: u8 = 1;
const FORMAT_EXTENTS: u8 = 2;
const FORMAT_TREE: u8 = 3;
const FLAG_REALTIME: u16 = 1;
const FLAG2_REFLINK: u64 = 2;
const FLAG2_WIDE_COUNTS: u64 = 0x10;
const TREE_MAGIC: u32 = 0x424d_4133;
const TREE_HEADER_BYTES: usize = 72;
const MAPPING_BYTES: usize = 16;

/// One inode.
pub(super) struct Inode {
    pub(super) number: u64,
    mode: u16,
    format: u8,
    pub(super) links: u32,
    pub(super) size: u64,
    flags: u16,
    flags2: u64,
    mappings: u64,
    /// The part of the inode that holds content or the way to it.
    fork: Vec<u8>,
    /// Where the inode is.
    pub(super) place: Extent,
}

/// A run of a file's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping {
    /// First block within the file.
    pub(super) offset: u64,
    /// Bytes of the volume.
    pub(super) extent: Extent,
}

impl Inode {
    pub(super) fn is_file(&self) -> bool {
        self.mode & 0xf000 == 0x8000
    }

    pub(super) fn is_folder(&self) -> bool {
        self.mode & 0xf000 == 0x4000
    }

    /// Whether its blocks may belong to other files, too.
    pub(super) fn is_shared(&self) -> bool {
        self.flags2 & FLAG2_REFLINK != 0
    }

    pub(super) fn is_realtime(&self) -> bool {
        self.flags & FLAG_REALTIME != 0
    }

    /// The content of a small folder, which is within the inode.
    pub(super) fn local(&self) -> Option<&[u8]> {
        let size = usize::try_from(self.size).ok()?;
        if self.format == FORMAT_LOCAL { self.fork.get(..size) } else { None }
    }
}

fn damaged(number: u64, what: &str) -> Refused {
    Refused::new(format!("inode {number} of this XFS is damaged ({what})"))
}

impl Reader<'_> {
    /// Reads an inode.
    pub(super) fn inode(&self, number: u64) -> Result<Inode, Refused> {
        let geometry = &self.geometry;
        let block = number >> geometry.inodes_log;
        let extent = geometry.extent(block, 1).ok_or_else(|| damaged(number, "place"))?;
        let index = number & ((1 << geometry.inodes_log) - 1);
        let place = Extent {
            start: extent.start + index * geometry.inode_bytes,
            length: geometry.inode_bytes,
        };
        let mut bytes = vec![0; geometry.inode_bytes as usize];
        self.disk.read_at(place.start, &mut bytes)?;
        let fits = be16(&bytes, 0)? == 0x494e
            && bytes[4] == 3
            && be64(&bytes, 152)? == number
            && bytes[160..176] == geometry.metadata_uuid
            && checksum_fits(&bytes, 100);
        if !fits {
            return Err(damaged(number, "checksum"));
        }
        let flags2 = be64(&bytes, 120)?;
        let wide = flags2 & FLAG2_WIDE_COUNTS != 0;
        let mappings = if wide { be64(&bytes, 24)? } else { u64::from(be32(&bytes, 76)?) };
        let end = match usize::from(bytes[82]) * 8 {
            0 => bytes.len(),
            length => CORE_BYTES + length,
        };
        let fork = bytes.get(CORE_BYTES..end).ok_or_else(|| damaged(number, "fork"))?.to_vec();
        Ok(Inode {
            number,
            mode: be16(&bytes, 2)?,
            format: bytes[5],
            links: be32(&bytes, 16)?,
            size: be64(&bytes, 56)?,
            flags: be16(&bytes, 90)?,
            flags2,
            mappings,
            fork,
            place,
        })
    }

    /// Where an inode's content is; `blocks` gets the blocks of the tree that says so. Nothing for
    /// content within the inode.
    pub(super) fn mappings(
        &self,
        inode: &Inode,
        blocks: &mut dyn FnMut(Extent),
    ) -> Result<Vec<Mapping>, Refused> {
        let wrong = || damaged(inode.number, "extents");
        let count = usize::try_from(inode.mappings).ok();
        let Some(count) = count.filter(|&count| count <= limits::FILE_RANGES_MAX) else {
            return Err(Refused::new("it is in too many pieces"));
        };
        let mut found = Vec::new();
        match inode.format {
            FORMAT_LOCAL if count == 0 => {}
            FORMAT_EXTENTS => {
                let bytes = inode.fork.get(..count * MAPPING_BYTES).ok_or_else(wrong)?;
                self.parse(inode, bytes, count, &mut found)?;
            }
            FORMAT_TREE => {
                let (level, keys) = (be16(&inode.fork, 0)?, usize::from(be16(&inode.fork, 2)?));
                let slots = (inode.fork.len() - 4) / 16;
                if level == 0 || u32::from(level) > limits::XFS_TREE_LEVELS_MAX || keys > slots {
                    return Err(wrong());
                }
                for number in 0..keys {
                    let child = be64(&inode.fork, 4 + slots * 8 + number * 8)?;
                    self.tree(inode, child, level - 1, count, blocks, &mut found)?;
                }
            }
            _ => return Err(wrong()),
        }
        if found.len() != count {
            return Err(wrong());
        }
        Ok(found)
    }

    /// A block of the tree of extents, and those beneath it. Ends on any tree: each leaf adds at least
    /// one mapping, and those may not be more than `count`.
    fn tree(
        &self,
        inode: &Inode,
        block: u64,
        level: u16,
        count: usize,
        blocks: &mut dyn FnMut(Extent),
        found: &mut Vec<Mapping>,
    ) -> Result<(), Refused> {
        let wrong = || damaged(inode.number, "tree of extents");
        let extent = self.geometry.extent(block, 1).ok_or_else(wrong)?;
        let mut bytes = vec![0; self.geometry.block_bytes as usize];
        self.disk.read_at(extent.start, &mut bytes)?;
        let records = usize::from(be16(&bytes, 6)?);
        let slots = (bytes.len() - TREE_HEADER_BYTES) / 16;
        let fits = be32(&bytes, 0)? == TREE_MAGIC
            && be16(&bytes, 4)? == level
            && (1..=slots).contains(&records)
            && be64(&bytes, 24)? == extent.start / 512
            && bytes[40..56] == self.geometry.metadata_uuid
            && be64(&bytes, 56)? == inode.number
            && checksum_fits(&bytes, 64);
        if !fits {
            return Err(wrong());
        }
        blocks(extent);
        let body = &bytes[TREE_HEADER_BYTES..];
        if level == 0 {
            return self.parse(inode, &body[..records * MAPPING_BYTES], count, found);
        }
        for number in 0..records {
            let child = be64(body, slots * 8 + number * 8)?;
            self.tree(inode, child, level - 1, count, blocks, found)?;
        }
        Ok(())
    }

    fn parse(
        &self,
        inode: &Inode,
        bytes: &[u8],
        count: usize,
        found: &mut Vec<Mapping>,
    ) -> Result<(), Refused> {
        let wrong = || damaged(inode.number, "extents");
        for record in bytes.chunks_exact(MAPPING_BYTES) {
            let (high, low) = (be64(record, 0)?, be64(record, 8)?);
            let offset = (high & !(1 << 63)) >> 9;
            let block = (high & 0x1ff) << 43 | low >> 21;
            let blocks = low & 0x1f_ffff;
            let extent = self.geometry.extent(block, blocks).ok_or_else(wrong)?;
            let after = found.last().is_none_or(|last: &Mapping| {
                last.offset + last.extent.length / self.geometry.block_bytes <= offset
            });
            if !after || found.len() >= count {
                return Err(wrong());
            }
            found.push(Mapping { offset, extent });
        }
        Ok(())
    }
}
