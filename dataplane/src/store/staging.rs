//! What a task has put where, before its tree is built: block address to id.
//!
//! In: ids and zero runs. Out: leaves. Ids stand in a sparse scratch file that is never synced
//! (the journal is the truth), 32 bytes a block; two bits a leaf stay in memory, so a disk of
//! 64 TiB costs 64 KiB. Addresses never set read as untouched.

use std::io;

use gantry_common::extents::Run;
use gantry_common::ids::BlockId;
use gantry_common::limits::NODE_CHILDREN;

use super::storage::{OpenMode, Storage, StorageFile};

/// Stands for "reads as zeros" in a staged leaf; [`BlockId::ZERO`] there means untouched.
pub const STAGED_ZERO: BlockId = BlockId([0xff; 32]);

const LEAF_BYTES: usize = NODE_CHILDREN as usize * BlockId::BYTES;
/// Leaves held in memory; blocks come in ascending order, so few are open at a time.
const LEAVES_CACHED: usize = 8;

/// Bits, one a leaf.
#[derive(Debug, Clone, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(bits: u64) -> Bits {
        Bits(vec![0; bits.div_ceil(64) as usize])
    }

    fn get(&self, bit: u64) -> bool {
        self.0.get((bit / 64) as usize).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    fn set(&mut self, bit: u64, value: bool) {
        if let Some(word) = self.0.get_mut((bit / 64) as usize) {
            *word = *word & !(1 << (bit % 64)) | u64::from(value) << (bit % 64);
        }
    }

    fn any(&self, first: u64, count: u64) -> bool {
        self.words(first, count).any(|(word, _)| word != 0)
    }

    fn all(&self, first: u64, count: u64) -> bool {
        self.words(first, count).all(|(word, mask)| word == mask)
    }

    /// The words that hold these bits, other bits cleared, and each word's mask.
    fn words(&self, first: u64, count: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let end = first + count;
        (first / 64..end.div_ceil(64)).map(move |at| {
            let low = u64::MAX << first.saturating_sub(at * 64).min(63);
            let high = u64::MAX >> ((at + 1) * 64).saturating_sub(end).min(63);
            let mask = low & high;
            (self.0.get(at as usize).copied().unwrap_or(0) & mask, mask)
        })
    }
}

/// What is staged of a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StagedLeaf {
    /// Nothing: as in the base.
    Untouched,
    /// All of it reads as zeros.
    Zero,
    /// Ids, with [`BlockId::ZERO`] for untouched and [`STAGED_ZERO`] for zeros.
    Ids(Vec<BlockId>),
}

#[derive(Debug)]
struct CachedLeaf {
    leaf: u64,
    bytes: Vec<u8>,
    dirty: bool,
}

/// The staged addresses of one disk.
#[derive(Debug)]
pub struct Staging<F> {
    file: Option<F>,
    blocks: u64,
    has_base: bool,
    touched: Bits,
    zero: Bits,
    cache: Vec<CachedLeaf>,
}

impl<F: StorageFile> Staging<F> {
    /// For a disk of `blocks` blocks; without a base untouched means zero.
    pub fn new(blocks: u64, has_base: bool) -> Staging<F> {
        let leaves = blocks.div_ceil(NODE_CHILDREN);
        let bits = || Bits::new(leaves);
        Staging { file: None, blocks, has_base, touched: bits(), zero: bits(), cache: Vec::new() }
    }

    /// Puts a block's id (or [`STAGED_ZERO`]) at its address.
    ///
    /// # Errors
    /// Of the scratch file.
    pub fn set<S: Storage<File = F>>(
        &mut self,
        storage: &S,
        block: u64,
        id: &BlockId,
    ) -> io::Result<()> {
        debug_assert!(block < self.blocks);
        let at = (block % NODE_CHILDREN) as usize * BlockId::BYTES;
        let leaf = self.load(storage, block / NODE_CHILDREN)?;
        leaf.bytes[at..at + BlockId::BYTES].copy_from_slice(&id.0);
        leaf.dirty = true;
        Ok(())
    }

