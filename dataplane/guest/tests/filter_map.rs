//! The mask of whole disks: what is zeroed by it is missed by nobody, and no disk, however spoilt, is
//! a reason to fail.

#![allow(clippy::unwrap_used)]

mod images;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gantry_guest::{
    Consistency, Disk, Extent, FilterMap, FilterOptions, Reason, SnapshotKind, filter_disk,
    inspect_disk,
};
use images::judge::{Ends, Spoilt, bytes, checksums, common_bytes};
use images::{Image, can, empty, ext4, feed, run};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
const SWAP: Extent = Extent { start: MIB, length: 16 * MIB };
/// Neither its blocks of 1 KiB nor its start fit the grain.
const DATA: Extent = Extent { start: 20 * MIB + SECTOR, length: 64 * MIB };
const DISK_BYTES: u64 = 90 * MIB;
const TOOLS: [&str; 7] = ["sfdisk", "mkswap", "mke2fs", "dumpe2fs", "debugfs", "e2fsck", "cp"];

fn put(from: &Path, disk: &Path, offset: u64) {
    let content = std::fs::read(from).unwrap();
    File::options().write(true).open(disk).unwrap().write_all_at(&content, offset).unwrap();
}

/// A disk with a full swap partition and an ext4 with files that were deleted.
fn disk(folder: &Path) -> PathBuf {
    let mut random = fastrand::Rng::with_seed(1);
    let (path, swap, data) = (folder.join("disk"), folder.join("swap"), folder.join("data"));
    empty(&path, DISK_BYTES);
    let script = format!(
        "label: gpt\nstart={},size={}\nstart={},size={}\n",
        SWAP.start / SECTOR,
        SWAP.length / SECTOR,
        DATA.start / SECTOR,
        DATA.length / SECTOR
    );
    feed("sfdisk", &["--quiet", path.to_str().unwrap()], &script);
    let noise: Vec<u8> =
        std::iter::repeat_with(|| random.u8(1..)).take(SWAP.length as usize).collect();
    std::fs::write(&swap, &noise).unwrap();
    run("mkswap", &[swap.to_str().unwrap()]);
    put(&swap, &path, SWAP.start);
    let tree = folder.join("tree");
    std::fs::create_dir_all(tree.join("deep")).unwrap();
    for number in 0..60u64 {
        let length = random.usize(0..400_000);
        let name =
            if number % 3 == 0 { format!("deep/{number}.iso") } else { format!("{number}.txt") };
        std::fs::write(tree.join(name), &noise[..length]).unwrap();
    }
    empty(&data, DATA.length);
    let tree = tree.to_str().unwrap();
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "1024", "-d", tree, data.to_str().unwrap()]);
    for number in (1..60).filter(|number| number % 3 == 1) {
        run("debugfs", &["-w", "-R", &format!("rm {number}.txt"), data.to_str().unwrap()]);
    }
    run("e2fsck", &["-fn", data.to_str().unwrap()]);
    put(&data, &path, DATA.start);
    path
}

fn of_reason(map: &FilterMap, reason: Reason) -> Vec<Extent> {
    map.ranges().iter().filter(|(_, of)| *of == reason).map(|(range, _)| *range).collect()
}

/// What a backup would keep of a disk.
fn masked(disk: &Path, map: &FilterMap) -> Vec<u8> {
    let mut kept = std::fs::read(disk).unwrap();
    let mut sum = 0;
    for (number, block) in kept.chunks_mut(MIB as usize).enumerate() {
        let at = number as u64 * MIB;
        let length = block.len() as u64;
        let covered = map.covers(Extent { start: at, length });
        let zeroed = map.zero(at, block);
        assert_eq!(covered, zeroed == length);
        sum += zeroed;
    }
    assert_eq!(sum, map.bytes_by_reason().values().sum::<u64>());
    kept
}

