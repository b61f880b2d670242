//! The scheduler's rules, one by one; all together stand in `tests/simulation`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::{
    Assignment, Datastore, Decision, DiskRequest, GuardState, HoldReason, Proxy, Repository,
    Scheduler, SessionVm, TaskId, TransportMode, VmRequest,
};

const START: Duration = Duration::ZERO;
const GIB: u64 = 1 << 30;

fn proxy(name: &str, slots: u32, modes: &[TransportMode]) -> Proxy {
    Proxy {
        name: name.into(),
        slots,
        load_percent: 0,
        enabled: true,
        everywhere: modes.iter().copied().collect(),
        datastores: Default::default(),
    }
}

fn repository(name: &str, slots: u32) -> Repository {
    Repository { slots, ..Repository::new(name.into(), 1000 * GIB) }
}

/// A machine whose tasks are numbered from `first`, one for each of these datastores.
fn vm(session: &str, name: &str, first: u64, datastores: &[&str]) -> VmRequest {
    let disk = |(number, datastore): (u64, &&str)| DiskRequest {
        task: TaskId(first + number),
        datastore: (*datastore).into(),
        read_bytes: 10 * GIB,
        refused: BTreeSet::new(),
    };
    VmRequest {
        session: session.into(),
        job: "job".into(),
        priority: 5,
        vm: name.into(),
        repositories: vec!["r1".into()],
        store_bytes: GIB,
        modes: TransportMode::ALL.into_iter().collect(),
        proxies: BTreeSet::new(),
        disks: (0..).zip(datastores).map(disk).collect(),
    }
}

fn key(session: &str, vm: &str) -> SessionVm {
    SessionVm { session: session.into(), vm: vm.into() }
}

fn scheduler(proxies: &[Proxy], slots: u32) -> Scheduler {
    let mut scheduler = Scheduler::new();
    proxies.iter().for_each(|proxy| scheduler.set_proxy(proxy.clone()));
    scheduler.set_repository(repository("r1", slots));
    scheduler
}

fn opened(decisions: &[Decision]) -> Vec<&str> {
    let opened = decisions.iter().filter_map(|decision| match decision {
        Decision::SnapshotNow { machine, .. } => Some(machine.vm.as_str()),
        _ => None,
    });
    opened.collect()
}

fn assigned(decisions: &[Decision]) -> Vec<Assignment> {
    let assignment = |decision: &Decision| match decision {
        Decision::Assign(assignment) => Some(assignment.clone()),
        _ => None,
    };
    decisions.iter().filter_map(assignment).collect()
}

fn held(decisions: &[Decision], wanted: &str) -> Option<HoldReason> {
    decisions.iter().find_map(|decision| match decision {
        Decision::Hold { machine, reason, .. } if machine.vm.as_str() == wanted => {
            Some(reason.clone())
        }
        _ => None,
    })
}

/// Queues it, makes its snapshot and starts its disks.
fn run(scheduler: &mut Scheduler, request: VmRequest) -> Vec<Assignment> {
    let key = key(request.session.as_str(), request.vm.as_str());
    scheduler.add_vm(request, START).expect("queued");
    assert_eq!(opened(&scheduler.next(START)), [key.vm.as_str()]);
    assert!(scheduler.snapshot_opened(&key));
    assigned(&scheduler.next(START))
}

#[test]
fn a_machine_goes_from_snapshot_to_slots_and_leaves_nothing() {
    let mut scheduler = scheduler(&[proxy("p1", 4, &[TransportMode::Https])], 4);
    let tasks = run(&mut scheduler, vm("s", "web", 1, &["d1", "d1", "d2"]));
    assert_eq!((tasks.len(), scheduler.waiting()), (3, 0));
    let other = vm("t", "other", 100, &["d1", "d1"]);
    scheduler.add_vm(other, START).expect("queued");
    assert_eq!(scheduler.waiting(), 2);
    scheduler.cancel_vm(&key("t", "other"));
    assert_eq!(scheduler.waiting(), 0);
    assert_eq!(scheduler.snapshots_open(&"d1".into()), 1);
    assert_eq!(scheduler.proxy_slots(&"p1".into()), Some((3, 4)));
    let expected = "proxy p1 reads by https, with 0 of 4 slots in use and 0 % load, the only one \
                    with a free slot that reaches the disk";
    assert_eq!(tasks[0].reason.to_string(), expected);
    for task in &tasks {
        assert!(scheduler.finished(task.task));
        assert!(!scheduler.finished(task.task), "a report may come twice");
    }
    assert!(scheduler.snapshot_removed(&key("s", "web")));
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.proxy_slots(&"p1".into()), Some((0, 4)));
    assert_eq!(scheduler.repository_slots(&"r1".into()), Some((0, 4)));
    assert_eq!(scheduler.snapshots_open(&"d1".into()), 0);
}

