//! Points' life in a running store: deleting and bringing back, protecting, retention and flags,
//! and what a deleted point means for sessions, bases and crashes.

use gantry_common::ids::PointId;
use gantry_common::manage::{CollectOptions, KeepReason, PointFlags, Retention};
use gantry_common::session::store_port::{StoreReport, TaskKey};
use gantry_common::wire::{BaseAnswer, MarkKind, SessionOffer};

use super::K256;
use super::rig::{Model, Rig, offer, session};
use crate::store::layout::{copy_path, deleted_path};
use crate::store::storage::Storage;
use crate::store::storage::memory::Fault;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// Monday, 5 January 2026.
const MONDAY_MS: u64 = 1_767_571_200_000;

fn model(number: u64) -> Model {
    Model::from([(1, number), (2, 2)])
}

fn offer_at(name: &str, ms: u64) -> SessionOffer {
    let mut offer = offer(name, &[4 * K256]);
    offer.created_ms = ms;
    offer.disks[0].snapshot = format!("s{ms}");
    offer
}

/// A point of `name` made at `ms` by session `number`.
fn point(rig: &mut Rig, name: &str, number: u8, ms: u64) -> PointId {
    let offer = offer_at(name, ms);
    rig.backup(session(number), &offer, &[model(number.into())]).unwrap().0
}

fn listed(rig: &Rig, name: &str) -> Vec<PointId> {
    rig.store.reader().points(name).unwrap().iter().map(|listed| listed.point).collect()
}

#[test]
fn a_deleted_point_is_away_and_comes_back_bit_for_bit() {
    let mut rig = Rig::new();
    let [a, b, c] = [1, 2, 3].map(|number| point(&mut rig, "vm", number, 1000 * u64::from(number)));
    let report = rig.store.delete_points("vm", &[a, b, a], false).unwrap();
    assert_eq!(report.changed, [a, b]);
    let mut rig = rig.after_power_loss();
    assert_eq!(listed(&rig, "vm"), [c]);
    let error = rig.store.reader().manifest("vm", Some(a)).unwrap_err().to_string();
    assert!(error.contains("is deleted") && error.contains("point undelete"), "{error}");
    assert_eq!(rig.store.reader().deleted_points("vm").unwrap().len(), 2);
    assert_eq!(rig.store.delete_points("vm", &[a], false).unwrap().unchanged, [a]);
    assert_eq!(rig.store.undelete_points("vm", &[a]).unwrap().changed, [a]);
    assert_eq!(rig.store.undelete_points("vm", &[]).unwrap().changed, [b]);
    assert_eq!(rig.store.undelete_points("vm", &[b]).unwrap().unchanged, [b]);
    let rig = rig.after_power_loss();
    assert_eq!(listed(&rig, "vm"), [a, b, c]);
    for (number, point) in [(1, a), (2, b), (3, c)] {
        rig.check_point("vm", point, &[model(number)]);
    }
}

#[test]
fn what_may_not_go_stays_and_nothing_else_goes_with_it() {
    let mut rig = Rig::new();
    let [a, b] = [1, 2].map(|number| point(&mut rig, "vm", number, 1000 * u64::from(number)));
    let refused = |rig: &mut Rig, points: &[PointId], words: &str| {
        let error = rig.store.delete_points("vm", points, false).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("nothing was deleted"), "{error}");
        assert_eq!(listed(rig, "vm"), [a, b]);
    };
    refused(&mut rig, &[a, PointId([9; 16])], "has no restore point 0909");
    refused(&mut rig, &[a, b], "--last-too");
    assert_eq!(rig.store.protect_points("vm", &[a], true).unwrap().changed, [a]);
    assert_eq!(rig.store.protect_points("vm", &[a], true).unwrap().unchanged, [a]);
    let mut rig = rig.after_power_loss();
    refused(&mut rig, &[b, a], "is protected");
    assert!(rig.store.reader().manifest("vm", Some(a)).unwrap().flags.has(PointFlags::PROTECTED));
    rig.check_point("vm", a, &[model(1)]);
    // A point that cannot be read might be protected, and is not what keeps a name restorable.
    for path in [crate::store::layout::manifest_path("vm", b), copy_path("vm", b)] {
        rig.disk.flip(&path, 60);
    }
    refused(&mut rig, &[b], "run repo repair");
    rig.store.protect_points("vm", &[a], false).unwrap();
    refused(&mut rig, &[a], "--last-too");
    assert_eq!(rig.store.delete_points("vm", &[a], true).unwrap().changed, [a]);
    assert_eq!(listed(&rig, "vm"), [b]);
    assert!(rig.store.undelete_points("vm", &[PointId([9; 16])]).is_err());
}

