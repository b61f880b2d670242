//! Whether a stream's tables name exactly the grains that came: nothing was lost or put in between.
//!
//! In: each grain's number and place as it comes, each table's entries, the directory. Out: an
//! error, if they disagree. Invariant: two small entries for each table, so never more than the
//! stream itself pays for. Must not: keep grains or tables.
//!
//! A table does not say which part of the disk it is for, only the directory does. So grains and
//! tables are summed up each, and the sums compared once the directory has come.
//!
//! Progress markers take sectors of the stream, and it is not documented whether those count in the
//! places that tables name. Once one has come, places are not compared, only which grains there are;
//! tables are then taken in the order in which they came, which is that of the disk.

use std::collections::{BTreeMap, HashMap};

use crate::limits::HOSTED_TABLE_ENTRIES;

/// The count and mixed sums of grains; equal for the same grains in any order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    grains: u32,
    /// Of the grains' numbers.
    numbers: u64,
    /// Of the grains' numbers and places.
    places: u64,
}

impl Sum {
    fn add(&mut self, entry: u64, sector: u32) {
        self.numbers = self.numbers.wrapping_add(mix(entry));
        self.places = self.places.wrapping_add(mix(entry << 32 | u64::from(sector)));
        self.grains += 1;
    }
}

/// The finisher of SplitMix64: each bit in reaches each bit out.
fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// What came so far.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// By the number of the table in the directory.
    seen: HashMap<u64, Sum>,
    /// By the sector of the stream where the entries begin, and so in the order in which they came.
    tables: BTreeMap<u32, Sum>,
    /// Places may be counted otherwise by the sender.
    shifted: bool,
}

impl Audit {
    /// A progress marker came.
    pub(super) fn progress(&mut self) {
        self.shifted = true;
    }

    /// Whether places cannot be compared.
    pub(super) fn shifted(&self) -> bool {
        self.shifted
    }

    /// A grain of number `grain` came, whose marker stands at `sector` of the stream.
    pub(super) fn grain(&mut self, grain: u64, sector: u32) {
        let sum = self.seen.entry(grain / HOSTED_TABLE_ENTRIES).or_default();
        sum.add(grain % HOSTED_TABLE_ENTRIES, sector);
    }

    /// A table came, whose entries begin at `sector` of the stream. Entries of 1 are grains of
    /// zeros, where the header allows them.
    pub(super) fn table(&mut self, sector: u32, entries: &[u8], zero_grains: bool) {
        let mut sum = Sum::default();
        for (entry, bytes) in entries.chunks_exact(4).enumerate() {
            let place = u32::from_le_bytes(bytes.try_into().unwrap_or_default());
            if place != 0 && !(place == 1 && zero_grains) {
                sum.add(entry as u64, place);
            }
        }
        self.tables.insert(sector, sum);
    }

    /// The next entry of the directory, of table `number`; there is one for each part of the disk.
    pub(super) fn directory_entry(&mut self, number: u64, sector: u32) -> Result<(), String> {
        let mut listed = Sum::default();
        if sector != 0 {
            let table = if self.shifted {
                self.tables.pop_first().map(|(_, sum)| sum)
            } else {
                self.tables.remove(&sector)
            };
            listed = table.ok_or_else(|| {
                format!("no table came that stands at sector {sector}, or it is named twice")
            })?;
        }
        let mut seen = self.seen.remove(&number).unwrap_or_default();
        if self.shifted {
            (listed.places, seen.places) = (0, 0);
        }
        if listed == seen {
            return Ok(());
        }
        Err(format!(
            "table {number} lists {} grains that are not the {} grains that came",
            listed.grains, seen.grains
        ))
    }
}
