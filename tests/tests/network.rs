//! Networks that lose, reorder and break: what arrives is right, and the rate is what was asked.

use std::time::{Duration, Instant};

use gantry_tests::backup::{BackupRun, Report};
use gantry_tests::images;
use gantry_tests::relay::{TcpRelay, UdpRelay};
use gantry_tests::seeds;
use gantry_tests::site::Site;

const MIB: u64 = 1 << 20;

fn backup_through(site: &Site, address: std::net::SocketAddr, transport: &str) -> BackupRun {
    let run = BackupRun::new(site.scratch.path(), &format!("gantry://{address}"), "vm");
    run.credentials(&site.source).args(["--transport", transport])
}

#[test]
fn lost_and_late_packets_change_nothing() {
    seeds::each(2, |seed, _| {
        let site = Site::new();
        let server = site.serve();
        let disk = site.scratch.join("disk.raw");
        images::noise_disk(&disk, 8 * MIB + 512, seed);
        let relay = UdpRelay::start(server.address, 15, seed);
        backup_through(&site, relay.address, "quic").disk(&disk, "disk").report();
        assert!(relay.is_well());
        site.restore(&server, "vm").equals(&disk);
    });
}

#[test]
fn cut_connections_are_made_anew() {
    seeds::each(2, |seed, mut random| {
        let site = Site::new();
        let server = site.serve();
        let disk = site.scratch.join("disk.raw");
        images::noise_disk(&disk, 32 * MIB + 512, seed);
        let relay = TcpRelay::start(server.address);
        let run = backup_through(&site, relay.address, "tcp").disk(&disk, "disk");
        let mut run = run.args(["--rate", "16MB/s"]).start();
        while !run.is_over() {
            std::thread::sleep(Duration::from_millis(random.u64(100..1200)));
            relay.cut();
        }
        assert!(relay.cuts() > 0, "nothing was cut");
        Report::of(&run.wait().ok());
        // What had arrived before a cut is kept: only what was under way is sent again.
        let (sent, cuts) = (relay.bytes(), relay.cuts() / 2);
        eprintln!("{cuts} cuts, {} of 32 MiB sent", sent / MIB);
        assert!(sent < 32 * MIB + (cuts + 1) * 4 * MIB, "{sent} bytes sent with {cuts} cuts");
        site.restore(&server, "vm").equals(&disk);
        assert_eq!(site.points_at(&server, "vm").len(), 1);
        server.stop();
        site.verify();
    });
}

/// Bytes a second that pass during `window`.
fn measured(relay: &UdpRelay, window: Duration) -> f64 {
    let (began, bytes) = (Instant::now(), relay.bytes());
    std::thread::sleep(window);
    (relay.bytes() - bytes) as f64 / began.elapsed().as_secs_f64()
}

#[test]
fn the_rate_on_the_wire_is_what_was_asked_and_follows_its_file() {
    let site = Site::new();
    let server = site.serve();
    let disk = site.scratch.join("disk.raw");
    images::noise_disk(&disk, 200 * MIB, 20);
    let relay = UdpRelay::start(server.address, 0, 0);
    let file = site.scratch.write("rate", "10MB/s");
    let run = backup_through(&site, relay.address, "quic").disk(&disk, "disk");
    let run = run.args(["--rate-file".as_ref(), file.as_os_str()]).start();
    for (rate, window) in [(10e6, 3), (25e6, 5)] {
        std::fs::write(&file, format!("{}MB/s\n", rate / 1e6)).unwrap();
        std::thread::sleep(Duration::from_millis(1200));
        let found = measured(&relay, Duration::from_secs(window));
        let off = (found / rate - 1.0) * 100.0;
        eprintln!("asked {:.0} MB/s, measured {:.3} MB/s ({off:+.1} %)", rate / 1e6, found / 1e6);
        assert!(off.abs() <= 3.0, "{rate} asked, {found} measured: {off:+.1} %");
    }
    std::fs::write(&file, "unlimited").unwrap();
    let began = Instant::now();
    Report::of(&run.wait().ok());
    eprintln!("the rest took {:.1} s", began.elapsed().as_secs_f64());
    site.restore(&server, "vm").equals(&disk);
}
