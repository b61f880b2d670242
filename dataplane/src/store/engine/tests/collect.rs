//! Collections: exactly what is dead goes, and nothing new ever refers to it.

use gantry_common::ids::{BlockId, PointId};
use gantry_common::manage::CollectOptions;
use gantry_common::session::store_port::{StoreCommand, StoreReport};
use gantry_common::wire::{BaseAnswer, MarkKind, TaskTotals};

use super::rig::{KEY, Model, Rig, offer, raw, session, verify};
use super::{K256, key};
use crate::store::layout::{PointFile, deleted_path};
use crate::store::storage::Storage;

fn block_id(seed: u64) -> BlockId {
    KEY.block_id(&raw(seed, K256 as u32))
}

/// A point cannot vanish while it is marked; if it does, its blocks are not taken for dead.
#[test]
fn a_point_that_vanishes_ends_the_collection() {
    let mut rig = Rig::new();
    let point = rig.point("vm", 1, 4, &Model::from([(0, 1)]));
    let mut marker = rig.begin();
    rig.disk.remove(&PointFile::Manifest.path("points/vm", point)).unwrap();
    let error = loop {
        match marker.step() {
            Ok(done) => assert!(!done),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("has vanished"), "{error}");
    rig.store.fail_collection(error);
    assert!(rig.give_back().is_err() && rig.packs().len() == 1);
}

fn assert_clean(rig: &Rig) {
    let report = verify(&rig.store.reader()).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn what_only_a_deleted_point_needs_is_given_back() {
    let mut rig = Rig::new();
    let models = [Model::from([(0, 1), (1, 2), (2, 3)]), Model::from([(0, 4), (1, 2)])];
    let old = rig.point("vm", 1, 4, &models[0]);
    let new = rig.point("vm", 2, 4, &models[1]);
    let idle = rig.collect();
    assert_eq!((idle.records_dead, idle.bytes_freed, idle.points_live), (0, 0, 2), "{idle:?}");
    rig.delete_point("vm", old);
    let in_place = CollectOptions { rewrite_bytes_max: Some(0), ..CollectOptions::default() };
    let done = rig.try_collect(in_place).unwrap();
    assert_eq!((done.points_purged, done.points_live, done.nodes_visited), (1, 1, 1), "{done:?}");
    // Blocks 1 and 3, and the old leaf; 2 is in the old pack, which therefore stays.
    assert_eq!((done.records_dead, done.records_live, done.packs_punched), (3, 3, 1), "{done:?}");
    assert_eq!(done.bytes_freed, 3 * 4096);
    rig.check_point("vm", new, &models[1..]);
    assert!(!rig.disk.files().contains(&deleted_path("vm", old)));
    assert_clean(&rig);
    let mut rig = rig.after_power_loss();
    assert!(rig.store.notes().is_empty(), "{:?}", rig.store.notes());
    assert!(!rig.store.repo.index.is_suspect());
    rig.check_point("vm", new, &models[1..]);
    assert_clean(&rig);
    rig.delete_point("vm", new);
    let done = rig.collect();
    assert_eq!((done.packs_removed, done.records_dead), (2, 3), "{done:?}");
    assert!(rig.packs().is_empty());
    let mut rig = rig.after_power_loss();
    assert!(rig.store.notes().is_empty() && !rig.store.repo.index.is_suspect());
    let again = rig.point("vm", 3, 4, &models[0]);
    rig.check_point("vm", again, &models[..1]);
}

#[test]
fn a_dry_run_says_the_same_and_changes_nothing() {
    let mut rig = Rig::new();
    let old = rig.point("vm", 1, 9, &Model::from([(0, 1), (1, 2), (2, 3)]));
    rig.point("vm", 2, 9, &Model::from([(0, 1), (1, 2), (4, 9)]));
    rig.delete_point("vm", old);
    let before = rig.disk.image();
    let options = CollectOptions { dry_run: true, ..CollectOptions::default() };
    let said = rig.try_collect(options).unwrap();
    assert_eq!(rig.disk.image(), before);
    let done = rig.collect();
    assert_eq!(said.records_dead, done.records_dead);
    assert_eq!((said.records_live, said.points_purged), (done.records_live, 1));
    assert_eq!((said.bytes_freed, done.bytes_freed), (2 * 4096, 2 * 4096), "{done:?}");
}

#[test]
fn random_histories_leave_exactly_what_is_needed() {
    for seed in 0..25 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rig = Rig::new();
        let mut points: Vec<(String, PointId, Model)> = Vec::new();
        let mut number = 0;
        for _ in 0..random.usize(4..14) {
            let name = format!("vm{}", random.u8(0..3));
            if random.u8(0..3) > 0 {
                number += 1;
                let mut model = points
                    .iter()
                    .rfind(|(of, _, _)| *of == name)
                    .map_or(Model::new(), |(_, _, model)| model.clone());
                for _ in 0..random.usize(1..8) {
                    model.insert(random.u64(0..1500), random.u64(1..60));
                }
                let point = rig.point(&name, number, 1500, &model);
                points.push((name, point, model));
            } else if !points.is_empty() {
                let (name, point, _) = points.swap_remove(random.usize(0..points.len()));
                points.sort_by_key(|(_, point, _)| *point);
                rig.delete_point(&name, point);
            }
            if random.u8(0..4) == 0 {
                let needed = rig.needed();
                let done = rig.collect();
                assert_eq!(done.records_live, needed.len() as u64, "seed {seed}: {done:?}");
                assert_eq!(rig.needed(), needed, "seed {seed}");
                for (name, point, model) in &points {
                    rig.check_point(name, *point, std::slice::from_ref(model));
                }
                let report = verify(&rig.store.reader()).unwrap();
                assert!(report.is_clean(), "seed {seed}: {report:?}");
            }
            if random.u8(0..6) == 0 {
                rig = rig.after_power_loss();
                let is_alarm = |note: &String| !note.contains("reading the footers");
                let notes = rig.store.notes();
                assert!(!notes.iter().any(is_alarm), "seed {seed}: {notes:?}");
            }
        }
        for (name, point, _) in &points {
            rig.delete_point(name, *point);
        }
        rig.collect();
        assert!(rig.packs().is_empty(), "seed {seed}: {:?}", rig.packs());
    }
}

/// A rig with a deleted point of seeds 1 to 3, whose blocks only it needs.
fn with_dead() -> (Rig, PointId) {
    let mut rig = Rig::new();
    let dead = rig.point("old", 1, 4, &Model::from([(0, 1), (1, 2), (2, 3)]));
    rig.delete_point("old", dead);
    (rig, dead)
}

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
    rig.store.handle(StoreCommand::Seal { key: key(2, 0), totals: TaskTotals::default() }, 0);
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
fn unfinished_backups_are_kept_until_they_are_abandoned() {
    let mut rig = Rig::new();
    let offer = offer("vm", &[4 * K256]);
    rig.open(session(1), &offer);
    rig.open_task(key(1, 0)).unwrap();
    rig.append(key(1, 0), 0, 1, K256 as u32);
    rig.detach(session(1));
    let kept = rig.collect();
    assert_eq!((kept.unfinished, kept.records_live, kept.records_dead), (1, 1, 0), "{kept:?}");
    let mut rig = rig.after_power_loss();
    rig.open(session(1), &offer);
    let (_, durable) = rig.open_task(key(1, 0)).unwrap();
    assert!(durable.contains(0));
    let abandon = CollectOptions { abandon_unfinished: true, ..CollectOptions::default() };
    let attached = rig.try_collect(abandon.clone()).unwrap();
    assert_eq!((attached.unfinished, attached.records_dead), (1, 0), "{attached:?}");
    rig.detach(session(1));
    let said = CollectOptions { dry_run: true, ..abandon.clone() };
    assert_eq!(rig.try_collect(said).unwrap().records_dead, 1);
    let done = rig.try_collect(abandon).unwrap();
    assert_eq!((done.unfinished, done.packs_removed), (0, 1), "{done:?}");
    rig.open(session(1), &offer);
    assert!(rig.open_task(key(1, 0)).unwrap().1.is_empty());
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

#[test]
fn a_copy_is_kept_where_the_index_names_a_place_that_cannot_be_used() {
    let mut rig = Rig::new();
    let model = Model::from([(0, 1), (1, 2)]);
    let point = rig.point("vm", 1, 4, &model);
    let first = rig.packs();
    // The first record is found damaged, so the block is stored a second time.
    rig.disk.flip(&first[0], 4096 + 130);
    verify(&rig.store.reader()).unwrap();
    let other = rig.point("other", 2, 4, &Model::from([(0, 1)]));
    let second: Vec<_> = rig.packs().into_iter().filter(|pack| !first.contains(pack)).collect();
    // Now the second one is: the index names it, while the first is whole again.
    rig.disk.flip(&second[0], 4096 + 130);
    rig.disk.flip(&first[0], 4096 + 130);
    verify(&rig.store.reader()).unwrap();
    rig.delete_point("other", other);
    rig.collect();
    rig.check_point("vm", point, &[model]);
}

#[test]
fn nothing_is_given_back_if_anything_that_is_needed_cannot_be_read() {
    for what in ["manifest", "node", "journal"] {
        let mut rig = Rig::new();
        let keep = rig.point("keep", 1, 4, &Model::from([(0, 1)]));
        let dead = rig.point("dead", 2, 4, &Model::from([(0, 2), (1, 3)]));
        rig.delete_point("dead", dead);
        let wanted = match what {
            "manifest" => {
                rig.disk.flip(&PointFile::Manifest.path("points/keep", keep), 60);
                rig.disk.flip(&PointFile::Copy.path("points/keep", keep), 60);
                "damaged"
            }
            "node" => {
                rig.disk.flip(&rig.packs()[0], 2 * 4096 + 140);
                "run repo repair"
            }
            _ => {
                rig.open(session(3), &offer("half", &[4 * K256]));
                rig.open_task(key(3, 0)).unwrap();
                rig.append(key(3, 0), 0, 7, K256 as u32);
                rig.detach(session(3));
                let journal = rig.journal();
                rig.disk.flip(&journal, 20);
                "not known which blocks"
            }
        };
        let before: Vec<_> = rig.packs();
        let error = rig.try_collect(CollectOptions::default()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{what}: {error}");
        assert_eq!(rig.packs(), before, "{what}");
        assert!(rig.disk.files().contains(&deleted_path("dead", dead)), "{what}");
        assert!(!rig.store.is_collecting());
    }
}

#[test]
fn one_collection_at_a_time_and_a_stopped_one_changes_nothing() {
    let (mut rig, dead) = with_dead();
    let mut marker = rig.begin();
    let refused = rig.store.begin_collection(CollectOptions::default());
    assert!(refused.is_err_and(|error| error.to_string().contains("running already")));
    rig.store.cancel_collection();
    assert!(marker.step().is_err());
    assert!(rig.store.handle_marked(marker).is_none());
    assert!(rig.give_back().unwrap_err().to_string().contains("stopped before"));
    assert!(rig.disk.files().contains(&deleted_path("old", dead)));
    assert_eq!(rig.collect().packs_removed, 1);
}

#[test]
fn marks_of_shared_trees_are_made_once() {
    let mut rig = Rig::new();
    // Three leaves; only one changes from point to point.
    let mut model = Model::from([(0, 1), (1500, 2), (2500, 3)]);
    for number in 1..=10 {
        model.insert(1500, 100 + u64::from(number));
        rig.point("vm", number, 3000, &model);
    }
    let done = rig.collect();
    assert_eq!(done.nodes_visited, 2 + 10 * 2, "two leaves shared, a leaf and a root each");
}

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

impl Rig {
    fn journal(&self) -> String {
        self.disk.files().into_iter().find(|file| file.ends_with(".journal")).unwrap()
    }
}
