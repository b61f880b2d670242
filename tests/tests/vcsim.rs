//! Gantry's vSphere client against vcsim, a vCenter that Gantry's developers did not write.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use gantry_common::ids::SessionId;
use gantry_control::broker::{Broker, Cache, Rule, Selection, VmConfig, select};
use gantry_control::cbt::{self, query::DiskQuery};
use gantry_control::snapshots::{self, Mark, NewRequest, Removal, Whose};
use gantry_control::vcenter::virtual_machine::NewSnapshot;
use gantry_control::vcenter::{
    DiskChangeQuery, ErrorKind, FaultKind, MoRef, Settings, TaskWait, VCenter, VmRef,
};
use gantry_http::{HttpError, Request, Thumbprint, Trust};
use gantry_tests::vcsim::{PASSWORD, Vcsim, machines, settings, vcenter};

const MINUTE: Duration = Duration::from_secs(60);

async fn wait(vcenter: &VCenter, task: &MoRef) -> Option<gantry_control::vcenter::Element> {
    let end = vcenter.wait_for_task(task, TaskWait::new("test", "VM", MINUTE)).await;
    end.expect("the task succeeds").result
}

#[tokio::test]
async fn logs_in_and_finds_every_machine_page_by_page() {
    // Two pools of 60: more than a page of either.
    let vcsim = Vcsim::start(60);
    let vcenter = vcenter(&vcsim);
    let content = vcenter.content().await.expect("service content");
    assert!(content.is_vcenter && content.api() >= (6, 0), "{content:?}");
    let found = machines(&vcenter).await;
    assert_eq!(found.len(), 120, "each once");
    assert!(found.iter().any(|vm| vm.name == "DC0_H0_VM0"));
    vcenter.current_time().await.expect("a time");
    vcenter.log_out().await.expect("logged out");
    assert_eq!(machines(&vcenter).await.len(), 120, "a later call logs in again");
}

#[tokio::test]
async fn a_standalone_esxi_is_recognised() {
    let vcsim = Vcsim::start_esx(1);
    let vcenter = vcenter(&vcsim);
    assert!(!vcenter.content().await.expect("service content").is_vcenter);
    assert_eq!(machines(&vcenter).await.len(), 1);
}

#[tokio::test]
async fn a_wrong_password_or_thumbprint_is_named() {
    let vcsim = Vcsim::start(1);
    let vcenter = VCenter::new(settings(&vcsim, "wrong")).expect("a client");
    let error = vcenter.current_time().await.expect_err("a wrong password");
    assert_eq!(error.fault(), Some(&FaultKind::InvalidLogin));
    assert!(!error.is_retryable() && !error.to_string().contains("wrong\""), "{error}");
    let trust = Trust::Sha256Thumbprint(Thumbprint([0; 32]));
    let vcenter = VCenter::new(Settings { trust, ..settings(&vcsim, PASSWORD) }).expect("a client");
    let error = vcenter.current_time().await.expect_err("a wrong thumbprint");
    let ErrorKind::Http(HttpError::UntrustedCertificate { presented, .. }) = &*error.kind else {
        panic!("{error}")
    };
    assert_eq!(Ok(*presented), vcsim.thumbprint.parse());
}

#[tokio::test]
async fn change_tracking_and_snapshots() {
    let vcsim = Vcsim::start(1);
    let vcenter = vcenter(&vcsim);
    let vm = machines(&vcenter).await.remove(0);
    let task = vcenter.set_change_tracking(&vm, true).await.expect("a task");
    wait(&vcenter, &task).await;
    let flag = "config.changeTrackingEnabled";
    let content = vcenter.properties_of(&vm.moref, &vm.name, &[flag]).await.expect("properties");
    assert_eq!(content.get(flag).and_then(|value| value.as_bool()), Some(true));

    let new = NewSnapshot { name: "gantry-1", description: "{}", quiesce: false };
    let task = vcenter.create_snapshot(&vm, &new).await.expect("a task");
    let result = wait(&vcenter, &task).await.expect("a result");
    let snapshot = result.as_moref().expect("a snapshot");
    let query = DiskChangeQuery { snapshot: &snapshot, device_key: 2000, start: 0, change_id: "*" };
    let error = vcenter.query_changed_disk_areas(&vm, &query).await.expect_err("vcsim lacks it");
    assert!(error.is_unsupported(), "{error}");
    assert!(error.to_string().contains(&vm.name), "{error}");
    let task = vcenter.remove_snapshot(&vm, &snapshot).await.expect("a task");
    wait(&vcenter, &task).await;
    let content = vcenter.properties_of(&vm.moref, &vm.name, &["snapshot"]).await;
    assert!(content.expect("properties").get("snapshot").is_none());
    let error = vcenter.remove_snapshot(&vm, &snapshot).await.expect_err("it is gone");
    assert!(error.is_gone(), "{error}");
}

