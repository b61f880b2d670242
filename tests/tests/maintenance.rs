//! Collections and verifications through whole programs: what was deleted goes and its space comes
//! back, what was not restores bit for bit, beside backups and restores, whoever is killed.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use gantry_tests::images;
use gantry_tests::program::{Outcome, Running, mover};
use gantry_tests::site::{Party, Server, Site, ids, wait_until};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Points of two VMs; those of one share half of their content.
struct Scene {
    site: Site,
    server: Option<Server>,
    disks: Vec<PathBuf>,
    points: Vec<String>,
}

impl Scene {
    fn new(is_remote: bool) -> Scene {
        let site = Site::new();
        let server = is_remote.then(|| site.serve());
        if !is_remote {
            site.repo("init").ok();
        }
        let mut scene = Scene { site, server, disks: Vec::new(), points: Vec::new() };
        for number in 0..4u64 {
            let disk = scene.site.scratch.join(format!("disk-{number}.raw"));
            images::noise_disk(&disk, 16 * MIB, 40 + number);
            if number > 0 {
                let shared = std::fs::read(&scene.disks[0]).expect("readable");
                images::overwrite(&disk, 0, &shared[..8 << 20]);
            }
            let report = scene.run(number).disk(&disk, "disk").report();
            scene.points.push(report.point());
            scene.disks.push(disk);
        }
        scene
    }

    fn name(number: u64) -> &'static str {
        if number < 3 { "vm" } else { "other" }
    }

    fn run(&self, number: u64) -> gantry_tests::backup::BackupRun {
        let name = Scene::name(number);
        match &self.server {
            Some(server) => self.site.backup(server, name),
            None => self.site.backup_local(name),
        }
    }

    fn repo(&self) -> String {
        match &self.server {
            Some(server) => server.url(),
            None => self.site.repository.display().to_string(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(mover());
        command.args(arguments);
        if self.server.is_some() {
            command.arg("--identity").arg(&self.site.source.identity);
            command.arg("--peer").arg(&self.site.source.trust);
        }
        command
    }

    fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.site.scratch.path(), &mut self.command(arguments))
    }

    /// `gantry-mover repo COMMAND REPO --json …`.
    fn manage(&self, command: &str, more: &[&str]) -> Outcome {
        self.start(&[&["repo", command, &self.repo(), "--json"], more].concat()).wait()
    }

    fn delete(&self, numbers: &[usize]) {
        let repo = self.repo();
        let mut arguments = vec!["point", "delete", "--repo", &repo, "--name", "vm"];
        numbers.iter().for_each(|number| arguments.extend(["--point", &self.points[*number]]));
        self.start(&arguments).wait().ok();
    }

    fn listed(&self) -> Vec<String> {
        ids(&self.start(&["point", "list", "--json", "--repo", &self.repo()]).wait().ok().json())
    }

    #[track_caller]
    fn restores(&self, numbers: &[usize]) {
        for &number in numbers {
            let name = Scene::name(number as u64);
            let run = match &self.server {
                Some(server) => self.site.restore(server, name),
                None => self.site.restore_local(name),
            };
            run.point(&self.points[number]).equals(&self.disks[number]);
        }
    }

    fn end(self) {
        if let Some(server) = self.server {
            server.stop();
        }
        self.site.verify();
    }
}

