//! Restores to a new machine: by files of a mounted datastore and by attaching new disks to the proxy,
//! with gantryd killed around every call that changes vSphere, and given up in the middle. Either the
//! machine is there once, its disks bit for bit, or nothing of it is.

use std::path::PathBuf;
use std::time::Instant;

use gantry_sim::requests::Phase;
use gantry_sim::site::Power;
use gantry_tests::gantryd::on_runtime;
use gantry_tests::moments::{Moment, hold_at};
use gantry_tests::served::{Served, WITHIN};
use gantry_tests::site::{files_below, wait_until};
use gantry_tests::vsphere::Sphere;
use serde_json::{Value, json};

/// What is asked for: the newest point of a machine as a new one of another name.
async fn wish(served: &Served<'_>, vm: &str, name: &str, datastore: &str) -> Value {
    let points = served.client.get("points").await.expect("points");
    let begin = format!("{vm} (");
    let is_of = |one: &&Value| one["name"].as_str().is_some_and(|name| name.starts_with(&begin));
    let points = points["items"].as_array().expect("a list");
    let point = points.iter().find(is_of).expect("a point");
    let vcenters = served.client.get("vcenters").await.expect("asked");
    json!({
        "repository": served.repository, "name": point["name"],
        "target": {
            "kind": "new_vm", "vcenter": vcenters["items"][0]["id"], "name": name,
            "datastore": datastore, "power_on": true,
        },
    })
}

async fn begin(served: &Served<'_>, wish: &Value) -> String {
    let begun = served.client.post("restores", wish).await.expect("it begins");
    begun["id"].as_str().expect("an id").to_owned()
}

async fn ends(served: &Served<'_>, session: &str, result: &str) -> String {
    let record = served.end(session).await;
    let log = served.log(session).await;
    assert_eq!(record["result"], result, "{record:#}\n{log}");
    log
}

/// Descriptors of a machine's disks, and whether it is on; nothing if it is not in the inventory.
fn machine(sphere: &Sphere, name: &str) -> Option<(Vec<String>, bool)> {
    let state = sphere.sim.lock();
    let mut named = state.site.machines.values().filter(|machine| machine.name == name);
    let found = named.next()?;
    assert!(named.next().is_none(), "there are two of {name}");
    let disks = found.disks.iter().map(|disk| disk.file().to_owned()).collect();
    Some((disks, found.power == Power::On))
}

fn content(sphere: &Sphere, file: &str) -> Vec<u8> {
    let disk = sphere.disk(file);
    let info = sphere.sim.storage.disk(disk).expect("it is there");
    let mut held = vec![0; info.capacity_bytes as usize];
    sphere.sim.storage.read(disk, 0, &mut held).expect("readable");
    held
}

/// Files of the datastores whose folder begins with a name.
fn files_of(sphere: &Sphere, name: &str) -> Vec<PathBuf> {
    let begin = format!("/{name}_");
    let all = files_below(&sphere.scratch.join("datastores"));
    all.into_iter().filter(|path| path.to_string_lossy().contains(&begin)).collect()
}

fn nothing_is_attached(sphere: &Sphere) {
    let attached = sphere.sim.storage.attached();
    assert!(attached.is_empty(), "{attached:?} are left attached");
}

/// The datastores are mounted on the proxies.
async fn mount(sphere: &Sphere, served: &Served<'_>) {
    let mounts = json!({ "vmfs0": sphere.datastore("vmfs0"), "nfs0": sphere.datastore("nfs0") });
    served.change_proxies(|_, record| record["mounts"] = mounts.clone()).await;
}

