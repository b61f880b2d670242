//! What e2fsprogs says of an ext4: the oracle of the tests.
//!
//! In: images. Out: which blocks are free, on disk and after e2fsck's replay. Must not: use Gantry's
//! readers.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use gantry_guest::Extent;

use super::run;

/// Free ranges in bytes, by dumpe2fs; and groups whose bitmap was never written.
pub struct Free {
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Merged and in order.
    pub ranges: Vec<Extent>,
    /// The part of them in groups that are marked BLOCK_UNINIT.
    pub unset: Vec<Extent>,
}

/// What dumpe2fs says of the bitmaps as they stand.
pub fn free(path: &Path) -> Free {
    let text = run("dumpe2fs", &[path.to_str().unwrap()]);
    let number = |line: &str| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    let line = text.lines().find(|line| line.starts_with("Block size:")).unwrap();
    let block_bytes = number(line);
    let (mut all, mut never, mut unset) = (Vec::new(), Vec::new(), false);
    for line in text.lines() {
        if line.starts_with("Group ") {
            unset = line.contains("BLOCK_UNINIT");
        }
        let Some(list) = line.strip_prefix("  Free blocks: ") else { continue };
        for part in list.split(", ").filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let [first, last] = [first, last].map(|number| number.parse::<u64>().unwrap());
            let range =
                Extent { start: first * block_bytes, length: (last + 1 - first) * block_bytes };
            all.push(range);
            if unset {
                never.push(range);
            }
        }
    }
    Free { block_bytes, ranges: merged(all), unset: merged(never) }
}

/// Replays the journal as e2fsck does.
pub fn replay(path: &Path) {
    let output =
        Command::new("e2fsck").args(["-fy", "-E", "journal_only"]).arg(path).output().unwrap();
    assert!(output.status.code().unwrap() < 4, "{}", String::from_utf8_lossy(&output.stdout));
}

/// Sorted, and joined where they touch.
pub fn merged(mut ranges: Vec<Extent>) -> Vec<Extent> {
    ranges.sort_unstable();
    let mut found: Vec<Extent> = Vec::new();
    for range in ranges {
        match found.last_mut() {
            Some(last) if last.start + last.length >= range.start => {
                last.length = last.length.max(range.start + range.length - last.start);
            }
            _ => found.push(range),
        }
    }
    found
}

/// The first range of `inner` that is not wholly within one of `outer`; both merged.
pub fn outside(inner: &[Extent], outer: &[Extent]) -> Option<Extent> {
    inner.iter().copied().find(|range| {
        let after = outer.partition_point(|known| known.start <= range.start);
        let around = after.checked_sub(1).map(|before| outer[before]);
        around.is_none_or(|known| known.start + known.length < range.start + range.length)
    })
}

/// Bytes that two merged lists share.
pub fn shared(one: &[Extent], other: &[Extent]) -> u64 {
    let (mut left, mut right, mut sum) = (0, 0, 0);
    while let (Some(a), Some(b)) = (one.get(left), other.get(right)) {
        let (a_end, b_end) = (a.start + a.length, b.start + b.length);
        sum += a_end.min(b_end).saturating_sub(a.start.max(b.start));
        if a_end <= b_end {
            left += 1;
        } else {
            right += 1;
        }
    }
    sum
}

/// Bytes of ranges.
pub fn sum(ranges: &[Extent]) -> u64 {
    ranges.iter().map(|range| range.length).sum()
}

/// Blocks of a file, by debugfs.
pub fn blocks_of(path: &Path, file: &str) -> BTreeSet<u64> {
    let text = run("debugfs", &["-R", &format!("blocks {file}"), path.to_str().unwrap()]);
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}
