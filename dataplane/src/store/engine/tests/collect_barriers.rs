//! Collections beside backups and restores: nothing new comes to refer to what is given up, and what
//! is referred to is not given up. Each of these fails without the barrier that it is about.

use gantry_common::session::store_port::{StoreCommand, StoreReport};
use gantry_common::wire::{BaseAnswer, MarkKind, TaskTotals};

use super::collect::{assert_clean, block_id, with_dead};
use super::rig::{Model, Rig, offer, session, verify};
use super::{K256, key};

#[test]
fn a_known_answer_while_marking_keeps_the_block() {
    let (mut rig, _) = with_dead();
    let offer = offer("new", &[4 * K256]);
    rig.open(session(2), &offer);
    rig.open_task(key(2, 0)).unwrap();
    let marker = rig.begin();
    assert_eq!(rig.query(key(2, 0), vec![(0, block_id(1))]), [true]);
    rig.mark_all(marker);
    // From now on what is not marked is not there.
    assert_eq!(rig.query(key(2, 0), vec![(1, block_id(2))]), [false]);
    rig.append(key(2, 0), 1, 2, K256 as u32);
    rig.mark(key(2, 0), 2, 2, MarkKind::Zero);
    let done = rig.give_back().unwrap();
    assert_eq!(done.records_dead, 3, "{done:?}");
    rig.seal(key(2, 0));
    let point = rig.store.reader().points("new").unwrap()[0].point;
    let rig = rig.after_power_loss();
    rig.check_point("new", point, &[Model::from([(0, 1), (1, 2)])]);
    assert_clean(&rig);
}

#[test]
fn an_answer_whose_check_spans_the_beginning_or_the_end_of_marking_holds() {
    for begin_first in [false, true] {
        let (mut rig, _) = with_dead();
        rig.open(session(2), &offer("new", &[4 * K256]));
        rig.open_task(key(2, 0)).unwrap();
        let ask = StoreCommand::Query { key: key(2, 0), batch: 3, blocks: vec![(0, block_id(1))] };
        let marker = if begin_first {
            let marker = rig.begin();
            rig.store.handle(ask, 0);
            marker
        } else {
            rig.store.handle(ask, 0);
            rig.begin()
        };
        rig.mark_all(marker);
        let check = rig.store.next_check().unwrap();
        rig.store.handle_checked(&check, true);
        let known =
            std::iter::from_fn(|| rig.store.next_report()).find_map(|report| match report {
                StoreReport::Answered { known, .. } => Some(known),
                _ => None,
            });
        assert_eq!(known, Some(vec![true]), "begin first: {begin_first}");
        rig.give_back().unwrap();
        rig.mark(key(2, 0), 1, 3, MarkKind::Zero);
        rig.seal(key(2, 0));
        let point = rig.store.reader().points("new").unwrap()[0].point;
        rig.check_point("new", point, &[Model::from([(0, 1)])]);
    }
}

#[test]
fn known_blocks_that_no_journal_names_yet_are_kept() {
    let (mut rig, _) = with_dead();
    rig.open(session(2), &offer("new", &[4 * K256]));
    rig.open_task(key(2, 0)).unwrap();
    assert_eq!(rig.query(key(2, 0), vec![(0, block_id(1))]), [true]);
    // One that waits for a check, with one that nobody knows.
    let blocks = vec![(1, block_id(2)), (2, block_id(77))];
    rig.store.handle(StoreCommand::Query { key: key(2, 0), batch: 5, blocks }, 0);
    let done = rig.collect();
    assert_eq!(done.records_live, 2, "{done:?}");
    assert!(done.notes.is_empty(), "what was only asked for is not lost: {done:?}");
    rig.append(key(2, 0), 2, 3, K256 as u32);
    rig.mark(key(2, 0), 3, 1, MarkKind::Zero);
    rig.seal(key(2, 0));
    let point = rig.store.reader().points("new").unwrap()[0].point;
    rig.check_point("new", point, &[Model::from([(0, 1), (1, 2), (2, 3)])]);
}

#[test]
fn nodes_of_a_dead_tree_do_not_serve_a_new_one() {
    for marked_first in [false, true] {
        let (mut rig, _) = with_dead();
        let model = Model::from([(0, 1), (1, 2), (2, 3)]);
        let marker = rig.begin();
        let marker = if marked_first {
            rig.mark_all(marker);
            None
        } else {
            Some(marker)
        };
        let point = rig.point("new", 2, 4, &model);
        if let Some(marker) = marker {
            rig.mark_all(marker);
        }
        rig.give_back().unwrap();
        rig.check_point("new", point, std::slice::from_ref(&model));
        assert_clean(&rig);
        rig.after_power_loss().check_point("new", point, &[model]);
    }
}

