//! Disks of every kind: sparse, full, refused, changing, and a loop device where root allows it.
//!
//! In: temporary files. Out: pass or fail. Must not: leave a loop device behind.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::limits;
use rustix::fs::{OFlags, fcntl_getfl};

use super::{Disk, DiskError};

const MIB: u64 = 1 << 20;

fn in_dir(name: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    (dir, path)
}

/// 8 MiB with data in [1 MiB, 2 MiB) and [5 MiB, 5.5 MiB).
fn sparse(path: &Path) {
    let mut file = File::create(path).unwrap();
    file.set_len(8 * MIB).unwrap();
    for (start, len) in [(MIB, MIB), (5 * MIB, MIB / 2)] {
        file.seek(SeekFrom::Start(start)).unwrap();
        file.write_all(&vec![7; len as usize]).unwrap();
    }
    file.sync_all().unwrap();
}

fn extents(disk: &Disk) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut offset = 0;
    while let Some((start, end)) = disk.next_data(offset).unwrap() {
        assert!(start >= offset && end > start && end <= disk.size_bytes());
        found.push((start, end));
        offset = end;
    }
    found
}

#[test]
fn a_sparse_file_gives_its_data_and_no_more() {
    let (_dir, path) = in_dir("sparse.raw");
    sparse(&path);
    let disk = Disk::open(&path, true).unwrap();
    assert_eq!((disk.size_bytes(), disk.sector_bytes()), (8 * MIB, 512));
    assert!(!disk.is_block_device());
    assert_eq!(disk.access().unwrap().direct, disk.access().unwrap().note.is_none());
    let found = extents(&disk);
    for wanted in [(MIB, 2 * MIB), (5 * MIB, 5 * MIB + MIB / 2)] {
        assert!(
            found.iter().any(|&(start, end)| start <= wanted.0 && end >= wanted.1),
            "{found:?}"
        );
    }
    // Every common filesystem but a few (and no test directory of ours) knows its holes.
    assert_eq!(found, [(MIB, 2 * MIB), (5 * MIB, 5 * MIB + MIB / 2)]);
    assert_eq!(disk.next_data(MIB + 5).unwrap(), Some((MIB + 5, 2 * MIB)));
    for past in [6 * MIB, 8 * MIB, u64::MAX] {
        assert_eq!(disk.next_data(past).unwrap(), None);
    }
}

#[test]
fn a_full_file_is_one_extent_and_a_hole_is_none() {
    let (dir, path) = in_dir("full.raw");
    fs::write(&path, vec![1; 3_000_001]).unwrap();
    let disk = Disk::open(&path, false).unwrap();
    assert_eq!(extents(&disk), [(0, 3_000_001)]);
    assert_eq!((disk.access().unwrap().direct, &disk.access().unwrap().note), (false, &None));
    let path = dir.path().join("hole.raw");
    File::create(&path).unwrap().set_len(5 * MIB).unwrap();
    assert_eq!(extents(&Disk::open(&path, true).unwrap()), []);
}

#[test]
fn a_file_that_grew_or_shrank_keeps_its_extents_within_the_opening_size() {
    let (_dir, path) = in_dir("moving.raw");
    fs::write(&path, vec![1; 2 * MIB as usize]).unwrap();
    let disk = Disk::open(&path, false).unwrap();
    let writer = File::options().append(true).open(&path).unwrap();
    (&writer).write_all(&vec![2; MIB as usize]).unwrap();
    assert_eq!(extents(&disk), [(0, 2 * MIB)]);
    writer.set_len(MIB).unwrap();
    assert_eq!(disk.next_data(MIB + 1).unwrap(), None);
}

