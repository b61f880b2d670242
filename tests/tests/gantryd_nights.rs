//! Nights under gantryd, on a clock that is set forward: jobs begin by themselves and after each
//! other; a session that overruns its window stops cleanly, and the next one brings in what is missing.

use std::time::{Duration, Instant};

use gantry_control::daemon::start::start;
use gantry_database::SessionFilter;
use gantry_database::model::{
    DiskExclusion, Id, Job, Retries, Schedule, Selection, SessionRecord, SessionResult, TimeOfDay,
    TimeRange, Trigger, WeekWindows,
};
use gantry_tests::gantryd::{Site, on_runtime, options, runtime};
use gantry_tests::vsphere::machines;

const HOUR: Duration = Duration::from_secs(3600);
/// How long what is due may take to begin.
const BEGUN_WITHIN: Duration = Duration::from_secs(30);

/// Changes a job as a person would.
async fn change(site: &Site<'_>, id: Id, change: impl FnOnce(&mut Job)) {
    let parts = &site.started.parts;
    let stored = parts.database.get::<Job>(id).await.expect("the job");
    let mut job = stored.value;
    change(&mut job);
    parts.database.update(&job, stored.version, parts.clock.now_ms()).await.expect("changed");
    parts.calendar.notify_one();
    // The calendar has read it once it has looked again.
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// Waits for the job's session that begins after this one.
async fn next_session(site: &Site<'_>, job: Id, after: Option<Id>) -> SessionRecord {
    let until = Instant::now() + BEGUN_WITHIN;
    loop {
        let filter = SessionFilter { job: Some(job), limit: 1, ..SessionFilter::default() };
        let mut found = site.started.parts.database.sessions(&filter).await.expect("sessions");
        if let Some(session) = found.pop().filter(|session| Some(session.id) > after) {
            return session;
        }
        assert!(Instant::now() < until, "no session begins");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn sessions(site: &Site<'_>) -> usize {
    let filter = SessionFilter { limit: 100, ..SessionFilter::default() };
    site.started.parts.database.sessions(&filter).await.expect("sessions").len()
}

/// A window around this instant, an hour to each side.
fn window(site: &Site<'_>) -> WeekWindows {
    let minute = (site.started.parts.clock.now_ms() / 60_000 % 1440) as u32;
    let time = |minute: u32| {
        let (hour, minute) = (minute / 60 % 24, minute % 60);
        TimeOfDay::new(hour as u8, minute as u8).expect("a time")
    };
    WeekWindows(vec![TimeRange {
        days: Vec::new(),
        from: time(minute + 1440 - 60),
        to: time(minute + 60),
    }])
}

#[test]
fn a_periodic_job_begins_by_itself_and_another_follows_it() {
    on_runtime(71, async |sphere| {
        let site = Site::new(sphere, "").await;
        let parts = &site.started.parts;
        let idle = Selection { patterns: vec!["idle".into()], ..Selection::default() };
        let mut follower =
            Job::new(Id::draw(1), "follower", site.job.vcenter, site.job.repository, idle);
        follower.schedule = Schedule::After { job: site.job.id };
        parts.database.create(&follower, &[], parts.clock.now_ms()).await.expect("kept");
        change(&site, site.job.id, |job| job.schedule = Schedule::Periodic { minutes: 60 }).await;
        assert_eq!(sessions(&site).await, 0, "nothing is due yet");
        let hour_ms = HOUR.as_millis() as u64;
        let left_ms = hour_ms - parts.clock.now_ms() % hour_ms;
        parts.clock.advance(Duration::from_millis(left_ms));
        let session = next_session(&site, site.job.id, None).await;
        assert_eq!(session.trigger, Trigger::Schedule);
        let ended = site.end(session.id).await;
        let log = site.log(session.id).await;
        assert_eq!(ended.result, Some(SessionResult::Success), "{log}");
        assert!(log.contains("begun by its schedule, for "), "{log}");
        let second = next_session(&site, follower.id, None).await;
        assert_eq!(second.trigger, Trigger::AfterJob);
        let ended = site.end(second.id).await;
        assert_eq!(ended.result, Some(SessionResult::Success), "{}", site.log(second.id).await);
        assert!(site.log(second.id).await.contains("begun after job nightly"));
        // While a session runs, no second one of its job begins.
        let why = (Trigger::Manual, true, Some("a person"));
        let third = parts.start_job(&site.job, why, "asked for").await.expect("it begins");
        let refused = parts.start_job(&site.job, why, "asked for").await.expect_err("it runs");
        assert!(refused.to_string().contains(&third.to_string()), "{refused}");
        site.end(third).await;
    });
}

#[test]
fn a_session_that_overruns_its_window_stops_and_the_next_night_brings_in_what_is_missing() {
    on_runtime(72, async |sphere| {
        let mut site = Site::new(sphere, "").await;
        let disk = site.sphere.watch("[vmfs0] idle/idle.vmdk");
        let open = window(&site);
        change(&site, site.job.id, |job| {
            job.window = open;
            job.schedule = Schedule::Periodic { minutes: 24 * 60 };
            // Too slow to end in time.
            job.rate_bytes_per_second = Some(200_000);
        })
        .await;
        let parts = site.started.parts.clone();
        let job = parts.database.get::<Job>(site.job.id).await.expect("the job").value;
        let why = (Trigger::Schedule, false, None);
        let first = parts.start_job(&job, why, "tonight").await.expect("it begins");
        site.copies(first).await;
        parts.clock.advance(2 * HOUR);
        let ended = site.end(first).await;
        let log = site.log(first).await;
        assert_eq!(ended.result, Some(SessionResult::Failed), "{log}");
        let reason = ended.reason.expect("a reason");
        assert!(reason.starts_with("the backup window closed at "), "{reason}");
        assert!(log.contains("the session stops"), "{log}");
        assert!(!log.contains("attempt 2"), "{log}");
        assert_eq!(site.sphere.sim.storage.snapshots(), [], "snapshots are left: {log}");
        let filter = SessionFilter { job: Some(job.id), limit: 9, ..SessionFilter::default() };
        change(&site, job.id, |job| {
            job.rate_bytes_per_second = None;
            job.schedule = Schedule::Periodic { minutes: 60 };
        })
        .await;
        // In the day nothing begins, though it is due.
        parts.clock.advance(2 * HOUR);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(parts.database.sessions(&filter).await.expect("sessions").len(), 1);
        parts.clock.advance(20 * HOUR);
        let second = next_session(&site, job.id, Some(first)).await;
        let ended = site.end(second.id).await;
        assert_eq!(ended.result, Some(SessionResult::Success), "{}", site.log(second.id).await);
        assert_eq!(ended.totals.vms_done, 2);
        let point = site.point(second.id, "idle").await;
        site.stop_movers();
        site.sphere.holds_now("idle", &point, 0, disk);
    });
}

/// gantryd is restarted in the pause before a further attempt: the attempts that are left are made,
/// only at the machine that failed.
#[test]
fn a_restart_in_a_pause_goes_on_with_the_attempts_that_are_left() {
    let sphere = machines(73);
    let first = runtime();
    let (movers, job, port, session) = first.block_on(async {
        let site = Site::new(&sphere, "").await;
        change(&site, site.job.id, |job| {
            job.retries = Retries { count: 2, pause_seconds: 3 };
            // A machine without a disk that may be copied fails in every attempt.
            let (vm, label) = (Some("idle".into()), Some("*".into()));
            let (place, datastore) = (None, None);
            job.selection.exclude_disks = vec![DiskExclusion { vm, label, place, datastore }];
        })
        .await;
        let parts = &site.started.parts;
        let job = parts.database.get::<Job>(site.job.id).await.expect("the job").value;
        let why = (Trigger::Manual, false, None);
        let session = parts.start_job(&job, why, "asked for").await.expect("it begins");
        let until = Instant::now() + BEGUN_WITHIN;
        while !site.log(session).await.contains("are tried again at") {
            assert!(Instant::now() < until, "{}", site.log(session).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let port = site.started.parts.fleet.address().port();
        (site.movers, site.job, port, session)
    });
    drop(first);
    runtime().block_on(async {
        let started = start(&options(&sphere, port)).await.expect("gantryd starts again");
        let site = Site { sphere: &sphere, started, movers, job };
        let record = site.end(session).await;
        let log = site.log(session).await;
        let runs = site.started.parts.database.vm_runs(session).await.expect("its runs");
        let runs: Vec<(&str, u32)> = runs.iter().map(|run| (&*run.vm, run.attempt)).collect();
        assert_eq!(record.result, Some(SessionResult::Failed), "{log}");
        assert!(runs.contains(&("idle", 3)) && runs.len() == 4, "{runs:?}: {log}");
        assert_eq!(record.totals.vms_done, 1, "{log}");
    });
}
