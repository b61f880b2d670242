//! A rate for each flow: site > rule > job > task.
//!
//! What a flow wants is known only from what it does: one that was made to wait, or used
//! practically all of its share, wants all it can get; another wants a sixteenth more than it used. So the rest of an idle
//! flow's share goes to others at the next look, and comes back with the one after it stirs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::TrafficRules;
use super::fill::{Taker, fill};
use crate::names::JobName;

/// What an idle flow is left, so that it can be seen to stir: a block a second.
const IDLE_BYTES_PER_SECOND: u64 = 1 << 20;

/// One task's connection between two movers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FlowId(pub u64);

/// What is known of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The job whose session it belongs to: a job has one session at a time.
    pub job: JobName,
    /// Address of the mover that sends.
    pub source: IpAddr,
    /// Address of the mover that receives; the same host is no exception.
    pub target: IpAddr,
    /// It is a restore.
    pub restore: bool,
    /// Of the task itself: the latency guard's throttle, for one. Wire bytes a second.
    pub bytes_per_second_max: Option<u64>,
}

/// A job's own limit and weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLimit {
    /// For all its flows together, in wire bytes a second.
    pub bytes_per_second_max: Option<u64>,
    /// Its part where a rule is shared between sessions; 0 counts as 1.
    pub weight: u32,
}

impl Default for JobLimit {
    fn default() -> JobLimit {
        JobLimit { bytes_per_second_max: None, weight: 1 }
    }
}

/// What a flow did since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Wire bytes a second that it sent.
    pub bytes_per_second: u64,
    /// The pacer made it wait for a considerable part of the time.
    pub throttled: bool,
}

/// What a flow is taken to want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// All it can get.
    Hungry,
    /// So many wire bytes a second.
    Wants(u64),
}

/// What a flow may send: wire bytes a second, or nothing: without a limit. Never 0.
pub type Share = Option<u64>;

/// What a flow is taken to want, after what it did with its share.
pub fn demand(measured: Measured, given: Share) -> Demand {
    let used = measured.bytes_per_second;
    let nearly_all = given.is_some_and(|given| used >= given - given / 32);
    if measured.throttled || nearly_all {
        return Demand::Hungry;
    }
    Demand::Wants((used + used / 16).max(IDLE_BYTES_PER_SECOND))
}

/// A level of the tree: who shares what is above it.
struct Group {
    flows: Vec<usize>,
    weight: u32,
    max: f64,
}

fn limit(max: Option<u64>) -> f64 {
    max.map_or(f64::INFINITY, |max| max as f64)
}

/// A rate for every flow. One without a demand is new and counts as hungry.
pub fn shares(
    now: Timestamp,
    rules: &TrafficRules,
    jobs: &BTreeMap<JobName, JobLimit>,
    flows: &BTreeMap<FlowId, Flow>,
    demands: &BTreeMap<FlowId, Demand>,
) -> BTreeMap<FlowId, Share> {
    let list: Vec<&Flow> = flows.values().collect();
    let wants = flows.iter().map(|(id, flow)| {
        let wanted = match demands.get(id) {
            None | Some(Demand::Hungry) => f64::INFINITY,
            Some(Demand::Wants(bytes)) => *bytes as f64,
        };
        let max = limit(flow.bytes_per_second_max);
        Taker { weight: 1.0, wants: wanted.min(max), most: max }
    });
    let tree = Tree { rules, jobs, flows: &list, leaves: wants.collect() };
    let rates = tree.site(now);
    let share = |rate: f64| rate.is_finite().then(|| (rate as u64).max(1));
    flows.keys().zip(rates).map(|(id, rate)| (*id, share(rate))).collect()
}

struct Tree<'a> {
    rules: &'a TrafficRules,
    jobs: &'a BTreeMap<JobName, JobLimit>,
    flows: &'a [&'a Flow],
    leaves: Vec<Taker>,
}

