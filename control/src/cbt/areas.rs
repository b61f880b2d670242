//! Puts the pages of `QueryChangedDiskAreas` together, believing nothing. Pure.
//!
//! In: a disk's size and each answer. Out: where to ask next; at the end whole blocks, in order,
//! merged. Refused is any answer that could make changed bytes be passed over, or that never ends:
//! one that begins elsewhere than asked, covers nothing, goes beyond the disk, or holds areas that
//! overlap, go backward or leave the page.

use gantry_common::extents::Extent;

use crate::limits;
use crate::vcenter::ChangedAreas;

/// Why vCenter's answer is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AreasRefused {
    /// The answer is about another place.
    #[error("the answer begins at byte {answered} instead of {asked}")]
    Elsewhere {
        /// Where it should begin.
        asked: u64,
        /// Where it begins.
        answered: u64,
    },
    /// The answer covers nothing, so that asking would never end.
    #[error("the answer at byte {at} covers nothing")]
    Empty {
        /// Where.
        at: u64,
    },
    /// Something lies beyond the disk's end.
    #[error("the answer reaches byte {end} of a disk of {capacity} bytes")]
    BeyondCapacity {
        /// Where it ends.
        end: u64,
        /// The disk's size.
        capacity: u64,
    },
    /// An area is empty, overlaps the one before, goes backward or leaves its page.
    #[error(
        "the area of {length} bytes at byte {start} is out of order, empty or outside its page"
    )]
    Disorder {
        /// Where.
        start: u64,
        /// How long.
        length: u64,
    },
    /// More answers or areas than Gantry accepts.
    #[error("more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
}

/// What to do after a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Ask again from this byte.
    Next(u64),
    /// That was the last.
    Last,
}

/// Collects the pages about one disk.
#[derive(Debug, Clone)]
pub struct AreaCollector {
    capacity: u64,
    /// Areas are widened to whole multiples of it.
    granularity: u64,
    next: u64,
    pages: usize,
    merged: Vec<Extent>,
}

impl AreaCollector {
    /// For a disk of `capacity` bytes; areas are widened to whole blocks of `granularity` bytes, since
    /// whole blocks are read anyway.
    pub fn new(capacity: u64, granularity: u64) -> AreaCollector {
        AreaCollector {
            capacity,
            granularity: granularity.max(1),
            next: 0,
            pages: 0,
            merged: Vec::new(),
        }
    }

    /// Where to ask first; nothing for an empty disk.
    pub fn first(&self) -> Option<u64> {
        (self.capacity > 0).then_some(0)
    }

    /// Takes an answer to the question from [`Page::Next`] (or 0).
    ///
    /// # Errors
    /// See [`AreasRefused`]; the collector is of no use afterwards.
    pub fn accept(&mut self, answer: &ChangedAreas) -> Result<Page, AreasRefused> {
        self.pages += 1;
        if self.pages > limits::CBT_PAGES_MAX {
            return Err(AreasRefused::TooMany { what: "answers", max: limits::CBT_PAGES_MAX });
        }
        if answer.areas.len() > limits::CBT_PAGE_AREAS_MAX {
            let max = limits::CBT_PAGE_AREAS_MAX;
            return Err(AreasRefused::TooMany { what: "areas in one answer", max });
        }
        if answer.start != self.next {
            return Err(AreasRefused::Elsewhere { asked: self.next, answered: answer.start });
        }
        if answer.length == 0 {
            return Err(AreasRefused::Empty { at: answer.start });
        }
        let end = answer.start.saturating_add(answer.length);
        if end > self.capacity {
            return Err(AreasRefused::BeyondCapacity { end, capacity: self.capacity });
        }
        let mut last_end = answer.start;
        for area in &answer.areas {
            let area_end = area.start.saturating_add(area.length);
            if area.length == 0 || area.start < last_end || area_end > end {
                return Err(AreasRefused::Disorder { start: area.start, length: area.length });
            }
            last_end = area_end;
            self.add(area.start, area_end)?;
        }
        self.next = end;
        Ok(if end == self.capacity { Page::Last } else { Page::Next(end) })
    }

    fn add(&mut self, start: u64, end: u64) -> Result<(), AreasRefused> {
        let start = start - start % self.granularity;
        let end = end.checked_next_multiple_of(self.granularity).unwrap_or(u64::MAX);
        let end = end.min(self.capacity);
        let is_full = self.merged.len() >= limits::CBT_AREAS_MAX;
        match self.merged.last_mut() {
            Some(last) if last.start + last.length >= start => {
                last.length = (last.start + last.length).max(end) - last.start;
            }
            _ if is_full => {
                return Err(AreasRefused::TooMany { what: "areas", max: limits::CBT_AREAS_MAX });
            }
            _ => self.merged.push(Extent { start, length: end - start }),
        }
        Ok(())
    }

