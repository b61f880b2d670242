//! Backups that leave swap, deleted blocks and excluded files out: what comes back is the disk with
//! exactly these ranges zeroed, and what is no longer left out comes back although nothing reported a
//! change.

use std::path::{Path, PathBuf};

use gantry_tests::guest_disk::{ROOT, disk, run};
use gantry_tests::images;
use gantry_tests::site::Site;
use serde_json::Value;

const ALL: [&str; 6] =
    ["--exclude-swap", "--exclude-deleted", "--exclude-file", "*.iso", "--state", "off"];

/// First byte and bytes of each range that filters leave out, as `inspect` tells.
fn masked(site: &Site, path: &Path) -> Vec<(u64, u64)> {
    let text = path.display().to_string();
    let inspect = ["inspect", &text, "--json", "--state", "off", "--exclude-file", "*.iso"];
    let found = site.run(&inspect).ok().json();
    let ranges = found["map"]["ranges"].as_array().expect("a list").clone();
    let number = |value: &Value| value.as_u64().expect("a number");
    let ranges = ranges.iter().map(|range| &range[0]);
    ranges.map(|range| (number(&range["start"]), number(&range["length"]))).collect()
}

/// A disk with noise wherever filters leave something out, and what is to come back of it.
fn disks(site: &Site) -> (PathBuf, PathBuf) {
    let (path, _) = disk(site);
    let ranges = masked(site, &path);
    let [zeroed, noise] = ["zeroed.raw", "noise"].map(|name| site.scratch.join(name));
    for (number, &(start, length)) in ranges.iter().enumerate() {
        images::noise_disk(&noise, length, 100 + number as u64);
        images::overwrite(&path, start, &std::fs::read(&noise).expect("readable"));
    }
    assert_eq!(masked(site, &path), ranges, "noise there changes nothing");
    std::fs::copy(&path, &zeroed).expect("copied");
    for &(start, length) in &ranges {
        images::overwrite(&zeroed, start, &vec![0; length as usize]);
    }
    (path, zeroed)
}

#[test]
fn what_is_left_out_reads_as_zeros_and_comes_back_once_it_is_not() {
    let site = Site::new();
    site.repo("init").ok();
    let (path, zeroed) = disks(&site);
    let unchanged = site.scratch.join("unchanged.json");
    std::fs::write(&unchanged, "[]").expect("writable");
    let since = |base: &str, filters: &[&str]| {
        let run = site.backup_local("vm").disk(&path, "disk").args(["--base", base]);
        let report = run.changed(&unchanged).args(["--audit", "20"]).args(filters).report();
        assert_eq!(report.mode(0), "extents");
        assert!(!report.log().contains("ALARM"), "{}", report.log());
        report
    };
    let comes_back =
        |point: &str, as_in: &Path| site.restore_local("vm").point(point).equals(as_in);

    let full = site.backup_local("vm").disk(&path, "disk").args(ALL).report();
    full.log_says(&["left out", "swap", "deleted blocks", "excluded files"]);
    comes_back(&full.point(), &zeroed);
    let bytes: u64 = masked(&site, &path).iter().map(|(_, length)| length).sum();
    let read = full.number("bytes_read");
    assert!(read < (192 << 20) - bytes * 8 / 10, "{read} read, {bytes} left out");

    // As before: nothing is read but the audit's sample, which is masked as its base was.
    let again = since(&full.point(), &ALL);
    comes_back(&again.point(), &zeroed);
    // The trap: no rule any more, and nothing has changed.
    let unfiltered = since(&again.point(), &[]);
    comes_back(&unfiltered.point(), &path);
    // Rules again: blocks that are left out as a whole go; the others stay as they are, and the point
    // knows it, so that neither the audit nor the next change of rules is led astray.
    let filtered = since(&unfiltered.point(), &ALL);
    assert_eq!(filtered.number("bytes_transferred"), 0);
    let still = since(&filtered.point(), &ALL);
    let swap_alone = since(&still.point(), &["--exclude-swap"]);
    swap_alone.log_says(&["swap"]);
    comes_back(&since(&swap_alone.point(), &[]).point(), &path);
    // Compared instead: all of the mask is zeroed.
    let compared = site.backup_local("vm").disk(&path, "disk").args(ALL).report();
    assert_eq!(compared.mode(0), "compare");
    comes_back(&compared.point(), &zeroed);
    site.verify();
}

#[test]
fn a_guest_takes_what_comes_back() {
    let site = Site::new();
    site.repo("init").ok();
    let (path, _) = disks(&site);
    site.backup_local("vm").disk(&path, "disk").args(ALL).report();
    let restored = site.scratch.join("restored.raw");
    site.restore_local("vm").run(&restored).ok();
    let content = std::fs::read(&restored).expect("readable");
    let root = site.scratch.join("root-restored");
    std::fs::write(&root, &content[ROOT.0 as usize..][..ROOT.1 as usize]).expect("writable");
    let root = root.display().to_string();
    run("e2fsck", &["-fn", &root], None);
    for number in [0, 7, 59] {
        let text = run("debugfs", &["-R", &format!("cat /file-{number}"), &root], None);
        assert_eq!(text, "text");
    }
    assert!(run("debugfs", &["-R", "stat /cache/video.iso", &root], None).contains("41943040"));
    let swap = site.scratch.join("swap-restored");
    std::fs::write(&swap, &content[1 << 20..33 << 20]).expect("writable");
    let told = run("blkid", &["-p", &swap.display().to_string()], None);
    assert!(told.contains("LABEL=\"swap\"") && told.contains("TYPE=\"swap\""), "{told}");
}

#[test]
fn what_cannot_be_understood_comes_back_bit_for_bit_with_a_warning() {
    let site = Site::new();
    site.repo("init").ok();
    let (path, _) = disk(&site);
    images::flip(&path, ROOT.0 + 1024 + 0x18, 4);
    let filters = ["--exclude-deleted", "--exclude-file", "*.iso"];
    let report = site.backup_local("vm").disk(&path, "disk").args(filters).report();
    report.log_says(&["warning", "copied whole"]);
    site.restore_local("vm").equals(&path);
}
