//! The request hook: every request is shown in order, may be held, and may be cut at each phase.
//!
//! In: calls over TLS. Out: the hook saw them, a cut before acting left nothing behind, a cut after
//! it left what was done.

mod client;

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use client::{Client, simulator};
use gantry_http::Request;
use gantry_sim::requests::{Phase, Seen, Then};

const SNAPSHOT: &str = "<name>n</name><memory>false</memory><quiesce>false</quiesce>";

/// A hook that notes everything and cuts one method in one phase.
fn cutting(
    method: &'static str,
    phase: Phase,
) -> (Arc<Mutex<Vec<Seen>>>, impl Fn(&Seen) -> Then + Send + Sync) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = seen.clone();
    let hook = move |request: &Seen| {
        notes.lock().expect("unbroken").push(request.clone());
        if request.method == method && request.phase == phase { Then::Cut } else { Then::GoOn }
    };
    (seen, hook)
}

async fn snapshots(client: &Client, count: usize) -> bool {
    for _ in 0..200 {
        let there: usize =
            client.sim.lock().site.machines.values().map(|m| m.snapshots.len()).sum();
        if count == there {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

#[tokio::test]
async fn a_request_is_shown_in_each_phase_and_cut_where_the_hook_says() {
    let root = tempfile::tempdir().expect("a folder");
    let sim = simulator(root.path(), None).await;
    let client = Client::login(&sim).await;
    let web0 = client.machine("web0");
    let ask = || client.call("VirtualMachine", &web0, "CreateSnapshot_Task", SNAPSHOT);

    let (seen, hook) = cutting("CreateSnapshot_Task", Phase::Before);
    sim.on_request(hook);
    client.call("ServiceInstance", "ServiceInstance", "CurrentTime", "").await.expect("time").ok();
    assert!(ask().await.is_err(), "cut before it acts");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(snapshots(&client, 0).await, "nothing was done");
    let steps: Vec<_> =
        seen.lock().expect("unbroken").iter().map(|s| (s.number, s.method, s.phase)).collect();
    assert_eq!(
        steps,
        [
            (1, "CurrentTime", Phase::Before),
            (1, "CurrentTime", Phase::Acted),
            (2, "CreateSnapshot_Task", Phase::Before),
        ]
    );

    let (seen, hook) = cutting("CreateSnapshot_Task", Phase::Acted);
    sim.on_request(hook);
    assert!(ask().await.is_err(), "cut before it is answered");
    assert!(snapshots(&client, 1).await, "it was done");
    let worked = || seen.lock().expect("unbroken").iter().any(|s| s.phase == Phase::TaskWorked);
    for _ in 0..200 {
        if worked() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(worked(), "the task's end is shown");
    assert_eq!(seen.lock().expect("unbroken")[0].object, web0);

    sim.stop_watching();
    ask().await.expect("no hook").ok();
    let report = sim.requests();
    assert_eq!((report.total, report.methods["CreateSnapshot_Task"]), (2, 2));
    assert_eq!(report.recent.iter().map(|s| s.of_method).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn a_hook_may_hold_one_request_while_others_go_on() {
    let root = tempfile::tempdir().expect("a folder");
    let sim = simulator(root.path(), None).await;
    let client = Arc::new(Client::login(&sim).await);
    let (enter, entered) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let released = Mutex::new(released);
    sim.on_request(move |seen: &Seen| {
        if seen.method == "GET /folder" && seen.phase == Phase::Before {
            let _ = enter.send(());
            let _ = released.lock().expect("unbroken").recv();
        }
        Then::GoOn
    });
    let file = "/folder/web0/web0.vmdk?dcPath=DC0&dsName=vmfs0";
    let fetching = tokio::spawn({
        let client = client.clone();
        async move { client.send(Request::get(file)).await.expect("the file").ok() }
    });
    let held = tokio::task::spawn_blocking(move || entered.recv_timeout(Duration::from_secs(10)));
    held.await.expect("a thread").expect("the hook is entered");
    client.call("ServiceInstance", "ServiceInstance", "CurrentTime", "").await.expect("time").ok();
    assert!(!fetching.is_finished(), "it is held");
    release.send(()).expect("the hook waits");
    assert!(fetching.await.expect("a task").text.contains("createType"));
    // The same for a person, or a test in another process.
    let told = client.send(Request::get("/gantry-sim/requests")).await.expect("a report").ok();
    assert!(told.text.contains("\"GET /folder\":1"), "{}", told.text);
}
