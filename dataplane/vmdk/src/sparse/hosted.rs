//! The header of a hosted sparse extent: monolithicSparse, twoGbMaxExtentSparse, streamOptimized.
//!
//! In: one sector. Out: a [`HostedHeader`] whose numbers are within bounds, or why not; and back.
//! Source: VMware, *Virtual Disk Format 5.0*, "Hosted Sparse Extent Header".

use crate::bytes::{Sector, le16, le32, le64, put};
use crate::limits::{DISK_BYTES_MAX, GRAIN_BYTES_MAX, HOSTED_TABLE_ENTRIES, SECTOR_BYTES};

/// `KDMV`, as it stands in the file.
pub(crate) const MAGIC: [u8; 4] = *b"KDMV";
/// The directory's place is only known from the footer.
pub(crate) const DIRECTORY_AT_END: u64 = u64::MAX;

const NEWLINES: [u8; 4] = *b"\n \r\n";
const FLAG_NEWLINES: u32 = 1;
const FLAG_ZERO_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
const DEFLATE: u16 = 1;

/// What the header says; offsets and lengths in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostedHeader {
    pub(crate) version: u32,
    pub(crate) flags: u32,
    pub(crate) capacity: u64,
    pub(crate) grain: u64,
    pub(crate) descriptor_offset: u64,
    pub(crate) descriptor_length: u64,
    pub(crate) directory: u64,
    pub(crate) overhead: u64,
    pub(crate) compression: u16,
}

impl HostedHeader {
    /// The header of a streamOptimized extent whose directory stands at the end.
    pub(crate) fn stream(capacity: u64, grain: u64, descriptor_length: u64, overhead: u64) -> Self {
        HostedHeader {
            version: 3,
            flags: FLAG_NEWLINES | FLAG_COMPRESSED | FLAG_MARKERS,
            capacity,
            grain,
            descriptor_offset: 1,
            descriptor_length,
            directory: DIRECTORY_AT_END,
            overhead,
            compression: DEFLATE,
        }
    }

    /// Reads and checks a header.
    pub(crate) fn parse(sector: &Sector) -> Result<HostedHeader, String> {
        if sector[..4] != MAGIC {
            return Err("a sparse extent's header begins with KDMV".into());
        }
        let header = HostedHeader {
            version: le32(sector, 4),
            flags: le32(sector, 8),
            capacity: le64(sector, 12),
            grain: le64(sector, 20),
            descriptor_offset: le64(sector, 28),
            descriptor_length: le64(sector, 36),
            directory: le64(sector, 56),
            overhead: le64(sector, 64),
            compression: le16(sector, 77),
        };
        if !(1..=3).contains(&header.version) {
            return Err(format!("version {} of the sparse format is not known", header.version));
        }
        if header.flags & FLAG_NEWLINES != 0 && sector[73..77] != NEWLINES {
            return Err("its line-end marks are changed: it was copied as text".into());
        }
        let entries = u64::from(le32(sector, 44));
        if entries != HOSTED_TABLE_ENTRIES {
            return Err(format!("a grain table has {HOSTED_TABLE_ENTRIES} entries, not {entries}"));
        }
        check_geometry(header.capacity, header.grain)?;
        match (header.flags & FLAG_COMPRESSED != 0, header.compression) {
            (false, 0) | (true, DEFLATE) => {}
            // Some writers name the algorithm without using it.
            (false, DEFLATE) => return Err("it names a compression that its flags deny".into()),
            (_, other) => return Err(format!("compression {other} is not known")),
        }
        if header.compressed() && header.flags & FLAG_MARKERS == 0 {
            return Err(
                "its compressed grains have no markers, so their lengths are unknown".into()
            );
        }
        Ok(header)
    }

    /// The header's sector.
    pub(crate) fn encode(&self) -> Sector {
        let mut sector = [0; SECTOR_BYTES as usize];
        put(&mut sector, 0, &MAGIC);
        put(&mut sector, 4, &self.version.to_le_bytes());
        put(&mut sector, 8, &self.flags.to_le_bytes());
        put(&mut sector, 12, &self.capacity.to_le_bytes());
        put(&mut sector, 20, &self.grain.to_le_bytes());
        put(&mut sector, 28, &self.descriptor_offset.to_le_bytes());
        put(&mut sector, 36, &self.descriptor_length.to_le_bytes());
        put(&mut sector, 44, &(HOSTED_TABLE_ENTRIES as u32).to_le_bytes());
        put(&mut sector, 56, &self.directory.to_le_bytes());
        put(&mut sector, 64, &self.overhead.to_le_bytes());
        put(&mut sector, 73, &NEWLINES);
        put(&mut sector, 77, &self.compression.to_le_bytes());
        sector
    }

    /// Whether grains are deflated, each behind a marker.
    pub(crate) fn compressed(&self) -> bool {
        self.flags & FLAG_COMPRESSED != 0
    }

    /// Whether a table entry of 1 means a grain of zeros.
    pub(crate) fn zero_grains(&self) -> bool {
        self.flags & FLAG_ZERO_GRAINS != 0
    }

    /// Entries of the grain directory.
    pub(crate) fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.grain * HOSTED_TABLE_ENTRIES)
    }
}

/// Whether a disk of `capacity` sectors in grains of `grain` sectors is within bounds.
pub(crate) fn check_geometry(capacity: u64, grain: u64) -> Result<(), String> {
    let grain_max = GRAIN_BYTES_MAX / SECTOR_BYTES;
    if !grain.is_power_of_two() || grain > grain_max {
        return Err(format!(
            "a grain of {grain} sectors is not a power of two of at most {grain_max}"
        ));
    }
    let capacity_max = DISK_BYTES_MAX / SECTOR_BYTES;
    if capacity == 0 || capacity > capacity_max {
        return Err(format!("a capacity of {capacity} sectors is not within 1 and {capacity_max}"));
    }
    Ok(())
}
