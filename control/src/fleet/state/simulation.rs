//! Movers, connections and gantryd itself fail from a seed; every task ends exactly once for its
//! owner, none runs twice, and in the end nobody remembers anything.

use std::collections::VecDeque;

use super::tests::{enrolled, hello};
use super::*;

const MOVERS: u8 = 3;
const SEEDS: u64 = 400;
const STEPS: usize = 1_500;

/// A connection: what is under way in each direction. Either end may be gone before the other.
#[derive(Default)]
struct Wire {
    up: VecDeque<Report>,
    down: VecDeque<Command>,
    mover: usize,
    closed_above: bool,
}

/// A mover: its tasks survive its restart, unless it loses its state folder.
#[derive(Default)]
struct SimMover {
    link: Option<LinkId>,
    tasks: BTreeMap<TaskId, (bool, Option<TaskOutcome>)>,
    /// What came of each task that ever ran here.
    history: BTreeMap<TaskId, Option<TaskOutcome>>,
    forgetful: bool,
}

/// What the owner has written down.
#[derive(Default)]
struct Owner {
    mover: usize,
    ended: Option<TaskOutcome>,
    settled: bool,
}

struct World {
    random: fastrand::Rng,
    now_ms: u64,
    state: FleetState,
    wires: BTreeMap<LinkId, Wire>,
    movers: Vec<SimMover>,
    owners: BTreeMap<TaskId, Owner>,
    links: u64,
    faults: bool,
}

