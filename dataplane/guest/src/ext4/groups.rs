//! ext4's block groups: descriptors and bitmaps.
//!
//! In: blocks after replay ([`Image`]). Out: [`Group`]s; bitmaps with their checksums verified. Invariant:
//! every place that a descriptor names lies within the file system. Source: Linux
//! `Documentation/filesystems/ext4/group_descr.rst`, `fs/ext4/bitmap.c`.

use crc::{CRC_16_MODBUS, Crc};

use super::image::Image;
use super::superblock::{Checks, Superblock};
use crate::bytes::{crc32c_from, le16, le32};
use crate::volume::Refused;

/// CRC-16 with all bits set at its start.
const CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);
const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;

/// A block group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
    free_blocks: u32,
    bitmap_checksum: u32,
    /// Its bitmap of blocks was never written: all count as used.
    pub(super) blocks_unset: bool,
    /// The same of inodes: none is in use.
    pub(super) inodes_unset: bool,
}

/// The block that holds a group's descriptor, and the descriptor's place in it.
fn place(superblock: &Superblock, group: u64) -> (u64, usize) {
    let at = group * superblock.descriptor_bytes;
    let block = superblock.first_block + 1 + at / superblock.block_bytes;
    (block, (at % superblock.block_bytes) as usize)
}

/// Blocks of the table of descriptors.
pub(super) fn table_blocks(superblock: &Superblock) -> u64 {
    (superblock.groups() * superblock.descriptor_bytes).div_ceil(superblock.block_bytes)
}

/// One group's descriptor at its place, before any replay.
pub(super) fn first_on_disk(image: &Image) -> Result<Group, Refused> {
    let (block, at) = place(&image.superblock, 0);
    parse(&image.superblock, 0, &image.block_on_disk(block)?, at)
}

/// All groups after replay; where the descriptor on disk says that a bitmap was never written, that
/// counts too.
pub(super) fn read_all(image: &Image) -> Result<Vec<Group>, Refused> {
    let superblock = &image.superblock;
    let count = superblock.groups();
    let mut groups = Vec::with_capacity(count as usize);
    for number in 0..table_blocks(superblock) {
        let block = superblock.first_block + 1 + number;
        let (bytes, before) = (image.block(block)?, image.block_on_disk(block)?);
        let in_block = superblock.block_bytes / superblock.descriptor_bytes;
        for group in number * in_block..((number + 1) * in_block).min(count) {
            let (_, at) = place(superblock, group);
            let mut parsed = parse(superblock, group, &bytes, at)?;
            if superblock.checks != Checks::None {
                parsed.blocks_unset |= le16(&before, at + 0x12)? & BLOCK_UNINIT != 0;
            }
            groups.push(parsed);
        }
    }
    Ok(groups)
}

