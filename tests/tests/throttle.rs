//! The throttle with real movers: what two jobs under one rule send is counted on the wire in front
//! of the repository, a relay for each of them.
//!
//! Rates are a tenth of what the product promises, so that they can be had in the dev profile on any
//! machine; `GANTRY_RATE_MB=100 cargo nextest run --release -p gantry-tests --test throttle` is the
//! whole figure.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gantry_database::model::{
    Id, Job, ProxyChoice, Repository, Selection, SessionResult, TrafficRule, Trigger,
};
use gantry_tests::gantryd::{Site, runtime};
use gantry_tests::relay::UdpRelay;
use gantry_tests::vsphere::Sphere;

const MB: u64 = 1_000_000;
/// How long a changed rule or a change of neighbours may take to act.
const ACTS_WITHIN: Duration = Duration::from_secs(2);
/// How long bytes are counted.
const COUNTED: Duration = Duration::from_secs(5);

/// Two machines with a disk of noise each.
fn sphere(disk_bytes: u64) -> Sphere {
    let image = |number: u64| {
        let path = std::env::temp_dir().join(format!("gantry-{}-{number}", std::process::id()));
        gantry_tests::images::noise_disk(&path, disk_bytes, number);
        path
    };
    let images = [image(1), image(2)];
    let inventory = format!(
        r#"
        name = "vcenter.sim.example"
        [[datacenter]]
        name = "DC 0"
        networks = ["VM Network"]
        [[datacenter.cluster]]
        name = "Cluster0"
        hosts = ["esx0.sim.example"]
        [[datacenter.datastore]]
        name = "vmfs0"
        [[vm]]
        name = "one"
        cbt = true
        disk = [{{ image = {:?} }}]
        [[vm]]
        name = "two"
        cbt = true
        disk = [{{ image = {:?} }}]
        "#,
        images[0], images[1],
    );
    let sphere = Sphere::new(&inventory, 81);
    images.iter().for_each(|image| std::fs::remove_file(image).expect("removable"));
    sphere
}

/// A job over one machine, by one proxy, to the repository behind a relay of its own.
async fn job(site: &Site<'_>, number: usize, vm: &str) -> (Job, UdpRelay) {
    let (parts, now) = (&site.started.parts, site.started.parts.clock.now_ms());
    let database = &parts.database;
    let known = database.by_name::<Repository>("repository").await.expect("kept").value;
    let server: SocketAddr = known.address.trim_start_matches("gantry://").parse().expect("one");
    let relay = UdpRelay::start(server, 0, 0);
    let repository = Repository {
        id: Id::draw(now),
        name: format!("behind relay {number}"),
        address: format!("gantry://{}", relay.address),
        ..known
    };
    database.create(&repository, &[], now).await.expect("kept");
    let proxy = format!("proxy-{number}");
    let proxy = database.by_name::<gantry_database::model::Proxy>(&proxy).await.expect("kept");
    let selection = Selection { patterns: vec![vm.into()], ..Selection::default() };
    let (id, vcenter) = (Id::draw(now), site.job.vcenter);
    let mut job = Job::new(id, &format!("job {number}"), vcenter, repository.id, selection);
    job.proxies = ProxyChoice::Chosen { proxies: vec![proxy.value.id] };
    database.create(&job, &[], now).await.expect("kept");
    parts.refresh().await.expect("read");
    (job, relay)
}

