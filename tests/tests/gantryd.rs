//! gantryd's parts in this process, with movers of their own over the control link: a job's session
//! through scheduler, fleet, parts of a VM and commit; a proxy that dies in the middle; scripts in
//! guests.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use gantry_common::secret::Secret;
use gantry_control::daemon::start::start;
use gantry_control::run::now_ms;
use gantry_database::model::{ApplicationPolicy, CredentialRecord, Id, SessionResult};
use gantry_sim::requests::{Phase, Then};
use gantry_tests::gantryd::{Site, on_runtime, options, runtime};
use gantry_tests::vsphere::machines;

#[test]
fn a_job_s_sessions_bring_every_machine_in_and_the_second_reads_what_changed() {
    on_runtime(31, async |sphere| {
        let mut site = Site::new(sphere, "").await;
        let disk = site.sphere.watch("[vmfs0] idle/idle.vmdk");
        let first = site.begin(false).await;
        let record = site.end(first).await;
        assert_eq!(record.result, Some(SessionResult::Success), "{}", site.log(first).await);
        assert_eq!((record.totals.vms_done, record.totals.disks), (2, 3));
        let second = site.begin(false).await;
        let record = site.end(second).await;
        assert_eq!(record.result, Some(SessionResult::Success), "{}", site.log(second).await);
        let log = site.log(second).await;
        assert!(log.contains("changed since the base"), "{log}");
        assert_eq!(site.sphere.sim.storage.snapshots(), [], "snapshots are left");
        let point = site.point(second, "idle").await;
        site.stop_movers();
        site.sphere.holds_now("idle", &point, 0, disk);
    });
}

#[test]
fn a_proxy_that_is_killed_in_the_middle_is_replaced_by_another() {
    on_runtime(32, async |sphere| {
        let mut site = Site::new(sphere, "").await;
        let disk = site.sphere.watch("[vmfs0] idle/idle.vmdk");
        let session = site.begin(true).await;
        site.copies(session).await;
        let busy = site.started.parts.fleet.movers();
        let busy = busy.iter().find(|mover| mover.tasks_running > 0).map(|mover| mover.pin);
        let killed =
            site.movers.iter_mut().find(|mover| Some(mover.pin) == busy).expect("it is one");
        killed.process.take().expect("it runs").kill_hard();
        let record = site.end(session).await;
        let log = site.log(session).await;
        assert_ne!(record.result, Some(SessionResult::Failed), "{log}");
        assert_eq!(record.totals.vms_done, 2, "{log}");
        assert_eq!(site.sphere.sim.storage.snapshots(), [], "snapshots are left");
        let point = site.point(session, "idle").await;
        site.stop_movers();
        site.sphere.holds_now("idle", &point, 0, disk);
    });
}

/// gantryd goes away without a word while disks are copied, and another one takes its place: the
/// movers have gone on, and the session ends as if nothing had been.
#[test]
fn a_session_goes_on_after_gantryd_was_interrupted() {
    let sphere = machines(33);
    let disk = sphere.watch("[vmfs0] idle/idle.vmdk");
    for pause_ms in [0, 30, 120, 400] {
        let first = runtime();
        let (movers, job, port, session) = first.block_on(async {
            let site = Site::new(&sphere, "").await;
            let session = site.begin(true).await;
            site.copies(session).await;
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            let port = site.started.parts.fleet.address().port();
            (site.movers, site.job, port, session)
        });
        // Every task of it ends wherever it is.
        drop(first);
        runtime().block_on(async {
            let started = start(&options(&sphere, port)).await.expect("gantryd starts again");
            let mut site = Site { sphere: &sphere, started, movers, job };
            let record = site.end(session).await;
            let log = site.log(session).await;
            assert_ne!(record.result, Some(SessionResult::Failed), "after {pause_ms} ms: {log}");
            assert_eq!(record.totals.vms_done, 2, "{log}");
            assert_eq!(sphere.sim.storage.snapshots(), [], "snapshots are left: {log}");
            let point = site.point(session, "idle").await;
            site.stop_movers();
            sphere.holds_now("idle", &point, 0, disk);
        });
        for name in ["gantryd", "repository-mover", "proxy-1", "proxy-2", "repository"] {
            std::fs::remove_dir_all(sphere.scratch.join(name)).expect("removable");
        }
    }
}

/// What is watched of vSphere's calls: scripts, snapshots made, snapshots removed.
const CALLS: [&str; 3] = ["StartProgramInGuest", "CreateSnapshotEx_Task", "RemoveSnapshot_Task"];

