//! The books of all flows: who sends, what each did with its share, what each was told. Pure.
//!
//! In: flows that begin and end, their movers' numbers, rules and jobs' limits, instants. Out: the
//! shares that have changed, the datastores' read latencies. `at` is a time since any fixed moment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use gantry_common::ids::TaskId;
use gantry_common::work::DiskProgress;
use gantry_database::model::Id;
use gantry_scheduler::traffic::{
    Demand, Flow, FlowId, JobLimit, Measured, Share, TrafficRules, demand, shares,
};
use gantry_scheduler::{DatastoreName, JobName};
use jiff::Timestamp;

/// Numbers closer together than this say nothing about a rate.
const SAMPLE_MIN: Duration = Duration::from_millis(500);
/// A flow that has shown nothing for so long since it began is no longer taken for a hungry one.
const NEW_WITHIN: Duration = Duration::from_secs(5);
/// A change of a share by less than this part of it is not worth a message.
const CHANGE_MIN: u64 = 100;
/// What a flow on a slow datastore is left at least: a block a second.
const SLOWED_MIN: u64 = 1 << 20;

/// What is known of a flow from its beginning.
#[derive(Debug, Clone)]
pub struct FlowFacts {
    /// The mover's task.
    pub task: TaskId,
    /// Its session.
    pub session: Id,
    /// Its job, by id; a restore's is its session.
    pub job: JobName,
    /// The limit that the job had when the session began.
    pub job_rate: Option<u64>,
    /// Address of the mover that sends.
    pub source: IpAddr,
    /// Address of the mover that receives.
    pub target: IpAddr,
    /// It is a restore.
    pub restore: bool,
    /// The datastore that it reads itself, so that its reads tell how that fares.
    pub datastore: Option<DatastoreName>,
}

#[derive(Debug)]
struct Entry {
    facts: FlowFacts,
    flow: Flow,
    began: Duration,
    last: Option<(Duration, DiskProgress)>,
    rate: u64,
    demand: Option<Demand>,
    told: Option<Share>,
    /// Reads and their microseconds since the last look at latencies.
    reads: (u64, u64),
}

/// All flows.
#[derive(Debug, Default)]
pub struct Flows {
    entries: BTreeMap<FlowId, Entry>,
    rules: TrafficRules,
    jobs: BTreeMap<JobName, JobLimit>,
    next: u64,
}

fn limit(bytes_per_second_max: Option<u64>) -> JobLimit {
    JobLimit { bytes_per_second_max, ..JobLimit::default() }
}

/// The sum of a task's disks.
fn sum(disks: &[DiskProgress]) -> DiskProgress {
    disks.iter().fold(DiskProgress::default(), |mut sum, disk| {
        sum.sent_bytes = sum.sent_bytes.saturating_add(disk.sent_bytes);
        sum.reads = sum.reads.saturating_add(disk.reads);
        sum.reads_us = sum.reads_us.saturating_add(disk.reads_us);
        // Of the whole work, and said with each disk.
        sum.held_back_ms = sum.held_back_ms.max(disk.held_back_ms);
        sum
    })
}

impl Flows {
    /// A flow begins.
    pub fn begin(&mut self, facts: FlowFacts, at: Duration) -> FlowId {
        self.next += 1;
        let id = FlowId(self.next);
        let flow = Flow {
            job: facts.job.clone(),
            source: facts.source,
            target: facts.target,
            restore: facts.restore,
            bytes_per_second_max: None,
        };
        self.jobs.entry(facts.job.clone()).or_insert_with(|| limit(facts.job_rate));
        let (last, demand, told) = (None, None, None);
        let entry = Entry { facts, flow, began: at, last, rate: 0, demand, told, reads: (0, 0) };
        self.entries.insert(id, entry);
        id
    }

    /// A flow has ended.
    pub fn end(&mut self, id: FlowId) {
        let Some(ended) = self.entries.remove(&id) else { return };
        if self.entries.values().all(|entry| entry.facts.job != ended.facts.job) {
            self.jobs.remove(&ended.facts.job);
        }
    }

    /// Nobody sends.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Jobs that send.
    pub fn jobs(&self) -> Vec<JobName> {
        self.jobs.keys().cloned().collect()
    }

