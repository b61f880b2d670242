//! The throttle: hands traffic rules and jobs' rates out to running tasks, and guards datastores.
//!
//! In: flows that begin, their movers' numbers, rules and jobs of the database. Out: a rate for each
//! task's mover, told when it changes: at once when a flow begins or ends, else every second, so that
//! a changed rule acts, and what one flow does not use goes to the others. Movers enforce.
//!
//! The latency guard is off unless the setting `latency_guard` gives its limits: what a proxy that
//! reads a datastore itself (direct, hotadd) waits for a read is what it goes by.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gantry_common::failure::Failure;
use gantry_common::work::DiskProgress;
use gantry_database::model::{Id, Job, Severity, TrafficRule};
use gantry_database::{Database, Page};
use gantry_scheduler::traffic::{FlowId, TrafficRules};
use gantry_scheduler::{DatastoreName, GuardState, JobName, LatencyGuard, LatencyLimits};

use self::flows::Flows;
use super::clock::Clock;
use super::{Parts, times};
use crate::fleet::Fleet;

pub mod flows;

pub use self::flows::FlowFacts;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Rules that are read.
const RULES_MAX: u32 = 1000;
/// Setting with the latency guard's limits: `{"stop_ms": 20, "throttle_ms": 30}`.
const GUARD_SETTING: &str = "latency_guard";
/// How long a repository's name may take to be resolved.
const RESOLVED_WITHIN: Duration = Duration::from_secs(2);

/// The throttle. Cloning is cheap.
#[derive(Clone)]
pub struct Traffic {
    flows: Arc<Mutex<Flows>>,
    fleet: Fleet,
    clock: Clock,
    began: Instant,
}

/// A flow; it ends when this is dropped.
pub struct FlowHandle {
    traffic: Traffic,
    id: FlowId,
}

impl Traffic {
    /// Without a flow.
    pub fn new(fleet: Fleet, clock: Clock) -> Traffic {
        Traffic { flows: Arc::default(), fleet, clock, began: Instant::now() }
    }

    /// A task begins to send; its mover is told its share.
    pub fn begin(&self, facts: FlowFacts) -> FlowHandle {
        let mut flows = self.flows();
        let id = flows.begin(facts, self.began.elapsed());
        self.tell(&mut flows);
        FlowHandle { traffic: self.clone(), id }
    }

    fn flows(&self) -> MutexGuard<'_, Flows> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, flows: &mut Flows) {
        for (task, share) in flows.shares(self.clock.now(), self.began.elapsed()) {
            self.fleet.set_rate(task, share);
        }
    }

    /// Reads rules and jobs anew and tells what follows: at the start, then every second while
    /// something is sent.
    ///
    /// # Errors
    /// Of the database.
    pub async fn refresh(&self, database: &Database) -> Result<(), Failure> {
        let rules = database.list::<TrafficRule>(&Page::first(RULES_MAX)).await?;
        let rules = rules.into_iter().filter_map(|stored| scheduled(&stored.value)).collect();
        let mut rates: BTreeMap<JobName, Option<u64>> = BTreeMap::new();
        let jobs = self.flows().jobs();
        for job in jobs {
            let Ok(id) = job.as_str().parse::<Id>() else { continue };
            // A job that is gone keeps the rate that its session began with.
            if let Ok(stored) = database.get::<Job>(id).await {
                rates.insert(job, stored.value.rate_bytes_per_second);
            }
        }
        let mut flows = self.flows();
        flows.set_rules(TrafficRules { site_bytes_per_second_max: None, rules }, &rates);
        self.tell(&mut flows);
        Ok(())
    }
}

impl FlowHandle {
    /// The mover's numbers.
    pub fn progress(&self, disks: &[DiskProgress]) {
        let at = self.traffic.began.elapsed();
        self.traffic.flows().progress(self.id, disks, at);
    }
}

impl Drop for FlowHandle {
    fn drop(&mut self) {
        let mut flows = self.traffic.flows();
        flows.end(self.id);
        self.traffic.tell(&mut flows);
    }
}

/// A rule as the scheduler takes it; nothing of one whose zone is none, which is told.
fn scheduled(rule: &TrafficRule) -> Option<gantry_scheduler::traffic::TrafficRule> {
    let windows = match times::windows(&rule.windows, &rule.time_zone) {
        Ok(windows) => windows,
        Err(failure) => {
            tracing::error!("traffic rule {} does not hold: {failure}", rule.name);
            return None;
        }
    };
    // Both kinds of range have the same text form.
    let ranges = |ranges: &[gantry_database::model::NetworkRange]| {
        ranges.iter().filter_map(|range| range.to_string().parse().ok()).collect()
    };
    Some(gantry_scheduler::traffic::TrafficRule {
        name: rule.name.clone(),
        source: ranges(&rule.sources),
        target: ranges(&rule.targets),
        windows,
        bytes_per_second_max: Some(rule.rate_bytes_per_second),
        weight: rule.weight,
        restores: false,
        enabled: rule.enabled,
    })
}

/// Where a repository's `gantry://HOST:PORT` leads; of several addresses the first. A name that
/// cannot be resolved is where its mover came from.
pub async fn target_address(address: &str, mover: Option<IpAddr>) -> Option<IpAddr> {
    let host = address.strip_prefix("gantry://").unwrap_or(address);
    let found = tokio::time::timeout(RESOLVED_WITHIN, tokio::net::lookup_host(host)).await;
    let resolved = found.ok().and_then(Result::ok).and_then(|mut all| all.next());
    resolved.map(|address| address.ip().to_canonical()).or(mover)
}

