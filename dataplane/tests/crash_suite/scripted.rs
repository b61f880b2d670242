//! Scripts with a crash at every single operation, and the cases that have a name.
//!
//! In: a prepared repository, a script. Out: nothing, or a panic that names script, operation and
//! kind of crash. The scripts' own random numbers are fixed: only the crash moves.

use gantry_common::ids::{PointId, SessionId};
use gantry_common::session::store_port::TaskKey;
use gantry_common::wire::BaseChoice;
use gantry_dataplane::store::error::StoreError;
use gantry_dataplane::store::storage::faulty::{Fault, FaultyStorage};

use super::content;
use super::life::End;
use super::model::State;
use super::number;
use super::vm::Vm;
use super::world::World;

/// What is done before the crash may come, and what it then comes into.
type Script = fn(&mut World);

fn world(title: &str, contents: &[&[&[u64]]]) -> World {
    let disk = FaultyStorage::new();
    disk.refuse_allocation();
    let mut world = World::new(title.to_owned(), 1, disk, 0);
    world.is_spoiling = false;
    world.has_retention = false;
    let named = contents.iter().zip(0..);
    world.vms = named.map(|(disks, number)| Vm::of(number, disks)).collect();
    world.open_whole();
    world
}

fn backup(world: &mut World, vm: usize) -> SessionId {
    let session = world.begin(vm, true, Some(BaseChoice::Latest));
    world.open(session);
    world.finish(session);
    session
}

fn point(world: &World, session: SessionId) -> PointId {
    world.backups[&session].point
}

/// Runs the script with a crash after each of its operations.
fn crash_everywhere(name: &str, contents: &[&[&[u64]]], prepare: Script, script: Script) {
    let prepared = |title: &str| {
        let mut world = world(title, contents);
        prepare(&mut world);
        world
    };
    let mut whole = prepared(name);
    let before = whole.disk.operations();
    script(&mut whole);
    let operations = whole.disk.operations() - before;
    assert!(operations > 30, "{name}: {operations} operations");
    // The long command takes every end at each operation, the tests one after the other.
    let is_long = number("GANTRY_CRASH_LONG").is_some();
    for at in 0..=operations {
        let ends = [(End::PowerCut, 1), (End::Kill, 2), (End::PowerCut, 3)];
        let first = if is_long { 0 } else { at as usize % ends.len() };
        for (end, seed) in ends.into_iter().skip(first).take(if is_long { 3 } else { 1 }) {
            let mut world = prepared(&format!("{name}, operation {at}, {end:?} {seed}"));
            world.disk.power_off_at(before + at);
            world.random = fastrand::Rng::with_seed(1);
            script(&mut world);
            world.random = fastrand::Rng::with_seed(at * 4 + seed);
            world.end_life(end);
            world.open_whole();
            world.check();
            world.conclude();
        }
    }
    println!("{name}: a crash at each of {operations} operations");
}

const SHARED: &[&[&[u64]]] = &[&[&[1, 2, 0, 3], &[3, 9]], &[&[2, 7, 1]]];

fn two_backups(world: &mut World) {
    let sessions: Vec<SessionId> = (0..2)
        .map(|vm| {
            let session = world.begin(vm, true, Some(BaseChoice::Latest));
            world.open(session);
            session
        })
        .collect();
    for _ in 0..12 {
        for session in &sessions {
            for task in 0..world.backups[session].disks.len() {
                world.step(TaskKey { session: *session, task: task as u16 });
            }
        }
        world.now_ms += 2000;
        world.poll();
    }
    for session in sessions {
        world.finish(session);
    }
}

#[test]
fn crash_at_every_operation_of_two_first_backups() {
    crash_everywhere("two first backups", SHARED, |_| {}, two_backups);
}

fn increment(world: &mut World) {
    backup(world, 0);
}

#[test]
fn crash_at_every_operation_of_an_increment() {
    crash_everywhere("an increment", SHARED, increment, increment);
}

#[test]
fn crash_at_every_operation_of_deleting_and_collecting() {
    let prepare: Script = |world| {
        backup(world, 1);
        let first = backup(world, 0);
        backup(world, 0);
        let (point, name) = (point(world, first), world.vms[0].name.clone());
        world.delete(point, &name, false);
    };
    crash_everywhere("deleting and collecting", SHARED, prepare, |world| {
        let deleted = world.points.that_are(State::Deleted);
        let name = world.vms[0].name.clone();
        for point in world.points.of(&name).into_iter().filter(|point| !deleted.contains(point)) {
            world.delete(point, &name, true);
        }
        world.begin_collection();
        let session = world.begin(0, false, Some(BaseChoice::None));
        world.open(session);
        world.collect();
        world.finish(session);
        world.finish_collection();
    });
}

#[test]
fn crash_at_every_operation_of_healing() {
    let prepare: Script = |world| {
        backup(world, 0);
        let pack = world.disk.files().into_iter().find(|file| file.ends_with(".pack"));
        world.disk.rot(&pack.expect("a pack"), 4096 + 140, 1);
        world.points.is_damaged = true;
    };
    crash_everywhere("healing", SHARED, prepare, |world| {
        world.verify();
        backup(world, 0);
        world.verify();
    });
}

