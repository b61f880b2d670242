//! Repair: what records and second copies prove comes back, the rest is named.

use std::ops::ControlFlow;

use gantry_common::extents::Run;
use gantry_common::ids::BlockId;
use gantry_common::manage::RepairReport;

use super::K256;
use super::damage::{by_extents, id, later, place, root, spoil};
use super::rig::{Model, Rig, offer, session, verify};
use crate::store::layout::{PointFile, points_dir};
use crate::store::repair::repair;
use crate::store::storage::Storage;
use crate::store::storage::memory::MemoryStorage;

fn run(disk: &MemoryStorage, dry_run: bool) -> RepairReport {
    repair(disk, dry_run, 9, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

/// Three points of a disk of three leaves: all of it, a change with a zeroed block, another change.
struct Scene {
    rig: Rig,
    points: Vec<gantry_common::ids::PointId>,
    models: Vec<Model>,
}

impl Scene {
    fn new() -> Scene {
        Scene::of(2500 * K256)
    }

    fn of(size: u64) -> Scene {
        let mut rig = Rig::new();
        let mut offer = offer("vm", &[size]);
        let mut model: Model = (0..20).map(|at| (at * 100, at + 1)).collect();
        let mut models = vec![model.clone()];
        let mut points = vec![by_extents(&mut rig, 1, &offer, &model, &[]).0];
        for (number, change) in [(2, 300), (3, 500)] {
            offer = later(&offer);
            model.insert(change, 100 + change);
            model.remove(&(change + 300));
            let changed = [change, change + 300];
            points.push(by_extents(&mut rig, number, &offer, &model, &changed).0);
            models.push(model.clone());
        }
        Scene { rig, points, models }
    }

    fn node(&self, point: usize, level: u8, child: usize) -> BlockId {
        let root = root(&self.rig, self.points[point]);
        self.rig.store.reader().repo().node(&root, level).unwrap()[child]
    }

    /// The folder, as the mover left it when it stopped.
    fn stopped(mut self) -> (MemoryStorage, Vec<gantry_common::ids::PointId>, Vec<Model>) {
        self.rig.store.shut_down();
        (self.rig.disk.after_power_loss(), self.points, self.models)
    }
}

fn all_restore(disk: &MemoryStorage, points: &[gantry_common::ids::PointId], models: &[Model]) {
    let rig = Rig::on(disk.after_power_loss());
    for (point, model) in points.iter().zip(models) {
        rig.check_point("vm", *point, std::slice::from_ref(model));
    }
}

#[test]
fn lost_leaves_and_roots_are_built_again_from_records() {
    // Which node of which point: its leaf 0, or its root; in the oldest, the middle, the newest.
    for point in 0..3 {
        for is_root in [false, true] {
            let scene = Scene::new();
            let lost = match is_root {
                true => root(&scene.rig, scene.points[point]),
                false => scene.node(point, 1, 0),
            };
            spoil(&scene.rig, &lost);
            let (disk, points, models) = scene.stopped();
            let what = format!("point {point}, root {is_root}");
            let before = disk.image();
            let tried = run(&disk, true);
            assert_eq!(disk.image(), before, "{what}: a trial run changes nothing");
            // A block that became zeros leaves no record: the oldest and newest points' leaves are
            // proven by their neighbours all the same, unless such a change is their own.
            let provable = tried.nodes_rebuilt == 1;
            let report = run(&disk, false);
            assert_eq!(report.nodes_rebuilt == 1, provable, "{what}: {report:?}");
            assert_eq!(report.nodes_given_up == 0, provable, "{what}: {report:?}");
            if is_root || point == 0 {
                assert!(provable, "{what}: {report:?}");
            }
            if provable {
                assert!(report.is_whole(), "{what}: {report:?}");
                all_restore(&disk, &points, &models);
            } else {
                assert_eq!(report.hits.len(), 1, "{what}: {report:?}");
                let rig = Rig::on(disk.clone());
                let reader = rig.store.reader();
                assert!(reader.repo().index.given_up(&lost).unwrap(), "{what}");
            }
        }
    }
}

#[test]
fn lost_interior_nodes_are_built_again_and_then_what_is_below() {
    let scene = Scene::of((1024 * 1024 + 5) * K256);
    let interior = scene.node(1, 2, 0);
    let leaf = scene.rig.store.reader().repo().node(&interior, 1).unwrap()[1];
    spoil(&scene.rig, &interior);
    spoil(&scene.rig, &leaf);
    let (disk, points, models) = scene.stopped();
    let report = run(&disk, false);
    assert!(report.nodes_rebuilt == 2 && report.is_whole(), "{report:?}");
    all_restore(&disk, &points, &models);
    let report = verify(&Rig::on(disk).store.reader()).unwrap();
    assert_eq!((report.damages, report.hits.len()), (2, 0), "{report:?}");
}

#[test]
fn a_lost_block_is_named_and_not_invented() {
    let scene = Scene::new();
    spoil(&scene.rig, &id(2));
    let (disk, ..) = scene.stopped();
    let report = run(&disk, false);
    assert_eq!((report.damages, report.hits.len(), report.nodes_rebuilt), (1, 3, 0), "{report:?}");
    for hit in &report.hits {
        assert_eq!((hit.blocks_lost, &hit.runs[..]), (1, &[Run { first: 100, count: 1 }][..]));
    }
    assert!(!report.is_whole());
}

#[test]
fn damaged_headers_footers_and_manifests_are_written_anew() {
    for part in ["head", "footer", "trailer", "manifest", "copy", "superblock", "index"] {
        let scene = Scene::new();
        let pack = place(&scene.rig, &id(1)).pack.path();
        let (disk, points, models) = scene.stopped();
        let point = |file: PointFile| file.path(&points_dir("vm"), points[1]);
        let len = |path: &str| disk.image().iter().find(|file| file.0 == path).unwrap().1;
        match part {
            "head" => disk.flip(&pack, 20),
            "footer" => disk.flip(&pack, len(&pack) - 4096 + 8),
            "trailer" => disk.flip(&pack, len(&pack) - 60),
            "manifest" => disk.flip(&point(PointFile::Manifest), 60),
            "copy" => disk.flip(&point(PointFile::Copy), 60),
            "superblock" => disk.flip("superblock.1", 40),
            _ => (4096..len("index/index.redb")).step_by(97).for_each(|at| {
                disk.flip("index/index.redb", at);
            }),
        }
        let before = disk.image();
        run(&disk, true);
        assert_eq!(disk.image(), before, "{part}: a trial run changes nothing");
        let report = run(&disk, false);
        assert!(report.is_whole(), "{part}: {report:?}");
        assert_eq!(report.packs_sealed > 0, ["head", "footer", "trailer"].contains(&part));
        assert_eq!(report.manifests_restored > 0, ["manifest", "copy"].contains(&part));
        assert_eq!(report.superblocks_written > 0, part == "superblock");
        all_restore(&disk, &points, &models);
        let clean = verify(&Rig::on(disk.clone()).store.reader()).unwrap();
        assert!(clean.is_clean(), "{part}: {clean:?}");
        assert_eq!(run(&disk, false).notes, Vec::<String>::new(), "{part}: once is enough");
    }
}

#[test]
fn a_manifest_without_a_whole_copy_is_set_aside_and_never_removed() {
    let scene = Scene::new();
    let (disk, points, models) = scene.stopped();
    for file in [PointFile::Manifest, PointFile::Copy] {
        disk.flip(&file.path(&points_dir("vm"), points[1]), 60);
    }
    let report = run(&disk, false);
    assert_eq!(report.manifests_set_aside.len(), 1, "{report:?}");
    let aside = |file: &String| file.ends_with(".damaged");
    assert_eq!(disk.files().iter().filter(|file| aside(file)).count(), 2);
    assert!(verify(&Rig::on(disk.clone()).store.reader()).unwrap().is_clean());
    let rig = Rig::on(disk.after_power_loss());
    rig.check_point("vm", points[2], std::slice::from_ref(&models[2]));
}

#[test]
fn repair_refuses_a_repository_in_use() {
    let mut rig = Rig::new();
    rig.backup(session(1), &offer("vm", &[K256]), &[Model::from([(0, 1)])]).unwrap();
    for dry_run in [false, true] {
        let mut on_progress = |_, _| ControlFlow::Continue(());
        let error = repair(&rig.disk, dry_run, 9, &mut on_progress).unwrap_err().to_string();
        assert!(error.contains("in use by process"), "{error}");
    }
}

#[test]
fn a_lost_pack_of_maps_is_built_again() {
    // The second point's pack holds a block and its new nodes: the block is lost for good, and so
    // is every leaf that only that pack proves.
    let scene = Scene::new();
    let lost = place(&scene.rig, &root(&scene.rig, scene.points[1])).pack;
    let (disk, points, models) = scene.stopped();
    disk.remove(&lost.path()).unwrap();
    let report = run(&disk, false);
    assert!(report.notes.iter().any(|note| note.contains("is gone")), "{report:?}");
    assert!(!report.hits.is_empty());
    let rig = Rig::on(disk);
    rig.check_point("vm", points[0], std::slice::from_ref(&models[0]));
}
