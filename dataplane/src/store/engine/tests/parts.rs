//! Parts: disks of one VM that sessions of their own bring in, and the session that commits them.

use gantry_common::ids::PointId;
use gantry_common::manage::CollectOptions;
use gantry_common::session::store_port::StoreReport;
use gantry_common::wire::{BaseChoice, SessionKind, SessionOffer};

use super::collect::assert_clean;
use super::rig::{Model, Rig, Sent, offer, session};
use super::{K256, key};
use crate::store::storage::{OpenMode, Storage, StorageFile};

const PART: SessionKind = SessionKind::Part;
const COMMIT: SessionKind = SessionKind::Commit;

fn models() -> [Model; 3] {
    [Model::from([(0, 1), (3, 2)]), Model::from([(1, 3)]), Model::from([(0, 1), (5, 4)])]
}

fn vm() -> SessionOffer {
    offer("vm", &[6 * K256, 4 * K256 + 9, 7 * K256])
}

/// One disk of it, as another mover might see it.
fn part_of(vm: &SessionOffer, disk: usize, created_ms: u64) -> SessionOffer {
    let mut disk = vm.disks[disk].clone();
    disk.label = format!("as seen at {created_ms}");
    SessionOffer { disks: vec![disk], created_ms, ..vm.clone() }
}

impl Rig {
    fn refusal(&mut self) -> String {
        let failure = self.failure().expect("a refusal");
        self.reports.clear();
        failure
    }

    /// Brings one disk in and keeps it.
    fn part(&mut self, number: u8, vm: &SessionOffer, disk: usize, model: &Model) -> Sent {
        let part = part_of(vm, disk, 5000 + u64::from(number));
        self.open_as(session(number), &part, PART);
        let sent = self.bring(key(number, 0), &part.disks[0], model);
        let sealed = self.seal(key(number, 0));
        let is_sealed = |report: &StoreReport| matches!(report, StoreReport::Sealed { .. });
        assert!(sealed.iter().any(is_sealed), "{sealed:?}");
        assert!(!sealed.iter().any(is_commit), "a part commits nothing");
        self.detach(session(number));
        sent.unwrap()
    }

    /// Commits what is there; the point, and whether it was there before.
    fn commit(&mut self, number: u8, vm: &SessionOffer) -> Option<(PointId, bool)> {
        self.reports.clear();
        let opened = self.open_as(session(number), vm, COMMIT);
        let mut found = None;
        if let [StoreReport::SessionOpened { committed: Some(point), .. }] = opened[..] {
            found = Some((point, true));
        } else {
            for (task, disk) in (0..).zip(&vm.disks) {
                let durable = self.open_task(key(number, task));
                let durable = durable.unwrap_or_else(|| panic!("{:?}", self.reports)).1;
                if durable.blocks() < disk.block_size.block_count(disk.size_bytes) {
                    self.detach(session(number));
                    return None;
                }
                self.seal(key(number, task));
            }
            found = found.or_else(|| {
                self.reports.iter().find_map(|report| match report {
                    StoreReport::Committed { point, .. } => Some((*point, false)),
                    _ => None,
                })
            });
        }
        self.detach(session(number));
        found
    }

    fn journals(&self) -> usize {
        self.disk.files().iter().filter(|file| file.ends_with(".journal")).count()
    }
}

fn is_commit(report: &StoreReport) -> bool {
    matches!(report, StoreReport::Committed { .. })
}

#[test]
fn parts_at_once_become_one_point_and_only_once() {
    let (mut rig, models, vm) = (Rig::new(), models(), vm());
    let parts = [part_of(&vm, 0, 5000), part_of(&vm, 1, 4000)];
    rig.open_as(session(1), &parts[0], PART);
    rig.open_as(session(2), &parts[1], PART);
    assert_eq!(rig.failure(), None, "parts of different disks run at once");
    rig.open_as(session(3), &parts[1], PART);
    assert!(rig.refusal().contains("is running"), "the same disk twice");
    rig.open_as(session(4), &vm, COMMIT);
    assert!(rig.refusal().contains("is running"), "a commit while parts run");
    rig.bring(key(1, 0), &parts[0].disks[0], &models[0]).unwrap();
    rig.bring(key(2, 0), &parts[1].disks[0], &models[1]).unwrap();
    rig.seal(key(1, 0));
    rig.seal(key(2, 0));
    rig.detach(session(1));
    rig.detach(session(2));
    assert_eq!(rig.commit(5, &vm), None, "the third disk is missing");
    // The process dies; nothing commits by itself, and what an unlucky commit took over counts.
    let mut rig = rig.after_power_loss();
    assert_eq!(rig.journals(), 3);
    let sent = rig.part(6, &vm, 2, &models[2]);
    assert_eq!((sent.resumed, sent.known, sent.stored), (0, 1, 1));
    let mut rig = rig.after_power_loss();
    let (point, before) = rig.commit(7, &vm).unwrap();
    assert!(!before);
    rig.check_point("vm", point, &models);
    assert_eq!(rig.journals(), 0);
    // The same session again, then another one: nothing is done twice.
    assert_eq!(rig.commit(7, &vm), Some((point, true)));
    let later = SessionOffer { created_ms: 9000, ..vm.clone() };
    let mut rig = rig.after_power_loss();
    assert_eq!(rig.commit(8, &later), Some((point, true)));
    assert_eq!(rig.store.reader().points("vm").unwrap().len(), 1);
    assert_clean(&rig);
}

