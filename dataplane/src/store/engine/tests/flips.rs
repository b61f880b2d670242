//! One flipped byte in any structure of a repository: verify names it or it changes nothing, no
//! restore ever gives wrong bytes, and the next backup heals what it can.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use gantry_common::manage::VerifyReport;

use self::world::{Point, World, by_extents};
use super::rig::{Rig, session, verify};
use crate::store::error::StoreError;
use crate::store::reader::StoreReader;
use crate::store::repair::repair;
use crate::store::storage::memory::MemoryStorage;

mod world;

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    flips: u32,
    named: u32,
    irrelevant: u32,
    whole_at_once: u32,
    whole_after: u32,
}

fn is_noted(notes: &[String]) -> bool {
    notes.iter().any(|note| !note.starts_with("index: reading the footers"))
}

/// What the flip did: named, and whether everything restored before and after healing.
fn flip(world: &World, disk: MemoryStorage, what: &str, with_repair: bool) -> Count {
    let mut count = Count { flips: 1, ..Count::default() };
    let read_only = match StoreReader::open(disk.clone()) {
        Ok((reader, notes)) => {
            count.whole_at_once = u32::from(world.all_restore(&reader, what));
            let first = &world.points[0];
            let manifest = reader.manifest(first.name, Some(first.point));
            let disks = manifest.map(|manifest| manifest.disks).unwrap_or_default();
            let leaf = disks.first().map(|disk| reader.leaf(disk, 0).map(drop));
            format!("{notes:?} {leaf:?}")
        }
        Err(error) => error.to_string(),
    };
    let mut named = false;
    let mut repaired = None;
    if with_repair {
        let report = repair(&disk, false, 5, &mut |_, _| ControlFlow::Continue(())).unwrap();
        named |= is_noted(&report.notes) || report.damages > 0 || !report.is_whole();
        repaired = Some(report);
    }
    let (mut rig, report) = match open_and_verify(&disk) {
        Ok(opened) => opened,
        // The error says what to do.
        Err(StoreError::Index { .. }) => {
            named = true;
            crate::store::admin::rebuild_index(disk.clone()).unwrap();
            open_and_verify(&disk).unwrap_or_else(|error| panic!("{what}: {error}"))
        }
        Err(error) => panic!("{what}: {error}"),
    };
    named |= is_noted(rig.store.notes());
    rig.settle();
    named |= !report.is_clean() || is_noted(&report.notes);
    count.named = u32::from(named);
    if !named {
        assert_eq!(
            count.whole_at_once, 1,
            "{what}: a restore failed ({read_only}; repair {with_repair}), and nothing says why"
        );
        assert!(world.all_restore(&rig.store.reader(), what), "{what}: neither named nor harmless");
        undeletes_and_resumes(world, &mut rig, what);
        count.irrelevant = 1;
        count.whole_after = 1;
        return count;
    }
    let repaired_notes = repaired.map(|report| report.notes).unwrap_or_default();
    let whole =
        heals(world, &mut rig, &format!("{what}; {:?}; {repaired_notes:?}", brief(&report)));
    count.whole_after = u32::from(whole);
    count
}

fn open_and_verify(disk: &MemoryStorage) -> Result<(Rig, VerifyReport), StoreError> {
    let rig = Rig::try_on(disk.clone())?;
    let report = verify(&rig.store.reader())?;
    Ok((rig, report))
}

fn brief(report: &VerifyReport) -> (u64, Option<String>, usize, u64) {
    let first = report.damaged.first().map(|at| at.what.clone());
    (report.damages, first, report.hits.len(), report.index_wrong)
}

