//! The headers and entries of a seSparse extent: the delta of VMFS6, and of disks over 2 TiB.
//!
//! In: two sectors; entries. Out: a [`Geometry`] and a [`State`], or why not. The format is not
//! published; this follows what QEMU's `block/vmdk.c` reads, and refuses whatever it refuses, an
//! unreplayed journal first of all.
//!
//! A grain that the guest unmapped (type 1) reads as zero here, as in QEMU, although the parent may
//! hold something: the guest has given it up. No real host has confirmed this yet.

use crate::bytes::{Sector, le64};
use crate::limits::SECTOR_BYTES;
use crate::sparse::hosted::check_geometry;
use crate::sparse::{Geometry, Layout, State};

/// First number of the file.
pub(crate) const MAGIC: u64 = 0xcafe_babe;
const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
const VERSION: u64 = 0x0000_0002_0000_0001;
const GRAIN_SECTORS: u64 = 8;
const TABLE_SECTORS: u64 = 64;
const ENTRY_BYTES: u64 = 8;
/// The first bytes of the header that must be zero.
const PADDING: usize = 208;
/// Offsets and lengths are believed below this, in sectors: 2^63 bytes.
const SECTORS_MAX: u64 = 1 << 54;

const TYPE_SHIFT: u32 = 60;
const UNMAPPED: u64 = 1;
const ZERO: u64 = 2;
const ALLOCATED: u64 = 3;

/// What the constant header says.
pub(crate) struct Header {
    pub(crate) geometry: Geometry,
    /// Where the volatile header is, in sectors.
    pub(crate) volatile_header: u64,
}

/// Reads and checks the constant header.
pub(crate) fn parse(sector: &Sector) -> Result<Header, String> {
    let field = |index: usize| le64(sector, index * 8);
    if field(0) != MAGIC {
        return Err("a seSparse extent's header begins with cafebabe".into());
    }
    if field(1) != VERSION {
        return Err(format!("version {:#x} of seSparse is not known", field(1)));
    }
    let (capacity, grain, table, flags) = (field(2), field(3), field(4), field(5));
    if grain != GRAIN_SECTORS || table != TABLE_SECTORS {
        return Err(format!("grains of {grain} and tables of {table} sectors are not known"));
    }
    if flags != 0 || (6..10).any(|index| field(index) != 0) {
        return Err("it sets flags that are not known".into());
    }
    if sector[PADDING..].iter().any(|&byte| byte != 0) {
        return Err("its header goes on where none is known to".into());
    }
    check_geometry(capacity, grain)?;
    let (volatile_header, directory, directory_sectors) = (field(10), field(16), field(17));
    let (tables, grains) = (field(18), field(24));
    if [volatile_header, directory, directory_sectors, tables, grains]
        .iter()
        .any(|&value| value == 0 || value >= SECTORS_MAX)
    {
        return Err("one of its parts has no believable place".into());
    }
    let table_entries = TABLE_SECTORS * SECTOR_BYTES / ENTRY_BYTES;
    let wanted = capacity.div_ceil(grain * table_entries);
    let entries = directory_sectors * (SECTOR_BYTES / ENTRY_BYTES);
    if entries < wanted {
        return Err(format!(
            "its directory of {entries} entries does not cover the disk, which needs {wanted}"
        ));
    }
    let layout = Layout::Long { tables, grains };
    let geometry = Geometry { capacity, grain, table_entries, directory, layout };
    Ok(Header { geometry, volatile_header })
}

/// Checks the volatile header: whether the file is consistent as it stands.
pub(crate) fn check_volatile(sector: &Sector) -> Result<(), String> {
    if le64(sector, 0) != VOLATILE_MAGIC {
        return Err("its volatile header does not begin with cafecafe".into());
    }
    if le64(sector, 24) != 0 {
        return Err(
            "its journal has not been replayed: it is in use, or its host failed while writing"
                .into(),
        );
    }
    if sector[32..].iter().any(|&byte| byte != 0) {
        return Err("its volatile header goes on where none is known to".into());
    }
    Ok(())
}

/// The number of the table that a directory's entry (which is not 0) names.
pub(crate) fn table_index(entry: u64) -> Result<u64, String> {
    if entry >> 32 != 0x1000_0000 {
        return Err(format!("({entry:#018x}) is of no known type"));
    }
    Ok(entry & 0xffff_ffff)
}

/// What a table's entry says of its grain; `grains` is where grains begin, in sectors.
pub(crate) fn state(entry: u64, grains: u64, grain: u64) -> Result<State, String> {
    match entry >> TYPE_SHIFT {
        0 if entry == 0 => Ok(State::Unallocated),
        UNMAPPED | ZERO => Ok(State::Zero),
        ALLOCATED => {
            // The number's low 12 bits stand above its high 48.
            let index =
                (entry & 0x0fff_0000_0000_0000) >> 48 | (entry & 0x0000_ffff_ffff_ffff) << 12;
            let sector = index.checked_mul(grain).and_then(|sectors| sectors.checked_add(grains));
            let place = sector.filter(|&sector| sector < SECTORS_MAX);
            let place = place.ok_or_else(|| format!("a grain ({entry:#018x}) beyond any file"))?;
            Ok(State::Data(place * SECTOR_BYTES))
        }
        _ => Err(format!("a grain ({entry:#018x}) of no known type")),
    }
}
