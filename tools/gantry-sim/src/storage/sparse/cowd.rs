//! The COWD layout of a delta extent (`vmfsSparse`): header of four sectors, directory, then tables
//! and grains of one sector as they come. Entries are 32-bit sector numbers, 0 is absent.
//!
//! Source: "Virtual Disk Format 1.1", VMware technical note, "ESX Server sparse extents"; read by
//! QEMU's `block/vmdk.c` (`vmdk_open_vmfs_sparse`). It does no I/O.

use super::{Geometry, SECTOR_BYTES, SparseFormat, TABLE_ENTRIES};
use crate::storage::error::{Result, StorageError};

const HEADER_SECTORS: u64 = 4;
/// ESXi makes grains of one sector.
const GRAIN_SECTORS: u64 = 1;
/// Where the header holds the first sector behind all data.
pub(super) const FREE_SECTOR_OFFSET: u64 = 28;
const PARENT_NAME_OFFSET: usize = 32;
const PARENT_NAME_BYTES: usize = 1024;

pub(super) fn geometry(capacity_bytes: u64) -> Result<Geometry> {
    if capacity_bytes / SECTOR_BYTES > u64::from(u32::MAX) {
        return Err(StorageError::Invalid(format!(
            "a disk of {capacity_bytes} bytes is too large for vmfsSparse deltas: use seSparse"
        )));
    }
    let grain_bytes = GRAIN_SECTORS * SECTOR_BYTES;
    let directory_entries = capacity_bytes.div_ceil(grain_bytes * TABLE_ENTRIES);
    let directory_offset = HEADER_SECTORS * SECTOR_BYTES;
    let grains_offset = (directory_offset + directory_entries * 4).next_multiple_of(SECTOR_BYTES);
    Ok(Geometry {
        format: SparseFormat::Cowd,
        grain_bytes,
        directory_offset,
        directory_entries,
        tables_offset: grains_offset,
        grains_offset,
    })
}

/// The header's bytes, and where the file ends at first.
pub(super) fn header(
    geometry: &Geometry,
    capacity_bytes: u64,
    parent_file: &str,
) -> (Vec<u8>, u64) {
    let mut bytes = vec![0; (HEADER_SECTORS * SECTOR_BYTES) as usize];
    bytes[..4].copy_from_slice(b"COWD");
    let numbers = [
        1, // version
        3, // flags
        (capacity_bytes / SECTOR_BYTES) as u32,
        GRAIN_SECTORS as u32,
        HEADER_SECTORS as u32,
        geometry.directory_entries as u32,
        (geometry.grains_offset / SECTOR_BYTES) as u32,
    ];
    for (place, number) in bytes[4..].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let name = &parent_file.as_bytes()[..parent_file.len().min(PARENT_NAME_BYTES - 1)];
    bytes[PARENT_NAME_OFFSET..PARENT_NAME_OFFSET + name.len()].copy_from_slice(name);
    (bytes, geometry.grains_offset)
}

pub(super) fn free_sector(end: u64) -> [u8; 4] {
    ((end / SECTOR_BYTES) as u32).to_le_bytes()
}

pub(super) fn encode_sector(offset: u64) -> Vec<u8> {
    ((offset / SECTOR_BYTES) as u32).to_le_bytes().to_vec()
}

pub(super) fn decode_sector(entry: &[u8]) -> Option<u64> {
    let sector = u32::from_le_bytes(entry.try_into().ok()?);
    (sector != 0).then(|| u64::from(sector) * SECTOR_BYTES)
}
