//! Building a disk's map tree from what was staged and from its base.
//!
//! In: staged leaves, the base's tree. Out: a root id; nodes that are new go to [`NodeStore`].
//! Only touched leaves are walked; a subtree that nothing touched keeps its id, whatever the
//! heights of the two trees. One path of nodes is in memory at a time.

use gantry_common::extents::Run;
use gantry_common::ids::BlockId;
use gantry_common::limits::NODE_CHILDREN;

use super::error::StoreError;
use super::map_node::{child_count, node_blocks, tree_height};
use super::staging::{STAGED_ZERO, StagedLeaf, Staging};
use super::storage::Storage;

use std::sync::Arc;

/// A tree that stands in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeRoot {
    /// Root id.
    pub root: BlockId,
    /// Blocks of the disk.
    pub blocks: u64,
}

/// Where nodes come from and go to.
pub trait NodeStore {
    /// Children of a stored node.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    fn node(&mut self, id: &BlockId, level: u8) -> Result<Arc<Vec<BlockId>>, StoreError>;
    /// Stores a node unless it is stored already; returns its id.
    ///
    /// # Errors
    /// Of the pack.
    fn put(&mut self, level: u8, index: u64, children: &[BlockId]) -> Result<BlockId, StoreError>;
}

/// Gives the children of a stored node of this level.
pub type ReadNode<'a> = dyn FnMut(&BlockId, u8) -> Result<Arc<Vec<BlockId>>, StoreError> + 'a;

/// Id of node `index` of `level` in a tree; `None` if the tree has no such node because it is
/// lower, or ends before.
///
/// # Errors
/// [`StoreError::Damaged`] if a node on the way is.
pub fn node_id(
    tree: &TreeRoot,
    level: u8,
    index: u64,
    nodes: &mut ReadNode<'_>,
) -> Result<Option<BlockId>, StoreError> {
    let height = tree_height(tree.blocks);
    if level >= height || child_count(level, index, tree.blocks) == 0 {
        return Ok(None);
    }
    let mut id = tree.root;
    for at in (level + 1..height).rev() {
        if id.is_zero() {
            return Ok(Some(id));
        }
        let below = NODE_CHILDREN.pow(u32::from(at - level - 1));
        let child = (index / below) % NODE_CHILDREN;
        let children = nodes(&id, at)?;
        id = children.get(child as usize).copied().ok_or_else(|| {
            StoreError::damaged(
                "map",
                0,
                format!("map node {id} of level {at} has no child {child}"),
                super::error::REMEDY_VERIFY,
            )
        })?;
    }
    Ok(Some(id))
}

/// Block ids of a leaf; fewer than 1024 at the disk's end, none beyond it.
///
/// # Errors
/// [`StoreError::Damaged`].
pub fn leaf_ids(
    tree: &TreeRoot,
    leaf: u64,
    nodes: &mut ReadNode<'_>,
) -> Result<Vec<BlockId>, StoreError> {
    let count = child_count(0, leaf, tree.blocks);
    match node_id(tree, 0, leaf, nodes)? {
        Some(id) if !id.is_zero() => {
            let ids = nodes(&id, 0)?;
            match ids.len() == count {
                true => Ok(ids.to_vec()),
                false => Err(StoreError::damaged(
                    "map",
                    0,
                    format!("map leaf {id} has {} blocks, not {count}", ids.len()),
                    super::error::REMEDY_VERIFY,
                )),
            }
        }
        _ => Ok(vec![BlockId::ZERO; count]),
    }
}

/// Builds the tree of a disk.
#[derive(Debug)]
pub struct TreeBuilder<'a, S: Storage, N> {
    /// The folder, for the scratch file.
    pub storage: &'a S,
    /// What was staged.
    pub staging: &'a mut Staging<S::File>,
    /// The base's tree.
    pub base: Option<TreeRoot>,
    /// Blocks of the disk.
    pub blocks: u64,
    /// Where nodes go.
    pub nodes: &'a mut N,
}

