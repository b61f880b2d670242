//! Bounds of what is read and held, whatever a disk says of itself.

/// Bytes of one read at most.
pub const READ_BYTES_MAX: usize = 1 << 20;
/// Separate ranges that one volume's filters may name; more means that the filter is off.
pub const RANGES_MAX: usize = 4 << 20;
/// Ranges are rounded inwards to this many bytes.
pub const GRAIN_BYTES: u64 = 4096;
/// Shorter ranges are not worth a note.
pub const RANGE_BYTES_MIN: u64 = 16 << 10;
/// Partitions and logical volumes of one disk that are looked at.
pub const VOLUMES_MAX: usize = 256;
/// Pieces of one logical volume.
pub const PIECES_MAX: usize = 65_536;