#[test]
fn what_is_no_disk_is_refused_with_its_path_as_a_failure_of_the_source() {
    let (dir, path) = in_dir("some");
    let refusal = |path: &Path| {
        let error = Disk::open(path, true).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        let failure = Failure::from(error);
        assert_eq!((failure.kind, failure.message == text), (FailureKind::Source, true));
        text
    };
    assert!(refusal(dir.path()).contains("a directory"));
    assert!(refusal(&path).contains("cannot open"));
    File::create(&path).unwrap();
    assert!(refusal(&path).contains("is empty"));
    assert!(refusal(Path::new("/dev/null")).contains("a character device"));
    File::options().write(true).open(&path).unwrap().set_len(limits::DISK_BYTES_MAX + 1).ok();
    match Disk::open(&path, true) {
        Err(DiskError::TooLarge { size_bytes, .. }) => {
            assert_eq!(size_bytes, limits::DISK_BYTES_MAX + 1);
        }
        // The filesystem did not allow so large a file.
        other => assert!(matches!(other, Err(DiskError::Empty { .. })), "{other:?}"),
    }
    let pipe = dir.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(refusal(&pipe).contains("a pipe"));
}

#[test]
fn a_disk_is_open_for_reading_only() {
    let (_dir, path) = in_dir("disk.raw");
    fs::write(&path, [1; 4096]).unwrap();
    let disk = Disk::open(&path, true).unwrap();
    let flags = fcntl_getfl(disk.descriptor(0).unwrap().unwrap()).unwrap();
    assert!(!flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::NONBLOCK), "{flags:?}");
}

#[test]
fn identity_follows_the_canonical_path_and_fingerprint_the_contents() {
    let (dir, path) = in_dir("disk.raw");
    fs::write(&path, [1; 4096]).unwrap();
    let link = dir.path().join("link.raw");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let (first, second) = (Disk::open(&path, true).unwrap(), Disk::open(&link, true).unwrap());
    let canonical = path.canonicalize().unwrap();
    assert_eq!(first.identity(), format!("file:{}", canonical.display()));
    assert_eq!(first.identity(), second.identity());
    assert_eq!(first.fingerprint(), second.fingerprint());
    assert_eq!(first.changed_since_open().unwrap(), None);

    std::thread::sleep(std::time::Duration::from_millis(20));
    let writer = File::options().write(true).open(&path).unwrap();
    (&writer).write_all(&[2]).unwrap();
    assert!(first.changed_since_open().unwrap().unwrap().contains("modified"));
    let third = Disk::open(&path, true).unwrap();
    assert_ne!(first.fingerprint(), third.fingerprint());
    writer.set_len(8192).unwrap();
    assert!(third.changed_since_open().unwrap().unwrap().contains("from 4096 to 8192"));

    let mut deep = dir.path().to_owned();
    for _ in 0..4 {
        deep.push("d".repeat(200));
    }
    fs::create_dir_all(&deep).unwrap();
    deep.push("disk.raw");
    fs::write(&deep, [1]).unwrap();
    let long = Disk::open(&deep, true).unwrap();
    assert!(long.identity().starts_with("file-blake3:"), "{}", long.identity());
}

/// A loop device over a file; detached when dropped.
struct Loop(PathBuf);

impl Loop {
    /// Nothing where loop devices cannot be made (no root, no driver, a container).
    fn attach(file: &Path) -> Option<Loop> {
        let output =
            Command::new("losetup").args(["-f", "--show", "-r"]).arg(file).output().ok()?;
        let device = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
        Some(Loop(PathBuf::from(device.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("-d").arg(&self.0).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_block_device_is_all_data_and_never_resumes_by_itself() {
    let (_dir, path) = in_dir("backing.raw");
    sparse(&path);
    let Some(device) = Loop::attach(&path) else {
        eprintln!("skipped: no loop device can be made here");
        return;
    };
    let (first, second) =
        (Disk::open(&device.0, true).unwrap(), Disk::open(&device.0, true).unwrap());
    assert!(first.is_block_device());
    assert_eq!((first.size_bytes(), extents(&first)), (8 * MIB, vec![(0, 8 * MIB)]));
    assert!(first.sector_bytes() >= 512 && first.sector_bytes().is_power_of_two());
    assert!(first.access().unwrap().direct, "{:?}", first.access());
    assert_eq!(first.identity(), second.identity());
    assert!(first.identity().contains(':'));
    assert_ne!(first.fingerprint(), second.fingerprint());
    assert_eq!(first.changed_since_open().unwrap(), None);
}
