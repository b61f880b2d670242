//! The superblock of XFS, version 5: geometry and features.
//!
//! In: the volume's first sector. Out: [`Geometry`], whose numbers fit each other and the volume, or
//! why the file system is left alone. Must not: accept a feature that it does not know.
//! Source: Linux `fs/xfs/libxfs/xfs_format.h` (`struct xfs_dsb`).

use crate::bytes::{be16, be32, be64, label, le32, uuid};
use crate::disk::Disk;
use crate::volume::{Extent, Refused};

const MAGIC: u32 = 0x5846_5342;
/// FTYPE, SPINODES, META_UUID, BIGTIME, NREXT64, EXCHRANGE, PARENT: none moves blocks.
const INCOMPAT_KNOWN: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80;
const INCOMPAT_FTYPE: u32 = 0x1;
const INCOMPAT_META_UUID: u32 = 0x4;
const INCOMPAT_NEEDSREPAIR: u32 = 0x10;
/// FINOBT, RMAPBT, REFLINK, INOBTCNT.
const RO_COMPAT_KNOWN: u32 = 0x1 | 0x2 | 0x4 | 0x8;
const RO_COMPAT_FINOBT: u32 = 0x1;
const RO_COMPAT_REFLINK: u32 = 0x4;
/// Logged extended attributes.
const LOG_INCOMPAT_KNOWN: u32 = 0x1;

/// Sizes and places of one file system.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    pub(super) block_bytes: u64,
    pub(super) sector_bytes: u64,
    pub(super) inode_bytes: u64,
    /// Binary logarithm of inodes in a block.
    pub(super) inodes_log: u32,
    pub(super) directory_block_bytes: u64,
    pub(super) blocks: u64,
    pub(super) groups: u32,
    pub(super) group_blocks: u32,
    /// Bits of a block's number within its group.
    pub(super) group_log: u32,
    pub(super) root_inode: u64,
    /// Bytes of the journal.
    pub(super) log: Extent,
    /// Stands in every record of the journal.
    pub(super) uuid: [u8; 16],
    /// Stands in every block of metadata; differs once an administrator has changed the other.
    pub(super) metadata_uuid: [u8; 16],
    pub(super) free_inode_tree: bool,
    pub(super) reflink: bool,
    /// Label and UUID.
    pub(super) identity: String,
}

/// The CRC of a structure, in which its own four bytes count as zero.
pub(super) fn checksum_fits(bytes: &[u8], at: usize) -> bool {
    let Ok(stored) = le32(bytes, at) else { return false };
    let sum = crc32c::crc32c(&bytes[..at]);
    let sum = crc32c::crc32c_append(sum, &[0; 4]);
    crc32c::crc32c_append(sum, &bytes[at + 4..]) == stored
}

impl Geometry {
    /// Reads and checks it.
    pub(super) fn read(disk: &dyn Disk) -> Result<Geometry, Refused> {
        let mut sector = vec![0; 512];
        disk.read_at(0, &mut sector)?;
        if be32(&sector, 0)? != MAGIC {
            return Err(Refused::new("it is no XFS"));
        }
        if be16(&sector, 100)? & 0xf != 5 {
            return Err(Refused::new("it is XFS of version 4, which has no checksums"));
        }
        let sector_log = u32::from(sector[121]);
        if !(9..=15).contains(&sector_log) || be16(&sector, 102)? != 1 << sector_log {
            return Err(damaged("sector size"));
        }
        sector.resize(1 << sector_log, 0);
        disk.read_at(0, &mut sector)?;
        if !checksum_fits(&sector, 224) {
            return Err(damaged("checksum"));
        }
        check_features(&sector)?;
        let geometry = Geometry::parse(&sector)?;
        let bytes = geometry.blocks.checked_mul(geometry.block_bytes);
        if bytes.is_none_or(|bytes| bytes > disk.length()) {
            return Err(Refused::new("this XFS is longer than its volume"));
        }
        Ok(geometry)
    }