#[tokio::test]
async fn a_datastore_file_is_read_by_range_in_the_session() {
    let vcsim = Vcsim::start(1);
    let vcenter = vcenter(&vcsim);
    let image: Vec<u8> = (0..300_000u32).map(|at| (at / 7) as u8).collect();
    let folder = vcsim.datastore("LocalDS_0").join("DC0_H0_VM0");
    std::fs::write(folder.join("a-flat.vmdk"), &image).expect("an image");
    let cookie = vcenter.session_cookie().await.expect("a cookie");
    let path = "/folder/DC0_H0_VM0/a-flat.vmdk?dcPath=DC0&dsName=LocalDS_0";
    let request = Request::get(path)
        .header(gantry_http::header::COOKIE, cookie.reveal())
        .range(100_001, 65_536);
    let mut response = vcenter.http().send(&request).await.expect("an answer");
    assert_eq!(response.status(), 206);
    let mut piece = vec![0; 65_536];
    response.read_exact_into(&mut piece).await.expect("the range");
    assert!(piece == image[100_001..165_537]);
}

#[tokio::test]
async fn a_terminated_session_is_replaced_once_for_all_calls() {
    let vcsim = Vcsim::start(1);
    let (ours, other) = (vcenter(&vcsim), vcenter(&vcsim));
    let before = ours.session_key().await.expect("a session");
    terminate(&other, &before).await;
    let view = || ours.container_view(None, &["VirtualMachine"]);
    let (one, two, three) = tokio::join!(view(), view(), view());
    for made in [one, two, three] {
        made.expect("each call gets its answer");
    }
    let after = ours.session_key().await.expect("a session");
    assert_ne!(before, after);
}

/// Waits until the inventory satisfies a condition.
async fn until(broker: &Broker, what: &str, holds: impl Fn(&Cache) -> bool) {
    for _ in 0..600 {
        if broker.read(&holds) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the inventory never shows {what}; {:?}", broker.state());
}

#[tokio::test]
async fn the_broker_follows_changes_and_outlives_its_session() {
    let vcsim = Vcsim::start(2);
    let vcenter = vcenter(&vcsim);
    let broker = Broker::start(vcenter.clone());
    broker.ready(MINUTE).await.expect("the inventory is complete");
    let vm = broker.read(|cache| {
        assert_eq!((cache.vms().count(), cache.hosts().count()), (4, 4));
        assert!(cache.datastores().all(|(_, datastore)| datastore.is_accessible));
        let (moref, facts) = cache.vms().find(|(_, f)| &*f.name == "DC0_C0_RP0_VM0").expect("a VM");
        assert_eq!(cache.folder_of(facts), "/DC0/vm");
        assert_eq!(cache.datacenter_of(moref), Some("DC0"));
        assert_eq!(facts.host.as_ref().and_then(|host| cache.cluster_of(host)), Some("DC0_C0"));
        let disk = facts.disks.values().next().expect("a disk");
        assert_eq!(disk.datastore_name(), "LocalDS_0");
        assert!(facts.position(disk).starts_with("SCSI (0:"), "{}", facts.position(disk));
        assert!(disk.capacity_bytes > 0 && !facts.instance_uuid.is_empty());
        facts.vm_ref(moref)
    });
    let selection =
        Selection { include: vec![Rule::Cluster("dc0_c?".into())], ..Selection::default() };
    let selected = broker.read(|cache| select(cache, &selection));
    assert_eq!(selected.vms.iter().filter(|one| one.verdict.is_in()).count(), 2);
    let config = VmConfig::capture(&vcenter, &vm).await.expect("a configuration");
    assert!(config.cpus > 0 && !config.networks.is_empty() && !config.disks.is_empty());

    let new = NewSnapshot { name: "seen", description: "", quiesce: false };
    let task = vcenter.create_snapshot(&vm, &new).await.expect("a task");
    wait(&vcenter, &task).await;
    let seen = |cache: &Cache| cache.vm(&vm.moref).is_some_and(|vm| !vm.snapshots.is_empty());
    until(&broker, "the snapshot", seen).await;

    // The session is ended by another; a change is made while nobody listens.
    let other = self::vcenter(&vcsim);
    terminate(&other, &vcenter.session_key().await.expect("a session")).await;
    let task = other.set_change_tracking(&vm, true).await.expect("a task");
    wait(&other, &task).await;
    until(&broker, "the flag", |c| c.vm(&vm.moref).is_some_and(|vm| vm.change_tracking)).await;
    assert_eq!(broker.read(|cache| cache.vms().count()), 4);
}

/// Ends somebody's session, as an administrator would.
async fn terminate(vcenter: &VCenter, session: &str) {
    let manager = vcenter.content().await.expect("service content").session_manager.clone();
    let repeat = gantry_control::vcenter::retry::Repeat::Changes;
    let killed = vcenter.call("TerminateSession", &manager, "session", repeat, |w| {
        w.text("sessionId", session);
    });
    killed.await.expect("the session ends");
}

fn no_disks_attached(_: VmRef) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
    Box::pin(async { Ok(()) })
}

