//! Change tracking in named cases: when it begins and ends, what is refused, pages, the trap.

use super::super::{ChangeTrackingFault, PowerOff, StorageError};
use super::model::{covers, query};
use super::{Lab, noise};

const MIB: u64 = 1 << 20;

#[test]
fn tracking_begins_at_the_first_stun_and_ends_at_once() {
    let lab = Lab::new(1);
    let disk = lab.disk("[vmfs6] vm/vm.vmdk", 8 * MIB);
    let before = lab.storage.snapshot(&[disk]).unwrap();
    let refused = lab.storage.changed_areas(disk, before, 0, "*");
    let Err(StorageError::ChangeTracking { fault, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(fault, ChangeTrackingFault::NotActive);
    lab.storage.remove_snapshot(before, true).unwrap();

    lab.storage.enable_cbt(disk).unwrap();
    let info = lab.storage.disk(disk).unwrap();
    assert!(info.change_tracking_enabled && info.change_id.is_none(), "not before a stun");
    let first = lab.storage.snapshot(&[disk]).unwrap();
    let change_id = lab.storage.snapshot_info(first).unwrap().disks[0].change_id.clone().unwrap();
    lab.storage.remove_snapshot(first, true).unwrap();
    lab.storage.write(disk, MIB, &noise(1, 512)).unwrap();
    let second = lab.storage.snapshot(&[disk]).unwrap();
    let areas = query(&lab.storage, disk, second, &change_id).unwrap();
    assert!(areas.iter().any(|area| area.contains(&MIB)));
    let text = std::fs::read_to_string(lab.folder.path().join("vmfs6/vm/vm.vmdk")).unwrap();
    assert!(text.contains("changeTrackPath=\"vm-ctk.vmdk\""), "{text}");

    let beyond = lab.storage.changed_areas(disk, second, 8 * MIB, &change_id);
    assert!(matches!(
        beyond,
        Err(StorageError::ChangeTracking { fault: ChangeTrackingFault::StartBeyondEnd { .. }, .. })
    ));
    lab.storage.disable_cbt(disk).unwrap();
    assert_eq!(lab.storage.disk(disk).unwrap().change_id, None);
    let off = query(&lab.storage, disk, second, &change_id);
    assert_eq!(off, Err(ChangeTrackingFault::NotActive));
}

#[test]
fn old_change_ids_are_refused_after_reset_revert_and_a_lost_host() {
    for case in 0..4 {
        let lab = Lab::new(case);
        let disk = lab.disk("[vmfs5] vm/vm.vmdk", 4 * MIB);
        lab.storage.enable_cbt(disk).unwrap();
        lab.storage.power_on(&[disk]).unwrap();
        let base = lab.storage.snapshot(&[disk]).unwrap();
        let old = lab.storage.snapshot_info(base).unwrap().disks[0].change_id.clone().unwrap();
        lab.storage.write(disk, 0, &noise(1, 4096)).unwrap();
        match case {
            0 => lab.storage.reset_cbt(disk).unwrap(),
            1 => lab.storage.revert(base).unwrap(),
            2 => lab.storage.power_off(&[disk], PowerOff::HostLost).unwrap(),
            _ => lab.storage.power_off(&[disk], PowerOff::Clean).unwrap(),
        }
        lab.storage.write(disk, 8192, &noise(1, 4096)).unwrap();
        let next = lab.storage.snapshot(&[disk]).unwrap();
        let answer = query(&lab.storage, disk, next, &old);
        if case == 3 {
            covers(&answer.unwrap(), &lab.frozen(base, disk), &lab.frozen(next, disk), "clean");
        } else {
            let unknown = matches!(answer, Err(ChangeTrackingFault::UnknownId { .. }));
            assert!(unknown, "case {case}: {answer:?}");
        }
        let new = lab.storage.snapshot_info(next).unwrap().disks[0].change_id.clone().unwrap();
        let uuid = new.rsplit_once('/').unwrap().0;
        let future = query(&lab.storage, disk, next, &format!("{uuid}/99999"));
        assert!(matches!(future, Err(ChangeTrackingFault::FutureId { .. })), "{future:?}");
    }
}

#[test]
fn many_areas_come_in_pages_and_too_much_is_reported() {
    let lab = Lab::new(11);
    let disk = lab.disk("[vmfs6] vm/vm.vmdk", 640 * MIB);
    lab.storage.enable_cbt(disk).unwrap();
    // Block sizes vary from fork to fork: until they are small enough for several pages.
    for _ in 0..200 {
        let base = lab.storage.snapshot(&[disk]).unwrap();
        let change_id =
            lab.storage.snapshot_info(base).unwrap().disks[0].change_id.clone().unwrap();
        lab.storage.remove_snapshot(base, true).unwrap();
        for i in 0..5000 {
            lab.storage.write(disk, i * 128 * 1024, &[1; 512]).unwrap();
        }
        let next = lab.storage.snapshot(&[disk]).unwrap();
        let first = lab.storage.changed_areas(disk, next, 0, &change_id).unwrap();
        let areas = query(&lab.storage, disk, next, &change_id).unwrap();
        lab.storage.remove_snapshot(next, true).unwrap();
        if areas.len() > 4000 {
            assert!(first.areas.len() == 2000 && first.length < 640 * MIB);
            let bytes: u64 = areas.iter().map(|area| area.end - area.start).sum();
            assert!(bytes > 5000 * 8192, "{bytes} bytes: nothing is over-reported");
            let hit = |i: u64| areas.iter().any(|area| area.contains(&(i * 128 * 1024)));
            assert!((0..5000).all(hit));
            return;
        }
    }
    panic!("no fork had small blocks");
}

#[test]
fn enabled_on_top_of_snapshots_it_is_silently_wrong() {
    let lab = Lab::new(5);
    let disk = lab.disk("[vmfs6] vm/vm.vmdk", 64 * MIB);
    let old = lab.storage.snapshot(&[disk]).unwrap();
    lab.storage.write(disk, 0, &noise(1, MIB as usize)).unwrap();
    lab.storage.enable_cbt(disk).unwrap();
    let base = lab.storage.snapshot(&[disk]).unwrap();
    let change_id = lab.storage.snapshot_info(base).unwrap().disks[0].change_id.clone().unwrap();
    assert_eq!(query(&lab.storage, disk, base, "*").unwrap(), [], "deltas are not counted");
    for i in 0..60 {
        lab.storage.write(disk, i * MIB, &noise(i, 512)).unwrap();
    }
    let next = lab.storage.snapshot(&[disk]).unwrap();
    let areas = query(&lab.storage, disk, next, &change_id).unwrap();
    let missed = (0..60).filter(|i| !areas.iter().any(|area| area.contains(&(i * MIB)))).count();
    assert!(missed > 5, "only {missed} of 60 changes were missed");
    // The way out: no snapshots, off and on.
    for snapshot in [old, base, next] {
        lab.storage.remove_snapshot(snapshot, true).unwrap();
    }
    lab.storage.disable_cbt(disk).unwrap();
    lab.storage.enable_cbt(disk).unwrap();
    let whole = lab.storage.snapshot(&[disk]).unwrap();
    let areas = query(&lab.storage, disk, whole, "*").unwrap();
    let view = lab.frozen(whole, disk);
    covers(&areas, &vec![0; view.len()], &view, "after the way out");
}

#[test]
fn allocation_is_unknown_on_nfs_and_growth_counts_as_changed() {
    let lab = Lab::new(6);
    let disk = lab.disk("[nfs] vm/vm.vmdk", 3 * MIB);
    lab.storage.enable_cbt(disk).unwrap();
    let base = lab.storage.snapshot(&[disk]).unwrap();
    let change_id = lab.storage.snapshot_info(base).unwrap().disks[0].change_id.clone().unwrap();
    let unknown = query(&lab.storage, disk, base, "*");
    assert_eq!(unknown, Err(ChangeTrackingFault::AllocationUnknown));
    let other = lab.disk("[vsan] vm/vm.vmdk", 3 * MIB);
    lab.storage.enable_cbt(other).unwrap();
    let whole = lab.storage.snapshot(&[other]).unwrap();
    let areas = query(&lab.storage, other, whole, "*").unwrap();
    assert_eq!(areas, [std::ops::Range { start: 0, end: 3 * MIB }]);
    lab.storage.remove_snapshot(base, true).unwrap();
    lab.storage.grow_disk(disk, 9 * MIB).unwrap();
    let next = lab.storage.snapshot(&[disk]).unwrap();
    let areas = query(&lab.storage, disk, next, &change_id).unwrap();
    let grown = areas.iter().any(|area| area.start <= 3 * MIB && area.end == 9 * MIB);
    assert!(grown, "{areas:?}");
}

#[test]
fn a_change_is_marked_before_it_is_written() {
    let lab = Lab::new(8);
    let disk = lab.disk("[vmfs6] vm/vm.vmdk", MIB);
    lab.storage.enable_cbt(disk).unwrap();
    lab.storage.power_on(&[disk]).unwrap();
    let live = lab.storage.world().state.disk(disk).unwrap().live;
    // A simulator that dies between mark and write must have reported too much, not too little.
    lab.storage.world().extents.remove(&live);
    assert!(lab.storage.write(disk, 0, &[1; 512]).is_err());
    assert_eq!(lab.storage.world().maps[&live].marks[0], 1);
    assert!(lab.storage.discard(disk, MIB - 512, 512).is_err());
    assert_eq!(lab.storage.world().maps[&live].marks.last(), Some(&1));
}
