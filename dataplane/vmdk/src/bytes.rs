//! Little-endian numbers at fixed places of a sector.
//!
//! In: a sector, whose length the type knows, and a constant place. Out: a number.

use crate::limits::SECTOR_BYTES;

/// One sector.
pub(crate) type Sector = [u8; SECTOR_BYTES as usize];

/// Two bytes at `at`.
pub(crate) fn le16(sector: &Sector, at: usize) -> u16 {
    u16::from_le_bytes(array(sector, at))
}

/// Four bytes at `at`.
pub(crate) fn le32(sector: &Sector, at: usize) -> u32 {
    u32::from_le_bytes(array(sector, at))
}

/// Eight bytes at `at`.
pub(crate) fn le64(sector: &Sector, at: usize) -> u64 {
    u64::from_le_bytes(array(sector, at))
}

fn array<const N: usize>(sector: &Sector, at: usize) -> [u8; N] {
    std::array::from_fn(|index| sector[at + index])
}

/// Whether all bytes are zero; by pieces that the compiler compares at once.
pub(crate) fn all_zero(bytes: &[u8]) -> bool {
    bytes.chunks(128).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Writes `value` at `at`.
pub(crate) fn put(sector: &mut Sector, at: usize, value: &[u8]) {
    sector[at..at + value.len()].copy_from_slice(value);
}
