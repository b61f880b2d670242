//! ext4's inodes, and the blocks of a file: extent trees and the indirect maps of ext2 and ext3.
//!
//! In: an inode's number. Out: its fields; the runs of its blocks in ascending order. Invariant:
//! checksums are verified where there are any; depth, nodes and order of a map are bounded. Must not:
//! read content. Source: Linux `Documentation/filesystems/ext4/{inodes,ifork}.rst`.

use super::groups::Group;
use super::image::Image;
use super::superblock::Checks;
use crate::bytes::{crc32c_from, le16, le32};
use crate::limits;
use crate::volume::Refused;

const FLAG_COMPRESSED: u32 = 0x4;
const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_VERITY: u32 = 0x10_0000;
const FLAG_EA: u32 = 0x20_0000;
const FLAG_INLINE: u32 = 0x1000_0000;
const TYPE_MASK: u16 = 0xf000;
const TYPE_FILE: u16 = 0x8000;
const TYPE_FOLDER: u16 = 0x4000;
const TYPE_LINK: u16 = 0xa000;

const EXTENT_MAGIC: u16 = 0xf30a;
const EXTENT_DEPTH_MAX: u16 = 5;
/// Longer ones are preallocated, and so much longer than they say.
const EXTENT_LENGTH_MAX: u16 = 32_768;
/// Blocks that an inode names itself in an indirect map.
const DIRECT: usize = 12;

/// What is used of an inode.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) number: u32,
    mode: u16,
    pub(super) size: u64,
    pub(super) links: u16,
    pub(super) deleted: bool,
    flags: u32,
    /// Where its checksums begin.
    seed: Option<u32>,
    map: [u8; 60],
}

/// Blocks of a file that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first one's number in the file.
    pub(super) logical: u64,
    /// And in the file system.
    pub(super) block: u64,
    pub(super) count: u64,
}

impl Inode {
    /// Reads an inode as it is after replay.
    ///
    /// # Errors
    /// There is no such inode, or its checksum is wrong.
    pub(super) fn read(image: &Image, groups: &[Group], number: u32) -> Result<Inode, Refused> {
        let superblock = &image.superblock;
        let wrong = || Refused::new(format!("there is no inode {number}"));
        let index = number.checked_sub(1).ok_or_else(wrong)?;
        let group = groups.get((index / superblock.group_inodes) as usize).ok_or_else(wrong)?;
        let at = u64::from(index % superblock.group_inodes) * superblock.inode_bytes;
        let block = image.block(group.inode_table + at / superblock.block_bytes)?;
        let from = (at % superblock.block_bytes) as usize;
        let bytes = &block[from..from + superblock.inode_bytes as usize];
        Inode::parse(bytes, number, superblock.checks)
    }

    /// Reads it from its bytes.
    fn parse(bytes: &[u8], number: u32, checks: Checks) -> Result<Inode, Refused> {
        let mut seed = None;
        if let Checks::All(whole) = checks {
            let of_number = crc32c_from(whole, &number.to_le_bytes());
            let of_inode = crc32c_from(of_number, &bytes[0x64..0x68]);
            seed = Some(of_inode);
            check(bytes, of_inode, number)?;
        }
        let mode = le16(bytes, 0)?;
        let mut map = [0; 60];
        map.copy_from_slice(&bytes[0x28..0x64]);
        Ok(Inode {
            number,
            mode,
            size: u64::from(le32(bytes, 0x6c)?) << 32 | u64::from(le32(bytes, 4)?),
            links: le16(bytes, 0x1a)?,
            deleted: le32(bytes, 0x14)? != 0 && le16(bytes, 0x1a)? == 0,
            flags: le32(bytes, 0x20)?,
            seed,
            map,
        })
    }

    /// Whether it is a regular file.
    pub(super) fn is_file(&self) -> bool {
        self.mode & TYPE_MASK == TYPE_FILE
    }

    /// Whether it is a directory.
    pub(super) fn is_folder(&self) -> bool {
        self.mode & TYPE_MASK == TYPE_FOLDER
    }

    /// Whether its map names blocks: not a device, a pipe, a short symbolic link or inline data.
    pub(super) fn has_blocks(&self) -> bool {
        let long_link = self.mode & TYPE_MASK == TYPE_LINK && self.size >= 60;
        self.flags & FLAG_INLINE == 0 && (self.is_file() || self.is_folder() || long_link)
    }

