//! The closed loop on simulated time: flows that send through a pacer like the movers' own, looked at
//! twice a second, with new shares arriving 20 to 150 ms late.

use std::collections::BTreeMap;

use jiff::civil::{Time, date};
use jiff::{SignedDuration, Timestamp};

use super::{
    Demand, Flow, FlowId, JobLimit, Measured, Share, TrafficRule, TrafficRules, demand, shares,
};
use crate::names::JobName;
use crate::schedule::{Weekdays, Window, Windows, Zone};

const MB: u64 = 1_000_000;
const LOOK_MS: u64 = 500;
/// What the movers' pacer lets an idle or late sender catch up, and sends at once.
const BURST_MS: f64 = 50.0;
const SLICE_BYTES: f64 = 65_536.0;
/// What a source can read, in MB/s.
const LINE: f64 = 400.0;

fn rule(rate: u64) -> TrafficRule {
    TrafficRule {
        name: "to the repository".to_owned(),
        source: vec!["10.0.0.0/8".parse().unwrap()],
        target: Vec::new(),
        windows: Windows::always(),
        bytes_per_second_max: Some(rate),
        weight: 1,
        restores: false,
        enabled: true,
    }
}

fn flow(job: &str, host: u8) -> Flow {
    Flow {
        job: job.into(),
        source: format!("10.0.0.{host}").parse().unwrap(),
        target: "192.0.2.1".parse().unwrap(),
        restore: false,
        bytes_per_second_max: None,
    }
}

/// A source mover's side of one flow.
struct Sender {
    flow: Flow,
    /// What its source yields, in MB/s.
    offered: f64,
    backlog: f64,
    debt: f64,
    share: Share,
    coming: Vec<(u64, Share)>,
    sent_in_look: f64,
    waited_ms: u64,
    sent_by_ms: Vec<f64>,
}

impl Sender {
    /// One millisecond of `Pacer`, `dataplane`'s leaky bucket.
    fn step(&mut self, now_ms: u64) {
        self.coming.retain(|(at_ms, share)| {
            let arrived = *at_ms <= now_ms;
            if arrived {
                self.share = *share;
            }
            !arrived
        });
        self.backlog = (self.backlog + self.offered * 1000.0).min(32.0 * MB as f64);
        let rate = self.share.map_or(f64::INFINITY, |rate| rate as f64 / 1000.0);
        let mut sent = 0.0;
        if rate.is_finite() {
            self.debt = (self.debt - rate).max(-rate * BURST_MS);
            while self.debt <= 0.0 && self.backlog >= SLICE_BYTES {
                self.debt += SLICE_BYTES;
                self.backlog -= SLICE_BYTES;
                sent += SLICE_BYTES;
            }
            self.waited_ms += u64::from(self.backlog >= SLICE_BYTES);
        } else {
            sent = self.backlog.min(LINE * 1000.0);
            self.backlog -= sent;
        }
        self.sent_in_look += sent;
        self.sent_by_ms.push(sent);
    }
}

struct Site {
    rules: TrafficRules,
    jobs: BTreeMap<JobName, JobLimit>,
    senders: BTreeMap<FlowId, Sender>,
    gone: Vec<Vec<f64>>,
    begin: Timestamp,
    now_ms: u64,
    random: fastrand::Rng,
}

