//! The extent of a delta disk: grains behind two levels of tables, in COWD (`-delta.vmdk`) or
//! seSparse (`-sesparse.vmdk`) layout.
//!
//! ```text
//! directory[ offset / (4096 * grain) ] -> table[ (offset / grain) % 4096 ] -> absent | zero | grain
//! ```
//!
//! In: whole grains. Out: runs of a range: absent (ask the parent), zero, or data at an offset of the
//! file. Invariant: data is in the file before its table entry is, a table before its directory
//! entry, so that a killed simulator leaves a readable extent. The two layouts differ in `cowd.rs`
//! and `sesparse.rs` only. It must not know about chains.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{IoContext, Result, StorageError};
use super::flat::read_or_zeros;

mod cowd;
mod sesparse;

/// Bytes of a sector; all offsets within extents are counted in these.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Grains of a table, in both layouts.
const TABLE_ENTRIES: u64 = 4096;

/// Layout of a delta disk's extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SparseFormat {
    /// `vmfsSparse`, magic `COWD`: grains of one sector; deltas on VMFS5 below 2 TiB.
    Cowd,
    /// `seSparse`: grains of 4 KiB, zeroed and unmapped grains; all deltas on VMFS6.
    SeSparse,
}

/// What an extent holds of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grain {
    /// Nothing: the parent answers.
    Absent,
    /// Zeros, whatever the parent holds.
    Zero,
    /// Bytes at this offset of the file.
    At(u64),
}

/// A range of the disk with one kind of content; data is contiguous in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) grain: Grain,
}

/// Where things lie in a file of one layout. Offsets are in bytes.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    format: SparseFormat,
    grain_bytes: u64,
    directory_offset: u64,
    directory_entries: u64,
    /// Fixed regions of seSparse; COWD puts tables among the grains.
    tables_offset: u64,
    grains_offset: u64,
}

#[derive(Debug)]
struct Table {
    /// Where the table lies in the file.
    offset: u64,
    grains: Vec<Grain>,
}

/// An open delta extent.
#[derive(Debug)]
pub(super) struct SparseExtent {
    file: File,
    path: PathBuf,
    geometry: Geometry,
    tables: BTreeMap<u64, Table>,
    /// Where the next grain goes.
    end: u64,
}

impl SparseFormat {
    fn geometry(self, capacity_bytes: u64) -> Result<Geometry> {
        match self {
            SparseFormat::Cowd => cowd::geometry(capacity_bytes),
            SparseFormat::SeSparse => Ok(sesparse::geometry(capacity_bytes)),
        }
    }
}

impl SparseExtent {
    /// A new, empty extent; `parent_file` is the parent's descriptor, which COWD names in its header.
    pub(super) fn create(
        path: &Path,
        format: SparseFormat,
        capacity_bytes: u64,
        parent_file: &str,
    ) -> Result<SparseExtent> {
        let geometry = format.geometry(capacity_bytes)?;
        let (header, end) = match format {
            SparseFormat::Cowd => cowd::header(&geometry, capacity_bytes, parent_file),
            SparseFormat::SeSparse => sesparse::header(&geometry, capacity_bytes),
        };
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.at("create", path)?;
        file.write_all_at(&header, 0).at("write", path)?;
        file.set_len(end).at("size", path)?;
        Ok(SparseExtent { file, path: path.to_owned(), geometry, tables: BTreeMap::new(), end })
    }

    /// Opens an extent that this engine has made, and reads its tables.
    pub(super) fn open(
        path: &Path,
        format: SparseFormat,
        capacity_bytes: u64,
    ) -> Result<SparseExtent> {
        let geometry = format.geometry(capacity_bytes)?;
        let file = File::options().read(true).write(true).open(path).at("open", path)?;
        let length = file.metadata().at("read", path)?.len();
        let mut extent = SparseExtent {
            file,
            path: path.to_owned(),
            geometry,
            tables: BTreeMap::new(),
            end: length.next_multiple_of(geometry.grain_bytes).max(geometry.grains_offset),
        };
        extent.load_tables()?;
        Ok(extent)
    }

