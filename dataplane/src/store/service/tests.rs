//! The service on a real file system, with real threads, and O_DIRECT where the folder allows it.

use std::path::Path;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use gantry_common::extents::Run;
use gantry_common::ids::{IdKey, PointId, SessionId, StoredChecksum};
use gantry_common::manage::CollectOptions;
use gantry_common::session::store_port::{StoreCommand, StoreReport, TaskKey};
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::{
    BaseChoice, BlockHead, Codec, DiskOffer, Mark, MarkKind, SessionKind, SessionOffer, TaskTotals,
};

use super::{CollectEvent, StoreHandle, StoreService};
use crate::payload::PayloadPool;
use crate::store::admin;
use crate::store::reader::StoreReader;
use crate::store::record::RecordDecoder;
use crate::store::storage::kernel::KernelStorage;

const K256: u32 = 256 << 10;
const BLOCKS: u64 = 1500;

fn offer() -> SessionOffer {
    SessionOffer {
        name: "vm".into(),
        disks: vec![DiskOffer {
            identity: "d".into(),
            label: "d.img".into(),
            size_bytes: (BLOCKS + 10) * u64::from(K256),
            block_size: BlockSize::K256,
            snapshot: "s".into(),
            read_digest: [0; 32],
            base: BaseChoice::Latest,
            change_id: None,
        }],
        compression: Compression::None,
        created_ms: 5,
        vm_config: Vec::new(),
        retention: None,
    }
}

fn raw(block: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(block + 1);
    (0..K256).map(|_| random.u8(..)).collect()
}

struct Source {
    handle: StoreHandle,
    reports: Receiver<StoreReport>,
    pool: PayloadPool,
    key: TaskKey,
    id_key: IdKey,
}

impl Source {
    fn new(service: &StoreService, pool: PayloadPool, session: SessionId) -> Source {
        let handle = service.handle();
        let (to, reports) = unbounded();
        handle.subscribe(session, Box::new(move |report| drop(to.send(report)))).unwrap();
        let id_key = handle.id_key();
        handle
            .submit(StoreCommand::OpenSession {
                session,
                offer: offer(),
                kind: SessionKind::Backup,
            })
            .unwrap();
        let key = TaskKey { session, task: 0 };
        handle.submit(StoreCommand::OpenTask { key }).unwrap();
        Source { handle, reports, pool, key, id_key }
    }

    fn wait<T>(&self, mut wanted: impl FnMut(&StoreReport) -> Option<T>) -> T {
        loop {
            let report = self.reports.recv_timeout(Duration::from_secs(30)).unwrap();
            assert!(!matches!(report, StoreReport::Failed { .. }), "{report:?}");
            if let Some(found) = wanted(&report) {
                return found;
            }
        }
    }

    fn append(&self, block: u64) {
        let raw = raw(block);
        let mut payload = loop {
            match self.pool.take(raw.len()) {
                Some(payload) => break payload,
                None => std::thread::sleep(Duration::from_micros(200)),
            }
        };
        payload.stored_mut().copy_from_slice(&raw);
        let head = BlockHead {
            id: self.id_key.block_id(&raw),
            codec: Codec::Raw,
            raw_len: K256,
            checksum: StoredChecksum::of(&raw),
        };
        self.handle.submit(StoreCommand::Append { key: self.key, block, head, payload }).unwrap();
    }

    fn finish(&self) -> PointId {
        let key = self.key;
        let marks = vec![Mark { run: Run { first: BLOCKS, count: 10 }, kind: MarkKind::Zero }];
        self.handle.submit(StoreCommand::Marks { key, marks }).unwrap();
        self.handle
            .submit(StoreCommand::Seal { key, totals: TaskTotals::default(), mask: Vec::new() })
            .unwrap();
        self.wait(|report| match report {
            StoreReport::Committed { point, .. } => Some(*point),
            _ => None,
        })
    }
}

fn check(dir: &Path, point: PointId) {
    let (reader, notes) = StoreReader::open(KernelStorage::new(dir)).unwrap();
    assert_eq!(notes, [""; 0]);
    let manifest = reader.manifest("vm", None).unwrap();
    assert_eq!(manifest.point, point);
    let mut decoder = RecordDecoder::new(reader.id_key());
    for leaf in 0..2 {
        for (block, id) in (leaf * 1024..).zip(reader.leaf(&manifest.disks[0], leaf).unwrap()) {
            match block < BLOCKS {
                true => assert!(reader.read_block(&mut decoder, &id).unwrap() == raw(block)),
                false => assert!(id.is_zero()),
            }
        }
    }
}

#[test]
fn a_stopped_service_loses_nothing_that_was_appended() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("repo");
    admin::init(&dir, 1).unwrap();
    assert!(admin::init(&dir, 1).is_err());
    let pool = PayloadPool::new(32, K256 as usize).unwrap();
    let session = SessionId([3; 16]);
    let service = StoreService::spawn(&dir, vec![pool.buffers().clone()]).unwrap();
    let locked = StoreService::spawn(&dir, Vec::new()).err().unwrap().to_string();
    assert!(locked.contains("in use by process"), "{locked}");
    let source = Source::new(&service, pool.clone(), session);
    (0..700).for_each(|block| source.append(block));
    service.shut_down();
    assert_eq!(pool.free(), pool.slots());
    assert!(source.handle.submit(StoreCommand::Detach { session }).is_err());

    let service = StoreService::spawn(&dir, vec![pool.buffers().clone()]).unwrap();
    let source = Source::new(&service, pool, session);
    let durable = source.wait(|report| match report {
        StoreReport::TaskOpened { durable, .. } => Some(durable.clone()),
        _ => None,
    });
    assert_eq!(durable, [Run { first: 0, count: 700 }]);
    (700..BLOCKS).for_each(|block| source.append(block));
    let point = source.finish();
    let line = &admin::list(service.handle().reader(), Some("vm")).unwrap()[0];
    assert!(line.bytes_stored > BLOCKS * u64::from(K256) / 2, "{line:?}");
    service.shut_down();
    check(&dir, point);
    let (reader, _) = StoreReader::open(KernelStorage::new(&dir)).unwrap();
    let held = StoreService::spawn(&dir, Vec::new()).err().unwrap().to_string();
    assert!(held.contains("a process that reads it"), "{held}");
    drop(reader);
    let rebuilt = admin::rebuild_index(KernelStorage::new(&dir)).unwrap();
    assert_eq!(rebuilt.blocks, BLOCKS);
    check(&dir, point);
}

