//! A repository of any number of blocks, without the blocks' bytes.
//!
//! In: a folder, a number of blocks. Out: a repository whose index, map nodes, footers and
//! manifests are what a store would have written; the blocks' records are holes, so nothing can be
//! restored from it. Two points: one that stays, and a deleted one that has one leaf in a hundred
//! of its own, in packs of its own. Block ids are spread evenly, so that neighbours on the disk are
//! strangers in the index, as hashes are; yet they can be written in the index's order.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gantry_common::ids::{BlockId, IdKey, PointId, RepositoryId, SessionId, StoredChecksum};
use gantry_common::limits::{NODE_CHILDREN, PACK_BYTES_TARGET};
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::{Codec, TaskTotals};
use gantry_dataplane::store::admin::init_storage;
use gantry_dataplane::store::footer::{PACK_HEAD_BYTES, PackHead, Slot, encode_footer};
use gantry_dataplane::store::index::{Index, Location, PackRow};
use gantry_dataplane::store::layout::{
    INDEX, INDEX_DIR, PackNumber, deleted_path, manifest_path, points_dir,
};
use gantry_dataplane::store::manifest::{DiskRecord, Manifest, point_of};
use gantry_dataplane::store::map_node::{encode_node, tree_height};
use gantry_dataplane::store::record::{Origin, RecordHead, RecordKind};
use gantry_dataplane::store::storage::kernel::KernelStorage;
use gantry_dataplane::store::storage::{OpenMode, Storage, StorageFile};
use gantry_dataplane::store::superblock::{Superblock, next_epoch};

/// Blocks of a pack: 256 KiB blocks that shrink by half fill 256 MiB.
const BLOCKS_A_PACK: u64 = 2048;
const STORED_BYTES: u32 = 125_000;
const RAW_BYTES: u32 = 256 << 10;
/// One leaf in so many belongs to the deleted point alone.
const LEAVES_A_DELETED: u64 = 100;
/// Rows of the index written at once.
const ROWS_AT_ONCE: usize = 200_000;
const NAME: &str = "vm";
const REPOSITORY: RepositoryId = RepositoryId([0x5c; 16]);
const KEY: IdKey = IdKey([0x5c; 32]);

/// What was made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) packs: u64,
    pub(super) leaves: u64,
    pub(super) records_live: u64,
}

/// Block numbers 0..n to ids and back: multiplication by a number that has an inverse modulo n.
struct Ids {
    blocks: u64,
    inverse: u64,
    factor: u64,
}

impl Ids {
    fn new(blocks: u64) -> Result<Ids> {
        let golden = (blocks as f64 * 0.618_034) as u64;
        let (factor, inverse) = (golden..blocks)
            .find_map(|factor| Some((factor, inverse(factor, blocks)?)))
            .context("no factor")?;
        Ok(Ids { blocks, inverse, factor })
    }

    fn times(&self, a: u64, b: u64) -> u64 {
        (u128::from(a) * u128::from(b) % u128::from(self.blocks)) as u64
    }

    /// The id at this place of the index's order.
    fn at_rank(&self, rank: u64) -> BlockId {
        let spread = u128::from(rank) << 64;
        let first = (spread / u128::from(self.blocks)) as u64;
        let mut id = [0; 32];
        id[..8].copy_from_slice(&first.to_be_bytes());
        for (at, part) in id[8..].chunks_exact_mut(8).enumerate() {
            part.copy_from_slice(&(first ^ rank).rotate_left(7 + 13 * at as u32).to_le_bytes());
        }
        id[31] |= 1;
        BlockId(id)
    }

    fn of_block(&self, block: u64) -> BlockId {
        self.at_rank(self.times(block, self.factor))
    }

    fn block_at_rank(&self, rank: u64) -> u64 {
        self.times(rank, self.inverse)
    }
}

/// Multiplicative inverse modulo n by the extended Euclidean algorithm; none if not coprime.
fn inverse(factor: u64, n: u64) -> Option<u64> {
    let (mut r, mut next_r) = (i128::from(n), i128::from(factor));
    let (mut t, mut next_t) = (0i128, 1i128);
    while next_r != 0 {
        let quotient = r / next_r;
        (t, next_t) = (next_t, t - quotient * next_t);
        (r, next_r) = (next_r, r - quotient * next_r);
    }
    (r == 1).then(|| t.rem_euclid(i128::from(n)) as u64)
}