    fn load_tables(&mut self) -> Result<()> {
        let geometry = self.geometry;
        let entry_bytes = geometry.entry_bytes();
        let mut directory = vec![0; (geometry.directory_entries * entry_bytes) as usize];
        read_or_zeros(&self.file, geometry.directory_offset, &mut directory)
            .at("read", &self.path)?;
        let mut bytes = vec![0; (TABLE_ENTRIES * entry_bytes) as usize];
        for (index, entry) in directory.chunks_exact(entry_bytes as usize).enumerate() {
            let Some(offset) = geometry.decode_table(entry) else { continue };
            read_or_zeros(&self.file, offset, &mut bytes).at("read", &self.path)?;
            let grains = bytes.chunks_exact(entry_bytes as usize);
            let grains = grains.map(|entry| geometry.decode_grain(entry)).collect();
            self.tables.insert(index as u64, Table { offset, grains });
        }
        Ok(())
    }

    pub(super) fn grain_bytes(&self) -> u64 {
        self.geometry.grain_bytes
    }

    /// What this extent holds of `range`, in order and without gaps. No run crosses a table.
    pub(super) fn runs(&self, range: Range<u64>) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let table_bytes = self.geometry.table_bytes();
        let mut at = range.start;
        while at < range.end {
            let table_end = (at / table_bytes + 1) * table_bytes;
            let end = table_end.min(range.end);
            match self.tables.get(&(at / table_bytes)) {
                None => runs.push(Run { offset: at, length: end - at, grain: Grain::Absent }),
                Some(table) => self.runs_of_table(table, at..end, &mut runs),
            }
            at = end;
        }
        runs
    }

    fn runs_of_table(&self, table: &Table, range: Range<u64>, runs: &mut Vec<Run>) {
        let grain_bytes = self.geometry.grain_bytes;
        let first = runs.len();
        let mut at = range.start;
        while at < range.end {
            let within = at % grain_bytes;
            let length = (grain_bytes - within).min(range.end - at);
            let grain = match table.grains[(at / grain_bytes % TABLE_ENTRIES) as usize] {
                Grain::At(offset) => Grain::At(offset + within),
                other => other,
            };
            match runs[first..].last_mut() {
                Some(last) if last.continues_with(grain) => last.length += length,
                _ => runs.push(Run { offset: at, length, grain }),
            }
            at += length;
        }
    }

    /// The runs that are not absent, in order, below `end`.
    pub(super) fn present(&self, end: u64) -> Vec<Run> {
        let table_bytes = self.geometry.table_bytes();
        let ranges = self.tables.keys().map(|&i| i * table_bytes..((i + 1) * table_bytes).min(end));
        let runs = ranges.flat_map(|range| self.runs(range));
        runs.filter(|run| run.grain != Grain::Absent).collect()
    }

    /// Reads bytes at an offset of the file that a run gave.
    pub(super) fn read_file(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        read_or_zeros(&self.file, offset, buf).at("read", &self.path)
    }

    /// Writes whole grains: in place where they are, at the end of the file where they are not.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        debug_assert!(offset.is_multiple_of(self.geometry.grain_bytes));
        debug_assert!((bytes.len() as u64).is_multiple_of(self.geometry.grain_bytes));
        let grain_bytes = self.geometry.grain_bytes;
        for run in self.runs(offset..offset + bytes.len() as u64) {
            let start = (run.offset - offset) as usize;
            let part = &bytes[start..start + run.length as usize];
            if let Grain::At(at) = run.grain {
                self.file.write_all_at(part, at).at("write", &self.path)?;
                continue;
            }
            self.prepare_table(run.offset)?;
            let at = self.allocate(run.length)?;
            self.file.write_all_at(part, at).at("write", &self.path)?;
            self.set_grains(run.offset, run.length, |i| Grain::At(at + i * grain_bytes))?;
        }
        Ok(())
    }

    /// Marks whole grains as zeros without giving them space. False if the layout cannot.
    pub(super) fn zero(&mut self, offset: u64, length: u64) -> Result<bool> {
        if self.geometry.format == SparseFormat::Cowd {
            return Ok(false);
        }
        for run in self.runs(offset..offset + length) {
            if run.grain != Grain::Zero {
                self.prepare_table(run.offset)?;
                self.set_grains(run.offset, run.length, |_| Grain::Zero)?;
            }
        }
        Ok(true)
    }

    fn allocate(&mut self, length: u64) -> Result<u64> {
        let at = self.end;
        let end = at + length;
        if self.geometry.format == SparseFormat::Cowd {
            if end / SECTOR_BYTES > u64::from(u32::MAX) {
                let path = self.path.display();
                return Err(StorageError::Invalid(format!("{path}: a COWD delta ends at 2 TiB")));
            }
            self.file
                .write_all_at(&cowd::free_sector(end), cowd::FREE_SECTOR_OFFSET)
                .at("write", &self.path)?;
        }
        self.end = end;
        Ok(at)
    }

    /// Makes sure that the table of this offset exists.
    fn prepare_table(&mut self, offset: u64) -> Result<()> {
        let index = offset / self.geometry.table_bytes();
        if self.tables.contains_key(&index) {
            return Ok(());
        }
        let size = TABLE_ENTRIES * self.geometry.entry_bytes();
        let at = match self.geometry.format {
            SparseFormat::Cowd => self.allocate(size)?,
            SparseFormat::SeSparse => self.geometry.tables_offset + self.tables.len() as u64 * size,
        };
        self.file.write_all_at(&vec![0; size as usize], at).at("write", &self.path)?;
        let entry = self.geometry.encode_table(at);
        let place = self.geometry.directory_offset + index * self.geometry.entry_bytes();
        self.file.write_all_at(&entry, place).at("write", &self.path)?;
        let grains = vec![Grain::Absent; TABLE_ENTRIES as usize];
        self.tables.insert(index, Table { offset: at, grains });
        Ok(())
    }

    /// Sets the entries of a run of grains within one table that exists.
    fn set_grains(&mut self, offset: u64, length: u64, grain: impl Fn(u64) -> Grain) -> Result<()> {
        let geometry = self.geometry;
        let first = offset / geometry.grain_bytes % TABLE_ENTRIES;
        let count = length / geometry.grain_bytes;
        let new: Vec<Grain> = (0..count).map(grain).collect();
        let bytes: Vec<u8> = new.iter().flat_map(|g| geometry.encode_grain(*g)).collect();
        let Some(table) = self.tables.get_mut(&(offset / geometry.table_bytes())) else {
            return Err(StorageError::Invalid(format!("no table at {offset}")));
        };
        let place = table.offset + first * geometry.entry_bytes();
        self.file.write_all_at(&bytes, place).at("write", &self.path)?;
        table.grains[first as usize..(first + count) as usize].copy_from_slice(&new);
        Ok(())
    }
}

