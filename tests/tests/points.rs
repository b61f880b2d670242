//! The life of restore points through whole programs, in a folder and over QUIC: deleting, bringing
//! back, protecting, retention, and who may do that.

use std::path::{Path, PathBuf};

use gantry_common::failure::FailureKind;
use gantry_common::manage::ManageRequest;
use gantry_common::wire::{Intent, ToSource, ToTarget};
use gantry_dataplane::transport::TransportKind;
use gantry_tests::hostile::{connect, hello, listen, say, talk};
use gantry_tests::images;
use gantry_tests::program::Outcome;
use gantry_tests::site::{Party, Server, Site, ids};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A VM with three points, in a folder or behind a mover, and the disk as it was at each.
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
        for round in 0..3 {
            let disk = scene.site.scratch.join(format!("disk-{round}.raw"));
            images::noise_disk(&disk, 6 * MIB, 100 + round);
            scene.back_up(&disk, &[]);
            scene.disks.push(disk);
        }
        scene
    }

    fn repo(&self) -> String {
        match &self.server {
            Some(server) => server.url(),
            None => self.site.repository.display().to_string(),
        }
    }

    fn back_up(&mut self, disk: &Path, more: &[&str]) -> Value {
        let run = match &self.server {
            Some(server) => self.site.backup(server, "vm"),
            None => self.site.backup_local("vm"),
        };
        let report = run.disk(disk, "disk").args(more).report();
        self.points.push(report.point());
        report.json
    }

    /// `gantry-mover point COMMAND --repo … --name vm --json …`.
    fn point(&self, command: &str, more: &[&str]) -> Outcome {
        let repo = self.repo();
        let arguments =
            [&["point", command, "--repo", &repo, "--name", "vm", "--json"], more].concat();
        match self.server {
            Some(_) => self.site.run_as_source(&arguments),
            None => self.site.run(&arguments),
        }
    }

    fn listed(&self, more: &[&str]) -> Vec<String> {
        ids(&self.point("list", more).ok().json())
    }

    fn restores(&self, number: usize) {
        let run = match &self.server {
            Some(server) => self.site.restore(server, "vm"),
            None => self.site.restore_local("vm"),
        };
        run.point(&self.points[number]).equals(&self.disks[number]);
    }

    fn refuses(&self, number: usize) {
        let run = match &self.server {
            Some(server) => self.site.restore(server, "vm"),
            None => self.site.restore_local("vm"),
        };
        let to = run.fresh_file();
        let refused = run.point(&self.points[number]).run(&to).fails_with(2);
        refused.saying(&["is deleted", "point undelete", &self.points[number]]);
        assert!(!to.exists());
    }

    fn end(self) {
        if let Some(server) = self.server {
            server.stop();
        }
        self.site.verify();
    }
}

#[test]
fn deleted_points_are_away_and_come_back_bit_for_bit() {
    for is_remote in [false, true] {
        let scene = Scene::new(is_remote);
        let [a, b, c] = [0, 1, 2].map(|number| scene.points[number].as_str());
        let deleted = scene.point("delete", &["--point", a, "--point", c]).ok().json();
        assert_eq!(deleted["changed"].as_array().unwrap().len(), 2, "{deleted}");
        assert_eq!(scene.listed(&[]), [b]);
        assert_eq!(scene.listed(&["--deleted"]), [a, c]);
        scene.refuses(0);
        scene.restores(1);
        scene.point("delete", &["--point", b]).fails_with(2).saying(&["--last-too"]);
        scene.point("delete", &["--point", &"9".repeat(32)]).fails_with(2).saying(&["9999"]);
        scene.point("undelete", &["--point", a]).ok();
        scene.point("undelete", &["--all-deleted"]).ok();
        assert_eq!(scene.listed(&[]), [a, b, c]);
        (0..3).for_each(|number| scene.restores(number));
        scene.point("delete", &["--point", a, "--point", b, "--point", c, "--last-too"]).ok();
        assert!(scene.listed(&[]).is_empty());
        scene.point("undelete", &["--all-deleted"]).ok();
        scene.end();
    }
}

