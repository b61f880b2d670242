//! Injected faults, locks and hot-add in named cases.

use super::super::{Fault, StorageError, View};
use super::model::query;
use super::{Lab, is_locked, noise};

const MIB: u64 = 1 << 20;

#[test]
fn the_live_link_is_locked_and_the_frozen_base_readable() {
    let lab = Lab::new(1);
    let disk = lab.disk("[vmfs6] vm/vm.vmdk", MIB);
    lab.storage.write(disk, 0, &noise(1, 4096)).unwrap();
    lab.storage.power_on(&[disk]).unwrap();
    let flat = "[vmfs6] vm/vm-flat.vmdk".parse().unwrap();
    assert!(is_locked(lab.storage.folder_open(&flat)));
    lab.storage.folder_open(&"[vmfs6] vm/vm.vmdk".parse().unwrap()).unwrap();
    let snapshot = lab.storage.snapshot(&[disk]).unwrap();
    let delta = "[vmfs6] vm/vm-000001-sesparse.vmdk".parse().unwrap();
    assert!(is_locked(lab.storage.folder_open(&delta)));
    let file = lab.storage.folder_open(&flat).unwrap();
    let mut bytes = vec![0; 4096];
    file.read_at(0, &mut bytes).unwrap();
    assert_eq!((file.len(), &bytes[..]), (MIB, &noise(1, 4096)[..]));
    assert!(file.read_at(MIB - 512, &mut bytes).is_err());
    assert!(lab.storage.folder_open(&"[vmfs6] vm/none.vmdk".parse().unwrap()).is_err());
    assert!(lab.storage.folder_open(&"[vmfs6] vm".parse().unwrap()).is_err());

    lab.storage.remove_snapshot(snapshot, true).unwrap();
    assert!(is_locked(file.read_at(0, &mut bytes)), "the guest writes to it again");
}

#[test]
fn removal_while_attached_leaves_an_orphan() {
    let lab = Lab::new(2);
    let disk = lab.disk("[vmfs5] vm/vm.vmdk", 5 * MIB);
    lab.storage.power_on(&[disk]).unwrap();
    let base = "[vmfs5] vm/vm.vmdk".parse().unwrap();
    assert!(is_locked(lab.storage.hot_add(&base, "proxy")));
    lab.storage.write(disk, 0, &noise(1, 4096)).unwrap();
    let first = lab.storage.snapshot(&[disk]).unwrap();
    let added = lab.storage.hot_add(&base, "proxy").unwrap();
    assert_eq!(added.view, View::Base);
    let uuid = lab.storage.disk(disk).unwrap().uuid;
    assert!(added.path.ends_with(format!(".proxies/proxy/by-uuid/{uuid}")));
    lab.storage.write(disk, 0, &noise(2, 4096)).unwrap();
    assert!(lab.storage.remove_snapshot(first, true).unwrap().consolidation_needed);
    lab.storage.consolidate(&[disk]).unwrap();
    assert!(lab.storage.consolidation_needed(&[disk]).unwrap(), "it is attached still");
    assert_eq!(&std::fs::read(&added.path).unwrap()[..4096], &noise(1, 4096)[..]);
    assert_eq!(lab.storage.disk(disk).unwrap().chain.len(), 2);

    // On top of the orphan, a chain: its flattened view.
    let second = lab.storage.snapshot(&[disk]).unwrap();
    let top = lab.storage.snapshot_info(second).unwrap().disks[0].file.clone();
    let flattened = lab.storage.hot_add(&top, "other").unwrap();
    assert_eq!(flattened.view, View::Flattened);
    assert!(lab.frozen(second, disk) == std::fs::read(&flattened.path).unwrap());
    assert_eq!(lab.storage.attached(), [added, flattened]);
    lab.storage.hot_remove(&top, "other").unwrap();
    lab.storage.hot_remove(&base, "proxy").unwrap();
    assert!(lab.storage.hot_remove(&base, "proxy").is_err());
    lab.storage.remove_snapshot(second, true).unwrap();
    assert!(!lab.storage.consolidation_needed(&[disk]).unwrap());
    assert_eq!(lab.storage.disk(disk).unwrap().chain.len(), 1);
    assert_eq!(&lab.live(disk)[..4096], &noise(2, 4096)[..]);
}

