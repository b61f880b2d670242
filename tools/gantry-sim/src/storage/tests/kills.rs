//! A simulator that is killed at any instant comes back with all disks, chains and snapshots, and
//! forgets no change.
//!
//! The victim is this test binary, started again for one ignored test.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::{DatastoreKind, DiskId, DiskSpec, Oracle, Storage, StorageError};
use super::model::query;
use super::{Lab, noise};

const FOLDER: &str = "GANTRY_SIM_VICTIM_FOLDER";
const MIB: u64 = 1 << 20;
const ROUNDS: u64 = 8;

fn open(folder: &Path) -> Storage {
    let storage = Storage::open(folder, 1).unwrap();
    if storage.disks().is_empty() {
        storage.add_datastore("vmfs5", DatastoreKind::Vmfs5).unwrap();
        for file in ["[vmfs5] vm/a.vmdk", "[vmfs6] vm/b.vmdk"] {
            let file = file.parse().unwrap();
            let spec =
                DiskSpec { file, capacity_bytes: 6 * MIB, image: None, uuid: None, thin: true };
            let disk = storage.create_disk(&spec).unwrap();
            storage.watch(disk).unwrap();
            storage.enable_cbt(disk).unwrap();
        }
    }
    storage
}

/// Works on the storage until it is killed.
#[test]
#[ignore = "it is the victim that another test kills"]
fn victim() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let storage = open(folder.as_ref());
    let disks = storage.disks();
    let mut rng = fastrand::Rng::new();
    loop {
        match rng.u32(..20) {
            0..2 if storage.snapshots().len() < 4 => {
                storage.snapshot(&disks).unwrap();
            }
            2..4 => {
                if let Some(snapshot) = rng.choice(storage.snapshots()) {
                    storage.remove_snapshot(snapshot, rng.bool()).unwrap();
                }
            }
            4 => storage.consolidate(&disks).unwrap(),
            5 => storage.discard(disks[rng.usize(..2)], rng.u64(..80) * 65536, 65536).unwrap(),
            _ => {
                let bytes = noise(rng.u64(..), 512 * rng.usize(1..200));
                storage.write(disks[rng.usize(..2)], rng.u64(..11_000) * 512, &bytes).unwrap();
            }
        }
    }
}

fn kill_a_victim(folder: &Path, after: Duration) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "storage::tests::kills::victim", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(after);
    let ended = victim.try_wait().unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(ended.is_none(), "the victim ended by itself: {ended:?}");
}

/// Every block that differs between two instants lies in an area.
fn covers(storage: &Storage, disk: DiskId, base: (&str, &Oracle), snapshot: super::SnapshotId) {
    let (change_id, then) = base;
    let now = storage.oracle(snapshot, disk).unwrap();
    let areas = query(storage, disk, snapshot, change_id).unwrap();
    for (i, (then, now)) in then.hashes.iter().zip(&now.hashes).enumerate() {
        let block = i as u64 * 65536..(i as u64 + 1) * 65536;
        let reported = areas.iter().any(|a| a.start < block.end && block.start < a.end);
        assert!(then == now || reported, "{disk}: change in {block:?} since {change_id} forgotten");
    }
}

#[test]
fn a_killed_simulator_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..ROUNDS {
        kill_a_victim(folder.path(), Duration::from_millis(rng.u64(150..500)));
        let storage = open(folder.path());
        let disks = storage.disks();
        assert_eq!(disks.len(), 2, "round {round}, seed {seed}");
        // What a backup product would do after the restart.
        let now = storage.snapshot(&disks).unwrap();
        for snapshot in storage.snapshots() {
            for frozen in storage.snapshot_info(snapshot).unwrap().disks {
                let mut bytes = vec![0; frozen.capacity_bytes as usize];
                storage.read_frozen(snapshot, frozen.disk, 0, &mut bytes).unwrap();
                let oracle = match storage.oracle(snapshot, frozen.disk) {
                    Err(StorageError::NotFound { .. }) => panic!("{snapshot} has no oracle"),
                    other => other.unwrap(),
                };
                let differences = oracle.differences(&bytes[..], 3).unwrap();
                assert!(differences.is_empty(), "{snapshot}, seed {seed}: {differences:?}");
                covers(&storage, frozen.disk, (&frozen.change_id.unwrap(), &oracle), now);
            }
        }
        storage.remove_snapshot(now, true).unwrap();
    }
    let lab = Lab { storage: open(folder.path()), folder };
    for disk in lab.storage.disks() {
        lab.agrees_with_qemu(disk, &format!("seed {seed}"));
    }
}