#[test]
fn no_snapshot_without_a_slot_space_or_a_place_on_its_datastore() {
    let mut scheduler = scheduler(&[proxy("p1", 9, &[TransportMode::Https])], 2);
    scheduler.set_datastore(Datastore { snapshots_max: 1, ..Datastore::new("d1".into()) });
    run(&mut scheduler, vm("s", "first", 1, &["d1"]));
    scheduler.add_vm(vm("s", "same", 2, &["d1"]), START).unwrap();
    let huge = VmRequest { store_bytes: 999 * GIB, ..vm("s", "huge", 3, &["d2"]) };
    scheduler.add_vm(huge, START).unwrap();
    scheduler.add_vm(vm("s", "third", 4, &["d3"]), START).unwrap();
    scheduler.add_vm(vm("s", "full", 5, &["d4"]), START).unwrap();
    let decisions = scheduler.next(START);
    assert_eq!(opened(&decisions), ["third"]);
    assert!(matches!(held(&decisions, "same"), Some(HoldReason::SnapshotLimit { .. })));
    assert!(matches!(held(&decisions, "huge"), Some(HoldReason::RepositorySpace { .. })));
    assert!(matches!(held(&decisions, "full"), Some(HoldReason::RepositorySlots { slots: 2, .. })));
    assert!(scheduler.next(START).is_empty(), "a reason is said once");
    assert!(scheduler.snapshot_removed(&key("s", "first")));
    assert!(opened(&scheduler.next(START)).is_empty(), "its task still has the slot");
    assert!(scheduler.finished(TaskId(1)));
    assert_eq!(opened(&scheduler.next(START)).len(), 1);
}

#[test]
fn two_sessions_never_work_on_one_machine() {
    let mut scheduler = scheduler(&[proxy("p1", 9, &[TransportMode::Https])], 9);
    run(&mut scheduler, vm("night", "web", 1, &["d1"]));
    scheduler.add_vm(vm("noon", "web", 2, &["d1"]), START).unwrap();
    let decisions = scheduler.next(START);
    let expected = HoldReason::OtherSession { session: "night".into() };
    assert_eq!(held(&decisions, "web"), Some(expected));
    scheduler.finished(TaskId(1));
    assert!(opened(&scheduler.next(START)).is_empty(), "the snapshot stands");
    scheduler.snapshot_removed(&key("night", "web"));
    assert_eq!(opened(&scheduler.next(START)), ["web"]);
}

#[test]
fn a_worse_mode_is_taken_only_from_a_much_idler_proxy() {
    let mut near = proxy("near", 10, &[TransportMode::Https]);
    near.datastores.insert("d1".into(), [TransportMode::Direct].into());
    near.load_percent = 30;
    let far = proxy("far", 10, &[TransportMode::Https]);
    let mut scheduler = scheduler(&[near, far], 9);
    let tasks = run(&mut scheduler, vm("s", "a", 1, &["d1"]));
    assert_eq!((tasks[0].proxy.as_str(), tasks[0].mode), ("near", TransportMode::Direct));
    scheduler.set_proxy_load(&"near".into(), 95);
    let tasks = run(&mut scheduler, vm("s", "b", 2, &["d1"]));
    assert_eq!((tasks[0].proxy.as_str(), tasks[0].mode), ("far", TransportMode::Https));
    assert!(
        tasks[0].reason.to_string().contains("could read by direct are full, away or too busy")
    );
}

#[test]
fn affinity_is_a_preference() {
    let modes = [TransportMode::Nbd];
    let mut scheduler = scheduler(&[proxy("a", 1, &modes), proxy("b", 1, &modes)], 9);
    scheduler.set_repository(Repository { affinity: ["b".into()].into(), ..repository("r1", 9) });
    let tasks = run(&mut scheduler, vm("s", "one", 1, &["d1", "d1"]));
    let proxies: Vec<&str> = tasks.iter().map(|task| task.proxy.as_str()).collect();
    assert_eq!(proxies, ["b", "a"]);
    assert!(tasks[0].reason.to_string().ends_with("repository r1 prefers it"));
}