fn parse(superblock: &Superblock, group: u64, block: &[u8], at: usize) -> Result<Group, Refused> {
    let wrong = || Refused::new(format!("the descriptor of its group {group} is damaged"));
    let length = superblock.descriptor_bytes as usize;
    let bytes = block.get(at..at + length).ok_or_else(wrong)?;
    let number = (group as u32).to_le_bytes();
    let stored = le16(bytes, 0x1e)?;
    let sum = match superblock.checks {
        Checks::None => stored,
        Checks::Groups => {
            let mut digest = CRC16.digest();
            digest.update(&superblock.uuid);
            digest.update(&number);
            digest.update(&bytes[..0x1e]);
            digest.update(&bytes[0x20..]);
            digest.finalize()
        }
        Checks::All(seed) => {
            let mut sum = crc32c_from(crc32c_from(seed, &number), &bytes[..0x1e]);
            sum = crc32c_from(crc32c_from(sum, &[0; 2]), &bytes[0x20..]);
            sum as u16
        }
    };
    if sum != stored {
        return Err(wrong());
    }
    let wide = length >= 64;
    let high32 = |at: usize| if wide { le32(bytes, at).map(u64::from) } else { Ok(0) };
    let high16 = |at: usize| if wide { le16(bytes, at).map(u32::from) } else { Ok(0) };
    let flags = if superblock.checks == Checks::None { 0 } else { le16(bytes, 0x12)? };
    let found = Group {
        block_bitmap: high32(0x20)? << 32 | u64::from(le32(bytes, 0)?),
        inode_bitmap: high32(0x24)? << 32 | u64::from(le32(bytes, 4)?),
        inode_table: high32(0x28)? << 32 | u64::from(le32(bytes, 8)?),
        free_blocks: high16(0x2c)? << 16 | u32::from(le16(bytes, 0xc)?),
        bitmap_checksum: high16(0x38)? << 16 | u32::from(le16(bytes, 0x18)?),
        blocks_unset: flags & BLOCK_UNINIT != 0,
        inodes_unset: flags & INODE_UNINIT != 0,
    };
    let table = inode_table_blocks(superblock);
    let fits = |block: u64, count: u64| {
        block > superblock.first_block
            && block.checked_add(count).is_some_and(|end| end <= superblock.blocks)
    };
    let apart = found.block_bitmap != found.inode_bitmap;
    if fits(found.block_bitmap, 1)
        && fits(found.inode_bitmap, 1)
        && fits(found.inode_table, table)
        && apart
    {
        Ok(found)
    } else {
        Err(wrong())
    }
}

/// Blocks of one group's table of inodes.
pub(super) fn inode_table_blocks(superblock: &Superblock) -> u64 {
    (u64::from(superblock.group_inodes) * superblock.inode_bytes).div_ceil(superblock.block_bytes)
}

/// A group's blocks in use, a bit each, now or in any state that replay passes through; nothing where
/// all count as used. The checksum and count of the last state are verified.
pub(super) fn used_blocks(
    image: &Image,
    number: u64,
    group: &Group,
) -> Result<Option<Vec<u8>>, Refused> {
    if group.blocks_unset {
        return Ok(None);
    }
    let superblock = &image.superblock;
    let last = image.block(group.block_bitmap)?;
    let whole = (superblock.group_blocks / 8) as usize;
    if let Checks::All(seed) = superblock.checks {
        let mask = if superblock.descriptor_bytes >= 64 { u32::MAX } else { 0xffff };
        if crc32c_from(seed, &last[..whole]) & mask != group.bitmap_checksum {
            let text = format!("the bitmap of its group {number} has a wrong checksum");
            return Err(Refused::new(text));
        }
    }
    let blocks = blocks_in(superblock, number);
    let free = free_bits(&last, blocks);
    if free != u64::from(group.free_blocks) {
        return Err(Refused::new(format!(
            "the bitmap of its group {number} has {free} free blocks, its descriptor says {}",
            group.free_blocks
        )));
    }
    let mut used = last;
    let mut add = |bytes: Vec<u8>| used.iter_mut().zip(bytes).for_each(|(all, one)| *all |= one);
    add(image.block_on_disk(group.block_bitmap)?);
    for copy in image.journal.copies(group.block_bitmap) {
        add(image.copy(copy)?);
    }
    Ok(Some(used))
}

fn free_bits(bitmap: &[u8], bits: u64) -> u64 {
    let whole = (bits / 8) as usize;
    let free = bitmap[..whole].iter().fold(0, |sum, byte| sum + u64::from(byte.count_zeros()));
    free + (bits / 8 * 8..bits).filter(|bit| !is_set(bitmap, *bit)).count() as u64
}

/// Blocks of a group; the last one may be short.
pub(super) fn blocks_in(superblock: &Superblock, group: u64) -> u64 {
    let start = superblock.first_block + group * superblock.group_blocks;
    (superblock.blocks - start).min(superblock.group_blocks)
}

/// Whether a bit is set; beyond the bitmap all are.
pub(super) fn is_set(bitmap: &[u8], bit: u64) -> bool {
    bitmap.get((bit / 8) as usize).is_none_or(|byte| byte >> (bit % 8) & 1 == 1)
}