#[test]
fn verify_names_either_damaged_file_of_a_point() {
    let mut rig = Rig::new();
    let a = point(&mut rig, "vm", 1, 1000);
    let b = point(&mut rig, "vm", 2, 2000);
    rig.store.delete_points("vm", &[a], false).unwrap();
    let verify = |rig: &Rig| rig.store.reader().all_points().unwrap().len();
    assert_eq!(verify(&rig), 1);
    let faults = |rig: &Rig| {
        let reader = rig.store.reader();
        let all = reader.all_points().unwrap().into_iter();
        let all = all.chain(reader.all_deleted_points().unwrap());
        let named = |listed: crate::store::reader::ListedPoint| {
            let copy = reader.copy_fault(&listed);
            assert!(listed.manifest.is_ok());
            [listed.fault, copy].into_iter().flatten().map(|fault| fault.to_string())
        };
        all.flat_map(named).collect::<Vec<_>>()
    };
    assert!(faults(&rig).is_empty());
    for path in [copy_path("vm", a), deleted_path("vm", a), copy_path("vm", b)] {
        rig.disk.flip(&path, 50);
        let found = faults(&rig);
        assert!(found.len() == 1 && found[0].contains(&path), "{path}: {found:?}");
        rig.disk.flip(&path, 50);
    }
    rig.disk.remove(&copy_path("vm", b)).unwrap();
    assert_eq!(faults(&rig).len(), 1, "a copy that is missing");
}

#[test]
fn retention_of_a_session_deletes_what_is_older_by_both_clocks() {
    let mut rig = Rig::new();
    let retention = Retention { days: 3, points_min: 2, ..Retention::default() };
    let mut made = Vec::new();
    for day in 0..6u64 {
        let mut offer = offer_at("vm", MONDAY_MS + day * DAY_MS);
        offer.retention = Some(retention);
        rig.store.set_wall_ms(offer.created_ms + 5000);
        rig.backup(session(day as u8 + 1), &offer, &[model(day)]).unwrap();
        made.push(*listed(&rig, "vm").last().unwrap());
        let committed = rig.reports.iter().find_map(|report| match report {
            StoreReport::Committed { point, deleted, .. } => Some((*point, deleted.clone())),
            _ => None,
        });
        // The point of exactly three days before is no longer younger than three days.
        let gone = if day < 3 { vec![] } else { vec![made[day as usize - 3]] };
        assert_eq!(committed, Some((made[day as usize], gone)), "day {day}");
    }
    let mut rig = rig.after_power_loss();
    assert_eq!(listed(&rig, "vm"), made[3..]);
    assert_eq!(rig.store.reader().deleted_points("vm").unwrap().len(), 3);
    // A target whose clock is years ahead, then a source whose clock is: neither deletes alone.
    for (number, wall_ms, source_ms) in
        [(10, MONDAY_MS * 2, MONDAY_MS + 6 * DAY_MS), (11, MONDAY_MS + 6 * DAY_MS, MONDAY_MS * 2)]
    {
        let mut offer = offer_at("vm", source_ms);
        offer.retention = Some(retention);
        rig.store.set_wall_ms(wall_ms);
        rig.backup(session(number), &offer, &[model(1)]).unwrap();
    }
    assert_eq!(listed(&rig, "vm").len(), 4, "{:?}", listed(&rig, "vm"));
}

