//! Damage: found, told, remembered, and healed by the next backup, also where it hits maps.

use std::ops::ControlFlow;

use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::{BlockId, PointId};
use gantry_common::manage::VerifyOptions;
use gantry_common::session::store_port::TaskKey;
use gantry_common::wire::{BaseAnswer, MarkKind, SessionOffer};

use super::rig::{KEY, Model, Rig, offer, raw, session, verify, verify_as};
use super::{K256, key};
use crate::store::index::Location;
use crate::store::storage::memory::Fault;

pub(super) fn id(seed: u64) -> BlockId {
    KEY.block_id(&raw(seed, K256 as u32))
}

pub(super) fn place(rig: &Rig, id: &BlockId) -> Location {
    rig.store.reader().repo().index.find(&[*id]).unwrap()[0].expect("indexed")
}

/// Spoils the stored bytes of a record.
pub(super) fn spoil(rig: &Rig, id: &BlockId) {
    let at = place(rig, id);
    rig.disk.flip(&at.pack.path(), at.offset + 130);
}

pub(super) fn root(rig: &Rig, point: PointId) -> BlockId {
    rig.store.reader().manifest("vm", Some(point)).unwrap().disks[0].root
}

pub(super) fn later(offer: &SessionOffer) -> SessionOffer {
    let mut later = offer.clone();
    later.created_ms += 1;
    later
}

/// Backs one disk up as an incremental with changed extents does: only `changed`, and what the
/// target says is damaged, is read. Gives the point, the runs that were damaged, and what was sent.
pub(super) fn by_extents(
    rig: &mut Rig,
    number: u8,
    offer: &SessionOffer,
    model: &Model,
    changed: &[u64],
) -> (PointId, Vec<Run>, u64) {
    rig.reports.clear();
    let (session, key) = (session(number), TaskKey { session: session(number), task: 0 });
    rig.open(session, offer);
    let (base, durable) = rig.open_task(key).unwrap();
    let disk = &offer.disks[0];
    let blocks = disk.block_size.block_count(disk.size_bytes);
    let (damaged, mut read): (Vec<Run>, RunSet) = match base {
        BaseAnswer::Usable { damaged, .. } => (damaged.clone(), damaged.into_iter().collect()),
        _ => (Vec::new(), [Run { first: 0, count: blocks }].into_iter().collect()),
    };
    for block in changed {
        read.insert(Run { first: *block, count: 1 });
    }
    for gap in read.gaps(blocks) {
        rig.mark(key, gap.first, gap.count, MarkKind::Unchanged);
    }
    durable.iter().for_each(|run| read.remove(run));
    let mut sent = 0;
    for run in read.iter() {
        let end = run.first + run.count;
        let mut at = run.first;
        for (&block, &seed) in model.range(run.first..end) {
            if block > at {
                rig.mark(key, at, block - at, MarkKind::Zero);
            }
            let len = disk.block_size.block_len(block, disk.size_bytes);
            if rig.query(key, vec![(block, KEY.block_id(&raw(seed, len)))]) != [true] {
                rig.append(key, block, seed, len);
                sent += 1;
            }
            at = block + 1;
        }
        if at < end {
            rig.mark(key, at, end - at, MarkKind::Zero);
        }
    }
    rig.seal(key);
    assert_eq!(rig.failure(), None);
    rig.detach(session);
    (crate::store::manifest::point_of(offer.created_ms, session), damaged, sent)
}

/// A disk of three leaves, and one of three levels.
fn sizes() -> [u64; 2] {
    [2500 * K256, (1024 * 1024 + 5) * K256]
}

pub(super) fn model() -> Model {
    Model::from([(0, 1), (1, 2), (700, 3), (1500, 4), (2499, 5)])
}

