//! The bottleneck that a backup names: each part of the road in turn is slowed to 70 % of the next-slowest.
//!
//! The source by nbdkit's rate filter, the network by a relay of a certain width or the mover's own limit,
//! the repository by a device of a certain speed; the proxy is what its one worker compresses. What
//! that is on this machine is measured first. `GANTRY_SEEDS=20` runs twenty of each.

use std::path::PathBuf;

use fastrand::Rng;
use gantry_tests::backup::{BackupRun, Report};
use gantry_tests::devices::{SlowVolume, is_root};
use gantry_tests::images;
use gantry_tests::relay::TcpRelay;
use gantry_tests::seeds;
use gantry_tests::servers::DiskServer;
use gantry_tests::site::Site;

const MIB: u64 = 1 << 20;
/// Bytes of the disk: several times what all buffers on the road hold.
const DISK_BYTES: u64 = 768 * MIB;
/// The part that is slowed, in relation to the next-slowest one.
const SLOWED: f64 = 0.7;
const PARTS: [&str; 4] = ["source", "proxy", "network", "target"];

/// How fast each part is, in bytes of the disk a second; nothing: as fast as it can be.
#[derive(Debug, Clone, Copy, Default)]
struct Speeds {
    source: Option<f64>,
    network: Option<f64>,
    target: Option<f64>,
}

struct Road {
    site: Site,
    volume: SlowVolume,
    image: PathBuf,
    runs: u64,
}

impl Road {
    fn new() -> Road {
        let mut site = Site::new();
        let volume = SlowVolume::ext4(&site.scratch, 3 << 30);
        site.repository = volume.path().join("repository");
        let image = site.scratch.join("disk.raw");
        images::half_noise_disk(&image, DISK_BYTES, 1);
        Road { site, volume, image, runs: 0 }
    }

    /// A full backup into an empty repository at these speeds. `stored`: what a byte of the disk is on
    /// the wire; `by_relay`: the network is a line of a certain width, not the mover's own limit.
    fn backup(&mut self, speeds: Speeds, stored: f64, by_relay: bool) -> Report {
        self.runs += 1;
        let folder = self.site.scratch.path().to_owned();
        let name = format!("disk-{}", self.runs);
        let mut options = vec!["file".to_owned(), self.image.display().to_string()];
        if let Some(rate) = speeds.source {
            options.insert(0, "--filter=rate".to_owned());
            options.push(format!("rate={}", (rate * 8.0) as u64));
            options.push("burstiness=0.05".to_owned());
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let source = DiskServer::nbdkit(&folder, &name, &options);
        let server = self.site.serve();
        let line = speeds.network.map(|rate| (rate * stored) as u64);
        let relay = line.filter(|_| by_relay);
        let relay = relay.map(|rate| TcpRelay::with_rate(server.address, rate));
        let address = relay.as_ref().map_or(server.address, |relay| relay.address);
        self.volume.limit(speeds.target.map(|rate| (rate * stored) as u64));
        let mut run = BackupRun::new(&folder, &format!("gantry://{address}"), &name)
            .credentials(&self.site.source)
            .args(["--transport", "tcp", "--workers", "1", "--compression", "extreme"]);
        if let (Some(rate), false) = (line, by_relay) {
            run = run.args(["--rate".to_owned(), format!("{rate}B/s")]);
        }
        let report = run.disk(source.url().as_ref(), "disk").report();
        self.volume.limit(None);
        source.stop();
        server.stop();
        // The next run sends everything again.
        std::fs::remove_dir_all(&self.site.repository).expect("removable");
        report
    }
}

/// Bytes of the disk that a run has handled in a second.
fn speed(report: &Report) -> f64 {
    DISK_BYTES as f64 / report.json["wall_seconds"].as_f64().expect("seconds")
}

fn set(speeds: &mut Speeds, part: &str, rate: f64) {
    match part {
        "source" => speeds.source = Some(rate),
        "network" => speeds.network = Some(rate),
        "target" => speeds.target = Some(rate),
        _ => {}
    }
}

/// Slows `part` to 70 % of one other, which is the next-slowest.
fn slowed(part: &str, proxy: f64, random: &mut Rng) -> (Speeds, &'static str) {
    let others: Vec<&str> = PARTS.into_iter().filter(|other| *other != part).collect();
    let next = others[random.usize(..others.len())];
    let (mut speeds, slow, following) = (Speeds::default(), part, next);
    // What the proxy can do is given: the others are set by it.
    let following_rate = match (slow, following) {
        ("proxy", _) => proxy / SLOWED,
        (_, "proxy") => proxy,
        _ => proxy * SLOWED,
    };
    set(&mut speeds, following, following_rate);
    set(&mut speeds, slow, following_rate * SLOWED);
    (speeds, next)
}

#[test]
fn the_slowest_part_of_the_road_is_named() {
    if !is_root() {
        return;
    }
    let mut road = Road::new();
    let first = road.backup(Speeds::default(), 1.0, false);
    let stored = first.number("bytes_transferred") as f64 / DISK_BYTES as f64;
    eprintln!(
        "{stored:.3} of a byte is sent; unslowed {:.0} MB/s, {}",
        speed(&first) / 1e6,
        first.json["bottleneck"]
    );
    let (mut runs, mut wrong, mut known) = (0, Vec::new(), Some(speed(&first)));
    seeds::each(1, |seed, mut random| {
        // As fast as the proxy is now: other work on the machine comes and goes.
        let proxy = known.take();
        let proxy = proxy.unwrap_or_else(|| speed(&road.backup(Speeds::default(), stored, false)));
        for part in PARTS {
            let (speeds, next) = slowed(part, proxy, &mut random);
            let by_relay = random.bool();
            let report = road.backup(speeds, stored, by_relay);
            let shares = &report.json["bottleneck"];
            let share = |part: &str| shares[part].as_f64().expect("a share");
            let sum: f64 = PARTS.iter().map(|part| share(part)).sum();
            assert!((sum - 100.0).abs() < 0.5, "the shares add up to {sum}: {shares}");
            let named = report.json["bottleneck_name"].as_str().expect("a name");
            let line = format!(
                "seed {seed}: {part} slowed, {next} next, relay {by_relay}: {:.0} MB/s of the proxy's {:.0}; {named}: {shares}",
                speed(&report) / 1e6,
                proxy / 1e6
            );
            eprintln!("{line}");
            runs += 1;
            if named != part {
                wrong.push(line);
            }
        }
    });
    assert!(
        wrong.len() * 20 <= runs,
        "{} of {runs} runs name another part: {wrong:#?}",
        wrong.len()
    );
}
