//! Collections: exactly what is dead goes, and nothing new ever refers to it.

use gantry_common::ids::{BlockId, PointId};
use gantry_common::manage::CollectOptions;

use super::rig::{KEY, Model, Rig, offer, raw, session, verify};
use super::{K256, key};
use crate::store::layout::{PointFile, deleted_path};
use crate::store::storage::Storage;

pub(super) fn block_id(seed: u64) -> BlockId {
    KEY.block_id(&raw(seed, K256 as u32))
}

pub(super) fn assert_clean(rig: &Rig) {
    let report = verify(&rig.store.reader()).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// A rig with a deleted point of seeds 1 to 3, whose blocks only it needs.
pub(super) fn with_dead() -> (Rig, PointId) {
    let mut rig = Rig::new();
    let dead = rig.point("old", 1, 4, &Model::from([(0, 1), (1, 2), (2, 3)]));
    rig.delete_point("old", dead);
    (rig, dead)
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

impl Rig {
    fn journal(&self) -> String {
        self.disk.files().into_iter().find(|file| file.ends_with(".journal")).unwrap()
    }
}