#[tokio::test]
async fn a_snapshot_is_made_read_and_removed_and_cbt_falls_back() {
    let vcsim = Vcsim::start(1);
    let vcenter = vcenter(&vcsim);
    let vm = machines(&vcenter).await.remove(0);
    let mark = Mark::new(SessionId([1; 16]), "vcsim");
    let request =
        NewRequest { vm: &vm, mark: &mark, quiesce: false, timeout: MINUTE, cancel: None };
    let snapshot = snapshots::create(&vcenter, request).await.expect("a snapshot");
    assert_eq!(snapshot.name, mark.name());
    let disk = snapshot.disks.first().expect("its disk").facts.clone();
    assert_eq!((disk.datastore_name(), disk.change_id.as_deref()), ("LocalDS_0", None));

    // vcsim knows no changed areas: the run reads everything, and says why.
    let query = DiskQuery {
        vm: &vm,
        snapshot: &snapshot.moref,
        device_key: disk.key,
        capacity_bytes: disk.capacity_bytes,
        block_bytes: 1 << 20,
    };
    let error = cbt::allocated_extents(&vcenter, &query).await.expect_err("vcsim lacks it");
    let cbt::QueryError::Call(call) = &error else { panic!("{error}") };
    assert!(call.is_unsupported(), "{error}");
    let text = error.to_string();
    assert!(text.contains("QueryChangedDiskAreas") && text.contains(&vm.name), "{text}");

    let removal = Removal::new(&vm, Whose::Named(mark.name()), &no_disks_attached, &[]);
    let removed = snapshots::remove(&vcenter, removal).await.expect("the machine is there");
    assert!(removed.is_clean() && removed.gone == [mark.name()], "{removed:?}");
    let removal = Removal::new(&vm, Whose::Named(mark.name()), &no_disks_attached, &[]);
    let removed = snapshots::remove(&vcenter, removal).await.expect("the machine is there");
    assert!(removed.is_clean() && removed.rounds == 0, "removing twice succeeds: {removed:?}");
}

#[tokio::test]
async fn stranded_snapshots_go_and_foreign_ones_stay() {
    let vcsim = Vcsim::start(1);
    let vcenter = vcenter(&vcsim);
    let vm = machines(&vcenter).await.remove(0);
    let name = |session: u8, owner| Mark::new(SessionId([session; 16]), owner).name();
    let stranded = name(1, "ours");
    let all = ["by hand", &stranded, &name(2, "ours"), &name(3, "another gantry")];
    for name in all {
        let new = NewSnapshot { name, description: "", quiesce: false };
        let task = vcenter.create_snapshot(&vm, &new).await.expect("a task");
        wait(&vcenter, &task).await;
    }
    let whose = || Whose::Stranded { owner: "ours".into(), running: vec![SessionId([2; 16])] };
    // A disk that cannot be detached: nothing is touched, and all rounds are used.
    let busy = |_: VmRef| -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
        Box::pin(async { Err("the proxy does not answer".to_owned()) })
    };
    let pauses = [Duration::from_millis(1); 3];
    let removal = Removal::new(&vm, whose(), &busy, &pauses);
    let removed = snapshots::remove(&vcenter, removal).await.expect("the machine is there");
    assert_eq!((removed.rounds, removed.errors.len()), (4, 4), "{removed:?}");
    assert_eq!(removed.left, std::slice::from_ref(&stranded));
    let removal = Removal::new(&vm, whose(), &no_disks_attached, &pauses);
    let removed = snapshots::remove(&vcenter, removal).await.expect("the machine is there");
    assert!(removed.is_clean() && removed.gone == [stranded.clone()], "{removed:?}");
    let left = snapshots::create::list(&vcenter, &vm).await.expect("a list");
    let mut left: Vec<_> = left.iter().map(|snapshot| snapshot.name.to_string()).collect();
    left.sort();
    let mut expected = [all[0], all[2], all[3]].map(str::to_owned).to_vec();
    expected.sort();
    assert_eq!(left, expected);
}
