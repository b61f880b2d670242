//! Flows under a clock of their own: seconds pass at once.

use gantry_scheduler::schedule::Windows;
use gantry_scheduler::traffic::TrafficRule;

use super::*;

const MB: u64 = 1_000_000;

fn facts(number: u8, job: &str) -> FlowFacts {
    FlowFacts {
        task: TaskId([number; 16]),
        session: Id([number; 16]),
        job: job.into(),
        job_rate: None,
        source: IpAddr::from([10, 0, 0, number]),
        target: IpAddr::from([10, 9, 0, 1]),
        restore: false,
        datastore: Some("vc/ds".into()),
    }
}

fn rule(rate: u64) -> TrafficRules {
    let rule = TrafficRule {
        name: "wan".into(),
        source: Vec::new(),
        target: Vec::new(),
        windows: Windows::always(),
        bytes_per_second_max: Some(rate),
        weight: 1,
        restores: false,
        enabled: true,
    };
    TrafficRules { site_bytes_per_second_max: None, rules: vec![rule] }
}

/// Movers that obey, seen once a second.
#[derive(Default)]
struct Movers {
    flows: Flows,
    /// Share, what its source can give, and its numbers so far.
    tasks: BTreeMap<TaskId, (FlowId, Share, u64, DiskProgress)>,
    second: u64,
}

impl Movers {
    fn at(&self) -> Duration {
        Duration::from_secs(self.second)
    }

    fn begin(&mut self, facts: FlowFacts, source_rate: u64) {
        let task = facts.task;
        let id = self.flows.begin(facts, self.at());
        self.tasks.insert(task, (id, None, source_rate, DiskProgress::default()));
        self.tell();
    }

    fn tell(&mut self) {
        for (task, share) in self.flows.shares(Timestamp::UNIX_EPOCH, self.at()) {
            if let Some(known) = self.tasks.get_mut(&task) {
                known.1 = share;
            }
        }
    }

    /// A second passes; what each sent in it.
    fn second(&mut self) -> Vec<u64> {
        self.second += 1;
        let at = self.at();
        let mut sent = Vec::new();
        for (id, share, source_rate, numbers) in self.tasks.values_mut() {
            let rate = share.unwrap_or(u64::MAX).min(*source_rate);
            let is_held = share.is_some_and(|share| share < *source_rate);
            numbers.sent_bytes += rate;
            numbers.held_back_ms += if is_held { 700 } else { 0 };
            sent.push(rate);
            self.flows.progress(*id, std::slice::from_ref(numbers), at);
        }
        self.tell();
        sent
    }
}

#[test]
fn two_jobs_share_a_rule_one_alone_has_all_and_a_change_acts_at_once() {
    let mut movers = Movers::default();
    movers.flows.set_rules(rule(100 * MB), &BTreeMap::new());
    movers.begin(facts(1, "a"), 400 * MB);
    assert_eq!(movers.second(), [100 * MB]);
    movers.begin(facts(2, "b"), 400 * MB);
    for _ in 0..5 {
        assert_eq!(movers.second(), [50 * MB, 50 * MB]);
    }
    movers.flows.set_rules(rule(40 * MB), &BTreeMap::new());
    movers.tell();
    assert_eq!(movers.second(), [20 * MB, 20 * MB]);
    let (ended, _) = movers.tasks.pop_first().expect("a task");
    assert_eq!(ended, TaskId([1; 16]));
    movers.flows.end(FlowId(1));
    movers.tell();
    assert_eq!(movers.second(), [40 * MB]);
}

#[test]
fn a_job_s_tasks_share_its_part_and_what_one_cannot_use_goes_to_others() {
    let mut movers = Movers::default();
    movers.flows.set_rules(rule(100 * MB), &BTreeMap::new());
    movers.begin(facts(1, "a"), 400 * MB);
    movers.begin(facts(2, "a"), 400 * MB);
    movers.begin(facts(3, "b"), 10 * MB);
    (0..4).for_each(|_| drop(movers.second()));
    let sent = movers.second();
    assert_eq!(sent[2], 10 * MB);
    let together: u64 = sent.iter().sum();
    assert!(sent[0].abs_diff(sent[1]) < MB && together > 98 * MB, "{sent:?}");
}

#[test]
fn a_job_s_own_rate_holds_for_all_of_it_and_may_change() {
    let mut movers = Movers::default();
    let limited = |number| FlowFacts { job_rate: Some(10 * MB), ..facts(number, "a") };
    movers.begin(limited(1), 400 * MB);
    movers.begin(limited(2), 400 * MB);
    assert_eq!(movers.second(), [5 * MB, 5 * MB]);
    let jobs = BTreeMap::from([("a".into(), None)]);
    movers.flows.set_rules(TrafficRules::default(), &jobs);
    movers.tell();
    assert_eq!(movers.second(), [400 * MB, 400 * MB], "told that there is no limit any more");
    assert_eq!(movers.flows.shares(Timestamp::UNIX_EPOCH, movers.at()), [], "nothing has changed");
}

#[test]
fn latencies_are_means_over_a_datastore_and_a_slow_one_is_slowed() {
    let mut flows = Flows::default();
    let ids = [facts(1, "a"), facts(2, "b")].map(|facts| flows.begin(facts, Duration::ZERO));
    let numbers = |reads, reads_us| DiskProgress {
        reads,
        reads_us,
        sent_bytes: reads << 20,
        ..DiskProgress::default()
    };
    for (id, us) in ids.into_iter().zip([10_000, 50_000]) {
        flows.progress(id, &[numbers(0, 0)], Duration::ZERO);
        flows.progress(id, &[numbers(100, 100 * us)], Duration::from_secs(1));
    }
    assert_eq!(flows.latencies(), BTreeMap::from([("vc/ds".into(), 30.0)]));
    assert_eq!(flows.latencies(), BTreeMap::new(), "each read counts once");
    flows.slow_down(&"vc/ds".into(), true);
    let told = flows.shares(Timestamp::UNIX_EPOCH, Duration::from_secs(1));
    assert!(told.iter().all(|(_, share)| *share == Some(50 << 20)), "{told:?}");
    flows.slow_down(&"vc/ds".into(), false);
    let told = flows.shares(Timestamp::UNIX_EPOCH, Duration::from_secs(2));
    assert!(told.iter().all(|(_, share)| share.is_none()), "{told:?}");
    assert_eq!(flows.sessions_on(&"vc/ds".into()).len(), 2);
}
