//! One test for each bug that was found in what had been thought done, named after it.

use std::time::Duration;

use gantry_tests::images;
use gantry_tests::site::{Site, files_below};

const MIB: u64 = 1 << 20;

/// A run that was cut off had counted blocks as unchanged because its list of changed extents did
/// not name them; a run with a better list, or with none, went on from that.
#[test]
fn a_resume_with_another_read_set_starts_over() {
    let site = Site::new();
    let server = site.serve();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, 64 * MIB, 1);
    let base = site.backup(&server, "vm").disk(&disk, "disk").report().point();
    for block in [3, 13, 23, 33, 43, 53] {
        images::overwrite(
            &disk,
            block * MIB + 4096,
            &images::noise(&mut fastrand::Rng::new(), 4096),
        );
    }
    let list = |name: &str, blocks: &[u64]| {
        let extents: Vec<String> = blocks
            .iter()
            .map(|block| format!("{{\"start\":{},\"length\":65536}}", block * MIB))
            .collect();
        site.scratch.write(name, format!("[{}]", extents.join(",")))
    };
    let poor = list("poor.json", &[43, 53]);
    let good = list("good.json", &[3, 13, 23, 33, 43, 53]);
    let run = |rate: &str| {
        site.backup_by("tcp", &server, "vm").disk(&disk, "disk").args(["--rate", rate])
    };
    let cut_off = || {
        let mut cut_off = run("30KB/s").args(["--base", &base]).changed(&poor).start();
        // Long enough for what needs no bytes to become durable.
        std::thread::sleep(Duration::from_millis(7000));
        cut_off.kill_hard();
    };
    cut_off();
    let report = run("1GB/s").args(["--base", &base]).changed(&good).report();
    assert_eq!(report.number("bytes_resumed"), 0, "nothing of the poor list may be taken over");
    site.restore(&server, "vm").point(&report.point()).equals(&disk);

    images::overwrite(&disk, 30 * MIB, &images::noise(&mut fastrand::Rng::new(), 4096));
    let base = report.point();
    let nothing = site.scratch.write("nothing.json", "[{\"start\":45088768,\"length\":65536}]");
    let mut cut_off = run("30KB/s").args(["--base", &base]).changed(&nothing).start();
    std::thread::sleep(Duration::from_millis(7000));
    cut_off.kill_hard();
    let report = run("1GB/s").report();
    site.restore(&server, "vm").point(&report.point()).equals(&disk);
}

/// `repo verify` named a damaged block and promised that the next backup heals it; the next backup
/// took it over as unchanged and committed a point that could not be restored.
#[test]
fn a_damaged_block_is_healed_by_every_kind_of_backup() {
    for kind in ["compare", "extents", "full"] {
        let site = Site::new();
        site.repo("init").ok();
        let disk = site.scratch.join("disk.raw");
        images::noise_disk(&disk, 24 * MIB, 5);
        let base = site.backup_local("vm").disk(&disk, "disk").report().point();
        // Asked for once more, so that its records were verified before they rot.
        site.backup_local("vm").disk(&disk, "disk").args(["--full"]).report();
        let packs = files_below(&site.repository.join("packs"));
        let pack = packs.iter().max_by_key(|pack| pack.metadata().map_or(0, |facts| facts.len()));
        images::flip(pack.expect("a pack"), 5 * MIB + 777, 1);
        site.repo("verify").fails_with(5);
        let nothing = site.scratch.write("nothing.json", "[]");
        let run = site.backup_local("vm").disk(&disk, "disk");
        let run = match kind {
            "extents" => run.args(["--base", &base]).changed(&nothing),
            "full" => run.args(["--full"]),
            _ => run,
        };
        let report = run.report();
        assert!(report.number("bytes_sent_raw") >= MIB, "{kind}: the damaged block is sent");
        site.restore_local("vm").point(&report.point()).equals(&disk);
    }
}

/// A queue depth of zero hung for ever with the repository locked; huge ones panicked.
#[test]
fn absurd_settings_are_usage_errors() {
    let site = Site::new();
    site.repo("init").ok();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, 2 * MIB, 5);
    for option in ["--queue-depth", "--workers", "--tasks"] {
        for value in ["0", "18446744073709551615", "100000"] {
            let run = site.backup_local("vm").disk(&disk, "disk").args([option, value]);
            run.run().fails_with(2);
        }
    }
    let beyond = site.scratch.write("beyond.json", "[{\"start\":999999999999,\"length\":5}]");
    let base = site.backup_local("vm").disk(&disk, "disk").report().point();
    let run = site.backup_local("vm").disk(&disk, "disk").args(["--base", &base]);
    let report = run.changed(&beyond).report();
    assert_eq!(report.mode(0), "compare", "a list of another disk is not believed");
}

/// A mover that was told to stop left its peers to find out by silence, and newcomers waiting.
#[test]
fn a_stopping_mover_says_so() {
    let site = Site::new();
    let server = site.serve();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, 90 * MIB, 5);
    let run = site.backup(&server, "vm").disk(&disk, "disk");
    let run = run.args(["--rate", "1MB/s", "--reconnect", "0"]).start();
    std::thread::sleep(Duration::from_millis(1500));
    let begun = std::time::Instant::now();
    server.stop();
    run.wait().fails_with(4).saying(&["stopping"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "told, not timed out");
}

/// Restoring from a folder took the writer's lock, so it failed on a write-protected one.
#[test]
fn two_restores_of_one_folder_at_once() {
    let site = Site::new();
    site.repo("init").ok();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, 24 * MIB, 5);
    site.backup_local("vm").disk(&disk, "disk").report();
    let (one, two) = (site.scratch.join("one"), site.scratch.join("two"));
    let first = site.restore_local("vm").start(&one);
    let second = site.restore_local("vm").start(&two);
    first.wait().ok();
    second.wait().ok();
    assert!(std::fs::read(&one).ok() == std::fs::read(&disk).ok());
    assert!(std::fs::read(&two).ok() == std::fs::read(&disk).ok());
}
