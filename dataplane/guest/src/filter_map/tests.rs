//! Masks against a bitmap of bytes, and the self-check against a file system that lies.

use super::collect;
use super::*;
use crate::disk::View;
use crate::volume::{Consistency, FileMasks, FileRange, GuestFs};

const DISK_BYTES: u64 = (300 << 10) + 700;
const SEEDS: u64 = 300;

/// One byte of the disk each: the reasons for which it is named, a bit each, in the order of priority.
fn naive_mask(given: &[(Extent, Reason)]) -> Vec<Option<Reason>> {
    let mut named = vec![0u8; DISK_BYTES as usize];
    for (range, reason) in given {
        let bit = 1 << PRIORITY.iter().position(|known| known == reason).unwrap();
        let to = range.start.saturating_add(range.length).min(DISK_BYTES);
        (range.start..to).for_each(|at| named[at as usize] |= bit);
    }
    let grain = limits::GRAIN_BYTES as usize;
    let grains =
        named.chunks_exact(grain).map(|bytes| bytes.iter().fold(0xff, |all, one| all & one));
    let mut grains: Vec<u8> = grains.collect();
    let least = limits::RANGE_BYTES_MIN as usize / grain;
    for bit in 0..PRIORITY.len() {
        let mut from = 0;
        while from < grains.len() {
            let run = grains[from..].iter().take_while(|reasons| *reasons >> bit & 1 == 1).count();
            if run < least {
                grains[from..from + run].iter_mut().for_each(|reasons| *reasons &= !(1 << bit));
            }
            from += run + 1;
        }
    }
    let mut mask = vec![None; DISK_BYTES as usize];
    for (number, reasons) in grains.iter().enumerate().filter(|(_, reasons)| **reasons != 0) {
        let reason = PRIORITY[reasons.trailing_zeros() as usize];
        mask[number * grain..(number + 1) * grain].fill(Some(reason));
    }
    mask
}

fn some_ranges(random: &mut fastrand::Rng) -> Vec<(Extent, Reason)> {
    let unit = [1, 512, 1024, 4096][random.usize(0..4)];
    let longest = [8, 40, 200][random.usize(0..3)] * 1024 / unit;
    (0..random.usize(0..30))
        .map(|_| {
            let start = random.u64(0..DISK_BYTES / unit + 3) * unit;
            let length = random.u64(0..longest) * unit;
            (Extent { start, length }, PRIORITY[random.usize(0..PRIORITY.len())])
        })
        .collect()
}

fn map_of(given: Vec<(Extent, Reason)>) -> FilterMap {
    FilterMap::new(DISK_BYTES, given, Vec::new())
}

#[test]
fn a_mask_is_what_a_bitmap_of_bytes_says() {
    for seed in 0..SEEDS {
        let mut random = fastrand::Rng::with_seed(seed);
        let given = some_ranges(&mut random);
        let (map, naive) = (map_of(given.clone()), naive_mask(&given));
        let mut seen = vec![None; DISK_BYTES as usize];
        let mut end = 0;
        let mut last = None;
        for (range, reason) in map.ranges() {
            assert!(range.start >= end && range.length > 0, "seed {seed}: {range:?} after {end}");
            assert!(range.start > end || last != Some(*reason), "seed {seed}: not joined at {end}");
            (end, last) = (range.start + range.length, Some(*reason));
            seen[range.start as usize..end as usize].fill(Some(*reason));
        }
        assert!(seen == naive, "seed {seed}: {given:?}");
        for reason in PRIORITY {
            let expected = naive.iter().filter(|byte| **byte == Some(reason)).count() as u64;
            let bytes = map.bytes_by_reason().get(&reason).copied().unwrap_or(0);
            assert_eq!(bytes, expected, "seed {seed}: {reason:?}");
        }
        for _ in 0..40 {
            let length = [1, 4096, 20_000, 100_000][random.usize(0..4)];
            let start = random.u64(0..DISK_BYTES);
            let length = random.u64(0..length).min(DISK_BYTES - start);
            let part = &naive[start as usize..(start + length) as usize];
            let masked = part.iter().filter(|byte| byte.is_some()).count() as u64;
            let range = Extent { start, length };
            assert_eq!(map.masked_bytes(range), masked, "seed {seed}: {range:?}");
            assert_eq!(map.covers(range), masked == length && length > 0, "seed {seed}: {range:?}");
            let mut bytes = vec![7; length as usize];
            assert_eq!(map.zero(start, &mut bytes), masked, "seed {seed}: {range:?}");
            let right = bytes.iter().zip(part).all(|(byte, of)| (*byte == 0) == of.is_some());
            assert!(right, "seed {seed}: {range:?}");
        }
    }
}

