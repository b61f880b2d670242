//! A store on a memory disk, and a source that brings model disks to it.
//!
//! In: a model of a disk (a content seed for each block, or zero). Out: reports, restored blocks.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::{BlockId, IdKey, PointId, RepositoryId, SessionId, StoredChecksum};
use gantry_common::manage::{VerifyOptions, VerifyReport};
use gantry_common::session::store_port::{StoreCommand, StoreReport, TaskKey};
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::{
    BaseAnswer, BaseChoice, BlockHead, Codec, DiskOffer, Mark, MarkKind, SessionKind, SessionOffer,
    TaskTotals,
};

use crate::payload::PayloadPool;
use crate::store::admin::init_storage;
use crate::store::engine::Store;
use crate::store::manifest::Manifest;
use crate::store::reader::StoreReader;
use crate::store::record::RecordDecoder;
use crate::store::storage::memory::MemoryStorage;
use crate::store::superblock::Superblock;

/// Content of a disk: seeds of blocks that are not zero.
pub type Model = BTreeMap<u64, u64>;

pub const KEY: IdKey = IdKey([42; 32]);

pub fn new_disk() -> MemoryStorage {
    let disk = MemoryStorage::new();
    let superblock = Superblock::new(RepositoryId([1; 16]), KEY, 1);
    init_storage(&disk, &superblock).unwrap();
    disk
}

/// The raw bytes of a block with this seed: compresses to little, unlike any other seed's.
pub fn raw(seed: u64, len: u32) -> Vec<u8> {
    let mut bytes = vec![(seed % 251) as u8; len as usize];
    let head = seed.to_le_bytes();
    let count = bytes.len().min(8);
    bytes[..count].copy_from_slice(&head[..count]);
    bytes
}

pub fn session(number: u8) -> SessionId {
    SessionId([number; 16])
}

pub fn offer(name: &str, sizes: &[u64]) -> SessionOffer {
    let disk = |(number, size): (usize, &u64)| DiskOffer {
        identity: format!("disk-{number}"),
        label: format!("disk{number}.img"),
        size_bytes: *size,
        block_size: BlockSize::K256,
        snapshot: "s1".into(),
        read_digest: [0; 32],
        base: BaseChoice::Latest,
        change_id: None,
    };
    SessionOffer {
        name: name.into(),
        disks: sizes.iter().enumerate().map(disk).collect(),
        compression: Compression::Optimal,
        created_ms: 1000,
        vm_config: vec![1],
        retention: None,
    }
}

pub struct Rig {
    pub disk: MemoryStorage,
    pub store: Store<MemoryStorage>,
    pub pool: PayloadPool,
    pub reports: Vec<StoreReport>,
    pub now_ms: u64,
}

impl Rig {
    pub fn new() -> Rig {
        Rig::on(new_disk())
    }

    pub fn on(disk: MemoryStorage) -> Rig {
        Rig::try_on(disk).unwrap()
    }

    pub fn try_on(disk: MemoryStorage) -> Result<Rig, crate::store::error::StoreError> {
        let store = Store::open(disk.clone())?;
        let pool = PayloadPool::new(16, 256 << 10).unwrap();
        Ok(Rig { disk, store, pool, reports: Vec::new(), now_ms: 0 })
    }

    pub fn after_power_loss(self) -> Rig {
        Rig::on(self.disk.after_power_loss())
    }

    /// Gives a command, lets everything happen, and returns the reports that came.
    pub fn give(&mut self, command: StoreCommand<crate::payload::Payload>) -> Vec<StoreReport> {
        self.store.handle(command, self.now_ms);
        self.settle()
    }

    pub fn settle(&mut self) -> Vec<StoreReport> {
        let mut came = Vec::new();
        loop {
            self.store.run_checks();
            self.store.poll(self.now_ms);
            while let Some(report) = self.store.next_report() {
                came.push(report);
            }
            if self.store.in_flight() == 0 {
                break;
            }
        }
        self.reports.extend(came.iter().cloned());
        came
    }

    pub fn open(&mut self, session: SessionId, offer: &SessionOffer) -> Vec<StoreReport> {
        self.open_as(session, offer, SessionKind::Backup)
    }

    pub fn open_as(
        &mut self,
        session: SessionId,
        offer: &SessionOffer,
        kind: SessionKind,
    ) -> Vec<StoreReport> {
        self.give(StoreCommand::OpenSession { session, offer: offer.clone(), kind })
    }

    /// Opens a task; its base and what is durable.
    pub fn open_task(&mut self, key: TaskKey) -> Option<(BaseAnswer, RunSet)> {
        self.give(StoreCommand::OpenTask { key }).into_iter().find_map(|report| match report {
            StoreReport::TaskOpened { base, durable, .. } => {
                Some((base, durable.into_iter().collect()))
            }
            _ => None,
        })
    }

    pub fn mark(&mut self, key: TaskKey, first: u64, count: u64, kind: MarkKind) {
        let marks = vec![Mark { run: Run { first, count }, kind }];
        self.give(StoreCommand::Marks { key, marks });
    }

    pub fn query(&mut self, key: TaskKey, blocks: Vec<(u64, BlockId)>) -> Vec<bool> {
        let came = self.give(StoreCommand::Query { key, batch: 1, blocks });
        let known = came.into_iter().find_map(|report| match report {
            StoreReport::Answered { known, .. } => Some(known),
            _ => None,
        });
        known.unwrap_or_default()
    }

