//! Power cuts at every operation: what was acknowledged is there, what was not is in no point.

use gantry_common::extents::RunSet;
use gantry_common::session::store_port::{StoreReport, TaskKey};
use gantry_common::wire::MarkKind;

use super::rig::{KEY, Model, Rig, check_point, new_disk, offer, raw, session};
use super::{K256, key};
use crate::store::record::RecordDecoder;

/// One scripted backup with a checkpoint in the middle; stops at the first failure.
fn script(rig: &mut Rig, model: &Model) -> (RunSet, bool) {
    let offer = offer("vm", &[8 * K256]);
    rig.reports.clear();
    rig.open(session(1), &offer);
    if rig.open_task(key(1, 0)).is_some() {
        for (&block, &seed) in model {
            if rig.failure().is_none() {
                rig.append(key(1, 0), block, seed, K256 as u32);
            }
            if block == 3 {
                rig.now_ms += 6000;
                rig.settle();
            }
        }
        rig.mark(key(1, 0), 4, 2, MarkKind::Zero);
        rig.seal(key(1, 0));
    }
    let mut durable = RunSet::new();
    let mut committed = false;
    for report in &rig.reports {
        match report {
            StoreReport::Durable { runs, .. } => {
                for run in runs {
                    durable.insert(*run);
                }
            }
            StoreReport::Committed { .. } => committed = true,
            _ => {}
        }
    }
    (durable, committed)
}

fn model() -> Model {
    (0..8).filter(|block| ![4, 5].contains(block)).map(|block| (block, block % 5 + 1)).collect()
}

#[test]
fn power_cut_at_every_operation() {
    assert!(cut_everywhere(None) > 100);
}

#[test]
fn a_forgotten_sync_is_caught() {
    // A manifest whose own sync is forgotten is served by its copy, so both are.
    for forgotten in [".pack", "packs/", ".journal", "journal", ".manifest+.copy", "points/"] {
        let caught = std::panic::catch_unwind(|| cut_everywhere(Some(forgotten))).is_err();
        assert!(caught, "without syncs of {forgotten} nothing was lost: the test cannot see");
    }
}

/// Runs the script with the power cut after each operation, and checks what is left.
fn cut_everywhere(forgotten: Option<&str>) -> u32 {
    let fresh = || {
        let disk = new_disk();
        let parts = forgotten.iter().flat_map(|parts| parts.split('+'));
        parts.for_each(|path_part| disk.forget_syncs(path_part));
        disk
    };
    let mut rig = Rig::on(fresh());
    let (durable, committed) = script(&mut rig, &model());
    assert!(committed && durable.blocks() == 8, "{durable:?} {:?}", rig.failure());
    let mut cuts = 0;
    for cut in 0..=rig.disk.operations() {
        for keep_unsynced in [false, true] {
            let disk = fresh();
            disk.power_off_at(cut);
            let mut acknowledged = (RunSet::new(), false);
            if let Ok(mut rig) = Rig::try_on(disk.clone()) {
                acknowledged = script(&mut rig, &model());
            }
            let after = if keep_unsynced { disk.after_kill() } else { disk.after_power_loss() };
            check_after(cut, after, &acknowledged);
            cuts += 1;
        }
    }
    cuts
}

fn check_after(
    cut: u64,
    disk: crate::store::storage::memory::MemoryStorage,
    (durable, committed): &(RunSet, bool),
) {
    let mut rig = Rig::on(disk);
    let points = rig.store.reader().points("vm").unwrap();
    assert!(!committed || points.len() == 1, "cut {cut}: a committed point is gone");
    for listed in &points {
        check_point(&rig.store.reader(), "vm", listed.point, &[model()]);
    }
    if points.is_empty() {
        // What was acknowledged is there, and not sent again.
        rig.open(session(1), &offer("vm", &[8 * K256]));
        let (_, resumed) = rig.open_task(TaskKey { session: session(1), task: 0 }).unwrap();
        for run in durable.iter() {
            for block in run.first..run.first + run.count {
                assert!(resumed.contains(block), "cut {cut}: block {block} was durable");
            }
        }
        let mut decoder = RecordDecoder::new(KEY);
        for (block, seed) in model() {
            if durable.contains(block) {
                let raw = raw(seed, K256 as u32);
                let found = rig.store.reader().read_block(&mut decoder, &KEY.block_id(&raw));
                assert_eq!(found.unwrap(), raw, "cut {cut} block {block}");
            }
        }
        rig.detach(session(1));
    }
    let (point, _) = rig.backup(session(1), &offer("vm", &[8 * K256]), &[model()]).unwrap();
    rig.check_point("vm", point, &[model()]);
}