#[test]
fn lost_map_nodes_heal_without_a_full() {
    for size in sizes() {
        for is_known in [false, true] {
            let mut rig = Rig::new();
            let first = offer("vm", &[size]);
            let model = model();
            let (point, ..) = by_extents(&mut rig, 1, &first, &model, &[]);
            // The node that holds block 0, one below the root: a leaf, or an interior node.
            let level = if size == sizes()[0] { 1 } else { 2 };
            let node = rig.store.reader().repo().node(&root(&rig, point), level).unwrap()[0];
            spoil(&rig, &node);
            let mut rig = rig.after_power_loss();
            let hit = if level == 1 { 1024 } else { 1 << 20 };
            if is_known {
                let report = verify(&rig.store.reader()).unwrap();
                assert_eq!((report.damages, report.hits.len()), (1, 1), "{report:?}");
                assert_eq!(report.hits[0].runs, [Run { first: 0, count: hit }]);
                let second = later(&first);
                let (next, damaged, sent) = by_extents(&mut rig, 2, &second, &model, &[]);
                assert_eq!(damaged, [Run { first: 0, count: hit }]);
                assert_eq!(sent, 0, "every block is there: only the map was lost");
                rig.check_point("vm", next, std::slice::from_ref(&model));
            } else if level == 1 {
                let (next, sent) =
                    rig.backup(session(2), &later(&first), std::slice::from_ref(&model)).unwrap();
                assert_eq!((sent[0].stored, sent[0].known), (0, 3), "leaf 0 is compared by ids");
                rig.check_point("vm", next, std::slice::from_ref(&model));
            } else {
                continue;
            }
            // The content is the same, so the old point has its node again.
            rig.check_point("vm", point, &[model]);
            let report = verify(&rig.store.reader()).unwrap();
            assert_eq!((report.damages, report.hits.len()), (1, 0), "{report:?}");
            assert!(!rig.store.reader().repo().index.is_suspect(), "healed: nothing stale remains");
        }
    }
}

#[test]
fn a_lost_root_falls_back_to_an_older_point() {
    let mut rig = Rig::new();
    let first = offer("vm", &[2500 * K256]);
    let mut model = model();
    let (old, ..) = by_extents(&mut rig, 1, &first, &model, &[]);
    model.insert(1, 20);
    let second = later(&first);
    let (newest, ..) = by_extents(&mut rig, 2, &second, &model, &[1]);
    spoil(&rig, &root(&rig, newest));
    let mut rig = rig.after_power_loss();
    let (next, sent) =
        rig.backup(session(3), &later(&second), std::slice::from_ref(&model)).unwrap();
    let BaseAnswer::Usable { point, .. } = &sent[0].base else { panic!("{:?}", sent[0].base) };
    assert_eq!(*point, old);
    rig.check_point("vm", next, std::slice::from_ref(&model));
    rig.check_point("vm", newest, &[model]);
}

#[test]
fn what_is_lost_is_walked_for_once_and_not_again_by_the_next_run() {
    let mut rig = Rig::new();
    let first = offer("vm", &[2500 * K256]);
    let model = model();
    let (point, ..) = by_extents(&mut rig, 1, &first, &model, &[]);
    assert!(!rig.store.reader().repo().index.is_suspect());
    spoil(&rig, &id(3));
    let mut rig = rig.after_power_loss();
    let index = |rig: &Rig| std::sync::Arc::clone(rig.store.reader().repo());
    // A part verified: the damage is known, the hits are named, no rows are written.
    let part = VerifyOptions { percent: 99, ..VerifyOptions::default() };
    let report = verify_as(&rig.store.reader(), &part).unwrap();
    assert!(report.hits.len() == 1 && !report.complete, "{report:?}");
    assert!(index(&rig).index.is_suspect());
    assert_eq!(index(&rig).index.lost_blocks(&root(&rig, point)).unwrap(), None);
    verify(&rig.store.reader()).unwrap();
    let lost = vec![Run { first: 700, count: 1 }];
    assert_eq!(index(&rig).index.lost_blocks(&root(&rig, point)).unwrap(), Some(lost.clone()));
    let second = later(&first);
    let (next, damaged, sent) = by_extents(&mut rig, 2, &second, &model, &[]);
    assert_eq!((damaged, sent), (lost, 1));
    // The next base's row stands already, though nobody has walked it.
    assert_eq!(index(&rig).index.lost_blocks(&root(&rig, next)).unwrap(), Some(Vec::new()));
    rig.check_point("vm", next, std::slice::from_ref(&model));
    rig.check_point("vm", point, &[model]);
    let report = verify(&rig.store.reader()).unwrap();
    assert_eq!((report.damages, report.hits.len()), (1, 0), "{report:?}");
    assert!(!index(&rig).index.is_suspect());
}

