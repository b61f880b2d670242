//! What is refused, by whom, and how it is said: strangers, wrong protocols, hostile peers, wrong
//! commands. The mover that refuses goes on serving the others.

use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use fastrand::Rng;
use gantry_common::failure::FailureKind;
use gantry_common::wire::{ToSource, ToTarget};
use gantry_dataplane::transport::TransportKind;
use gantry_tests::hostile::{connect, hello, listen, say, say_bytes, talk};
use gantry_tests::images;
use gantry_tests::seeds;
use gantry_tests::site::{Party, Server, Site, free_port};

const MIB: u64 = 1 << 20;

/// The server still serves a well-behaved peer.
#[track_caller]
fn still_serves(site: &Site, server: &mut Server) {
    server.is_well();
    let disk = site.scratch.join("well.raw");
    images::noise_disk(&disk, 2 * MIB, 4);
    site.backup(server, "well").disk(&disk, "well").report();
    site.restore(server, "well").equals(&disk);
    server.is_well();
}

#[test]
fn a_source_mover_that_the_repository_does_not_know() {
    let site = Site::new();
    let mut server = site.serve();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, MIB, 1);
    let stranger = Party::new(&site.scratch, "stranger");
    std::fs::write(&stranger.trust, &site.target.pin).unwrap();
    for transport in ["quic", "tcp", "auto"] {
        let run = gantry_tests::backup::BackupRun::new(site.scratch.path(), &server.url(), "vm");
        let run = run.credentials(&stranger).disk(&disk, "disk");
        let run = run.args(["--transport", transport]).run();
        let run = run.fails_with(4).saying(&["pin"]);
        assert!(run.took < Duration::from_secs(20), "a refusal takes {:?}", run.took);
    }
    still_serves(&site, &mut server);
}

#[test]
fn a_repository_mover_that_the_source_does_not_know() {
    let site = Site::new();
    let mut server = site.serve();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, MIB, 1);
    let wary = Party { trust: site.scratch.write("wrong", "ab".repeat(32)), ..site.source.clone() };
    for transport in ["quic", "tcp", "auto"] {
        let run = gantry_tests::backup::BackupRun::new(site.scratch.path(), &server.url(), "vm");
        let run = run.credentials(&wary).disk(&disk, "disk").args(["--transport", transport]);
        run.run().fails_with(4).saying(&[&site.target.pin]);
        let to = site.scratch.join("never.raw");
        let run = gantry_tests::restore::RestoreRun::new(site.scratch.path(), &server.url(), "vm");
        run.credentials(&wary).args(["--transport", transport]).run(&to).fails_with(4);
    }
    still_serves(&site, &mut server);
}

#[test]
fn another_protocol_version_is_refused() {
    let site = Site::new();
    let mut server = site.serve();
    // By ALPN, with OpenSSL as the real counterpart: no common protocol, no session.
    for (protocol, accepted) in [("gantry/1", true), ("gantry/999", false), ("h2", false)] {
        let output = Command::new("openssl")
            .args(["s_client", "-tls1_3", "-connect", &server.address.to_string()])
            .args(["-alpn", protocol, "-cert"])
            .arg(&site.source.identity)
            .arg("-key")
            .arg(&site.source.identity)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let text = text + &String::from_utf8_lossy(&output.stderr);
        let agreed = text.contains(&format!("ALPN protocol: {protocol}"));
        assert_eq!(agreed, accepted, "{protocol}: {text}");
    }
    // By number, behind an ALPN that fits.
    let ToTarget::Hello { software, session, intent, ticket, .. } = hello(1, "vm", MIB) else {
        unreachable!("hello makes a Hello");
    };
    let wrong = ToTarget::Hello { protocol: 999, software, session, intent, ticket };
    talk(async {
        let mut link = connect(&server, &site.source, TransportKind::Quic).await.unwrap();
        say(&link, &wrong).await;
        let (heard, _) = listen(&mut link).await;
        let refused = heard.iter().find_map(|message| match message {
            ToSource::Refused { failure } => Some(failure),
            _ => None,
        });
        let failure = refused.unwrap_or_else(|| panic!("not refused: {heard:?}"));
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.message.contains("999"), "{failure}");
    });
    still_serves(&site, &mut server);
}

