//! Sparse extents of each kind: where a grain is, found by directory and table.
//!
//! In: a place within an extent. Out: a [`Run`]: so many bytes that are all unallocated, all zero,
//! or all in one piece of the file. Invariant: what a table names is checked; nothing is read but
//! the header when it is opened, and the pages that a look-up needs. Must not: know of parents.
//!
//! ```text
//! directory: one entry a table      table: one entry a grain      grain
//! [ sector of table, or 0 ] ------> [ sector of grain, or 0 ] --> bytes of the disk
//! ```

pub(crate) mod hosted;
pub(crate) mod cowd;
pub(crate) mod se_sparse;

use std::sync::Arc;

use crate::bytes::all_zero;
use crate::error::VmdkError;
use crate::grain::{self, Inflater, MARKER_BYTES};
use crate::limits::{LOOKUP_GRAINS_MAX, SECTOR_BYTES};
use crate::source_file::SourceFile;
use crate::tables::TableCache;

/// What some bytes of an extent are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The parent's, or zero where there is none.
    Unallocated,
    /// Zero, whatever the parent has.
    Zero,
    /// In the file at this byte.
    Data(u64),
    /// Deflated, behind a marker at this byte of the file.
    Deflated(u64),
}

/// Bytes of an extent in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where they begin within the extent. Earlier than asked for, if the grain does.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) state: State,
}

/// Why a look-up is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To read: data runs are in one piece of the file.
    Read,
    /// To know where data is, wherever it stands in the file.
    Map,
}

/// How entries are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Entries of 4 bytes, in sectors of the file. The smallest sector where a grain may stand.
    Short { zero_grains: bool, deflated: bool, first_sector: u32 },
    /// Entries of 8 bytes with a type, relative to where tables and grains begin, in sectors.
    Long { tables: u64, grains: u64 },
}

impl Layout {
    pub(crate) fn entry_bytes(self) -> u64 {
        match self {
            Layout::Short { .. } => 4,
            Layout::Long { .. } => 8,
        }
    }
}

/// Where the metadata of a sparse extent is, in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) capacity: u64,
    pub(crate) grain: u64,
    pub(crate) table_entries: u64,
    pub(crate) directory: u64,
    pub(crate) layout: Layout,
}

/// An open sparse extent.
#[derive(Debug)]
pub(crate) struct SparseExtent {
    /// The file's number within the image, for the cache.
    pub(crate) number: usize,
    pub(crate) file: Arc<SourceFile>,
    pub(crate) geometry: Geometry,
}

impl SparseExtent {
    /// What the bytes from `offset` are, up to `end` (exclusive, within the capacity) at most.
    pub(crate) fn look_up(
        &self,
        tables: &TableCache,
        offset: u64,
        end: u64,
        purpose: Purpose,
    ) -> Result<Run, VmdkError> {
        let grain_bytes = self.geometry.grain * SECTOR_BYTES;
        let first = offset / grain_bytes;
        let last = end.div_ceil(grain_bytes).max(first + 1).min(first + LOOKUP_GRAINS_MAX);
        let mut run = Growing { grain_bytes, purpose, found: None, closed: false };
        let mut grain = first;
        while grain < last && !run.closed {
            grain += self.part(tables, grain, last, &mut run)?;
        }
        let (state, grains) = run.found.unwrap_or((State::Unallocated, 1));
        let end = (first + grains) * grain_bytes;
        let start = first * grain_bytes;
        Ok(Run { start, end: end.min(self.geometry.capacity * SECTOR_BYTES), state })
    }

    /// Adds what one page of one table says of the grains from `grain` to `last`; how many it added.
    fn part(
        &self,
        tables: &TableCache,
        grain: u64,
        last: u64,
        run: &mut Growing,
    ) -> Result<u64, VmdkError> {
        let per_table = self.geometry.table_entries;
        let left = (per_table - grain % per_table).min(last - grain);
        let Some(table) = self.table(tables, grain / per_table)? else {
            return Ok(run.add(State::Unallocated, left));
        };
        let entry_bytes = self.geometry.layout.entry_bytes();
        let offset = table + grain % per_table * entry_bytes;
        let mut added = 0;
        tables.with(
            self.number,
            &self.file,
            offset,
            entry_bytes as usize,
            "a grain table",
            |bytes| {
                let length = bytes.len().min((left * entry_bytes) as usize);
                let entries = bytes[..length].chunks_exact(entry_bytes as usize);
                let count = entries.len() as u64;
                if all_zero(&bytes[..length]) {
                    added = run.add(State::Unallocated, count);
                    return Ok(());
                }
                for entry in entries {
                    let state = self.state(entry).map_err(|why| VmdkError::Damaged {
                        path: self.file.path().to_owned(),
                        offset: offset + added * entry_bytes,
                        why,
                    })?;
                    added += run.add(state, 1);
                    if run.closed {
                        break;
                    }
                }
                Ok(())
            },
        )??;
        Ok(added)
    }

