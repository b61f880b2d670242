//! Keeps count of what became of every block of one disk, so that the numbers add up exactly.
//!
//! In: fates as they are put on the wire, what became durable, what must be done again. Out:
//! totals. Invariant: a block counts once, under its last fate; memory follows the blocks that
//! are not yet durable, not the disk.

use std::collections::BTreeMap;

use gantry_common::extents::Run;
use gantry_common::units::BlockSize;
use gantry_common::wire::TaskTotals;

/// What became of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Reads as zeros.
    Zero,
    /// As in the base.
    Unchanged,
    /// The repository had it.
    Duplicate,
    /// Sent, with so many stored bytes.
    Sent {
        /// Bytes of the payload.
        stored: u32,
    },
}

/// The fates of one disk's blocks.
#[derive(Debug)]
pub struct Fates {
    block_size: BlockSize,
    disk_bytes: u64,
    durable: TaskTotals,
    // first block -> (blocks, fate); runs never overlap.
    open: BTreeMap<u64, (u64, Fate)>,
    bytes_decided: u64,
}

impl Fates {
    /// Nothing known yet but what an earlier attempt made durable.
    pub fn new(block_size: BlockSize, disk_bytes: u64, resumed: &[Run]) -> Fates {
        let mut fates = Fates {
            block_size,
            disk_bytes,
            durable: TaskTotals::default(),
            open: BTreeMap::new(),
            bytes_decided: 0,
        };
        let bytes = resumed.iter().map(|run| fates.bytes(*run)).sum();
        fates.durable.bytes_resumed = bytes;
        fates.bytes_decided = bytes;
        fates
    }

    fn bytes(&self, run: Run) -> u64 {
        let block = u64::from(self.block_size.bytes());
        let end = run.first.saturating_add(run.count).saturating_mul(block).min(self.disk_bytes);
        end.saturating_sub(run.first.saturating_mul(block))
    }

    /// A run's fate was decided.
    pub fn decide(&mut self, run: Run, fate: Fate) {
        self.forget(run);
        self.open.insert(run.first, (run.count, fate));
        self.bytes_decided += self.bytes(run);
    }

    /// A run became durable: its fate is final.
    pub fn settle(&mut self, run: Run) {
        let mut done = Vec::new();
        self.cut(run, |part, fate| done.push((part, fate)));
        for (part, fate) in done {
            let bytes = self.bytes(part);
            add(&mut self.durable, bytes, fate);
        }
    }

    /// A run's fate was lost with a connection.
    pub fn forget(&mut self, run: Run) {
        let mut parts = Vec::new();
        self.cut(run, |part, _| parts.push(part));
        self.bytes_decided -= parts.into_iter().map(|part| self.bytes(part)).sum::<u64>();
    }

    /// Takes `run` out of the open fates, telling each part that was there.
    fn cut(&mut self, run: Run, mut tell: impl FnMut(Run, Fate)) {
        let end = run.first.saturating_add(run.count);
        let mut from = run.first;
        if let Some((&first, &(count, _))) = self.open.range(..run.first).next_back()
            && first + count > run.first
        {
            from = first;
        }
        let hit: Vec<u64> = self.open.range(from..end).map(|(&first, _)| first).collect();
        for first in hit {
            let Some((count, fate)) = self.open.remove(&first) else { continue };
            let last = first + count;
            if first < run.first {
                self.open.insert(first, (run.first - first, fate));
            }
            if last > end {
                self.open.insert(end, (last - end, fate));
            }
            let part_first = first.max(run.first);
            tell(Run { first: part_first, count: last.min(end) - part_first }, fate);
        }
    }

    /// Totals as of now; `bytes_read` is not known here and stays 0.
    pub fn totals(&self) -> TaskTotals {
        let mut totals = self.durable;
        for (&first, &(count, fate)) in &self.open {
            add(&mut totals, self.bytes(Run { first, count }), fate);
        }
        totals
    }

    /// Whether every byte of the disk has a fate.
    pub fn is_complete(&self) -> bool {
        self.bytes_decided == self.disk_bytes
    }
}

fn add(totals: &mut TaskTotals, bytes: u64, fate: Fate) {
    match fate {
        Fate::Zero => totals.bytes_zero += bytes,
        Fate::Unchanged => totals.bytes_unchanged += bytes,
        Fate::Duplicate => totals.bytes_duplicate += bytes,
        Fate::Sent { stored } => {
            totals.bytes_sent_raw += bytes;
            totals.bytes_transferred += u64::from(stored);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fate, Fates};
    use gantry_common::extents::Run;
    use gantry_common::units::BlockSize;

    fn run(first: u64, count: u64) -> Run {
        Run { first, count }
    }

    #[test]
    fn a_block_counts_once_whatever_happens() {
        let mib = 1u64 << 20;
        let mut fates = Fates::new(BlockSize::M1, 10 * mib + 7, &[run(0, 1)]);
        fates.decide(run(1, 8), Fate::Zero);
        fates.settle(run(2, 3));
        fates.decide(run(9, 1), Fate::Sent { stored: 100 });
        assert!(!fates.is_complete());
        fates.decide(run(10, 1), Fate::Duplicate);
        assert!(fates.is_complete());
        // Lost with the connection, done again with another fate.
        fates.forget(run(8, 2));
        assert!(!fates.is_complete());
        fates.decide(run(8, 1), Fate::Unchanged);
        fates.decide(run(9, 1), Fate::Sent { stored: 50 });
        fates.settle(run(0, 11));
        let totals = fates.totals();
        assert_eq!(totals.bytes_zero, 7 * mib);
        assert_eq!((totals.bytes_unchanged, totals.bytes_duplicate), (mib, 7));
        assert_eq!((totals.bytes_sent_raw, totals.bytes_transferred), (mib, 50));
        assert_eq!(totals.bytes_resumed, mib);
        assert!(fates.is_complete());
    }
}
