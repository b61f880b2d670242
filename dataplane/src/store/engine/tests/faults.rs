//! Disks that fail: full, broken, rotten. The session ends with a clear word, older points stay.

use gantry_common::wire::MarkKind;

use super::rig::{KEY, Model, Rig, offer, raw, session, verify};
use super::{K256, key};
use crate::store::reader::StoreReader;
use crate::store::storage::memory::Fault;
use crate::store::storage::{OpenMode, Storage, StorageFile};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

fn fault(operation: &'static str, path_part: &str, errno: i32, skip: u32) -> Fault {
    Fault { operation, path_part: path_part.into(), errno, skip, count: 1 }
}

#[test]
fn a_full_or_broken_disk_fails_the_session_and_leaves_older_points() {
    for (operation, part, errno) in [
        ("write", ".pack", ENOSPC),
        ("write", ".pack", EIO),
        ("sync", ".pack", EIO),
        ("sync", ".journal", EIO),
        ("write", ".journal", ENOSPC),
        ("write", ".manifest", ENOSPC),
        ("sync", ".manifest", EIO),
        ("rename", ".manifest", EIO),
        ("open", ".pack", ENOSPC),
    ] {
        for skip in 0..4 {
            let mut rig = Rig::new();
            let old = Model::from([(0, 1), (1, 2)]);
            let (point, _) = rig
                .backup(session(1), &offer("vm", &[6 * K256]), std::slice::from_ref(&old))
                .unwrap();
            let mut next = offer("vm", &[6 * K256]);
            next.created_ms += 1;
            let model = Model::from([(0, 11), (1, 12), (2, 13), (3, 14)]);
            rig.disk.fail(fault(operation, part, errno, skip));
            let done = rig.backup(session(2), &next, std::slice::from_ref(&model));
            let what = format!("{operation} {part} {skip}");
            rig.check_point("vm", point, std::slice::from_ref(&old));
            assert_eq!(rig.pool.free(), rig.pool.slots(), "{what}: buffers are back");
            let Some((made, _)) = done else {
                let text = rig.failure().unwrap_or_else(|| panic!("{what}: no failure"));
                assert!(text.contains(part), "{what}: {text}");
                assert!(errno != ENOSPC || text.contains("free space"), "{what}: {text}");
                rig.detach(session(2));
                let (made, _) =
                    rig.backup(session(2), &next, std::slice::from_ref(&model)).unwrap();
                rig.check_point("vm", made, std::slice::from_ref(&model));
                rig.after_power_loss().check_point("vm", made, &[model]);
                continue;
            };
            rig.after_power_loss().check_point("vm", made, &[model]);
        }
    }
}

#[test]
fn a_pack_whose_sync_failed_is_never_used_again() {
    let mut rig = Rig::new();
    let next = offer("vm", &[6 * K256]);
    rig.open(session(1), &next);
    rig.open_task(key(1, 0)).unwrap();
    rig.append(key(1, 0), 0, 1, K256 as u32);
    rig.now_ms += 6000;
    rig.settle();
    rig.append(key(1, 0), 1, 2, K256 as u32);
    rig.disk.fail(fault("sync", ".pack", EIO, 0));
    rig.now_ms += 6000;
    rig.settle();
    assert!(rig.failure().unwrap().contains("cannot sync"));
    rig.detach(session(1));
    let mut rig = rig.after_power_loss();
    rig.open(session(1), &next);
    let (_, durable) = rig.open_task(key(1, 0)).unwrap();
    assert!(durable.contains(0), "acknowledged before the failure");
    assert!(!durable.contains(1));
}

#[test]
fn a_rotten_record_in_an_unsealed_pack_hides_no_other() {
    let mut rig = Rig::new();
    let next = offer("vm", &[6 * K256]);
    rig.open(session(1), &next);
    rig.open_task(key(1, 0)).unwrap();
    for block in 0..3 {
        rig.append(key(1, 0), block, block + 1, K256 as u32);
    }
    rig.mark(key(1, 0), 3, 1, MarkKind::Zero);
    rig.now_ms += 6000;
    rig.settle();
    let pack = rig.disk.files().into_iter().find(|file| file.starts_with("packs/")).unwrap();
    rig.disk.flip(&pack, 2 * 4096 + 130);
    let mut rig = rig.after_power_loss();
    assert!(rig.store.notes().iter().any(|note| note.contains("at byte 8192")));
    rig.open(session(1), &next);
    let (_, durable) = rig.open_task(key(1, 0)).unwrap();
    assert!(durable.contains(0) && !durable.contains(1) && durable.contains(2));
    let id = KEY.block_id(&raw(2, K256 as u32));
    assert_eq!(rig.query(key(1, 0), vec![(1, id)]), [false]);
}