#[test]
fn a_block_of_another_session_whose_sync_fails() {
    let mut world = world("a block whose sync fails", &[&[&[5, 6]], &[&[5, 8]]]);
    let a = world.begin(0, false, Some(BaseChoice::None));
    let b = world.begin(1, false, Some(BaseChoice::None));
    world.open(a);
    world.open(b);
    let seed = world.backups[&b].frozen.disks[0].seed(0);
    assert_eq!(seed, 5, "both have it");
    world.append(TaskKey { session: a, task: 0 }, 0);
    world.settle();
    // B asks while A's record is written and not synced; then A's sync fails.
    let id = content::id(seed, world.backups[&b].frozen.disks[0].len_of(0));
    world.query(TaskKey { session: b, task: 0 }, vec![(0, id)]);
    world.settle();
    assert_eq!(world.backups[&b].disks[0].wanted, [0], "it is not durable: not known");
    world.is_faulty = true;
    let path_part = ".pack".to_owned();
    world.disk.fail(Fault { operation: "sync", path_part, errno: 5, skip: 0, count: 1 });
    world.now_ms += 6000;
    world.poll();
    world.settle();
    assert!(world.backups[&a].has_failed);
    world.is_faulty = false;
    world.detach(a);
    world.finish(b);
    assert!(world.backups[&b].is_committed);
    world.end_life(End::PowerCut);
    world.open_whole();
    world.check();
    world.conclude();
}

#[test]
fn a_collection_between_a_known_answer_and_the_manifest() {
    for pieces in 0..6 {
        let mut world = world("a collection after a known answer", &[&[&[5, 6]], &[&[6, 8]]]);
        let first = backup(&mut world, 0);
        let (gone, name) = (point(&world, first), world.vms[0].name.clone());
        world.delete(gone, &name, true);
        let b = world.begin(1, false, Some(BaseChoice::None));
        world.open(b);
        let key = TaskKey { session: b, task: 0 };
        let id = content::id(6, world.backups[&b].frozen.disks[0].len_of(0));
        if pieces < 3 {
            world.begin_collection();
            (0..pieces).for_each(|_| world.collect());
        }
        world.query(key, vec![(0, id)]);
        world.settle();
        if pieces == 3 {
            // Known, pinned, and not yet in the journal.
            world.begin_collection();
        } else if pieces > 3 {
            world.now_ms += 6000;
            world.poll();
            world.settle();
            world.detach(b);
            if pieces > 4 {
                // The pin is the journal's alone.
                world.end_life(End::PowerCut);
                world.open_whole();
            }
            world.begin_collection();
        }
        world.finish_collection();
        if !world.backups[&b].is_attached {
            world.open(b);
        }
        world.finish(b);
        assert!(world.backups[&b].is_committed, "{pieces}");
        world.check();
        world.conclude();
    }
}

#[test]
fn a_target_killed_between_the_two_acknowledgements() {
    let mut world = world("killed between durable and committed", SHARED);
    let session = world.begin(0, false, Some(BaseChoice::None));
    world.open(session);
    for task in 0..2 {
        for block in 0..world.backups[&session].frozen.disks[task].blocks() {
            let key = TaskKey { session, task: task as u16 };
            if world.backups[&session].frozen.disks[task].seed(block) != 0 {
                world.append(key, block);
            }
        }
    }
    world.now_ms += 6000;
    world.poll();
    world.settle();
    let durable: u64 =
        world.backups[&session].disks.iter().map(|disk| disk.acknowledged.blocks()).sum();
    assert_eq!(durable, 5, "all but the zeros");
    world.end_life(End::Kill);
    world.open_whole();
    world.check();
    assert!(world.points.all.is_empty(), "nothing was committed");
    let before = world.stats.resumed;
    world.open(session);
    assert_eq!(world.stats.resumed - before, durable, "nothing is sent twice");
    world.finish(session);
    assert!(world.backups[&session].is_committed);
    world.conclude();
}

#[test]
fn a_manifest_of_a_newer_format_hides_no_other_and_stops_a_collection() {
    let mut world = world("a newer manifest", SHARED);
    backup(&mut world, 0);
    let newer = backup(&mut world, 0);
    let other = backup(&mut world, 1);
    let gone = point(&world, newer);
    let path = world
        .disk
        .files()
        .into_iter()
        .find(|file| file.contains(&gone.to_string()) && file.ends_with(".manifest"));
    // The version's first byte, in the manifest and its copy.
    let path = path.expect("its manifest");
    world.disk.rot(&path, 8, 0x40);
    world.disk.rot(&path.replace(".manifest", ".copy"), 8, 0x40);
    world.points.is_damaged = true;
    world.end_life(End::PowerCut);
    world.open_whole();
    let listed = world.store().reader().all_points().expect("a list");
    assert_eq!(listed.len(), 3);
    let found = listed.into_iter().find(|listed| listed.point == gone).expect("it is listed");
    assert!(matches!(found.manifest, Err(StoreError::Newer { .. })), "{:?}", found.manifest);
    let kept = point(&world, other);
    world.restores_strictly(&[kept]);
    let begun = world.store().begin_collection(Default::default());
    let refused = match begun {
        Err(error) => Some(error),
        Ok(mut marker) => loop {
            match marker.step() {
                Ok(false) => {}
                Ok(true) => break None,
                Err(error) => break Some(error),
            }
        },
    };
    assert!(refused.is_some(), "what it needs is not known: nothing may be given back");
}