#[test]
fn a_machine_comes_back_as_files_of_a_datastore_and_is_switched_on() {
    on_runtime(61, async |sphere| {
        let mut served = Served::new(sphere, &["idle"]).await;
        mount(sphere, &served).await;
        let backup = served.begin(false).await;
        ends(&served, &backup, "success").await;

        let asked = wish(&served, "idle", "idle again", "nfs0").await;
        let log = ends(&served, &begin(&served, &asked).await, "success").await;
        assert!(log.contains("is mounted on it") && log.contains("switched on"), "{log}");
        let (disks, is_on) = machine(sphere, "idle again").expect("it is there");
        assert!(
            is_on && disks.len() == 1 && disks[0].starts_with("[nfs0] idle again_"),
            "{disks:?}"
        );
        assert!(
            content(sphere, &disks[0]) == content(sphere, "[vmfs0] idle/idle.vmdk"),
            "it differs"
        );
        nothing_is_attached(sphere);

        // What cannot be is refused before a session begins, with what to do.
        let refused = async |change: &dyn Fn(&mut Value), says: &str| {
            let mut other = asked.clone();
            change(&mut other["target"]);
            let failure = served.client.post("restores", &other).await.expect_err("refused");
            assert!(failure.message.contains(says), "{failure:?}");
        };
        refused(&|_| {}, "already in that folder").await;
        refused(&|target| target["datastore"] = "nowhere".into(), "vmfs0").await;
        let same = |target: &mut Value| {
            target["name"] = "other".into();
            target["keep_identity"] = true.into();
        };
        refused(&same, "still in the inventory").await;
        served.change_proxies(|_, record| record["mounts"] = json!({})).await;
        let none = |target: &mut Value| target["name"] = "other".into();
        refused(&none, "no proxy can write new disks").await;
        served.stop_movers();
    });
}

#[test]
fn a_machine_comes_back_by_disks_that_are_attached_to_the_proxy() {
    on_runtime(62, async |sphere| {
        let mut served = Served::new(sphere, &["web"]).await;
        let backup = served.begin(false).await;
        ends(&served, &backup, "success").await;
        served.attach_to(sphere, "proxy").await;
        let mut asked = wish(&served, "web", "web-2", "vmfs0").await;
        let log = ends(&served, &begin(&served, &asked).await, "success").await;
        assert!(log.contains("attached to it"), "{log}");
        let (disks, is_on) = machine(sphere, "web-2").expect("it is there");
        assert!(is_on && disks.len() == 2, "{disks:?}");
        nothing_is_attached(sphere);

        // The guest wrote on after the backup: the point's own files are what it must be.
        let proxies = served.client.get("proxies").await.expect("asked");
        let folder = sphere.scratch.join("files");
        std::fs::create_dir(&folder).expect("a folder");
        asked["target"] =
            json!({ "kind": "files", "proxy": proxies["items"][0]["id"], "folder": folder });
        ends(&served, &begin(&served, &asked).await, "success").await;
        for (disk, file) in disks.iter().zip(files_below(&folder)) {
            let held = std::fs::read(&file).expect("readable");
            assert!(held == content(sphere, disk), "{disk} differs from {}", file.display());
        }
        served.stop_movers();
    });
}

