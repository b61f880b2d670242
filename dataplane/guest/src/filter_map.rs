//! The effective mask of a disk: which of its bytes a backup neither reads nor keeps, and why.
//!
//! In: ranges with reasons, as the readers of volumes give them ([`inspect_disk`]), or as a restore
//! point holds them. Out: [`FilterMap`]: whether a block need be read, what of it is zeroed before it is
//! hashed, what an older mask holds that this one does not. Invariants: ranges are sorted, disjoint,
//! within the disk and on its grains of [`limits::GRAIN_BYTES`], so that bytes by reason add up; the same
//! ranges give the same digest. Must not: read (but for [`inspect_disk`]), or widen a range, ever.

mod build;
mod collect;
mod inspect;
mod ranges;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::limits;
use crate::volume::{Extent, Reason, Refused};
use build::PRIORITY;

pub use inspect::{FilterOptions, FilteredFile, InspectedVolume, Inspection};
pub use inspect::{filter_disk, inspect_disk};

/// Of the rules by which ranges are rounded and left out; a part of the digest.
pub const RULES_VERSION: u16 = 1;

/// What is not filtered, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// `partition 2`, `logical volume vg/root`, `whole disk`.
    pub volume: String,
    /// `everything`, `deleted blocks`, `swap and page files`, `excluded files`, or a file's path.
    pub what: String,
    /// For the session's log.
    pub why: String,
}

/// Ranges that are copied although they need not be, because there are too many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// How many.
    pub ranges: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A disk's mask; see the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FilterMap {
    disk_bytes: u64,
    ranges: Vec<(Extent, Reason)>,
    /// What is not filtered, and why.
    pub refused: Vec<Refusal>,
    /// What is beyond [`limits::MASK_RANGES_MAX`].
    pub dropped: Dropped,
}

impl FilterMap {
    /// A mask of these ranges, in bytes of the disk, in any order: rounded inwards, joined, each byte
    /// with one reason, the smallest left out if there are too many.
    pub fn new(disk_bytes: u64, ranges: Vec<(Extent, Reason)>, refused: Vec<Refusal>) -> FilterMap {
        let ranges = build::mask(disk_bytes, &ranges);
        let mut map = FilterMap { disk_bytes, ranges, refused, dropped: Dropped::default() };
        map.keep_largest(limits::MASK_RANGES_MAX);
        map
    }

    /// Leaves out all but so many ranges, the smallest first; for a machine with many disks, whose masks
    /// share one manifest.
    pub fn keep_largest(&mut self, most: usize) {
        let more = build::keep_largest(&mut self.ranges, most);
        self.dropped.ranges += more.ranges;
        self.dropped.bytes += more.bytes;
    }

    /// Length of the disk in bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Sorted, disjoint, each within the disk.
    pub fn ranges(&self) -> &[(Extent, Reason)] {
        &self.ranges
    }

    /// Its bytes, whatever the reason: sorted, apart from each other.
    pub fn joined(&self) -> Vec<Extent> {
        ranges::joined(self.ranges.iter().map(|(range, _)| *range).collect())
    }

    /// Whether nothing is masked.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes of each reason that occurs.
    pub fn bytes_by_reason(&self) -> BTreeMap<Reason, u64> {
        build::bytes_by_reason(&self.ranges)
    }

