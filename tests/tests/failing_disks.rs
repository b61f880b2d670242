//! Disks that fail: a repository without space, a source that cannot be read or changes, a folder
//! that is missing, read-only or in use. The right exit code, a text that names the place, older
//! points untouched, and a way on.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use gantry_tests::devices::{LoopDevice, Volume, is_root};
use gantry_tests::images;
use gantry_tests::site::{Site, wait_until};

const MIB: u64 = 1 << 20;

#[test]
fn a_full_repository_fails_the_session_and_nothing_else() {
    if !is_root() {
        return;
    }
    let mut site = Site::new();
    let volume = Volume::ext4(&site.scratch, 256 * MIB);
    site.repository = volume.path().join("repository");
    let (old, disk) = (site.scratch.join("old.raw"), site.scratch.join("disk.raw"));
    images::noise_disk(&old, 12 * MIB, 1);
    images::noise_disk(&disk, 120 * MIB, 2);
    let mut server = site.serve();
    site.backup(&server, "old").disk(&old, "old").report();
    // Something else fills the volume, up to about 60 MiB.
    let ballast = volume.path().join("ballast");
    images::noise_disk(&ballast, free_bytes(volume.path()) - 60 * MIB, 3);

    let full = site.backup(&server, "vm").disk(&disk, "disk").run().fails_with(5);
    full.saying(&["space"]);
    server.is_well();
    assert_eq!(site.points_at(&server, "").len(), 1, "nothing half-made is listed");
    site.restore(&server, "old").equals(&old);

    // A second try without space fails as well, a small one may succeed: no harm either way.
    site.backup(&server, "vm").disk(&disk, "disk").run().fails_with(5);
    std::fs::remove_file(&ballast).unwrap();
    let report = site.backup(&server, "vm").disk(&disk, "disk").report();
    eprintln!("resumed {} of {} bytes", report.number("bytes_resumed"), 120 * MIB);
    site.restore(&server, "vm").equals(&disk);
    site.restore(&server, "old").equals(&old);
    server.stop();
    site.verify();
}

#[test]
fn a_repository_in_a_folder_fills_up_and_recovers() {
    if !is_root() {
        return;
    }
    let mut site = Site::new();
    let volume = Volume::ext4(&site.scratch, 128 * MIB);
    site.repository = volume.path().join("repository");
    site.repo("init").ok();
    let (old, disk) = (site.scratch.join("old.raw"), site.scratch.join("disk.raw"));
    images::noise_disk(&old, 8 * MIB, 4);
    images::noise_disk(&disk, 150 * MIB, 5);
    site.backup_local("old").disk(&old, "old").report();
    site.backup_local("vm").disk(&disk, "disk").run().fails_with(5).saying(&["space"]);
    // Even full to the brim it can be read and checked.
    site.restore_local("old").equals(&old);
    site.verify();
    assert_eq!(site.points().len(), 1);
}

fn free_bytes(path: &Path) -> u64 {
    let facts = rustix::fs::statvfs(path).expect("a mounted volume");
    facts.f_bavail * facts.f_frsize
}

#[test]
fn a_read_error_names_the_disk_and_the_place() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let server = site.serve();
    let (file, good) = (site.scratch.join("failing.raw"), site.scratch.join("good.raw"));
    images::noise_disk(&file, 16 * MIB, 6);
    images::noise_disk(&good, 2 * MIB, 7);
    let device = LoopDevice::attach(&file, true);
    // The device keeps its size; what lies beyond the file's new end cannot be read any more.
    File::options().write(true).open(&file).unwrap().set_len(9 * MIB).unwrap();
    let name = device.path().display().to_string();
    let failed = site.backup(&server, "vm").disk(&good, "good").disk(device.path(), "bad").run();
    failed.fails_with(3).saying(&[&name]);
    let failed = site.backup(&server, "vm").disk(device.path(), "bad").run().fails_with(3);
    // Reads run ahead and end out of order, so any block beyond the file's end may be named.
    let block =
        failed.err.split("block ").nth(1).and_then(|rest| rest.split([' ', ',', ':']).next());
    let block = block.and_then(|block| block.parse::<u64>().ok());
    assert!(block.is_some_and(|block| (9..16).contains(&block)), "where? {}", failed.err);
    assert!(site.points_at(&server, "").is_empty(), "a point needs every disk");
    // The disk is repaired: the same command succeeds.
    drop(device);
    images::noise_disk(&file, 16 * MIB, 6);
    let device = LoopDevice::attach(&file, true);
    let run = site.backup(&server, "vm").disk(&good, "good").disk(device.path(), "bad");
    run.report();
    site.restore(&server, "vm").disk(1).equals(&file);
    server.stop();
    site.verify();
}

