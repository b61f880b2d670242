//! Guests that write while others snapshot, read and remove: every way to the data yields what the
//! disk held at the instant of the snapshot.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::{Fault, Guest, GuestPattern, GuestSpec, Oracle, StorageError};
use super::model::query;
use super::{Lab, is_locked, noise, qemu_raw};

const MIB: u64 = 1 << 20;

fn busy(lab: &Lab, disk: super::DiskId, seed: u64) -> Guest {
    let pattern = GuestPattern::Mixed;
    let spec = GuestSpec { writes_per_second: 3000, write_bytes_max: 40_000, seed, pattern };
    lab.storage.start_guest(disk, spec).unwrap()
}

fn same(oracle: &Oracle, image: &[u8], what: &str) {
    let differences = oracle.differences(image, 5).unwrap();
    assert!(differences.is_empty(), "{what} differs at {differences:?}");
}

#[test]
fn every_road_to_the_data_gives_the_instant_of_the_snapshot() {
    for (seed, file) in [(1, "[vmfs5] vm/vm.vmdk"), (2, "[vmfs6] vm/vm.vmdk")] {
        let lab = Lab::new(seed);
        let disk = lab.disk(file, 34 * MIB + 512);
        lab.storage.watch(disk).unwrap();
        lab.storage.enable_cbt(disk).unwrap();
        lab.storage.power_on(&[disk]).unwrap();
        let guest = busy(&lab, disk, seed);
        // What a backup product does: full, then incrementals on top of it.
        let mut backup = vec![0; 34 * MIB as usize + 512];
        let mut change_id = "*".to_owned();
        for round in 0..5 {
            std::thread::sleep(Duration::from_millis(60));
            let snapshot = lab.storage.snapshot(&[disk]).unwrap();
            let frozen = lab.storage.snapshot_info(snapshot).unwrap().disks.remove(0);
            let oracle = lab.storage.oracle(snapshot, disk).unwrap();
            let added = lab.storage.hot_add(&frozen.file, "proxy").unwrap();
            let view = std::fs::read(&added.path).unwrap();
            same(&oracle, &view, "hot-added disk");
            for area in query(&lab.storage, disk, snapshot, &change_id).unwrap() {
                let area = area.start as usize..area.end as usize;
                backup[area.clone()].copy_from_slice(&view[area]);
            }
            same(&oracle, &backup, &format!("backup {round}"));

            let flat = frozen.file.sibling("vm-flat.vmdk");
            let flat = lab.storage.folder_open(&flat).unwrap();
            let mut bytes = vec![0; flat.len() as usize];
            flat.read_at(0, &mut bytes).unwrap();
            same(&oracle, &bytes, "datastore file");

            let mut stream = Vec::new();
            let mut export = lab.storage.export_stream(disk, Some(snapshot)).unwrap();
            export.read_to_end(&mut stream).unwrap();
            let exported = lab.folder.path().join("export.vmdk");
            std::fs::write(&exported, stream).unwrap();
            same(&oracle, &qemu_raw(&exported, "vmdk", lab.folder.path()), "export");

            lab.storage.hot_remove(&frozen.file, "proxy").unwrap();
            let removal = lab.storage.remove_snapshot(snapshot, true).unwrap();
            assert!(!removal.consolidation_needed);
            change_id = frozen.change_id.unwrap();
        }
        let report = guest.stop().unwrap();
        assert!(report.writes > 100 && report.bytes > MIB, "{report:?}");
        lab.agrees_with_qemu(disk, file);
    }
}

#[test]
fn an_oracle_tells_what_differs() {
    let lab = Lab::new(3);
    let disk = lab.disk("[vmfs6] vm/vm.vmdk", 3 * 65536 + 512);
    lab.storage.watch(disk).unwrap();
    lab.storage.write(disk, 70_144, &noise(1, 512)).unwrap();
    let snapshot = lab.storage.snapshot(&[disk]).unwrap();
    let mut image = lab.frozen(snapshot, disk);
    lab.storage.write(disk, 0, &noise(2, 512)).unwrap();
    lab.storage.remove_snapshot(snapshot, true).unwrap();
    let oracle = lab.storage.oracle(snapshot, disk).unwrap();
    same(&oracle, &image, "the same image");
    image[70_145] ^= 1;
    image[3 * 65536 + 5] ^= 1;
    assert_eq!(oracle.differences(&image[..], 9).unwrap(), [65536, 3 * 65536]);
    image.push(0);
    assert_eq!(oracle.differences(&image[..], 9).unwrap().last(), Some(&(3 * 65536 + 512)));
    let live = lab.live(disk);
    assert_eq!(oracle.differences(&live[..], 9).unwrap(), [0]);
}