    /// Ranges that touch this one, in order.
    fn touching(&self, range: Extent) -> impl Iterator<Item = Extent> + '_ {
        let end = range.start.saturating_add(range.length);
        let from =
            self.ranges.partition_point(|(known, _)| known.start + known.length <= range.start);
        let rest = self.ranges[from..].iter().map(|(known, _)| *known);
        rest.take_while(move |known| known.start < end)
    }

    /// Whether all of a range of the disk is masked, so that it need not be read. An empty one is not.
    pub fn covers(&self, range: Extent) -> bool {
        range.length > 0 && self.masked_bytes(range) == range.length
    }

    /// How many bytes of a range of the disk are masked.
    pub fn masked_bytes(&self, range: Extent) -> u64 {
        self.touching(range).map(|known| ranges::shared(known, range)).sum()
    }

    /// Zeroes what is masked of `bytes`, which stand at `offset` of the disk; gives how many.
    pub fn zero(&self, offset: u64, bytes: &mut [u8]) -> u64 {
        let block = Extent { start: offset, length: bytes.len() as u64 };
        let mut zeroed = 0;
        for known in self.touching(block) {
            let length = ranges::shared(known, block);
            // Within `bytes`, whose length is a usize.
            let from = (known.start.max(offset) - offset) as usize;
            bytes[from..from + length as usize].fill(0);
            zeroed += length;
        }
        zeroed
    }

    /// What the base's mask holds and today's does not: content that the repository has as zeros, which no
    /// change tracking reports, and which must be read again. Sorted and joined; reasons do not matter.
    /// What is beyond today's disk is left out.
    pub fn subtract(base: &FilterMap, today: &FilterMap) -> Vec<Extent> {
        let lost = ranges::minus(&base.joined(), &today.joined());
        ranges::within(lost, today.disk_bytes)
    }

    /// What content has zeroed of which just a part was read under this mask: this one's ranges, but
    /// within `untouched` (sorted, disjoint), which is as in the base, those of the base's mask. It can
    /// have more ranges than [`limits::MASK_RANGES_MAX`].
    pub fn with_untouched(&self, base: &FilterMap, untouched: &[Extent]) -> FilterMap {
        let mut ranges: Vec<(Extent, Reason)> = Vec::new();
        for reason in PRIORITY {
            let of = |map: &FilterMap| -> Vec<Extent> {
                let own = map.ranges.iter().filter(|(_, of)| *of == reason);
                own.map(|(range, _)| *range).collect()
            };
            let (today, held) = (of(self), ranges::within(of(base), self.disk_bytes));
            let held_and_touched = ranges::minus(&held, untouched);
            let mut pieces = ranges::minus(&today, untouched);
            pieces.extend(ranges::minus(&held, &held_and_touched));
            ranges.extend(ranges::joined(pieces).into_iter().map(|range| (range, reason)));
        }
        ranges.sort_unstable();
        FilterMap { disk_bytes: self.disk_bytes, ranges, ..FilterMap::default() }
    }

    /// Says the mask in 32 bytes: BLAKE3 of the rules' version, the grain, the disk's length and each
    /// range's start, length and reason, little-endian. Refusals do not count.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("Gantry 2026 filter map");
        hasher.update(&RULES_VERSION.to_le_bytes());
        hasher.update(&limits::GRAIN_BYTES.to_le_bytes());
        hasher.update(&self.disk_bytes.to_le_bytes());
        for (range, reason) in &self.ranges {
            hasher.update(&range.start.to_le_bytes());
            hasher.update(&range.length.to_le_bytes());
            hasher.update(&(*reason as u16).to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// As a restore point keeps it: reason, first byte, bytes.
    pub fn to_mask_ranges(&self) -> impl ExactSizeIterator<Item = (u16, u64, u64)> + '_ {
        self.ranges.iter().map(|(range, reason)| (*reason as u16, range.start, range.length))
    }

    /// From what a restore point of a disk of this length keeps.
    ///
    /// # Errors
    /// It is no mask: out of order, beyond the disk, off the grain, too long, or with a reason that is not
    /// known. Nothing can then be said of what the point has zeroed, and the disk is read in full.
    pub fn from_mask_ranges(
        disk_bytes: u64,
        stored: impl IntoIterator<Item = (u16, u64, u64)>,
    ) -> Result<FilterMap, Refused> {
        let mut ranges: Vec<(Extent, Reason)> = Vec::new();
        let mut end = 0;
        for (code, start, length) in stored {
            let wrong = |what: &str| {
                let text = "the mask of the restore point cannot be used, so that the disk is read";
                Refused::new(format!("{text}: the range at byte {start} {what}"))
            };
            let known = PRIORITY.into_iter().find(|reason| *reason as u16 == code);
            let reason = known.ok_or_else(|| wrong("has a reason that is not known"))?;
            let grain = limits::GRAIN_BYTES;
            if length == 0 || !start.is_multiple_of(grain) || !length.is_multiple_of(grain) {
                return Err(wrong("is not of whole grains"));
            }
            let beyond = start.checked_add(length).filter(|end| *end <= disk_bytes);
            if start < end || ranges.len() >= limits::MASK_RANGES_MAX {
                return Err(wrong("is out of order or one too many"));
            }
            end = beyond.ok_or_else(|| wrong("is not within the disk"))?;
            ranges.push((Extent { start, length }, reason));
        }
        Ok(FilterMap { disk_bytes, ranges, refused: Vec::new(), dropped: Dropped::default() })
    }
}