#[test]
fn protected_points_stay_until_that_ends() {
    for is_remote in [false, true] {
        let scene = Scene::new(is_remote);
        let a = scene.points[0].as_str();
        scene.point("protect", &["--point", a]).ok();
        let listed = scene.point("list", &[]).ok().json();
        assert_eq!(listed[0]["flags"], serde_json::json!(["protected"]), "{listed:#}");
        scene.point("delete", &["--point", a]).fails_with(2).saying(&["protected", "--off"]);
        scene.point("prune", &["--keep-min", "1"]).ok();
        assert_eq!(scene.listed(&[]), [a, &scene.points[2]]);
        scene.restores(0);
        scene.point("protect", &["--point", a, "--off"]).ok();
        scene.point("delete", &["--point", a]).ok();
        scene.end();
    }
}

#[test]
fn retention_is_applied_by_the_target_and_told() {
    for is_remote in [false, true] {
        let mut scene = Scene::new(is_remote);
        let dry = scene.point("prune", &["--keep-min", "2", "--dry-run"]).ok().json();
        assert_eq!((&dry["points_deleted"], &dry["points_kept"]), (&1.into(), &2.into()), "{dry}");
        assert!(dry["decisions"][0]["keep"].as_array().unwrap().is_empty());
        assert_eq!(dry["decisions"][2]["keep"][0], "newest");
        assert_eq!(scene.listed(&[]).len(), 3, "a dry run deletes nothing");
        let disk = scene.disks[2].clone();
        let rules = ["--keep-min", "2", "--keep-weekly", "4", "--keep-yearly", "1"];
        let report = scene.back_up(&disk, &rules);
        let log = report["log"].to_string();
        for number in [0, 1] {
            assert!(log.contains(&format!("deleted point {}", scene.points[number])), "{log}");
        }
        let listed = scene.point("list", &[]).ok().json();
        assert_eq!(ids(&listed), scene.points[2..]);
        assert_eq!(listed[1]["flags"], serde_json::json!(["weekly", "yearly"]), "{listed:#}");
        // What stands for its week stays, whatever the minimum.
        scene.back_up(&disk, &rules);
        scene.back_up(&disk, &["--keep-min", "1", "--keep-weekly", "1"]);
        assert_eq!(scene.listed(&[]), [&scene.points[3], &scene.points[5]].map(String::as_str));
        scene.point("undelete", &["--all-deleted"]).ok();
        assert_eq!(scene.listed(&[]).len(), 6);
        // Days: everything here is younger than one.
        let kept = scene.point("prune", &["--keep-days", "1"]).ok().json();
        assert_eq!(kept["points_deleted"], 0, "{kept}");
        scene.end();
    }
}

#[test]
fn a_damaged_manifest_is_served_by_its_copy_and_named() {
    let scene = Scene::new(false);
    let file = |ending: &str| {
        scene.site.repository.join(format!("points/vm/{}.{ending}", scene.points[1]))
    };
    images::flip(&file("manifest"), 70, 1);
    assert_eq!(scene.listed(&[]).len(), 3);
    scene.restores(1);
    let verify = scene.site.repo("verify").fails_with(5);
    assert!(verify.out.contains(".manifest"), "{}", verify.out);
    images::flip(&file("copy"), 70, 1);
    assert_eq!(scene.site.repo("verify").fails_with(5).json()["damages"], 1);
    let to = scene.site.scratch.join("never.raw");
    let refused = scene.site.restore_local("vm").point(&scene.points[1]).run(&to).fails_with(5);
    refused.saying(&["damaged", &scene.points[1]]);
    scene.restores(0);
}

#[test]
fn wrong_requests_are_usage_errors() {
    let scene = Scene::new(false);
    let point = scene.points[0].as_str();
    let wrong: [(&str, &[&str]); 7] = [
        ("delete", &[]),
        ("delete", &["--point", "latest"]),
        ("undelete", &[]),
        ("undelete", &["--all-deleted", "--point", point]),
        ("prune", &[]),
        ("prune", &["--keep-min", "0"]),
        ("protect", &["--off"]),
    ];
    for (command, more) in wrong {
        scene.point(command, more).fails_with(2);
    }
    let repo = scene.repo();
    for wrong in [
        &["repo", "verify", &repo, "--percent", "0"][..],
        &["repo", "verify", &repo, "--rate", "0"],
        &["repo", "gc", &repo, "--rewrite-max", "much"],
        &["repo", "stat", "gantry://127.0.0.1:1"],
        &["point", "delete", "--repo", &repo, "--name", "", "--point", point],
        &["point", "delete", "--repo", &repo, "--name", "a\u{1b}b", "--point", point],
    ] {
        scene.site.run(wrong).fails_with(2);
    }
    assert_eq!(scene.listed(&[]).len(), 3);
}

