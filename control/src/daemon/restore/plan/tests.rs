//! What a request means for a point's disks.

use std::path::Path;

use gantry_api::views::RestoreTarget;
use gantry_common::ids::PointId;
use gantry_common::manage::PointFlags;
use gantry_common::units::BlockSize;
use gantry_common::wire::{DiskSummary, PointSummary, TaskTotals};

use super::*;

fn point(number: u8, created_ms: u64) -> PointSummary {
    let disk = |name: &str| DiskSummary {
        identity: format!("vc/vm/{name}"),
        label: name.to_owned(),
        size_bytes: 1 << 20,
        block_size: BlockSize::M1,
        totals: TaskTotals::default(),
        change_id: None,
    };
    PointSummary {
        point: PointId::new(created_ms, [number; 10]),
        name: "web (1)".into(),
        created_ms,
        parent: None,
        flags: PointFlags::default(),
        is_deleted: false,
        disks: vec![disk("a"), disk("b")],
    }
}

fn request(point: Option<String>, disks: &[&str]) -> RestoreRequest {
    let target = RestoreTarget::Files { proxy: Id::draw(1), folder: "/r".into() };
    let disks = disks.iter().map(|disk| (*disk).to_owned()).collect();
    RestoreRequest { repository: Id::draw(1), name: "web (1)".into(), point, disks, target }
}

#[test]
fn the_newest_point_is_taken_unless_another_is_asked_for() {
    let all = || vec![point(1, 10), point(2, 30), point(3, 20)];
    assert_eq!(choose_point(all(), &request(None, &[])).unwrap().created_ms, 30);
    let third = point(3, 20).point.to_string();
    assert_eq!(choose_point(all(), &request(Some(third), &[])).unwrap().created_ms, 20);
    let none = request(Some("00".repeat(16)), &[]);
    assert_eq!(choose_point(all(), &none).unwrap_err().kind, FailureKind::Usage);
}

#[test]
fn a_plan_names_every_disk_s_file_once_and_refuses_what_is_not_there() {
    let planned = |disks: &[&str]| {
        to_files(&request(None, disks), &point(1, 10), "p".into(), Path::new("/r"))
    };
    let all = planned(&[]).unwrap();
    let files: Vec<_> = all.disks.iter().map(|disk| disk.to.clone().unwrap()).collect();
    let file = |name: &str| RestoreTo::File(Path::new("/r").join(name));
    assert_eq!(files, [file("web__1-disk0.raw"), file("web__1-disk1.raw")]);
    let one = planned(&["b"]).unwrap();
    assert_eq!((one.disks.len(), one.disks[0].disk), (1, 1));
    assert_eq!(planned(&["vc/vm/a"]).unwrap().disks[0].disk, 0);
    let missing = planned(&["c"]).unwrap_err().message;
    assert!(missing.contains("'c'") && missing.contains("a, b"), "{missing}");
    let names =
        ["../../etc/passwd", "é/ü", &"x".repeat(999)].map(|name| file_of(Path::new("/r"), name, 0));
    assert!(names.iter().all(|file| file.parent() == Some(Path::new("/r"))), "{names:?}");
    assert_ne!(all.disks[0].task, all.disks[0].second());
}

fn machine(road: Road) -> Machine {
    Machine {
        vcenter: Id::draw(1),
        name: "web 2".into(),
        uuid: "u".into(),
        keep_identity: false,
        folder: "[ds] web 2_0123abcd".into(),
        target: Target { datastore: "ds".into(), ..Target::default() },
        networks: BTreeMap::new(),
        power_on: false,
        road,
        why: String::new(),
    }
}

fn config(disks: &[(i32, &str, &str)]) -> VmConfig {
    let disk = |(key, uuid, file): &(i32, &str, &str)| {
        serde_json::json!({
            "key": key, "label": "d", "uuid": uuid, "capacity_bytes": 1 << 20, "file": file,
            "controller_key": 1000, "unit": key - 2000,
        })
    };
    let disks: Vec<_> = disks.iter().map(disk).collect();
    let text = serde_json::json!({
        "format": 1, "name": "web", "instance_uuid": "vm", "bios_uuid": "", "guest_id": "",
        "guest_name": "", "hardware_version": "", "firmware": "", "secure_boot": false,
        "nvram": null, "config_file": "", "annotation": "", "cpus": 1, "cores_per_socket": 1,
        "memory_mib": 4, "has_vtpm": false, "controllers": [], "networks": [], "disks": disks,
    });
    serde_json::from_value(text).unwrap()
}

#[test]
fn a_machine_s_disks_are_those_of_its_configuration_whatever_their_order() {
    let config = config(&[(2001, "a", "[old] a.vmdk"), (2000, "b", "[old] b.vmdk")]);
    let plan =
        |road| to_machine(&request(None, &[]), &point(1, 10), &config, "p".into(), machine(road));
    let direct = plan(Road::Direct("/mnt/ds".into())).unwrap();
    let keys: Vec<_> = direct.disks.iter().map(|disk| disk.device.clone().unwrap()).collect();
    let home = "[ds] web 2_0123abcd";
    let [first, second] = [format!("{home}/web 2.vmdk"), format!("{home}/web 2_1.vmdk")];
    assert_eq!(keys, [(2001, first), (2000, second)]);
    let file = "/mnt/ds/web 2_0123abcd/web 2_1-flat.vmdk";
    assert_eq!(direct.disks[1].to, Some(RestoreTo::File(file.into())));
    let attached = Road::Hotadd { proxy_vm: "p".into(), device_folder: None };
    assert_eq!(plan(attached.clone()).unwrap().disks[0].to, None);
    // A disk without a UUID is known by its base file.
    let mut point = point(1, 10);
    point.disks[0].identity = "vc/vm/[old] x/a.vmdk".into();
    let config = self::config(&[(2000, "", "[old] x/a.vmdk"), (2001, "b", "")]);
    let plan = |point: &PointSummary| {
        to_machine(&request(None, &[]), point, &config, "p".into(), machine(attached.clone()))
    };
    assert_eq!(plan(&point).unwrap().disks[0].device.as_ref().unwrap().0, 2000);
    point.disks[1].size_bytes += 1;
    assert!(plan(&point).unwrap_err().message.contains("sectors"));
    point.disks[0].identity = "vc/vm/gone".into();
    assert!(plan(&point).unwrap_err().message.contains("not in the machine's configuration"));
}

#[test]
fn a_proxy_writes_files_before_it_takes_disks_and_says_why_it_cannot() {
    use crate::transport::ProxyVm;
    let vm = ProxyVm { instance_uuid: "p".into(), ..ProxyVm::default() };
    let all = ProxyFacts {
        mounts: [("ds".to_owned(), "/mnt/ds".into())].into(),
        vm: Some(vm),
        ..ProxyFacts::default()
    };
    assert!(matches!(road(&all, true, "ds", true).unwrap().0, Road::Direct(_)));
    assert!(matches!(road(&all, true, "other", false).unwrap().0, Road::Hotadd { .. }));
    assert!(road(&all, true, "other", true).unwrap_err().contains("IDE"));
    assert!(road(&all, false, "other", false).unwrap_err().contains("does not reach"));
    let only = ProxyFacts { modes: vec![TransportMode::Hotadd], ..all };
    assert!(matches!(road(&only, true, "ds", false).unwrap().0, Road::Hotadd { .. }));
    assert!(road(&ProxyFacts::default(), true, "ds", false).is_err());
}