/// Looks every second for as long as gantryd runs.
pub(super) async fn keep(parts: Parts) {
    let mut guards = Guards::default();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // What is idle costs nothing; the first flow of a night finds the rules in time all the same.
        if let Err(failure) = parts.traffic.refresh(&parts.database).await {
            tracing::warn!("the traffic rules stay as they were: {failure}");
        }
        if let Err(failure) = guards.look(&parts).await {
            tracing::warn!("the latency guard stays as it was: {failure}");
        }
    }
}

/// The guards of all datastores that are read.
#[derive(Default)]
struct Guards {
    limits: Option<LatencyLimits>,
    guards: BTreeMap<DatastoreName, (LatencyGuard, GuardState, Duration)>,
}

impl Guards {
    async fn look(&mut self, parts: &Parts) -> Result<(), Failure> {
        let setting = parts.database.setting(GUARD_SETTING).await?;
        let limits = setting.and_then(|setting| limits(&setting.value));
        let latencies = parts.traffic.flows().latencies();
        if limits != self.limits {
            self.release(parts);
            self.limits = limits;
        }
        let Some(limits) = &self.limits else { return Ok(()) };
        let now = parts.traffic.began.elapsed();
        for (name, latency_ms) in latencies {
            let new = || (LatencyGuard::new(limits.clone()), GuardState::Ok, now);
            self.guards.entry(name).or_insert_with(new).0.sample(now, latency_ms);
        }
        for (name, (guard, held, since)) in &mut self.guards {
            let state = guard.state(now);
            let goes_on = state == GuardState::Throttle
                && *held == state
                && now.saturating_sub(*since) >= limits.hold;
            if state != *held || goes_on {
                act(parts, name, state, guard.level_ms().unwrap_or(0.0));
                (*held, *since) = (state, now);
            }
        }
        Ok(())
    }

    fn release(&mut self, parts: &Parts) {
        for (name, (_, held, _)) in std::mem::take(&mut self.guards) {
            if held != GuardState::Ok {
                act(parts, &name, GuardState::Ok, 0.0);
            }
        }
    }
}

/// Carries out what a guard says, and tells the sessions that read the datastore.
fn act(parts: &Parts, name: &DatastoreName, state: GuardState, level_ms: f64) {
    parts.dispatcher.set_guard(name, state);
    let sessions = {
        let mut flows = parts.traffic.flows();
        flows.slow_down(name, state == GuardState::Throttle);
        parts.traffic.tell(&mut flows);
        flows.sessions_on(name)
    };
    let what = match state {
        GuardState::Ok => "is no longer guarded: tasks begin as usual",
        GuardState::StopAssigning => "answers slowly: it gets no further task for now",
        GuardState::Throttle => "answers very slowly: what reads it is slowed down by half",
    };
    let text = format!("datastore {name} {what} (reads take {level_ms:.0} ms)");
    tracing::warn!("{text}");
    sessions.into_iter().for_each(|session| parts.say(session, Severity::Warning, &text));
}

/// The guard's limits as the setting gives them; nothing if they make no sense, which is as off.
fn limits(value: &serde_json::Value) -> Option<LatencyLimits> {
    let of = |name: &str| value[name].as_f64().filter(|ms| ms.is_finite() && *ms > 0.0);
    let (stop_ms, throttle_ms) = (of("stop_ms")?, of("throttle_ms")?);
    let limits = LatencyLimits { stop_ms, throttle_ms, ..LatencyLimits::default() };
    (throttle_ms >= stop_ms).then_some(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_the_database_means_the_same_to_the_scheduler() {
        let text = serde_json::json!({
            "id": Id::draw(1), "name": "wan", "sources": ["10.1.2.3", "10.2.0.0/16"],
            "targets": ["fd00::/8"], "rate_bytes_per_second": 7, "time_zone": "Europe/Berlin",
            "windows": [{ "from": "08:00", "to": "18:00" }], "weight": 3,
        });
        let rule: TrafficRule = serde_json::from_value(text).unwrap();
        let found = scheduled(&rule).unwrap();
        let (inside, outside) = ("10.2.255.1".parse().unwrap(), "10.1.2.4".parse().unwrap());
        let (target, noon) = ("fd00::1".parse().unwrap(), "2026-07-06T10:00:00Z".parse().unwrap());
        assert!(found.matches(noon, inside, target, false));
        assert!(!found.matches(noon, outside, target, false));
        assert!(!found.matches("2026-07-06T17:00:00Z".parse().unwrap(), inside, target, false));
        assert_eq!((found.bytes_per_second_max, found.weight), (Some(7), 3));
        assert!(scheduled(&TrafficRule { time_zone: "Mars".into(), ..rule }).is_none());
    }

    #[test]
    fn the_guard_is_off_unless_its_limits_make_sense() {
        let of = |text: &str| limits(&serde_json::from_str(text).unwrap());
        assert!(of(r#"{"stop_ms": 20, "throttle_ms": 30}"#).is_some());
        for nonsense in ["null", "{}", r#"{"stop_ms": 30, "throttle_ms": 20}"#, r#"{"stop_ms": 0}"#]
        {
            assert!(of(nonsense).is_none(), "{nonsense}");
        }
    }

    #[tokio::test]
    async fn a_repository_is_where_its_address_leads() {
        let own = Some(IpAddr::from([10, 0, 0, 1]));
        let found = target_address("gantry://127.0.0.1:9440", own).await;
        assert_eq!(found, Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(target_address("gantry://no port", own).await, own);
    }
}
