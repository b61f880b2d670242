//! Tests of the engine on a memory disk: whole sessions, resumes, dedupe, bases, crashes, faults.

mod rig;
mod crash;
mod damage;
mod faults;
mod flips;
mod repair;
mod regressions;
mod points;
mod collect;
mod parts;
mod collect_rig;
mod collect_barriers;
mod collect_rewrite;
mod collect_crash;

use gantry_common::ids::PointId;
use gantry_common::session::store_port::{StoreCommand, StoreReport, TaskKey};
use gantry_common::wire::{BaseAnswer, BaseChoice, MarkKind};

use self::rig::{KEY, Model, Rig, offer, raw, session};

const K256: u64 = 256 << 10;

fn key(number: u8, task: u16) -> TaskKey {
    TaskKey { session: session(number), task }
}

#[test]
fn a_session_of_two_disks_restores_and_a_second_is_incremental() {
    let mut rig = Rig::new();
    let first = offer("web", &[10 * K256 + 77, 3 * K256]);
    let mut models = [Model::from([(0, 5), (3, 6), (10, 7)]), Model::from([(2, 5)])];
    let (point, sent) = rig.backup(session(1), &first, &models).unwrap();
    assert_eq!(sent.iter().map(|disk| disk.stored).collect::<Vec<_>>(), [3, 0], "{sent:?}");
    assert_eq!(sent[1].known, 1, "the second disk's block is the first disk's");
    assert!(matches!(&sent[0].base, BaseAnswer::Unusable { reason } if reason.contains("web")));
    rig.check_point("web", point, &models);

    let mut second = first.clone();
    second.created_ms = 2000;
    for disk in &mut second.disks {
        disk.snapshot = "s2".into();
    }
    let old = models.clone();
    models[0].insert(3, 60);
    models[0].remove(&0);
    let (next, sent) = rig.backup(session(2), &second, &models).unwrap();
    assert!(matches!(&sent[0].base, BaseAnswer::Usable { point: base, .. } if *base == point));
    assert_eq!((sent[0].stored, sent[0].unchanged, sent[1].unchanged), (1, 1, 1));
    let mut rig = rig.after_power_loss();
    rig.check_point("web", point, &old);
    rig.check_point("web", next, &models);
    let manifest = rig.store.reader().manifest("web", None).unwrap();
    assert_eq!((manifest.point, manifest.parent), (next, Some(point)));
    // The same session again is committed already.
    let came = rig.open(session(2), &second);
    let opened = StoreReport::SessionOpened { session: session(2), committed: Some(next) };
    assert_eq!(came, [opened]);
}

#[test]
fn a_detached_session_resumes_from_what_is_durable() {
    let mut rig = Rig::new();
    let offer = offer("db", &[6 * K256]);
    let model = Model::from([(0, 1), (1, 2), (2, 1), (4, 9)]);
    rig.open(session(1), &offer);
    rig.open_task(key(1, 0)).unwrap();
    rig.append(key(1, 0), 0, 1, K256 as u32);
    rig.append(key(1, 0), 1, 2, K256 as u32);
    rig.mark(key(1, 0), 3, 1, MarkKind::Zero);
    rig.detach(session(1));
    assert_eq!(rig.pool.free(), rig.pool.slots(), "every buffer is back");
    let (point, sent) = rig.backup(session(1), &offer, std::slice::from_ref(&model)).unwrap();
    assert_eq!((sent[0].resumed, sent[0].known, sent[0].stored), (3, 1, 1));
    rig.check_point("db", point, &[model]);
    assert!(!rig.disk.files().iter().any(|file| file.starts_with("journal/")));
}

#[test]
fn another_session_adopts_progress_only_of_the_same_frozen_disk() {
    for (change, resumed) in [(0, 2), (1, 0), (2, 0), (3, 0), (4, 0)] {
        let mut rig = Rig::new();
        let first = offer("db", &[6 * K256]);
        rig.open(session(1), &first);
        rig.open_task(key(1, 0)).unwrap();
        rig.append(key(1, 0), 0, 1, K256 as u32);
        rig.mark(key(1, 0), 3, 1, MarkKind::Zero);
        rig.now_ms += 6000;
        rig.settle();
        let mut rig = rig.after_power_loss();
        let mut second = first;
        second.created_ms = 5000;
        match change {
            1 => second.disks[0].snapshot = "s2".into(),
            2 => second.disks[0].read_digest = [1; 32],
            3 => second.disks[0].size_bytes += 1,
            4 => second.name = "db2".into(),
            _ => {}
        }
        let mut model = Model::from([(0, 1), (5, 3)]);
        if change == 3 {
            model.insert(6, 8);
        }
        let (point, sent) = rig.backup(session(2), &second, std::slice::from_ref(&model)).unwrap();
        assert_eq!(sent[0].resumed, resumed, "change {change}");
        rig.check_point(&second.name, point, &[model]);
    }
}

