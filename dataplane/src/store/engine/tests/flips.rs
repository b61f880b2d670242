//! One flipped byte in any structure of a repository: verify names it or it changes nothing, no
//! restore ever gives wrong bytes, and the next backup heals what it can.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::PointId;
use gantry_common::manage::VerifyReport;
use gantry_common::session::store_port::TaskKey;
use gantry_common::wire::{BaseAnswer, MarkKind, SessionOffer};

use super::K256;
use super::rig::{KEY, Model, Rig, offer, raw, session, verify};
use crate::store::error::StoreError;
use crate::store::footer::read_footer;
use crate::store::layout::{PackNumber, SUPERBLOCKS};
use crate::store::manifest::point_of;
use crate::store::reader::StoreReader;
use crate::store::record::{RECORD_HEAD_BYTES, RecordDecoder};
use crate::store::repair::repair;
use crate::store::storage::memory::MemoryStorage;
use crate::store::storage::{OpenMode, Storage, StorageFile};

/// A point and what its disks hold.
struct Point {
    name: &'static str,
    point: PointId,
    models: Vec<Model>,
}

/// A repository with a bit of everything, and what it must give back.
struct World {
    disk: MemoryStorage,
    points: Vec<Point>,
    deleted: Point,
    unfinished: (SessionOffer, Model),
    /// Each VM's newest offer.
    newest: BTreeMap<&'static str, SessionOffer>,
}

fn models_of(seed: u64) -> Vec<Model> {
    // Block 3 is the same in every VM.
    let first = (0..6).map(|at| (at * 7, if at == 3 { 9 } else { seed * 100 + at })).collect();
    vec![first, (0..3).map(|at| (at * 400, seed * 100 + 50 + at)).collect()]
}

/// Backs up as incrementals with changed extents do: reads what changed since a point, and what the
/// target says; or everything if that point is not the base.
fn by_extents(
    rig: &mut Rig,
    number: u8,
    offer: &SessionOffer,
    models: &[Model],
    since: Option<PointId>,
    changed: &[u64],
) -> Option<PointId> {
    rig.reports.clear();
    let session = session(number);
    rig.open(session, offer);
    for (task, (disk, model)) in (0..).zip(offer.disks.iter().zip(models)) {
        let key = TaskKey { session, task };
        let (base, _) = rig.open_task(key)?;
        let blocks = disk.block_size.block_count(disk.size_bytes);
        let mut read: RunSet = match base {
            BaseAnswer::Usable { damaged, point, .. } if Some(point) == since => {
                damaged.into_iter().collect()
            }
            _ => [Run { first: 0, count: blocks }].into_iter().collect(),
        };
        for block in changed.iter().filter(|block| **block < blocks) {
            read.insert(Run { first: *block, count: 1 });
        }
        for gap in read.gaps(blocks) {
            rig.mark(key, gap.first, gap.count, MarkKind::Unchanged);
        }
        for run in read.iter() {
            let end = run.first + run.count;
            let mut at = run.first;
            for (&block, &seed) in model.range(run.first..end) {
                if block > at {
                    rig.mark(key, at, block - at, MarkKind::Zero);
                }
                let len = disk.block_size.block_len(block, disk.size_bytes);
                let id = KEY.block_id(&raw(seed, len));
                if rig.query(key, vec![(block, id)]) != [true] {
                    rig.append(key, block, seed, len);
                }
                at = block + 1;
            }
            if at < end {
                rig.mark(key, at, end - at, MarkKind::Zero);
            }
        }
        rig.seal(key);
    }
    let failure = rig.failure();
    rig.detach(session);
    if let Some(failure) = &failure {
        eprintln!("{failure}");
    }
    failure.is_none().then(|| point_of(offer.created_ms, session))
}

