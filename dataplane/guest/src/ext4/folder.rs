//! ext4's directories: the names in one, whatever its index.
//!
//! In: a directory's inode. Out: its entries. Invariant: an index node looks like one empty entry, so an
//! indexed directory is read as a list; checksums of leaves are verified. Must not: follow anything.
//! Source: Linux `Documentation/filesystems/ext4/directory.rst`.

use super::image::Image;
use super::inode::Inode;
use crate::bytes::{crc32c_from, le16, le32};
use crate::limits;
use crate::volume::Refused;

/// An entry that carries the leaf's checksum.
const TYPE_TAIL: u8 = 0xde;
const TAIL_BYTES: usize = 12;

/// What an entry names, where the file system says so in the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    File,
    Folder,
    Other,
    /// The inode tells.
    Unsaid,
}

/// An entry of a directory.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) inode: u32,
    pub(super) names: Names,
    /// Not UTF-8 is shown with replacements.
    pub(super) name: String,
}

/// Gives the entries, without `.` and `..`.
///
/// # Errors
/// The directory is damaged, too large, or of a kind that is not read (inline, encrypted).
pub(super) fn entries(
    image: &Image,
    folder: &Inode,
    give: &mut dyn FnMut(Entry) -> Result<(), Refused>,
) -> Result<(), Refused> {
    if !folder.has_blocks() || folder.is_encrypted() {
        return Err(Refused::new("a folder is encrypted or stands in its inode"));
    }
    if folder.size > limits::EXT4_DIRECTORY_BYTES_MAX {
        return Err(Refused::new("a folder is too large"));
    }
    let blocks = folder.size / image.superblock.block_bytes;
    folder.runs(image, &mut |run| {
        let count = run.count.min(blocks.saturating_sub(run.logical));
        for block in run.block..run.block + count {
            leaf(image, &image.block(block)?, folder.seed(), give)?;
        }
        Ok(())
    })
}

fn leaf(
    image: &Image,
    bytes: &[u8],
    seed: Option<u32>,
    give: &mut dyn FnMut(Entry) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let wrong = || Refused::new("a folder's entries are damaged");
    let tail = bytes.len() - TAIL_BYTES;
    let has_tail = bytes[tail..tail + 4] == [0; 4]
        && le16(bytes, tail + 4)? as usize == TAIL_BYTES
        && bytes[tail + 7] == TYPE_TAIL;
    let sum = seed.map(|seed| crc32c_from(seed, &bytes[..tail]));
    let stored = le32(bytes, tail + 8)?;
    if has_tail && sum.is_some_and(|sum| sum != stored) {
        return Err(Refused::new("a folder's entries have a wrong checksum"));
    }
    let mut at = 0;
    while at + 8 <= bytes.len() {
        let length = entry_length(le16(bytes, at + 4)?, bytes.len());
        let entry =
            bytes.get(at..at + length).filter(|entry| entry.len() >= 8).ok_or_else(wrong)?;
        at += length;
        let inode = le32(entry, 0)?;
        let typed = image.superblock.has_file_types;
        let name_length = if typed { usize::from(entry[6]) } else { le16(entry, 6)?.into() };
        let name = entry.get(8..8 + name_length).ok_or_else(wrong)?;
        if inode == 0 || name == b"." || name == b".." {
            continue;
        }
        let names = match entry[7] {
            _ if !typed => Names::Unsaid,
            1 => Names::File,
            2 => Names::Folder,
            0 => Names::Unsaid,
            _ => Names::Other,
        };
        if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
            return Err(wrong());
        }
        give(Entry { inode, names, name: String::from_utf8_lossy(name).into_owned() })?;
    }
    Ok(())
}

/// Blocks of 64 KiB need lengths that 16 bits do not hold.
fn entry_length(stored: u16, block: usize) -> usize {
    if block >= 65_536 && matches!(stored, 0 | u16::MAX) {
        return block;
    }
    let stored = usize::from(stored);
    if block >= 65_536 { stored & 0xfffc | (stored & 3) << 16 } else { stored }
}