#[test]
fn what_the_mask_zeroes_is_missed_by_nobody() {
    if !can(false, &TOOLS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = disk(folder.path());
    let options = FilterOptions { excluded: Some(&Ends(".iso")), ..FilterOptions::default() };
    let found = inspect_disk(&Image::open(&path), &options, SnapshotKind::Off);
    assert_eq!((found.table, found.map.refused.as_slice()), ("gpt", [].as_slice()));
    assert_eq!(found.volumes[1].consistency, Some(Consistency::Clean));
    assert_eq!(found.files.len(), 20);
    let map = found.map;
    let kept_head = 64 << 10;
    let swap = Extent { start: SWAP.start + kept_head, length: SWAP.length - kept_head };
    assert_eq!(of_reason(&map, Reason::Swap), [swap]);
    let free = ext4::free(&folder.path().join("data"));
    let unset = bytes(&free.unset);
    let on_disk = |range: &Extent| Extent { start: range.start + DATA.start, ..*range };
    let free: Vec<Extent> = free.ranges.iter().map(on_disk).collect();
    let deleted = of_reason(&map, Reason::Deleted);
    let (given, oracle) = (bytes(&deleted), bytes(&free) - unset);
    assert_eq!(common_bytes(&deleted, &free), given);
    assert!(given > oracle * 9 / 10, "{given} of {oracle}");

    let kept = masked(&path, &map);
    let data = folder.path().join("kept");
    let part = DATA.start as usize..(DATA.start + DATA.length) as usize;
    std::fs::write(&data, &kept[part]).unwrap();
    run("e2fsck", &["-fn", data.to_str().unwrap()]);
    let all = |image: &Path, name: &str| {
        let to = folder.path().join(name);
        std::fs::create_dir(&to).unwrap();
        run("debugfs", &["-R", &format!("rdump / {}", to.display()), image.to_str().unwrap()]);
        checksums(&to)
    };
    let (before, mut after) = (all(&folder.path().join("data"), "was"), all(&data, "is"));
    for (path, (length, hash)) in before {
        let (is_length, is_hash) = after.remove(&path).unwrap();
        assert_eq!(is_length, length, "{path}");
        assert!(is_hash == hash || path.ends_with(".iso"), "{path}");
    }
    assert!(after.is_empty());
    let plain = filter_disk(&Image::open(&path), &FilterOptions::default(), SnapshotKind::Off);
    let again = FilterMap::subtract(&map, &plain);
    assert_eq!(again, of_reason(&map, Reason::Excluded), "the rule is dropped: read it again");
    let none = FilterOptions { swap: false, deleted: false, ..FilterOptions::default() };
    assert!(filter_disk(&Image::open(&path), &none, SnapshotKind::Off).is_empty());
}

#[test]
fn no_disk_however_spoilt_is_a_reason_to_fail() {
    if !can(false, &TOOLS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let content = std::fs::read(disk(folder.path())).unwrap();
    let options = FilterOptions { excluded: Some(&Ends(".iso")), ..FilterOptions::default() };
    let whole = filter_disk(&content, &options, SnapshotKind::Crash);
    let mut refusals = 0;
    for seed in 0..150 {
        let mut random = fastrand::Rng::with_seed(seed);
        // Table, its backup, swap header, superblock and group descriptors, bitmaps and inodes.
        let places = [
            0..1280,
            DISK_BYTES - 33 * SECTOR..DISK_BYTES,
            SWAP.start..SWAP.start + 4096,
            DATA.start + 1024..DATA.start + 1400,
            DATA.start + 2048..DATA.start + 2560,
            DATA.start..DATA.start + 4 * MIB,
        ];
        let pieces = (0..random.usize(1..9)).map(|_| {
            let place = places[random.usize(0..places.len())].clone();
            let at = random.u64(place);
            let bytes = (0..random.usize(1..9)).map(|_| random.u8(..)).collect();
            (at, bytes)
        });
        let spoilt = Spoilt::new(&content, pieces.collect());
        let map = filter_disk(&spoilt, &options, SnapshotKind::Crash);
        refusals += usize::from(!map.refused.is_empty());
        let broken = map.refused.iter().find(|refused| refused.why.contains("error of its own"));
        assert_eq!(broken, None, "seed {seed}");
        assert!(spoilt.bytes.get() < 3 * DISK_BYTES, "seed {seed}: {}", spoilt.bytes.get());
    }
    assert!(refusals > 50, "{refusals}: that spoils nothing");
    assert!(!whole.is_empty());
    // Cut off, empty, unreadable.
    for length in [0, 1, 511, 512, 4096, 20 * MIB as usize, 60 * MIB as usize] {
        filter_disk(&content[..length].to_vec(), &options, SnapshotKind::Crash);
    }
    let map = filter_disk(&Unreadable, &options, SnapshotKind::Crash);
    assert!(map.is_empty() && !map.refused.is_empty());
}

struct Unreadable;

impl Disk for Unreadable {
    fn length(&self) -> u64 {
        1 << 40
    }

    fn read_at(&self, _offset: u64, _buffer: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::Error::other("no"))
    }
}