#[test]
fn what_a_lost_proxy_ran_is_resumed_first_and_elsewhere() {
    let modes = [TransportMode::Nbd];
    let mut scheduler = scheduler(&[proxy("a", 2, &modes), proxy("b", 2, &modes)], 9);
    let tasks = run(&mut scheduler, vm("s", "one", 1, &["d1", "d1", "d1"]));
    let on_a: Vec<TaskId> =
        tasks.iter().filter(|task| task.proxy.as_str() == "a").map(|task| task.task).collect();
    assert_eq!(on_a.len(), 2);
    scheduler.add_vm(vm("s", "two", 10, &["d1"]), START).unwrap();
    assert_eq!(scheduler.proxy_lost(&"a".into()), on_a);
    let decisions = scheduler.next(START);
    let again = assigned(&decisions);
    assert_eq!(again.len(), 1, "one slot is free on b");
    assert!(again[0].resumed && again[0].proxy.as_str() == "b");
    assert!(opened(&decisions).is_empty(), "resumed tasks go before new machines");
    assert!(again[0].reason.to_string().starts_with("resumed after proxy a: proxy b reads"));
    assert!(scheduler.proxy_back(&"a".into()));
    let decisions = scheduler.next(START);
    assert_eq!(assigned(&decisions).len(), 1);
    assert_eq!(opened(&decisions), ["two"]);
}

#[test]
fn a_road_that_failed_is_not_tried_again() {
    let modes = [TransportMode::Hotadd, TransportMode::Https];
    let mut scheduler = scheduler(&[proxy("a", 2, &modes)], 9);
    let tasks = run(&mut scheduler, vm("s", "one", 1, &["d1"]));
    assert_eq!(tasks[0].mode, TransportMode::Hotadd);
    assert!(scheduler.road_failed(TaskId(1)));
    assert_eq!(assigned(&scheduler.next(START))[0].mode, TransportMode::Https);
    assert!(scheduler.road_failed(TaskId(1)));
    let reason = held(&scheduler.next(START), "one").expect("held");
    assert!(reason.is_hopeless(), "{reason}");
}

#[test]
fn a_slow_datastore_gets_no_new_snapshot_and_one_task_of_an_open_one() {
    let mut scheduler = scheduler(&[proxy("a", 3, &[TransportMode::Nbd])], 9);
    let first = run(&mut scheduler, vm("s", "one", 1, &["d1", "d1"]));
    scheduler.set_guard(&"d1".into(), GuardState::StopAssigning);
    scheduler.add_vm(vm("s", "two", 10, &["d1"]), START).unwrap();
    assert!(matches!(held(&scheduler.next(START), "two"), Some(HoldReason::Latency { .. })));
    assert_eq!(scheduler.proxy_lost(&"a".into()).len(), first.len());
    scheduler.proxy_back(&"a".into());
    assert_eq!(assigned(&scheduler.next(START)).len(), 1, "one at a time");
    scheduler.set_guard(&"d1".into(), GuardState::Ok);
    let decisions = scheduler.next(START);
    assert_eq!((assigned(&decisions).len(), opened(&decisions)), (1, vec!["two"]));
}

#[test]
fn slots_are_shared_by_priority_and_nobody_starves() {
    let seed = 7;
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut scheduler = scheduler(&[proxy("a", 12, &[TransportMode::Nbd])], 12);
    let mut next_task = 0;
    let mut add = |scheduler: &mut Scheduler, session: &str, priority, now| {
        next_task += 1;
        let datastore = format!("d{next_task}");
        let name = format!("{session}-{next_task}");
        let request = vm(session, &name, next_task, &[datastore.as_str()]);
        scheduler.add_vm(VmRequest { priority, ..request }, now).unwrap();
    };
    for _ in 0..400 {
        add(&mut scheduler, "low", 4, START);
        add(&mut scheduler, "high", 5, START);
    }
    let mut running: Vec<Assignment> = Vec::new();
    let (mut low, mut high) = (0, 0);
    for step in 0..300u32 {
        let now = Duration::from_secs(60) * step;
        for decision in scheduler.next(now) {
            if let Decision::SnapshotNow { machine, .. } = decision {
                assert!(scheduler.snapshot_opened(&machine));
            }
        }
        running.extend(assigned(&scheduler.next(now)));
        assert!(running.len() <= 12);
        let of_low = running.iter().filter(|one| one.machine.session.as_str() == "low").count();
        low += of_low;
        high += running.len() - of_low;
        let gone = running.swap_remove(random.usize(..running.len()));
        scheduler.finished(gone.task);
        scheduler.snapshot_removed(&gone.machine);
    }
    let ratio = high as f64 / low as f64;
    assert!((1.7..=2.3).contains(&ratio), "a priority step is worth twice the slots: {ratio}");
}

