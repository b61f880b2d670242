//! Several sessions beside each other in one repository.

use gantry_tests::backup::Report;
use gantry_tests::images;
use gantry_tests::site::Site;

const MIB: u64 = 1 << 20;

#[test]
fn two_backups_and_a_restore_at_once() {
    let site = Site::new();
    let server = site.serve();
    let disks: Vec<_> = (0..4).map(|number| site.scratch.join(format!("{number}.raw"))).collect();
    for (number, disk) in disks.iter().enumerate() {
        images::noise_disk(disk, 24 * MIB + 512 * number as u64, number as u64);
    }
    // Content that both backups share arrives twice at the same time.
    let shared = std::fs::read(&disks[1]).unwrap();
    images::overwrite(&disks[2], 4 * MIB, &shared[4 << 20..12 << 20]);
    site.backup(&server, "first").disk(&disks[0], "disk").report();

    let rate = ["--rate", "24MB/s"];
    let one = site.backup(&server, "one").disk(&disks[1], "disk").args(rate).start();
    let two = site.backup(&server, "two").disk(&disks[2], "disk").args(rate).start();
    let local = site.backup(&server, "first").disk(&disks[3], "disk").args(rate).start();
    for _ in 0..2 {
        site.restore(&server, "first").equals(&disks[0]);
    }
    for run in [one, two, local] {
        Report::of(&run.wait().ok());
    }
    site.restore(&server, "one").equals(&disks[1]);
    site.restore(&server, "two").equals(&disks[2]);
    site.restore(&server, "first").equals(&disks[3]);
    server.stop();
    assert_eq!(site.points().len(), 4);
    site.verify();
}

#[test]
fn the_same_content_from_two_sides_at_once() {
    let site = Site::new();
    let server = site.serve();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, 24 * MIB, 5);
    let names = ["a", "b", "c"];
    let runs = names.map(|name| site.backup(&server, name).disk(&disk, name).start());
    for run in runs {
        Report::of(&run.wait().ok());
    }
    for name in names {
        site.restore(&server, name).equals(&disk);
    }
    server.stop();
    site.verify();
}

#[test]
fn the_same_vm_twice_at_once_makes_only_whole_points() {
    let site = Site::new();
    let mut server = site.serve();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, 16 * MIB, 6);
    let rate = ["--rate", "16MB/s"];
    let one = site.backup(&server, "vm").disk(&disk, "disk").args(rate).start();
    std::thread::sleep(std::time::Duration::from_millis(400));
    let two = site.backup(&server, "vm").disk(&disk, "disk").args(rate).start();
    // The second takes over or is refused; at least one of them succeeds, and says the truth.
    let outcomes = [one.wait(), two.wait()];
    server.is_well();
    let succeeded: Vec<Report> =
        outcomes.iter().filter(|outcome| outcome.code() == 0).map(Report::of).collect();
    assert!(!succeeded.is_empty(), "{outcomes:?}");
    let points = site.points_at(&server, "vm");
    for report in &succeeded {
        assert!(points.contains(&report.point()), "{} is not listed", report.point());
    }
    for point in points {
        site.restore(&server, "vm").point(&point).equals(&disk);
    }
    server.stop();
    site.verify();
}
