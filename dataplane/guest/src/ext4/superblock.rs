//! ext4's superblock: geometry, features, state.
//!
//! In: its 1024 bytes. Out: [`Superblock`], or why this file system is not looked into. Invariant: every
//! feature is known and understood, or it is refused; the geometry fits the volume. Source: Linux
//! `Documentation/filesystems/ext4/super.rst`, `fs/ext4/ext4.h`.

use crate::bytes::{crc32c_from, label, le16, le32, le64, uuid};
use crate::limits;
use crate::volume::Refused;

/// Where it is in the volume.
pub(super) const OFFSET: u64 = 1024;
/// Its length.
pub(super) const BYTES: usize = 1024;

const STATE_VALID: u16 = 1;
const STATE_ERRORS: u16 = 2;

const COMPAT_JOURNAL: u32 = 0x4;
const COMPAT_FAST_COMMIT: u32 = 0x400;
/// dir_prealloc, imagic, has_journal, ext_attr, resize_inode, dir_index, sparse_super2, stable_inodes,
/// orphan_file.
const COMPAT_KNOWN: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x200 | 0x800 | 0x1000;

const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEVICE: u32 = 0x8;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
/// filetype, recover, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt,
/// casefold.
const INCOMPAT_KNOWN: u32 = 0x2
    | 0x4
    | 0x40
    | 0x80
    | 0x100
    | 0x200
    | 0x400
    | 0x2000
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000;

const RO_GDT_CSUM: u32 = 0x10;
const RO_BIGALLOC: u32 = 0x200;
const RO_METADATA_CSUM: u32 = 0x400;
/// sparse_super, large_file, btree_dir, huge_file, gdt_csum, dir_nlink, extra_isize, quota,
/// metadata_csum, readonly, project, verity, orphan_present.
const RO_KNOWN: u32 = 0x1
    | 0x2
    | 0x4
    | 0x8
    | 0x10
    | 0x20
    | 0x40
    | 0x100
    | 0x400
    | 0x1000
    | 0x2000
    | 0x8000
    | 0x1_0000;

/// How structures are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checks {
    /// They are not.
    None,
    /// Group descriptors by CRC-16 (gdt_csum, uninit_bg).
    Groups,
    /// Everything by CRC-32C from this seed (metadata_csum).
    All(u32),
}

/// What is used of the superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) block_bytes: u64,
    /// Of the whole file system.
    pub(super) blocks: u64,
    /// The first block of the first group: 1 at blocks of 1 KiB, else 0.
    pub(super) first_block: u64,
    pub(super) group_blocks: u64,
    pub(super) group_inodes: u32,
    pub(super) inodes: u32,
    pub(super) inode_bytes: u64,
    pub(super) first_inode: u32,
    pub(super) descriptor_bytes: u64,
    pub(super) checks: Checks,
    pub(super) uuid: [u8; 16],
    /// Label and UUID.
    pub(super) identity: String,
    /// Directory entries tell what they name.
    pub(super) has_file_types: bool,
    pub(super) has_journal: bool,
    pub(super) journal_inode: u32,
    /// The journal is to be replayed.
    pub(super) needs_recovery: bool,
    /// Cleanly unmounted; says nothing where there is a journal.
    pub(super) valid: bool,
}

impl Superblock {
    /// Reads it; `volume_bytes` bounds its geometry.
    ///
    /// # Errors
    /// It is damaged, notes errors, or has a feature that is not understood.
    pub(super) fn parse(bytes: &[u8], volume_bytes: u64) -> Result<Superblock, Refused> {
        if le16(bytes, 0x38)? != 0xef53 || le32(bytes, 0x4c)? != 1 {
            return Err(Refused::new("its superblock is of an unknown revision"));
        }
        let (compat, incompat) = (le32(bytes, 0x5c)?, le32(bytes, 0x60)?);
        let read_only = le32(bytes, 0x64)?;
        check_features(compat, incompat, read_only)?;
        let uuid_bytes: [u8; 16] =
            bytes[0x68..0x78].try_into().map_err(|_| Refused::new("a short superblock"))?;
        let checks = if read_only & RO_METADATA_CSUM != 0 {
            let of_uuid = crc32c_from(u32::MAX, &uuid_bytes);
            let seeded = incompat & INCOMPAT_CSUM_SEED != 0;
            Checks::All(if seeded { le32(bytes, 0x270)? } else { of_uuid })
        } else if read_only & RO_GDT_CSUM != 0 {
            Checks::Groups
        } else {
            Checks::None
        };
        if matches!(checks, Checks::All(_)) {
            let good = crc32c_from(u32::MAX, &bytes[..0x3fc]) == le32(bytes, 0x3fc)?;
            if !good || bytes[0x175] != 1 {
                return Err(Refused::new("its superblock's checksum is wrong"));
            }
        }
        let state = le16(bytes, 0x3a)?;
        if state & STATE_ERRORS != 0 {
            return Err(Refused::new("it notes errors; run 'e2fsck' in the guest"));
        }
        let wide = incompat & INCOMPAT_64BIT != 0;
        let blocks_high = if wide { u64::from(le32(bytes, 0x150)?) } else { 0 };
        let name = label(&bytes[0x78..0x88]);
        let name = if name.is_empty() { name } else { format!("{name} ") };
        let superblock = Superblock {
            block_bytes: 1024 << le32(bytes, 0x18)?.min(16),
            blocks: blocks_high << 32 | u64::from(le32(bytes, 0x4)?),
            first_block: u64::from(le32(bytes, 0x14)?),
            group_blocks: u64::from(le32(bytes, 0x20)?),
            group_inodes: le32(bytes, 0x28)?,
            inodes: le32(bytes, 0)?,
            inode_bytes: u64::from(le16(bytes, 0x58)?),
            first_inode: le32(bytes, 0x54)?,
            descriptor_bytes: if wide { u64::from(le16(bytes, 0xfe)?) } else { 32 },
            checks,
            uuid: uuid_bytes,
            identity: format!("{name}{}", uuid(&uuid_bytes)),
            has_file_types: incompat & INCOMPAT_FILETYPE != 0,
            has_journal: compat & COMPAT_JOURNAL != 0,
            journal_inode: le32(bytes, 0xe0)?,
            needs_recovery: incompat & INCOMPAT_RECOVER != 0,
            valid: state & STATE_VALID != 0,
        };
        if le32(bytes, 0x1c)? != le32(bytes, 0x18)? || le32(bytes, 0x24)? != le32(bytes, 0x20)? {
            return Err(Refused::new("it allocates in clusters"));
        }
        superblock.check(volume_bytes)?;
        Ok(superblock)
    }

