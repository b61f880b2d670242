//! kill -9 of gantryd at every state of a session and around every call that changes something in
//! vSphere; each time it is started again, and the session must end as if nothing had been: a point of
//! each machine, one; no snapshot stays; what was restored is what was there.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use gantry_sim::requests::Phase;
use gantry_tests::gantryd::on_runtime;
use gantry_tests::moments::{Moment, hold_at};
use gantry_tests::served::{Served, WITHIN};
use gantry_tests::vsphere::Sphere;
use serde_json::Value;

/// Ends a session that gantryd was killed in, and sees that all is as it should be; the points so far.
async fn ends_well(
    sphere: &Sphere,
    served: &Served<'_>,
    session: &str,
    moment: &str,
    before: &BTreeSet<String>,
) -> BTreeSet<String> {
    let record = served.end(session).await;
    let log = served.log(session).await;
    assert_ne!(record["result"], "failed", "{moment}: {record}\n{log}");
    assert_eq!(sphere.sim.storage.snapshots(), [], "{moment}: snapshots are left\n{log}");
    let attached = sphere.sim.storage.attached();
    assert!(attached.is_empty(), "{moment}: {attached:?} are left attached\n{log}");
    let all = points(served).await;
    let new: Vec<&String> = all.difference(before).collect();
    assert_eq!(new.len(), 1, "{moment}: one machine has one new point\n{log}");
    all
}

async fn points(served: &Served<'_>) -> BTreeSet<String> {
    let until = Instant::now() + WITHIN;
    loop {
        let path = format!("points?repository={}", served.repository);
        // The repository's mover may just be coming back.
        if let Ok(points) = served.client.get(&path).await {
            let items = points["items"].as_array().cloned().unwrap_or_default();
            return items.iter().filter_map(|one| one["id"].as_str().map(str::to_owned)).collect();
        }
        assert!(Instant::now() < until, "the repository does not answer");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Kills gantryd at these moments, a session each.
async fn killed_at(sphere: &Sphere, served: &mut Served<'_>, moments: &[Moment]) {
    let disk = sphere.watch("[vmfs0] idle/idle.vmdk");
    let mut known = points(served).await;
    for moment in moments {
        let (comes, go) = hold_at(sphere, *moment);
        let session = served.begin(false).await;
        let until = Instant::now() + WITHIN;
        while comes.try_recv().is_err() {
            let log = served.log(&session);
            assert!(Instant::now() < until, "{moment:?} does not come: {}", log.await);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        served.daemon.process.kill_hard();
        go.send(()).ok();
        served.start_again();
        known = ends_well(sphere, served, &session, &format!("{moment:?}"), &known).await;
    }
    let newest = newest(served).await;
    served.stop_movers();
    sphere.holds_now("idle", &newest, 0, disk);
}

#[test]
fn around_every_call_that_changes_vsphere() {
    on_runtime(51, async |sphere| {
        let mut served = Served::new(sphere, &["idle"]).await;
        let moments = [
            ("CreateSnapshotEx_Task", 0, Phase::Before),
            ("CreateSnapshotEx_Task", 0, Phase::Acted),
            ("CreateSnapshotEx_Task", 0, Phase::TaskWorked),
            ("RemoveSnapshot_Task", 0, Phase::Before),
            ("RemoveSnapshot_Task", 0, Phase::Acted),
            ("RemoveSnapshot_Task", 0, Phase::TaskWorked),
        ];
        killed_at(sphere, &mut served, &moments).await;
    });
}

/// The disk is attached to a proxy's machine, read there, and detached.
#[test]
fn around_attaching_and_detaching_a_disk() {
    on_runtime(53, async |sphere| {
        let mut served = Served::new(sphere, &["idle"]).await;
        served.attach_to(sphere, "proxy").await;
        let moments = [
            ("ReconfigVM_Task", 0, Phase::Before),
            ("ReconfigVM_Task", 0, Phase::Acted),
            ("ReconfigVM_Task", 0, Phase::TaskWorked),
            ("ReconfigVM_Task", 1, Phase::Before),
            ("ReconfigVM_Task", 1, Phase::Acted),
            ("ReconfigVM_Task", 1, Phase::TaskWorked),
        ];
        killed_at(sphere, &mut served, &moments).await;
    });
}

async fn newest(served: &Served<'_>) -> String {
    let points = served.client.get("points").await.expect("points");
    let items = points["items"].as_array().cloned().unwrap_or_default();
    let newest = items.iter().max_by_key(|one| one["created_ms"].as_u64()).expect("a point");
    newest["id"].as_str().expect("an id").to_owned()
}

/// The state that the session's run is in.
async fn state(served: &Served<'_>, session: &str) -> (String, Value) {
    let vms = served.client.get(&format!("sessions/{session}/vms")).await.expect("machines");
    let run = vms["items"][0].clone();
    let state = run["run"]["state"].as_str().unwrap_or("none").to_owned();
    (state, run)
}

#[test]
fn at_every_state_of_a_run() {
    on_runtime(52, async |sphere| {
        let mut served = Served::new(sphere, &["idle"]).await;
        let disk = sphere.watch("[vmfs0] idle/idle.vmdk");
        let mut known = BTreeSet::new();
        for wanted in ["none", "waiting", "freezing", "copying", "committing", "clearing", "ended"]
        {
            let mut met = false;
            // A state may be over before it is seen: then the next session is watched.
            for _ in 0..40 {
                let session = served.begin(true).await;
                let until = Instant::now() + WITHIN;
                met = loop {
                    let (state, _) = if wanted == "none" {
                        ("none".to_owned(), Value::Null)
                    } else {
                        state(&served, &session).await
                    };
                    if state == wanted {
                        served.daemon.process.kill_hard();
                        break true;
                    }
                    if state == "ended" {
                        break false;
                    }
                    assert!(Instant::now() < until, "{wanted} does not come");
                };
                if met {
                    served.start_again();
                }
                known = ends_well(sphere, &served, &session, wanted, &known).await;
                if met {
                    break;
                }
            }
            assert!(met, "no session was seen in state {wanted}");
        }
        let newest = newest(&served).await;
        served.stop_movers();
        sphere.holds_now("idle", &newest, 0, disk);
    });
}