#[test]
fn stuck_consolidation_failing_removal_and_locks_end() {
    let lab = Lab::new(3);
    let disk = lab.disk("[vmfs6] vm/vm.vmdk", MIB);
    let snapshot = lab.storage.snapshot(&[disk]).unwrap();
    lab.storage.write(disk, 0, &noise(1, 4096)).unwrap();
    lab.storage.inject(Fault::RemovalFails { disk: Some(disk), times: 1 });
    lab.storage.inject(Fault::StuckConsolidation { disk: None, times: 2 });
    let failed = lab.storage.remove_snapshot(snapshot, true);
    assert!(matches!(failed, Err(StorageError::Injected(_))));
    assert_eq!(lab.storage.snapshots(), [snapshot]);
    assert!(lab.storage.remove_snapshot(snapshot, true).unwrap().consolidation_needed);
    assert!(matches!(lab.storage.consolidate(&[disk]), Err(StorageError::Injected(_))));
    lab.storage.inject(Fault::Lock { file: "[vmfs6] vm/vm-flat.vmdk".parse().unwrap() });
    lab.storage.consolidate(&[disk]).unwrap();
    assert!(lab.storage.consolidation_needed(&[disk]).unwrap(), "another host holds the base");
    lab.storage.clear_faults();
    lab.storage.consolidate(&[disk]).unwrap();
    assert!(!lab.storage.consolidation_needed(&[disk]).unwrap());
    assert_eq!(&lab.live(disk)[..4096], &noise(1, 4096)[..]);
}

#[test]
fn reads_fail_where_the_fault_says_and_wait() {
    let lab = Lab::new(4);
    lab.disk("[vmfs6] vm/vm.vmdk", MIB);
    let path: super::DatastorePath = "[vmfs6] vm/vm-flat.vmdk".parse().unwrap();
    let file = lab.storage.folder_open(&path).unwrap();
    let fault = Fault::ReadError { file: path, start: 8192, length: 512, times: Some(1) };
    lab.storage.inject(fault);
    lab.storage.inject(Fault::ReadLatency { latency_ms: 30 });
    let began = std::time::Instant::now();
    file.read_at(4096, &mut [0; 4096]).unwrap();
    assert!(began.elapsed().as_millis() >= 30);
    assert!(matches!(file.read_at(4096, &mut [0; 4097]), Err(StorageError::Injected(_))));
    file.read_at(4096, &mut [0; 4097]).unwrap();
}

#[test]
fn omitted_changes_are_left_out_of_every_page_and_remembered() {
    for once in [false, true] {
        let lab = Lab::new(9);
        let disk = lab.disk("[vmfs6] vm/vm.vmdk", 256 * MIB);
        lab.storage.enable_cbt(disk).unwrap();
        lab.storage.inject(Fault::OmitChanges { disk: None, probability: 0.3, seed: 1, once });
        let mut last: Option<String> = None;
        let mut omitted = Vec::new();
        for round in 0..3 {
            for i in 0..60 {
                lab.storage.write(disk, i * 4 * MIB, &[round + 1; 512]).unwrap();
            }
            let snapshot = lab.storage.snapshot(&[disk]).unwrap();
            let info = lab.storage.snapshot_info(snapshot).unwrap();
            if let Some(change_id) = &last {
                let areas = query(&lab.storage, disk, snapshot, change_id).unwrap();
                assert_eq!(areas, query(&lab.storage, disk, snapshot, change_id).unwrap());
                let left_out = lab.storage.omitted_areas(snapshot, disk);
                for i in 0..60 {
                    let within = |list: &[std::ops::Range<u64>]| {
                        list.iter().any(|range| range.contains(&(i * 4 * MIB)))
                    };
                    assert!(within(&areas) != within(&left_out), "block {i}");
                }
                omitted.push(left_out.len());
            }
            last = info.disks[0].change_id.clone();
            lab.storage.remove_snapshot(snapshot, true).unwrap();
        }
        assert!((8..35).contains(&omitted[0]), "{omitted:?} of 60 at 0.3");
        assert_eq!(omitted[1] == 0, once, "{omitted:?}");
    }
}
