//! Markers: what stands at the beginning of each part of a stream.
//!
//! In: a sector. Out: a [`Marker`]. Must not: judge whether a marker is in its place.

use crate::bytes::{Sector, le32, le64, put};
use crate::limits::SECTOR_BYTES;

const END: u32 = 0;
const TABLE: u32 = 1;
const DIRECTORY: u32 = 2;
const FOOTER: u32 = 3;
const PROGRESS: u32 = 4;

/// What follows; lengths in sectors, without the marker's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    /// A grain of the disk's sector `lba`, whose deflated bytes begin in the marker's own sector.
    Grain {
        lba: u64,
        deflated_bytes: u32,
    },
    Table {
        sectors: u64,
    },
    Directory {
        sectors: u64,
    },
    Footer {
        sectors: u64,
    },
    /// Nothing but a sign of life.
    Progress,
    End,
}

impl Marker {
    pub(super) fn parse(sector: &Sector) -> Result<Marker, String> {
        let (value, size, kind) = (le64(sector, 0), le32(sector, 8), le32(sector, 12));
        if size != 0 {
            return Ok(Marker::Grain { lba: value, deflated_bytes: size });
        }
        match kind {
            // A hole in the stream would look like this too, so every other byte must be zero.
            END if value == 0 && sector.iter().all(|&byte| byte == 0) => Ok(Marker::End),
            END => Err("the end marker holds something".into()),
            TABLE => Ok(Marker::Table { sectors: value }),
            DIRECTORY => Ok(Marker::Directory { sectors: value }),
            FOOTER => Ok(Marker::Footer { sectors: value }),
            PROGRESS => Ok(Marker::Progress),
            other => Err(format!("a marker of kind {other} is not known")),
        }
    }

    /// The sector of any marker but a grain's.
    pub(super) fn encode(self) -> Sector {
        let (sectors, kind) = match self {
            Marker::Table { sectors } => (sectors, TABLE),
            Marker::Directory { sectors } => (sectors, DIRECTORY),
            Marker::Footer { sectors } => (sectors, FOOTER),
            Marker::Progress => (0, PROGRESS),
            Marker::End | Marker::Grain { .. } => (0, END),
        };
        let mut sector = [0; SECTOR_BYTES as usize];
        put(&mut sector, 0, &sectors.to_le_bytes());
        put(&mut sector, 12, &kind.to_le_bytes());
        sector
    }
}