    fn parse(sector: &[u8]) -> Result<Geometry, Refused> {
        let [block_log, inode_log, inodes_log, group_log] =
            [120, 122, 123, 124].map(|at| u32::from(sector[at]));
        let directory_log = block_log + u32::from(sector[192]);
        let logs = (10..=16).contains(&block_log)
            && (9..=11).contains(&inode_log)
            && block_log.checked_sub(inode_log) == Some(inodes_log)
            && group_log <= 31
            && directory_log <= 16
            && be32(sector, 4)? == 1 << block_log
            && be16(sector, 104)? == 1 << inode_log;
        let (blocks, group_blocks, groups) =
            (be64(sector, 8)?, be32(sector, 84)?, be32(sector, 88)?);
        let fits = logs
            && group_blocks >= 64
            && u64::from(group_blocks) <= 1 << group_log
            && u64::from(group_blocks) > 1 << group_log.saturating_sub(1)
            && blocks.div_ceil(u64::from(group_blocks).max(1)) == u64::from(groups);
        if !fits {
            return Err(damaged("geometry"));
        }
        let metadata = if be32(sector, 216)? & INCOMPAT_META_UUID != 0 { 248 } else { 32 };
        let [own_uuid, metadata_uuid] = [32, metadata].map(|at| {
            let mut uuid = [0; 16];
            uuid.copy_from_slice(&sector[at..at + 16]);
            uuid
        });
        let name = label(&sector[108..120]);
        let name = if name.is_empty() { name } else { format!("{name} ") };
        let mut geometry = Geometry {
            block_bytes: 1 << block_log,
            sector_bytes: sector.len() as u64,
            inode_bytes: 1 << inode_log,
            inodes_log,
            directory_block_bytes: 1 << directory_log,
            blocks,
            groups,
            group_blocks,
            group_log,
            root_inode: be64(sector, 56)?,
            log: Extent { start: 0, length: 0 },
            uuid: own_uuid,
            metadata_uuid,
            free_inode_tree: be32(sector, 212)? & RO_COMPAT_FINOBT != 0,
            reflink: be32(sector, 212)? & RO_COMPAT_REFLINK != 0,
            identity: format!("{name}{}", uuid(&own_uuid)),
        };
        let (log_start, log_blocks) = (be64(sector, 48)?, be32(sector, 96)?);
        geometry.log =
            geometry.extent(log_start, u64::from(log_blocks)).ok_or_else(|| damaged("journal"))?;
        Ok(geometry)
    }

    /// Blocks of a group; the last one may be shorter.
    pub(super) fn group_length(&self, group: u32) -> u64 {
        let begin = u64::from(group) * u64::from(self.group_blocks);
        self.blocks.saturating_sub(begin).min(u64::from(self.group_blocks))
    }

    /// Where a group's block is, if the group has it and those behind it.
    pub(super) fn extent_in(&self, group: u32, block: u64, blocks: u64) -> Option<Extent> {
        let fits = group < self.groups
            && blocks > 0
            && block.checked_add(blocks)? <= self.group_length(group);
        let first = u64::from(group) * u64::from(self.group_blocks) + block;
        fits.then(|| Extent { start: first * self.block_bytes, length: blocks * self.block_bytes })
    }

    /// The same for a number that names group and block.
    pub(super) fn extent(&self, block: u64, blocks: u64) -> Option<Extent> {
        let group = u32::try_from(block >> self.group_log).ok()?;
        self.extent_in(group, block & ((1 << self.group_log) - 1), blocks)
    }
}

fn damaged(what: &str) -> Refused {
    Refused::new(format!("the superblock of this XFS is damaged ({what})"))
}

fn check_features(sector: &[u8]) -> Result<(), Refused> {
    let (ro_compat, incompat, log) = (be32(sector, 212)?, be32(sector, 216)?, be32(sector, 220)?);
    if incompat & INCOMPAT_NEEDSREPAIR != 0 {
        return Err(Refused::new("this XFS needs a repair (xfs_repair)"));
    }
    if incompat & !INCOMPAT_KNOWN != 0
        || incompat & INCOMPAT_FTYPE == 0
        || ro_compat & !RO_COMPAT_KNOWN != 0
        || log & !LOG_INCOMPAT_KNOWN != 0
    {
        let text = format!("XFS features {ro_compat:#x}/{incompat:#x}/{log:#x} are not known");
        return Err(Refused::new(text));
    }
    if be64(sector, 16)? != 0 || be64(sector, 24)? != 0 {
        return Err(Refused::new("this XFS has a realtime part"));
    }
    if be64(sector, 48)? == 0 {
        return Err(Refused::new("the journal of this XFS is on another disk"));
    }
    if sector[126] != 0 {
        return Err(Refused::new("this XFS was not made to its end"));
    }
    Ok(())
}