#[track_caller]
fn number(facts: &Value, field: &str) -> u64 {
    facts[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {facts:#}"))
}

#[test]
fn what_was_deleted_is_gone_after_a_collection_and_nothing_else() {
    for is_remote in [false, true] {
        let scene = Scene::new(is_remote);
        let nothing = scene.manage("gc", &[]).ok().json();
        assert_eq!((number(&nothing, "records_dead"), number(&nothing, "bytes_freed")), (0, 0));
        scene.restores(&[0, 1, 2, 3]);
        scene.delete(&[1, 2]);
        let before = scene.site.stored_bytes();
        let dry = scene.manage("gc", &["--dry-run"]).ok().json();
        assert!(number(&dry, "records_dead") >= 16, "{dry:#}");
        let repo = scene.repo();
        let undelete = ["point", "undelete", "--repo", &repo, "--name", "vm", "--all-deleted"];
        scene.start(&undelete).wait().ok();
        assert_eq!(scene.listed().len(), 4, "a dry run changes nothing");
        scene.restores(&[1, 2]);
        scene.delete(&[1, 2]);
        let report = scene.manage("gc", &[]).ok().json();
        assert_eq!(number(&report, "points_purged"), 2, "{report:#}");
        assert_eq!(number(&report, "records_dead"), number(&dry, "records_dead"), "{report:#}");
        assert!(number(&report, "bytes_freed") >= 15 * MIB, "{report:#}");
        assert!(scene.site.stored_bytes() + 15 * MIB < before, "space comes back");
        let nothing_left = scene.start(&undelete).wait().ok();
        assert!(nothing_left.out.contains("nothing to do"), "{}", nothing_left.out);
        let one = ["point", "undelete", "--repo", &repo, "--name", "vm", "--point"];
        let gone = scene.start(&[&one[..], &[&scene.points[1]]].concat()).wait();
        gone.fails_with(2).saying(&["collection", &scene.points[1]]);
        assert_eq!(scene.listed().len(), 2);
        scene.restores(&[0, 3]);
        let stat = scene.manage("stat", &[]).ok().json();
        assert!(number(&stat, "collected_ms") > 0, "{stat:#}");
        assert_eq!(number(&stat, "points_deleted"), 0, "{stat:#}");
        // What was given up comes again with the next backup.
        let again = scene.run(0).disk(&scene.disks[1], "disk").report();
        assert!(again.number("bytes_transferred") >= 7 * MIB, "{:#}", again.json);
        let newest = match &scene.server {
            Some(server) => scene.site.restore(server, "vm"),
            None => scene.site.restore_local("vm"),
        };
        newest.equals(&scene.disks[1]);
        scene.end();
    }
}

#[test]
fn a_collection_beside_backups_and_restores_loses_nothing() {
    let scene = Scene::new(true);
    let server = scene.server.as_ref().unwrap();
    let next = scene.site.scratch.join("next.raw");
    images::noise_disk(&next, 24 * MIB, 77);
    // Content of a point that is deleted meanwhile: known to the one, given up by the other.
    let shared = std::fs::read(&scene.disks[1]).unwrap();
    images::overwrite(&next, 8 * MIB, &shared[8 << 20..]);
    let rate = ["--rate", "12MB/s"];
    let backup = scene.site.backup(server, "next").disk(&next, "disk").args(rate).start();
    scene.delete(&[1, 2]);
    let collections: Vec<Running> = (0..3)
        .map(|_| {
            let one = scene.start(&["repo", "gc", &server.url(), "--json"]);
            scene.restores(&[0, 3]);
            one
        })
        .collect();
    let ended: Vec<i32> = collections.into_iter().map(|one| one.wait().code()).collect();
    assert!(ended.contains(&0) && ended.iter().all(|code| [0, 5].contains(code)), "{ended:?}");
    gantry_tests::backup::Report::of(&backup.wait().ok());
    scene.site.restore(server, "next").equals(&next);
    scene.manage("gc", &[]).ok();
    scene.site.restore(server, "next").equals(&next);
    scene.restores(&[0, 3]);
    scene.end();
}

#[test]
fn one_maintenance_job_at_a_time_and_a_client_may_leave() {
    let scene = Scene::new(true);
    let url = scene.repo();
    // Over TCP its death is noticed at once; over QUIC once the connection has been idle.
    let slow = ["repo", "verify", &url, "--rate", "500KB/s", "--transport", "tcp"];
    let mut slow = scene.start(&slow);
    let refusal = || scene.start(&["repo", "gc", &url]).wait();
    wait_until(Duration::from_secs(20), "the verification has the turn", || refusal().code() == 5);
    refusal().fails_with(5).saying(&["verification", "one maintenance job at a time"]);
    // Points are looked after all the same.
    scene.delete(&[2]);
    slow.kill_hard();
    // Nobody would read its report: it makes way.
    wait_until(Duration::from_secs(20), "the verification ends", || refusal().code() == 0);
    assert_eq!(scene.listed().len(), 3);
    scene.restores(&[0, 1, 3]);
    scene.end();
}

#[test]
fn a_mover_killed_within_a_collection_loses_nothing() {
    for (round, pause_ms) in [0u64, 2, 5, 10, 20, 50].into_iter().enumerate() {
        let mut scene = Scene::new(true);
        scene.delete(&[1, 2]);
        let url = scene.repo();
        let collection = scene.start(&["repo", "gc", &url]);
        std::thread::sleep(Duration::from_millis(pause_ms));
        let mut server = scene.server.take().unwrap();
        let port = server.address.port();
        server.process.kill_hard();
        drop(server);
        drop(collection);
        scene.server = Some(scene.site.serve_at(port));
        assert_eq!(scene.listed().len(), 2, "round {round}");
        scene.restores(&[0, 3]);
        let report = scene.manage("gc", &[]).ok().json();
        assert_eq!(number(&report, "points_live"), 2, "round {round}: {report:#}");
        scene.restores(&[0, 3]);
        scene.end();
    }
}

#[test]
fn unfinished_backups_are_kept_until_they_are_given_up() {
    let scene = Scene::new(false);
    let disk = scene.site.scratch.join("unfinished.raw");
    images::noise_disk(&disk, 24 * MIB, 78);
    let start = || {
        let run = scene.site.backup_local("unfinished").disk(&disk, "disk");
        run.args(["--rate", "8MB/s"]).start()
    };
    let journals = scene.site.repository.join("journal");
    let has_journal = || std::fs::read_dir(&journals).is_ok_and(|mut all| all.next().is_some());
    let mut running = start();
    wait_until(Duration::from_secs(20), "a journal", has_journal);
    std::thread::sleep(Duration::from_millis(1500));
    running.terminate();
    wait_until(Duration::from_secs(20), "it ends", || running.is_over());
    let stat = scene.manage("stat", &[]).ok().json();
    assert_eq!(stat["unfinished"][0]["name"], "unfinished", "{stat:#}");
    let report = scene.manage("gc", &[]).ok().json();
    assert_eq!(number(&report, "unfinished"), 1, "{report:#}");
    let report = scene.manage("gc", &["--abandon-unfinished"]).ok().json();
    assert_eq!(number(&report, "unfinished"), 0, "{report:#}");
    assert!(!has_journal());
    scene.site.backup_local("unfinished").disk(&disk, "disk").report();
    scene.site.restore_local("unfinished").equals(&disk);
    scene.restores(&[0, 1, 2, 3]);
    scene.end();
}

#[test]
fn only_managers_manage_where_they_are_named() {
    let mut site = Site::new();
    let manager = Party::new(&site.scratch, "manager");
    std::fs::write(&manager.trust, &site.target.pin).unwrap();
    let both = format!("{}\n{}\n", site.source.pin, manager.pin);
    std::fs::write(&site.target.trust, both).unwrap();
    site.managers = Some(site.scratch.write("managers", &manager.pin));
    let server = site.serve();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, MIB, 1);
    let point = site.backup(&server, "vm").disk(&disk, "disk").report().point();
    let url = server.url();
    let delete: &[&str] =
        &["point", "delete", "--repo", &url, "--name", "vm", "--point", &point, "--last-too"];
    let refused = site.run_as(&site.source, delete).fails_with(4);
    refused.saying(&["may not manage", &site.source.pin, "managers"]);
    site.run_as(&site.source, &["repo", "stat", &url]).fails_with(4);
    site.restore(&server, "vm").equals(&disk);
    site.run_as(&manager, delete).ok();
    assert!(site.points_at(&server, "vm").is_empty());
    server.stop();
}