#[test]
fn damage_found_while_a_run_goes_on_is_not_taken_over_by_its_successors() {
    let mut rig = Rig::new();
    let first = offer("vm", &[2500 * K256]);
    let model = model();
    by_extents(&mut rig, 1, &first, &model, &[]);
    let second = later(&first);
    rig.open(session(2), &second);
    rig.open_task(key(2, 0)).unwrap();
    rig.mark(key(2, 0), 0, 2500, MarkKind::Unchanged);
    spoil(&rig, &id(3));
    verify(&rig.store.reader()).unwrap();
    rig.seal(key(2, 0));
    rig.detach(session(2));
    let third = later(&second);
    let (next, damaged, sent) = by_extents(&mut rig, 3, &third, &model, &[]);
    assert_eq!((damaged, sent), (vec![Run { first: 700, count: 1 }], 1));
    rig.check_point("vm", next, &[model]);
}

#[test]
fn a_resumed_run_takes_nothing_over_that_was_lost_meanwhile() {
    let mut rig = Rig::new();
    let first = offer("vm", &[2500 * K256]);
    let model = model();
    by_extents(&mut rig, 1, &first, &model, &[]);
    let second = later(&first);
    rig.open(session(2), &second);
    rig.open_task(key(2, 0)).unwrap();
    rig.mark(key(2, 0), 0, 2400, MarkKind::Unchanged);
    rig.detach(session(2));
    spoil(&rig, &id(3));
    let mut rig = rig.after_power_loss();
    verify(&rig.store.reader()).unwrap();
    let (next, damaged, sent) = by_extents(&mut rig, 2, &second, &model, &[]);
    assert_eq!((damaged, sent), (vec![Run { first: 700, count: 1 }], 1));
    rig.check_point("vm", next, &[model]);
}

#[test]
fn a_second_copy_takes_the_place_of_a_damaged_one() {
    let mut rig = Rig::new();
    let both = offer("vm", &[4 * K256, 4 * K256]);
    rig.open(session(1), &both);
    for task in [0, 1] {
        rig.open_task(key(1, task)).unwrap();
        rig.append(key(1, task), 0, 7, K256 as u32);
    }
    for task in [0, 1] {
        rig.mark(key(1, task), 1, 3, MarkKind::Zero);
        rig.seal(key(1, task));
    }
    rig.detach(session(1));
    let point = rig.store.reader().manifest("vm", None).unwrap().point;
    let models = [Model::from([(0, 7)]), Model::from([(0, 7)])];
    let before = place(&rig, &id(7));
    spoil(&rig, &id(7));
    let report = verify(&rig.store.reader()).unwrap();
    assert_eq!(report.damages, 1, "{report:?}");
    rig.settle();
    let after = place(&rig, &id(7));
    assert!(after.pack != before.pack && after.verified && !after.damaged, "{after:?}");
    rig.check_point("vm", point, &models);
    let report = verify(&rig.store.reader()).unwrap();
    assert_eq!((report.damages, report.hits.len(), report.index_wrong), (1, 0, 0), "{report:?}");
    assert!(!rig.store.reader().repo().index.is_suspect());
    // The pack with the good copy is lost: the damaged one is no copy.
    rig.store.shut_down();
    let disk = rig.disk.after_power_loss();
    crate::store::storage::Storage::remove(&disk, &after.pack.path()).unwrap();
    let rig = Rig::on(disk);
    let report = verify(&rig.store.reader()).unwrap();
    assert_eq!(report.hits.len(), 2, "{report:?}");
}

