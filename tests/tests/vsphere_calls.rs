//! Calls that go wrong on the way: lost answers, tasks that are slow or cannot be cancelled, stubborn snapshots, and the
//! reset of changed block tracking.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gantry_common::ids::SessionId;
use gantry_control::cbt::{self, ChangeId, History, ResetError};
use gantry_control::snapshots::{self, Mark, NewRequest, Removal, Snapshot, Whose};
use gantry_control::vcenter::virtual_machine::NewSnapshot;
use gantry_control::vcenter::{TaskWait, VCenter, VmRef};
use gantry_sim::drill;
use gantry_sim::requests::{Phase, Then};
use gantry_tests::simulated::Simulated;

const SITE: &str = r#"
[[datacenter]]
name = "DC0"
hosts = ["esx0.example"]
[[datacenter.datastore]]
name = "ds0"
[[vm]]
name = "web"
cbt = true
disk = [{ size_mib = 4 }]
"#;
const MINUTE: Duration = Duration::from_secs(60);

fn mark(session: u8) -> Mark {
    Mark::new(SessionId([session; 16]), "ours")
}

fn request<'a>(vm: &'a VmRef, mark: &'a Mark) -> NewRequest<'a> {
    NewRequest { vm, mark, quiesce: false, timeout: MINUTE, cancel: None }
}

fn no_disks_attached(_: VmRef) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
    Box::pin(async { Ok(()) })
}

async fn site(task_time: u64) -> (Simulated, VCenter, VmRef) {
    let simulated = Simulated::start(SITE, Duration::from_millis(task_time)).await;
    let vcenter = simulated.vcenter();
    let vm = simulated.machine(&vcenter, "web").await;
    (simulated, vcenter, vm)
}

async fn names(vcenter: &VCenter, vm: &VmRef) -> Vec<String> {
    let all = snapshots::create::list(vcenter, vm).await.expect("a list");
    all.iter().map(|one| one.name.to_string()).collect()
}

