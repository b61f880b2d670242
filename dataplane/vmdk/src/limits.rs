//! Every bound of this crate in one place: what a file announces beyond one of these is refused
//! with an error, never allocated and never walked.
//!
//! In: nothing. Out: constants; units stand last in each name.

/// Bytes of a sector, the unit of every offset and length inside a VMDK.
pub const SECTOR_BYTES: u64 = 512;
/// Largest disk: 64 TiB, what vSphere allows (62 TiB), rounded up.
pub const DISK_BYTES_MAX: u64 = 64 << 40;
/// Largest descriptor: a split disk of [`EXTENTS_MAX`] extents with long names fits.
pub const DESCRIPTOR_BYTES_MAX: u64 = 1 << 20;
/// Bytes of one line of a descriptor.
pub const DESCRIPTOR_LINE_BYTES_MAX: usize = 4096;
/// Extents of one link; each is an open file. 2 GiB each, they hold 8 TiB.
pub const EXTENTS_MAX: usize = 4096;
/// Links of a chain, base included; vSphere allows 32 snapshots.
pub const CHAIN_LINKS_MAX: usize = 64;
/// Largest grain, and so the largest buffer that a compressed grain inflates to. Products write 64 KiB.
pub const GRAIN_BYTES_MAX: u64 = 1 << 20;
/// Bytes by which a compressed grain may exceed its plain size (stored blocks and zlib's frame).
pub const GRAIN_OVERHEAD_BYTES_MAX: u64 = 4096;
/// Entries of a grain table of a hosted sparse or stream extent: always this many.
pub const HOSTED_TABLE_ENTRIES: u64 = 512;
/// Bytes of metadata that are read and cached at once.
pub const TABLE_PAGE_BYTES: usize = 16 << 10;
/// Smallest table cache, whatever the options say.
pub const TABLE_CACHE_BYTES_MIN: usize = 8 * TABLE_PAGE_BYTES;
/// Grains that one look-up walks before it gives what it has.
pub const LOOKUP_GRAINS_MAX: u64 = 1 << 20;
/// Longest data run that the map gives at once.
pub const DATA_RUN_BYTES_MAX: u64 = 1 << 30;

const _: () = assert!(TABLE_PAGE_BYTES.is_multiple_of(8));
const _: () = assert!(GRAIN_BYTES_MAX.is_multiple_of(SECTOR_BYTES));