#[test]
fn a_second_copy_takes_the_place_of_a_condemned_record() {
    let (mut rig, _) = with_dead();
    // Verified, so that without the collection the index would keep the first place.
    verify(&rig.store.reader()).unwrap();
    assert!(rig.store.repo.find_one(&block_id(1)).unwrap().unwrap().verified);
    let marker = rig.begin();
    rig.mark_all(marker);
    let model = Model::from([(0, 1)]);
    let point = rig.point("new", 3, 4, &model);
    rig.give_back().unwrap();
    rig.check_point("new", point, &[model]);
    assert_clean(&rig);
}

#[test]
fn a_tree_that_was_built_before_is_marked_once_it_is_sealed() {
    let (mut rig, _) = with_dead();
    rig.open(session(2), &offer("new", &[4 * K256]));
    rig.open_task(key(2, 0)).unwrap();
    let known = rig.query(key(2, 0), vec![(0, block_id(1)), (1, block_id(2)), (2, block_id(3))]);
    assert_eq!(known, [true; 3]);
    // A block of its own, so that a pack must be sealed after the tree is built.
    rig.append(key(2, 0), 3, 4, K256 as u32);
    rig.store.handle(
        StoreCommand::Seal { key: key(2, 0), totals: TaskTotals::default(), mask: Vec::new() },
        0,
    );
    let mut marker = rig.begin();
    while !marker.step().unwrap() {}
    let marker = rig.store.handle_marked(marker).expect("the tree is not sealed yet");
    rig.settle();
    rig.mark_all(marker);
    rig.give_back().unwrap();
    let point = rig.store.reader().points("new").unwrap()[0].point;
    rig.check_point("new", point, &[Model::from([(0, 1), (1, 2), (2, 3), (3, 4)])]);
    assert_clean(&rig);
}

#[test]
fn a_point_that_commits_while_marking_is_not_judged() {
    let (mut rig, _) = with_dead();
    rig.open(session(2), &offer("new", &[4 * K256]));
    rig.open_task(key(2, 0)).unwrap();
    assert_eq!(rig.query(key(2, 0), vec![(0, block_id(1))]), [true]);
    rig.now_ms += 6000;
    rig.settle();
    let marker = rig.begin();
    rig.mark(key(2, 0), 1, 3, MarkKind::Zero);
    rig.seal(key(2, 0));
    // Its journal is what pinned the block when marking began, so it is still there.
    assert!(rig.disk.files().iter().any(|file| file.ends_with(".journal")));
    rig.mark_all(marker);
    assert!(!rig.disk.files().iter().any(|file| file.ends_with(".journal")));
    rig.give_back().unwrap();
    let point = rig.store.reader().points("new").unwrap()[0].point;
    rig.check_point("new", point, &[Model::from([(0, 1)])]);
    assert_clean(&rig);
}

#[test]
fn a_base_that_is_deleted_meanwhile_serves_its_task() {
    let mut rig = Rig::new();
    let model = Model::from([(0, 1), (1, 2)]);
    let base = rig.point("vm", 1, 4, &model);
    let mut next = offer("vm", &[4 * K256]);
    next.created_ms = 5000;
    rig.open(session(2), &next);
    let (answer, _) = rig.open_task(key(2, 0)).unwrap();
    assert!(matches!(answer, BaseAnswer::Usable { .. }));
    rig.delete_point("vm", base);
    let done = rig.collect();
    assert_eq!((done.points_purged, done.records_dead), (1, 0), "{done:?}");
    rig.mark(key(2, 0), 0, 4, MarkKind::Unchanged);
    rig.seal(key(2, 0));
    let point = rig.store.reader().points("vm").unwrap()[0].point;
    rig.check_point("vm", point, &[model]);
}

#[test]
fn a_point_deleted_while_marking_stays_and_one_that_comes_back_too() {
    let mut rig = Rig::new();
    let models = [Model::from([(0, 1)]), Model::from([(0, 2)])];
    let late = rig.point("late", 1, 4, &models[0]);
    let back = rig.point("back", 2, 4, &models[1]);
    rig.delete_point("back", back);
    let marker = rig.begin();
    rig.delete_point("late", late);
    rig.store.undelete_points("back", &[back]).unwrap();
    rig.mark_all(marker);
    let done = rig.give_back().unwrap();
    assert_eq!((done.points_purged, done.records_dead), (0, 0), "{done:?}");
    rig.store.undelete_points("late", &[late]).unwrap();
    rig.check_point("late", late, &models[..1]);
    rig.check_point("back", back, &models[1..]);
}

#[test]
fn what_a_restore_reads_is_kept_though_its_point_is_deleted() {
    let mut rig = Rig::new();
    let model = Model::from([(0, 1), (1, 2)]);
    let point = rig.point("vm", 1, 4, &model);
    let pin = rig.store.repo.pin_point("vm", point);
    rig.delete_point("vm", point);
    let done = rig.collect();
    assert_eq!((done.points_purged, done.records_dead), (0, 0), "{done:?}");
    drop(pin);
    assert_eq!(rig.collect().packs_removed, 1);
}
