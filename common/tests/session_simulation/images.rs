//! Disks whose blocks are numbers: equal numbers, equal bytes; 0 reads as zeros.

use std::cell::Cell;
use std::rc::Rc;

use gantry_common::extents::Run;
use gantry_common::ids::{BlockId, StoredChecksum};
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::{BaseChoice, BlockHead, Codec, DiskOffer, SessionOffer};

/// What a block holds.
pub type Content = u64;

/// A frozen disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub identity: String,
    pub size_bytes: u64,
    pub block_size: BlockSize,
    pub blocks: Vec<Content>,
}

impl Image {
    /// A disk of random contents: zeros, duplicates and blocks of its own, in stretches or mixed.
    pub fn random(random: &mut fastrand::Rng, number: usize, blocks_max: u64) -> Image {
        let block_size = BlockSize::ALL[random.usize(0..4)];
        let count = random.u64(1..=blocks_max);
        let tail = random.u64(1..=u64::from(block_size.bytes()));
        let size_bytes = (count - 1) * u64::from(block_size.bytes()) + tail;
        let zeros = if blocks_max > 1000 { 95 } else { random.u8(0..90) };
        let mut blocks = vec![0; count as usize];
        for block in &mut blocks {
            *block = match random.u8(0..100) {
                roll if roll < zeros => 0,
                roll if roll % 4 == 0 => random.u64(1..6),
                _ => random.u64(6..),
            };
        }
        Image { identity: format!("disk-{number}"), size_bytes, block_size, blocks }
    }

    /// A later state of this disk: some blocks changed, perhaps a larger disk.
    pub fn changed(&self, random: &mut fastrand::Rng) -> Image {
        let mut later = self.clone();
        for block in &mut later.blocks {
            if random.u8(0..4) == 0 {
                *block = if random.bool() { 0 } else { random.u64(1..) };
            }
        }
        if random.u8(0..3) == 0 {
            let grown = random.u64(1..8);
            later.size_bytes += grown * u64::from(self.block_size.bytes());
            later.blocks.extend((0..grown).map(|_| random.u64(0..3)));
        }
        later
    }

    /// Bytes of a block.
    pub fn len(&self, block: u64) -> u32 {
        self.block_size.block_len(block, self.size_bytes)
    }

    /// The id of a block.
    pub fn id(&self, block: u64) -> BlockId {
        id_of(self.blocks[block as usize], self.len(block))
    }

    /// The frame header of a block.
    pub fn head(&self, block: u64) -> BlockHead {
        let checksum = StoredChecksum([7; 16]);
        BlockHead { id: self.id(block), codec: Codec::Zstd, raw_len: self.len(block), checksum }
    }
}

/// The id of a block of this content and length.
pub fn id_of(content: Content, len: u32) -> BlockId {
    if content == 0 {
        return BlockId::ZERO;
    }
    let mut id = [1; 32];
    id[..8].copy_from_slice(&content.to_le_bytes());
    id[8..12].copy_from_slice(&len.to_le_bytes());
    BlockId(id)
}

/// The offer of a session over these disks.
pub fn offer_of(images: &[Image], snapshot: u64, has_base: bool) -> SessionOffer {
    let disk = |image: &Image| DiskOffer {
        identity: image.identity.clone(),
        label: String::new(),
        size_bytes: image.size_bytes,
        block_size: image.block_size,
        snapshot: format!("snapshot-{snapshot}"),
        read_digest: [0; 32],
        base: if has_base { BaseChoice::Latest } else { BaseChoice::None },
        change_id: None,
    };
    SessionOffer {
        name: "vm".into(),
        disks: images.iter().map(disk).collect(),
        compression: Compression::Optimal,
        created_ms: 1,
        vm_config: Vec::new(),
        retention: None,
    }
}

/// A block's bytes in a buffer that is counted while it lives.
#[derive(Debug)]
pub struct Payload {
    pub content: Content,
    in_use: Rc<Cell<u64>>,
}

impl Payload {
    /// Takes a buffer.
    pub fn new(content: Content, in_use: &Rc<Cell<u64>>) -> Payload {
        in_use.set(in_use.get() + 1);
        Payload { content, in_use: Rc::clone(in_use) }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.in_use.set(self.in_use.get() - 1);
    }
}

/// The block numbers of runs.
pub fn blocks_of(runs: &[Run]) -> impl Iterator<Item = u64> + '_ {
    runs.iter().flat_map(|run| run.first..run.first + run.count)
}

/// One-block runs of these blocks, merged.
pub fn runs_of(blocks: impl IntoIterator<Item = u64>) -> Vec<Run> {
    let set: gantry_common::extents::RunSet =
        blocks.into_iter().map(|first| Run { first, count: 1 }).collect();
    set.iter().collect()
}
