//! What a volume's first and last bytes say it is.
//!
//! In: a volume. Out: its kind, or a refusal where two signatures stand side by side: one of them is
//! stale, and nobody can say which. Must not: check more than a signature and its plausibility; that
//! is the readers' work. Source: the kernels' and libblkid's magic numbers.

use serde::Serialize;

use crate::bytes::{le16, le32, le64};
use crate::disk::Disk;
use crate::volume::Refused;
use crate::{lvm, swap};

/// What a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// ext2, ext3, ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// NTFS.
    Ntfs,
    /// Linux swap.
    Swap,
    /// A physical volume of LVM2.
    LvmPhysicalVolume,
    /// Encrypted by BitLocker.
    BitLocker,
    /// Encrypted by LUKS.
    Luks,
    /// A member of a Linux software RAID.
    Md,
    /// A known content that has no filter; what it is, is [`VolumeKind::name`].
    Other(#[serde(skip)] &'static str),
    /// No signature that is known here.
    Unknown,
}

impl VolumeKind {
    /// As a person calls it.
    pub fn name(self) -> &'static str {
        match self {
            VolumeKind::Ext4 => "ext4",
            VolumeKind::Xfs => "XFS",
            VolumeKind::Ntfs => "NTFS",
            VolumeKind::Swap => "Linux swap",
            VolumeKind::LvmPhysicalVolume => "LVM physical volume",
            VolumeKind::BitLocker => "BitLocker",
            VolumeKind::Luks => "LUKS",
            VolumeKind::Md => "Linux RAID member",
            VolumeKind::Other(name) => name,
            VolumeKind::Unknown => "unknown content",
        }
    }
}

/// Covers the farthest of the signatures at a volume's start (Btrfs).
const HEAD_BYTES: u64 = 68 << 10;
const MD_MAGIC: u32 = 0xa92b_4efc;
const SECTOR_BYTES: u64 = 512;

/// Signatures that are nothing but bytes at a place.
const FIXED: [(usize, &[u8], VolumeKind); 20] = [
    (0, b"XFSB", VolumeKind::Xfs),
    (3, b"NTFS    ", VolumeKind::Ntfs),
    (3, b"-FVE-FS-", VolumeKind::BitLocker),
    (0, b"LUKS\xba\xbe", VolumeKind::Luks),
    (0, b"SKUL\xba\xbe", VolumeKind::Luks),
    (0x4000, b"SKUL\xba\xbe", VolumeKind::Luks),
    (0x10040, b"_BHRfS_M", VolumeKind::Other("Btrfs")),
    (3, b"EXFAT   ", VolumeKind::Other("exFAT")),
    (54, b"FAT12   ", VolumeKind::Other("FAT")),
    (54, b"FAT16   ", VolumeKind::Other("FAT")),
    (82, b"FAT32   ", VolumeKind::Other("FAT")),
    (3, b"\0\0\0\0\0ReFS\0", VolumeKind::Other("ReFS")),
    (0, b"\0\0\0ReFS\0", VolumeKind::Other("ReFS")),
    (0x8001, b"CD001", VolumeKind::Other("ISO 9660")),
    (0, b"hsqs", VolumeKind::Other("squashfs")),
    (1024, b"\x10\x20\xf5\xf2", VolumeKind::Other("F2FS")),
    (0x8000, b"JFS1", VolumeKind::Other("JFS")),
    (0x10034, b"ReIsEr", VolumeKind::Other("ReiserFS")),
    (
        0x1018,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        VolumeKind::Other("bcache"),
    ),
    (0, b"VMFS", VolumeKind::Other("VMFS")),
];

/// What the volume holds, by its signatures.
///
/// # Errors
/// It has several, or cannot be read.
pub fn detect(volume: &dyn Disk) -> Result<VolumeKind, Refused> {
    let length = volume.length();
    let mut head = vec![0; HEAD_BYTES.min(length) as usize];
    volume.read_at(0, &mut head)?;
    let fixed = FIXED
        .iter()
        .filter(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    let mut kinds: Vec<VolumeKind> = fixed.map(|(_, _, kind)| *kind).collect();
    if is_ext(&head) {
        kinds.push(VolumeKind::Ext4);
    }
    if swap::has_signature(&head) {
        kinds.push(VolumeKind::Swap);
    }
    if lvm::has_label(&head) {
        kinds.push(VolumeKind::LvmPhysicalVolume);
    }
    if is_md(volume, &head)? {
        kinds.push(VolumeKind::Md);
    }
    kinds.dedup();
    match kinds.as_slice() {
        [] => Ok(VolumeKind::Unknown),
        [kind] => Ok(*kind),
        [first, second, ..] => Err(Refused::new(format!(
            "it has the signatures of {} and of {}; run 'wipefs' in the guest to remove the stale one",
            first.name(),
            second.name()
        ))),
    }
}

fn is_ext(head: &[u8]) -> bool {
    let magic = le16(head, 1024 + 56).is_ok_and(|magic| magic == 0xef53);
    let plausible = le32(head, 1024 + 24).is_ok_and(|shift| shift <= 6)
        && le32(head, 1024).is_ok_and(|inodes| inodes > 0)
        && le32(head, 1024 + 76).is_ok_and(|revision| revision <= 1);
    magic && plausible
}

/// The four places of md's superblock: formats 1.1 and 1.2 at the start, 1.0 and 0.90 at the end.
fn is_md(volume: &dyn Disk, head: &[u8]) -> Result<bool, Refused> {
    let at_start = [0, 4096].into_iter().any(|at| {
        le32(head, at).is_ok_and(|magic| magic == MD_MAGIC)
            && le32(head, at + 4).is_ok_and(|major| major == 1)
    });
    let length = volume.length();
    let Some(sector) = (length / SECTOR_BYTES).checked_sub(16) else { return Ok(at_start) };
    let mut bytes = [0; 256];
    let sector = sector & !7;
    volume.read_at(sector * SECTOR_BYTES, &mut bytes)?;
    // It names its own place, so that the last partition's is not taken for the disk's.
    let format_1_0 = le32(&bytes, 0)? == MD_MAGIC && le64(&bytes, 144)? == sector;
    let old = (length & !0xffff).checked_sub(0x1_0000);
    let format_0_90 = match old {
        Some(at) => {
            volume.read_at(at, &mut bytes)?;
            le32(&bytes, 0)? == MD_MAGIC && le32(&bytes, 4)? == 0
        }
        None => false,
    };
    Ok(at_start || format_1_0 || format_0_90)
}