#[test]
fn what_a_base_masks_and_today_does_not_is_found() {
    for seed in 0..SEEDS {
        let mut random = fastrand::Rng::with_seed(seed);
        let (base, today) = (some_ranges(&mut random), some_ranges(&mut random));
        let (was, is) = (naive_mask(&base), naive_mask(&today));
        let mut expected: Vec<Extent> = Vec::new();
        for (at, _) in
            was.iter().zip(&is).enumerate().filter(|(_, (was, is))| was.is_some() && is.is_none())
        {
            match expected.last_mut() {
                Some(last) if last.start + last.length == at as u64 => last.length += 1,
                _ => expected.push(Extent { start: at as u64, length: 1 }),
            }
        }
        let (base, today) = (map_of(base), map_of(today));
        assert_eq!(FilterMap::subtract(&base, &today), expected, "seed {seed}");
        assert_eq!(FilterMap::subtract(&base, &base), [], "seed {seed}");
    }
    let base = map_of(vec![(Extent { start: 0, length: DISK_BYTES }, Reason::Swap)]);
    let shrunk = FilterMap::new(100 << 10, Vec::new(), Vec::new());
    let left = FilterMap::subtract(&base, &shrunk);
    assert_eq!(
        left,
        [Extent { start: 0, length: 100 << 10 }],
        "beyond the disk is nothing to read"
    );
    let other = map_of(vec![(Extent { start: 0, length: DISK_BYTES }, Reason::Deleted)]);
    assert_eq!(FilterMap::subtract(&base, &other), [], "zeros for another reason are zeros");
}

#[test]
fn a_restore_points_ranges_give_the_same_mask_and_digests_tell_masks_apart() {
    let mut digests = std::collections::HashSet::new();
    let mut masks = std::collections::HashSet::new();
    for seed in 0..SEEDS {
        let map = map_of(some_ranges(&mut fastrand::Rng::with_seed(seed)));
        let again = FilterMap::from_mask_ranges(DISK_BYTES, map.to_mask_ranges()).unwrap();
        assert_eq!(map, again, "seed {seed}");
        assert_eq!(map.digest(), again.digest(), "seed {seed}");
        digests.insert(map.digest());
        masks.insert(map.ranges().to_vec());
    }
    assert_eq!(digests.len(), masks.len());
    let longer = FilterMap::new(DISK_BYTES + 1, Vec::new(), Vec::new());
    assert_ne!(longer.digest(), map_of(Vec::new()).digest());
}

#[test]
fn foreign_masks_are_refused_whole() {
    let good = [(1, 0, 8192), (4, 8192, 4096)];
    FilterMap::from_mask_ranges(DISK_BYTES, good).unwrap();
    type Case<'a> = (&'a str, &'a [(u16, u64, u64)]);
    let bad: [Case<'_>; 8] = [
        ("not known", &[(6, 0, 4096)]),
        ("not known", &[(0, 0, 4096)]),
        ("whole grains", &[(1, 0, 0)]),
        ("whole grains", &[(1, 512, 4096)]),
        ("whole grains", &[(1, 0, 4097)]),
        ("out of order", &[(1, 8192, 4096), (1, 4096, 8192)]),
        ("not within", &[(1, 4096, u64::MAX / 4096 * 4096)]),
        ("not within", &[(1, 0, 4 << 20)]),
    ];
    for (why, stored) in bad {
        let refused = FilterMap::from_mask_ranges(DISK_BYTES, stored.iter().copied()).unwrap_err();
        assert!(refused.why.contains(why), "{stored:?}: {refused}");
    }
    let many = (0..=limits::MASK_RANGES_MAX as u64).map(|number| (1, number * 8192, 4096));
    FilterMap::from_mask_ranges(u64::MAX, many).unwrap_err();
}

#[test]
fn beyond_the_bound_the_smallest_ranges_are_copied_and_that_is_said() {
    let long = limits::RANGE_BYTES_MIN + limits::GRAIN_BYTES;
    let count = limits::MASK_RANGES_MAX as u64 + 10;
    let range = |number: u64| {
        let length = if number % 1000 == 7 { limits::RANGE_BYTES_MIN } else { long };
        (Extent { start: number * 2 * long, length }, Reason::Deleted)
    };
    let mut map = FilterMap::new(u64::MAX, (0..count).map(range).collect(), Vec::new());
    assert_eq!(map.ranges().len(), limits::MASK_RANGES_MAX);
    assert_eq!(map.dropped, Dropped { ranges: 10, bytes: 10 * limits::RANGE_BYTES_MIN });
    assert!(map.ranges().is_sorted());
    map.keep_largest(0);
    assert_eq!((map.is_empty(), map.dropped.ranges), (true, count));
}

/// A file system that says what it is told to.
#[derive(Default)]
struct Told {
    free: Vec<Extent>,
    free_refused: Option<&'static str>,
    files: Vec<FileRange>,
    in_use: Vec<Extent>,
    in_use_refused: Option<&'static str>,
}

fn end_with(refused: Option<&str>) -> Result<(), Refused> {
    refused.map_or(Ok(()), |why| Err(Refused::new(why)))
}

