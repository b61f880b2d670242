//! Putting an index's rows in order before they are written: what a large index is built from.
//!
//! In: rows in any order. Out: the same in the order of their ids, of several with one id that of
//! the newest pack. Written in random order, an index that is larger than its cache costs a page
//! read and a page write a row; in order it costs what its bytes cost. [`limits::INDEX_SORT_BYTES`]
//! are in memory, the rest stands in scratch files. Invariant: every id comes out exactly once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::io;

use gantry_common::ids::BlockId;
use gantry_common::limits;

use super::location::{BLOCK_ROW_BYTES, Location};
use crate::store::storage::{OpenMode, Storage, StorageFile};

const ROW_BYTES: usize = BlockId::BYTES + BLOCK_ROW_BYTES;
const ROWS_IN_MEMORY: usize = limits::INDEX_SORT_BYTES / ROW_BYTES;

/// Id, then the newest pack, and in it the last record, first.
type Key = ([u8; 32], Reverse<(u64, u64)>);

fn key(id: [u8; 32], at: &Location) -> Key {
    (id, Reverse((at.pack.0, at.offset)))
}

/// Takes rows in.
#[derive(Debug)]
pub struct Sorter<S: Storage> {
    storage: S,
    rows: Vec<(Key, [u8; BLOCK_ROW_BYTES])>,
    rows_max: usize,
    runs: Vec<Run<S::File>>,
}

