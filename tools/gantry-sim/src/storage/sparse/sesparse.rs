//! The seSparse layout of a delta extent: two headers, journal, directory, tables, free bitmap, back
//! map and grains of 4 KiB, each region at a fixed place and aligned to 1 MiB. Entries have 64 bits.
//!
//! The vendor has not documented it; this is what QEMU's `block/vmdk.c` (`vmdk_open_se_sparse`)
//! reads. The journal is always clean, and nobody reads free bitmap and back map, so they stay zero.
//! It does no I/O.

use super::{Geometry, Grain, SECTOR_BYTES, SparseFormat, TABLE_ENTRIES};

const CONST_MAGIC: u64 = 0xcafe_babe;
const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
const VERSION: u64 = 0x2_0000_0001;
const GRAIN_BYTES: u64 = 4096;
const TABLE_BYTES: u64 = TABLE_ENTRIES * 8;
const REGION_BYTES: u64 = 1 << 20;
const DIRECTORY_OFFSET: u64 = 2 * REGION_BYTES;

/// Top nibble of an entry of the directory: there is a table.
const TABLE_PRESENT: u64 = 1 << 60;
const KIND: u64 = 0xf << 60;
const KIND_UNMAPPED: u64 = 1 << 60;
const KIND_ZERO: u64 = 2 << 60;
const KIND_ALLOCATED: u64 = 3 << 60;

fn region(bytes: u64) -> u64 {
    bytes.next_multiple_of(REGION_BYTES)
}

fn tables(capacity_bytes: u64) -> u64 {
    capacity_bytes.div_ceil(GRAIN_BYTES * TABLE_ENTRIES)
}

/// Bytes of free bitmap and of back map, which lie between tables and grains.
fn map_regions(capacity_bytes: u64) -> (u64, u64) {
    let grains = tables(capacity_bytes) * TABLE_ENTRIES;
    (region(grains / 8), region(grains * 8))
}

pub(super) fn geometry(capacity_bytes: u64) -> Geometry {
    let tables = tables(capacity_bytes);
    let tables_offset = DIRECTORY_OFFSET + region(tables * 8);
    let (bitmap, backmap) = map_regions(capacity_bytes);
    Geometry {
        format: SparseFormat::SeSparse,
        grain_bytes: GRAIN_BYTES,
        directory_offset: DIRECTORY_OFFSET,
        directory_entries: tables,
        tables_offset,
        grains_offset: tables_offset + region(tables * TABLE_BYTES) + bitmap + backmap,
    }
}

/// The bytes of both headers, and where the file ends at first.
pub(super) fn header(geometry: &Geometry, capacity_bytes: u64) -> (Vec<u8>, u64) {
    let (bitmap_bytes, backmap_bytes) = map_regions(capacity_bytes);
    let backmap_offset = geometry.grains_offset - backmap_bytes;
    let bitmap_offset = backmap_offset - bitmap_bytes;
    let sectors = |bytes: u64| bytes / SECTOR_BYTES;
    let grains_bytes = geometry.directory_entries * TABLE_ENTRIES * GRAIN_BYTES;
    let numbers = [
        CONST_MAGIC,
        VERSION,
        sectors(capacity_bytes),
        sectors(GRAIN_BYTES),
        sectors(TABLE_BYTES),
        0, // flags
        0, // four reserved
        0,
        0,
        0,
        1, // volatile header: offset, size
        1,
        2, // journal header
        2,
        sectors(REGION_BYTES), // journal
        sectors(REGION_BYTES),
        sectors(geometry.directory_offset),
        sectors(geometry.tables_offset - geometry.directory_offset),
        sectors(geometry.tables_offset),
        sectors(bitmap_offset - geometry.tables_offset),
        sectors(bitmap_offset),
        sectors(bitmap_bytes),
        sectors(backmap_offset),
        sectors(backmap_bytes),
        sectors(geometry.grains_offset),
        sectors(grains_bytes),
    ];
    let mut bytes = vec![0; 2 * SECTOR_BYTES as usize];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let volatile = &mut bytes[SECTOR_BYTES as usize..];
    volatile[..8].copy_from_slice(&VOLATILE_MAGIC.to_le_bytes());
    (bytes, geometry.grains_offset)
}

fn number(entry: &[u8]) -> u64 {
    entry.try_into().map_or(0, u64::from_le_bytes)
}

pub(super) fn encode_table(geometry: &Geometry, offset: u64) -> Vec<u8> {
    let index = (offset - geometry.tables_offset) / TABLE_BYTES;
    (TABLE_PRESENT | index).to_le_bytes().to_vec()
}

pub(super) fn decode_table(geometry: &Geometry, entry: &[u8]) -> Option<u64> {
    let entry = number(entry);
    let index = entry & 0xffff_ffff;
    (entry & KIND == TABLE_PRESENT).then_some(geometry.tables_offset + index * TABLE_BYTES)
}

/// A grain's number is swizzled: its low 12 bits stand above its high 48.
pub(super) fn encode_grain(geometry: &Geometry, grain: Grain) -> Vec<u8> {
    let entry = match grain {
        Grain::Absent => 0,
        Grain::Zero => KIND_ZERO,
        Grain::At(offset) => {
            let index = (offset - geometry.grains_offset) / GRAIN_BYTES;
            KIND_ALLOCATED | (index & 0xfff) << 48 | index >> 12
        }
    };
    entry.to_le_bytes().to_vec()
}

pub(super) fn decode_grain(geometry: &Geometry, entry: &[u8]) -> Grain {
    let entry = number(entry);
    match entry & KIND {
        KIND_ALLOCATED => {
            let index = entry >> 48 & 0xfff | (entry & 0xffff_ffff_ffff) << 12;
            Grain::At(geometry.grains_offset + index * GRAIN_BYTES)
        }
        KIND_ZERO | KIND_UNMAPPED => Grain::Zero,
        _ => Grain::Absent,
    }
}
