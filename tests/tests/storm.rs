//! `kill -9` of the repository mover in the middle of everything at once: two backups, a collection
//! and a restore. Nothing that was acknowledged may be lost, nothing deleted may come back half.
//!
//! `GANTRY_SEEDS=25 cargo nextest run -p gantry-tests --test storm` kills at 100 moments
//! (`cargo xtask soak`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fastrand::Rng;
use gantry_tests::backup::Report;
use gantry_tests::compare::assert_same;
use gantry_tests::images;
use gantry_tests::program::{Running, mover};
use gantry_tests::seeds;
use gantry_tests::site::{Server, Site};

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 24 * MIB;
/// A backup that changes a third of its disk takes about a second.
const RATE: [&str; 2] = ["--rate", "8MB/s"];
const KILLS_A_SEED: u32 = 4;
const KILL_MS_MAX: u64 = 1500;

/// What must be there: each VM's points, and the disk as it was then.
struct Scene {
    site: Site,
    points: BTreeMap<(&'static str, String), PathBuf>,
    versions: u32,
}

impl Scene {
    fn new() -> Scene {
        Scene { site: Site::new(), points: BTreeMap::new(), versions: 0 }
    }

    /// Changes a VM's disk here and there, and gives a copy that stays.
    fn change(&mut self, vm: &str, random: &mut Rng) -> (PathBuf, PathBuf) {
        let disk = self.site.scratch.join(format!("{vm}.raw"));
        if !disk.exists() {
            images::noise_disk(&disk, DISK_BYTES, random.u64(..));
        }
        for _ in 0..random.u32(2..8) {
            let mut bytes = vec![random.u8(..); 900_000];
            if random.bool() {
                // The same in both VMs' disks, if it comes again.
                bytes = images::noise(&mut Rng::with_seed(random.u64(0..6)), 1 << 20);
            }
            images::overwrite(&disk, random.u64(0..23) * MIB, &bytes);
        }
        self.versions += 1;
        let kept = self.site.scratch.join(format!("{vm}-{}.kept", self.versions));
        images::copy_sparse(&disk, &kept);
        (disk, kept)
    }

    fn begin(&self, server: &Server, vm: &str, disk: &Path) -> Running {
        // A disk of its own file for each run: the next change must not reach a running backup.
        self.site.backup(server, vm).disk(disk, vm).args(RATE).start()
    }

    fn keep(&mut self, vm: &'static str, report: &Report, kept: PathBuf) {
        self.points.insert((vm, report.point()), kept);
    }

    fn managing(&self, server: &Server, words: &[&str]) -> Command {
        let mut command = Command::new(mover());
        command.args(words).arg("--identity").arg(&self.site.source.identity);
        command.arg("--peer").arg(&self.site.source.trust);
        if words[0] == "repo" {
            command.arg(server.url());
        } else {
            command.args(["--repo", &server.url()]);
        }
        command
    }

    /// Deletes some points, never a VM's newest.
    fn delete_some(&mut self, server: &Server, random: &mut Rng) {
        for vm in ["web", "db"] {
            let points: Vec<String> = self.site.points_at(server, vm);
            for point in points.iter().rev().skip(1).filter(|_| random.u8(0..3) == 0) {
                let words = ["point", "delete", "--name", vm, "--point", point];
                let mut command = self.managing(server, &words);
                Running::start(self.site.scratch.path(), &mut command).wait().ok();
                let kept = self.points.remove(&(vm, point.clone()));
                std::fs::remove_file(kept.expect("a known point")).expect("removable");
            }
        }
    }

    /// Every listed point is one that was reported, and as the disk was.
    fn check(&self, server: &Server) {
        for vm in ["web", "db"] {
            let listed = self.site.points_at(server, vm);
            let known = self.points.keys().filter(|(name, _)| *name == vm).count();
            assert_eq!(listed.len(), known, "{vm}: {listed:?}");
            for point in listed {
                let kept = self.points.get(&(vm, point.clone()));
                let kept = kept.unwrap_or_else(|| panic!("{vm}: nobody was told of {point}"));
                self.site.restore(server, vm).point(&point).equals(kept);
            }
        }
    }
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

#[test]
fn two_backups_a_collection_and_a_restore_survive_kills() {
    seeds::each(1, |_, mut random| {
        let mut scene = Scene::new();
        let mut server = scene.site.serve();
        let port = server.address.port();
        for vm in ["web", "db", "web", "db"] {
            let (disk, kept) = scene.change(vm, &mut random);
            let report = scene.site.backup(&server, vm).disk(&disk, vm).report();
            scene.keep(vm, &report, kept);
        }
        for _ in 0..KILLS_A_SEED {
            scene.delete_some(&server, &mut random);
            let [web, db] = ["web", "db"].map(|vm| (vm, scene.change(vm, &mut random)));
            let runs = [&web, &db].map(|(vm, (disk, _))| scene.begin(&server, vm, disk));
            let ((_, newest), kept) = scene.points.iter().next_back().expect("points");
            let restored = scene.site.scratch.join("restored.raw");
            let restoring = scene.site.restore(&server, "web").point(newest).args(["--force"]);
            let restore = restoring.start(&restored);
            let mut collection = scene.managing(&server, &["repo", "gc", "--json"]);
            pause(random.u64(0..300));
            let mut collection = Running::start(scene.site.scratch.path(), &mut collection);
            pause(random.u64(0..KILL_MS_MAX));
            server.process.kill_hard();
            if random.u8(0..3) == 0 {
                scene.site.verify();
            }
            server = scene.site.serve_at(port);
            // Backups and the restore go on by themselves; a collection is begun again by a person.
            collection.kill_hard();
            restore.wait().ok();
            assert_same(kept, &restored);
            let reports = runs.map(|run| Report::of(&run.wait().ok()));
            for ((vm, (_, kept)), report) in [web, db].into_iter().zip(&reports) {
                scene.keep(vm, report, kept);
            }
            let mut again = scene.managing(&server, &["repo", "gc", "--json"]);
            Running::start(scene.site.scratch.path(), &mut again).wait().ok();
            scene.check(&server);
            server.is_well();
        }
        server.stop();
        scene.site.verify();
    });
}