/// Figures for people: `cargo nextest run -p gantry-dataplane --run-ignored only append_speed`.
#[test]
#[ignore = "a measurement, not a test"]
fn append_speed() {
    const M1: usize = 1 << 20;
    const COUNT: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("repo");
    admin::init(&dir, 1).unwrap();
    let pool = PayloadPool::new(64, M1).unwrap();
    let service = StoreService::spawn(&dir, vec![pool.buffers().clone()]).unwrap();
    let mut offer = offer();
    offer.disks[0].size_bytes = COUNT << 20;
    offer.disks[0].block_size = BlockSize::M1;
    let session = SessionId([9; 16]);
    let handle = service.handle();
    let (to, reports) = unbounded();
    handle.subscribe(session, Box::new(move |report| drop(to.send(report)))).unwrap();
    handle.submit(StoreCommand::OpenSession { session, offer, kind: SessionKind::Backup }).unwrap();
    let key = TaskKey { session, task: 0 };
    handle.submit(StoreCommand::OpenTask { key }).unwrap();
    let started = std::time::Instant::now();
    for block in 0..COUNT {
        let payload = loop {
            match pool.take(M1) {
                Some(payload) => break payload,
                None => std::thread::sleep(Duration::from_micros(100)),
            }
        };
        let mut id = [7; 32];
        id[..8].copy_from_slice(&block.to_le_bytes());
        let head = BlockHead {
            id: gantry_common::ids::BlockId(id),
            codec: Codec::Raw,
            raw_len: M1 as u32,
            checksum: StoredChecksum([0; 16]),
        };
        handle.submit(StoreCommand::Append { key, block, head, payload }).unwrap();
    }
    handle
        .submit(StoreCommand::Seal { key, totals: TaskTotals::default(), mask: Vec::new() })
        .unwrap();
    while !matches!(reports.recv().unwrap(), StoreReport::Committed { .. }) {}
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "appended and committed {COUNT} MiB in {seconds:.2} s: {:.0} MiB/s",
        COUNT as f64 / seconds
    );
}

/// Collects on the service, and waits for the end.
fn collect(handle: &StoreHandle) -> Result<gantry_common::manage::CollectReport, String> {
    let (to, events) = unbounded();
    handle.collect(CollectOptions::default(), Box::new(move |event| drop(to.send(event)))).unwrap();
    loop {
        match events.recv_timeout(Duration::from_secs(30)).unwrap() {
            CollectEvent::Progress { done, total, .. } => assert!(done <= total),
            CollectEvent::Done(report) => return Ok(report),
            CollectEvent::Failed(error) => return Err(error.to_string()),
        }
    }
}

#[test]
fn a_collection_gives_space_back_beside_a_backup() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("repo");
    admin::init(&path, 1).unwrap();
    let pool = PayloadPool::new(16, K256 as usize).unwrap();
    let service = StoreService::spawn(&path, vec![pool.buffers().clone()]).unwrap();
    let session = SessionId([1; 16]);
    let source = Source::new(&service, pool.clone(), session);
    source.wait(|report| matches!(report, StoreReport::TaskOpened { .. }).then_some(()));
    (0..40).for_each(|block| source.append(block));
    service.handle().submit(StoreCommand::Detach { session }).unwrap();
    source.wait(|report| matches!(report, StoreReport::Detached { .. }).then_some(()));
    let kept = collect(&service.handle()).unwrap();
    assert_eq!((kept.records_live, kept.bytes_freed, kept.unfinished), (40, 0, 1), "{kept:?}");
    // Another session takes the progress over while it is collected.
    let next = SessionId([2; 16]);
    let source = Source::new(&service, pool, next);
    let during = collect(&service.handle()).unwrap();
    assert_eq!(during.bytes_freed, 0, "{during:?}");
    source.wait(|report| matches!(report, StoreReport::TaskOpened { .. }).then_some(()));
    service.handle().submit(StoreCommand::Detach { session: next }).unwrap();
    source.wait(|report| matches!(report, StoreReport::Detached { .. }).then_some(()));
    let (to, events) = unbounded();
    let options = CollectOptions { abandon_unfinished: true, ..CollectOptions::default() };
    let on_event = Box::new(move |event| drop(to.send(event)));
    service.handle().collect(options, on_event).unwrap();
    let done = events.iter().find_map(|event| match event {
        CollectEvent::Done(report) => Some(report),
        CollectEvent::Failed(error) => panic!("{error}"),
        CollectEvent::Progress { .. } => None,
    });
    let done = done.unwrap();
    assert_eq!((done.records_dead, done.packs_removed), (40, 1), "{done:?}");
    assert!(done.bytes_freed >= 40 * u64::from(K256), "{done:?}");
}