#[test]
fn noise_from_strangers_is_survived() {
    seeds::each(2, |_, mut random| {
        let site = Site::new();
        let mut server = site.serve();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut held = Vec::new();
        for round in 0..60 {
            let length = random.usize(1..1400);
            udp.send_to(&images::noise(&mut random, length), server.address).unwrap();
            let mut tcp = TcpStream::connect(server.address).unwrap();
            let _ = tcp.write_all(&images::noise(&mut random, length));
            if round % 3 == 0 {
                // Some stay open and say nothing more.
                held.push(tcp);
            }
        }
        still_serves(&site, &mut server);
    });
}

/// Frames that no good peer sends, after a good `Hello` or instead of it.
fn hostile_bytes(random: &mut Rng, kind: u8) -> Vec<u8> {
    let prefix = |header: u32, payload: u32| [header.to_le_bytes(), payload.to_le_bytes()].concat();
    match kind {
        0 => prefix(u32::MAX, 0),
        1 => prefix(10, u32::MAX),
        2 => prefix(0, 0),
        3 => [prefix(300, 0), images::noise(random, 300)].concat(),
        // A payload where none may be.
        4 => [prefix(5, 100), images::noise(random, 105)].concat(),
        // Cut short: the rest never comes.
        5 => [prefix(1000, 0), vec![1; 10]].concat(),
        _ => images::noise(random, 2000),
    }
}

#[test]
fn hostile_frames_hurt_nobody_else() {
    let site = Site::new();
    let mut server = site.serve();
    let disk = site.scratch.join("bystander.raw");
    images::noise_disk(&disk, 24 * MIB, 2);
    let bystander = site.backup(&server, "bystander").disk(&disk, "disk");
    let bystander = bystander.args(["--rate", "8MB/s"]).start();
    seeds::each(2, |seed, mut random| {
        for kind in 0..7u8 {
            for greets in [false, true] {
                let transport =
                    if random.bool() { TransportKind::Quic } else { TransportKind::Tcp };
                let bytes = hostile_bytes(&mut random, kind);
                talk(async {
                    let mut link = connect(&server, &site.source, transport).await.unwrap();
                    if greets {
                        let session = (seed as u8).wrapping_mul(16) ^ kind;
                        // A VM each: one that still has a session is refused, which ends well.
                        let name = format!("hostile {seed} {kind}");
                        say(&link, &hello(session, &name, 8 * MIB)).await;
                        say(&link, &ToTarget::OpenTask { task: 0 }).await;
                    }
                    say_bytes(&link, bytes).await;
                    if kind == 5 {
                        return; // hangs up within a frame
                    }
                    let heard = tokio::time::timeout(Duration::from_secs(10), listen(&mut link));
                    let (_, error) = heard.await.unwrap_or_else(|_| {
                        panic!("kind {kind} (greets: {greets}) was not cut off")
                    });
                    assert!(
                        error.is_some(),
                        "kind {kind} by {transport:?} ended as if it were well"
                    );
                });
                server.is_well();
            }
        }
    });
    gantry_tests::backup::Report::of(&bystander.wait().ok());
    site.restore(&server, "bystander").equals(&disk);
    assert_eq!(site.points_at(&server, "").len(), 1, "nothing hostile became a point");
    still_serves(&site, &mut server);
    server.stop();
    site.verify();
}