/// One machine, once, with these scripts and one after success.
async fn use_scripts(site: &mut Site<'_>, pre: &str, thaw: &str) {
    let (now, database) = (now_ms(), &site.started.parts.database);
    let id = Id::draw(now);
    let record = serde_json::json!({ "id": id, "name": format!("guests {id}"), "user": "backup" });
    let record: CredentialRecord = serde_json::from_value(record).expect("a credential");
    let password = (record.password(), Secret::new("let me in"));
    database.create(&record, &[password], now).await.expect("kept");
    let script = |text: &str| {
        let linux = format!("#!/bin/sh\n{text}\n");
        serde_json::json!({ "source": { "kind": "upload", "linux": linux }, "arguments": "" })
    };
    let settings = serde_json::json!({
        "enabled": true, "policy": "success", "credential": id,
        "pre_freeze": script(pre), "post_thaw": script(thaw),
        "after_success": script("echo logs cut"),
    });
    site.job.application = serde_json::from_value(settings).expect("settings");
    site.job.selection.patterns = vec!["idle".into()];
    site.job.retries.count = 0;
}

/// A script that tells its name is run before and after the snapshot and after success, in this order
/// around the calls of vSphere; whatever fails, the guest is thawed.
#[test]
fn guest_scripts_stand_around_the_snapshot_and_a_guest_is_always_thawed() {
    on_runtime(34, async |sphere| {
        let mut site = Site::new(sphere, "").await;
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&calls);
        sphere.sim.on_request(move |request| {
            if request.phase == Phase::Acted && CALLS.contains(&request.method) {
                seen.lock().expect("calls").push(request.method.to_owned());
            }
            Then::GoOn
        });
        let taken = || std::mem::take(&mut *calls.lock().expect("calls"));
        let [program, create, remove] = CALLS;
        let road = [program, create, program, remove, program];

        use_scripts(&mut site, "echo frozen", "echo thawed").await;
        let session = site.begin(false).await;
        let ended = site.end(session).await;
        let log = site.log(session).await;
        assert_eq!(ended.result, Some(SessionResult::Success), "{log}");
        for wrote in ["wrote: frozen", "wrote: thawed", "wrote: logs cut"] {
            assert!(log.contains(wrote), "{wrote}: {log}");
        }
        assert_eq!(taken(), road);

        // What freezes it fails: no snapshot, no point, no cut logs, and yet it is thawed.
        use_scripts(&mut site, "exit 7", "echo thawed").await;
        let session = site.begin(false).await;
        let ended = site.end(session).await;
        let log = site.log(session).await;
        assert_eq!(ended.result, Some(SessionResult::Failed), "{log}");
        assert!(log.contains("exit code 7") && log.contains("wrote: thawed"), "{log}");
        assert_eq!(taken(), [program, program], "{log}");

        // The same where the job does not mind.
        site.job.application.policy = ApplicationPolicy::Ignore;
        let session = site.begin(false).await;
        let ended = site.end(session).await;
        let log = site.log(session).await;
        assert_eq!(ended.result, Some(SessionResult::Warning), "{log}");
        assert_eq!(taken(), road, "{log}");

        // A guest that cannot be thawed is told of loudly, and its snapshot goes all the same.
        use_scripts(&mut site, "echo frozen", "exit 9").await;
        let session = site.begin(false).await;
        let ended = site.end(session).await;
        let log = site.log(session).await;
        assert_eq!(ended.result, Some(SessionResult::Failed), "{log}");
        assert!(log.contains("exit code 9"), "{log}");
        assert_eq!(sphere.sim.storage.snapshots(), [], "snapshots are left");
        assert!(!log.contains("let me in"), "a password in the log");
        site.stop_movers();
    });
}

/// gantryd goes away between the script that stops applications and the one that lets them go on.
#[test]
fn a_guest_that_gantryd_left_frozen_is_thawed_by_the_next() {
    let sphere = machines(35);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (made, is_made) = mpsc::channel();
    let seen = Arc::clone(&calls);
    sphere.sim.on_request(move |request| {
        if request.phase == Phase::Acted && CALLS.contains(&request.method) {
            seen.lock().expect("calls").push(request.method.to_owned());
            if (request.method, request.of_method) == ("CreateSnapshotEx_Task", 1) {
                made.send(()).ok();
                return Then::Cut;
            }
        }
        Then::GoOn
    });
    let first = runtime();
    let (movers, job, port, session) = first.block_on(async {
        let mut site = Site::new(&sphere, "").await;
        use_scripts(&mut site, "echo frozen", "echo thawed").await;
        let session = site.begin(false).await;
        let until = Instant::now() + Duration::from_secs(60);
        while is_made.try_recv().is_err() {
            assert!(Instant::now() < until, "no snapshot:\n{}", site.log(session).await);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let port = site.started.parts.fleet.address().port();
        (site.movers, site.job, port, session)
    });
    drop(first);
    runtime().block_on(async {
        let started = start(&options(&sphere, port)).await.expect("gantryd starts again");
        let mut site = Site { sphere: &sphere, started, movers, job };
        let record = site.end(session).await;
        let log = site.log(session).await;
        assert_ne!(record.result, Some(SessionResult::Failed), "{log}");
        assert_eq!(sphere.sim.storage.snapshots(), [], "snapshots are left: {log}");
        let calls = calls.lock().expect("calls");
        // What was left is thawed before its snapshot goes; then the whole of it, once.
        let [program, create, remove] = CALLS;
        let road = [program, create, program, remove, program, create, program, remove, program];
        assert_eq!(*calls, road, "{log}");
        site.stop_movers();
    });
}
