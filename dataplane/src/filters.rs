//! What of a guest's disk a backup leaves out: from what is asked for to the mask of one disk.
//!
//! In: an open disk, the filters that are on, the identity of its frozen state. Out: the mask, at most
//! [`MASK_RANGES_MAX`] ranges, and lines for the session's log: what is left out, and where a filter is
//! off and why. Invariant: the same frozen state and filters give the same mask, so that an interrupted
//! attempt is gone on with. A disk that cannot be read at random, or not be understood, is copied whole.

use std::collections::BTreeMap;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::limits::MASK_RANGES_MAX;
use gantry_common::units::format_bytes;
use gantry_guest::{
    FileMasks, FilterMap, FilterOptions, Masks, Reason, Refusal, SnapshotKind, filter_disk,
};

use crate::disk::Disk;
use crate::disk::random::RandomReads;

/// Refusals that are told one by one.
const REFUSALS_TOLD: usize = 20;

/// Which filters are on for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filters {
    /// Swap partitions, swap, page and hibernation files.
    pub swap: bool,
    /// Deleted blocks.
    pub deleted: bool,
    /// Masks of files to leave out.
    pub excluded: Vec<String>,
    /// How the disk came to stand still.
    pub snapshot: SnapshotKind,
}

impl Filters {
    /// None at all.
    pub const OFF: Filters = Filters {
        swap: false,
        deleted: false,
        excluded: Vec::new(),
        snapshot: SnapshotKind::Crash,
    };

    fn are_off(&self) -> bool {
        !self.swap && !self.deleted && self.excluded.is_empty()
    }
}

/// A reason as reports and logs name it.
pub fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Swap => "swap",
        Reason::PageFile => "page files",
        Reason::Hibernation => "hibernation file",
        Reason::Deleted => "deleted blocks",
        Reason::Excluded => "excluded files",
    }
}

/// Bytes of a mask by the names of their reasons.
pub fn bytes_by_name(mask: &FilterMap) -> BTreeMap<&'static str, u64> {
    mask.bytes_by_reason().into_iter().map(|(reason, bytes)| (reason_name(reason), bytes)).collect()
}

/// The mask of a disk, and what the log says of it.
///
/// # Errors
/// `Usage`: a mask of files that cannot be understood. Nothing that is on the disk fails.
pub fn mask(
    disk: &Disk,
    filters: &Filters,
    snapshot: &str,
) -> Result<(FilterMap, Vec<String>), Failure> {
    let none = || FilterMap::new(disk.size_bytes(), Vec::new(), Vec::new());
    if filters.are_off() || disk.is_unreadable() {
        return Ok((none(), Vec::new()));
    }
    let masks = match filters.excluded.as_slice() {
        [] => None,
        some => Some(
            Masks::parse(some)
                .map_err(|error| Failure::new(FailureKind::Usage, error.to_string()))?,
        ),
    };
    let reads = match RandomReads::new(disk) {
        Ok(reads) => reads,
        Err(failure) => {
            let line = format!("no filter is on, everything is copied: {}", failure.message);
            return Ok((none(), vec![line]));
        }
    };
    let options = FilterOptions {
        swap: filters.swap,
        deleted: filters.deleted,
        excluded: masks.as_ref().map(|masks| masks as &dyn FileMasks),
        sample_seed: sample_seed(snapshot),
    };
    let mut map = filter_disk(&reads, &options, filters.snapshot);
    map.keep_largest(MASK_RANGES_MAX);
    let lines = lines(&map);
    Ok((map, lines))
}

/// The files of the self-check follow from the frozen state.
fn sample_seed(snapshot: &str) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("gantry 2026 filter sample 1");
    let mut seed = [0; 8];
    hasher.update(snapshot.as_bytes()).finalize_xof().fill(&mut seed);
    u64::from_le_bytes(seed)
}

/// Names on a guest's disk are a stranger's text.
pub fn plain(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Bytes by reason, for a person.
pub fn in_words(bytes: &BTreeMap<Reason, u64>) -> String {
    let some = bytes.iter().filter(|(_, bytes)| **bytes > 0);
    let some: Vec<String> = some
        .map(|(reason, bytes)| format!("{} {}", reason_name(*reason), format_bytes(*bytes)))
        .collect();
    if some.is_empty() { "nothing".to_owned() } else { some.join(", ") }
}

/// What is not filtered and why, for a person.
pub fn refusal_in_words(refused: &Refusal) -> String {
    let [volume, what, why] =
        [&refused.volume, &refused.what, &refused.why].map(|text| plain(text));
    format!("copied whole: {what} of {volume}: {why}")
}

fn lines(map: &FilterMap) -> Vec<String> {
    let mut lines = vec![match map.is_empty() {
        true => "filters found nothing to leave out".to_owned(),
        false => format!("left out, reads as zeros: {}", in_words(&map.bytes_by_reason())),
    }];
    let told = map.refused.iter().take(REFUSALS_TOLD);
    lines.extend(told.map(|refused| format!("warning: {}", refusal_in_words(refused))));
    if map.refused.len() > REFUSALS_TOLD {
        lines.push(format!("{} more are copied whole", map.refused.len() - REFUSALS_TOLD));
    }
    if map.dropped.ranges > 0 {
        let (ranges, bytes) = (map.dropped.ranges, format_bytes(map.dropped.bytes));
        lines.push(format!("{ranges} ranges more, {bytes}, are too many to keep: copied"));
    }
    lines
}
