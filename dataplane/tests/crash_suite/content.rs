//! What stands in the blocks of the suite's disks, and how it travels.
//!
//! In: a content seed and a length. Out: raw bytes, their id, and the stored form. Seed 0 is zeros.
//! Equal seeds and lengths are equal bytes, in whatever VM and disk: that is what dedup meets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use gantry_common::ids::{BlockId, IdKey, StoredChecksum};
use gantry_common::wire::{BlockHead, Codec};

/// The id key of every repository of the suite.
pub const KEY: IdKey = IdKey([42; 32]);

/// A block on its way.
#[derive(Debug)]
pub struct Block {
    pub raw: Vec<u8>,
    pub stored: Vec<u8>,
    pub head: BlockHead,
}

type Cache = Mutex<HashMap<(u64, u32), Arc<Block>>>;

/// The block with this content.
pub fn block(seed: u64, len: u32) -> Arc<Block> {
    static CACHE: OnceLock<Cache> = OnceLock::new();
    let cache = CACHE.get_or_init(Mutex::default);
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(cache.entry((seed, len)).or_insert_with(|| Arc::new(make(seed, len))))
}

/// The id of the block with this content; zeros have none.
pub fn id(seed: u64, len: u32) -> BlockId {
    if seed == 0 { BlockId::ZERO } else { block(seed, len).head.id }
}

fn make(seed: u64, len: u32) -> Block {
    let mut raw = vec![(seed % 251) as u8; len as usize];
    if seed % 4 == 3 && len <= 16 << 10 {
        // Does not shrink: stored raw.
        fastrand::Rng::with_seed(seed).fill(&mut raw);
    }
    let head = seed.to_le_bytes();
    let count = raw.len().min(head.len());
    raw[..count].copy_from_slice(&head[..count]);
    let mut packed = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
    zstd_safe::compress(&mut packed, &raw, 1).expect("zstd has room");
    let (codec, stored) = match packed.len() < raw.len() {
        true => (Codec::Zstd, packed),
        false => (Codec::Raw, raw.clone()),
    };
    let checksum = StoredChecksum::of(&stored);
    let head = BlockHead { id: KEY.block_id(&raw), codec, raw_len: len, checksum };
    Block { raw, stored, head }
}