#[test]
fn flags_of_periods_keep_points_and_prune_says_why() {
    let mut rig = Rig::new();
    let retention =
        Retention { days: 2, points_min: 1, weekly: 2, monthly: 1, ..Retention::default() };
    for day in 0..16u64 {
        let mut offer = offer_at("vm", MONDAY_MS + day * DAY_MS);
        offer.retention = Some(Retention { days: 100, ..retention });
        rig.backup(session(day as u8 + 1), &offer, &[model(day)]).unwrap();
    }
    let now_ms = MONDAY_MS + 15 * DAY_MS + 1;
    let before = rig.disk.image();
    let dry = rig.store.prune_points("vm", &retention, now_ms, true).unwrap();
    assert_eq!(rig.disk.image(), before, "a dry run changes nothing");
    assert_eq!((dry.points_deleted, dry.points_kept), (12, 4));
    let kept: Vec<_> = dry.decisions.iter().filter(|one| !one.keep.is_empty()).collect();
    let days: Vec<u64> =
        kept.iter().map(|one| (one.point.created_ms() - MONDAY_MS) / DAY_MS).collect();
    assert_eq!(days, [0, 7, 14, 15]);
    assert_eq!(kept[0].keep, [KeepReason::Monthly], "the first of its week too, but the third");
    assert_eq!(kept[1].keep, [KeepReason::Weekly]);
    assert_eq!(kept[2].keep, [KeepReason::Days, KeepReason::Weekly]);
    assert_eq!(kept[3].keep, [KeepReason::Newest, KeepReason::Days]);
    let done = rig.store.prune_points("vm", &retention, now_ms, false).unwrap();
    assert_eq!(done.decisions, dry.decisions);
    assert_eq!(listed(&rig, "vm").len(), 4);
    assert_eq!(rig.store.undelete_points("vm", &[]).unwrap().changed.len(), 12);
    assert_eq!(rig.store.prune_points("nobody", &retention, now_ms, false).unwrap().points_kept, 0);
}

#[test]
fn a_deleted_points_session_does_not_make_it_again() {
    let mut rig = Rig::new();
    let offer = offer_at("vm", 1000);
    let (a, _) = rig.backup(session(1), &offer, &[model(1)]).unwrap();
    rig.store.delete_points("vm", &[a], true).unwrap();
    let opened = StoreReport::SessionOpened { session: session(1), committed: Some(a) };
    assert_eq!(rig.open(session(1), &offer), [opened]);
    assert!(listed(&rig, "vm").is_empty());
}

#[test]
fn a_crash_before_journals_go_does_not_bring_a_deleted_point_back() {
    let mut rig = Rig::new();
    let offer = offer_at("vm", 1000);
    // The disk keeps the journals, sealed as they are: their removal was lost.
    let (operation, path_part) = ("remove", "journal/".to_owned());
    rig.disk.fail(Fault { operation, path_part, errno: 5, skip: 0, count: u32::MAX });
    let (a, _) = rig.backup(session(1), &offer, &[model(1)]).unwrap();
    assert!(rig.disk.files().iter().any(|file| file.starts_with("journal/")));
    rig.store.delete_points("vm", &[a], true).unwrap();
    let rig = rig.after_power_loss();
    assert!(listed(&rig, "vm").is_empty(), "the point came back by itself");
    assert_eq!(rig.store.reader().deleted_points("vm").unwrap().len(), 1);
}

