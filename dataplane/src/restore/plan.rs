//! Restore, server side: which reads bring a set of blocks. Pure.
//!
//! In: blocks with their places in packs. Out: few large reads in pack order, and runs of zeros.
//! Invariant: every block is in exactly one read; no read is longer than [`READ_BYTES_MAX`]; all are
//! aligned as records are. Must not: read.

use gantry_common::extents::Run;
use gantry_common::ids::BlockId;
use gantry_common::limits;

use crate::store::index::Location;
use crate::store::layout::PackNumber;
use crate::store::record::record_bytes;

/// Bytes of one read at the most: the largest record.
pub(super) const READ_BYTES_MAX: usize =
    (limits::STORED_BYTES_MAX as usize + 1).next_multiple_of(4096);
/// Bytes between two wanted records that are read rather than skipped: a seek of a spinning disk
/// costs more, a request to a fast one about as much.
const GAP_BYTES_MAX: u64 = 256 << 10;

/// A block and where its record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Block number.
    pub(super) block: u64,
    /// Its id.
    pub(super) id: BlockId,
    /// Its place.
    pub(super) at: Location,
}

impl Wanted {
    fn end(&self) -> u64 {
        self.at.offset.saturating_add(record_bytes(self.at.stored_len))
    }
}

/// One read of one pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GroupRead {
    /// The pack.
    pub(super) pack: PackNumber,
    /// First byte.
    pub(super) offset: u64,
    /// Bytes, a multiple of the records' alignment.
    pub(super) len: usize,
    /// What it brings, by offset. The same record may serve several blocks.
    pub(super) wanted: Vec<Wanted>,
}

/// Puts blocks together into reads, in pack order.
pub(super) fn group_reads(mut wanted: Vec<Wanted>) -> Vec<GroupRead> {
    wanted.sort_by_key(|wanted| (wanted.at.pack, wanted.at.offset, wanted.block));
    let mut reads: Vec<GroupRead> = Vec::new();
    for next in wanted {
        if let Some(read) = reads.last_mut()
            && read.pack == next.at.pack
        {
            let end = (read.offset + read.len as u64).max(next.end());
            let near = next.at.offset <= read.offset + read.len as u64 + GAP_BYTES_MAX;
            if near && end - read.offset <= READ_BYTES_MAX as u64 {
                read.len = (end - read.offset) as usize;
                read.wanted.push(next);
                continue;
            }
        }
        let (pack, offset) = (next.at.pack, next.at.offset);
        let len = record_bytes(next.at.stored_len) as usize;
        reads.push(GroupRead { pack, offset, len, wanted: vec![next] });
    }
    reads
}

/// Runs of zeros, merged, until there are enough for a message.
#[derive(Debug, Default)]
pub(super) struct ZeroRuns {
    runs: Vec<Run>,
}

impl ZeroRuns {
    /// Adds a run that begins at or after the end of the last.
    pub(super) fn push(&mut self, run: Run) {
        match self.runs.last_mut() {
            Some(last) if last.first + last.count == run.first => last.count += run.count,
            _ => self.runs.push(run),
        }
    }

    /// Takes what was gathered, in portions for one message each.
    pub(super) fn take(&mut self) -> Vec<Vec<Run>> {
        let runs = std::mem::take(&mut self.runs);
        runs.chunks(limits::RUNS_MAX).map(<[Run]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{GroupRead, READ_BYTES_MAX, Wanted, ZeroRuns, group_reads};
    use crate::store::index::Location;
    use crate::store::layout::PackNumber;
    use crate::store::record::{RecordKind, record_bytes};
    use gantry_common::extents::Run;
    use gantry_common::ids::BlockId;
    use gantry_common::limits;
    use gantry_common::wire::Codec;

    fn wanted(block: u64, pack: u64, offset: u64, stored_len: u32) -> Wanted {
        let at = Location {
            pack: PackNumber(pack),
            offset,
            slot: 0,
            stored_len,
            raw_len: stored_len,
            codec: Codec::Raw,
            kind: RecordKind::Block,
            verified: true,
            damaged: false,
        };
        Wanted { block, id: BlockId([block as u8; 32]), at }
    }

    fn shape(reads: &[GroupRead]) -> Vec<(u64, u64, usize, Vec<u64>)> {
        let blocks = |read: &GroupRead| read.wanted.iter().map(|wanted| wanted.block).collect();
        reads.iter().map(|read| (read.pack.0, read.offset, read.len, blocks(read))).collect()
    }

    #[test]
    fn neighbours_share_a_read_and_small_gaps_are_read_over() {
        let reads = group_reads(vec![
            wanted(5, 2, 4096, 100),
            wanted(1, 1, 8192, 100),
            wanted(2, 1, 4096, 100),
            wanted(3, 1, 4096 + (200 << 10), 5000),
            wanted(9, 1, 8192, 100),
            wanted(4, 1, 2 << 20, 100),
        ]);
        let first = (200 << 10) + 8192;
        assert_eq!(
            shape(&reads),
            [
                (1, 4096, first, vec![2, 1, 9, 3]),
                (1, 2 << 20, 4096, vec![4]),
                (2, 4096, 4096, vec![5])
            ]
        );
    }

    #[test]
    fn no_read_is_too_long_and_none_is_lost() {
        assert_eq!(record_bytes(limits::STORED_BYTES_MAX) as usize, READ_BYTES_MAX);
        for seed in 0..100 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut all = Vec::new();
            let mut offset = 4096;
            for block in 0..200 {
                let shift = random.u32(0..10);
                let len = random.u32(1..=limits::STORED_BYTES_MAX >> shift);
                all.push(wanted(block, random.u64(0..2), offset, len));
                offset += record_bytes(len) + 4096 * random.u64(0..100);
            }
            random.shuffle(&mut all);
            let reads = group_reads(all);
            assert_eq!(reads.iter().map(|read| read.wanted.len()).sum::<usize>(), 200);
            for read in &reads {
                assert!(read.len <= READ_BYTES_MAX && read.len.is_multiple_of(4096), "seed {seed}");
                for wanted in &read.wanted {
                    assert!(wanted.at.offset >= read.offset);
                    assert!(wanted.end() <= read.offset + read.len as u64);
                }
            }
        }
    }

    #[test]
    fn zeros_merge() {
        let mut zeros = ZeroRuns::default();
        for (first, count) in [(0, 5), (5, 5), (11, 1)] {
            zeros.push(Run { first, count });
        }
        let merged = vec![Run { first: 0, count: 10 }, Run { first: 11, count: 1 }];
        assert_eq!(zeros.take(), [merged]);
        assert!(zeros.take().is_empty());
    }
}