/// The next backup of each VM restores; whether the older points do too. Then verify finds nothing
/// that hits the new points.
fn heals(world: &World, rig: &mut Rig, what: &str) -> bool {
    let mut healed = Vec::new();
    for (number, (name, offer)) in (200..).zip(&world.newest) {
        let mut next = offer.clone();
        next.created_ms += 10;
        next.disks.iter_mut().for_each(|disk| disk.snapshot = "healing".into());
        let newest = world.points.iter().rfind(|point| point.name == *name).unwrap();
        let since = Some(newest.point);
        let point = by_extents(rig, number, &next, &newest.models, since, &[1]);
        let point = point.unwrap_or_else(|| panic!("{what}: {:?}", rig.failure()));
        healed.push(Point { name, point, models: newest.models.clone() });
    }
    rig.settle();
    let report = verify(&rig.store.reader()).unwrap();
    for point in &healed {
        let id = point.point.to_string();
        let hit = report.hits.iter().find(|hit| hit.point == id);
        let whole = world.restores(&rig.store.reader(), point, what);
        assert!(whole && hit.is_none(), "{what}: {} is not healed: {hit:?}", point.name);
    }
    undeletes_and_resumes(world, rig, what);
    world.all_restore(&rig.store.reader(), what)
}

fn undeletes_and_resumes(world: &World, rig: &mut Rig, what: &str) {
    let (offer, model) = &world.unfinished;
    let made = rig.backup(session(99), offer, std::slice::from_ref(model));
    let (point, _) = made.unwrap_or_else(|| panic!("{what}: {:?}", rig.failure()));
    rig.check_point("late", point, std::slice::from_ref(model));
    let undeleted = rig.store.undelete_points(world.deleted.name, &[world.deleted.point]);
    if undeleted.is_ok() {
        world.restores(&rig.store.reader(), &world.deleted, what);
    }
}

/// Flips `rounds` bytes of each structure, in every `shares`th round the `share`th.
fn flip_everything(share: u64) {
    let (rounds, shares): (u64, u64) = match std::env::var("GANTRY_FLIPS") {
        Ok(rounds) => (rounds.parse().unwrap(), 4),
        Err(_) => (72, 4),
    };
    let world = World::new();
    let structures = world.structures();
    assert!(structures.len() >= 16, "{:?}", structures.keys());
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    let mut failed = Vec::new();
    for (number, (name, places)) in (0..).zip(&structures) {
        // Most of the index's pages are old ones that nobody reads.
        let rounds = if *name == "index" { 6 * rounds } else { rounds };
        for round in (0..rounds).filter(|round| round % shares == share) {
            let seed = number * 1_000_000 + round;
            let mut random = fastrand::Rng::with_seed(seed);
            let all: u64 = places.iter().map(|(_, _, bytes)| bytes).sum();
            let mut at = random.u64(0..all);
            let place = places.iter().find(|(_, _, bytes)| {
                let here = at < *bytes;
                at -= if here { 0 } else { *bytes };
                here
            });
            let (path, first, _) = place.unwrap();
            let bit = random.u8(0..8);
            let what = format!("{name}: {path} byte {} bit {bit} (seed {seed})", first + at);
            let disk = world.disk.after_power_loss();
            disk.rot(path, first + at, 1 << bit);
            let with_repair = random.bool();
            let act = std::panic::AssertUnwindSafe(|| flip(&world, disk, &what, with_repair));
            let Ok(done) = std::panic::catch_unwind(act) else {
                failed.push(what);
                continue;
            };
            let count = counts.entry(name).or_default();
            count.flips += 1;
            count.named += done.named;
            count.irrelevant += done.irrelevant;
            count.whole_at_once += done.whole_at_once;
            count.whole_after += done.whole_after;
        }
    }
    println!("structure            flips  named  irrelevant  all restore at once  after healing");
    for (name, count) in &counts {
        println!(
            "{name:20} {:5}  {:5}  {:10}  {:19}  {:13}",
            count.flips, count.named, count.irrelevant, count.whole_at_once, count.whole_after
        );
    }
    assert!(failed.is_empty(), "{} flips: {failed:#?}", failed.len());
}

#[test]
fn flips_first_quarter() {
    flip_everything(0);
}

#[test]
fn flips_second_quarter() {
    flip_everything(1);
}

#[test]
fn flips_third_quarter() {
    flip_everything(2);
}

#[test]
fn flips_last_quarter() {
    flip_everything(3);
}