/// Found by the crash suite (seed 5722): the point's journal stayed, the point was deleted and
/// purged, and the next opening committed it again.
#[test]
fn a_journal_that_could_not_be_removed_does_not_bring_a_purged_point_back() {
    for errors in [1, u32::MAX] {
        let mut rig = Rig::new();
        let (operation, path_part) = ("remove", "journal/".to_owned());
        rig.disk.fail(Fault { operation, path_part, errno: 5, skip: 0, count: errors });
        let a = point(&mut rig, "vm", 1, 1000);
        rig.store.delete_points("vm", &[a], true).unwrap();
        let collected = rig.try_collect(CollectOptions::default());
        // Where the journal cannot be removed at all, nothing is purged.
        assert_eq!(collected.is_ok(), errors == 1, "{collected:?}");
        let rig = rig.after_power_loss();
        assert!(listed(&rig, "vm").is_empty(), "the point came back by itself");
        let deleted = rig.store.reader().deleted_points("vm").unwrap().len();
        assert_eq!(deleted, usize::from(errors > 1));
    }
}

#[test]
fn a_base_may_be_deleted_beneath_a_running_backup_and_its_resume() {
    let mut rig = Rig::new();
    let a = point(&mut rig, "vm", 1, 1000);
    let second = offer_at("vm", 2000);
    let task = TaskKey { session: session(2), task: 0 };
    rig.open(session(2), &second);
    let (base, _) = rig.open_task(task).unwrap();
    assert!(matches!(base, BaseAnswer::Usable { point, .. } if point == a), "{base:?}");
    rig.mark(task, 0, 2, MarkKind::Unchanged);
    rig.store.delete_points("vm", &[a], true).unwrap();
    rig.detach(session(2));
    rig.open(session(2), &second);
    let (base, durable) = rig.open_task(task).unwrap();
    assert!(matches!(base, BaseAnswer::Usable { point, .. } if point == a), "{base:?}");
    assert_eq!(durable.blocks(), 2);
    rig.mark(task, 2, 2, MarkKind::Unchanged);
    let came = rig.seal(task);
    assert!(matches!(came.last(), Some(StoreReport::Committed { .. })), "{came:?}");
    let b = listed(&rig, "vm")[0];
    rig.check_point("vm", b, &[model(1)]);
}

#[test]
fn retention_cut_off_at_any_operation_loses_no_point() {
    let mut rig = Rig::new();
    let old = [1, 2, 3].map(|number| point(&mut rig, "vm", number, 1000 * u64::from(number)));
    let before = rig.disk.after_kill();
    drop(rig);
    let mut offer = offer_at("vm", 9000);
    offer.retention = Some(Retention { points_min: 1, weekly: 1, ..Retention::default() });
    let back_up = |disk: crate::store::storage::memory::MemoryStorage| {
        let mut rig = Rig::try_on(disk).ok()?;
        rig.store.set_wall_ms(9000);
        rig.backup(session(4), &offer, &[model(4)]).map(|(point, _)| point)
    };
    let whole = before.after_kill();
    let first = whole.operations();
    let new = back_up(whole.clone()).unwrap();
    for cut in 0..=whole.operations() - first {
        for keep_unsynced in [false, true] {
            let disk = before.after_kill();
            disk.power_off_at(disk.operations() + cut);
            let committed = back_up(disk.clone());
            let after = if keep_unsynced { disk.after_kill() } else { disk.after_power_loss() };
            let mut rig = Rig::on(after);
            let live = listed(&rig, "vm");
            assert!(committed.is_none() || live.contains(&new), "cut {cut}: a point is lost");
            assert!(live.contains(&new) || live == old, "cut {cut}: deleted for nothing");
            rig.store.undelete_points("vm", &[]).unwrap();
            for (number, point) in (1..).zip(old) {
                rig.check_point("vm", point, &[model(number)]);
            }
            if live.contains(&new) {
                rig.check_point("vm", new, &[model(4)]);
                let manifest = rig.store.reader().manifest("vm", Some(new)).unwrap();
                assert_eq!(manifest.flags.names(), ["weekly"], "cut {cut}");
            }
        }
    }
}