impl GuestFs for Told {
    fn kind(&self) -> &'static str {
        "told"
    }
    fn identity(&self) -> String {
        String::new()
    }
    fn consistency(&self) -> Consistency {
        Consistency::Clean
    }
    fn free(&self, give: &mut dyn FnMut(Extent)) -> Result<(), Refused> {
        self.free.iter().copied().for_each(give);
        end_with(self.free_refused)
    }
    fn system_files(
        &self,
        give: &mut dyn FnMut(FileRange),
        left_out: &mut dyn FnMut(&str, Refused),
    ) -> Result<(), Refused> {
        let own = self.files.iter().filter(|file| file.reason != Reason::Excluded);
        own.cloned().for_each(give);
        left_out("/swap2", Refused::new("a reason"));
        Ok(())
    }
    fn excluded_files(
        &self,
        _masks: &dyn FileMasks,
        give: &mut dyn FnMut(FileRange),
        _left_out: &mut dyn FnMut(&str, Refused),
    ) -> Result<(), Refused> {
        let own = self.files.iter().filter(|file| file.reason == Reason::Excluded);
        own.cloned().for_each(give);
        Ok(())
    }
    fn in_use(&self, _seed: u64, give: &mut dyn FnMut(Extent)) -> Result<(), Refused> {
        self.in_use.iter().copied().for_each(give);
        end_with(self.in_use_refused)
    }
}

struct All;

impl FileMasks for All {
    fn excludes(&self, _path: &str) -> bool {
        true
    }
    fn may_exclude_beneath(&self, _folder: &str) -> bool {
        true
    }
}

const KIB: u64 = 1 << 10;

fn kib(start: u64, length: u64) -> Extent {
    Extent { start: start * KIB, length: length * KIB }
}

fn file(path: &str, reason: Reason, range: Extent) -> FileRange {
    FileRange { range, reason, path: path.to_owned() }
}

/// Collects from a volume whose first 64 KiB are at 128 KiB of the disk, and the rest at 0.
fn collected(told: &Told) -> collect::Collected {
    let disk = vec![0u8; 256 << 10];
    let view = View::of(&disk, vec![kib(128, 64), kib(0, 128)]).unwrap();
    let options = FilterOptions { excluded: Some(&All), ..FilterOptions::default() };
    collect::file_system("partition 1", &view, told, &options)
}

#[test]
fn a_volumes_ranges_are_put_in_their_place_on_the_disk() {
    let told = Told {
        free: vec![kib(32, 64), kib(97, 30)],
        files: vec![
            file("/pagefile.sys", Reason::PageFile, kib(128, 16)),
            file("/pagefile.sys", Reason::PageFile, kib(144, 16)),
            file("/a.iso", Reason::Excluded, kib(160, 20)),
        ],
        in_use: vec![kib(0, 32), kib(96, 1), kib(127, 1), kib(160, 32)],
        ..Told::default()
    };
    let found = collected(&told);
    let expected = [
        (kib(0, 32), Reason::Deleted),
        (kib(36, 24), Reason::Deleted),
        (kib(64, 32), Reason::PageFile),
        (kib(96, 20), Reason::Excluded),
        (kib(160, 32), Reason::Deleted),
    ];
    assert_eq!(found.ranges, expected);
    let files: Vec<_> = found.files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
    assert_eq!(files, [("/pagefile.sys", 32 * KIB), ("/a.iso", 20 * KIB)]);
    assert_eq!(found.refused.len(), 1);
    assert_eq!((found.refused[0].what.as_str(), found.files_more), ("/swap2", 0));
}

#[test]
fn any_clash_turns_all_filters_of_the_volume_off() {
    let swap = file("/swap", Reason::Swap, kib(150, 30));
    let clashes = [
        Told { in_use: vec![kib(63, 1)], ..Told::default() },
        Told { in_use: vec![kib(64, 1)], ..Told::default() },
        Told { in_use_refused: Some("unreadable"), ..Told::default() },
        Told { files: vec![file("/b", Reason::Excluded, kib(95, 20))], ..Told::default() },
    ];
    for mut told in clashes {
        told.free = vec![kib(32, 64)];
        told.files.push(swap.clone());
        let found = collected(&told);
        assert_eq!((found.ranges, found.files), (Vec::new(), Vec::new()));
        let last = found.refused.last().unwrap();
        assert!(last.what == "everything" && last.why.contains("self-check"), "{last:?}");
    }
    let good = Told {
        free: vec![kib(32, 64)],
        files: vec![swap],
        in_use: vec![kib(31, 1), kib(96, 4)],
        ..Told::default()
    };
    assert_eq!(collected(&good).ranges.len(), 3);
}

#[test]
fn what_a_reader_gave_before_it_refused_is_not_used() {
    let told = Told {
        free: vec![kib(32, 64)],
        free_refused: Some("a bitmap is damaged"),
        files: vec![file("/swap", Reason::Swap, kib(128, 30))],
        in_use: vec![kib(32, 64)],
        ..Told::default()
    };
    let found = collected(&told);
    assert_eq!(found.ranges, [(kib(64, 28), Reason::Swap)]);
    let refused = found.refused.iter().find(|refused| refused.what == "deleted blocks").unwrap();
    assert_eq!(refused.why, "a bitmap is damaged");
}
