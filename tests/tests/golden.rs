//! Repositories that earlier versions wrote: every later one opens, verifies and restores them.
//!
//! In: `tests/golden/*.tar.gz`, each with `*.json` beside it that says which points it holds and
//! what their disks hash to. They are never made again: a new one is added when the format, or what
//! is written in it, changes (`cargo xtask golden NAME`, then commit it). Invariant: a golden
//! repository that cannot be read is a broken promise, never a reason to change it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gantry_tests::backup::Report;
use gantry_tests::images;
use gantry_tests::program::Running;
use gantry_tests::site::{Site, files_below};
use serde::{Deserialize, Serialize};

/// What a golden repository holds.
#[derive(Debug, Serialize, Deserialize)]
struct Golden {
    /// What it was made by, and what is special about it.
    about: String,
    points: Vec<GoldenPoint>,
}

#[derive(Debug, Serialize, Deserialize)]
struct GoldenPoint {
    name: String,
    point: String,
    /// BLAKE3 of each disk, in hexadecimal.
    disks: Vec<String>,
    /// Deleted, but not collected: undelete brings it back.
    deleted: bool,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn tar(arguments: &[&std::ffi::OsStr]) {
    let status = Command::new("tar").args(arguments).status().expect("tar runs");
    assert!(status.success(), "tar {arguments:?}");
}

fn hash(path: &Path) -> String {
    blake3::hash(&std::fs::read(path).expect("readable")).to_hex().to_string()
}

/// Unpacks one into a new site.
fn unpack(archive: &Path) -> (Site, Golden) {
    let site = Site::new();
    let to = site.scratch.path().as_os_str();
    tar(&["-xzf".as_ref(), archive.as_os_str(), "-C".as_ref(), to]);
    let json = archive.to_str().expect("UTF-8").replace(".tar.gz", ".json");
    let text = std::fs::read_to_string(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
    (site, serde_json::from_str(&text).expect("its description"))
}

fn all() -> Vec<PathBuf> {
    let mut found = files_below(&folder());
    found.retain(|path| path.to_string_lossy().ends_with(".tar.gz"));
    assert!(!found.is_empty(), "there are no golden repositories in {}", folder().display());
    found
}

fn restores(site: &Site, golden: &Golden) {
    for point in golden.points.iter().filter(|point| !point.deleted) {
        for (disk, digest) in point.disks.iter().enumerate() {
            let restore = site.restore_local(&point.name).point(&point.point).disk(disk);
            let to = restore.fresh_file();
            restore.run(&to).ok();
            assert_eq!(hash(&to), *digest, "{} {} disk {disk}", point.name, point.point);
            std::fs::remove_file(&to).expect("removable");
        }
    }
}

fn manage(site: &Site, words: &[&str]) {
    let repository = site.repository.display().to_string();
    let arguments: Vec<&str> = words.iter().copied().chain(["--repo", &repository]).collect();
    site.run(&arguments).ok();
}

#[test]
fn golden_repositories_restore_as_they_are() {
    for archive in all() {
        let (site, golden) = unpack(&archive);
        eprintln!("{}: {}", archive.display(), golden.about);
        let before: Vec<_> = files_below(&site.repository)
            .iter()
            .map(|path| (path.clone(), std::fs::read(path).expect("readable")))
            .collect();
        restores(&site, &golden);
        let mut listed = site.points();
        listed.sort();
        let visible = golden.points.iter().filter(|point| !point.deleted);
        let mut known: Vec<_> = visible.map(|point| point.point.clone()).collect();
        known.sort();
        assert_eq!(listed, known, "{}", archive.display());
        for (path, bytes) in before {
            assert!(std::fs::read(&path).is_ok_and(|now| now == bytes), "{path:?} was changed");
        }
        site.verify();
    }
}

#[test]
fn golden_repositories_are_written_to_and_looked_after() {
    for archive in all() {
        let (site, golden) = unpack(&archive);
        for point in golden.points.iter().filter(|point| point.deleted) {
            let words = ["point", "undelete", "--name", &point.name, "--point", &point.point];
            manage(&site, &words);
        }
        let golden = Golden {
            points: golden
                .points
                .into_iter()
                .map(|point| GoldenPoint { deleted: false, ..point })
                .collect(),
            ..golden
        };
        restores(&site, &golden);
        // Without its index, and after a collection, and beside a new point.
        std::fs::remove_file(site.repository.join("index/index.redb")).expect("an index");
        site.repo("rebuild-index").ok();
        site.repo("gc").ok();
        let disk = site.scratch.join("new.raw");
        images::noise_disk(&disk, 3 << 20, 4711);
        let point = site.backup_local("new").disk(&disk, "new").report().point();
        site.restore_local("new").point(&point).equals(&disk);
        restores(&site, &golden);
        site.verify();
    }
}

/// Not a test: makes a golden repository in `tests/golden`, named by `GANTRY_GOLDEN`.
#[test]
#[ignore = "cargo xtask golden NAME"]
fn make() {
    let name = std::env::var("GANTRY_GOLDEN").expect("GANTRY_GOLDEN names it");
    let archive = folder().join(format!("{name}.tar.gz"));
    assert!(!archive.exists(), "{} is there: golden repositories stay", archive.display());
    let site = Site::new();
    site.repo("init").ok();
    let mut points = Vec::new();
    let [system, data, lone] =
        ["system.raw", "data.raw", "lone.raw"].map(|file| site.scratch.join(file));
    noise_with_text(&system, 9 << 20, 1);
    noise_with_text(&data, (2 << 20) + 512, 2);
    noise_with_text(&lone, (1 << 20) + 300_000, 3);
    let pair = |site: &Site| {
        site.backup_local("two disks").disk(&system, "system").disk(&data, "data").args([
            "--block-size",
            "256K",
            "--compression",
            "high",
        ])
    };
    let mut keep = |name: &str, report: &Report, disks: &[&PathBuf]| {
        let disks = disks.iter().map(|disk| hash(disk)).collect();
        points.push(GoldenPoint {
            name: name.into(),
            point: report.point(),
            disks,
            deleted: false,
        });
    };
    keep("two disks", &pair(&site).report(), &[&system, &data]);
    for round in 0..4 {
        noise_with_text_at(&system, round * 1_300_000, 400_000, 10 + round);
        images::overwrite(&data, round * 70_000, &[0; 50_000]);
        keep("two disks", &pair(&site).report(), &[&system, &data]);
    }
    for (compression, size) in [("none", "1M"), ("fast", "512K"), ("extreme", "4M")] {
        let name = format!("Ünï/{compression}");
        let run = site.backup_local(&name).disk(&lone, "lone");
        let run = run.args(["--compression", compression, "--block-size", size]);
        keep(&name, &run.report(), &[&lone]);
    }
    // Two deleted and collected, one deleted only, one protected.
    let id = |at: usize, points: &Vec<GoldenPoint>| points[at].point.clone();
    for at in [0, 2] {
        let point = id(at, &points);
        manage(&site, &["point", "delete", "--name", "two disks", "--point", &point]);
    }
    site.repo("gc").ok();
    let (deleted, protected) = (id(1, &points), id(3, &points));
    manage(&site, &["point", "delete", "--name", "two disks", "--point", &deleted]);
    manage(&site, &["point", "protect", "--name", "two disks", "--point", &protected]);
    points[1].deleted = true;
    points.remove(2);
    points.remove(0);
    unfinished(&site);
    assert_eq!(site.points().len(), points.len() - 1, "the last session is not unfinished");
    let about = format!(
        "format 1, gantry-mover {}: fulls and incrementals of two disks, four compressions and \
         block sizes, packs with records that a collection gave up, a deleted and a protected \
         point, an unfinished session",
        env!("CARGO_PKG_VERSION")
    );
    let golden = Golden { about, points };
    restores(&site, &golden);
    let text = serde_json::to_string_pretty(&golden).expect("JSON");
    std::fs::create_dir_all(folder()).expect("a folder");
    let (from, to) = (site.scratch.path().as_os_str(), archive.as_os_str());
    tar(&["--sparse".as_ref(), "-czf".as_ref(), to, "-C".as_ref(), from, "repository".as_ref()]);
    std::fs::write(folder().join(format!("{name}.json")), text + "\n").expect("written");
}

/// A session that was killed after a part of it was durable.
fn unfinished(site: &Site) {
    let disk = site.scratch.join("unfinished.raw");
    images::noise_disk(&disk, 2 << 20, 99);
    let server = site.serve();
    let mut run = site.backup(&server, "unfinished").disk(&disk, "disk");
    run = run.args(["--rate", "120KB/s", "--block-size", "256K"]);
    let mut run = run.start();
    std::thread::sleep(Duration::from_millis(gantry_common::limits::CHECKPOINT_MS_MAX + 2500));
    run.kill_hard();
    let mut process: Running = server.process;
    process.kill_hard();
}

/// Mostly text, which shrinks, so that the archive stays small.
fn noise_with_text(path: &Path, bytes: u64, seed: u64) {
    images::blank(path, bytes);
    let mut at = 0;
    while at + 200_000 < bytes {
        noise_with_text_at(path, at, 150_000, seed + at);
        at += 1_000_000;
    }
}

fn noise_with_text_at(path: &Path, at: u64, bytes: usize, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut text = Vec::new();
    while text.len() < bytes {
        text.extend(format!("{:05} the same line of text\n", random.u16(..)).bytes());
    }
    text.truncate(bytes);
    images::overwrite(path, at, &text);
}
