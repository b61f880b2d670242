//! The road of a block: what is backed up comes back bit for bit, and the numbers say what was
//! done. Two processes over QUIC unless said otherwise.

use std::path::Path;

use gantry_tests::compare::assert_same;
use gantry_tests::corpus::Image;
use gantry_tests::devices::{LoopDevice, is_root};
use gantry_tests::images;
use gantry_tests::program::agrees;
use gantry_tests::site::{Server, Site};

const MIB: u64 = 1 << 20;

/// Full of version 1, incremental by extents and by compare of version 2; all points restore.
fn full_and_both_incrementals(site: &Site, server: &Server, image: &Image) {
    let [one, two] = image.versions();
    let name = &image.name;
    let full = site.backup(server, name).disk(one, "disk").report();
    assert_eq!(full.mode(0), "full");
    assert_eq!(full.number("bytes_virtual"), image.virtual_bytes);
    let base = full.point();
    let by_extents = site
        .backup(server, name)
        .disk(two, "disk")
        .args(["--base", &base])
        .changed(&image.changed)
        .report();
    assert_eq!(by_extents.mode(0), "extents");
    assert!(by_extents.number("bytes_read") <= changed_bytes(image, MIB));
    let by_compare = site.backup(server, name).disk(one, "disk").report();
    assert_eq!(by_compare.mode(0), "compare");
    assert!(by_compare.number("bytes_unchanged") > 0 || image.virtual_bytes <= MIB);
    assert_eq!(by_compare.number("bytes_transferred"), 0, "version 1 is known");
    for (report, source) in [(&full, one), (&by_extents, two), (&by_compare, one)] {
        site.restore(server, name).point(&report.point()).equals(source);
    }
}

/// Bytes of the blocks that an image's changes touch.
fn changed_bytes(image: &Image, block_bytes: u64) -> u64 {
    let list = std::fs::read_to_string(&image.changed).expect("a list");
    let list: Vec<gantry_common::extents::Extent> = serde_json::from_str(&list).expect("extents");
    let blocks = list
        .iter()
        .flat_map(|e| e.start / block_bytes..=(e.start + e.length - 1) / block_bytes)
        .collect::<std::collections::BTreeSet<u64>>();
    blocks.len() as u64 * block_bytes
}

#[test]
fn every_image_comes_back_over_quic() {
    let site = Site::new();
    let server = site.serve();
    for image in images::all(&site.scratch) {
        eprintln!("image {}", image.name);
        full_and_both_incrementals(&site, &server, &image);
    }
    server.stop();
    site.verify();
}

#[test]
fn an_image_comes_back_over_tcp() {
    let site = Site::new();
    let server = site.serve();
    let image = images::one(&site.scratch);
    let tcp = ["--transport", "tcp"];
    for (version, source) in image.versions().into_iter().enumerate() {
        let run = gantry_tests::backup::BackupRun::new(site.scratch.path(), &server.url(), "vm");
        let report = run.credentials(&site.source).args(tcp).disk(source, "disk").report();
        report.log_says(&["tcp"]);
        assert_eq!(report.mode(0), ["full", "compare"][version]);
        let run = gantry_tests::restore::RestoreRun::new(site.scratch.path(), &server.url(), "vm");
        run.credentials(&site.source).args(tcp).point(&report.point()).equals(source);
    }
}

#[test]
fn an_image_comes_back_from_a_folder() {
    let site = Site::new();
    site.repo("init").ok();
    let image = images::one(&site.scratch);
    let [one, two] = image.versions();
    let full = site.backup_local("vm").disk(one, "disk").report();
    let base = full.point();
    let second = site.backup_local("vm").disk(two, "disk").args(["--base", &base]);
    let second = second.changed(&image.changed).report();
    assert_eq!(second.mode(0), "extents");
    site.restore_local("vm").point(&base).equals(one);
    site.restore_local("vm").equals(two);
    assert_eq!(site.points().len(), 2);
    site.verify();
    // To standard output as to a file, and compared by the program itself.
    let streamed = site.restore_local("vm").run(Path::new("-")).ok();
    assert_same(two, &streamed.out_file);
    let to = site.scratch.join("compared.raw");
    site.restore_local("vm").args(["--verify-against".as_ref(), two.as_os_str()]).run(&to).ok();
    let wrong = site.scratch.join("wrong.raw");
    let outcome =
        site.restore_local("vm").args(["--verify-against".as_ref(), one.as_os_str()]).run(&wrong);
    assert_ne!(outcome.code(), 0, "the versions differ: {}", outcome.out);
}

#[test]
fn real_counterparts_agree() {
    let site = Site::new();
    let server = site.serve();
    for image in images::all(&site.scratch) {
        let source = &image.second;
        site.backup(&server, &image.name).disk(source, "disk").report();
        let run = site.restore(&server, &image.name);
        let to = run.fresh_file();
        run.run(&to).ok();
        agrees("cmp", &[source.as_os_str(), to.as_os_str()]);
        let qemu = ["compare", "-f", "raw", "-F", "raw"].map(AsRef::as_ref);
        agrees("qemu-img", &[&qemu[..], &[source.as_os_str(), to.as_os_str()]].concat());
        if ["linux", "windows"].contains(&image.name.as_str()) && is_root() {
            check_file_system(&image.name, &to);
        }
        std::fs::remove_file(to).unwrap();
    }
}