#[test]
fn stat_and_verify_work_beside_a_serving_mover_and_name_the_way_there() {
    let scene = Scene::new(true);
    let url = scene.repo();
    let server = scene.server.as_ref().unwrap();
    let slow = scene.site.scratch.join("slow.raw");
    images::noise_disk(&slow, 24 * MIB, 9);
    let running = scene.site.backup(server, "slow").disk(&slow, "slow").args(["--rate", "8MB/s"]);
    let running = running.start();
    scene.point("delete", &["--point", &scene.points[0]]).ok();
    let stat = scene.site.run_as_source(&["repo", "stat", &url, "--json"]).ok().json();
    assert_eq!((&stat["points"], &stat["points_deleted"]), (&2.into(), &1.into()), "{stat:#}");
    assert!(stat["bytes_deleted"].as_u64().unwrap() >= 6 * MIB, "{stat:#}");
    let verified = scene.site.run_as_source(&["repo", "verify", &url, "--json"]).ok().json();
    assert!(verified["packs"].as_u64().unwrap() >= 3, "{verified:#}");
    let stat = scene.site.run_as_source(&["repo", "stat", &url, "--json"]).ok().json();
    assert!(stat["checked_newest_ms"].as_u64().unwrap() > 0, "{stat:#}");
    let part = ["repo", "verify", &url, "--percent", "10", "--checksums-only", "--json"];
    let part = scene.site.run_as_source(&part).ok().json();
    assert_eq!(part["complete"], false, "{part:#}");
    let folder = scene.site.repository.display().to_string();
    for command in ["verify", "stat", "gc"] {
        let refused = scene.site.run(&["repo", command, &folder]).fails_with(5);
        refused.saying(&["in use", "gantry://"]);
    }
    running.wait().ok();
    scene.end();
}

#[test]
fn strangers_and_tickets_without_the_right_manage_nothing() {
    let scene = Scene::new(true);
    let url = scene.repo();
    let point = scene.points[0].as_str();
    let stranger = Party::new(&scene.site.scratch, "stranger");
    std::fs::write(&stranger.trust, &scene.site.target.pin).unwrap();
    let wary = Party {
        trust: scene.site.scratch.write("wrong", "ab".repeat(32)),
        ..scene.site.source.clone()
    };
    for party in [&stranger, &wary] {
        let delete = ["point", "delete", "--repo", &url, "--name", "vm", "--point", point];
        scene.site.run_as(party, &delete).fails_with(4).saying(&["pin"]);
        scene.site.run_as(party, &["repo", "stat", &url]).fails_with(4);
    }
    // A session's own ticket, shown for another purpose while the session stands.
    let server = scene.server.as_ref().unwrap();
    talk(async {
        let greeting = hello(7, "vm", MIB);
        let mut first = connect(server, &scene.site.source, TransportKind::Quic).await.unwrap();
        say(&first, &greeting).await;
        let frame = first.receiver.recv().await.unwrap().unwrap();
        let ToSource::Welcome { ticket: Some(ticket), .. } = frame.decode().unwrap() else {
            panic!("no ticket")
        };
        let ToTarget::Hello { protocol, software, session, .. } = greeting else { unreachable!() };
        let request = ManageRequest::DeletePoints {
            name: "vm".into(),
            points: vec![point.parse().unwrap()],
            last_too: false,
        };
        let intent = Intent::Manage(request);
        let message = ToTarget::Hello { protocol, software, session, intent, ticket: Some(ticket) };
        let mut second = connect(server, &scene.site.source, TransportKind::Quic).await.unwrap();
        say(&second, &message).await;
        let (heard, _) = listen(&mut second).await;
        let Some(ToSource::Refused { failure }) = heard.first() else { panic!("{heard:?}") };
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.message.contains("manage"), "{failure}");
    });
    assert_eq!(scene.listed(&[]), scene.points);
}
