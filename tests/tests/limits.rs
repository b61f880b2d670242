//! Memory and time do not grow with the size of a disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use gantry_common::extents::Extent;
use gantry_tests::devices::{Memory, is_root};
use gantry_tests::images;
use gantry_tests::site::{Server, Site};

const MIB: u64 = 1 << 20;
/// What a mover may take with 1 MiB blocks and 4 tasks.
const RSS_BYTES_MAX: u64 = 300 * MIB;

#[track_caller]
fn small(server: &Server, report: &gantry_tests::backup::Report) {
    let (source, target) = (report.number("peak_rss_bytes"), server.process.memory_bytes("VmHWM"));
    eprintln!("peak memory: source {} MiB, target {} MiB", source / MIB, target / MIB);
    assert!(source <= RSS_BYTES_MAX, "the source mover took {source} bytes");
    assert!(target <= RSS_BYTES_MAX, "the repository mover took {target} bytes");
}

/// Puts 4 KiB of noise at `count` places; gives the extents.
fn scatter(disk: &Path, random: &mut Rng, count: usize) -> Vec<Extent> {
    let file = File::options().write(true).open(disk).expect("a disk");
    let bytes = file.metadata().expect("a disk").len();
    let places = (0..count).map(|_| random.u64(0..bytes / 4096) * 4096);
    let places: std::collections::BTreeSet<u64> = places.collect();
    let write = |start: u64| {
        let noise = images::noise(&mut Rng::with_seed(start), 4096);
        file.write_all_at(&noise, start).expect("writable");
        Extent { start: start / 65_536 * 65_536, length: 65_536 }
    };
    places.into_iter().map(write).collect()
}

#[test]
fn a_disk_of_16_tib_takes_seconds_and_little_memory() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    // ext4 ends just below 16 TiB a file; tmpfs does not.
    let memory = Memory::mount(&site.scratch, 512 * MIB);
    let server = site.serve();
    let disk = memory.path().join("huge.raw");
    images::blank(&disk, 16 << 40);
    let mut random = Rng::with_seed(16);
    scatter(&disk, &mut random, 1000);
    let full = site.backup(&server, "huge").disk(&disk, "disk").report();
    let seconds = full.json["wall_seconds"].as_f64().unwrap();
    eprintln!("full: {seconds:.1} s");
    assert!(seconds < 60.0, "a nearly empty disk took {seconds} s");
    assert_eq!(full.number("bytes_virtual"), 16 << 40);
    small(&server, &full);

    let stored = site.stored_bytes();
    let changes = scatter(&disk, &mut random, 100);
    let list = site.scratch.write("changes.json", serde_json::to_string(&changes).unwrap());
    let run = site.backup(&server, "huge").disk(&disk, "disk").args(["--base", &full.point()]);
    let next = run.changed(&list).report();
    let seconds = next.json["wall_seconds"].as_f64().unwrap();
    let grown = site.stored_bytes() - stored;
    eprintln!("100 changed blocks: {seconds:.1} s, {grown} bytes more");
    assert_eq!(next.mode(0), "extents");
    assert!(seconds < 10.0, "100 changed blocks took {seconds} s");
    // A changed block: a record of 8 KiB, and of its map leaf at most 36 KiB; upper nodes and the
    // index beside it.
    assert!(grown < 100 * (8 + 36) * 1024 + 4 * MIB, "the repository grew by {grown} bytes");
    small(&server, &next);

    let run = site.restore(&server, "huge");
    let to = memory.path().join("restored.raw");
    run.run(&to).ok();
    gantry_tests::compare::assert_same(&disk, &to);
    assert!(server.process.memory_bytes("VmHWM") <= RSS_BYTES_MAX);
    server.stop();
    site.verify();
}

#[test]
fn four_disks_at_once_take_little_memory() {
    let site = Site::new();
    let server = site.serve();
    let disks: Vec<PathBuf> = (0..4)
        .map(|number| {
            let disk = site.scratch.join(format!("{number}.raw"));
            images::noise_disk(&disk, 80 * MIB, number);
            disk
        })
        .collect();
    let run = site.backup(&server, "vm").args(["--tasks", "4", "--queue-depth", "8"]);
    let names = ["a", "b", "c", "d"];
    let run = disks.iter().zip(names).fold(run, |run, (disk, name)| run.disk(disk, name));
    let report = run.report();
    small(&server, &report);
    for (number, disk) in disks.iter().enumerate() {
        site.restore(&server, "vm").disk(number).equals(disk);
    }
    assert!(server.process.memory_bytes("VmHWM") <= RSS_BYTES_MAX);
}