impl Tree<'_> {
    /// By rule, each split by job.
    fn site(&self, now: Timestamp) -> Vec<f64> {
        let mut by_rule: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        let mut free = Vec::new();
        for (index, flow) in self.flows.iter().enumerate() {
            match self.rules.governing(now, flow.source, flow.target, flow.restore) {
                None if flow.restore => free.push(index),
                rule => by_rule.entry(rule).or_default().push(index),
            }
        }
        let parts = self.job_parts(&by_rule);
        let mut rates = vec![0.0; self.flows.len()];
        for index in free {
            rates[index] = self.leaves[index].most;
        }
        let groups = by_rule.iter().map(|(rule, flows)| {
            let rule = rule.and_then(|index| self.rules.rules.get(index));
            Group {
                flows: flows.clone(),
                weight: rule.map_or(1, |rule| rule.weight),
                max: limit(rule.and_then(|rule| rule.bytes_per_second_max)),
            }
        });
        let groups: Vec<Group> = groups.collect();
        let places: Vec<Option<usize>> = by_rule.keys().copied().collect();
        let site = limit(self.rules.site_bytes_per_second_max);
        let jobs_of = |at: usize| self.jobs_of(&groups[at], places[at], &parts);
        let takers = (0..groups.len()).map(|at| {
            let jobs: Vec<Taker> = jobs_of(at).iter().map(|job| self.taker(job)).collect();
            together(&jobs, groups[at].weight, groups[at].max)
        });
        let takers: Vec<Taker> = takers.collect();
        for (at, rate) in fill(site, &takers).into_iter().enumerate() {
            self.rule(rate.min(groups[at].max), &jobs_of(at), &mut rates);
        }
        rates
    }

    fn rule(&self, rate: f64, jobs: &[Group], rates: &mut [f64]) {
        let takers: Vec<Taker> = jobs.iter().map(|job| self.taker(job)).collect();
        for (job, rate) in jobs.iter().zip(fill(rate, &takers)) {
            let leaves: Vec<Taker> = job.flows.iter().map(|flow| self.leaves[*flow]).collect();
            for (flow, rate) in job.flows.iter().zip(fill(rate.min(job.max), &leaves)) {
                rates[*flow] = rate;
            }
        }
    }

    fn jobs_of(&self, group: &Group, rule: Option<usize>, parts: &JobParts) -> Vec<Group> {
        let mut by_job: BTreeMap<&JobName, Vec<usize>> = BTreeMap::new();
        for flow in &group.flows {
            by_job.entry(&self.flows[*flow].job).or_default().push(*flow);
        }
        let job = |(name, flows): (&JobName, Vec<usize>)| {
            let own = self.jobs.get(name).copied().unwrap_or_default();
            let part = parts.get(&(name.clone(), rule)).copied();
            let max = part.unwrap_or(limit(own.bytes_per_second_max));
            Group { flows, weight: own.weight, max }
        };
        by_job.into_iter().map(job).collect()
    }

    /// A job's limit, where its flows are under several rules: split by what they want.
    fn job_parts(&self, by_rule: &BTreeMap<Option<usize>, Vec<usize>>) -> JobParts {
        let mut places: BTreeMap<&JobName, BTreeMap<Option<usize>, Vec<Taker>>> = BTreeMap::new();
        for (rule, flows) in by_rule {
            for flow in flows {
                let of_job = places.entry(&self.flows[*flow].job).or_default();
                of_job.entry(*rule).or_default().push(self.leaves[*flow]);
            }
        }
        let mut parts = JobParts::new();
        for (name, places) in places {
            let max = self.jobs.get(name).and_then(|job| job.bytes_per_second_max);
            let takers = places.iter().map(|(rule, leaves)| {
                let rule = rule.and_then(|index| self.rules.rules.get(index));
                let own = limit(rule.and_then(|rule| rule.bytes_per_second_max));
                together(leaves, leaves.len() as u32, own)
            });
            let takers: Vec<Taker> = takers.collect();
            for (rule, part) in places.keys().zip(fill(limit(max), &takers)) {
                parts.insert((name.clone(), *rule), part);
            }
        }
        parts
    }

    fn taker(&self, group: &Group) -> Taker {
        let leaves: Vec<Taker> = group.flows.iter().map(|flow| self.leaves[*flow]).collect();
        together(&leaves, group.weight, group.max)
    }
}

type JobParts = BTreeMap<(JobName, Option<usize>), f64>;

/// What several want together, under a limit.
fn together(takers: &[Taker], weight: u32, max: f64) -> Taker {
    let wants: f64 = takers.iter().map(|taker| taker.wants.min(taker.most)).sum();
    let most: f64 = takers.iter().map(|taker| taker.most).sum();
    Taker { weight: f64::from(weight.max(1)), wants: wants.min(max), most: most.min(max) }
}