#[test]
fn well_formed_messages_out_of_place_are_refused() {
    let site = Site::new();
    let mut server = site.serve();
    let messages = [
        ToTarget::OpenTask { task: 7 },
        ToTarget::NeedBase { task: 0, leaf: u64::MAX },
        ToTarget::Seal { task: 0, totals: Default::default(), mask: Vec::new() },
        ToTarget::Read { batch: 1, run: gantry_common::extents::Run { first: 0, count: 1 } },
        ToTarget::Credit { total: u64::MAX },
        hello(9, "again", MIB),
    ];
    for (number, message) in messages.iter().enumerate() {
        talk(async {
            let mut link = connect(&server, &site.source, TransportKind::Quic).await.unwrap();
            say(&link, &hello(100 + number as u8, "hostile", 8 * MIB)).await;
            say(&link, message).await;
            let heard = tokio::time::timeout(Duration::from_secs(10), listen(&mut link)).await;
            let (heard, _) = heard.unwrap_or_else(|_| panic!("{message:?} was accepted"));
            let committed = heard.iter().any(|m| matches!(m, ToSource::Committed { .. }));
            assert!(!committed, "{message:?} made a point");
        });
        server.is_well();
    }
    assert!(site.points_at(&server, "").is_empty());
    still_serves(&site, &mut server);
}

#[test]
fn a_restore_of_what_is_not_there_says_so() {
    let site = Site::new();
    let server = site.serve();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, MIB, 1);
    let point = site.backup(&server, "vm").disk(&disk, "disk").report().point();
    let to = site.scratch.join("never.raw");
    let absent = "0123456789abcdef0123456789abcdef";
    site.restore(&server, "nobody").run(&to).fails_with(2).saying(&["nobody"]);
    site.restore(&server, "vm").point(absent).run(&to).fails_with(2).saying(&[absent]);
    site.restore(&server, "vm").point(&point).disk(3).run(&to).fails_with(2).saying(&["disk"]);
    assert!(!to.exists(), "nothing was made");
    let folder = site.scratch.path();
    site.restore(&server, "vm").run(folder).fails_with(2);
}

#[test]
fn nobody_listens() {
    let site = Site::new();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, MIB, 1);
    let url = format!("gantry://127.0.0.1:{}", free_port());
    let run = gantry_tests::backup::BackupRun::new(site.scratch.path(), &url, "vm");
    let run = run.credentials(&site.source).disk(&disk, "disk").args(["--reconnect", "1"]);
    run.run().fails_with(4).saying(&["127.0.0.1"]);
}

#[test]
fn wrong_commands_are_usage_errors() {
    let site = Site::new();
    site.repo("init").ok();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, MIB, 1);
    let path = |path: &std::path::Path| path.display().to_string();
    let (disk_path, repo) = (path(&disk), path(&site.repository));
    let broken = path(&site.scratch.write("broken.json", "{"));
    let point = "0123456789abcdef0123456789abcdef";
    let backup = ["backup", &disk_path, "--repo", &repo, "--name", "vm"];
    let more: &[&[&str]] = &[
        &["--block-size", "3M"],
        &["--compression", "much"],
        &["--rate", "fast"],
        &["--changed-extents", &broken, "--base", point],
        &["--changed-extents", &broken],
        &["--base", "latest-ish"],
        &["--full", "--base", point],
        &["--disk-id", "a", "--disk-id", "b"],
        &["--cpu-set", "9-3"],
        &[&disk_path],
    ];
    for wrong in more {
        let outcome = site.run(&[&backup[..], wrong].concat());
        outcome.fails_with(2);
    }
    let whole: &[&[&str]] = &[
        &[],
        &["backup"],
        &["backup", &disk_path, "--repo", "ftp://somewhere:1", "--name", "vm"],
        &["backup", &disk_path, "--repo", "gantry://127.0.0.1", "--name", "vm"],
        &["backup", &disk_path, "--repo", "gantry://127.0.0.1:1", "--name", "vm"],
        &["serve", "--config", "/nonexistent/mover.toml"],
        &["restore", "--repo", &repo, "--name", "vm"],
    ];
    for wrong in whole {
        site.run(wrong).fails_with(2);
    }
    assert!(site.points().is_empty());
}