#[test]
fn a_vm_has_one_attached_session() {
    let mut rig = Rig::new();
    let offer = offer("web", &[K256]);
    rig.open(session(1), &offer);
    let came = rig.open(session(2), &offer);
    assert!(matches!(&came[..], [StoreReport::Failed { .. }]), "{came:?}");
    assert!(rig.failure().unwrap().contains("a session for 'web' is running"));
    rig.detach(session(1));
    assert!(matches!(rig.open(session(2), &offer)[..], [StoreReport::SessionOpened { .. }]));
}

#[test]
fn disks_grow_and_shrink() {
    let mut rig = Rig::new();
    let sizes = [1500 * K256 + 9, 3000 * K256, 2 * K256 + 5, 900 * K256, 1500 * K256 + 10];
    let mut previous: Option<PointId> = None;
    for (round, size) in (0..).zip(sizes) {
        let mut next = offer("vm", &[size]);
        next.created_ms = 1000 + u64::from(round);
        next.disks[0].snapshot = format!("s{round}");
        let blocks = size.div_ceil(K256);
        let model = Model::from([(0, 1), (blocks / 2, 2 + u64::from(round)), (blocks - 1, 3)]);
        let (point, sent) =
            rig.backup(session(round + 1), &next, std::slice::from_ref(&model)).unwrap();
        let base = match sent[0].base {
            BaseAnswer::Usable { point, .. } => Some(point),
            _ => None,
        };
        assert_eq!(base, previous, "round {round}");
        rig.check_point("vm", point, &[model]);
        previous = Some(point);
    }
}

#[test]
fn a_short_tail_cannot_pass_as_unchanged() {
    let mut rig = Rig::new();
    let first = offer("vm", &[2 * K256 + 5]);
    rig.backup(session(1), &first, &[Model::from([(2, 1)])]).unwrap();
    let mut second = offer("vm", &[3 * K256]);
    second.created_ms += 1;
    rig.open(session(2), &second);
    rig.open_task(key(2, 0)).unwrap();
    rig.mark(key(2, 0), 0, 2, MarkKind::Unchanged);
    assert_eq!(rig.failure(), None);
    rig.mark(key(2, 0), 2, 1, MarkKind::Unchanged);
    assert!(rig.failure().unwrap().contains("must be read"), "{:?}", rig.failure());
}

#[test]
fn a_disk_of_16_tib_of_zeros_is_instant() {
    let mut rig = Rig::new();
    let blocks = (16 << 40) / K256;
    let offer = offer("big", &[16 << 40]);
    let started = std::time::Instant::now();
    rig.open(session(1), &offer);
    rig.open_task(key(1, 0)).unwrap();
    rig.mark(key(1, 0), 0, blocks, MarkKind::Zero);
    rig.append(key(1, 0), blocks - 1, 4, K256 as u32);
    let came = rig.seal(key(1, 0));
    assert!(matches!(came.last(), Some(StoreReport::Committed { .. })), "{came:?}");
    assert!(started.elapsed().as_millis() < 1000, "{:?}", started.elapsed());
}

#[test]
fn an_incomplete_disk_is_not_sealed() {
    let mut rig = Rig::new();
    rig.open(session(1), &offer("vm", &[4 * K256]));
    rig.open_task(key(1, 0)).unwrap();
    rig.mark(key(1, 0), 0, 2, MarkKind::Zero);
    rig.seal(key(1, 0));
    assert!(rig.failure().unwrap().contains("2 blocks from block 2"), "{:?}", rig.failure());
}

#[test]
fn bases_that_cannot_serve_are_refused_with_a_reason() {
    let mut rig = Rig::new();
    let first = offer("vm", &[4 * K256]);
    let (point, _) = rig.backup(session(1), &first, &[Model::from([(1, 1)])]).unwrap();
    let mut asked = first.clone();
    asked.created_ms += 1;
    asked.disks[0].base = BaseChoice::Point(PointId([7; 16]));
    let (_, sent) = rig.backup(session(2), &asked, &[Model::from([(1, 1)])]).unwrap();
    let BaseAnswer::Usable { point: base, fallback_reason: Some(reason), .. } = &sent[0].base
    else {
        panic!("{:?}", sent[0].base)
    };
    assert!(*base == point && reason.contains("has no restore point 0707"), "{reason}");
    for (change, wanted) in [(0, "blocks of 256K, this job of 1M"), (1, "does not hold disk")] {
        let mut other = first.clone();
        other.created_ms += 2 + change;
        match change {
            0 => other.disks[0].block_size = gantry_common::units::BlockSize::M1,
            _ => other.disks[0].identity = "new".into(),
        }
        rig.open(session(3 + change as u8), &other);
        let (base, _) = rig.open_task(key(3 + change as u8, 0)).unwrap();
        let BaseAnswer::Unusable { reason } = base else { panic!("{base:?}") };
        assert!(reason.contains(wanted), "{reason}");
        rig.detach(session(3 + change as u8));
    }
}