/// Sorted rows in a scratch file.
#[derive(Debug)]
struct Run<F> {
    file: F,
    bytes: u64,
    at: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl<S: Storage> Sorter<S> {
    /// Its scratch files are made in this storage.
    pub fn new(storage: S) -> Sorter<S> {
        Sorter { storage, rows: Vec::new(), rows_max: ROWS_IN_MEMORY, runs: Vec::new() }
    }

    /// One more row.
    ///
    /// # Errors
    /// Of a scratch file.
    pub fn push(&mut self, id: BlockId, at: &Location) -> io::Result<()> {
        self.rows.push((key(id.0, at), at.encode()));
        if self.rows.len() >= self.rows_max { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> io::Result<()> {
        self.rows.sort_unstable();
        let file = self.storage.open("index.sort", OpenMode::Scratch)?;
        let (mut bytes, mut buffer) = (0, Vec::new());
        for part in self.rows.chunks(16_384) {
            buffer.clear();
            for ((id, _), row) in part {
                buffer.extend(id);
                buffer.extend(row);
            }
            file.write_at(bytes, &buffer)?;
            bytes += buffer.len() as u64;
        }
        self.rows.clear();
        self.runs.push(Run { file, bytes, at: 0, buffer: Vec::new(), used: 0 });
        Ok(())
    }

    /// All rows, in order.
    ///
    /// # Errors
    /// Of a scratch file.
    pub fn sorted(mut self) -> io::Result<Sorted<S::File>> {
        if self.runs.is_empty() {
            self.rows.sort_unstable();
            let rows = std::mem::take(&mut self.rows).into_iter();
            return Ok(Sorted { rows, runs: Vec::new(), heads: BinaryHeap::new(), last: None });
        }
        if !self.rows.is_empty() {
            self.spill()?;
        }
        self.rows = Vec::new();
        let mut runs = self.runs;
        let share = (limits::INDEX_SORT_BYTES / runs.len() / ROW_BYTES).max(64) * ROW_BYTES;
        let mut heads = BinaryHeap::new();
        for (number, run) in runs.iter_mut().enumerate() {
            run.buffer.reserve_exact(share);
            if let Some(row) = run.next(share)? {
                heads.push(Reverse((row.0, number, row.1)));
            }
        }
        Ok(Sorted { rows: Vec::new().into_iter(), runs, heads, last: None })
    }
}

impl<F: StorageFile> Run<F> {
    fn next(&mut self, share: usize) -> io::Result<Option<(Key, [u8; BLOCK_ROW_BYTES])>> {
        if self.used == self.buffer.len() {
            let take = share.min((self.bytes - self.at) as usize);
            if take == 0 {
                return Ok(None);
            }
            self.buffer.resize(take, 0);
            self.file.read_exact_at(self.at, &mut self.buffer)?;
            (self.at, self.used) = (self.at + take as u64, 0);
        }
        let bytes = &self.buffer[self.used..self.used + ROW_BYTES];
        self.used += ROW_BYTES;
        let (mut id, mut row) = ([0; 32], [0; BLOCK_ROW_BYTES]);
        id.copy_from_slice(&bytes[..32]);
        row.copy_from_slice(&bytes[32..]);
        let at = Location::decode(&row).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some((key(id, &at), row)))
    }
}

type Head = Reverse<(Key, usize, [u8; BLOCK_ROW_BYTES])>;

/// Gives rows out in order.
#[derive(Debug)]
pub struct Sorted<F> {
    rows: std::vec::IntoIter<(Key, [u8; BLOCK_ROW_BYTES])>,
    runs: Vec<Run<F>>,
    heads: BinaryHeap<Head>,
    last: Option<[u8; 32]>,
}

impl<F: StorageFile> Sorted<F> {
    fn pull(&mut self) -> io::Result<Option<(Key, [u8; BLOCK_ROW_BYTES])>> {
        if let Some(row) = self.rows.next() {
            return Ok(Some(row));
        }
        let Some(mut head) = self.heads.peek_mut() else { return Ok(None) };
        let Reverse((key, number, row)) = *head;
        let share = self.runs[number].buffer.capacity() / ROW_BYTES * ROW_BYTES;
        match self.runs[number].next(share)? {
            Some(next) => *head = Reverse((next.0, number, next.1)),
            None => drop(PeekMut::pop(head)),
        }
        Ok(Some((key, row)))
    }
}

impl<F: StorageFile> Iterator for Sorted<F> {
    type Item = io::Result<(BlockId, Location)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let ((id, _), row) = match self.pull() {
                Ok(row) => row?,
                Err(error) => return Some(Err(error)),
            };
            if self.last.replace(id) != Some(id) {
                let at = Location::decode(&row).ok_or(io::ErrorKind::InvalidData.into());
                return Some(at.map(|at| (BlockId(id), at)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gantry_common::wire::Codec;

    use super::*;
    use crate::store::layout::PackNumber;
    use crate::store::record::RecordKind;
    use crate::store::storage::memory::MemoryStorage;

    fn location(pack: u64, slot: u32) -> Location {
        Location {
            pack: PackNumber(pack),
            offset: 4096 * u64::from(slot + 1),
            slot,
            stored_len: 100,
            raw_len: 200,
            codec: Codec::Zstd,
            kind: RecordKind::Block,
            verified: false,
            damaged: false,
        }
    }

    #[test]
    fn comes_out_as_from_a_sorted_map_where_the_newest_pack_wins() {
        for seed in 0..60 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut sorter = Sorter::new(MemoryStorage::new());
            sorter.rows_max = random.usize(1..300);
            let mut model: BTreeMap<BlockId, Location> = BTreeMap::new();
            let count = random.u32(0..3000);
            for slot in 0..count {
                let mut id = [random.u8(..); 32];
                id[random.usize(0..32)] = random.u8(0..40);
                let at = location(random.u64(1..50) << 32 | u64::from(slot), slot);
                sorter.push(BlockId(id), &at).unwrap();
                let held = model.entry(BlockId(id)).or_insert(at);
                if at.pack > held.pack {
                    *held = at;
                }
            }
            let sorted: Vec<_> = sorter.sorted().unwrap().map(Result::unwrap).collect();
            assert_eq!(sorted, model.into_iter().collect::<Vec<_>>(), "seed {seed}");
        }
    }

    #[test]
    fn a_disk_that_is_full_is_an_error() {
        let disk = MemoryStorage::new();
        let mut sorter = Sorter::new(disk.clone());
        sorter.rows_max = 10;
        disk.power_off_at(disk.operations());
        let failed = (0..11).any(|slot| sorter.push(BlockId([1; 32]), &location(1, slot)).is_err());
        assert!(failed);
    }
}