/// Waits until a relay has passed this much on.
async fn passes(site: &Site<'_>, session: Id, relay: &UdpRelay, bytes: u64) {
    let until = Instant::now() + Duration::from_secs(60);
    while relay.bytes() < bytes {
        assert!(Instant::now() < until, "nothing is sent: {}", site.log(session).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Counts what each relay passes on; it is `expected`, within `off` of it.
async fn counts(what: &str, relays: &[&UdpRelay], (expected, off): (f64, f64)) {
    let before: Vec<u64> = relays.iter().map(|relay| relay.bytes()).collect();
    let began = Instant::now();
    tokio::time::sleep(COUNTED).await;
    let seconds = began.elapsed().as_secs_f64();
    for (relay, before) in relays.iter().zip(before) {
        let rate = (relay.bytes() - before) as f64 / seconds / MB as f64;
        eprintln!("{what}: {rate:.2} MB/s of {expected:.2} +- {off:.2}");
        assert!((rate - expected).abs() <= off, "{what}: {rate:.2} MB/s instead of {expected:.2}");
    }
}

/// A tighter rule begins to hold when its window opens, and no longer holds when that closes.
async fn window(site: &Site<'_>, whole: f64, both: &[&UdpRelay]) {
    const HOUR_MS: u64 = 3_600_000;
    let parts = &site.started.parts;
    let hour = |later: u64| (parts.clock.now_ms() / HOUR_MS + later) % 24;
    let (from, to) = (hour(2), hour(3));
    let text = serde_json::json!({
        "id": Id::draw(2), "name": "office hours", "targets": ["127.0.0.1/32"],
        "rate_bytes_per_second": (whole * 0.3) as u64 * MB,
        "windows": [{ "from": format!("{from:02}:00"), "to": format!("{to:02}:00") }],
    });
    let rule: TrafficRule = serde_json::from_value(text).expect("a rule");
    parts.database.create(&rule, &[], parts.clock.now_ms()).await.expect("kept");
    let to_next_hour = || Duration::from_millis(HOUR_MS - parts.clock.now_ms() % HOUR_MS);
    parts.clock.advance(to_next_hour() + Duration::from_millis(HOUR_MS));
    tokio::time::sleep(ACTS_WITHIN).await;
    counts("two, in a window", both, (whole * 0.15, whole * 0.03)).await;
    parts.clock.advance(to_next_hour());
    tokio::time::sleep(ACTS_WITHIN).await;
    counts("two, after the window", both, (whole * 0.3, whole * 0.03)).await;
}

#[test]
fn two_jobs_under_one_rule_get_half_each_one_alone_all_and_a_change_acts_at_once() {
    let asked = std::env::var("GANTRY_RATE_MB").ok().and_then(|text| text.parse().ok());
    let rate_mb: u64 = asked.unwrap_or(10);
    let sphere = sphere(rate_mb * MB * 28);
    runtime().block_on(async {
        let mount = sphere.datastore("vmfs0");
        let proxy = format!("[proxy]\nmounts = {{ vmfs0 = {mount:?} }}\n");
        let mut site = Site::new(&sphere, &proxy).await;
        let parts = site.started.parts.clone();
        let (one, first_relay) = job(&site, 1, "one").await;
        let (two, second_relay) = job(&site, 2, "two").await;
        let text = serde_json::json!({
            "id": Id::draw(1), "name": "wan", "targets": ["127.0.0.0/8"],
            "rate_bytes_per_second": rate_mb * MB,
        });
        let mut rule: TrafficRule = serde_json::from_value(text).expect("a rule");
        parts.database.create(&rule, &[], parts.clock.now_ms()).await.expect("kept");
        tokio::time::sleep(ACTS_WITHIN).await;
        let whole = rate_mb as f64;
        let why = (Trigger::Manual, true, None);
        let first = parts.start_job(&one, why, "asked for").await.expect("it begins");
        passes(&site, first, &first_relay, MB).await;
        tokio::time::sleep(ACTS_WITHIN).await;
        counts("one alone", &[&first_relay], (whole, whole * 0.03)).await;
        let second = parts.start_job(&two, why, "asked for").await.expect("it begins");
        passes(&site, second, &second_relay, MB).await;
        tokio::time::sleep(ACTS_WITHIN).await;
        let both = [&first_relay, &second_relay];
        counts("two", &both, (whole / 2.0, whole * 0.03)).await;
        rule.rate_bytes_per_second = rate_mb * MB * 6 / 10;
        parts.database.update(&rule, 1, parts.clock.now_ms()).await.expect("changed");
        tokio::time::sleep(ACTS_WITHIN).await;
        counts("two, after a change", &both, (whole * 0.3, whole * 0.03)).await;
        window(&site, whole, &both).await;
        rule.enabled = false;
        parts.database.update(&rule, 2, parts.clock.now_ms()).await.expect("changed");
        for session in [first, second] {
            let ended = site.end(session).await;
            assert_eq!(ended.result, Some(SessionResult::Success), "{}", site.log(session).await);
        }
        site.stop_movers();
    });
}
