//! One session as its source sees it: what each disk still has to bring, and what was acknowledged.
//!
//! In: the store's reports. Out: the next command for a disk. As the sender does: a block is
//! brought until it is accounted for, and again only after a reconnection that did not keep it.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastrand::Rng;
use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::{BlockId, PointId, SessionId};
use gantry_common::wire::{BaseAnswer, BaseChoice, MarkKind, SessionOffer};

use super::content;
use super::vm::{BLOCK, Disk, Frozen};

/// A session.
#[derive(Debug)]
pub struct Backup {
    pub vm: usize,
    pub frozen: Arc<Frozen>,
    pub offer: SessionOffer,
    pub point: PointId,
    pub is_attached: bool,
    /// A report said that it cannot go on: only `Detach` is left.
    pub has_failed: bool,
    pub is_committed: bool,
    pub disks: Vec<DiskTask>,
}

/// A disk of it.
#[derive(Debug, Default)]
pub struct DiskTask {
    pub is_open: bool,
    pub is_sealing: bool,
    /// Its fate was told in this connection, or it was durable at its beginning.
    pub accounted: RunSet,
    /// The store said that these are durable, and nothing since allows it to forget.
    pub acknowledged: RunSet,
    /// The base that those refer to.
    pub acknowledged_base: Option<PointId>,
    pub base: Option<Base>,
    pub asked_base: bool,
    pub queries: BTreeMap<u64, Vec<(u64, BlockId)>>,
    /// Not known to the store: to be sent.
    pub wanted: Vec<u64>,
}

/// The base of a disk.
#[derive(Debug)]
pub struct Base {
    pub size_bytes: u64,
    pub damaged: RunSet,
    pub ids: Option<Vec<BlockId>>,
    /// What the base holds, where the suite knows it.
    pub content: Option<Disk>,
}

/// What a disk does next.
#[derive(Debug)]
pub enum Step {
    AskBase,
    Mark(u64, MarkKind),
    Query(Vec<(u64, BlockId)>),
    Append(u64),
    Seal,
    Wait,
}

pub fn one(block: u64) -> Run {
    Run { first: block, count: 1 }
}

impl Backup {
    pub fn new(vm: usize, frozen: Arc<Frozen>, offer: SessionOffer, session: SessionId) -> Backup {
        let point = gantry_dataplane::store::manifest::point_of(offer.created_ms, session);
        let disks = offer.disks.iter().map(|_| DiskTask::default()).collect();
        Backup {
            vm,
            frozen,
            offer,
            point,
            is_attached: false,
            has_failed: false,
            is_committed: false,
            disks,
        }
    }

    /// The connection is gone; what was acknowledged stays.
    pub fn disconnect(&mut self) {
        self.is_attached = false;
        self.has_failed = false;
        for disk in &mut self.disks {
            let acknowledged = std::mem::take(&mut disk.acknowledged);
            let acknowledged_base = disk.acknowledged_base;
            *disk = DiskTask { acknowledged, acknowledged_base, ..DiskTask::default() };
        }
    }

    /// The store may forget what it acknowledged.
    pub fn forget(&mut self) {
        self.disks.iter_mut().for_each(|disk| disk.acknowledged = RunSet::new());
    }

    /// Disks that are not finished.
    pub fn unfinished(&self) -> Vec<usize> {
        (0..self.disks.len()).filter(|disk| !self.disks[*disk].is_sealing).collect()
    }
}

impl DiskTask {
    pub fn open(&mut self, base_answer: &BaseAnswer, durable: &[Run], content: Option<Disk>) {
        let base = match base_answer {
            BaseAnswer::Usable { size_bytes, damaged, .. } => Some(Base {
                size_bytes: *size_bytes,
                damaged: damaged.iter().copied().collect(),
                ids: None,
                content,
            }),
            BaseAnswer::NotAsked | BaseAnswer::Unusable { .. } => None,
        };
        let acknowledged_base = match base_answer {
            BaseAnswer::Usable { point, .. } => Some(*point),
            BaseAnswer::NotAsked | BaseAnswer::Unusable { .. } => None,
        };
        let durable: RunSet = durable.iter().copied().collect();
        *self = DiskTask {
            acknowledged_base,
            is_open: true,
            accounted: durable.clone(),
            acknowledged: durable,
            base,
            ..DiskTask::default()
        };
    }

    /// What comes next.
    pub fn step(&self, disk: &Disk, random: &mut Rng) -> Step {
        let waiting = |block: u64| {
            self.queries.values().flatten().any(|(other, _)| *other == block)
                || self.wanted.contains(&block)
        };
        let todo: Vec<u64> =
            self.accounted.gaps(disk.blocks()).into_iter().flat_map(blocks_of).collect();
        let todo: Vec<u64> = todo.into_iter().filter(|block| !waiting(*block)).collect();
        if todo.is_empty() || random.u8(0..3) == 0 {
            if !self.wanted.is_empty() {
                return Step::Append(self.wanted[random.usize(0..self.wanted.len())]);
            }
            if todo.is_empty() {
                return if self.queries.is_empty() { Step::Seal } else { Step::Wait };
            }
        }
        if self.base.is_some() && !self.asked_base && random.bool() {
            return Step::AskBase;
        }
        let block = match random.u8(0..4) {
            0 => todo[random.usize(0..todo.len())],
            _ => todo[0],
        };
        if self.is_unchanged(disk, block) {
            return Step::Mark(block, MarkKind::Unchanged);
        }
        if disk.seed(block) == 0 {
            return Step::Mark(block, MarkKind::Zero);
        }
        if random.u8(0..4) == 0 {
            return Step::Append(block);
        }
        let asked = todo.iter().filter(|at| disk.seed(**at) != 0 && !self.is_unchanged(disk, **at));
        let asked = asked.take(random.usize(1..4));
        Step::Query(asked.map(|at| (*at, content::id(disk.seed(*at), disk.len_of(*at)))).collect())
    }

    /// Whether the base's block may be taken over: by its id, or because the source knows.
    fn is_unchanged(&self, disk: &Disk, block: u64) -> bool {
        let Some(base) = &self.base else { return false };
        let base_blocks = BLOCK.block_count(base.size_bytes);
        let len = disk.len_of(block);
        if block >= base_blocks
            || base.damaged.contains(block)
            || BLOCK.block_len(block, base.size_bytes) != len
        {
            return false;
        }
        match (&base.ids, &base.content) {
            (Some(ids), _) => ids.get(block as usize) == Some(&content::id(disk.seed(block), len)),
            (None, Some(content)) => content.seed(block) == disk.seed(block),
            (None, None) => false,
        }
    }
}

/// The blocks of a run.
pub fn blocks_of(run: Run) -> std::ops::Range<u64> {
    run.first..run.first + run.count
}

/// A base for a new session.
pub fn draw_base(random: &mut Rng, points: &[PointId]) -> BaseChoice {
    match random.u8(0..8) {
        0 => BaseChoice::None,
        1 if !points.is_empty() => BaseChoice::Point(points[random.usize(0..points.len())]),
        _ => BaseChoice::Latest,
    }
}
