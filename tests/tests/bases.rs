//! Incremental backups whose base fits, does not fit, or is not there; what the repository knows
//! already; disks that grew and shrank. The log says why a run did what it did.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use gantry_tests::backup::{BackupRun, Report};
use gantry_tests::corpus::Image;
use gantry_tests::images::{self, CHANGE_BYTES};
use gantry_tests::site::{Server, Site, wait_until};

const MIB: u64 = 1 << 20;

fn image(site: &Site) -> Image {
    images::synthesise(&site.scratch, "bases", 16 * MIB + 512)
}

/// A second version by extents whose claimed base is `base`.
fn by_extents(site: &Site, server: &Server, image: &Image, base: &str) -> BackupRun {
    let run = site.backup(server, "vm").disk(&image.second, "disk");
    run.args(["--base", base]).changed(&image.changed)
}

#[track_caller]
fn comes_back(site: &Site, server: &Server, report: &Report, source: &Path) {
    site.restore(server, "vm").point(&report.point()).equals(source);
}

#[test]
fn extents_since_another_point_are_not_used() {
    let site = Site::new();
    let server = site.serve();
    let image = image(&site);
    let [one, two] = image.versions();
    site.backup(&server, "vm").disk(one, "disk").report();

    // A point that does not exist.
    let absent = "0123456789abcdef0123456789abcdef";
    let report = by_extents(&site, &server, &image, absent).report();
    assert_eq!(report.mode(0), "compare");
    report.log_says(&["changed extents", "disk"]);
    comes_back(&site, &server, &report, two);

    // A point of another VM.
    let other = site.scratch.join("other.raw");
    images::noise_disk(&other, 4 * MIB, 77);
    let foreign = site.backup(&server, "other").disk(&other, "other").report().point();
    let report = by_extents(&site, &server, &image, &foreign).report();
    assert_eq!(report.mode(0), "compare");
    comes_back(&site, &server, &report, two);

    // The same VM, but another disk.
    let third = site.backup(&server, "vm").disk(&image.second, "another disk");
    let base = report.point();
    let report = third.args(["--base", &base]).changed(&image.changed).report();
    assert_eq!(report.mode(0), "full");
    report.log_says(&["base"]);
    comes_back(&site, &server, &report, two);
}

#[test]
fn extents_that_lie_would_be_noticed_only_by_their_own_base() {
    // Extents are believed: with the right base, what they leave out stays as in the base. This
    // shows that the mode really reads nothing else.
    let site = Site::new();
    let server = site.serve();
    let image = image(&site);
    let [one, two] = image.versions();
    let base = site.backup(&server, "vm").disk(one, "disk").report().point();
    let nothing = site.scratch.write("nothing.json", "[]");
    let run = site.backup(&server, "vm").disk(two, "disk").args(["--base", &base]);
    let report = run.changed(&nothing).report();
    assert_eq!(report.number("bytes_read"), 0);
    assert_eq!(report.number("bytes_unchanged") + report.number("bytes_zero"), image.virtual_bytes);
    comes_back(&site, &server, &report, one);
}

#[test]
fn an_audit_notices_extents_that_lie_and_the_point_is_right() {
    let site = Site::new();
    let server = site.serve();
    let image = image(&site);
    let [one, two] = image.versions();
    let base = site.backup(&server, "vm").disk(one, "disk").report().point();
    let nothing = site.scratch.write("nothing.json", "[]");
    let run = |list: &Path| {
        let run = site.backup(&server, "vm").disk(two, "disk").args(["--base", &base]);
        run.changed(list).args(["--audit", "0.1%"]).report()
    };
    // The disk has fewer blocks than the smallest sample: every block is looked at.
    let caught = run(&nothing);
    assert_eq!(caught.mode(0), "compare", "{}", caught.json);
    assert!(caught.json["disks"][0]["audit"]["wrong"].as_u64() > Some(0), "{}", caught.json);
    caught.log_says(&["ALARM", "changed-block tracking is wrong", "reset CBT"]);
    comes_back(&site, &server, &caught, two);
    // A true list raises no alarm, and its audit reads no more than the sample.
    let right = run(&image.changed);
    assert_eq!(right.mode(0), "extents");
    assert_eq!(right.json["disks"][0]["audit"]["wrong"], 0);
    assert!(!right.log().contains("alarm"), "{}", right.log());
    comes_back(&site, &server, &right, two);
}

#[test]
fn another_block_size_reads_everything() {
    let site = Site::new();
    let server = site.serve();
    let image = image(&site);
    let [one, two] = image.versions();
    let base = site.backup(&server, "vm").disk(one, "disk").report().point();
    let report = by_extents(&site, &server, &image, &base).args(["--block-size", "256K"]).report();
    assert_eq!(report.mode(0), "full");
    report.log_says(&["blocks of 1M", "256K"]);
    comes_back(&site, &server, &report, two);
    // And back to the first size: the newest point that fits is found again.
    let report = site.backup(&server, "vm").disk(two, "disk").report();
    comes_back(&site, &server, &report, two);
}