    /// The extents, once [`Page::Last`] was given.
    pub fn finish(self) -> Vec<Extent> {
        self.merged
    }
}

#[cfg(test)]
mod tests {
    use gantry_common::extents::Extent;

    use super::{AreaCollector, AreasRefused, Page};
    use crate::limits;
    use crate::vcenter::ChangedAreas;

    fn page(start: u64, length: u64, areas: &[(u64, u64)]) -> ChangedAreas {
        let areas = areas.iter().map(|(start, length)| Extent { start: *start, length: *length });
        ChangedAreas { start, length, areas: areas.collect() }
    }

    #[test]
    fn pages_become_whole_blocks() {
        let mut collector = AreaCollector::new(1050, 100);
        assert_eq!(collector.first(), Some(0));
        let first = page(0, 500, &[(5, 10), (110, 20), (480, 20)]);
        assert_eq!(collector.accept(&first), Ok(Page::Next(500)));
        let second = page(500, 550, &[(500, 1), (1049, 1)]);
        assert_eq!(collector.accept(&second), Ok(Page::Last));
        let pairs: Vec<_> = collector.finish().iter().map(|e| (e.start, e.length)).collect();
        assert_eq!(pairs, [(0, 200), (400, 200), (1000, 50)], "the last ends with the disk");
        assert_eq!(AreaCollector::new(0, 1).first(), None);
    }

    #[test]
    fn hostile_answers_are_refused() {
        use AreasRefused::{BeyondCapacity, Disorder, Elsewhere, Empty, TooMany};
        let refused = |answer: &ChangedAreas| {
            let mut collector = AreaCollector::new(1000, 1);
            collector.accept(&page(0, 100, &[])).expect("a good page");
            collector.accept(answer).expect_err("a bad page")
        };
        assert!(matches!(refused(&page(0, 100, &[])), Elsewhere { asked: 100, .. }), "backward");
        assert!(matches!(refused(&page(200, 100, &[])), Elsewhere { .. }), "a gap");
        assert!(matches!(refused(&page(100, 0, &[])), Empty { at: 100 }), "endless");
        assert!(matches!(refused(&page(100, 901, &[])), BeyondCapacity { .. }));
        assert!(matches!(refused(&page(100, u64::MAX, &[])), BeyondCapacity { .. }));
        for areas in [
            &[(150, 0)][..],
            &[(150, 20), (160, 20)],
            &[(150, 20), (120, 5)],
            &[(50, 10)],
            &[(190, 11)],
            &[(150, u64::MAX)],
        ] {
            assert!(matches!(refused(&page(100, 100, areas)), Disorder { .. }), "{areas:?}");
        }
        let crowd: Vec<_> = (0..=limits::CBT_PAGE_AREAS_MAX as u64).map(|at| (at, 1)).collect();
        assert!(matches!(refused(&page(100, 100, &crowd)), TooMany { .. }));
    }

    #[test]
    fn endless_and_scattered_answers_end() {
        let mut collector = AreaCollector::new(u64::MAX, 1);
        let ended = (0..).find_map(|at| collector.accept(&page(at, 1, &[])).err());
        assert!(matches!(ended, Some(AreasRefused::TooMany { .. })));
        let mut collector = AreaCollector::new(u64::MAX, 1);
        let mut answer = |at: u64| {
            let areas: Vec<_> = (0..50_000).map(|one| (at + one * 2, 1)).collect();
            collector.accept(&page(at, 100_000, &areas)).err()
        };
        let ended = (0..).find_map(|number| answer(number * 100_000));
        assert!(matches!(ended, Some(AreasRefused::TooMany { what: "areas", .. })));
    }

    #[test]
    fn no_answer_makes_changed_bytes_vanish() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..500 {
            let capacity = random.u64(1..5000);
            let granularity = random.u64(1..300);
            let changed: Vec<bool> = (0..capacity).map(|_| random.u8(..) < 20).collect();
            let mut collector = AreaCollector::new(capacity, granularity);
            let mut at = 0;
            loop {
                let length = random.u64(1..=capacity - at);
                let touched = (at..at + length).filter(|byte| changed[*byte as usize]);
                let areas: Vec<_> = touched.map(|byte| (byte, 1)).collect();
                match collector.accept(&page(at, length, &areas)).expect("a good page") {
                    Page::Next(next) => at = next,
                    Page::Last => break,
                }
            }
            let extents = collector.finish();
            for (byte, is_changed) in changed.iter().enumerate() {
                let within = |e: &Extent| (e.start..e.start + e.length).contains(&(byte as u64));
                assert!(!is_changed || extents.iter().any(within), "byte {byte}");
            }
        }
    }
}