#[test]
fn a_part_is_gone_on_with_by_another_mover() {
    let (mut rig, models, vm) = (Rig::new(), models(), vm());
    let first = part_of(&vm, 0, 5000);
    rig.open_as(session(1), &first, PART);
    rig.open_task(key(1, 0)).unwrap();
    rig.append(key(1, 0), 0, 1, K256 as u32);
    rig.detach(session(1));
    let mut rig = rig.after_power_loss();
    let sent = rig.part(2, &vm, 0, &models[0]);
    assert_eq!((sent.resumed, sent.stored), (1, 1));
    // A part that was complete is complete: the report got lost, and it is asked for again.
    assert_eq!(rig.part(3, &vm, 0, &models[0]).resumed, 6);
    // Of another snapshot nothing of it counts.
    let mut other = vm.clone();
    other.disks[0].snapshot = "s2".into();
    assert_eq!(rig.part(4, &other, 0, &models[0]).resumed, 0);
    assert_eq!(rig.journals(), 1);
}

#[test]
fn parts_stay_through_collections_until_they_are_given_up() {
    let (mut rig, models, vm) = (Rig::new(), models(), vm());
    rig.part(1, &vm, 0, &models[0]);
    rig.part(2, &vm, 1, &models[1]);
    let kept = rig.collect();
    assert_eq!((kept.unfinished, kept.records_dead), (2, 0), "{kept:?}");
    let mut rig = rig.after_power_loss();
    assert_eq!(rig.collect().records_dead, 0);
    assert_eq!(rig.store.abandon("other", None).unwrap(), 0);
    assert_eq!(rig.store.abandon("vm", Some("s0")).unwrap(), 0);
    assert_eq!(rig.part(3, &vm, 0, &models[0]).resumed, 6);
    assert_eq!(rig.store.abandon("vm", Some("s1")).unwrap(), 2);
    assert_eq!(rig.journals(), 0);
    let done = rig.collect();
    assert_eq!((done.unfinished, done.records_live), (0, 0), "{done:?}");
    assert!(rig.packs().is_empty());
    // A part that runs is not given up, neither so nor by a collection.
    rig.open_as(session(4), &part_of(&vm, 0, 1), PART);
    rig.open_task(key(4, 0)).unwrap();
    rig.append(key(4, 0), 0, 1, K256 as u32);
    assert_eq!(rig.store.abandon("vm", None).unwrap(), 0);
    let options = CollectOptions { abandon_unfinished: true, ..CollectOptions::default() };
    assert_eq!(rig.try_collect(options).unwrap().unfinished, 1);
}

/// The base's point may be deleted, or be no longer the newest, between the part and the commit.
#[test]
fn a_part_keeps_the_base_that_it_began_with() {
    let (mut rig, models) = (Rig::new(), models());
    let vm = offer("vm", &[6 * K256, 4 * K256]);
    let first = rig.backup(session(1), &vm, &models[..2]).unwrap().0;
    let mut second = vm.clone();
    for disk in &mut second.disks {
        (disk.snapshot, disk.base) = ("s2".into(), BaseChoice::Point(first));
        disk.change_id = Some("52/7".into());
    }
    let mut changed = models.clone();
    changed[0].insert(4, 77);
    let sent = rig.part(2, &second, 0, &changed[0]);
    assert_eq!((sent.unchanged, sent.stored), (2, 1));
    assert_eq!(rig.part(3, &second, 1, &changed[1]).unchanged, 1);
    rig.delete_point("vm", first);
    assert_eq!(rig.collect().points_purged, 1);
    let mut rig = rig.after_power_loss();
    let (point, _) = rig.commit(4, &second).unwrap();
    rig.check_point("vm", point, &changed[..2]);
    let manifest = rig.store.reader().manifest("vm", Some(point)).unwrap();
    assert_eq!(manifest.parent, Some(first));
    assert!(manifest.disks.iter().all(|disk| disk.base == Some(first)));
    assert!(manifest.disks.iter().all(|disk| disk.change_id.as_deref() == Some("52/7")));
    rig.collect();
    rig.check_point("vm", point, &changed[..2]);
    assert_clean(&rig);
}

/// A journal of a part that a crash brought back after the commit goes at the next opening.
#[test]
fn a_part_that_a_point_holds_is_not_kept() {
    let (mut rig, models, vm) = (Rig::new(), models(), vm());
    for (disk, model) in models.iter().enumerate() {
        rig.part(disk as u8, &vm, disk, model);
    }
    let read = |path: &String| {
        let file = rig.disk.open(path, OpenMode::Read).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(0, &mut bytes).unwrap();
        (path.clone(), bytes)
    };
    let files = rig.disk.files();
    let journals: Vec<_> =
        files.iter().filter(|path| path.ends_with(".journal")).map(read).collect();
    assert_eq!(journals.len(), 3);
    let (point, _) = rig.commit(9, &SessionOffer { created_ms: 7000, ..vm.clone() }).unwrap();
    for (path, bytes) in journals {
        let file = rig.disk.open(&path, OpenMode::Create).unwrap();
        file.write_at(0, &bytes).unwrap();
        file.sync_data().unwrap();
    }
    rig.disk.sync_dir("journal").unwrap();
    let rig = rig.after_power_loss();
    assert_eq!(rig.journals(), 0);
    rig.check_point("vm", point, &models);
}