#[test]
fn a_low_priority_gets_its_turn_by_waiting() {
    let mut scheduler = scheduler(&[proxy("a", 1, &[TransportMode::Nbd])], 1);
    let low = VmRequest { priority: 0, ..vm("low", "low", 1, &["d0"]) };
    scheduler.add_vm(low, START).unwrap();
    let mut low_at = None;
    for step in 1..400u64 {
        let now = Duration::from_secs(60 * step);
        let (name, datastore) = (format!("high-{step}"), format!("d{step}"));
        let high = vm("high", &name, 100 + step, &[datastore.as_str()]);
        scheduler.add_vm(VmRequest { priority: 10, ..high }, now).unwrap();
        for decision in scheduler.next(now) {
            let Decision::SnapshotNow { machine, .. } = decision else { continue };
            if machine.session.as_str() == "low" {
                low_at = low_at.or(Some(step));
            }
            scheduler.snapshot_opened(&machine);
            for task in assigned(&scheduler.next(now)) {
                scheduler.finished(task.task);
            }
            scheduler.snapshot_removed(&machine);
        }
    }
    let low_at = low_at.expect("it had a turn");
    assert!((120..=180).contains(&low_at), "after ten aging steps, not {low_at} minutes");
}

#[test]
fn a_cancelled_session_says_what_is_left_to_stop() {
    let mut scheduler = scheduler(&[proxy("a", 1, &[TransportMode::Nbd])], 9);
    run(&mut scheduler, vm("s", "one", 1, &["d1", "d1"]));
    scheduler.add_vm(vm("s", "two", 10, &["d1"]), START).unwrap();
    let cancelled = scheduler.cancel_session(&"s".into());
    assert_eq!((cancelled.running, cancelled.snapshots), (vec![TaskId(1)], vec![key("s", "one")]));
    assert!(scheduler.next(START).is_empty());
    assert!(scheduler.proxy_lost(&"a".into()).is_empty(), "what is cancelled is not resumed");
    assert!(scheduler.snapshot_removed(&key("s", "one")));
    assert!(scheduler.is_idle());
}

#[test]
fn a_task_that_went_down_is_placed_again_by_the_same_road() {
    let mut scheduler = scheduler(&[proxy("a", 1, &[TransportMode::Https])], 4);
    let first = run(&mut scheduler, vm("s", "one", 1, &["d1"]));
    assert!(!scheduler.interrupted(TaskId(9)), "nobody knows it");
    assert!(scheduler.interrupted(TaskId(1)));
    let second = assigned(&scheduler.next(START));
    assert_eq!((&second[0].proxy, second[0].mode), (&first[0].proxy, first[0].mode));
    assert!(second[0].resumed);
}

#[test]
fn a_machine_that_is_open_already_holds_its_slots_once() {
    let nfc = [TransportMode::Nfc];
    let mut scheduler = scheduler(&[proxy("p1", 1, &nfc), proxy("p2", 1, &nfc)], 4);
    let request = vm("s1", "a", 1, &["ds", "ds"]);
    let running = BTreeMap::from([(TaskId(1), ("p1".into(), TransportMode::Nfc))]);
    scheduler.add_open(request, &running, START).unwrap();
    assert_eq!(scheduler.proxy_slots(&"p1".into()), Some((1, 1)));
    let decisions = scheduler.next(START);
    assert_eq!(opened(&decisions), [""; 0], "its snapshot stands");
    let placed = assigned(&decisions);
    assert_eq!(placed.len(), 1, "only what does not run: {placed:?}");
    assert_eq!((placed[0].task, placed[0].proxy.as_str()), (TaskId(2), "p2"));
    assert_eq!(scheduler.repository_slots(&"r1".into()), Some((2, 4)));
    assert_eq!(scheduler.snapshots_open(&"ds".into()), 1);
    assert!(scheduler.finished(TaskId(1)) && scheduler.finished(TaskId(2)));
    assert!(scheduler.snapshot_removed(&key("s1", "a")));
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.proxy_slots(&"p1".into()), Some((0, 1)));
    assert_eq!(scheduler.snapshots_open(&"ds".into()), 0);
    assert_eq!(scheduler.repository_slots(&"r1".into()), Some((0, 4)));
}