#[test]
fn a_torn_journal_ends_at_its_last_whole_entry() {
    for cut in [1, 7, 20] {
        let mut rig = Rig::new();
        let next = offer("vm", &[6 * K256]);
        rig.open(session(1), &next);
        rig.open_task(key(1, 0)).unwrap();
        for block in 0..2 {
            rig.append(key(1, 0), block, block + 1, K256 as u32);
            rig.now_ms += 6000;
            rig.settle();
        }
        let disk = rig.disk.after_power_loss();
        let path = disk.files().into_iter().find(|file| file.ends_with(".journal")).unwrap();
        let file = disk.open(&path, OpenMode::Write).unwrap();
        file.set_len(file.len().unwrap() - cut).unwrap();
        file.sync_data().unwrap();
        let mut rig = Rig::on(disk);
        rig.open(session(1), &next);
        let (_, durable) = rig.open_task(key(1, 0)).unwrap();
        assert!(durable.contains(0) && !durable.contains(1), "cut {cut}: {durable:?}");
    }
}

#[test]
fn a_newer_manifest_is_named_and_hides_no_other() {
    let mut rig = Rig::new();
    let first = offer("vm", &[2 * K256]);
    let (point, _) = rig.backup(session(1), &first, &[Model::from([(0, 1)])]).unwrap();
    let mut second = first;
    second.created_ms += 1;
    rig.backup(session(2), &second, &[Model::from([(0, 2)])]).unwrap();
    let path = rig.disk.files().into_iter().rfind(|file| file.ends_with(".manifest"));
    let path = path.unwrap();
    rig.disk.flip(&path, 8);
    rig.disk.flip(&path.replace(".manifest", ".copy"), 8);
    let lines = crate::store::admin::list(&rig.store.reader(), None).unwrap();
    assert_eq!(lines[0].point, point.to_string());
    assert!(lines[0].unreadable.is_none());
    assert!(lines[1].unreadable.as_ref().unwrap().contains("newer Gantry"), "{:?}", lines[1]);
    rig.check_point("vm", point, &[Model::from([(0, 1)])]);
}

#[test]
fn damage_is_named_remembered_and_healed_by_the_next_backup() {
    let mut rig = Rig::new();
    let first = offer("vm", &[6 * K256]);
    let model = Model::from([(0, 1), (1, 2), (5, 3)]);
    let (point, _) = rig.backup(session(1), &first, std::slice::from_ref(&model)).unwrap();
    let clean = verify(&rig.store.reader()).unwrap();
    assert!(clean.is_clean() && clean.records_good == 4, "{clean:?}");
    let pack = rig.disk.files().into_iter().find(|file| file.starts_with("packs/")).unwrap();
    rig.disk.flip(&pack, 2 * 4096 + 131);
    let found = verify(&rig.store.reader()).unwrap();
    assert_eq!((found.damages, found.damaged[0].offset), (1, 8192), "{found:?}");
    assert!(found.damaged[0].file.ends_with(&pack));
    let hit = &found.hits[0];
    assert_eq!((&*hit.name, &*hit.disk, hit.blocks_lost), ("vm", "disk0.img", 1));
    assert_eq!(hit.runs, [gantry_common::extents::Run { first: 1, count: 1 }]);

    let mut second = first;
    second.created_ms += 1;
    let (next, sent) = rig.backup(session(2), &second, std::slice::from_ref(&model)).unwrap();
    assert_eq!((sent[0].stored, sent[0].unchanged), (1, 2));
    rig.check_point("vm", next, std::slice::from_ref(&model));
    rig.check_point("vm", point, std::slice::from_ref(&model));
    let healed = verify(&rig.store.reader()).unwrap();
    assert_eq!((healed.damages, healed.hits.len()), (1, 0), "{healed:?}");
}

#[test]
fn any_flipped_byte_is_named_or_harmless() {
    let mut rig = Rig::new();
    let first = offer("vm", &[6 * K256, 3 * K256]);
    let models = [Model::from([(0, 1), (1, 2), (5, 3)]), Model::from([(1, 9)])];
    let (point, _) = rig.backup(session(1), &first, &models).unwrap();
    rig.store.shut_down();
    let disk = rig.disk.after_power_loss();
    let mut random = fastrand::Rng::with_seed(7);
    let image = disk.image();
    let mut named = 0;
    for round in 0..400 {
        let (path, len, _) = &image[random.usize(0..image.len())];
        if *len == 0 || path == "lock" {
            continue;
        }
        let at = random.u64(0..*len);
        let flipped = disk.after_power_loss();
        flipped.flip(path, at);
        let what = format!("round {round}: {path} byte {at}");
        // Reading may fail in words; it must never panic or give other bytes.
        let Ok((reader, notes)) = StoreReader::open(flipped) else {
            named += 1;
            continue;
        };
        let Ok(report) = verify(&reader) else {
            named += 1;
            continue;
        };
        if report.is_clean() && notes.is_empty() && report.notes.is_empty() {
            super::rig::check_point(&reader, "vm", point, &models);
        } else {
            named += 1;
        }
        assert!(report.points <= 1, "{what}");
    }
    assert!(named > 40, "{named} of 400 were named");
}
