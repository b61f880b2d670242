//! One simulated night: events in the order of time, and books to check the scheduler against.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gantry_scheduler::{
    Assignment, DatastoreName, Decision, GuardState, ProxyName, Scheduler, SessionVm, TaskId,
    VmName,
};

use super::estate::{Estate, Shape, work_ms};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Queue(usize),
    SnapshotMade(SessionVm),
    SnapshotGone(SessionVm),
    /// With the attempt, so that what a loss interrupted does not end.
    TaskEnds(TaskId, u32),
    RoadBlocked(TaskId, u32),
    ProxyDies(usize),
    ProxyMissed(usize),
    ProxyReturns(usize),
    Guard(usize, bool),
}

struct Task {
    left_ms: u64,
    attempt: u32,
    running: Option<(Assignment, u64)>,
    ended: bool,
}

struct Machine {
    tasks: Vec<TaskId>,
    datastore: DatastoreName,
    longest_ms: u64,
    asked_ms: u64,
}

/// What a night came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub makespan_ms: u64,
    pub ended: usize,
    pub call_times: Vec<Duration>,
    pub losses: u64,
    pub resumed: u64,
    /// Time that snapshots stood over the time of their longest disks.
    pub snapshot_stretch: f64,
    /// Every decision, to compare nights.
    pub trace: u64,
}

/// Time that this thread had a processor: the machine that tests run on is shared.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

pub struct Night<'a> {
    estate: &'a Estate,
    random: fastrand::Rng,
    scheduler: Scheduler,
    events: BTreeSet<(u64, u64, Event)>,
    number: u64,
    now_ms: u64,
    tasks: BTreeMap<TaskId, Task>,
    machines: BTreeMap<SessionVm, Machine>,
    open: BTreeMap<VmName, SessionVm>,
    dead: BTreeSet<ProxyName>,
    stood_ms: u64,
    needed_ms: u64,
    outcome: Outcome,
}

impl<'a> Night<'a> {
    pub fn new(estate: &'a Estate) -> Night<'a> {
        let mut scheduler = Scheduler::new();
        estate.proxies.iter().for_each(|proxy| scheduler.set_proxy(proxy.clone()));
        estate.repositories.iter().for_each(|one| scheduler.set_repository(one.clone()));
        estate.datastores.iter().for_each(|one| scheduler.set_datastore(one.clone()));
        let mut night = Night {
            estate,
            random: fastrand::Rng::with_seed(estate.seed ^ 0x6e69_6768_7400),
            scheduler,
            events: BTreeSet::new(),
            number: 0,
            now_ms: 0,
            tasks: BTreeMap::new(),
            machines: BTreeMap::new(),
            open: BTreeMap::new(),
            dead: BTreeSet::new(),
            stood_ms: 0,
            needed_ms: 0,
            outcome: Outcome::default(),
        };
        for (index, (at, _)) in estate.requests.iter().enumerate() {
            night.at(at.as_millis() as u64, Event::Queue(index));
        }
        if estate.shape == Shape::Losses {
            (0..estate.proxies.len()).for_each(|proxy| night.plan_loss(proxy));
            (0..estate.datastores.len()).for_each(|datastore| night.plan_guard(datastore, true));
        }
        night
    }

    fn at(&mut self, at_ms: u64, event: Event) {
        self.number += 1;
        self.events.insert((at_ms, self.number, event));
    }

    fn exponential_ms(&mut self, mean_ms: f64) -> u64 {
        (-mean_ms * (1.0 - self.random.f64()).ln()) as u64
    }

    fn plan_loss(&mut self, proxy: usize) {
        let at_ms = self.now_ms + self.exponential_ms(7_200_000.0);
        self.at(at_ms, Event::ProxyDies(proxy));
    }

    fn plan_guard(&mut self, datastore: usize, slow: bool) {
        let mean_ms = if slow { 600_000.0 } else { 300_000.0 };
        let at_ms = self.now_ms + self.exponential_ms(mean_ms);
        self.at(at_ms, Event::Guard(datastore, slow));
    }

    pub fn run(mut self) -> Outcome {
        while self.outcome.ended < self.estate.tasks() || !self.scheduler.is_idle() {
            let Some((at_ms, _, event)) = self.events.pop_first() else { break };
            self.now_ms = at_ms;
            self.happen(event);
            // What happens at one instant is one step for gantryd too.
            while self.events.first().is_some_and(|(next_ms, _, _)| *next_ms == at_ms) {
                let Some((_, _, event)) = self.events.pop_first() else { break };
                self.happen(event);
            }
            self.decide();
            self.check_books();
        }
        assert!(self.scheduler.is_idle(), "{} machines are left", self.scheduler.machines());
        for proxy in &self.estate.proxies {
            assert_eq!(self.scheduler.proxy_slots(&proxy.name), Some((0, proxy.slots)));
        }
        self.outcome.snapshot_stretch = self.stood_ms as f64 / self.needed_ms.max(1) as f64;
        self.outcome
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Queue(index) => self.queue(index),
            Event::SnapshotMade(key) => assert!(self.scheduler.snapshot_opened(&key)),
            Event::SnapshotGone(key) => {
                assert!(self.scheduler.snapshot_removed(&key));
                assert_eq!(self.open.remove(&key.vm), Some(key));
            }
            Event::TaskEnds(task, attempt) => self.end_task(task, attempt),
            Event::RoadBlocked(task, attempt) => {
                let state = self.tasks.get_mut(&task).expect("a task");
                if state.attempt == attempt && state.running.take().is_some() {
                    assert!(self.scheduler.road_failed(task));
                }
            }
            Event::ProxyDies(proxy) => {
                self.outcome.losses += 1;
                self.stop_tasks_of(proxy);
                self.at(self.now_ms + 30_000, Event::ProxyMissed(proxy));
                self.at(self.now_ms + 600_000, Event::ProxyReturns(proxy));
            }
            Event::ProxyMissed(proxy) => self.miss(proxy),
            Event::ProxyReturns(proxy) => {
                let name = self.estate.proxies[proxy].name.clone();
                self.dead.remove(&name);
                assert!(self.scheduler.proxy_back(&name));
                self.plan_loss(proxy);
            }
            Event::Guard(datastore, slow) => {
                let state = if slow { GuardState::StopAssigning } else { GuardState::Ok };
                self.scheduler.set_guard(&self.estate.datastores[datastore].name, state);
                self.plan_guard(datastore, !slow);
            }
        }
    }

