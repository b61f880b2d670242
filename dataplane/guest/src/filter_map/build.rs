//! From ranges in any order to a mask.
//!
//! In: ranges of a disk with reasons. Out: sorted and disjoint ones on the grain. Invariant: a grain is
//! masked only if all of it is named for one reason. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Dropped, ranges};
use crate::limits;
use crate::volume::{Extent, Reason};

/// Whose bytes they are where reasons overlap; all reasons that there are.
pub(super) const PRIORITY: [Reason; 5] =
    [Reason::Swap, Reason::PageFile, Reason::Hibernation, Reason::Excluded, Reason::Deleted];

/// The mask of these ranges.
pub(super) fn mask(disk_bytes: u64, given: &[(Extent, Reason)]) -> Vec<(Extent, Reason)> {
    let mut taken: Vec<Extent> = Vec::new();
    let mut masked: Vec<(Extent, Reason)> = Vec::new();
    for reason in PRIORITY {
        let own: Vec<Extent> =
            given.iter().filter(|(_, of)| *of == reason).map(|(range, _)| *range).collect();
        if own.is_empty() {
            continue;
        }
        let own = ranges::joined(ranges::within(own, disk_bytes));
        let own = ranges::inwards(own, limits::GRAIN_BYTES, limits::RANGE_BYTES_MIN);
        let own = ranges::minus(&own, &taken);
        masked.extend(own.iter().map(|range| (*range, reason)));
        taken.extend(own);
        taken = ranges::joined(taken);
    }
    masked.sort_unstable();
    masked
}

/// Leaves out all but the `most` largest of a mask's ranges; of equal ones the first stay.
pub(super) fn keep_largest(masked: &mut Vec<(Extent, Reason)>, most: usize) -> Dropped {
    if masked.len() <= most {
        return Dropped::default();
    }
    masked.sort_unstable_by_key(|(range, _)| (Reverse(range.length), range.start));
    let less = masked.split_off(most);
    masked.sort_unstable();
    let bytes = less.iter().map(|(range, _)| range.length).sum();
    Dropped { ranges: less.len() as u64, bytes }
}

/// Bytes of each reason that occurs.
pub(super) fn bytes_by_reason(masked: &[(Extent, Reason)]) -> BTreeMap<Reason, u64> {
    let mut bytes = BTreeMap::new();
    for (range, reason) in masked {
        *bytes.entry(*reason).or_insert(0) += range.length;
    }
    bytes
}
