//! Which bytes of one read have come.
//!
//! In: ranges. Out: whether they were new, whether all is there. Invariant: sorted, apart, merged
//! where they touch, so that a read which comes in order is one range.

use std::ops::Range;

/// Ranges of bytes that have come.
#[derive(Debug, Default)]
pub(super) struct Spans(Vec<Range<usize>>);

impl Spans {
    /// Adds a range; false, and nothing added, if any of it was there.
    pub(super) fn insert(&mut self, range: Range<usize>) -> bool {
        let next = self.0.partition_point(|have| have.start < range.start);
        let overlaps = (next > 0 && self.0[next - 1].end > range.start)
            || self.0.get(next).is_some_and(|have| have.start < range.end);
        if overlaps {
            return false;
        }
        let before = next > 0 && self.0[next - 1].end == range.start;
        let after = self.0.get(next).is_some_and(|have| have.start == range.end);
        match (before, after) {
            (true, true) => self.0[next - 1].end = self.0.remove(next).end,
            (true, false) => self.0[next - 1].end = range.end,
            (false, true) => self.0[next].start = range.start,
            (false, false) => self.0.insert(next, range),
        }
        true
    }

    /// Whether exactly `0..len` has come.
    pub(super) fn covers(&self, len: usize) -> bool {
        matches!(&self.0[..], [all] if *all == (0..len))
    }
}

#[cfg(test)]
mod tests {
    use super::Spans;

    #[test]
    fn ranges_in_any_order_are_counted_once() {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let mut cuts: Vec<usize> =
                (0..random.usize(0..20)).map(|_| random.usize(1..100)).collect();
            cuts.extend([0, 100]);
            cuts.sort_unstable();
            cuts.dedup();
            let mut parts: Vec<_> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
            random.shuffle(&mut parts);
            let mut spans = Spans::default();
            for part in &parts {
                assert!(!spans.covers(100));
                assert!(spans.insert(part.clone()));
                assert!(!spans.insert(part.start.saturating_sub(1)..part.start + 1));
            }
            assert!(spans.covers(100));
        }
    }
}