    /// Rules, and jobs' limits, as they are now.
    pub fn set_rules(&mut self, rules: TrafficRules, jobs: &BTreeMap<JobName, Option<u64>>) {
        self.rules = rules;
        for (job, rate) in jobs {
            if let Some(held) = self.jobs.get_mut(job) {
                *held = limit(*rate);
            }
        }
    }

    /// A mover's numbers.
    pub fn progress(&mut self, id: FlowId, disks: &[DiskProgress], at: Duration) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let new = sum(disks);
        let Some((before_at, before)) = &entry.last else {
            entry.last = Some((at, new));
            return;
        };
        let passed = at.saturating_sub(*before_at);
        if passed < SAMPLE_MIN {
            return;
        }
        let passed_ms = passed.as_millis() as u64;
        let sent = new.sent_bytes.saturating_sub(before.sent_bytes);
        let held_ms = new.held_back_ms.saturating_sub(before.held_back_ms);
        let bytes_per_second = (u128::from(sent) * 1000 / u128::from(passed_ms)) as u64;
        let throttled = held_ms.saturating_mul(4) >= passed_ms;
        let measured = Measured { bytes_per_second, throttled };
        entry.rate = bytes_per_second;
        entry.demand = Some(demand(measured, entry.told.flatten()));
        entry.reads.0 += new.reads.saturating_sub(before.reads);
        entry.reads.1 += new.reads_us.saturating_sub(before.reads_us);
        entry.last = Some((at, new));
    }

    /// The shares that changed and are to be told.
    pub fn shares(&mut self, now: Timestamp, at: Duration) -> Vec<(TaskId, Share)> {
        let flows = self.entries.iter().map(|(id, entry)| (*id, entry.flow.clone())).collect();
        let wanted = |(id, entry): (&FlowId, &Entry)| {
            let is_quiet = at.saturating_sub(entry.began) > NEW_WITHIN;
            let quiet = is_quiet.then_some(Demand::Wants(SLOWED_MIN));
            Some((*id, entry.demand.or(quiet)?))
        };
        let demands = self.entries.iter().filter_map(wanted).collect();
        let shares = shares(now, &self.rules, &self.jobs, &flows, &demands);
        let mut changed = Vec::new();
        for (id, share) in shares {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            let is_news = match (entry.told, share) {
                (Some(Some(told)), Some(share)) => told.abs_diff(share) > told / CHANGE_MIN,
                (told, share) => told != Some(share),
            };
            if is_news {
                entry.told = Some(share);
                changed.push((entry.facts.task, share));
            }
        }
        changed
    }

    /// Mean read latency of each datastore since the last look, in milliseconds; only of those that
    /// were read.
    pub fn latencies(&mut self) -> BTreeMap<DatastoreName, f64> {
        let mut sums: BTreeMap<DatastoreName, (u64, u64)> = BTreeMap::new();
        for entry in self.entries.values_mut() {
            let (reads, us) = std::mem::take(&mut entry.reads);
            if let Some(name) = entry.facts.datastore.as_ref().filter(|_| reads > 0) {
                let sum = sums.entry(name.clone()).or_default();
                *sum = (sum.0 + reads, sum.1 + us);
            }
        }
        sums.into_iter().map(|(name, (reads, us))| (name, us as f64 / reads as f64 / 1e3)).collect()
    }

    /// Sessions that read this datastore.
    pub fn sessions_on(&self, datastore: &DatastoreName) -> Vec<Id> {
        let on_it = self.on(datastore);
        let mut sessions: Vec<Id> = on_it.map(|entry| entry.facts.session).collect();
        sessions.sort();
        sessions.dedup();
        sessions
    }

    /// Slows what reads this datastore down to half of what it sends, or no longer.
    pub fn slow_down(&mut self, datastore: &DatastoreName, slower: bool) {
        let on_it =
            self.entries.values_mut().filter(|one| one.facts.datastore.as_ref() == Some(datastore));
        for entry in on_it {
            let now = entry.flow.bytes_per_second_max.unwrap_or(u64::MAX).min(entry.rate);
            entry.flow.bytes_per_second_max = slower.then(|| (now / 2).max(SLOWED_MIN));
        }
    }

    fn on<'a>(&'a self, datastore: &'a DatastoreName) -> impl Iterator<Item = &'a Entry> {
        self.entries.values().filter(|one| one.facts.datastore.as_ref() == Some(datastore))
    }
}

#[cfg(test)]
mod tests;