/// Makes the repository in `dir`, which must not exist.
pub(super) fn make(dir: &Path, blocks: u64) -> Result<Made> {
    std::fs::create_dir(dir)?;
    let storage = KernelStorage::new(dir);
    init_storage(&storage, &Superblock::new(REPOSITORY, KEY, 1))?;
    // As many full leaves as there can be, of which the deleted point has some of its own.
    let leaves = blocks / NODE_CHILDREN;
    let own_leaves = (leaves / LEAVES_A_DELETED).max(1);
    let live_leaves = leaves - own_leaves;
    let ids = Ids::new(blocks)?;
    let index = Index::open(&storage, INDEX, REPOSITORY, true)?;
    let block_packs = block_packs(&storage, &ids, &index)?;
    let mut maps = Maps::new(&storage, &index);
    let leaf_ids: Vec<BlockId> =
        (0..leaves).map(|leaf| maps.leaf(&ids, leaf)).collect::<Result<_>>()?;
    let (live, own) = leaf_ids.split_at(live_leaves as usize);
    let root = maps.tree(live)?;
    let nodes_live = maps.nodes - own_leaves;
    let mut changed = live.to_vec();
    changed[..own.len()].copy_from_slice(own);
    let root_deleted = maps.tree(&changed)?;
    maps.seal()?;
    index.flush()?;
    storage.sync_dir(INDEX_DIR)?;
    next_epoch(&storage, 2)?;
    let disk_blocks = live_leaves * NODE_CHILDREN;
    let deleted = point(&storage, 1, disk_blocks, root_deleted)?;
    point(&storage, 2, disk_blocks, root)?;
    storage.rename(&manifest_path(NAME, deleted), &deleted_path(NAME, deleted))?;
    storage.sync_dir(&points_dir(NAME))?;
    let packs = block_packs + maps.packs;
    Ok(Made { packs, leaves, records_live: disk_blocks + nodes_live })
}

/// Writes the block packs (header, a hole, footer) and the index's rows for all their blocks.
fn block_packs(storage: &KernelStorage, ids: &Ids, index: &Index) -> Result<u64> {
    let count = ids.blocks.div_ceil(BLOCKS_A_PACK);
    let place = |block: u64| {
        let number = PackNumber::new(1, (block / BLOCKS_A_PACK) as u32 + 1);
        let position = (block % BLOCKS_A_PACK) as u32;
        let bytes = gantry_dataplane::store::record::record_bytes(STORED_BYTES);
        (number, position, PACK_HEAD_BYTES + u64::from(position) * bytes)
    };
    let slot = |block: u64| Slot {
        id: ids.of_block(block),
        offset: place(block).2,
        raw_len: RAW_BYTES,
        stored_len: STORED_BYTES,
        codec: Codec::Zstd,
        kind: RecordKind::Block,
        checksum: StoredChecksum([7; 16]),
        is_gone: false,
    };
    let mut pack_rows = Vec::new();
    for pack in 0..count {
        let blocks = pack * BLOCKS_A_PACK..((pack + 1) * BLOCKS_A_PACK).min(ids.blocks);
        let slots: Vec<Slot> = blocks.map(slot).collect();
        let number = PackNumber::new(1, pack as u32 + 1);
        let bytes = write_pack(storage, number, &slots, None)?;
        pack_rows.push((number, PackRow::of(&slots, bytes)));
    }
    index.insert_rows(&[], &pack_rows)?;
    let mut rows = Vec::with_capacity(ROWS_AT_ONCE);
    for rank in 0..ids.blocks {
        let block = ids.block_at_rank(rank);
        let (number, position, _) = place(block);
        rows.push((ids.at_rank(rank), Location::of(&slot(block), position, number)));
        if rows.len() == ROWS_AT_ONCE {
            index.insert_rows(&rows, &[])?;
            // Pages are used again only after this.
            index.flush()?;
            rows.clear();
        }
    }
    index.insert_rows(&rows, &[])?;
    Ok(count)
}

/// A pack file with these slots; its records are a hole, or these bytes from the header on.
fn write_pack(
    storage: &KernelStorage,
    number: PackNumber,
    slots: &[Slot],
    records: Option<&[u8]>,
) -> Result<u64> {
    storage.create_dir(&number.dir())?;
    let file = storage.open(&number.path(), OpenMode::CreateNew)?;
    let head = PackHead { repository: REPOSITORY, number, session: SessionId([1; 16]) };
    file.write_at(0, &head.encode())?;
    if let Some(records) = records {
        file.write_at(PACK_HEAD_BYTES, records)?;
    }
    let end = slots.last().map_or(PACK_HEAD_BYTES, Slot::end);
    let footer = encode_footer(slots, end, number);
    file.write_at(end, &footer)?;
    Ok(end + footer.len() as u64)
}

/// The map nodes, as real records in packs of their own.
struct Maps<'a> {
    storage: &'a KernelStorage,
    index: &'a Index,
    known: HashSet<BlockId>,
    slots: Vec<Slot>,
    records: Vec<u8>,
    packs: u64,
    nodes: u64,
}