    fn queue(&mut self, index: usize) {
        let (at, request) = &self.estate.requests[index];
        let key = SessionVm { session: request.session.clone(), vm: request.vm.clone() };
        for disk in &request.disks {
            let left_ms = work_ms(disk.read_bytes);
            let task = Task { left_ms, attempt: 0, running: None, ended: false };
            self.tasks.insert(disk.task, task);
        }
        let tasks: Vec<TaskId> = request.disks.iter().map(|disk| disk.task).collect();
        let longest_ms = tasks.iter().map(|task| self.tasks[task].left_ms).max().unwrap_or(0);
        let datastore = request.disks[0].datastore.clone();
        self.machines.insert(key, Machine { tasks, datastore, longest_ms, asked_ms: 0 });
        self.scheduler.add_vm(request.clone(), *at).expect("queued");
    }

    fn end_task(&mut self, task: TaskId, attempt: u32) {
        let state = self.tasks.get_mut(&task).expect("a task");
        if state.attempt != attempt {
            return;
        }
        let Some((assignment, _)) = state.running.take() else { return };
        state.ended = true;
        self.outcome.ended += 1;
        self.outcome.makespan_ms = self.now_ms;
        let fails = self.estate.shape == Shape::Losses && self.random.u8(..200) == 0;
        assert!(if fails { self.scheduler.failed(task) } else { self.scheduler.finished(task) });
        let machine = &self.machines[&assignment.machine];
        if machine.tasks.iter().all(|task| self.tasks[task].ended) {
            self.stood_ms += self.now_ms - machine.asked_ms;
            self.needed_ms += machine.longest_ms;
            self.at(self.now_ms + 5_000, Event::SnapshotGone(assignment.machine));
        }
    }

    /// The mover is dead; gantryd does not know yet. What it did until now was durable.
    fn stop_tasks_of(&mut self, proxy: usize) {
        let name = &self.estate.proxies[proxy].name;
        for task in self.tasks.values_mut() {
            if let Some((assignment, since_ms)) = &task.running
                && assignment.proxy == *name
            {
                task.left_ms -= (self.now_ms - since_ms).min(task.left_ms);
                task.attempt += 1;
            }
        }
    }