/// A restore for each moment, in which gantryd is killed then and started again.
async fn killed_at(sphere: &Sphere, served: &mut Served<'_>, moments: &[Moment]) {
    let held = content(sphere, "[vmfs0] idle/idle.vmdk");
    for (number, moment) in moments.iter().enumerate() {
        let name = format!("idle-{number}");
        let asked = wish(served, "idle", &name, "vmfs0").await;
        let (comes, go) = hold_at(sphere, *moment);
        let session = begin(served, &asked).await;
        let until = Instant::now() + WITHIN;
        while comes.try_recv().is_err() {
            let log = served.log(&session);
            assert!(Instant::now() < until, "{moment:?} does not come: {}", log.await);
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        served.daemon.process.kill_hard();
        go.send(()).ok();
        served.start_again();
        ends(served, &session, "success").await;
        let (disks, is_on) = machine(sphere, &name).expect("it is there");
        assert!(is_on && disks.len() == 1, "{moment:?}: {disks:?}, on: {is_on}");
        assert!(content(sphere, &disks[0]) == held, "{moment:?}: it differs");
        nothing_is_attached(sphere);
    }
}

#[test]
fn gantryd_is_killed_around_every_call_of_a_restore_by_attaching() {
    on_runtime(63, async |sphere| {
        let mut served = Served::new(sphere, &["idle"]).await;
        let backup = served.begin(false).await;
        ends(&served, &backup, "success").await;
        served.attach_to(sphere, "proxy").await;
        let moments = [
            ("CreateVM_Task", 0, Phase::Before),
            ("CreateVM_Task", 0, Phase::TaskWorked),
            ("ReconfigVM_Task", 0, Phase::Acted),
            ("ReconfigVM_Task", 1, Phase::Before),
            ("ReconfigVM_Task", 1, Phase::TaskWorked),
            ("PowerOnVM_Task", 0, Phase::TaskWorked),
        ];
        killed_at(sphere, &mut served, &moments).await;
        served.stop_movers();
    });
}

#[test]
fn gantryd_is_killed_around_every_call_of_a_restore_by_files() {
    on_runtime(64, async |sphere| {
        let mut served = Served::new(sphere, &["idle"]).await;
        mount(sphere, &served).await;
        let backup = served.begin(false).await;
        ends(&served, &backup, "success").await;
        let moments = [
            ("MakeDirectory", 0, Phase::Acted),
            ("CreateVM_Task", 0, Phase::Before),
            ("CreateVM_Task", 0, Phase::TaskWorked),
            ("PowerOnVM_Task", 0, Phase::Acted),
        ];
        killed_at(sphere, &mut served, &moments).await;
        served.stop_movers();
    });
}

/// The repository does not answer, so that nothing can be whole; then it is stopped.
async fn stopped(sphere: &Sphere, served: &Served<'_>, name: &str) {
    let asked = wish(served, "idle", name, "vmfs0").await;
    let repository = i32::try_from(served.movers[0].id()).expect("a number");
    let repository = rustix::process::Pid::from_raw(repository).expect("a process");
    let signal = |signal| rustix::process::kill_process(repository, signal).expect("it is ours");
    let session = begin(served, &asked).await;
    let until = Instant::now() + WITHIN;
    while files_of(sphere, name).is_empty() {
        assert!(Instant::now() < until, "nothing of it is seen");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    signal(rustix::process::Signal::STOP);
    let path = format!("sessions/{session}/stop");
    served.client.post(&path, &json!({ "mode": "now" })).await.expect("it stops");
    signal(rustix::process::Signal::CONT);
    let log = ends(served, &session, "failed").await;
    assert!(log.contains("were removed"), "{log}");
    assert_eq!(machine(sphere, name), None, "{log}");
    assert!(files_of(sphere, name).is_empty(), "{:?}", files_of(sphere, name));
    nothing_is_attached(sphere);
}

#[test]
fn of_a_machine_that_is_given_up_nothing_stays() {
    on_runtime(65, async |sphere| {
        let mut served = Served::new(sphere, &["idle"]).await;
        mount(sphere, &served).await;
        let backup = served.begin(false).await;
        ends(&served, &backup, "success").await;
        stopped(sphere, &served, "by-files").await;
        served.change_proxies(|_, record| record["mounts"] = json!({})).await;
        served.attach_to(sphere, "proxy").await;
        stopped(sphere, &served, "by-attaching").await;

        // A disk that cannot be attached: the same.
        let asked = wish(&served, "idle", "refused", "vmfs0").await;
        let fails = r#"{"kind":"task-fault","fault":"GenericVmConfigFault",
            "when":{"method":"ReconfigVM_Task","object":"proxy","count":1}}"#;
        for command in gantry_sim::drill::parse(fails.as_bytes()).expect("a drill") {
            gantry_sim::drill::apply(&sphere.sim, command).expect("it is done");
        }
        ends(&served, &begin(&served, &asked).await, "failed").await;
        wait_until(WITHIN, "its removal", || machine(sphere, "refused").is_none());
        assert!(files_of(sphere, "refused").is_empty());
        served.stop_movers();
    });
}
