//! Bounds of what is read and held, whatever a disk says of itself.

/// Bytes of one read at most.
pub const READ_BYTES_MAX: usize = 1 << 20;
/// Ranges of one disk's mask; beyond it the smallest are copied. A manifest of 16 MiB holds the masks of
/// forty such disks.
pub const MASK_RANGES_MAX: usize = 32 << 10;
/// Ranges of one volume that are held at a time while they are collected (24 bytes each); beyond it the
/// smaller half is copied.
pub const COLLECTED_RANGES_MAX: usize = 512 << 10;
/// Files of one volume of which something is dropped that are named; the rest is counted.
pub const FILTERED_FILES_MAX: usize = 4096;
/// Files of one volume that masks exclude, but that are copied nevertheless, and are named.
pub const FILES_LEFT_OUT_MAX: usize = 64;
/// Ranges are rounded inwards to this many bytes.
pub const GRAIN_BYTES: u64 = 4096;
/// Shorter ranges are not worth a note.
pub const RANGE_BYTES_MIN: u64 = 16 << 10;
/// Partitions and logical volumes of one disk that are looked at.
pub const VOLUMES_MAX: usize = 256;
/// Pieces of one logical volume.
pub const PIECES_MAX: usize = 65_536;
/// Memory of the cache over one disk.
pub const CACHE_BYTES_MAX: usize = 16 << 20;
/// Bytes that looking into a disk may read of it, beside a share of its length.
pub const INSPECT_READ_BYTES_BASE: u64 = 512 << 20;
/// The share: one byte in so many.
pub const INSPECT_READ_DISK_SHARE: u64 = 64;
/// Bytes that parsers may be given, from memory or not, beside a share of the disk's length.
pub const INSPECT_SERVED_BYTES_BASE: u64 = 4 << 30;
/// The share: one byte in so many.
pub const INSPECT_SERVED_DISK_SHARE: u64 = 8;
/// Entries of a GPT; Windows and Linux make 128.
pub const GPT_ENTRIES_MAX: u32 = 1024;
/// Bytes of a volume group's metadata text.
pub const LVM_TEXT_BYTES_MAX: u64 = 16 << 20;
/// Names and values in it.
pub const LVM_NODES_MAX: usize = 1 << 20;
/// Nesting of its sections and lists.
pub const LVM_DEPTH_MAX: usize = 12;
/// Block groups of one ext4: 128 TiB at blocks of 4 KiB.
pub const EXT4_GROUPS_MAX: u64 = 1 << 20;
/// Blocks that one journal may name: 4 GiB of log at blocks of 4 KiB.
pub const EXT4_JOURNAL_TAGS_MAX: usize = 1 << 20;
/// Nodes of one file's map of blocks.
pub const EXT4_MAP_NODES_MAX: usize = 1 << 16;
/// Bytes of one directory.
pub const EXT4_DIRECTORY_BYTES_MAX: u64 = 256 << 20;
/// Records of an XFS journal, from tail to head, that are looked into.
pub const XFS_LOG_SCAN_BYTES_MAX: u64 = 1 << 20;
/// Blocks of 512 bytes of an XFS journal; the format allows 2 GiB.
pub const XFS_LOG_BLOCKS_MAX: u64 = 4 << 20;
/// Levels of a tree of XFS; the format allows no more.
pub const XFS_TREE_LEVELS_MAX: u32 = 12;
/// Folders that are walked, or wait for it, when files are looked for by mask.
pub const FOLDERS_MAX: usize = 2 << 20;
/// Separate ranges of one file.
pub const FILE_RANGES_MAX: usize = 1 << 20;
/// Files with several names that masks exclude.
pub const LINKED_FILES_MAX: usize = 1 << 18;
/// Bytes of a file's path within its volume; a longer one is not looked at.
pub const PATH_BYTES_MAX: usize = 4096;
/// Files whose content is sampled as certainly in use.
pub const SAMPLED_FILES_MAX: usize = 512;
/// Ranges of one sampled file.
pub const SAMPLED_RANGES_MAX: usize = 1 << 16;
/// Masks of excluded files.
pub const MASKS_MAX: usize = 1000;
/// Bytes of one mask.
pub const MASK_BYTES_MAX: usize = 1024;