    /// Whether it is a directory whose names are encrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        self.flags & FLAG_ENCRYPTED != 0
    }

    /// Where the checksums of what belongs to it begin.
    pub(super) fn seed(&self) -> Option<u32> {
        self.seed
    }

    /// Why its content cannot be dropped.
    pub(super) fn untouchable(&self) -> Option<&'static str> {
        let flags = [
            (FLAG_COMPRESSED, "it is compressed"),
            (FLAG_ENCRYPTED, "it is encrypted"),
            (FLAG_VERITY, "it is protected by fs-verity"),
            (FLAG_EA, "it holds extended attributes"),
            (FLAG_INLINE, "its content is in its inode"),
        ];
        flags.iter().find(|(flag, _)| self.flags & flag != 0).map(|(_, why)| *why)
    }

    /// Gives the runs of its blocks in the order of the file; what is preallocated counts.
    ///
    /// # Errors
    /// Its map is damaged or too large.
    pub(super) fn runs(
        &self,
        image: &Image,
        give: &mut dyn FnMut(Run) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let mut walk = Walk { image, seed: self.seed, nodes: 0, next: 0, give };
        if self.flags & FLAG_EXTENTS != 0 {
            return walk.extents(&self.map, None);
        }
        walk.pointers(&self.map[..4 * DIRECT], 0)?;
        for depth in 1..=3 {
            let pointer = 4 * (DIRECT + depth - 1);
            walk.pointers(&self.map[pointer..pointer + 4], depth as u32)?;
        }
        Ok(())
    }

    /// The same as a list.
    pub(super) fn all_runs(&self, image: &Image) -> Result<Vec<Run>, Refused> {
        let mut runs = Vec::new();
        self.runs(image, &mut |run| {
            if runs.len() >= limits::FILE_RANGES_MAX {
                return Err(Refused::new(format!("inode {} has too many extents", self.number)));
            }
            runs.push(run);
            Ok(())
        })?;
        Ok(runs)
    }
}

fn check(bytes: &[u8], seed: u32, number: u32) -> Result<(), Refused> {
    let mut plain = bytes.to_vec();
    plain[0x7c..0x7e].fill(0);
    let mut stored = u32::from(le16(bytes, 0x7c)?);
    let mut mask = 0xffff;
    if bytes.len() > 128 && le16(bytes, 0x80)? >= 4 {
        plain[0x82..0x84].fill(0);
        stored |= u32::from(le16(bytes, 0x82)?) << 16;
        mask = u32::MAX;
    }
    // An inode that was never used has no checksum.
    let unused = bytes.iter().all(|&byte| byte == 0);
    if unused || crc32c_from(seed, &plain) & mask == stored {
        return Ok(());
    }
    Err(Refused::new(format!("inode {number} has a wrong checksum")))
}

struct Walk<'a, 'b> {
    image: &'a Image<'b>,
    seed: Option<u32>,
    nodes: usize,
    /// The least number that the next block in the file may have.
    next: u64,
    give: &'a mut dyn FnMut(Run) -> Result<(), Refused>,
}

impl Walk<'_, '_> {
    fn wrong() -> Refused {
        Refused::new("a file's map of blocks is damaged")
    }

    fn node(&mut self, block: u64) -> Result<Vec<u8>, Refused> {
        self.nodes += 1;
        if self.nodes > limits::EXT4_MAP_NODES_MAX {
            return Err(Refused::new("a file's map of blocks is too large"));
        }
        if block <= self.image.superblock.first_block {
            return Err(Walk::wrong());
        }
        self.image.block(block)
    }

    fn found(&mut self, run: Run) -> Result<(), Refused> {
        let superblock = &self.image.superblock;
        let end = run.block.checked_add(run.count);
        if run.logical < self.next
            || run.count == 0
            || run.block <= superblock.first_block
            || end.is_none_or(|end| end > superblock.blocks)
        {
            return Err(Walk::wrong());
        }
        self.next = run.logical + run.count;
        (self.give)(run)
    }

    /// A node of an extent tree; `depth` is what the node above demands.
    fn extents(&mut self, node: &[u8], depth: Option<u16>) -> Result<(), Refused> {
        let (entries, most) = (le16(node, 2)?, le16(node, 4)?);
        let found = le16(node, 6)?;
        let room = (node.len() - 12) / 12;
        let fits = entries <= most && usize::from(most) <= room && found <= EXTENT_DEPTH_MAX;
        if le16(node, 0)? != EXTENT_MAGIC || !fits || depth.is_some_and(|depth| depth != found) {
            return Err(Walk::wrong());
        }
        if let (Some(seed), Some(_)) = (self.seed, depth) {
            let tail = 12 + 12 * usize::from(most);
            if crc32c_from(seed, &node[..tail]) != le32(node, tail)? {
                return Err(Refused::new("a file's map of blocks has a wrong checksum"));
            }
        }
        for entry in node[12..].chunks_exact(12).take(entries.into()) {
            let logical = u64::from(le32(entry, 0)?);
            if found == 0 {
                let length = le16(entry, 4)?;
                let unwritten = length > EXTENT_LENGTH_MAX;
                let count = if unwritten { length - EXTENT_LENGTH_MAX } else { length };
                let block = u64::from(le16(entry, 6)?) << 32 | u64::from(le32(entry, 8)?);
                self.found(Run { logical, block, count: count.into() })?;
            } else {
                let block = u64::from(le16(entry, 8)?) << 32 | u64::from(le32(entry, 4)?);
                let child = self.node(block)?;
                self.extents(&child, Some(found - 1))?;
            }
        }
        Ok(())
    }

    /// Pointers of an indirect map, `depth` levels above the data.
    fn pointers(&mut self, pointers: &[u8], depth: u32) -> Result<(), Refused> {
        let in_block = self.image.superblock.block_bytes / 4;
        let span = in_block.pow(depth);
        for pointer in pointers.chunks_exact(4) {
            let block = u64::from(le32(pointer, 0)?);
            let logical = self.next;
            if block == 0 {
                self.next += span;
            } else if depth == 0 {
                self.found(Run { logical, block, count: 1 })?;
            } else {
                let child = self.node(block)?;
                self.pointers(&child, depth - 1)?;
            }
        }
        Ok(())
    }
}