impl<'a> Maps<'a> {
    fn new(storage: &'a KernelStorage, index: &'a Index) -> Maps<'a> {
        let (known, slots, records) = (HashSet::new(), Vec::new(), Vec::new());
        Maps { storage, index, known, slots, records, packs: 0, nodes: 0 }
    }

    fn leaf(&mut self, ids: &Ids, leaf: u64) -> Result<BlockId> {
        let blocks = leaf * NODE_CHILDREN..(leaf + 1) * NODE_CHILDREN;
        let children: Vec<BlockId> = blocks.map(|block| ids.of_block(block)).collect();
        self.put(0, leaf, &children)
    }

    /// The tree over these leaves; its root.
    fn tree(&mut self, leaves: &[BlockId]) -> Result<BlockId> {
        let mut below = leaves.to_vec();
        let height = tree_height(leaves.len() as u64 * NODE_CHILDREN);
        for level in 1..height {
            let nodes = (0..).zip(below.chunks(NODE_CHILDREN as usize));
            below =
                nodes.map(|(at, children)| self.put(level, at, children)).collect::<Result<_>>()?;
        }
        ensure!(below.len() == 1, "a tree with {} roots", below.len());
        Ok(below[0])
    }

    fn put(&mut self, level: u8, index: u64, children: &[BlockId]) -> Result<BlockId> {
        let raw = encode_node(level, children);
        let id = KEY.node_key().block_id(&raw);
        if !self.known.insert(id) {
            return Ok(id);
        }
        let mut stored = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
        zstd_safe::compress(&mut stored, &raw, 1)
            .map_err(|code| anyhow::anyhow!("zstd: {}", zstd_safe::get_error_name(code)))?;
        let (codec, stored) = if stored.len() < raw.len() {
            (Codec::Zstd, stored)
        } else {
            (Codec::Raw, raw.clone())
        };
        let head = RecordHead {
            kind: RecordKind::Node,
            codec,
            raw_len: raw.len() as u32,
            stored_len: stored.len() as u32,
            id,
            checksum: StoredChecksum::of(&stored),
            origin: Origin { session: SessionId([1; 16]), task: 0, block: index },
        };
        let offset = PACK_HEAD_BYTES + self.records.len() as u64;
        self.slots.push(Slot::of(&head, offset));
        self.records.extend(head.encode(REPOSITORY));
        self.records.extend(&stored);
        self.records.resize((offset - PACK_HEAD_BYTES + head.record_bytes()) as usize, 0);
        self.nodes += 1;
        if self.records.len() as u64 >= PACK_BYTES_TARGET {
            self.seal()?;
        }
        Ok(id)
    }

    fn seal(&mut self) -> Result<()> {
        let slots = std::mem::take(&mut self.slots);
        if slots.is_empty() {
            return Ok(());
        }
        self.packs += 1;
        let number = PackNumber::new(2, self.packs as u32);
        let bytes = write_pack(self.storage, number, &slots, Some(&self.records))?;
        let row = PackRow::of(&slots, bytes);
        self.index.insert_pack(number, &row, &slots, &|_| true, false)?;
        self.records.clear();
        Ok(())
    }
}

fn point(storage: &KernelStorage, number: u8, blocks: u64, root: BlockId) -> Result<PointId> {
    let session = SessionId([number; 16]);
    let created_ms = 1000 * u64::from(number);
    let block_size = BlockSize::K256;
    let disk = DiskRecord {
        identity: "disk".into(),
        label: "disk".into(),
        size_bytes: blocks * u64::from(block_size.bytes()),
        block_size,
        root,
        change_id: None,
        snapshot: "s".into(),
        read_digest: [0; 32],
        mask: Vec::new(),
        totals: TaskTotals::default(),
        base: None,
        bytes_stored: 0,
    };
    let point = point_of(created_ms, session);
    let manifest = Manifest {
        repository: REPOSITORY,
        point,
        name: NAME.into(),
        session,
        created_ms,
        parent: None,
        epoch: 2,
        compression: Compression::Optimal,
        disks: vec![disk],
        vm_config: Vec::new(),
        flags: Default::default(),
        extensions: Vec::new(),
    };
    manifest.commit(storage)?;
    Ok(point)
}

#[cfg(test)]
mod tests {
    use super::{Ids, make};
    use gantry_dataplane::store::reader::StoreReader;
    use gantry_dataplane::store::storage::kernel::KernelStorage;
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_a_permutation_in_the_order_of_the_index() {
        for blocks in [100_000, 131_072, 99_991] {
            let ids = Ids::new(blocks).unwrap();
            let sorted: BTreeSet<_> = (0..blocks).map(|block| ids.of_block(block)).collect();
            assert_eq!(sorted.len() as u64, blocks);
            for (rank, id) in (0..blocks).zip(sorted) {
                assert!(ids.at_rank(rank) == id && ids.of_block(ids.block_at_rank(rank)) == id);
            }
        }
    }

    #[test]
    fn what_is_made_opens_and_its_map_leads_to_every_block() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("repository");
        let made = make(&dir, 110_000).unwrap();
        let (reader, notes) = StoreReader::open(KernelStorage::new(&dir)).unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        let manifest = reader.manifest("vm", None).unwrap();
        let disk = &manifest.disks[0];
        for leaf in 0..disk.blocks() / 1024 {
            let ids = reader.leaf(disk, leaf).unwrap();
            assert!(reader.locate(&ids).unwrap().iter().all(Option::is_some), "leaf {leaf}");
        }
        assert!(made.records_live > disk.blocks() && made.leaves == 107, "{made:?}");
    }
}