#[test]
fn grown_and_shrunk_disks_come_back() {
    let site = Site::new();
    let server = site.serve();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, 5 * MIB + 1024, 3);
    let first = site.backup(&server, "vm").disk(&disk, "disk").report();
    let mut base = first.point();
    // Sizes that begin and end within a block, at its border, and shrink into data.
    let sizes = [9 * MIB + 512, 9 * MIB + 4096, 12 * MIB, 6 * MIB, 5 * MIB + 512, 512];
    for (step, bytes) in sizes.into_iter().enumerate() {
        let before = std::fs::metadata(&disk).unwrap().len();
        File::options().write(true).open(&disk).unwrap().set_len(bytes).unwrap();
        let mut changes = Vec::new();
        if bytes > before + 8192 {
            images::overwrite(&disk, before + 4096, &[0x5a; 4096]);
        }
        if bytes > MIB {
            images::overwrite(&disk, 3 * CHANGE_BYTES, &bytes.to_le_bytes());
            changes.push(serde_json::json!({"start": 3 * CHANGE_BYTES, "length": CHANGE_BYTES}));
        }
        let list = site.scratch.write("changes.json", serde_json::to_string(&changes).unwrap());
        let run = site.backup(&server, "vm").disk(&disk, "disk").args(["--base", &base]);
        let report = run.changed(&list).report();
        assert_eq!((report.mode(0), report.number("bytes_virtual")), ("extents", bytes));
        comes_back(&site, &server, &report, &disk);
        let compared = site.backup(&server, "vm").disk(&disk, "disk").report();
        assert_eq!(compared.number("bytes_transferred"), 0, "nothing changed since");
        comes_back(&site, &server, &compared, &disk);
        base = if step % 2 == 0 { report.point() } else { compared.point() };
    }
}

#[test]
fn known_content_is_not_sent_again() {
    let site = Site::new();
    let server = site.serve();
    let image = image(&site);
    let source = &image.first;
    let first = site.backup(&server, "vm").disk(source, "disk").report();
    assert!(first.number("bytes_transferred") > 0);
    // Content serves another task only once the repository has verified it itself.
    let mut round = 0;
    wait_until(Duration::from_secs(30), "verified content", || {
        round += 1;
        let name = format!("copy {round}");
        let copy = site.backup(&server, &name).disk(source, "copied disk").report();
        site.restore(&server, &name).equals(source);
        copy.number("bytes_transferred") == 0
    });
    let stored = site.stored_bytes();
    let again = site.backup(&server, "vm").disk(source, "disk").args(["--full"]).report();
    assert_eq!(again.mode(0), "full");
    assert_eq!(again.number("bytes_transferred"), 0);
    assert_eq!(again.number("bytes_unchanged"), 0, "a full compares with nothing");
    let grown = site.stored_bytes().saturating_sub(stored);
    assert!(grown < MIB, "the repository grew by {grown} bytes for known content");
    comes_back(&site, &server, &again, source);
    // Twice the same content in one disk is sent once.
    let twice = site.scratch.join("twice.raw");
    images::noise_disk(&twice, 4 * MIB, 9);
    let mut content = std::fs::read(&twice).unwrap();
    content.extend_from_within(..);
    std::fs::write(&twice, content).unwrap();
    let report = site.backup(&server, "twice").disk(&twice, "disk").report();
    assert!(report.number("bytes_stored") < 8 * MIB + MIB, "{}", report.json);
    site.restore(&server, "twice").equals(&twice);
}

#[test]
fn a_copy_is_as_good_as_the_disk_it_was_made_of() {
    // The identity decides what is compared, not the path.
    let site = Site::new();
    let server = site.serve();
    let image = image(&site);
    let [one, two] = image.versions();
    site.backup(&server, "vm").disk(one, "disk").report();
    let moved = site.scratch.join("moved.raw");
    images::copy_sparse(two, &moved);
    let report = site.backup(&server, "vm").disk(&moved, "disk").report();
    assert_eq!(report.mode(0), "compare");
    assert!(report.number("bytes_unchanged") > 0);
    comes_back(&site, &server, &report, two);
    // Without an identity of its own, another path is another disk.
    let first = site.backup(&server, "by path").source(one).report();
    let second = site.backup(&server, "by path").source(&moved).report();
    assert_eq!((first.mode(0), second.mode(0)), ("full", "full"));
    let third = site.backup(&server, "by path").source(&moved).report();
    assert_eq!(third.mode(0), "compare");
}