    /// Lets a run read as zeros. Whole leaves cost a bit each.
    ///
    /// # Errors
    /// Of the scratch file.
    pub fn set_zero<S: Storage<File = F>>(&mut self, storage: &S, run: Run) -> io::Result<()> {
        let end = run.end().unwrap_or(u64::MAX).min(self.blocks);
        let mut block = run.first;
        while block < end {
            let leaf = block / NODE_CHILDREN;
            let leaf_end = ((leaf + 1) * NODE_CHILDREN).min(self.blocks);
            let upto = end.min(leaf_end);
            if block == leaf * NODE_CHILDREN && upto == leaf_end {
                self.cache.retain(|cached| cached.leaf != leaf);
                self.touched.set(leaf, true);
                self.zero.set(leaf, true);
            } else if self.has_base || self.touched.get(leaf) {
                let first = (block % NODE_CHILDREN) as usize * BlockId::BYTES;
                let bytes = (upto - block) as usize * BlockId::BYTES;
                let cached = self.load(storage, leaf)?;
                cached.bytes[first..first + bytes].fill(0xff);
                cached.dirty = true;
            }
            block = upto;
        }
        Ok(())
    }

    /// Lets a run be as in the base again.
    ///
    /// # Errors
    /// Of the scratch file.
    pub fn clear<S: Storage<File = F>>(&mut self, storage: &S, run: Run) -> io::Result<()> {
        let end = run.end().unwrap_or(u64::MAX).min(self.blocks);
        let mut block = run.first;
        while block < end {
            let leaf = block / NODE_CHILDREN;
            let upto = end.min((leaf + 1) * NODE_CHILDREN);
            if self.touched.get(leaf) {
                let first = (block % NODE_CHILDREN) as usize * BlockId::BYTES;
                let bytes = (upto - block) as usize * BlockId::BYTES;
                let cached = self.load(storage, leaf)?;
                cached.bytes[first..first + bytes].fill(0);
                cached.dirty = true;
            }
            block = upto;
        }
        Ok(())
    }

    /// Whether anything is staged in these leaves.
    pub fn is_touched(&self, first_leaf: u64, leaves: u64) -> bool {
        self.touched.any(first_leaf, leaves)
    }

    /// Whether all of these leaves were set to zeros as a whole.
    pub fn is_zero(&self, first_leaf: u64, leaves: u64) -> bool {
        let last = (first_leaf + leaves).min(self.blocks.div_ceil(NODE_CHILDREN));
        self.zero.all(first_leaf, last.saturating_sub(first_leaf))
    }

    /// What is staged of a leaf.
    ///
    /// # Errors
    /// Of the scratch file.
    pub fn leaf<S: Storage<File = F>>(&mut self, storage: &S, leaf: u64) -> io::Result<StagedLeaf> {
        if !self.touched.get(leaf) {
            return Ok(StagedLeaf::Untouched);
        }
        if self.zero.get(leaf) {
            return Ok(StagedLeaf::Zero);
        }
        let count = (self.blocks - leaf * NODE_CHILDREN).min(NODE_CHILDREN) as usize;
        let bytes = &self.load(storage, leaf)?.bytes;
        let id = |bytes: &[u8]| {
            let mut id = BlockId::ZERO;
            id.0.copy_from_slice(bytes);
            id
        };
        Ok(StagedLeaf::Ids(bytes.chunks_exact(BlockId::BYTES).take(count).map(id).collect()))
    }

