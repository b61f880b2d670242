//! The header of a COWD extent: vmfsSparse, the delta of VMFS5 for disks below 2 TiB.
//!
//! In: one sector. Out: a [`Geometry`], or why not. Source: libvmdk's *VMWare Virtual Disk Format*,
//! "COWD sparse extent data file"; VMware's open-vmdk (`COWDisk_Header`).

use crate::bytes::{Sector, le32};
use crate::sparse::hosted::check_geometry;
use crate::sparse::{Geometry, Layout};

/// As it stands in the file.
pub(crate) const MAGIC: [u8; 4] = *b"COWD";
/// Entries of a grain table.
const TABLE_ENTRIES: u64 = 4096;
/// The header's sectors; no grain can stand there.
const HEADER_SECTORS: u32 = 4;

/// Reads and checks a header.
pub(crate) fn parse(sector: &Sector) -> Result<Geometry, String> {
    if sector[..4] != MAGIC {
        return Err("a vmfsSparse extent's header begins with COWD".into());
    }
    let version = le32(sector, 4);
    if version != 1 {
        return Err(format!("version {version} of COWD is not known"));
    }
    let (capacity, grain) = (u64::from(le32(sector, 12)), u64::from(le32(sector, 16)));
    check_geometry(capacity, grain)?;
    let (directory, entries) = (u64::from(le32(sector, 20)), u64::from(le32(sector, 24)));
    let wanted = capacity.div_ceil(grain * TABLE_ENTRIES);
    if directory < u64::from(HEADER_SECTORS) || entries < wanted {
        return Err(format!(
            "its directory at sector {directory} with {entries} entries does not cover the disk, \
             which needs {wanted}"
        ));
    }
    let layout =
        Layout::Short { zero_grains: false, deflated: false, first_sector: HEADER_SECTORS };
    Ok(Geometry { capacity, grain, table_entries: TABLE_ENTRIES, directory, layout })
}