impl<S: Storage, N: NodeStore> TreeBuilder<'_, S, N> {
    /// The root's id.
    ///
    /// # Errors
    /// Of the scratch file, the base's nodes or the pack.
    pub fn build(&mut self) -> Result<BlockId, StoreError> {
        self.subtree(tree_height(self.blocks) - 1, 0)
    }

    fn subtree(&mut self, level: u8, index: u64) -> Result<BlockId, StoreError> {
        let leaves = node_blocks(level) / NODE_CHILDREN;
        if !self.staging.is_touched(index * leaves, leaves)
            && let Some(id) = self.untouched(level, index)?
        {
            return Ok(id);
        }
        if self.staging.is_zero(index * leaves, leaves) {
            return Ok(BlockId::ZERO);
        }
        let children = match level {
            0 => self.leaf(index)?,
            _ => {
                let count = child_count(level, index, self.blocks) as u64;
                (0..count)
                    .map(|child| self.subtree(level - 1, index * NODE_CHILDREN + child))
                    .collect::<Result<Vec<_>, _>>()?
            }
        };
        match children.iter().all(BlockId::is_zero) {
            true => Ok(BlockId::ZERO),
            false => self.nodes.put(level, index, &children),
        }
    }

    /// The id of a subtree in which nothing is staged, where it can be told without its children.
    fn untouched(&mut self, level: u8, index: u64) -> Result<Option<BlockId>, StoreError> {
        let Some(base) = self.base else { return Ok(Some(BlockId::ZERO)) };
        let first = index * node_blocks(level);
        if first >= base.blocks {
            return Ok(Some(BlockId::ZERO));
        }
        // The node must cover the same blocks in both disks.
        let end = first + node_blocks(level);
        if end.min(self.blocks) != end.min(base.blocks) {
            return Ok(None);
        }
        let nodes = &mut self.nodes;
        node_id(&base, level, index, &mut |id, level| nodes.node(id, level))
    }

    fn leaf(&mut self, leaf: u64) -> Result<Vec<BlockId>, StoreError> {
        let count = child_count(0, leaf, self.blocks);
        let staged = self.staging.leaf(self.storage, leaf).map_err(|source| {
            StoreError::io("read the scratch file in", self.storage.place(""), source)
        })?;
        let staged = match staged {
            StagedLeaf::Zero => return Ok(vec![BlockId::ZERO; count]),
            StagedLeaf::Untouched => vec![BlockId::ZERO; count],
            StagedLeaf::Ids(ids) => ids,
        };
        // A leaf of the base that cannot be read is not needed where nothing is taken over from it.
        let takes_over = staged.iter().any(BlockId::is_zero);
        let mut below = match &self.base {
            Some(base) if takes_over => {
                let nodes = &mut self.nodes;
                leaf_ids(base, leaf, &mut |id, level| nodes.node(id, level))?
            }
            _ => Vec::new(),
        };
        below.resize(count, BlockId::ZERO);
        let child = |(staged, below): (BlockId, BlockId)| match staged {
            STAGED_ZERO => BlockId::ZERO,
            BlockId::ZERO => below,
            id => id,
        };
        Ok(staged.into_iter().zip(below).map(child).collect())
    }
}

/// The run of blocks that a leaf holds.
pub fn leaf_run(leaf: u64, blocks: u64) -> Run {
    Run { first: leaf * NODE_CHILDREN, count: child_count(0, leaf, blocks) as u64 }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use gantry_common::ids::IdKey;

    use super::super::map_node::{decode_node, encode_node};
    use super::super::storage::memory::MemoryStorage;
    use super::*;

    #[derive(Default)]
    struct Nodes(HashMap<BlockId, Vec<u8>>, u64);

    impl NodeStore for Nodes {
        fn node(&mut self, id: &BlockId, level: u8) -> Result<Arc<Vec<BlockId>>, StoreError> {
            Ok(Arc::new(decode_node(&self.0[id], level).unwrap()))
        }

        fn put(&mut self, level: u8, _: u64, ids: &[BlockId]) -> Result<BlockId, StoreError> {
            let raw = encode_node(level, ids);
            let id = IdKey([1; 32]).node_key().block_id(&raw);
            self.1 += u64::from(self.0.insert(id, raw).is_none());
            Ok(id)
        }
    }

    fn build(
        nodes: &mut Nodes,
        base: Option<TreeRoot>,
        blocks: u64,
        set: &[(u64, BlockId)],
    ) -> TreeRoot {
        let disk = MemoryStorage::new();
        let mut staging = Staging::new(blocks, base.is_some());
        for (block, id) in set {
            match id.is_zero() {
                true => staging.set_zero(&disk, Run { first: *block, count: 1 }).unwrap(),
                false => staging.set(&disk, *block, id).unwrap(),
            }
        }
        let mut builder =
            TreeBuilder { storage: &disk, staging: &mut staging, base, blocks, nodes };
        TreeRoot { root: builder.build().unwrap(), blocks }
    }

    #[test]
    fn trees_grow_shrink_and_change_height() {
        for seed in 0..40 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut nodes, mut base, mut model) = (Nodes::default(), None, HashMap::new());
            for _ in 0..5 {
                let blocks = match random.u8(0..3) {
                    0 => random.u64(1..2000),
                    1 => random.u64(1000..40_000),
                    _ => (1 << 20) + random.u64(0..3000),
                };
                let mut set = Vec::new();
                for _ in 0..random.usize(0..40) {
                    let id = BlockId([random.u8(0..4); 32]);
                    set.push((random.u64(0..blocks), id));
                }
                model.retain(|block, _| *block < blocks);
                model.extend(set.iter().copied());
                let tree = build(&mut nodes, base, blocks, &set);
                for leaf in 0..blocks.div_ceil(NODE_CHILDREN) {
                    let ids =
                        leaf_ids(&tree, leaf, &mut |id, level| nodes.node(id, level)).unwrap();
                    for (at, id) in (leaf * NODE_CHILDREN..).zip(&ids) {
                        let wanted = model.get(&at).copied().unwrap_or(BlockId::ZERO);
                        assert_eq!(*id, wanted, "seed {seed} block {at}");
                    }
                }
                let again: Vec<_> = model.iter().map(|(block, id)| (*block, *id)).collect();
                let fresh = build(&mut nodes, None, blocks, &again);
                assert_eq!(fresh.root, tree.root, "seed {seed}: content alone decides the id");
                base = Some(tree);
            }
        }
    }

    #[test]
    fn an_increment_costs_one_path() {
        let mut nodes = Nodes::default();
        let blocks = (16 << 40) / (256 << 10);
        let base = build(&mut nodes, None, blocks, &[(5, BlockId([1; 32]))]);
        assert_eq!(nodes.1, 3);
        let next = build(&mut nodes, Some(base), blocks, &[(blocks - 1, BlockId([2; 32]))]);
        assert_eq!(nodes.1, 6, "a leaf, a middle node, the root");
        let same = build(&mut nodes, Some(next), blocks, &[]);
        assert_eq!((same, nodes.1), (next, 6));
    }
}