impl Run {
    fn continues_with(&self, next: Grain) -> bool {
        match (self.grain, next) {
            (Grain::At(at), Grain::At(next)) => at + self.length == next,
            (mine, next) => mine == next,
        }
    }
}

impl Geometry {
    fn table_bytes(&self) -> u64 {
        self.grain_bytes * TABLE_ENTRIES
    }

    fn entry_bytes(&self) -> u64 {
        match self.format {
            SparseFormat::Cowd => 4,
            SparseFormat::SeSparse => 8,
        }
    }

    fn encode_table(&self, offset: u64) -> Vec<u8> {
        match self.format {
            SparseFormat::Cowd => cowd::encode_sector(offset),
            SparseFormat::SeSparse => sesparse::encode_table(self, offset),
        }
    }

    fn decode_table(&self, entry: &[u8]) -> Option<u64> {
        match self.format {
            SparseFormat::Cowd => cowd::decode_sector(entry),
            SparseFormat::SeSparse => sesparse::decode_table(self, entry),
        }
    }

    fn encode_grain(&self, grain: Grain) -> Vec<u8> {
        match (self.format, grain) {
            (SparseFormat::Cowd, Grain::At(offset)) => cowd::encode_sector(offset),
            (SparseFormat::Cowd, _) => vec![0; 4],
            (SparseFormat::SeSparse, grain) => sesparse::encode_grain(self, grain),
        }
    }

    fn decode_grain(&self, entry: &[u8]) -> Grain {
        match self.format {
            SparseFormat::Cowd => cowd::decode_sector(entry).map_or(Grain::Absent, Grain::At),
            SparseFormat::SeSparse => sesparse::decode_grain(self, entry),
        }
    }
}
