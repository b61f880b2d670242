//! Which records are live: one bit for each footer slot of the packs that a collection looks at.
//!
//! In: packs with their counts of slots, then locations. Out: bits, and counts of them by pack. The
//! bits stand in a scratch file; [`limits::LIVE_MAP_CACHE_BYTES`] of them are in memory, whatever
//! the size of the repository, and as long as all of them fit no file is made. Invariant: a place
//! in a pack that is not in the map (sealed after the collection began) has no bit and is not
//! judged; a place beyond the slots of a pack that is in the map is an error, never "not live".

use std::collections::{BTreeMap, HashMap};
use std::io;

use gantry_common::limits;

use super::index::PackRow;
use super::layout::PackNumber;
use super::storage::{OpenMode, Storage, StorageFile};

const PAGE_BYTES: usize = 4096;
const PAGE_BITS: u64 = PAGE_BYTES as u64 * 8;
const PAGES_CACHED: usize = limits::LIVE_MAP_CACHE_BYTES / PAGE_BYTES;

/// The bits of one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackBits {
    /// The pack.
    pub pack: PackNumber,
    first: u64,
    /// Its slots.
    pub slots: u32,
}

/// What is wrong with a place or the scratch file.
#[derive(Debug, thiserror::Error)]
pub enum LiveMapFault {
    /// The index names a slot that the pack does not have.
    #[error("the index names slot {slot} of pack {pack}, which has {slots}")]
    NoSuchSlot {
        /// The pack.
        pack: PackNumber,
        /// Asked for.
        slot: u32,
        /// There are.
        slots: u32,
    },
    /// The scratch file fails.
    #[error("the scratch file of the live map: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
struct Page {
    number: u64,
    bytes: Box<[u8; PAGE_BYTES]>,
    is_dirty: bool,
    was_used: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct LiveMap<S: Storage> {
    storage: S,
    file: Option<S::File>,
    packs: Vec<PackBits>,
    pages: Vec<Page>,
    by_number: HashMap<u64, usize>,
    /// Where the search for a page to give up goes on.
    hand: usize,
    pages_max: usize,
}

impl<S: Storage> LiveMap<S> {
    /// No record of these packs is live.
    pub fn new(storage: S, packs: &BTreeMap<PackNumber, PackRow>) -> LiveMap<S> {
        let mut first = 0;
        let bits = |(pack, row): (&PackNumber, &PackRow)| {
            let bits = PackBits { pack: *pack, first, slots: row.slots() };
            first += u64::from(bits.slots);
            bits
        };
        LiveMap {
            storage,
            file: None,
            packs: packs.iter().map(bits).collect(),
            pages: Vec::new(),
            by_number: HashMap::new(),
            hand: 0,
            pages_max: PAGES_CACHED,
        }
    }

    #[cfg(test)]
    fn with_pages(mut self, pages_max: usize) -> LiveMap<S> {
        self.pages_max = pages_max;
        self
    }

    /// The packs that it judges, by number.
    pub fn packs(&self) -> &[PackBits] {
        &self.packs
    }

    /// The bit of a place; nothing for a pack that is not judged.
    fn bit(&self, pack: PackNumber, slot: u32) -> Result<Option<u64>, LiveMapFault> {
        let Ok(at) = self.packs.binary_search_by_key(&pack, |bits| bits.pack) else {
            return Ok(None);
        };
        let PackBits { first, slots, .. } = self.packs[at];
        if slot >= slots {
            return Err(LiveMapFault::NoSuchSlot { pack, slot, slots });
        }
        Ok(Some(first + u64::from(slot)))
    }

    /// Whether a record is live; nothing for one in a pack that is not judged.
    ///
    /// # Errors
    /// [`LiveMapFault`].
    pub fn is_live(&mut self, pack: PackNumber, slot: u32) -> Result<Option<bool>, LiveMapFault> {
        let Some(bit) = self.bit(pack, slot)? else { return Ok(None) };
        Ok(Some(self.get(bit)?))
    }

    /// Makes a record live; whether it was before. Nothing for one in a pack that is not judged.
    ///
    /// # Errors
    /// [`LiveMapFault`].
    pub fn set_live(&mut self, pack: PackNumber, slot: u32) -> Result<Option<bool>, LiveMapFault> {
        let Some(bit) = self.bit(pack, slot)? else { return Ok(None) };
        let page = self.page(bit / PAGE_BITS)?;
        let (byte, mask) = ((bit % PAGE_BITS / 8) as usize, 1u8 << (bit % 8));
        let was = page.bytes[byte] & mask != 0;
        page.bytes[byte] |= mask;
        page.is_dirty |= !was;
        Ok(Some(was))
    }

    /// How many records of a pack are live.
    ///
    /// # Errors
    /// [`LiveMapFault::Io`].
    pub fn live_count(&mut self, bits: PackBits) -> Result<u32, LiveMapFault> {
        let (mut at, end) = (bits.first, bits.first + u64::from(bits.slots));
        let mut count = 0;
        while at < end {
            if at % 8 == 0 && at + 8 <= end {
                let whole = ((end - at) / 8).min((PAGE_BITS - at % PAGE_BITS) / 8) as usize;
                let from = (at % PAGE_BITS / 8) as usize;
                let page = self.page(at / PAGE_BITS)?;
                count += page.bytes[from..from + whole].iter().map(|b| b.count_ones()).sum::<u32>();
                at += whole as u64 * 8;
            } else {
                count += u32::from(self.get(at)?);
                at += 1;
            }
        }
        Ok(count)
    }