    /// Where the entries of table `number` begin in the file, in bytes; nothing if it has none.
    fn table(&self, tables: &TableCache, number: u64) -> Result<Option<u64>, VmdkError> {
        let entry_bytes = self.geometry.layout.entry_bytes();
        let offset = self.geometry.directory * SECTOR_BYTES + number * entry_bytes;
        let entry = tables.with(
            self.number,
            &self.file,
            offset,
            entry_bytes as usize,
            "the grain directory",
            |bytes| number_of(&bytes[..entry_bytes as usize]),
        )?;
        let damaged = |why: String| VmdkError::Damaged {
            path: self.file.path().to_owned(),
            offset,
            why: format!("entry {number} of the grain directory {why}"),
        };
        let sector = match self.geometry.layout {
            _ if entry == 0 => return Ok(None),
            Layout::Short { .. } => entry,
            Layout::Long { tables, .. } => {
                let index = se_sparse::table_index(entry).map_err(damaged)?;
                tables + index * (self.geometry.table_entries * entry_bytes / SECTOR_BYTES)
            }
        };
        let at = sector * SECTOR_BYTES;
        if at >= self.file.size_bytes() {
            return Err(damaged(format!("names byte {at}, beyond the file's end")));
        }
        Ok(Some(at))
    }

    fn state(&self, entry: &[u8]) -> Result<State, String> {
        let value = number_of(entry);
        match self.geometry.layout {
            Layout::Long { grains, .. } => se_sparse::state(value, grains, self.geometry.grain),
            Layout::Short { zero_grains, deflated, first_sector } => match value {
                0 => Ok(State::Unallocated),
                1 if zero_grains => Ok(State::Zero),
                value if value < u64::from(first_sector) => {
                    Err(format!("a table names sector {value} for a grain, which is the header's"))
                }
                value if deflated => Ok(State::Deflated(value * SECTOR_BYTES)),
                value => Ok(State::Data(value * SECTOR_BYTES)),
            },
        }
    }

    /// Inflates the grain behind the marker at `place`, which holds the extent's bytes from `start`,
    /// and gives all of it.
    pub(crate) fn inflate<'a>(
        &self,
        place: u64,
        start: u64,
        scratch: &'a mut Scratch,
    ) -> Result<&'a [u8], VmdkError> {
        let grain_bytes = self.geometry.grain * SECTOR_BYTES;
        let damaged = |why: String| VmdkError::Damaged {
            path: self.file.path().to_owned(),
            offset: place,
            why: format!("the grain of byte {start} of the extent: {why}"),
        };
        let mut marker = [0; MARKER_BYTES];
        self.file.read_exact_at(place, &mut marker, "a grain's marker")?;
        let (lba, deflated_bytes) = (number_of(&marker[..8]), number_of(&marker[8..]));
        if lba != start / SECTOR_BYTES {
            return Err(damaged(format!("its marker is of sector {lba}")));
        }
        let max = grain::deflated_bytes_max(grain_bytes);
        if deflated_bytes == 0 || deflated_bytes > max {
            return Err(damaged(format!(
                "{deflated_bytes} deflated bytes are not within 1 and {max}"
            )));
        }
        let Scratch { inflater, deflated, plain } = scratch;
        deflated.resize(deflated_bytes as usize, 0);
        self.file.read_exact_at(place + MARKER_BYTES as u64, deflated, "a grain")?;
        plain.resize(grain_bytes as usize, 0);
        let left = self.geometry.capacity * SECTOR_BYTES - start;
        let made = inflater.inflate(deflated, plain).map_err(damaged)?;
        grain::check_length(made, grain_bytes, left).map_err(damaged)?;
        Ok(plain)
    }
}

/// What inflating needs, kept from one grain to the next.
pub(crate) struct Scratch {
    inflater: Inflater,
    deflated: Vec<u8>,
    plain: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch { inflater: Inflater::new(), deflated: Vec::new(), plain: Vec::new() }
    }
}

/// A little-endian number of up to 8 bytes.
fn number_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// A run while grains are added to it.
struct Growing {
    grain_bytes: u64,
    purpose: Purpose,
    found: Option<(State, u64)>,
    /// A grain came that does not belong to it.
    closed: bool,
}

impl Growing {
    /// Adds `count` grains that are all in `state`; gives how many it took: all or none.
    fn add(&mut self, state: State, count: u64) -> u64 {
        let Some((first, grains)) = &mut self.found else {
            self.found = Some((state, count));
            return count;
        };
        let same = match (*first, state, self.purpose) {
            (State::Unallocated, State::Unallocated, _) | (State::Zero, State::Zero, _) => true,
            (State::Data(place), State::Data(next), Purpose::Read) => {
                next == place + *grains * self.grain_bytes
            }
            (State::Data(_) | State::Deflated(_), State::Data(_) | State::Deflated(_), purpose) => {
                purpose == Purpose::Map
            }
            _ => false,
        };
        if !same {
            self.closed = true;
            return 0;
        }
        *grains += count;
        count
    }
}