fn id(mover: usize) -> PeerId {
    PeerId([mover as u8 + 1; 32])
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        let forgetful = random.u8(..4) == 0;
        let mover = |_| SimMover { forgetful, ..SimMover::default() };
        World {
            random,
            now_ms: 0,
            state: FleetState::new("gantryd"),
            wires: BTreeMap::new(),
            movers: (0..MOVERS).map(mover).collect(),
            owners: BTreeMap::new(),
            links: 0,
            faults: true,
        }
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.random.u8(..100) < percent
    }

    fn step(&mut self) {
        self.now_ms += self.random.u64(..400);
        let mover = self.random.usize(..self.movers.len());
        match self.random.u8(..16) {
            0..=4 => self.deliver_up(),
            5..=8 => self.deliver_down(mover),
            9 => self.connect(mover),
            10 | 11 => self.work(mover),
            12 => self.want(mover),
            13 => self.settle(),
            14 => self.state.tick(self.now_ms),
            _ if self.faults => self.fail(mover),
            _ => {}
        }
        self.act();
    }

    fn connect(&mut self, mover: usize) {
        if self.movers[mover].link.is_some() {
            return;
        }
        self.links += 1;
        let link = LinkId(self.links);
        self.movers[mover].link = Some(link);
        let standing = |(task, (_, ended)): (&TaskId, &(bool, Option<TaskOutcome>))| TaskStanding {
            task: *task,
            ended: ended.clone(),
        };
        let hello = hello(self.movers[mover].tasks.iter().map(standing).collect());
        self.wires.insert(link, Wire { up: [hello].into(), mover, ..Wire::default() });
        self.state.connected(link, enrolled(id(mover)), self.now_ms);
    }

    /// The oldest report of any connection, also of one that its mover has given up; at times twice.
    fn deliver_up(&mut self) {
        let full: Vec<LinkId> =
            self.wires.iter().filter(|(_, wire)| !wire.up.is_empty()).map(|(id, _)| *id).collect();
        let Some(link) = self.random.choice(full) else { return };
        let again = self.chance(10);
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let Some(report) = wire.up.pop_front() else { return };
        if again && !matches!(report, Report::Hello { .. }) {
            wire.up.push_front(report.clone());
        }
        if !wire.closed_above {
            self.state.received(link, report, self.now_ms);
        }
    }

    fn deliver_down(&mut self, mover: usize) {
        let again = self.chance(10);
        let Some(wire) = self.movers[mover].link.and_then(|link| self.wires.get_mut(&link)) else {
            return;
        };
        let Some(command) = wire.down.pop_front() else {
            if wire.closed_above {
                self.movers[mover].link = None;
            }
            return;
        };
        if again {
            self.obey(mover, command.clone());
        }
        self.obey(mover, command);
    }

    fn obey(&mut self, mover: usize, command: Command) {
        let sim = &mut self.movers[mover];
        match command {
            Command::Start { task, work } => {
                assert_eq!(work, task.0, "its own work");
                if sim.tasks.contains_key(&task) {
                    return;
                }
                let before = sim.history.insert(task, None);
                assert!(before.is_none() || sim.forgetful, "{task} runs twice");
                sim.tasks.insert(task, (false, None));
            }
            Command::Stop { task } => {
                if let Some((stopping, _)) = sim.tasks.get_mut(&task) {
                    *stopping = true;
                }
            }
            Command::Forget { task } => {
                if let Some((_, ended)) = sim.tasks.remove(&task) {
                    assert!(ended.is_some(), "{task} is forgotten while it runs");
                }
            }
            _ => {}
        }
    }

    /// A task goes on, or ends.
    fn work(&mut self, mover: usize) {
        let ends = self.chance(30) || !self.faults;
        let sim = &mut self.movers[mover];
        let running = sim.tasks.iter_mut().filter(|(_, (_, ended))| ended.is_none());
        let running: Vec<_> = running.collect();
        let Some((task, (stopping, ended))) = self.random.choice(running) else { return };
        let report = if ends || *stopping {
            let done = TaskOutcome::Done(task.0.to_vec());
            let outcome = if *stopping { TaskOutcome::Stopped } else { done };
            *ended = Some(outcome.clone());
            sim.history.insert(*task, Some(outcome.clone()));
            Report::Ended { task: *task, outcome }
        } else {
            Report::Progress { task: *task, disks: vec![] }
        };
        if let Some(wire) = sim.link.and_then(|link| self.wires.get_mut(&link)) {
            wire.up.push_back(report);
        }
    }

    /// Owners want something.
    fn want(&mut self, mover: usize) {
        if self.faults && self.chance(40) {
            let task = TaskId(self.random.u128(..).to_le_bytes());
            self.owners.insert(task, Owner { mover, ..Owner::default() });
            // gantryd may die between writing the task down and saying it.
            if self.chance(95) {
                self.state.run(id(mover), task, task.0.to_vec(), vec![], self.now_ms).unwrap();
            } else {
                self.restart_gantryd();
            }
        }
        let open = self.owners.iter().filter(|(_, owner)| owner.ended.is_none());
        let open: Vec<(TaskId, usize)> = open.map(|(task, owner)| (*task, owner.mover)).collect();
        let Some((task, mover)) = self.random.choice(open) else { return };
        match self.random.u8(..10) {
            0 => self.state.stop(task, self.now_ms),
            1 => self.state.set_rate(task, Some(1), self.now_ms),
            2 => {
                self.state.disown(task);
                self.state.adopt(id(mover), task, self.now_ms).unwrap();
            }
            _ => {}
        }
    }

    /// An owner that has written its task's end down lets it be forgotten; orphans whose owner has
    /// its end are forgotten too.
    fn settle(&mut self) {
        let ended = self.owners.iter_mut().filter(|(_, own)| own.ended.is_some() && !own.settled);
        let ended: Vec<_> = ended.collect();
        if let Some((task, owner)) = self.random.choice(ended) {
            owner.settled = true;
            self.state.forget(id(owner.mover), *task, self.now_ms);
        }
        for view in self.state.views() {
            for orphan in view.orphans {
                if self.owners.get(&orphan).is_none_or(|owner| owner.ended.is_some()) {
                    self.state.forget(view.pin, orphan, self.now_ms);
                }
            }
        }
    }

    fn fail(&mut self, mover: usize) {
        let link = self.movers[mover].link;
        match self.random.u8(..12) {
            // The mover gives its connection up; gantryd notices now, later, or by the silence.
            0..=4 => {
                self.movers[mover].link = None;
                if let (Some(link), true) = (link, self.random.bool()) {
                    self.state.link_lost(link);
                }
            }
            5 | 6 => {
                if let Some(link) = link {
                    self.state.link_lost(link);
                    if let Some(wire) = self.wires.get_mut(&link) {
                        wire.closed_above = true;
                    }
                }
            }
            7..=9 => {
                let sim = &mut self.movers[mover];
                sim.link = None;
                for (task, (_, ended)) in &mut sim.tasks {
                    let died = || TaskOutcome::Died("the mover restarted".into());
                    let outcome = ended.get_or_insert_with(died);
                    sim.history.insert(*task, Some(outcome.clone()));
                }
                if sim.forgetful && self.random.bool() {
                    sim.tasks.clear();
                }
            }
            10 => self.restart_gantryd(),
            _ => self.now_ms += 40_000,
        }
    }

    fn restart_gantryd(&mut self) {
        self.act();
        self.state = FleetState::new("gantryd");
        self.wires.values_mut().for_each(|wire| wire.closed_above = true);
        for (task, owner) in self.owners.iter_mut().filter(|(_, owner)| owner.ended.is_none()) {
            self.state.adopt(id(owner.mover), *task, self.now_ms).unwrap();
        }
    }

    fn act(&mut self) {
        for action in self.state.take_actions() {
            match action {
                Action::Send { link, command } => {
                    let Some(wire) = self.wires.get_mut(&link) else { continue };
                    assert!(!wire.closed_above, "said on a closed connection");
                    wire.down.push_back(command);
                }
                Action::Close { link, .. } => {
                    if let Some(wire) = self.wires.get_mut(&link) {
                        wire.closed_above = true;
                    }
                }
                Action::Tell { task, event: TaskEvent::Ended(outcome) } => {
                    let owner = self.owners.get_mut(&task).unwrap();
                    assert_eq!(owner.ended, None, "{task} ends twice for its owner");
                    let sim = &self.movers[owner.mover];
                    let history = sim.history.get(&task);
                    match &outcome {
                        TaskOutcome::Died(_) | TaskOutcome::Stopped if sim.forgetful => {}
                        _ => match history {
                            Some(real) => assert_eq!(real.as_ref(), Some(&outcome), "{task}"),
                            None => assert!(!matches!(outcome, TaskOutcome::Done(_)), "{task}"),
                        },
                    }
                    owner.ended = Some(outcome);
                }
                Action::Tell { .. } | Action::Reply { .. } => {}
            }
        }
        self.wires.retain(|link, wire| {
            self.movers[wire.mover].link == Some(*link) || !wire.up.is_empty()
        });
    }

    /// Nothing fails any more.
    fn come_to_rest(&mut self) {
        self.faults = false;
        for _ in 0..60 * STEPS {
            self.step();
            let done = self.owners.values().all(|owner| owner.settled)
                && self.movers.iter().all(|mover| mover.tasks.is_empty())
                && self.state.views().iter().all(|view| view.orphans.is_empty());
            if done {
                return;
            }
        }
        let open = self.owners.values().filter(|owner| owner.ended.is_none()).count();
        let kept: usize = self.movers.iter().map(|mover| mover.tasks.len()).sum();
        panic!("{open} tasks have not ended, movers keep {kept}");
    }
}

#[test]
fn every_task_ends_exactly_once_for_its_owner_whatever_fails() {
    let (mut tasks, mut done, mut died) = (0, 0, 0);
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
        world.come_to_rest();
        for owner in world.owners.values() {
            tasks += 1;
            match owner.ended {
                Some(TaskOutcome::Done(_)) => done += 1,
                Some(TaskOutcome::Died(_)) => died += 1,
                _ => {}
            }
        }
    }
    println!("{tasks} tasks: {done} done, {died} died, the others were stopped");
    assert!(done > tasks / 4 && died > tasks / 50, "{tasks} {done} {died}");
}