    pub fn append(&mut self, key: TaskKey, block: u64, seed: u64, len: u32) -> Vec<StoreReport> {
        let raw = raw(seed, len);
        let mut packed = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
        zstd_safe::compress(&mut packed, &raw, 1).unwrap();
        let (codec, stored) =
            if packed.len() < raw.len() { (Codec::Zstd, &packed) } else { (Codec::Raw, &raw) };
        let mut payload = self.pool.take(stored.len()).expect("a free payload");
        payload.stored_mut().copy_from_slice(stored);
        let checksum = StoredChecksum::of(stored);
        let head = BlockHead { id: KEY.block_id(&raw), codec, raw_len: len, checksum };
        self.give(StoreCommand::Append { key, block, head, payload })
    }

    pub fn seal(&mut self, key: TaskKey) -> Vec<StoreReport> {
        self.give(StoreCommand::Seal { key, totals: TaskTotals::default(), mask: Vec::new() })
    }

    pub fn detach(&mut self, session: SessionId) {
        let came = self.give(StoreCommand::Detach { session });
        assert_eq!(came.last(), Some(&StoreReport::Detached { session }));
    }

    /// Brings one disk in: what is durable is skipped, blocks equal to the base's are marked, known
    /// ones are not sent. Stops where a report says that it failed.
    pub fn bring(&mut self, key: TaskKey, disk: &DiskOffer, model: &Model) -> Option<Sent> {
        let (base, durable) = self.open_task(key)?;
        let mut sent = Sent { base: base.clone(), resumed: durable.blocks(), ..Sent::default() };
        let blocks = disk.block_size.block_count(disk.size_bytes);
        let base_blocks = match base {
            BaseAnswer::Usable { size_bytes, .. } => disk.block_size.block_count(size_bytes),
            _ => 0,
        };
        for gap in durable.gaps(blocks) {
            for block in gap.first..gap.first + gap.count {
                let len = disk.block_size.block_len(block, disk.size_bytes);
                let Some(&seed) = model.get(&block) else {
                    self.mark(key, block, 1, MarkKind::Zero);
                    continue;
                };
                let id = KEY.block_id(&raw(seed, len));
                if block < base_blocks {
                    let leaf = block / 1024;
                    let came = self.give(StoreCommand::NeedBase { key, leaf });
                    let ids = came.into_iter().find_map(|report| match report {
                        StoreReport::BaseIds { ids, .. } => Some(ids),
                        _ => None,
                    })?;
                    if ids.get((block % 1024) as usize) == Some(&id) {
                        self.mark(key, block, 1, MarkKind::Unchanged);
                        sent.unchanged += 1;
                        continue;
                    }
                }
                if self.query(key, vec![(block, id)]) == [true] {
                    sent.known += 1;
                } else {
                    self.append(key, block, seed, len);
                    sent.stored += 1;
                }
                if self.failure().is_some() {
                    return None;
                }
            }
        }
        Some(sent)
    }

    /// A whole session: every disk brought and sealed.
    pub fn backup(
        &mut self,
        session: SessionId,
        offer: &SessionOffer,
        models: &[Model],
    ) -> Option<(PointId, Vec<Sent>)> {
        self.reports.clear();
        let came = self.open(session, offer);
        if let Some(StoreReport::SessionOpened { committed: Some(point), .. }) = came.first() {
            return Some((*point, Vec::new()));
        }
        let mut all = Vec::new();
        for (task, (disk, model)) in (0..).zip(offer.disks.iter().zip(models)) {
            let key = TaskKey { session, task };
            all.push(self.bring(key, disk, model)?);
            self.seal(key);
        }
        let committed = self.reports.iter().find_map(|report| match report {
            StoreReport::Committed { point, .. } => Some(*point),
            _ => None,
        });
        self.detach(session);
        committed.map(|point| (point, all))
    }

    /// The first failure reported.
    pub fn failure(&self) -> Option<String> {
        self.reports.iter().find_map(|report| match report {
            StoreReport::Failed { failure, .. } => Some(failure.message.clone()),
            _ => None,
        })
    }

    /// Checks that a point's disks are bit for bit what the models say.
    pub fn check_point(&self, name: &str, point: PointId, models: &[Model]) {
        check_point(&self.store.reader(), name, point, models);
    }
}

pub fn check_point(
    reader: &StoreReader<MemoryStorage>,
    name: &str,
    point: PointId,
    models: &[Model],
) {
    let manifest: Manifest = reader.manifest(name, Some(point)).unwrap();
    assert_eq!(manifest.disks.len(), models.len());
    let mut decoder = RecordDecoder::new(KEY);
    for (disk, model) in manifest.disks.iter().zip(models) {
        for leaf in 0..disk.blocks().div_ceil(1024) {
            for (block, id) in (leaf * 1024..).zip(reader.leaf(disk, leaf).unwrap()) {
                let len = disk.block_size.block_len(block, disk.size_bytes);
                match model.get(&block) {
                    None => assert!(id.is_zero(), "block {block} should be zeros"),
                    Some(seed) => {
                        let found = reader.read_block(&mut decoder, &id).unwrap();
                        assert!(found == raw(*seed, len), "block {block} differs");
                    }
                }
            }
        }
    }
}

/// What a backup did with a disk's blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub base: BaseAnswer,
    pub resumed: u64,
    pub unchanged: u64,
    pub known: u64,
    pub stored: u64,
}

impl Default for Sent {
    fn default() -> Sent {
        Sent { base: BaseAnswer::NotAsked, resumed: 0, unchanged: 0, known: 0, stored: 0 }
    }
}

/// Verifies everything.
pub fn verify(
    reader: &StoreReader<MemoryStorage>,
) -> Result<VerifyReport, crate::store::error::StoreError> {
    verify_as(reader, &VerifyOptions::default())
}

pub fn verify_as(
    reader: &StoreReader<MemoryStorage>,
    options: &VerifyOptions,
) -> Result<VerifyReport, crate::store::error::StoreError> {
    crate::store::verify::verify(reader, options, 77, &mut |_, _| ControlFlow::Continue(()))
}