#[test]
fn a_foreign_block_serves_only_once_verified() {
    let mut rig = Rig::new();
    let first = offer("a", &[4 * K256]);
    rig.backup(session(1), &first, &[Model::from([(1, 1), (2, 2)])]).unwrap();
    let pack = rig.disk.files().into_iter().find(|file| file.starts_with("packs/")).unwrap();
    rig.disk.flip(&pack, 4096 + 128 + 3); // the first record's stored bytes
    let ids: Vec<_> = [1, 2].map(|seed| KEY.block_id(&raw(seed, K256 as u32))).to_vec();
    let second = offer("b", &[4 * K256]);
    rig.open(session(2), &second);
    rig.open_task(key(2, 0)).unwrap();
    rig.store.handle(
        StoreCommand::Query { key: key(2, 0), batch: 9, blocks: vec![(0, ids[0]), (1, ids[1])] },
        0,
    );
    assert_eq!(rig.store.next_report(), None, "the answer waits for the check");
    let came = rig.settle();
    let answered = StoreReport::Answered { key: key(2, 0), batch: 9, known: vec![false, true] };
    assert!(came.contains(&answered), "{came:?}");
    // The damaged block comes again, is stored anew, and serves from then on.
    rig.append(key(2, 0), 0, 1, K256 as u32);
    rig.detach(session(2));
    let mut rig = rig.after_power_loss();
    rig.open(session(3), &offer("c", &[4 * K256]));
    rig.open_task(key(3, 0)).unwrap();
    assert_eq!(rig.query(key(3, 0), vec![(0, ids[0]), (1, ids[1])]), [true, true]);
}

#[test]
fn a_lost_or_spoilt_index_is_rebuilt() {
    let mut rig = Rig::new();
    let first = offer("a", &[4 * K256]);
    let model = Model::from([(1, 1), (2, 2)]);
    let (point, _) = rig.backup(session(1), &first, std::slice::from_ref(&model)).unwrap();
    use crate::store::storage::{OpenMode, Storage, StorageFile};
    for spoil in 0..3 {
        let disk = rig.disk.after_power_loss();
        let index = disk.open("index/index.redb", OpenMode::Write).unwrap();
        match spoil {
            0 => disk.remove("index/index.redb").unwrap(),
            1 => index.write_at(0, &[9; 5000]).unwrap(),
            _ => index.set_len(100).unwrap(),
        }
        let (reader, _) = crate::store::reader::StoreReader::open(disk.clone()).unwrap();
        rig::check_point(&reader, "a", point, std::slice::from_ref(&model));
        drop(reader);
        Rig::on(disk.clone()).check_point("a", point, std::slice::from_ref(&model));
        let rebuilt = crate::store::admin::rebuild_index(disk.clone()).unwrap();
        assert_eq!((rebuilt.packs, rebuilt.blocks), (1, 2));
    }
}

#[test]
fn an_index_of_many_packs_is_built_in_order_and_says_the_same() {
    use crate::store::storage::Storage;
    let mut rig = Rig::new();
    let mut points = Vec::new();
    for round in 0..9 {
        let mut next = offer("vm", &[40 * K256]);
        next.created_ms += u64::from(round);
        next.disks[0].snapshot = format!("s{round}");
        let model: Model = (0..40).map(|block| (block, block + u64::from(round) * 7 + 1)).collect();
        let (point, _) =
            rig.backup(session(round + 1), &next, std::slice::from_ref(&model)).unwrap();
        points.push((point, model));
    }
    rig.store.shut_down();
    let before = rig.store.reader();
    let disk = rig.disk.after_power_loss();
    disk.remove("index/index.redb").unwrap();
    let rig = Rig::on(disk);
    assert!(rig.store.notes().iter().any(|note| note.contains("footers of 9 packs")));
    for (point, model) in &points {
        rig.check_point("vm", *point, std::slice::from_ref(model));
    }
    let ids: Vec<_> = (0..200).map(|seed| KEY.block_id(&raw(seed, K256 as u32))).collect();
    let place = |at: Option<crate::store::index::Location>| at.map(|at| (at.pack, at.slot));
    let found = |reader: &crate::store::reader::StoreReader<_>| -> Vec<_> {
        reader.locate(&ids).unwrap().into_iter().map(place).collect()
    };
    assert_eq!(found(&rig.store.reader()), found(&before));
    assert_eq!(found(&before).iter().flatten().count(), 96);
}

#[test]
fn reading_changes_nothing_and_a_writer_keeps_others_out() {
    let mut rig = Rig::new();
    rig.open(session(1), &offer("a", &[4 * K256]));
    rig.open_task(key(1, 0)).unwrap();
    rig.append(key(1, 0), 0, 1, K256 as u32);
    rig.now_ms += 6000;
    rig.settle();
    let error = Rig::try_on(rig.disk.clone()).err().unwrap().to_string();
    assert!(error.contains("in use by process") && error.contains("gantry://"), "{error}");
    assert!(crate::store::reader::StoreReader::open(rig.disk.clone()).is_err());
    // An unsealed pack is read without being sealed.
    let disk = rig.disk.after_power_loss();
    let before = disk.image();
    let (reader, _) = crate::store::reader::StoreReader::open(disk.clone()).unwrap();
    let id = KEY.block_id(&raw(1, K256 as u32));
    assert!(reader.locate(&[id]).unwrap()[0].is_some());
    drop(reader);
    assert_eq!(disk.image(), before);
}
