//! Folders of XFS: names and inode numbers.
//!
//! In: a folder's inode. Out: its entries. Blocks that only speed up the search for a name (leaves,
//! nodes, free indexes) stand behind 32 GiB of the folder's content and are not read. Invariant: every
//! block has its checksum and owner. Must not: follow entries.
//! Source: Linux `fs/xfs/libxfs/xfs_da_format.h`.

use crate::bytes::{be16, be32, be64};
use crate::volume::Refused;
use crate::xfs::group::Reader;
use crate::xfs::inode::{Inode, Mapping};
use crate::xfs::superblock::checksum_fits;

/// A block that is the whole folder, with its own index at its end.
const MAGIC_BLOCK: u32 = 0x5844_4233;
/// A block of entries.
const MAGIC_DATA: u32 = 0x5844_4433;
const HEADER_BYTES: usize = 64;
/// Where in a folder's content its indexes begin.
const INDEX_BYTES: u64 = 32 << 30;
const FREE_TAG: u16 = 0xffff;
const TYPE_FILE: u8 = 1;
const TYPE_FOLDER: u8 = 2;

/// What an entry says its inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    Folder,
    Other,
}

/// Gets name, inode number and kind.
pub(super) type GiveEntry<'a> = &'a mut dyn FnMut(&str, u64, EntryKind) -> Result<(), Refused>;

fn damaged(inode: &Inode) -> Refused {
    Refused::new(format!("the folder with inode {} of this XFS is damaged", inode.number))
}

fn give(name: &[u8], number: u64, kind: u8, to: GiveEntry<'_>) -> Result<(), Refused> {
    if name == b"." || name == b".." {
        return Ok(());
    }
    let kind = match kind {
        TYPE_FILE => EntryKind::File,
        TYPE_FOLDER => EntryKind::Folder,
        _ => EntryKind::Other,
    };
    to(&String::from_utf8_lossy(name), number, kind)
}

impl Reader<'_> {
    /// Gives a folder's entries without `.` and `..`.
    pub(super) fn entries(&self, folder: &Inode, to: GiveEntry<'_>) -> Result<(), Refused> {
        if let Some(bytes) = folder.local() {
            return local_entries(folder, bytes, to);
        }
        let mappings = self.mappings(folder, &mut |_| {})?;
        let per_block = self.geometry.directory_block_bytes / self.geometry.block_bytes;
        let index = INDEX_BYTES / self.geometry.block_bytes;
        let mut next = 0;
        for mapping in mappings.iter().filter(|mapping| mapping.offset < index) {
            let end = mapping.offset + mapping.extent.length / self.geometry.block_bytes;
            let mut number = next.max(mapping.offset / per_block);
            while number * per_block < end {
                let bytes = self.directory_block(folder, &mappings, number * per_block)?;
                block_entries(folder, &bytes, to)?;
                number += 1;
            }
            next = number;
        }
        Ok(())
    }

    /// A block of a folder, which may lie in pieces.
    fn directory_block(
        &self,
        folder: &Inode,
        mappings: &[Mapping],
        first: u64,
    ) -> Result<Vec<u8>, Refused> {
        let unit = self.geometry.block_bytes;
        let mut bytes = vec![0; self.geometry.directory_block_bytes as usize];
        for (number, part) in bytes.chunks_exact_mut(unit as usize).enumerate() {
            let block = first + number as u64;
            let after = mappings.partition_point(|mapping| mapping.offset <= block);
            let mapping = after.checked_sub(1).map(|at| mappings[at]);
            let within = mapping.map(|mapping| (mapping, (block - mapping.offset) * unit));
            let within = within.filter(|(mapping, within)| *within < mapping.extent.length);
            let (mapping, within) = within.ok_or_else(|| damaged(folder))?;
            self.disk.read_at(mapping.extent.start + within, part)?;
        }
        let fits = bytes[24..40] == self.geometry.metadata_uuid
            && be64(&bytes, 40)? == folder.number
            && checksum_fits(&bytes, 4);
        if fits { Ok(bytes) } else { Err(damaged(folder)) }
    }
}

fn local_entries(folder: &Inode, bytes: &[u8], to: GiveEntry<'_>) -> Result<(), Refused> {
    let wrong = || damaged(folder);
    let [small, wide] = [bytes.first(), bytes.get(1)].map(|byte| byte.copied().unwrap_or(0));
    let number_bytes = if wide > 0 { 8 } else { 4 };
    let mut at = 2 + number_bytes;
    for _ in 0..small {
        let length = usize::from(*bytes.get(at).ok_or_else(wrong)?);
        let name = bytes.get(at + 3..at + 3 + length).ok_or_else(wrong)?;
        at += 3 + length;
        let kind = *bytes.get(at).ok_or_else(wrong)?;
        let number = if wide > 0 { be64(bytes, at + 1)? } else { u64::from(be32(bytes, at + 1)?) };
        at += 1 + number_bytes;
        give(name, number, kind, to)?;
    }
    Ok(())
}

fn block_entries(folder: &Inode, bytes: &[u8], to: GiveEntry<'_>) -> Result<(), Refused> {
    let wrong = || damaged(folder);
    let end = match be32(bytes, 0)? {
        MAGIC_DATA => bytes.len(),
        MAGIC_BLOCK => {
            let index = be32(bytes, bytes.len() - 8)? as usize;
            let index = index.checked_mul(8).and_then(|index| index.checked_add(8));
            index.and_then(|index| bytes.len().checked_sub(index)).ok_or_else(wrong)?
        }
        _ => return Err(wrong()),
    };
    let mut at = HEADER_BYTES;
    while at < end {
        if be16(bytes, at)? == FREE_TAG {
            let length = usize::from(be16(bytes, at + 2)?);
            if length < 8 || !length.is_multiple_of(8) {
                return Err(wrong());
            }
            at += length;
            continue;
        }
        let length = usize::from(*bytes.get(at + 8).ok_or_else(wrong)?);
        let name = bytes.get(at + 9..at + 9 + length).ok_or_else(wrong)?;
        let kind = *bytes.get(at + 9 + length).ok_or_else(wrong)?;
        give(name, be64(bytes, at)?, kind, to)?;
        at += (8 + 1 + length + 1 + 2).next_multiple_of(8);
    }
    Ok(())
}
