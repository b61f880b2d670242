//! Bugs that were found, each with a test of its name.

use gantry_common::session::store_port::StoreReport;
use gantry_common::wire::MarkKind;

use super::rig::{Model, Rig, new_disk, offer, raw, session};
use super::{K256, KEY, key};
use crate::store::footer::PACK_HEAD_BYTES;
use crate::store::layout::PackNumber;
use crate::store::storage::memory::Fault;
use crate::store::storage::{OpenMode, Storage, StorageFile};

/// The store answered for a pack that a killed process had not synced: another session referred to
/// its blocks, and a power cut took them.
#[test]
fn a_pack_of_a_killed_writer_is_synced_before_it_is_indexed() {
    let mut rig = Rig::new();
    rig.disk.forget_syncs(".pack");
    rig.disk.forget_syncs("packs/");
    rig.backup(session(1), &offer("a", &[2 * K256]), &[Model::from([(0, 1)])]).unwrap();
    // As if it had been killed before the syncs: all is written, nothing is durable.
    let disk = rig.disk.after_kill();
    disk.end_faults();
    drop(rig);
    let rig = Rig::on(disk);
    let (point, left) = {
        let mut rig = rig;
        let made = rig.backup(session(2), &offer("b", &[2 * K256]), &[Model::from([(0, 1)])]);
        (made.unwrap().0, rig.after_power_loss())
    };
    left.check_point("b", point, &[Model::from([(0, 1)])]);
}

/// A committed point was reported again by a process that had only seen its name, and a power cut
/// took the name.
#[test]
fn a_point_of_a_killed_writer_is_durable_before_it_is_reported() {
    let mut rig = Rig::new();
    rig.disk.forget_syncs("points/");
    let offer = offer("a", &[2 * K256]);
    let (point, _) = rig.backup(session(1), &offer, &[Model::from([(0, 1)])]).unwrap();
    // Killed just before the last step of the commit: the folder's sync.
    let disk = rig.disk.after_kill();
    disk.end_faults();
    drop(rig);
    for file in disk.files().iter().filter(|file| file.starts_with("points/")) {
        disk.open(file, OpenMode::Write).unwrap().sync_data().unwrap();
    }
    let mut rig = Rig::on(disk);
    let came = rig.open(session(1), &offer);
    let opened = StoreReport::SessionOpened { session: session(1), committed: Some(point) };
    assert_eq!(came, [opened]);
    rig.after_power_loss().check_point("a", point, &[Model::from([(0, 1)])]);
}

/// A power cut could leave a pack's footer and take the records that it lists.
#[test]
fn a_footer_is_written_only_when_its_records_are_durable() {
    let mut rig = Rig::new();
    rig.open(session(1), &offer("a", &[2 * K256]));
    rig.open_task(key(1, 0)).unwrap();
    rig.append(key(1, 0), 0, 1, K256 as u32);
    rig.mark(key(1, 0), 1, 1, MarkKind::Zero);
    // The first sync of the pack fails: until then no footer may be in the file.
    let path = rig.disk.files().into_iter().find(|file| file.starts_with("packs/")).unwrap();
    let fault = Fault { operation: "sync", path_part: ".pack".into(), errno: 5, skip: 0, count: 1 };
    rig.disk.fail(fault);
    let pack = rig.disk.open(&path, OpenMode::Read).unwrap();
    rig.seal(key(1, 0));
    assert!(rig.failure().unwrap().contains("cannot sync"));
    let number = PackNumber::from_file_name(path.rsplit('/').next().unwrap()).unwrap();
    assert!(crate::store::footer::read_footer(&pack, number).is_err());
}

