//! The simulated disk against what disks promise: each seed a random history and a crash.

use std::collections::BTreeSet;

use fastrand::Rng;
use gantry_uring::buffer::BufferPool;

use super::super::{Completion, OpenMode, Storage, StorageFile, WriteQueue};
use super::{Fault, FaultyFile, FaultyStorage};

const EIO: i32 = 5;
const SECTOR: usize = 512;

fn bytes_of(file: &FaultyFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

fn read(disk: &FaultyStorage, path: &str) -> Option<Vec<u8>> {
    disk.open(path, OpenMode::Read).ok().map(|file| bytes_of(&file))
}

fn sector(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut sector = bytes.get(at * SECTOR..).unwrap_or(&[]).to_vec();
    sector.resize(SECTOR, 0);
    sector
}

/// A file that is there and durable.
fn new_file(disk: &FaultyStorage) -> FaultyFile {
    let file = disk.open("f", OpenMode::CreateNew).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir("").unwrap();
    file
}

#[test]
fn a_crash_leaves_each_sector_as_it_once_was_since_the_last_sync() {
    let mut seen = BTreeSet::new();
    for seed in 0..400 {
        let mut random = Rng::with_seed(seed);
        let disk = FaultyStorage::new();
        let file = new_file(&disk);
        let mut history = vec![Vec::new()];
        for step in 1..=random.u8(1..30) {
            match random.u8(0..10) {
                0 => file.set_len(random.u64(0..6000)).unwrap(),
                1 => file.allocate(random.u64(0..6000)).unwrap(),
                2 => file.punch_hole(random.u64(0..4) * 512, 1024).unwrap(),
                3 => {
                    file.sync_data().unwrap();
                    history.clear();
                }
                _ => {
                    let bytes = vec![step; random.usize(1..1800)];
                    file.write_at(random.u64(0..5000), &bytes).unwrap();
                }
            }
            history.push(bytes_of(&file));
        }
        assert_eq!(read(&disk.kill(seed), "f").unwrap(), bytes_of(&file), "seed {seed}: a kill");
        let left = read(&disk.crash(seed), "f").unwrap();
        assert_eq!(disk.crash(seed).image(), disk.crash(seed).image(), "seed {seed}: replays");
        assert!(history.iter().any(|old| old.len() == left.len()), "seed {seed}: length");
        for at in 0..left.len().div_ceil(SECTOR) {
            let end = left.len().min((at + 1) * SECTOR);
            let found = &left[at * SECTOR..end];
            // Beyond an older end, and where a cut and an extension met, zeros are right too.
            let known = history.iter().any(|old| sector(old, at)[..found.len()] == *found);
            let zeroed = history.iter().any(|old| {
                found.iter().zip(sector(old, at)).all(|(now, old)| *now == old || *now == 0)
            });
            assert!(known || zeroed, "seed {seed} sector {at}");
        }
        seen.insert(left == *history.last().unwrap());
        let oldest = read(&disk.after_power_loss(), "f").unwrap();
        assert_eq!(oldest, history[0], "seed {seed}: nothing unsynced");
    }
    assert_eq!(seen.len(), 2, "crashes lose something, but not always");
}

#[test]
fn names_are_lost_from_the_newest_back() {
    let mut lost = BTreeSet::new();
    for seed in 0..100 {
        let disk = FaultyStorage::new();
        disk.create_dir("d").unwrap();
        disk.sync_dir("").unwrap();
        for number in 0..5 {
            disk.open(&format!("d/{number}"), OpenMode::CreateNew).unwrap();
        }
        disk.sync_dir("d").unwrap();
        disk.rename("d/0", "d/a").unwrap();
        disk.remove("d/1").unwrap();
        disk.open("d/b", OpenMode::CreateNew).unwrap();
        let states = ["d/0 d/1", "d/1 d/a", "d/a", "d/a d/b"];
        let files: Vec<String> = disk.crash(seed).files();
        let files: Vec<&str> = files
            .iter()
            .map(String::as_str)
            .filter(|file| !["d/2", "d/3", "d/4"].contains(file))
            .collect();
        let at = states.iter().position(|state| *state == files.join(" "));
        lost.insert(at.unwrap_or_else(|| panic!("seed {seed}: {files:?}")));
        assert_eq!(disk.kill(seed).after_power_loss().files().len(), 5, "a kill syncs no name");
    }
    assert_eq!(lost.len(), 4);
}

#[test]
fn a_folder_that_is_lost_takes_its_files_along() {
    let disk = FaultyStorage::new();
    disk.create_dir("d").unwrap();
    disk.open("d/f", OpenMode::CreateNew).unwrap();
    disk.sync_dir("d").unwrap();
    assert!(disk.after_power_loss().files().is_empty());
    disk.sync_dir("").unwrap();
    assert_eq!(disk.after_power_loss().files(), ["d/f"]);
    assert!(disk.remove_dir("d").is_err(), "it is not empty");
    disk.remove("d/f").unwrap();
    disk.remove_dir("d").unwrap();
    assert!(disk.open("d/g", OpenMode::CreateNew).is_err());
    assert_eq!(disk.after_power_loss().files(), ["d/f"], "its removal was not synced");
}

#[test]
fn a_sync_that_failed_lies_from_then_on() {
    let mut dropped = 0;
    for seed in 0..40 {
        let disk = FaultyStorage::late(seed);
        let file = new_file(&disk);
        file.write_at(0, &[1; 4096]).unwrap();
        let fault =
            Fault { operation: "sync", path_part: "f".into(), errno: EIO, skip: 0, count: 1 };
        disk.fail(fault);
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(EIO));
        file.write_at(4096, &[2; 4096]).unwrap();
        file.sync_data().unwrap();
        assert_eq!(bytes_of(&file)[0], 1, "the page cache still has it");
        let left = read(&disk.after_power_loss(), "f").unwrap();
        assert_eq!((left.len(), left[4096]), (8192, 2));
        let uncached = disk.open("f", OpenMode::ReadUncached).unwrap();
        assert_eq!(bytes_of(&uncached)[0], left[0], "seed {seed}");
        dropped += u32::from(left[0] == 0);
    }
    assert!((1..40).contains(&dropped), "{dropped} of 40 lost the first write");
}