impl World {
    fn new() -> World {
        let mut rig = Rig::new();
        let (mut points, mut newest) = (Vec::new(), BTreeMap::new());
        let mut number = 0;
        for (vm, name) in (1..).zip(["web", "db"]) {
            let mut models = models_of(vm);
            let mut offer = offer(name, &[40 * K256, 2500 * K256 + 77]);
            let mut last = None;
            for round in 0..4 {
                number += 1;
                offer.created_ms += 1;
                offer.disks.iter_mut().for_each(|disk| disk.snapshot = format!("s{round}"));
                let changed = [7 * round, 400];
                if round > 0 {
                    models[0].insert(changed[0], vm * 1000 + round);
                    models[1].insert(400, vm * 1000 + 500 + round);
                }
                let point = by_extents(&mut rig, number, &offer, &models, last, &changed).unwrap();
                last = Some(point);
                points.push(Point { name, point, models: models.clone() });
            }
            newest.insert(name, offer);
        }
        // Gone for good: the first point of each VM, and so slots in packs. Deleted only: another.
        for at in [0, 4] {
            rig.store.delete_points(points[at].name, &[points[at].point], false).unwrap();
        }
        verify(&rig.store.reader()).unwrap();
        assert!(rig.collect().records_dead > 0);
        let deleted = points.remove(5);
        rig.store.delete_points(deleted.name, &[deleted.point], false).unwrap();
        points.retain(|point| point.point.created_ms() > 1001);
        // Unfinished: stored blocks, known ones, marks, in several entries.
        let late = offer("late", &[20 * K256]);
        let model: Model = (0..10).map(|at| (at, if at == 3 { 9 } else { 9000 + at })).collect();
        rig.open(session(99), &late);
        let key = TaskKey { session: session(99), task: 0 };
        rig.open_task(key).unwrap();
        for block in 0..6 {
            rig.query(key, vec![(block, KEY.block_id(&raw(model[&block], K256 as u32)))]);
            if block != 3 {
                rig.append(key, block, model[&block], K256 as u32);
            }
            rig.mark(key, 10 + block, 1, MarkKind::Zero);
            rig.now_ms += 6000;
            rig.settle();
        }
        rig.detach(session(99));
        let report = verify(&rig.store.reader()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        rig.store.shut_down();
        assert_eq!(points.len(), 5);
        let disk = rig.disk.clone();
        // Closed as it should be, the index is not looked through when it is opened.
        drop(rig);
        World { disk: disk.after_power_loss(), points, deleted, unfinished: (late, model), newest }
    }

    /// Every structure and the bytes that it takes: file, first byte, count.
    fn structures(&self) -> BTreeMap<&'static str, Vec<(String, u64, u64)>> {
        let mut structures: BTreeMap<&'static str, Vec<(String, u64, u64)>> = BTreeMap::new();
        for (path, len, _) in self.disk.image() {
            let mut add = |what, from: u64, to: u64| {
                if to > from {
                    structures.entry(what).or_default().push((path.clone(), from, to - from));
                }
            };
            let ending = path.rsplit('.').next().unwrap_or("");
            match ending {
                _ if SUPERBLOCKS.contains(&path.as_str()) => {
                    add("superblock", 0, 128);
                    add("superblock's rest", 128, len);
                }
                "pack" => self.pack(&path, len, &mut add),
                "manifest" => add("manifest", 0, len),
                "copy" => add("manifest's copy", 0, len),
                "deleted" => add("deleted manifest", 0, len),
                "journal" => add("journal", 0, len),
                "redb" => self.used(&path, len, &mut add),
                _ if path == "epoch" => add("epoch", 0, len),
                _ if path == "lock" => add("lock", 0, len),
                _ if path == "ballast" => add("ballast", 0, len),
                _ => panic!("a file of no known kind: {path}"),
            }
        }
        structures
    }

    /// Where the index's file has anything but zeros: most of it is free pages.
    fn used(&self, path: &str, len: u64, add: &mut dyn FnMut(&'static str, u64, u64)) {
        let file = self.disk.open(path, OpenMode::Read).unwrap();
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(0, &mut bytes).unwrap();
        for (at, bytes) in (0..).step_by(64).zip(bytes.chunks(64)) {
            if bytes.iter().any(|byte| *byte != 0) {
                add("index", at, at + bytes.len() as u64);
            }
        }
    }

    fn pack(&self, path: &str, len: u64, add: &mut dyn FnMut(&'static str, u64, u64)) {
        let number = PackNumber::from_file_name(path.rsplit('/').next().unwrap()).unwrap();
        let file = self.disk.open(path, OpenMode::Read).unwrap();
        let slots = read_footer(&file, number).unwrap();
        add("pack header", 0, 4096);
        for slot in &slots {
            if slot.is_gone {
                add("gone record", slot.offset, slot.end());
                continue;
            }
            let stored = slot.offset + RECORD_HEAD_BYTES as u64;
            let end = stored + u64::from(slot.stored_len);
            add("record header", slot.offset, stored);
            add("record bytes", stored, end);
            add("record padding", end, slot.end());
        }
        let mut trailer = [0; 128];
        file.read_exact_at(len - 128, &mut trailer).unwrap();
        let first = u64::from_le_bytes(trailer[16..24].try_into().unwrap());
        let end = first + 64 * slots.len() as u64;
        add("footer slots", first, end);
        add("footer padding", end, len - 128);
        add("footer trailer", len - 128, len);
    }

    /// Whether the point restores bit for bit. Wrong bytes are never excused.
    fn restores(&self, reader: &StoreReader<MemoryStorage>, point: &Point, what: &str) -> bool {
        let Ok(manifest) = reader.manifest(point.name, Some(point.point)) else { return false };
        let mut decoder = RecordDecoder::new(KEY);
        let mut whole = true;
        for (disk, model) in manifest.disks.iter().zip(&point.models) {
            for leaf in 0..disk.blocks().div_ceil(1024) {
                let Ok(ids) = reader.leaf(disk, leaf) else {
                    whole = false;
                    continue;
                };
                for (block, id) in (leaf * 1024..).zip(ids) {
                    let len = disk.block_size.block_len(block, disk.size_bytes);
                    match model.get(&block) {
                        None => assert!(id.is_zero(), "{what}: block {block} should be zeros"),
                        Some(seed) => match reader.read_block(&mut decoder, &id) {
                            Ok(found) => assert!(found == raw(*seed, len), "{what}: block {block}"),
                            Err(_) => whole = false,
                        },
                    }
                }
            }
        }
        whole
    }

    fn all_restore(&self, reader: &StoreReader<MemoryStorage>, what: &str) -> bool {
        // Every one of them is looked at, for none may give wrong bytes.
        let restored: Vec<bool> =
            self.points.iter().map(|point| self.restores(reader, point, what)).collect();
        restored.iter().all(|whole| *whole)
    }
}

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