/// A pack with acknowledged blocks whose task failed was of no use until the next opening: the
/// resumed task sent them again.
#[test]
fn what_was_acknowledged_before_a_failure_is_resumed_in_the_same_process() {
    for operation in ["sync", "write"] {
        let mut rig = Rig::new();
        let next = offer("a", &[6 * K256]);
        rig.open(session(1), &next);
        rig.open_task(key(1, 0)).unwrap();
        rig.append(key(1, 0), 0, 1, K256 as u32);
        rig.now_ms += 6000;
        rig.settle();
        let fault = Fault { operation, path_part: ".pack".into(), errno: 5, skip: 0, count: 1 };
        rig.disk.fail(fault);
        rig.append(key(1, 0), 1, 2, K256 as u32);
        rig.now_ms += 6000;
        rig.settle();
        assert!(rig.failure().is_some(), "{operation}");
        rig.reports.clear();
        rig.detach(session(1));
        rig.open(session(1), &next);
        let (_, durable) = rig.open_task(key(1, 0)).unwrap();
        assert!(durable.contains(0) && !durable.contains(1), "{operation}: {durable:?}");
        assert_eq!(rig.query(key(1, 0), vec![(2, KEY.block_id(&raw(1, K256 as u32)))]), [true]);
        let model = Model::from([(0, 1), (1, 2), (2, 1)]);
        rig.detach(session(1));
        let (point, _) = rig.backup(session(1), &next, std::slice::from_ref(&model)).unwrap();
        rig.after_power_loss().check_point("a", point, &[model]);
    }
}

/// The commit of an older session took the progress of a newer one along.
#[test]
fn a_commit_leaves_the_progress_of_a_newer_session() {
    let mut rig = Rig::new();
    let older = offer("a", &[2 * K256, 2 * K256]);
    rig.open(session(1), &older);
    rig.detach(session(1));
    let mut newer = offer("a", &[2 * K256, 2 * K256]);
    newer.created_ms += 1;
    newer.disks[1].snapshot = "s2".into();
    newer.disks[1].identity = "other".into();
    rig.open(session(2), &newer);
    rig.open_task(key(2, 1)).unwrap();
    rig.append(key(2, 1), 0, 7, K256 as u32);
    rig.detach(session(2));
    let models = [Model::from([(0, 1)]), Model::from([(1, 2)])];
    rig.backup(session(1), &older, &models).unwrap();
    rig.open(session(2), &newer);
    let (_, durable) = rig.open_task(key(2, 1)).unwrap();
    assert!(durable.contains(0), "{durable:?}");
}

/// A pack of which a crash left a torn header and nothing else stayed for ever, and every
/// verification named it.
#[test]
fn a_torn_header_without_a_record_leaves_nothing_behind() {
    for (len, at) in [(8192, 16), (4096, 300), (1 << 20, 0)] {
        let rig = Rig::new();
        let disk = rig.disk.after_power_loss();
        let number = PackNumber::new(1, 1);
        disk.create_dir(&number.dir()).unwrap();
        let file = disk.open(&number.path(), OpenMode::CreatePack).unwrap();
        file.set_len(len).unwrap();
        file.write_at(at, &[7; 100]).unwrap();
        drop(rig);
        let rig = Rig::on(disk);
        assert!(!rig.disk.files().contains(&number.path()), "{len}");
    }
}

/// A disk that gave no page of an unsealed pack for a moment made the opening remove it.
#[test]
fn a_pack_that_cannot_be_read_is_never_removed_or_sealed() {
    let mut rig = Rig::on(new_disk());
    rig.open(session(1), &offer("a", &[6 * K256]));
    rig.open_task(key(1, 0)).unwrap();
    rig.append(key(1, 0), 0, 1, K256 as u32);
    rig.now_ms += 6000;
    rig.settle();
    let path = rig.disk.files().into_iter().find(|file| file.starts_with("packs/")).unwrap();
    let disk = rig.disk.after_power_loss();
    drop(rig);
    let len = disk.open(&path, OpenMode::Read).unwrap().len().unwrap();
    // The header is read, then nothing more.
    let fault =
        Fault { operation: "read", path_part: path.clone(), errno: 5, skip: 1, count: u32::MAX };
    disk.fail(fault);
    let rig = Rig::on(disk);
    assert!(rig.store.notes().iter().any(|note| note.contains("does not give")));
    let disk = rig.disk.after_power_loss();
    assert_eq!(disk.open(&path, OpenMode::Read).unwrap().len().unwrap(), len);
    drop(rig);
    crate::store::admin::rebuild_index(disk.clone()).unwrap();
    let mut rig = Rig::on(disk);
    rig.open(session(1), &offer("a", &[6 * K256]));
    let (_, durable) = rig.open_task(key(1, 0)).unwrap();
    assert!(durable.contains(0), "{durable:?}");
    assert!(len > PACK_HEAD_BYTES);
}