#[test]
fn a_lost_pack_costs_nothing_that_stands_in_another() {
    let mut rig = Rig::new();
    let both = offer("vm", &[4 * K256, 4 * K256]);
    rig.open(session(1), &both);
    for task in [0, 1] {
        rig.open_task(key(1, task)).unwrap();
        rig.append(key(1, task), 0, 7, K256 as u32);
    }
    for task in [0, 1] {
        rig.mark(key(1, task), 1, 3, MarkKind::Zero);
        rig.seal(key(1, task));
    }
    rig.detach(session(1));
    let point = rig.store.reader().manifest("vm", None).unwrap().point;
    rig.store.shut_down();
    let lost = place(&rig, &id(7)).pack;
    let disk = rig.disk.after_power_loss();
    crate::store::storage::Storage::remove(&disk, &lost.path()).unwrap();
    let rig = Rig::on(disk);
    assert!(rig.store.notes().iter().any(|note| note.contains("is gone")));
    let models = [Model::from([(0, 7)]), Model::from([(0, 7)])];
    rig.check_point("vm", point, &models);
}

#[test]
fn what_a_restore_finds_damaged_is_remembered_but_not_a_failing_disk() {
    let mut rig = Rig::new();
    let first = offer("vm", &[4 * K256]);
    rig.backup(session(1), &first, &[Model::from([(0, 1), (1, 2)])]).unwrap();
    verify(&rig.store.reader()).unwrap();
    assert!(place(&rig, &id(1)).verified);
    let reader = rig.store.reader();
    let mut decoder = crate::store::record::RecordDecoder::new(KEY);
    let fault =
        |count| Fault { operation: "read", path_part: ".pack".into(), errno: 5, skip: 0, count };
    rig.disk.fail(fault(1));
    reader.read_block(&mut decoder, &id(1)).unwrap_err();
    rig.settle();
    assert!(place(&rig, &id(1)).verified, "an I/O error says nothing of the record");
    spoil(&rig, &id(1));
    reader.read_block(&mut decoder, &id(1)).unwrap_err();
    rig.disk.fail(fault(1));
    rig.settle();
    assert!(!place(&rig, &id(1)).damaged, "the second look failed: nothing is known");
    reader.read_block(&mut decoder, &id(1)).unwrap_err();
    rig.settle();
    let at = place(&rig, &id(1));
    assert!(at.damaged && !at.verified, "{at:?}");
    let (_, damaged, sent) =
        by_extents(&mut rig, 2, &later(&first), &Model::from([(0, 1), (1, 2)]), &[]);
    assert_eq!((damaged, sent), (vec![Run { first: 0, count: 1 }], 1));
}

#[test]
fn a_part_is_verified_oldest_first_and_can_be_stopped() {
    let mut rig = Rig::new();
    for number in 1..=4 {
        let mut vm = offer(&format!("vm{number}"), &[4 * K256]);
        vm.created_ms += u64::from(number);
        let seed = u64::from(number);
        rig.backup(session(number), &vm, &[Model::from([(0, seed)])]).unwrap();
    }
    let reader = rig.store.reader();
    let checked = |rig: &Rig| -> Vec<u64> {
        rig.store.reader().repo().packs().values().map(|row| row.checked_ms).collect()
    };
    assert_eq!(checked(&rig), [0; 4]);
    let half = VerifyOptions { percent: 50, ..VerifyOptions::default() };
    assert_eq!(verify_as(&reader, &half).unwrap().packs, 2);
    assert_eq!(checked(&rig), [77, 77, 0, 0]);
    let report = verify_as(&reader, &half).unwrap();
    assert!(report.packs == 2 && !report.complete && report.nodes == 0, "{report:?}");
    assert_eq!(checked(&rig), [77; 4]);
    let mut stop = |_, _| ControlFlow::Break(());
    let all = VerifyOptions::default();
    let report = crate::store::verify::verify(&reader, &all, 99, &mut stop).unwrap();
    assert!(!report.complete && report.notes[0].contains("stopped"), "{report:?}");
    assert!(!checked(&rig).contains(&99));
    let rig = rig.after_power_loss();
    assert_eq!(checked(&rig).len(), 4);
}

