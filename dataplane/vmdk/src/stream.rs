//! streamOptimized as it travels: a VMDK that is read and written front to back, without seeking.
//!
//! ```text
//! header | descriptor | grain, grain, … | table | grain, … | table | directory | footer | end
//! ```
//! Each part begins at a sector. A grain has a marker (sector of the disk, deflated length) and its
//! deflated bytes. The other parts have a marker sector (their length in sectors, 0, their kind).
//! A table lists where the grains of 32 MiB of the disk stand, the directory where the tables stand;
//! the footer is the header once more, now with the directory's place.
//!
//! In: bytes of an export, or a disk's data in order. Out: the disk's data in order, or such bytes.
//! Source: VMware, *Virtual Disk Format 5.0*, "Stream-Optimized Compressed Sparse Extents"; the
//! progress marker (kind 4) is what hosts send to keep a connection alive, see VMware's open-vmdk.

mod marker;
mod audit;
mod parser;
mod writer;

pub use parser::{Grain, Parser, StreamError, StreamInfo};
pub use writer::{Writer, WriterError, WriterOptions};

/// Whether a sector is the marker in front of a footer.
pub(crate) fn is_footer_marker(sector: &crate::bytes::Sector) -> bool {
    marker::Marker::parse(sector) == Ok(marker::Marker::Footer { sectors: 1 })
}

#[cfg(test)]
mod tests;