#[test]
fn two_disks_never_appear_out_of_order() {
    let lab = Lab::new(4);
    let disks = [lab.disk("[vmfs5] vm/a.vmdk", MIB), lab.disk("[vmfs6] vm/b.vmdk", MIB)];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut count = 0u64;
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                let mut sector = [0; 512];
                sector[..8].copy_from_slice(&count.to_le_bytes());
                for disk in disks {
                    lab.storage.write(disk, 4096, &sector).unwrap();
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        let mut last = 0;
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(2));
            let snapshot = lab.storage.snapshot(&disks).unwrap();
            let [first, second] = disks.map(|disk| {
                let mut sector = [0; 512];
                lab.storage.read_frozen(snapshot, disk, 4096, &mut sector).unwrap();
                u64::from_le_bytes(sector[..8].try_into().unwrap())
            });
            assert!(first == second || first == second + 1, "{first} on a, {second} on b");
            assert!(second >= last);
            last = second;
            lab.storage.remove_snapshot(snapshot, true).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(last > 40, "the guest wrote only {last} times");
    });
}

#[test]
fn a_quiesced_guest_writes_nothing_and_an_endless_one_starves_nobody() {
    let lab = Lab::new(5);
    let disk = lab.disk("[vmfs6] vm/vm.vmdk", 4 * MIB);
    let pattern = GuestPattern::Sequential;
    let spec = GuestSpec { writes_per_second: 0, write_bytes_max: 65536, seed: 1, pattern };
    let guest = lab.storage.start_guest(disk, spec).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let began = Instant::now();
    lab.storage.quiesce(&[disk]);
    assert!(began.elapsed() < Duration::from_secs(2), "the guest starves others");
    let quiet = lab.live(disk);
    std::thread::sleep(Duration::from_millis(30));
    assert!(quiet == lab.live(disk), "a quiesced guest wrote");
    lab.storage.thaw(&[disk]);
    std::thread::sleep(Duration::from_millis(100));
    assert!(quiet != lab.live(disk), "a thawed guest did not write");
    assert!(guest.stop().unwrap().writes > 0);
}

#[test]
fn exports_end_with_their_snapshot_and_need_a_vm_that_is_off() {
    let lab = Lab::new(6);
    let disk = lab.disk("[vmfs6] vm/vm.vmdk", 8 * MIB);
    lab.storage.write(disk, 0, &noise(1, 5 * MIB as usize)).unwrap();
    let mut stream = Vec::new();
    lab.storage.export_stream(disk, None).unwrap().read_to_end(&mut stream).unwrap();
    let exported = lab.folder.path().join("export.vmdk");
    std::fs::write(&exported, stream).unwrap();
    assert!(lab.live(disk) == qemu_raw(&exported, "vmdk", lab.folder.path()));
    lab.storage.power_on(&[disk]).unwrap();
    assert!(is_locked(lab.storage.export_stream(disk, None).map(|_| ())));

    let snapshot = lab.storage.snapshot(&[disk]).unwrap();
    let mut export = lab.storage.export_stream(disk, Some(snapshot)).unwrap();
    let mut start = vec![0; 100_000];
    export.read_exact(&mut start).unwrap();
    lab.storage.remove_snapshot(snapshot, true).unwrap();
    assert!(export.read_to_end(&mut Vec::new()).is_err(), "the snapshot has gone");

    let snapshot = lab.storage.snapshot(&[disk]).unwrap();
    let file = "[vmfs6] vm/vm.vmdk".parse().unwrap();
    lab.storage.inject(Fault::ReadError { file, start: 3 * MIB, length: 1, times: None });
    let mut export = lab.storage.export_stream(disk, Some(snapshot)).unwrap();
    let failed = export.read_to_end(&mut Vec::new()).unwrap_err();
    let inner = failed.into_inner().unwrap().downcast::<StorageError>().unwrap();
    assert!(matches!(*inner, StorageError::Injected(_)), "{inner}");
}