/// The restored file system is what its own tools call clean.
fn check_file_system(name: &str, disk: &Path) {
    let (first_sector, sectors, check) = match name {
        "linux" => (2048, 425_984, ["e2fsck", "-fn"]),
        _ => (34_816, 425_984, ["ntfsfix", "-n"]),
    };
    let partition = LoopDevice::attach_part(disk, first_sector * 512, sectors * 512);
    agrees(check[0], &[check[1].as_ref(), partition.path().as_os_str()]);
}

#[test]
fn sparse_full_and_device_sources_are_the_same_disk() {
    let site = Site::new();
    let server = site.serve();
    let images = images::all(&site.scratch);
    let image = images.iter().find(|image| image.full.is_some()).unwrap();
    let (sparse, full) = (&image.first, image.full.as_ref().unwrap());
    let first = site.backup(&server, "vm").disk(sparse, "disk").report();
    let allocated = site.backup(&server, "vm").disk(full, "disk").args(["--full"]).report();
    assert_eq!(allocated.number("bytes_transferred"), 0, "the content is known");
    assert_eq!(allocated.number("bytes_zero"), first.number("bytes_zero"));
    assert!(allocated.number("bytes_read") >= first.number("bytes_read"));
    site.restore(&server, "vm").equals(sparse);
    if !is_root() {
        return;
    }
    let source = LoopDevice::attach(sparse, true);
    let device = site.backup(&server, "vm").disk(source.path(), "disk").args(["--full"]).report();
    assert_eq!(device.number("bytes_zero"), first.number("bytes_zero"));
    assert_eq!(device.number("bytes_transferred"), 0, "the content is known");
    // Back onto a device that held something else: what is zero in the point must become zero.
    let target = site.scratch.join("target.raw");
    images::noise_disk(&target, image.virtual_bytes, 5);
    let to = LoopDevice::attach(&target, false);
    site.restore(&server, "vm").args(["--force"]).run(to.path()).ok();
    assert_same(sparse, to.path());
}

#[test]
fn every_block_size_comes_back() {
    let site = Site::new();
    let server = site.serve();
    let image = images::synthesise(&site.scratch, "sizes", 21 * MIB + 512);
    let [one, two] = image.versions();
    for size in ["256K", "512K", "1M", "4M"] {
        let options = ["--block-size", size];
        let full = site.backup(&server, size).disk(one, "disk").args(options).report();
        assert_eq!(full.mode(0), "full");
        let next = site.backup(&server, size).disk(two, "disk").args(options);
        let next = next.args(["--base", &full.point()]).changed(&image.changed).report();
        assert_eq!(next.mode(0), "extents");
        site.restore(&server, size).point(&full.point()).equals(one);
        site.restore(&server, size).equals(two);
    }
}

#[test]
fn every_compression_comes_back() {
    let image_site = Site::new();
    let image = images::synthesise(&image_site.scratch, "levels", 12 * MIB + 4096);
    let source = &image.first;
    let mut transferred = Vec::new();
    for level in ["none", "fast", "optimal", "high", "extreme"] {
        // A repository each: otherwise the second level would find every block known.
        let site = Site::new();
        let server = site.serve();
        let report = site.backup(&server, level).disk(source, "disk");
        let report = report.args(["--compression", level]).report();
        site.restore(&server, level).equals(source);
        if level == "none" {
            assert_eq!(report.number("bytes_transferred"), report.number("bytes_sent_raw"));
        }
        transferred.push(report.number("bytes_transferred"));
    }
    assert!(transferred[1] < transferred[0], "fast compresses: {transferred:?}");
    assert!(transferred[4] <= transferred[1], "extreme compresses more: {transferred:?}");
}

#[test]
fn several_disks_make_one_point() {
    let site = Site::new();
    let server = site.serve();
    let images: Vec<Image> = ["a", "b", "c", "d", "e", "f"]
        .iter()
        .zip(3..)
        .map(|(name, mib)| images::synthesise(&site.scratch, name, mib * MIB + 512))
        .collect();
    let run = |version: usize| {
        let run = site.backup(&server, "vm");
        images.iter().fold(run, |run, image| run.disk(image.versions()[version], &image.name))
    };
    let full = run(0).args(["--tasks", "3"]).report();
    let changed = images.iter().fold(run(1), |run, image| run.changed(&image.changed));
    let next = changed.args(["--base", &full.point()]).report();
    for (disk, image) in images.iter().enumerate() {
        assert_eq!(full.disk_number(disk, "bytes_virtual"), image.virtual_bytes);
        assert_eq!(next.mode(disk), "extents");
        site.restore(&server, "vm").point(&full.point()).disk(disk).equals(&image.first);
        site.restore(&server, "vm").point(&next.point()).disk(disk).equals(&image.second);
    }
    server.stop();
    assert_eq!(site.points().len(), 2);
    site.verify();
}