#[test]
fn late_completions_come_in_any_order_and_a_sync_covers_what_had_completed() {
    let mut orders = BTreeSet::new();
    for seed in 0..60 {
        let disk = FaultyStorage::late(seed);
        let file = new_file(&disk);
        let mut queue = disk.write_queue().unwrap();
        let pool = BufferPool::new(4, 4096).unwrap();
        for tag in 0..3 {
            let mut buffer = pool.try_take().unwrap();
            buffer.fill(tag as u8 + 1);
            queue.submit_write(&file, tag * 4096, buffer, 4096, tag);
        }
        queue.submit_sync(&file, 3);
        let mut done: Vec<Completion> = Vec::new();
        while queue.in_flight() > 0 {
            queue.complete(true, &mut done);
        }
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        assert_eq!(pool.free(), pool.slots());
        orders.insert(done.iter().map(|completion| completion.tag).collect::<Vec<_>>());
        assert_eq!(bytes_of(&file).len(), 3 * 4096);
        let left = read(&disk.after_power_loss(), "f").unwrap();
        assert!(left.is_empty(), "seed {seed}: the sync was submitted before any write was done");
    }
    assert!(orders.len() > 10, "{orders:?}");
}

#[test]
fn a_write_under_way_may_be_left_in_part_even_by_a_kill() {
    let mut left = BTreeSet::new();
    for seed in 0..60 {
        let disk = FaultyStorage::new();
        let file = new_file(&disk);
        file.allocate(4096).unwrap();
        let mut queue = disk.write_queue().unwrap();
        let pool = BufferPool::new(1, 4096).unwrap();
        let mut buffer = pool.try_take().unwrap();
        buffer.fill(1);
        queue.submit_write(&file, 0, buffer, 4096, 0);
        assert_eq!(bytes_of(&file), [0; 4096], "not before it is done");
        let bytes = read(&disk.kill(seed), "f").unwrap();
        left.insert(bytes.iter().filter(|byte| **byte == 1).count());
    }
    assert!(left.contains(&0) && left.contains(&4096) && left.len() > 3, "{left:?}");
}

#[test]
fn a_full_disk_says_so_and_removing_makes_room() {
    let disk = FaultyStorage::new();
    disk.set_capacity(Some(64 << 10));
    let file = new_file(&disk);
    file.allocate(48 << 10).unwrap();
    assert_eq!(disk.free_bytes().unwrap(), 16 << 10);
    let other = disk.open("g", OpenMode::CreateNew).unwrap();
    other.write_at(0, &[1; 16 << 10]).unwrap();
    let full = other.write_at(16 << 10, &[1]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    file.write_at(0, &[1; 48 << 10]).unwrap();
    file.punch_hole(0, 8 << 10).unwrap();
    disk.remove("f").unwrap();
    other.write_at(16 << 10, &[1; 48 << 10]).unwrap();
    assert_eq!(disk.free_bytes().unwrap(), 0);
}

#[test]
fn every_operation_is_counted_and_can_fail() {
    let disk = FaultyStorage::new();
    let file = new_file(&disk);
    let before = disk.operations();
    disk.fail_at(before + 1, EIO);
    file.write_at(0, &[1; 10]).unwrap();
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(EIO));
    file.sync_data().unwrap();
    disk.read_short("f", 1);
    assert_eq!(file.read_at(0, &mut [0; 10]).unwrap(), 5);
    assert_eq!(file.read_at(0, &mut [0; 10]).unwrap(), 10);
    disk.power_off_at(disk.operations() + 1);
    file.write_at(0, &[2; 10]).unwrap();
    assert!(file.sync_data().is_err() && disk.remove("f").is_err());
    assert_eq!(disk.cut_operation().as_deref(), Some("sync f"));
}