    fn get(&mut self, bit: u64) -> Result<bool, LiveMapFault> {
        let page = self.page(bit / PAGE_BITS)?;
        Ok(page.bytes[(bit % PAGE_BITS / 8) as usize] >> (bit % 8) & 1 == 1)
    }

    fn page(&mut self, number: u64) -> Result<&mut Page, LiveMapFault> {
        let at = match self.by_number.get(&number) {
            Some(at) => *at,
            None => self.load(number)?,
        };
        let page = &mut self.pages[at];
        page.was_used = true;
        Ok(page)
    }

    fn load(&mut self, number: u64) -> Result<usize, LiveMapFault> {
        let mut bytes = Box::new([0; PAGE_BYTES]);
        if self.pages.len() < self.pages_max {
            // Nothing was given up yet, so the page was never written.
            let at = self.pages.len();
            self.pages.push(Page { number, bytes, is_dirty: false, was_used: true });
            self.by_number.insert(number, at);
            return Ok(at);
        }
        while std::mem::take(&mut self.pages[self.hand].was_used) {
            self.hand = (self.hand + 1) % self.pages.len();
        }
        let at = self.hand;
        self.hand = (self.hand + 1) % self.pages.len();
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(self.storage.open("scratch", OpenMode::Scratch)?),
        };
        let old = &mut self.pages[at];
        if old.is_dirty {
            file.write_at(old.number * PAGE_BYTES as u64, &old.bytes[..])?;
        }
        // Beyond the file's end, and in its holes, no bit was ever set.
        file.read_at(number * PAGE_BYTES as u64, &mut bytes[..])?;
        self.by_number.remove(&old.number);
        *old = Page { number, bytes, is_dirty: false, was_used: true };
        self.by_number.insert(number, at);
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::storage::memory::MemoryStorage;
    use super::*;

    fn packs(slots: &[u32]) -> BTreeMap<PackNumber, PackRow> {
        let row = |(at, blocks): (u32, &u32)| {
            (PackNumber::new(1, 2 * at + 1), PackRow { blocks: *blocks, ..PackRow::default() })
        };
        (0..).zip(slots).map(row).collect()
    }

    #[test]
    fn behaves_as_a_set_of_places_with_few_pages() {
        for seed in 0..40 {
            let mut random = fastrand::Rng::with_seed(seed);
            let slots: Vec<u32> = (0..random.u32(1..30)).map(|_| random.u32(0..60_000)).collect();
            let disk = MemoryStorage::new();
            let pages = random.usize(1..4);
            let mut map = LiveMap::new(disk.clone(), &packs(&slots)).with_pages(pages);
            let mut model: Vec<HashSet<u32>> = vec![HashSet::new(); slots.len()];
            for _ in 0..3000 {
                let at = random.usize(0..slots.len());
                let pack = PackNumber::new(1, 2 * at as u32 + 1);
                if slots[at] == 0 {
                    continue;
                }
                let slot = random.u32(0..slots[at]);
                if random.bool() {
                    let was = map.set_live(pack, slot).unwrap();
                    assert_eq!(was, Some(!model[at].insert(slot)), "seed {seed}");
                } else {
                    let live = map.is_live(pack, slot).unwrap();
                    assert_eq!(live, Some(model[at].contains(&slot)), "seed {seed}");
                }
            }
            for (at, bits) in map.packs().to_vec().into_iter().enumerate() {
                let count = map.live_count(bits).unwrap();
                assert_eq!(count as usize, model[at].len(), "seed {seed} pack {at}");
            }
        }
    }

    #[test]
    fn other_packs_are_not_judged_and_impossible_slots_are_errors() {
        let disk = MemoryStorage::new();
        let mut map = LiveMap::new(disk.clone(), &packs(&[5, 7]));
        assert_eq!(map.set_live(PackNumber::new(1, 2), 0).unwrap(), None);
        assert_eq!(map.is_live(PackNumber::new(2, 1), 9).unwrap(), None);
        assert!(map.is_live(PackNumber::new(1, 1), 5).is_err());
        assert!(map.set_live(PackNumber::new(1, 3), 7).is_err());
        assert_eq!(map.set_live(PackNumber::new(1, 3), 6).unwrap(), Some(false));
        assert_eq!(disk.operations(), 0, "small maps need no file, so also no space");
    }

    #[test]
    fn a_quarter_of_a_billion_slots_take_a_bounded_cache() {
        let packs: BTreeMap<PackNumber, PackRow> = (1..=4000)
            .map(|at| (PackNumber::new(1, at), PackRow { blocks: 65_000, ..PackRow::default() }))
            .collect();
        let mut map = LiveMap::new(MemoryStorage::new(), &packs);
        for at in 1..=4000 {
            map.set_live(PackNumber::new(1, at), at * 13 % 65_000).unwrap();
        }
        assert!(map.pages.len() * PAGE_BYTES <= limits::LIVE_MAP_CACHE_BYTES);
        for bits in map.packs().to_vec() {
            assert_eq!(map.live_count(bits).unwrap(), 1);
        }
    }
}
