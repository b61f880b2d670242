//! `kill -9` of either mover at random moments of a backup. Afterwards the repository is clean,
//! what is listed restores bit for bit, and the next run goes on from what was durable.
//!
//! `GANTRY_SEEDS=20 cargo nextest run -p gantry-tests --test kills` is the long form
//! (`cargo xtask soak`).

use std::path::Path;
use std::time::Duration;

use gantry_tests::backup::Report;
use gantry_tests::images;
use gantry_tests::program::Running;
use gantry_tests::seeds;
use gantry_tests::site::{Server, Site};

const MIB: u64 = 1 << 20;
/// A disk that takes about 2.5 s at [`RATE`].
const DISK_BYTES: u64 = 40 * MIB;
const RATE: [&str; 2] = ["--rate", "16MB/s"];
/// Kills fall within this, so some fall before the first block and some after the last.
const KILL_MS_MAX: u64 = 3000;

/// A site with an older point of the same VM, which every later failure must leave alone.
struct Scene {
    site: Site,
    old_point: String,
    old: std::path::PathBuf,
    disk: std::path::PathBuf,
    transport: &'static str,
}

impl Scene {
    fn new(seed: u64) -> (Scene, Server) {
        let site = Site::new();
        let (old, disk) = (site.scratch.join("old.raw"), site.scratch.join("disk.raw"));
        images::noise_disk(&old, 3 * MIB + 512, seed + 1_000_000);
        images::noise_disk(&disk, DISK_BYTES, seed);
        // Holes and repeats, so that every kind of fate is there when the kill comes.
        images::overwrite(&disk, 8 * MIB, &[0; 3 << 20]);
        images::overwrite(&disk, 20 * MIB, &[7; 2 << 20]);
        let server = site.serve();
        let old_point = site.backup(&server, "vm").disk(&old, "disk").report().point();
        let transport = if seed % 3 == 1 { "tcp" } else { "quic" };
        (Scene { site, old_point, old, disk, transport }, server)
    }

    fn begin(&self, server: &Server) -> Running {
        let run = self.site.backup_by(self.transport, server, "vm").disk(&self.disk, "disk");
        run.args(RATE).start()
    }

    fn again(&self, server: &Server) -> Report {
        self.site.backup(server, "vm").disk(&self.disk, "disk").report()
    }

    /// Every point that is listed is whole: the old one as it was, all others as the disk is.
    fn check_points(&self, server: &Server, at_least: usize) {
        let points = self.site.points_at(server, "vm");
        assert!(points.len() >= at_least, "{points:?}");
        assert!(points.contains(&self.old_point));
        for point in points {
            let source: &Path = if point == self.old_point { &self.old } else { &self.disk };
            self.site.restore(server, "vm").point(&point).equals(source);
        }
    }
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

#[test]
fn a_killed_source_mover_is_followed_by_another() {
    seeds::each(3, |seed, mut random| {
        let (scene, mut server) = Scene::new(seed);
        for _ in 0..random.u8(1..=2) {
            let mut run = scene.begin(&server);
            pause(random.u64(0..KILL_MS_MAX));
            run.kill_hard();
            server.is_well();
            scene.check_points(&server, 1);
        }
        let report = scene.again(&server);
        eprintln!("resumed {} bytes", report.number("bytes_resumed"));
        scene.check_points(&server, 2);
        server.stop();
        scene.site.verify();
    });
}

#[test]
fn a_killed_repository_mover_comes_back_and_the_run_goes_on() {
    seeds::each(3, |seed, mut random| {
        let (scene, mut server) = Scene::new(seed);
        let port = server.address.port();
        let run = scene.begin(&server);
        for _ in 0..random.u8(1..=2) {
            pause(random.u64(0..KILL_MS_MAX / 2));
            server.process.kill_hard();
            scene.site.verify();
            pause(random.u64(0..500));
            server = scene.site.serve_at(port);
        }
        Report::of(&run.wait().ok());
        scene.check_points(&server, 2);
        server.stop();
        scene.site.verify();
    });
}

#[test]
fn both_movers_killed_and_begun_again() {
    seeds::each(3, |seed, mut random| {
        let (scene, mut server) = Scene::new(seed);
        for _ in 0..random.u8(1..=3) {
            let mut run = scene.begin(&server);
            pause(random.u64(0..KILL_MS_MAX));
            if random.bool() {
                run.kill_hard();
                pause(random.u64(0..50));
            }
            server.process.kill_hard();
            run.kill_hard();
            scene.site.verify();
            server = scene.site.serve();
            scene.check_points(&server, 1);
        }
        let report = scene.again(&server);
        eprintln!("resumed {} bytes", report.number("bytes_resumed"));
        scene.check_points(&server, 2);
        server.stop();
        scene.site.verify();
    });
}

#[test]
fn what_was_durable_is_not_sent_again() {
    // Long enough that the repository has made a part durable by itself (limits::CHECKPOINT_MS_MAX).
    let (scene, mut server) = Scene::new(500);
    let mut run = scene.site.backup(&server, "vm").disk(&scene.disk, "disk");
    run = run.args(["--rate", "4MB/s"]);
    let mut run = run.start();
    pause(gantry_common::limits::CHECKPOINT_MS_MAX + 1500);
    server.process.kill_hard();
    run.kill_hard();
    let server = scene.site.serve();
    let report = scene.again(&server);
    let resumed = report.number("bytes_resumed");
    assert!(resumed > 4 * MIB, "only {resumed} bytes were taken over");
    assert!(report.number("bytes_read") <= DISK_BYTES - resumed);
    scene.check_points(&server, 2);
    server.stop();
    scene.site.verify();
}

#[test]
fn a_changed_disk_is_not_resumed() {
    let (scene, mut server) = Scene::new(600);
    let mut run = scene.site.backup(&server, "vm").disk(&scene.disk, "disk");
    run = run.args(["--rate", "4MB/s"]);
    let mut run = run.start();
    pause(gantry_common::limits::CHECKPOINT_MS_MAX + 1500);
    run.kill_hard();
    images::overwrite(&scene.disk, 12_345, b"changed since the first attempt");
    let report = scene.again(&server);
    assert_eq!(report.number("bytes_resumed"), 0, "the disk is another one now");
    let restored = scene.site.restore(&server, "vm").point(&report.point());
    restored.equals(&scene.disk);
    server.is_well();
    server.stop();
    scene.site.verify();
}

#[test]
fn a_terminated_repository_mover_leaves_a_clean_folder() {
    let (scene, server) = Scene::new(700);
    let port = server.address.port();
    let run = scene.begin(&server);
    pause(800);
    // SIGTERM lets the running session end.
    server.stop();
    Report::of(&run.wait().ok());
    scene.site.verify();
    let server = scene.site.serve_at(port);
    scene.check_points(&server, 2);
}