    fn miss(&mut self, proxy: usize) {
        let name = self.estate.proxies[proxy].name.clone();
        let again = self.scheduler.proxy_lost(&name);
        let mut expected = Vec::new();
        for (id, task) in &mut self.tasks {
            if task.running.as_ref().is_some_and(|(assignment, _)| assignment.proxy == name) {
                // Also what was started on the dead proxy before it was missed.
                task.attempt += 1;
                task.running = None;
                expected.push(*id);
            }
        }
        assert_eq!(BTreeSet::from_iter(again), BTreeSet::from_iter(expected));
        self.dead.insert(name);
    }

    fn decide(&mut self) {
        let now = Duration::from_millis(self.now_ms);
        let start = cpu_time();
        let decisions = self.scheduler.next(now);
        let took = cpu_time().saturating_sub(start);
        self.outcome.call_times.push(took);
        for decision in decisions {
            let text = format!("{} {decision:?}", self.now_ms);
            let mixed = text.bytes().fold(self.outcome.trace, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            self.outcome.trace = mixed;
            match decision {
                Decision::SnapshotNow { machine, .. } => self.make_snapshot(machine),
                Decision::Assign(assignment) => self.start(assignment),
                Decision::Hold { reason, .. } => {
                    assert!(!reason.to_string().is_empty() && !reason.is_hopeless(), "{reason}");
                }
            }
        }
    }

    fn make_snapshot(&mut self, key: SessionVm) {
        let before = self.open.insert(key.vm.clone(), key.clone());
        assert_eq!(before, None, "one session a machine");
        self.machines.get_mut(&key).expect("a machine").asked_ms = self.now_ms;
        let takes_ms = self.random.u64(2_000..6_000);
        self.at(self.now_ms + takes_ms, Event::SnapshotMade(key));
    }

    fn start(&mut self, assignment: Assignment) {
        assert!(!self.dead.contains(&assignment.proxy), "{} is lost", assignment.proxy);
        let blocked = self.estate.shape == Shape::Losses && self.random.u8(..100) == 0;
        let task = self.tasks.get_mut(&assignment.task).expect("a task");
        assert!(task.running.is_none() && !task.ended, "{} runs once", assignment.task);
        self.outcome.resumed += u64::from(assignment.resumed);
        task.attempt += 1;
        let (id, attempt, left_ms) = (assignment.task, task.attempt, task.left_ms);
        task.running = Some((assignment, self.now_ms));
        let (at_ms, event) = if blocked {
            (self.now_ms + 3_000, Event::RoadBlocked(id, attempt))
        } else {
            (self.now_ms + left_ms, Event::TaskEnds(id, attempt))
        };
        self.at(at_ms, event);
    }

    /// Counted anew from what runs, not from what the scheduler says.
    fn check_books(&self) {
        let mut proxies: BTreeMap<&str, u32> = BTreeMap::new();
        let mut repositories: BTreeMap<&str, u32> = BTreeMap::new();
        for (assignment, _) in self.tasks.values().filter_map(|task| task.running.as_ref()) {
            *proxies.entry(assignment.proxy.as_str()).or_default() += 1;
            *repositories.entry(assignment.repository.as_str()).or_default() += 1;
            assert_eq!(self.open.get(&assignment.machine.vm), Some(&assignment.machine));
        }
        for proxy in &self.estate.proxies {
            assert!(proxies.get(proxy.name.as_str()).is_none_or(|used| *used <= proxy.slots));
        }
        for one in &self.estate.repositories {
            assert!(repositories.get(one.name.as_str()).is_none_or(|used| *used <= one.slots));
        }
        let mut datastores: BTreeMap<&str, u32> = BTreeMap::new();
        for key in self.open.values() {
            *datastores.entry(self.datastore_of(key)).or_default() += 1;
        }
        for datastore in &self.estate.datastores {
            let open = datastores.get(datastore.name.as_str()).copied().unwrap_or(0);
            assert!(open <= datastore.snapshots_max, "{} has {open}", datastore.name);
        }
    }

    fn datastore_of(&self, key: &SessionVm) -> &str {
        self.machines[key].datastore.as_str()
    }
}
