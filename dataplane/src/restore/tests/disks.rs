//! Disks for tests: a model of their content, and how a restored one is compared with it.

use std::collections::BTreeMap;
use std::path::Path;

use gantry_common::extents::Run;
use gantry_common::ids::{IdKey, PointId, StoredChecksum};
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::{BlockHead, DiskSummary, PointSummary, RestoreOffer, TaskTotals};

use crate::compress::Compressor;

pub(super) const KEY: IdKey = IdKey([42; 32]);
pub(super) const NAME: &str = "web-01";

/// A disk: blocks that are not named read as zeros.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) size_bytes: u64,
    pub(super) block_size: BlockSize,
    pub(super) blocks: BTreeMap<u64, Vec<u8>>,
    pub(super) point: PointId,
}

impl Model {
    /// `dense` of a hundred blocks have bytes.
    pub(super) fn random(seed: u64, size_bytes: u64, block_size: BlockSize, dense: u32) -> Model {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut blocks = BTreeMap::new();
        for block in 0..block_size.block_count(size_bytes) {
            if random.u32(0..100) < dense {
                let len = block_size.block_len(block, size_bytes) as usize;
                blocks.insert(block, content(&mut random, len));
            }
        }
        Model { size_bytes, block_size, blocks, point: PointId::new(seed, [7; 10]) }
    }

    pub(super) fn blocks(&self) -> u64 {
        self.block_size.block_count(self.size_bytes)
    }

    pub(super) fn summary(&self) -> PointSummary {
        PointSummary {
            point: self.point,
            name: NAME.to_owned(),
            created_ms: 1,
            parent: None,
            flags: Default::default(),
            is_deleted: false,
            disks: vec![DiskSummary {
                identity: "disk".to_owned(),
                label: "disk.raw".to_owned(),
                size_bytes: self.size_bytes,
                block_size: self.block_size,
                totals: TaskTotals::default(),
                change_id: None,
            }],
        }
    }

    /// A block as stored: head and bytes; nothing for zeros.
    pub(super) fn stored(&self, block: u64) -> Option<(BlockHead, Vec<u8>)> {
        self.stored_under(block, &KEY)
    }

    /// The same in a repository with this key.
    pub(super) fn stored_under(&self, block: u64, key: &IdKey) -> Option<(BlockHead, Vec<u8>)> {
        let raw = self.blocks.get(&block)?;
        let mut out = vec![0; raw.len()];
        let mut compressor = Compressor::new(Compression::Fast).unwrap();
        let compressed = compressor.compress(raw, &mut out);
        out.truncate(compressed.len);
        if compressed.codec == gantry_common::wire::Codec::Raw {
            out.clone_from(raw);
        }
        let head = BlockHead {
            id: key.block_id(raw),
            codec: compressed.codec,
            raw_len: raw.len() as u32,
            checksum: StoredChecksum::of(&out),
        };
        Some((head, out))
    }

    /// The whole disk.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size_bytes as usize];
        for (block, raw) in &self.blocks {
            let start = (block * u64::from(self.block_size.bytes())) as usize;
            bytes[start..start + raw.len()].copy_from_slice(raw);
        }
        bytes
    }

    /// Compares a file or device, without showing megabytes.
    pub(super) fn assert_is(&self, path: &Path) {
        let found = std::fs::read(path).unwrap();
        assert!(found.len() as u64 >= self.size_bytes);
        let wanted = self.bytes();
        let differs = found.iter().zip(&wanted).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{}", path.display());
    }

    /// Runs of `run` that read as zeros.
    pub(super) fn zeros(&self, run: Run) -> Vec<Run> {
        let mut set = gantry_common::extents::RunSet::from_iter([run]);
        for block in self.blocks.range(run.first..run.first + run.count) {
            set.remove(Run { first: *block.0, count: 1 });
        }
        set.iter().collect()
    }
}

pub(super) fn offer() -> RestoreOffer {
    RestoreOffer { name: NAME.to_owned(), point: None, disk: 0 }
}

/// Half compressible, half not, with zero ends now and then.
fn content(random: &mut fastrand::Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    let middle = random.usize(0..=len);
    match random.u8(0..3) {
        0 => random.fill(&mut bytes[middle..]),
        1 => bytes[..middle].fill(random.u8(1..)),
        _ => random.fill(&mut bytes),
    }
    bytes[middle.min(len - 1)] = 1;
    bytes
}