async fn remove(
    vcenter: &VCenter,
    vm: &VmRef,
    mark: &Mark,
) -> gantry_control::snapshots::remove::Removed {
    let pauses = [Duration::from_millis(1); 3];
    let removal = Removal::new(vm, Whose::Named(mark.name()), &no_disks_attached, &pauses);
    snapshots::remove(vcenter, removal).await.expect("the machine is there")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_whose_answer_was_lost_is_found_and_not_made_twice() {
    let (simulated, vcenter, vm) = site(0).await;
    let cut = AtomicBool::new(false);
    simulated.sim.on_request(move |seen| {
        let is_it = seen.method.starts_with("CreateSnapshot") && seen.phase == Phase::Acted;
        if is_it && !cut.swap(true, Ordering::Relaxed) { Then::Cut } else { Then::GoOn }
    });
    let made = snapshots::create(&vcenter, request(&vm, &mark(1))).await.expect("it is found");
    assert_eq!(made.disks.len(), 1);
    let asked = simulated.sim.requests().methods;
    let made: u64 =
        asked.iter().filter(|(m, _)| m.starts_with("CreateSnapshot")).map(|(_, count)| count).sum();
    assert_eq!(made, 1, "{asked:?}");
    assert_eq!(names(&vcenter, &vm).await, [mark(1).name()]);
    assert!(remove(&vcenter, &vm, &mark(1)).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_cancelled_or_overruns_is_not_lost() {
    let (_simulated, vcenter, vm) = site(3_000).await;
    let (cancel, watched) = tokio::sync::watch::channel(false);
    let first = mark(1);
    let request_1 = NewRequest { cancel: Some(watched), ..request(&vm, &first) };
    let later = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cancel.send(true).expect("it listens");
    };
    let (made, ()) = tokio::join!(snapshots::create(&vcenter, request_1), later);
    // The simulator's tasks cannot be cancelled, as some of vSphere's: what came is told, not lost.
    assert_eq!(made.expect("it was made all the same").name, first.name());
    assert!(remove(&vcenter, &vm, &first).await.is_clean());

    // The task takes longer than it is waited for: the snapshot comes all the same, and is found.
    let second = mark(2);
    let hasty = NewRequest { timeout: Duration::from_millis(500), ..request(&vm, &second) };
    let made = snapshots::create(&vcenter, hasty).await.expect("it is found");
    assert_eq!(made.name, second.name());
    assert!(remove(&vcenter, &vm, &second).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_will_not_go_goes_with_all_in_the_third_round() {
    let (simulated, vcenter, vm) = site(5).await;
    snapshots::create(&vcenter, request(&vm, &mark(1))).await.expect("a snapshot");
    let stays = br#"{"kind":"snapshot-stays","machine":"web","times":2}"#;
    for command in drill::parse(stays).expect("a drill") {
        drill::apply(&simulated.sim, command).expect("it is done");
    }
    simulated.sim.count_requests_anew();
    let removed = remove(&vcenter, &vm, &mark(1)).await;
    assert!(removed.is_clean() && removed.rounds == 3, "{removed:?}");
    let asked = simulated.sim.requests().methods;
    assert_eq!((asked["RemoveSnapshot_Task"], asked["RemoveAllSnapshots_Task"]), (2, 1));
    assert_eq!(names(&vcenter, &vm).await, Vec::<String>::new());
}

fn tracker(snapshot: &Snapshot) -> ChangeId {
    let id = snapshot.disks[0].facts.change_id.as_deref().expect("a change id");
    id.parse().expect("a change id")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracking_is_reset_without_snapshots_only() {
    let (_simulated, vcenter, vm) = site(5).await;
    let before = snapshots::create(&vcenter, request(&vm, &mark(1))).await.expect("a snapshot");
    let refused = cbt::reset(&vcenter, &vm, &mark(2), &no_disks_attached).await;
    assert!(matches!(refused, Err(ResetError::Refused { .. })), "{refused:?}");
    assert!(remove(&vcenter, &vm, &mark(1)).await.is_clean());
    let again = snapshots::create(&vcenter, request(&vm, &mark(3))).await.expect("a snapshot");
    assert!(tracker(&again).has_tracker_of(&tracker(&before)), "the refused one changed nothing");
    assert!(remove(&vcenter, &vm, &mark(3)).await.is_clean());

    cbt::reset(&vcenter, &vm, &mark(4), &no_disks_attached).await.expect("it is reset");
    assert_eq!(names(&vcenter, &vm).await, Vec::<String>::new());
    let after = snapshots::create(&vcenter, request(&vm, &mark(5))).await.expect("a snapshot");
    assert!(!tracker(&after).has_tracker_of(&tracker(&before)), "{before:?} {after:?}");
    assert!(remove(&vcenter, &vm, &mark(5)).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracking_switched_on_under_a_snapshot_is_known() {
    let (_simulated, vcenter, vm) = site(5).await;
    let wait = async |task| {
        let wait = TaskWait::new("test", "VM", MINUTE);
        vcenter.wait_for_task(&task, wait).await.expect("the task succeeds");
    };
    let past = History::read(&vcenter, &vm, None).await;
    assert_eq!((past.was_reverted, past.was_enabled_under_snapshots), (None, None), "no trace");
    wait(vcenter.set_change_tracking(&vm, false).await.expect("a task")).await;
    let new = NewSnapshot { name: "by hand", description: "", quiesce: false };
    wait(vcenter.create_snapshot(&vm, &new).await.expect("a task")).await;
    let past = History::read(&vcenter, &vm, Some("2020-01-01T00:00:00Z")).await;
    assert_eq!((past.was_reverted, past.was_enabled_under_snapshots), (Some(false), Some(false)));
    wait(vcenter.set_change_tracking(&vm, true).await.expect("a task")).await;
    let past = History::read(&vcenter, &vm, None).await;
    assert_eq!(past.was_enabled_under_snapshots, Some(true));
}
