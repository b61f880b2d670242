//! Arithmetic of ranges of bytes.
//!
//! In and out: lists of ranges. Invariant: what is called a list of ranges here is sorted and disjoint
//! (but for what [`joined`] takes). Pure.

use crate::volume::Extent;

/// Where a range ends.
pub(super) fn end(range: Extent) -> u64 {
    range.start.saturating_add(range.length)
}

/// Bytes that two ranges share.
pub(super) fn shared(one: Extent, other: Extent) -> u64 {
    end(one).min(end(other)).saturating_sub(one.start.max(other.start))
}

/// Ranges in any order as a list, joined where they touch or overlap.
pub(super) fn joined(mut ranges: Vec<Extent>) -> Vec<Extent> {
    ranges.retain(|range| range.length > 0);
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let touches = end(*last) >= next.start;
        if touches {
            last.length = end(*last).max(end(*next)) - last.start;
        }
        touches
    });
    ranges
}

/// A list without what is at or beyond `limit`.
pub(super) fn within(mut ranges: Vec<Extent>, limit: u64) -> Vec<Extent> {
    ranges.retain_mut(|range| {
        range.length = end(*range).min(limit).saturating_sub(range.start);
        range.length > 0
    });
    ranges
}

/// A list whose ranges begin and end at multiples of `grain`, none larger than it was; those shorter
/// than `least` are left out.
pub(super) fn inwards(mut ranges: Vec<Extent>, grain: u64, least: u64) -> Vec<Extent> {
    ranges.retain_mut(|range| {
        let to = end(*range) / grain * grain;
        let Some(from) = range.start.checked_next_multiple_of(grain) else { return false };
        *range = Extent { start: from, length: to.saturating_sub(from) };
        range.length > 0 && range.length >= least
    });
    ranges
}

/// What is in one list and not in the other.
pub(super) fn minus(from: &[Extent], taken: &[Extent]) -> Vec<Extent> {
    let mut left = Vec::with_capacity(from.len());
    let mut taken = taken.iter().copied().peekable();
    for &range in from {
        let mut start = range.start;
        while let Some(&hole) = taken.peek() {
            if hole.start >= end(range) {
                break;
            }
            if hole.start > start {
                left.push(Extent { start, length: hole.start - start });
            }
            start = start.max(end(hole));
            if end(hole) > end(range) {
                // It may take from the next range, too.
                break;
            }
            taken.next();
        }
        if start < end(range) {
            left.push(Extent { start, length: end(range) - start });
        }
    }
    left
}

/// The first range of a list that shares bytes with this one.
pub(super) fn first_hit(list: &[Extent], range: Extent) -> Option<Extent> {
    let from = list.partition_point(|known| end(*known) <= range.start);
    list.get(from).copied().filter(|known| shared(*known, range) > 0)
}