#[test]
fn sources_that_are_no_disks() {
    let site = Site::new();
    site.repo("init").ok();
    let empty = site.scratch.write("empty.raw", b"");
    let absent = site.scratch.join("absent.raw");
    for source in [&empty, &absent, site.scratch.path(), Path::new("/dev/null")] {
        let outcome = site.backup_local("vm").disk(source, "disk").run().fails_with(3);
        outcome.saying(&[&source.display().to_string()]);
    }
    assert!(site.points().is_empty());
}

#[test]
fn a_disk_that_changes_while_it_is_read_makes_no_point() {
    let site = Site::new();
    let server = site.serve();
    let disk = site.scratch.join("disk.raw");
    // More than fits into the buffers between the disk and a slow network.
    images::noise_disk(&disk, 192 * MIB, 8);
    let rate = site.scratch.write("rate", "4MB/s");
    let run = site.backup(&server, "vm").disk(&disk, "disk");
    let run = run.args(["--rate-file".as_ref(), rate.as_os_str()]).start();
    std::thread::sleep(Duration::from_millis(1500));
    images::overwrite(&disk, 190 * MIB, b"written while it was read");
    std::fs::write(&rate, "unlimited").unwrap();
    run.wait().fails_with(3).saying(&["disk.raw", "chang"]);
    assert!(site.points_at(&server, "").is_empty());
}

#[test]
fn a_missing_or_read_only_repository_is_named() {
    let site = Site::new();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, MIB, 1);
    let folder = site.repository.display().to_string();
    let to = site.scratch.join("to.raw");
    for outcome in [
        site.backup_local("vm").disk(&disk, "disk").run(),
        site.restore_local("vm").run(&to),
        site.repo("verify"),
        site.repo("list"),
    ] {
        // The person named a folder that is no repository.
        outcome.fails_with(2).saying(&[&folder]);
    }
    assert!(!to.exists() && !site.repository.exists(), "nothing was made");
    // A folder that holds something else is not taken over.
    std::fs::create_dir(&site.repository).unwrap();
    std::fs::write(site.repository.join("letter.txt"), b"not a repository").unwrap();
    let refused = site.repo("init");
    assert!([2, 5].contains(&refused.code()), "{}", refused.err);
    assert_eq!(std::fs::read_dir(&site.repository).unwrap().count(), 1, "nothing was added");
}

#[test]
fn a_read_only_volume_is_said_to_be_one() {
    if !is_root() {
        return;
    }
    let mut site = Site::new();
    let volume = Volume::ext4(&site.scratch, 64 * MIB);
    site.repository = volume.path().join("repository");
    site.repo("init").ok();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, MIB, 1);
    site.backup_local("vm").disk(&disk, "disk").report();
    // Files of a ring are released some time after its process has ended.
    wait_until(Duration::from_secs(10), "a volume that nobody writes", || {
        let mut remount = Command::new("mount");
        remount.args(["-o", "remount,ro"]).arg(volume.path()).output().unwrap().status.success()
    });
    site.backup_local("vm").disk(&disk, "disk").run().fails_with(5).saying(&["read-only"]);
}

#[test]
fn one_process_owns_a_repository() {
    let site = Site::new();
    let mut server = site.serve();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, MIB, 1);
    let refused = site.backup_local("vm").disk(&disk, "disk").run().fails_with(5);
    refused.saying(&["in use"]);
    site.repo("rebuild-index").fails_with(5).saying(&["in use"]);
    site.backup(&server, "vm").disk(&disk, "disk").report();
    server.is_well();
    // A killed owner leaves no lock behind.
    server.process.kill_hard();
    site.backup_local("vm").disk(&disk, "disk").report();
    assert_eq!(site.points().len(), 2);
}