#[test]
fn checksums_need_no_key_and_vouch_for_no_id() {
    let mut rig = Rig::new();
    let first = offer("vm", &[2500 * K256]);
    rig.backup(session(1), &first, &[model()]).unwrap();
    let keyless = VerifyOptions { checksums_only: true, ..VerifyOptions::default() };
    let report = verify_as(&rig.store.reader(), &keyless).unwrap();
    assert!(report.is_clean() && report.records_good == 9 && report.nodes == 4, "{report:?}");
    assert!(!place(&rig, &id(1)).verified);
    spoil(&rig, &id(3));
    let report = verify_as(&rig.store.reader(), &keyless).unwrap();
    assert_eq!((report.damages, report.hits.len()), (1, 1), "{report:?}");
    assert_eq!(report.hits[0].runs, [Run { first: 700, count: 1 }]);
    assert!(place(&rig, &id(3)).damaged);
}

#[test]
fn a_rate_is_kept() {
    let mut rig = Rig::new();
    rig.backup(session(1), &offer("vm", &[4 * K256]), &[Model::from([(0, 1)])]).unwrap();
    let started = std::time::Instant::now();
    let slow = VerifyOptions { rate: Some(60_000), ..VerifyOptions::default() };
    let report = verify_as(&rig.store.reader(), &slow).unwrap();
    let due = report.bytes_read as f64 / 60_000.0;
    let took = started.elapsed().as_secs_f64();
    // The pace lets go up to a millisecond early; a busy machine wakes late.
    assert!(due > 0.1 && took >= due - 0.002 && took < due + 10.0, "{took} s for {due} s");
}

/// Found in review: entries of a pack that had lost its footer stayed trusted, and the next backup
/// took over as unchanged what was not there.
#[test]
fn a_pack_that_was_cut_short_or_wiped_is_not_trusted() {
    use crate::store::storage::{OpenMode, Storage, StorageFile};
    for (cut, wiped) in [(4096, false), (8192, false), (0, false), (0, true)] {
        let mut rig = Rig::new();
        let old = Model::from([(0, 1), (1, 2), (2, 3)]);
        let model = Model::from([(0, 1), (1, 2), (2, 9)]);
        rig.point("vm", 1, 8, &old);
        let second = rig.point("vm", 2, 8, &model);
        let path = rig.packs().remove(0);
        let pack = rig.disk.open(&path, OpenMode::Write).unwrap();
        match wiped {
            true => pack.write_at(0, &vec![0; pack.len().unwrap() as usize]).unwrap(),
            false => pack.set_len(cut).unwrap(),
        }
        pack.sync_data().unwrap();
        let mut rig = rig.after_power_loss();
        let report = super::rig::verify(&rig.store.reader()).unwrap();
        assert!(!report.is_clean(), "cut {cut}");
        let hit: Vec<&str> = report.hits.iter().map(|hit| &*hit.point).collect();
        assert!(hit.contains(&&*second.to_string()), "cut {cut}: {report:?}");
        let third = rig.point("vm", 3, 8, &model);
        rig.check_point("vm", third, std::slice::from_ref(&model));
        rig.check_point("vm", second, std::slice::from_ref(&model));
    }
}
