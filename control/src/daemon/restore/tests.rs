//! What a request means for a point's disks.

use std::path::Path;

use gantry_common::ids::PointId;
use gantry_common::manage::PointFlags;
use gantry_common::units::BlockSize;
use gantry_common::wire::{DiskSummary, PointSummary, TaskTotals};

use super::*;

fn point(number: u8, created_ms: u64) -> PointSummary {
    let disk = |name: &str| DiskSummary {
        identity: format!("vm/{name}"),
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
    let planned =
        |disks: &[&str]| plan(&request(None, disks), &point(1, 10), "p".into(), Path::new("/r"));
    let all = planned(&[]).unwrap();
    let files: Vec<&Path> = all.disks.iter().map(|disk| disk.work.file.as_path()).collect();
    assert_eq!(files, [Path::new("/r/web__1-disk0.raw"), Path::new("/r/web__1-disk1.raw")]);
    let one = planned(&["b"]).unwrap();
    assert_eq!((one.disks.len(), one.disks[0].work.disk), (1, 1));
    assert_eq!(planned(&["vm/a"]).unwrap().disks[0].work.disk, 0);
    let missing = planned(&["c"]).unwrap_err().message;
    assert!(missing.contains("'c'") && missing.contains("a, b"), "{missing}");
    let names =
        ["../../etc/passwd", "é/ü", &"x".repeat(999)].map(|name| file_of(Path::new("/r"), name, 0));
    assert!(names.iter().all(|file| file.parent() == Some(Path::new("/r"))), "{names:?}");
    assert_ne!(all.disks[0].task, all.disks[0].second());
}
