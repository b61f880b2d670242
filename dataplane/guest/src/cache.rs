//! A bounded cache of a disk's pages, so that parsers can read small pieces cheaply.
//!
//! In: a [`Disk`] whose reads cost a round trip. Out: the same disk, whose recent pages are in memory
//! ([`crate::limits::CACHE_BYTES_MAX`]). Invariant: what is read of the disk and what is served from
//! memory have budgets in proportion to the disk ([`Budget`]), so that no structure on it, however
//! hostile, keeps a parser busy for ever. Must not: write, or keep a page that was not read whole.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;

use crate::disk::Disk;
use crate::limits;

/// Bytes of one page. A page is the unit of reads from the disk.
const PAGE_BYTES: usize = 64 << 10;
const PAGES_MAX: usize = limits::CACHE_BYTES_MAX / PAGE_BYTES;
/// A read counts as at least this much served, so that many tiny reads end, too.
const SERVED_BYTES_MIN: u64 = 512;

/// What inspecting one disk may cost.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Bytes read of the disk itself.
    pub read_bytes_max: u64,
    /// Bytes given to parsers.
    pub served_bytes_max: u64,
}

impl Budget {
    /// For a disk of this length.
    pub fn of(length: u64) -> Budget {
        Budget {
            read_bytes_max: limits::INSPECT_READ_BYTES_BASE
                + length / limits::INSPECT_READ_DISK_SHARE,
            served_bytes_max: limits::INSPECT_SERVED_BYTES_BASE
                + length / limits::INSPECT_SERVED_DISK_SHARE,
        }
    }
}

struct Page {
    number: u64,
    bytes: Box<[u8]>,
    /// Read since the clock's hand last came by.
    used: bool,
}

#[derive(Default)]
struct Pages {
    slots: Vec<Page>,
    by_number: HashMap<u64, usize>,
    hand: usize,
    read_bytes: u64,
    served_bytes: u64,
}

/// A disk with its recent pages in memory; see the module.
pub struct Cache<'a> {
    disk: &'a dyn Disk,
    length: u64,
    budget: Budget,
    pages: RefCell<Pages>,
}

impl<'a> Cache<'a> {
    /// A cache over this disk, with the usual budget.
    pub fn new(disk: &'a dyn Disk) -> Cache<'a> {
        Cache::with_budget(disk, Budget::of(disk.length()))
    }

    /// A cache over this disk, with this budget.
    pub fn with_budget(disk: &'a dyn Disk, budget: Budget) -> Cache<'a> {
        Cache { disk, length: disk.length(), budget, pages: RefCell::default() }
    }

    /// Bytes that were read of the disk so far.
    pub fn read_bytes(&self) -> u64 {
        self.pages.borrow().read_bytes
    }

    /// Reads past the cache, within the budget.
    fn fetch(&self, pages: &mut Pages, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let read = pages.read_bytes.saturating_add(buffer.len() as u64);
        if read > self.budget.read_bytes_max {
            return Err(spent("read of the disk", self.budget.read_bytes_max));
        }
        pages.read_bytes = read;
        self.disk.read_at(offset, buffer)
    }

    /// The slot that holds this page.
    fn page(&self, pages: &mut Pages, number: u64) -> io::Result<usize> {
        if let Some(&slot) = pages.by_number.get(&number) {
            pages.slots[slot].used = true;
            return Ok(slot);
        }
        let start = number * PAGE_BYTES as u64;
        // No longer than a page.
        let length = (self.length - start).min(PAGE_BYTES as u64) as usize;
        let mut bytes = vec![0; length].into_boxed_slice();
        self.fetch(pages, start, &mut bytes)?;
        let page = Page { number, bytes, used: true };
        let slot = if pages.slots.len() < PAGES_MAX {
            pages.slots.push(page);
            pages.slots.len() - 1
        } else {
            let slot = pages.victim();
            let old = std::mem::replace(&mut pages.slots[slot], page);
            pages.by_number.remove(&old.number);
            slot
        };
        pages.by_number.insert(number, slot);
        Ok(slot)
    }
}

impl Pages {
    /// The next slot that was not used since the hand last came by.
    fn victim(&mut self) -> usize {
        loop {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            if !std::mem::take(&mut self.slots[slot].used) {
                return slot;
            }
        }
    }
}

fn spent(what: &str, bytes: u64) -> io::Error {
    io::Error::other(format!("looking into the disk was given up after {bytes} bytes {what}"))
}

impl Disk for Cache<'_> {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = buffer.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            let text = format!("{length} bytes at {offset} are not within {} bytes", self.length);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let mut pages = self.pages.borrow_mut();
        let served = pages.served_bytes.saturating_add(length.max(SERVED_BYTES_MIN));
        if served > self.budget.served_bytes_max {
            return Err(spent("of its structures", self.budget.served_bytes_max));
        }
        pages.served_bytes = served;
        if buffer.len() > PAGE_BYTES {
            return self.fetch(&mut pages, offset, buffer);
        }
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let slot = self.page(&mut pages, at / PAGE_BYTES as u64)?;
            let within = (at % PAGE_BYTES as u64) as usize;
            let part = &pages.slots[slot].bytes[within..];
            let length = part.len().min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&part[..length]);
            (at, rest) = (at + length as u64, later);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_reads_are_those_of_the_disk_and_memory_is_bounded() {
        let mut random = fastrand::Rng::with_seed(6);
        let mut bytes = vec![0; 3 * limits::CACHE_BYTES_MAX / 2 + 77];
        random.fill(&mut bytes);
        let budget = Budget { read_bytes_max: u64::MAX, served_bytes_max: u64::MAX };
        let cache = Cache::with_budget(&bytes, budget);
        for _ in 0..3000 {
            let from = random.usize(0..bytes.len());
            let length = random.usize(0..=(bytes.len() - from).min(2 * PAGE_BYTES));
            let mut read = vec![1; length];
            cache.read_at(from as u64, &mut read).unwrap();
            assert!(read == bytes[from..from + length], "{length} at {from}");
        }
        assert_eq!(cache.pages.borrow().slots.len(), PAGES_MAX);
        assert!(cache.read_at(bytes.len() as u64, &mut [0]).is_err());
        assert!(cache.read_at(u64::MAX, &mut [0]).is_err());
    }

    #[test]
    fn what_is_read_twice_is_fetched_once_and_budgets_end_it() {
        let bytes = vec![7; 4 * PAGE_BYTES];
        let cache = Cache::with_budget(
            &bytes,
            Budget { read_bytes_max: 2 * PAGE_BYTES as u64, served_bytes_max: 100 * 512 },
        );
        for at in 0..90 {
            cache.read_at(at, &mut [0; 8]).unwrap();
        }
        assert_eq!(cache.read_bytes(), PAGE_BYTES as u64);
        cache.read_at(PAGE_BYTES as u64, &mut [0]).unwrap();
        assert!(cache.read_at(2 * PAGE_BYTES as u64, &mut [0]).is_err(), "the disk's budget");
        let more = (0..20).filter(|_| cache.read_at(0, &mut [0]).is_ok()).count();
        assert_eq!(more, 8, "the budget of what is served");
    }
}