    fn load<S: Storage<File = F>>(
        &mut self,
        storage: &S,
        leaf: u64,
    ) -> io::Result<&mut CachedLeaf> {
        if let Some(at) = self.cache.iter().position(|cached| cached.leaf == leaf) {
            let cached = self.cache.remove(at);
            self.cache.push(cached);
        } else {
            if self.cache.len() >= LEAVES_CACHED {
                self.write_back(storage)?;
            }
            let mut bytes = vec![0; LEAF_BYTES];
            if self.zero.get(leaf) {
                bytes.fill(0xff);
                self.zero.set(leaf, false);
            } else if let (true, Some(file)) = (self.touched.get(leaf), &self.file) {
                file.read_at(leaf * LEAF_BYTES as u64, &mut bytes)?;
            }
            // A leaf that was all zeros, or new, is not yet in the file as it is here.
            let dirty = bytes.first().is_some_and(|byte| *byte != 0) || !self.touched.get(leaf);
            self.touched.set(leaf, true);
            self.cache.push(CachedLeaf { leaf, bytes, dirty });
        }
        let last = self.cache.len() - 1;
        Ok(&mut self.cache[last])
    }

    /// Makes room by writing the leaf that was used longest ago.
    fn write_back<S: Storage<File = F>>(&mut self, storage: &S) -> io::Result<()> {
        let oldest = self.cache.remove(0);
        if !oldest.dirty {
            // Loaded for reading: the file has it.
            return Ok(());
        }
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(storage.open("scratch", OpenMode::Scratch)?),
        };
        file.write_at(oldest.leaf * LEAF_BYTES as u64, &oldest.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::storage::memory::{MemoryFile, MemoryStorage};
    use super::*;

    #[test]
    fn behaves_as_a_map_of_addresses() {
        for seed in 0..60 {
            let mut random = fastrand::Rng::with_seed(seed);
            let disk = MemoryStorage::new();
            let blocks = 30 * NODE_CHILDREN + 17;
            let has_base = random.bool();
            let mut staging: Staging<MemoryFile> = Staging::new(blocks, has_base);
            let mut model: BTreeMap<u64, BlockId> = BTreeMap::new();
            for _ in 0..200 {
                let block = random.u64(0..blocks);
                if random.u8(0..10) > 0 {
                    let id = BlockId([random.u8(1..200); 32]);
                    staging.set(&disk, block, &id).unwrap();
                    model.insert(block, id);
                } else if random.bool() {
                    let run = Run { first: block, count: random.u64(1..3000) };
                    staging.clear(&disk, run).unwrap();
                    (block..(block + run.count).min(blocks)).for_each(|block| {
                        model.remove(&block);
                    });
                } else {
                    let run = Run { first: block, count: random.u64(1..5000) };
                    staging.set_zero(&disk, run).unwrap();
                    (block..(block + run.count).min(blocks)).for_each(|block| {
                        model.insert(block, STAGED_ZERO);
                    });
                }
            }
            for leaf in 0..31 {
                let staged = staging.leaf(&disk, leaf).unwrap();
                for at in leaf * NODE_CHILDREN..((leaf + 1) * NODE_CHILDREN).min(blocks) {
                    let found = match &staged {
                        StagedLeaf::Untouched => BlockId::ZERO,
                        StagedLeaf::Zero => STAGED_ZERO,
                        StagedLeaf::Ids(ids) => ids[(at % NODE_CHILDREN) as usize],
                    };
                    let mut wanted = model.get(&at).copied().unwrap_or(BlockId::ZERO);
                    let same = |id| [BlockId::ZERO, STAGED_ZERO].contains(&id);
                    if !has_base && same(wanted) && same(found) {
                        wanted = found; // without a base both mean zeros
                    }
                    assert_eq!(found, wanted, "seed {seed} block {at}");
                }
                assert_eq!(staging.is_touched(leaf, 1), staged != StagedLeaf::Untouched);
                if staged == StagedLeaf::Zero {
                    let run = Run { first: leaf * NODE_CHILDREN, count: 1 };
                    staging.set_zero(&disk, run).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_disk_of_64_tib_of_zeros_is_instant() {
        let disk = MemoryStorage::new();
        let blocks = (64 << 40) / (256 << 10);
        let mut staging: Staging<MemoryFile> = Staging::new(blocks, true);
        staging.set_zero(&disk, Run { first: 0, count: blocks }).unwrap();
        assert_eq!(staging.leaf(&disk, 77).unwrap(), StagedLeaf::Zero);
        assert!(disk.operations() == 0);
    }
}