    fn check(&self, volume_bytes: u64) -> Result<(), Refused> {
        let wrong =
            |what: &str| Err(Refused::new(format!("its superblock is implausible: {what}")));
        if !(1024..=65_536).contains(&self.block_bytes) {
            return wrong("size of blocks");
        }
        if self.blocks.checked_mul(self.block_bytes).is_none_or(|length| length > volume_bytes) {
            return Err(Refused::new("it is larger than its volume"));
        }
        if self.first_block != u64::from(self.block_bytes == 1024) || self.blocks < 16 {
            return wrong("first block");
        }
        let group_max = 8 * self.block_bytes;
        if !(64..=group_max).contains(&self.group_blocks) || !self.group_blocks.is_multiple_of(8) {
            return wrong("size of groups");
        }
        let inodes_fit = self.inode_bytes.is_power_of_two()
            && (128..=self.block_bytes).contains(&self.inode_bytes)
            && (1..=group_max).contains(&u64::from(self.group_inodes))
            && u64::from(self.inodes) == self.groups() * u64::from(self.group_inodes);
        if !inodes_fit || self.groups() > limits::EXT4_GROUPS_MAX {
            return wrong("inodes or groups");
        }
        if !self.descriptor_bytes.is_power_of_two() || !(32..=1024).contains(&self.descriptor_bytes)
        {
            return wrong("size of group descriptors");
        }
        Ok(())
    }

    /// Number of block groups.
    pub(super) fn groups(&self) -> u64 {
        (self.blocks - self.first_block).div_ceil(self.group_blocks)
    }

    /// Whether another superblock of the same file system says the same of everything that decides
    /// where blocks are.
    pub(super) fn same_geometry(&self, other: &Superblock) -> bool {
        let needs_recovery = self.needs_recovery;
        Superblock {
            needs_recovery,
            valid: self.valid,
            identity: self.identity.clone(),
            ..other.clone()
        } == *self
    }
}

fn check_features(compat: u32, incompat: u32, read_only: u32) -> Result<(), Refused> {
    let named = [
        (compat, COMPAT_FAST_COMMIT, "fast_commit"),
        (incompat, INCOMPAT_JOURNAL_DEVICE, "an external journal"),
        (incompat, INCOMPAT_META_BG, "meta_bg"),
        (read_only, RO_BIGALLOC, "bigalloc"),
    ];
    if let Some((_, _, name)) = named.iter().find(|(bits, bit, _)| bits & bit != 0) {
        return Err(Refused::new(format!("it has a feature that is not filtered: {name}")));
    }
    let unknown = [compat & !COMPAT_KNOWN, incompat & !INCOMPAT_KNOWN, read_only & !RO_KNOWN];
    if unknown != [0; 3] {
        let [compat, incompat, read_only] = unknown;
        return Err(Refused::new(format!(
            "it has features that are not known here (compat {compat:#x}, incompat {incompat:#x}, ro_compat {read_only:#x})"
        )));
    }
    if read_only & RO_GDT_CSUM != 0 && read_only & RO_METADATA_CSUM != 0 {
        return Err(Refused::new("its features contradict each other"));
    }
    Ok(())
}

/// Where the journal may be elsewhere although no feature says so.
pub(super) fn has_external_journal(bytes: &[u8]) -> Result<bool, Refused> {
    Ok(le32(bytes, 0xe4)? != 0 || le64(bytes, 0xd0)? != 0)
}