impl Site {
    fn new(seed: u64, rules: Vec<TrafficRule>) -> Site {
        println!("seed {seed}");
        Site {
            rules: TrafficRules { site_bytes_per_second_max: None, rules },
            jobs: BTreeMap::new(),
            senders: BTreeMap::new(),
            gone: Vec::new(),
            begin: date(2026, 3, 2).at(20, 0, 0, 0).in_tz("UTC").unwrap().timestamp(),
            now_ms: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    fn start(&mut self, id: u64, flow: Flow, offered: f64) {
        let sender = Sender {
            flow,
            offered,
            backlog: 0.0,
            debt: 0.0,
            share: Some(1),
            coming: Vec::new(),
            sent_in_look: 0.0,
            waited_ms: 0,
            sent_by_ms: vec![0.0; self.now_ms as usize],
        };
        self.senders.insert(FlowId(id), sender);
    }

    fn stop(&mut self, id: u64) {
        let sender = self.senders.remove(&FlowId(id)).expect("a flow");
        self.gone.push(sender.sent_by_ms);
    }

    fn offer(&mut self, id: u64, offered: f64) {
        self.senders.get_mut(&FlowId(id)).expect("a flow").offered = offered;
    }

    fn look(&mut self) {
        let mut demands = BTreeMap::new();
        for (id, sender) in &mut self.senders {
            let bytes_per_second = (sender.sent_in_look * 1000.0 / LOOK_MS as f64) as u64;
            let throttled = sender.waited_ms > LOOK_MS / 5;
            demands.insert(*id, demand(Measured { bytes_per_second, throttled }, sender.share));
            (sender.sent_in_look, sender.waited_ms) = (0.0, 0);
        }
        let flows = self.senders.iter().map(|(id, sender)| (*id, sender.flow.clone())).collect();
        let now = self.begin + SignedDuration::from_millis(self.now_ms as i64);
        for (id, share) in shares(now, &self.rules, &self.jobs, &flows, &demands) {
            let at_ms = self.now_ms + self.random.u64(20..150);
            self.senders.get_mut(&id).expect("a flow").coming.push((at_ms, share));
        }
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 1000 {
            if self.now_ms.is_multiple_of(LOOK_MS) {
                self.look();
            }
            self.senders.values_mut().for_each(|sender| sender.step(self.now_ms));
            self.now_ms += 1;
        }
    }

    /// MB/s of some flows, from `ago` seconds before now on.
    fn rate(&self, ids: &[u64], ago: u64) -> f64 {
        let from = (self.now_ms - ago * 1000) as usize;
        let sent = ids.iter().map(|id| &self.senders[&FlowId(*id)].sent_by_ms[from..]);
        sent.map(|sent| sent.iter().sum::<f64>()).sum::<f64>() / MB as f64 / ago as f64
    }

    /// The highest rate of all flows together over any ten seconds, in MB/s.
    fn highest(&self) -> f64 {
        let mut total = vec![0.0; self.now_ms as usize];
        let alive = self.senders.values().map(|sender| &sender.sent_by_ms);
        for sent in alive.chain(&self.gone) {
            total.iter_mut().zip(sent).for_each(|(sum, sent)| *sum += sent);
        }
        let windows = total.windows(10_000).step_by(50);
        windows.map(|window| window.iter().sum::<f64>() / 10.0 / MB as f64).fold(0.0, f64::max)
    }
}

#[track_caller]
fn near(rate: f64, expected: f64, tolerance: f64) {
    assert!((rate - expected).abs() <= tolerance, "{rate:.1} instead of {expected}");
}

#[test]
fn two_jobs_share_a_rule_and_one_alone_has_it_all() {
    let mut site = Site::new(1, vec![rule(100 * MB)]);
    site.start(1, flow("one", 1), LINE);
    // Three tasks on three proxies have no more than the other session's single one.
    (2..=4).for_each(|id| site.start(id, flow("two", id as u8), LINE));
    site.run(2);
    site.run(10);
    near(site.rate(&[1], 10), 50.0, 3.0);
    near(site.rate(&[2, 3, 4], 10), 50.0, 3.0);
    site.stop(1);
    site.run(2);
    site.run(10);
    near(site.rate(&[2, 3, 4], 10), 100.0, 3.0);
    assert!(site.highest() <= 103.0, "{}", site.highest());
}

#[test]
fn weights_and_a_jobs_own_limit_count() {
    let mut site = Site::new(2, vec![rule(100 * MB)]);
    site.jobs.insert("one".into(), JobLimit { bytes_per_second_max: None, weight: 3 });
    site.start(1, flow("one", 1), LINE);
    site.start(2, flow("two", 2), LINE);
    site.run(12);
    near(site.rate(&[1], 10), 75.0, 3.0);
    site.jobs.insert("one".into(), JobLimit { bytes_per_second_max: Some(20 * MB), weight: 3 });
    site.run(2);
    site.run(10);
    near(site.rate(&[1], 10), 20.0, 1.0);
    near(site.rate(&[2], 10), 80.0, 3.0);
}

#[test]
fn what_an_idle_flow_leaves_is_used_and_given_back_within_two_seconds() {
    let mut site = Site::new(3, vec![rule(100 * MB)]);
    site.start(1, flow("one", 1), LINE);
    site.start(2, flow("two", 2), LINE);
    site.run(5);
    for quiet in [0.0, 5.0, 20.0] {
        site.offer(1, quiet);
        site.run(2);
        site.run(5);
        assert!(site.rate(&[1, 2], 5) >= 96.0, "{quiet}: {}", site.rate(&[1, 2], 5));
        near(site.rate(&[1], 5), quiet, 1.0);
        site.offer(1, LINE);
        site.run(2);
        site.run(5);
        near(site.rate(&[1], 5), 50.0, 3.0);
        near(site.rate(&[2], 5), 50.0, 3.0);
    }
    assert!(site.highest() <= 103.0, "{}", site.highest());
}

#[test]
fn windows_and_live_changes_act_within_two_seconds() {
    let mut timed = rule(100 * MB);
    let (from, until) = (Time::constant(20, 0, 20, 0), Time::constant(20, 0, 40, 0));
    let window = Window { days: Weekdays::ALL, from, until };
    timed.windows = Windows { zone: Zone::utc(), windows: vec![window] };
    let mut site = Site::new(4, vec![timed, rule(200 * MB)]);
    site.start(1, flow("one", 1), LINE);
    site.start(2, flow("two", 2), LINE);
    site.run(20);
    near(site.rate(&[1, 2], 10), 200.0, 6.0);
    site.run(2);
    site.run(10);
    near(site.rate(&[1, 2], 10), 100.0, 3.0);
    site.run(8 + 2);
    site.run(10);
    near(site.rate(&[1, 2], 10), 200.0, 6.0);
    site.rules.rules[1].bytes_per_second_max = Some(40 * MB);
    site.run(2);
    site.run(10);
    near(site.rate(&[1, 2], 10), 40.0, 1.2);
    site.rules.rules[1].enabled = false;
    site.run(2);
    site.run(2);
    assert!(site.rate(&[1, 2], 2) > 700.0, "no rule holds");
}

#[test]
fn a_rule_holds_whatever_flows_come_go_and_pause() {
    for seed in 100..120 {
        let mut site = Site::new(seed, vec![rule(100 * MB)]);
        site.start(0, flow("0", 1), LINE);
        for step in 1..60 {
            let choice = site.random.u8(..4);
            let ids: Vec<u64> = site.senders.keys().map(|id| id.0).collect();
            let any = ids[site.random.usize(..ids.len())];
            match choice {
                0 if ids.len() < 12 => {
                    let job = site.random.u8(..4).to_string();
                    let host = site.random.u8(1..9);
                    site.start(step, flow(&job, host), LINE);
                }
                1 if ids.len() > 1 => site.stop(any),
                2 => site.offer(any, site.random.clone().f64() * 60.0),
                _ => site.offer(any, LINE),
            }
            let seconds = site.random.u64(1..4);
            site.run(seconds);
        }
        let highest = site.highest();
        assert!(highest <= 103.0, "seed {seed}: {highest:.2} MB/s over ten seconds");
    }
}

#[test]
fn the_lowest_matching_rule_governs_in_both_directions_and_restores_are_free() {
    let mut named = rule(50 * MB);
    named.target = vec!["192.0.2.1".parse().unwrap()];
    let rules = TrafficRules { site_bytes_per_second_max: None, rules: vec![rule(80 * MB), named] };
    let now = Timestamp::UNIX_EPOCH;
    let one = |flow: Flow| {
        let flows = BTreeMap::from([(FlowId(1), flow)]);
        shares(now, &rules, &BTreeMap::new(), &flows, &BTreeMap::new())[&FlowId(1)]
    };
    assert_eq!(one(flow("a", 1)), Some(50 * MB));
    let back = flow("a", 1);
    let back = Flow { source: back.target, target: back.source, ..back };
    assert_eq!(one(back), Some(50 * MB));
    assert_eq!(one(Flow { target: "192.0.2.9".parse().unwrap(), ..flow("a", 1) }), Some(80 * MB));
    assert_eq!(one(Flow { restore: true, ..flow("a", 1) }), None);
    let own = Flow { restore: true, bytes_per_second_max: Some(7), ..flow("a", 1) };
    assert_eq!(one(own), Some(7));
    let outside = Flow { source: "172.16.0.1".parse().unwrap(), ..flow("a", 1) };
    assert_eq!(one(outside), None);
}

#[test]
fn a_jobs_limit_holds_over_rules_and_a_sites_over_all() {
    let near_rule = TrafficRule { weight: 3, ..rule(80 * MB) };
    let far = TrafficRule { source: vec!["172.16.0.0/12".parse().unwrap()], ..rule(60 * MB) };
    let mut rules = TrafficRules { site_bytes_per_second_max: None, rules: vec![near_rule, far] };
    let away = Flow { source: "172.16.0.1".parse().unwrap(), ..flow("a", 1) };
    let flows = BTreeMap::from([(FlowId(1), flow("a", 1)), (FlowId(2), away)]);
    let limited = JobLimit { bytes_per_second_max: Some(30 * MB), weight: 1 };
    let ask = |rules: &TrafficRules, limit: JobLimit, wants: &BTreeMap<FlowId, Demand>| {
        let jobs = BTreeMap::from([("a".into(), limit)]);
        let given = shares(Timestamp::UNIX_EPOCH, rules, &jobs, &flows, wants);
        given.values().map(|share| share.unwrap_or(0) / MB).collect::<Vec<u64>>()
    };
    let hungry = BTreeMap::new();
    assert_eq!(ask(&rules, limited, &hungry), [15, 15]);
    let first_idle = BTreeMap::from([(FlowId(1), Demand::Wants(5 * MB))]);
    assert_eq!(ask(&rules, limited, &first_idle), [5, 25]);
    rules.site_bytes_per_second_max = Some(100 * MB);
    assert_eq!(ask(&rules, JobLimit::default(), &hungry), [75, 25]);
}
