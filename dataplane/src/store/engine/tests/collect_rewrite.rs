//! Collections that move records, and collections on a full disk.

use gantry_common::ids::PointId;
use gantry_common::manage::CollectOptions;

use super::collect::{assert_clean, block_id};
use super::rig::{Model, Rig, offer, session, verify};
use super::{K256, key};
use crate::store::storage::Storage;

/// A point of ten blocks in one pack, of which a second point has one.
fn mostly_dead() -> (Rig, PointId, Model) {
    let mut rig = Rig::new();
    let all: Model = (0..20).map(|block| (block, block + 1)).collect();
    let dead = rig.point("old", 1, 24, &all);
    let kept = Model::from([(3, 5), (4, 8)]);
    let point = rig.point("new", 2, 24, &kept);
    rig.delete_point("old", dead);
    (rig, point, kept)
}

fn rewriting() -> CollectOptions {
    CollectOptions { rewrite_bytes_max: Some(1 << 30), ..CollectOptions::default() }
}

#[test]
fn a_mostly_dead_pack_is_rewritten() {
    let (mut rig, point, kept) = mostly_dead();
    let before = rig.packs();
    let said = rig.try_collect(CollectOptions { dry_run: true, ..rewriting() }).unwrap();
    assert_eq!((said.packs_rewritten, said.bytes_rewritten), (1, 2 * 4096), "{said:?}");
    let done = rig.try_collect(rewriting()).unwrap();
    assert_eq!((done.packs_rewritten, done.packs_removed), (1, 0), "{done:?}");
    // Header, two records and footer instead of header, 21 records and footer.
    assert_eq!((done.records_dead, done.bytes_freed), (19, 19 * 4096), "{done:?}");
    assert_eq!(done.bytes_rewritten, 4 * 4096);
    assert!(!rig.packs().contains(&before[0]) && rig.packs().len() == 2, "{:?}", rig.packs());
    rig.check_point("new", point, std::slice::from_ref(&kept));
    assert_clean(&rig);
    let mut rig = rig.after_power_loss();
    assert!(rig.store.notes().is_empty(), "{:?}", rig.store.notes());
    rig.check_point("new", point, &[kept]);
    assert_clean(&rig);
    let again = rig.try_collect(rewriting()).unwrap();
    assert_eq!((again.records_dead, again.bytes_freed), (0, 0), "{again:?}");
}

#[test]
fn what_is_known_of_a_record_moves_with_it() {
    let (mut rig, _, _) = mostly_dead();
    verify(&rig.store.reader()).unwrap();
    rig.try_collect(rewriting()).unwrap();
    let at = rig.store.repo.find_one(&block_id(5)).unwrap().unwrap();
    assert!(at.verified, "{at:?}");
    rig.open(session(3), &offer("third", &[4 * K256]));
    rig.open_task(key(3, 0)).unwrap();
    assert_eq!(rig.query(key(3, 0), vec![(0, block_id(5)), (1, block_id(1))]), [true, false]);
}

#[test]
fn a_pack_that_a_restore_may_read_gets_holes_and_no_new_place() {
    let (mut rig, point, kept) = mostly_dead();
    let pin = rig.store.repo.pin_point("new", point);
    let old = rig.store.repo.find_one(&block_id(5)).unwrap().unwrap();
    let done = rig.try_collect(rewriting()).unwrap();
    assert_eq!((done.packs_rewritten, done.packs_punched), (0, 1), "{done:?}");
    rig.store.repo.read_record(&block_id(5), &old).unwrap();
    drop(pin);
    let done = rig.try_collect(rewriting()).unwrap();
    assert_eq!((done.packs_rewritten, done.records_dead), (0, 0), "no dead bytes are left");
    rig.check_point("new", point, &[kept]);
    assert_clean(&rig);
}

#[test]
fn a_restore_that_begins_while_a_pack_is_rewritten_finds_its_records() {
    let (mut rig, point, kept) = mostly_dead();
    let old = rig.store.repo.find_one(&block_id(5)).unwrap().unwrap();
    let marker = rig.store.begin_collection(rewriting()).unwrap();
    rig.mark_all(marker);
    // Until the copy is there, but not yet sealed.
    let packs = rig.packs().len();
    while rig.packs().len() == packs {
        rig.now_ms += 1000;
        rig.settle();
    }
    let pin = rig.store.repo.pin_point("new", point);
    let done = rig.give_back().unwrap();
    assert!(done.packs_rewritten == 1 && done.notes[0].contains("next collection"), "{done:?}");
    rig.store.repo.read_record(&block_id(5), &old).unwrap();
    drop(pin);
    assert_eq!(rig.collect().packs_removed, 1);
    rig.check_point("new", point, &[kept]);
    assert_clean(&rig);
}

#[test]
fn a_pack_with_a_damaged_live_record_is_left_as_it_is() {
    let (mut rig, _, _) = mostly_dead();
    let at = rig.store.repo.find_one(&block_id(5)).unwrap().unwrap();
    rig.disk.flip(&at.pack.path(), at.offset + 130);
    let packs = rig.packs();
    let done = rig.try_collect(rewriting()).unwrap();
    assert_eq!((done.packs_rewritten, done.bytes_freed), (0, 0), "{done:?}");
    assert!(done.notes.iter().any(|note| note.contains("is damaged")), "{done:?}");
    assert_eq!(rig.packs(), packs);
    rig.settle();
    let at = rig.store.repo.index.find(&[block_id(5)]).unwrap()[0].unwrap();
    assert!(at.damaged, "what was found is remembered");
}

#[test]
fn a_stopped_collection_leaves_no_half_of_a_pack() {
    let (mut rig, point, kept) = mostly_dead();
    let marker = rig.store.begin_collection(rewriting()).unwrap();
    rig.mark_all(marker);
    let packs = rig.packs();
    while rig.packs().len() == packs.len() {
        rig.now_ms += 1000;
        rig.settle();
    }
    rig.store.cancel_collection();
    let done = rig.give_back().unwrap();
    assert!(done.notes.iter().any(|note| note.contains("stopped")), "{done:?}");
    assert_eq!(rig.packs(), packs);
    rig.check_point("new", point, &[kept]);
    assert_clean(&rig);
}

#[test]
fn a_full_disk_can_be_collected() {
    let mut rig = Rig::new();
    assert!(rig.disk.files().contains(&"ballast".to_owned()));
    let dead = rig.point("old", 1, 24, &(0..20).map(|block| (block, block + 1)).collect());
    let model = Model::from([(0, 100), (1, 1)]);
    let kept = rig.point("kept", 2, 24, &model);
    rig.delete_point("old", dead);
    let mut rig = Rig::on(rig.disk.after_kill());
    rig.disk.set_capacity(Some(rig.disk.used_bytes()));
    assert_eq!(rig.disk.free_bytes().unwrap(), 0);
    let done = rig.collect();
    assert!(done.bytes_freed > 0 && done.records_dead == 20, "{done:?}");
    assert!(!rig.disk.files().contains(&"ballast".to_owned()), "there is no room for it yet");
    rig.check_point("kept", kept, std::slice::from_ref(&model));
    // Also by a process that finds the disk full.
    let disk = rig.disk.after_kill();
    disk.set_capacity(None);
    let mut rig = Rig::on(disk);
    assert!(rig.disk.files().contains(&"ballast".to_owned()));
    rig.delete_point("kept", kept);
    rig.store.shut_down();
    let disk = rig.disk.after_kill();
    disk.set_capacity(Some(disk.used_bytes()));
    let mut rig = Rig::on(disk);
    assert!(rig.collect().packs_removed > 0);
}
