//! Restores as gantryd's sessions: a machine's disks to files of a proxy, and a proxy that dies in the
//! middle.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_api::views::{RestoreRequest, RestoreTarget};
use gantry_common::failure::FailureKind;
use gantry_control::daemon::restore;
use gantry_control::daemon::start::start;
use gantry_database::Page;
use gantry_database::model::{Proxy, Repository, SessionKind, SessionResult};
use gantry_tests::gantryd::{Site, on_runtime, options, runtime};
use gantry_tests::vsphere::machines;

/// All disks of a machine's newest point, to a new folder of the first proxy.
async fn request(site: &Site<'_>, vm: &str, folder: &str) -> (RestoreRequest, PathBuf) {
    let database = &site.started.parts.database;
    let page = Page::first(10);
    let repositories = database.list::<Repository>(&page).await.expect("listed");
    let repository = &repositories[0].value;
    let proxies = database.list::<Proxy>(&page).await.expect("listed");
    let proxy = proxies.iter().find(|proxy| proxy.value.name == "proxy-1").expect("it is there");
    let points = site.started.parts.fleet.points(repository.mover, "", false).await;
    let points = points.expect("points");
    let begin = format!("{vm} (");
    let point = points.iter().find(|point| point.name.starts_with(&begin)).expect("a point");
    let folder = site.sphere.scratch.join(folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let target =
        RestoreTarget::Files { proxy: proxy.value.id, folder: folder.display().to_string() };
    let (repository, name) = (repository.id, point.name.clone());
    (RestoreRequest { repository, name, point: None, disks: Vec::new(), target }, folder)
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    names.sort();
    names
}

#[test]
fn a_machine_s_disks_come_back_to_files_bit_for_bit() {
    on_runtime(41, async |sphere| {
        let mut site = Site::new(sphere, "").await;
        let disk = site.sphere.watch("[vmfs0] idle/idle.vmdk");
        let backup = site.begin(false).await;
        let record = site.end(backup).await;
        assert_eq!(record.result, Some(SessionResult::Success), "{}", site.log(backup).await);

        let (wanted, folder) = request(&site, "idle", "restored").await;
        let parts = site.started.parts.clone();
        let begun = restore::begin(&parts, wanted.clone(), "ann").await.expect("begun");
        assert_eq!(
            (begun.kind, begun.requested_by.as_deref()),
            (SessionKind::Restore, Some("ann"))
        );
        let record = site.end(begun.id).await;
        let log = site.log(begun.id).await;
        assert_eq!(record.result, Some(SessionResult::Success), "{log}");
        let files = names(&folder);
        assert_eq!(files.len(), 1, "{files:?}");
        let restored = std::fs::read(&files[0]).expect("readable");
        let mut held = vec![0; restored.len()];
        sphere.sim.storage.read(disk, 0, &mut held).expect("readable");
        assert!(restored == held, "it differs");
        assert_eq!(record.totals.processed_bytes, restored.len() as u64);
        assert!(log.contains("is whole") && log.contains("blocks checked"), "{log}");
        let stages = record.totals.more["stages"].as_array().cloned().unwrap_or_default();
        let write = stages.iter().find(|stage| stage["stage"] == "write").expect("it is timed");
        assert!(write["blocks"].as_u64() > Some(0), "{stages:#?}");

        // Nothing is overwritten.
        let again = restore::begin(&parts, wanted.clone(), "ann").await.expect("begun");
        let record = site.end(again.id).await;
        assert_eq!(record.result, Some(SessionResult::Failed));
        assert!(record.reason.is_some_and(|why| why.contains("exists")));
        assert_eq!(std::fs::read(&files[0]).expect("readable"), restored);
        assert_eq!(names(&folder), files);

        // Both disks of the other machine.
        let (both, folder) = request(&site, "web", "web").await;
        let session = restore::begin(&parts, both, "ann").await.expect("begun");
        let record = site.end(session.id).await;
        assert_eq!(record.result, Some(SessionResult::Success), "{}", site.log(session.id).await);
        assert_eq!((record.totals.disks, names(&folder).len()), (2, 2));

        // What is not there is refused before anything is begun.
        let nothing = RestoreRequest { disks: vec!["nothing".into()], ..wanted };
        let refused = restore::begin(&parts, nothing, "ann").await.expect_err("refused");
        assert_eq!(refused.kind, FailureKind::Usage);
        site.stop_movers();
    });
}

#[test]
fn a_proxy_that_is_killed_in_the_middle_leaves_no_file_that_seems_whole() {
    on_runtime(42, async |sphere| {
        let mut site = Site::new(sphere, "").await;
        let backup = site.begin(false).await;
        site.end(backup).await;
        let (wanted, folder) = request(&site, "web", "restored").await;
        let parts = site.started.parts.clone();
        // The repository does not answer, so that nothing can be whole yet.
        let repository = site.movers[0].process.as_ref().expect("it runs").id();
        let begun = restore::begin(&parts, wanted, "ann").await.expect("begun");
        stop_process(repository, true);
        let until = Instant::now() + Duration::from_secs(30);
        let runs = || parts.fleet.mover("proxy-1").is_some_and(|mover| mover.tasks_running > 0);
        while !runs() {
            assert!(Instant::now() < until, "no task runs");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        site.movers[1].process.take().expect("it runs").kill_hard();
        stop_process(repository, false);
        let record = site.end(begun.id).await;
        let log = site.log(begun.id).await;
        assert_eq!(record.result, Some(SessionResult::Failed), "{log}");
        assert!(record.reason.is_some_and(|why| why.contains("proxy-1")), "{log}");
        let is_whole = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "raw");
        assert!(!names(&folder).iter().any(is_whole), "{:?}", names(&folder));
        // The task's process ends with its mover, and takes away what it made.
        let until = Instant::now() + Duration::from_secs(20);
        while !names(&folder).is_empty() {
            assert!(Instant::now() < until, "{:?}", names(&folder));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        site.stop_movers();
    });
}

/// Halts a process, or lets it go on.
fn stop_process(id: u32, halt: bool) {
    let id = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw).expect("a process");
    let signal = match halt {
        true => rustix::process::Signal::STOP,
        false => rustix::process::Signal::CONT,
    };
    rustix::process::kill_process(id, signal).expect("it is ours");
}

/// gantryd goes away while disks are restored, and another one takes its place.
#[test]
fn a_restore_goes_on_after_gantryd_was_interrupted() {
    let sphere = machines(43);
    for pause_ms in [0, 40, 400] {
        let first = runtime();
        let (movers, job, port, session, folder) = first.block_on(async {
            let site = Site::new(&sphere, "").await;
            let backup = site.begin(false).await;
            site.end(backup).await;
            let (wanted, folder) = request(&site, "web", &format!("restored-{pause_ms}")).await;
            let parts = &site.started.parts;
            let begun = restore::begin(parts, wanted, "ann").await.expect("begun");
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            let port = parts.fleet.address().port();
            (site.movers, site.job, port, begun.id, folder)
        });
        drop(first);
        runtime().block_on(async {
            let started = start(&options(&sphere, port)).await.expect("gantryd starts again");
            let mut site = Site { sphere: &sphere, started, movers, job };
            let record = site.end(session).await;
            let log = site.log(session).await;
            assert_eq!(record.result, Some(SessionResult::Success), "after {pause_ms} ms: {log}");
            assert_eq!(names(&folder).len(), 2, "{log}");
            site.stop_movers();
        });
        for name in ["gantryd", "repository-mover", "proxy-1", "proxy-2", "repository"] {
            std::fs::remove_dir_all(sphere.scratch.join(name)).expect("removable");
        }
    }
}
