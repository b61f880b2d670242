//! A node of a map tree: up to 1024 ids, of blocks (level 0) or of nodes one level down.
//!
//! In: ids. Out: bytes whose keyed BLAKE3 is the node's own id. A child of [`BlockId::ZERO`] reads
//! as zeros all the way down, and a node of nothing but zeros is not stored: its id is ZERO.

use gantry_common::ids::BlockId;
use gantry_common::limits::{NODE_CHILDREN, NODE_LEVELS_MAX};

use super::fields::Fields;

const MAGIC: [u8; 4] = *b"GNOD";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 8;

/// Bytes of the largest node.
pub const NODE_BYTES_MAX: usize = HEAD_BYTES + NODE_CHILDREN as usize * BlockId::BYTES;

/// Levels that a disk's tree has: 1 for up to 1024 blocks, 2 for up to 1024².
pub fn tree_height(blocks: u64) -> u8 {
    let mut height = 1;
    while blocks > node_blocks(height - 1) && height < NODE_LEVELS_MAX {
        height += 1;
    }
    height
}

/// Blocks below a full node of this level.
pub fn node_blocks(level: u8) -> u64 {
    NODE_CHILDREN.pow(u32::from(level) + 1)
}

/// Children that node `index` of `level` has on a disk with this many blocks.
pub fn child_count(level: u8, index: u64, blocks: u64) -> usize {
    let per_child = node_blocks(level) / NODE_CHILDREN;
    let rest = blocks.saturating_sub(index.saturating_mul(node_blocks(level)));
    rest.div_ceil(per_child).min(NODE_CHILDREN) as usize
}

/// A node's raw bytes.
pub fn encode_node(level: u8, children: &[BlockId]) -> Vec<u8> {
    assert!(children.len() as u64 <= NODE_CHILDREN, "node of {} children", children.len());
    let mut out = Vec::with_capacity(HEAD_BYTES + children.len() * BlockId::BYTES);
    out.extend(MAGIC);
    out.extend([VERSION, level]);
    out.extend((children.len() as u16).to_le_bytes());
    children.iter().for_each(|child| out.extend(child.0));
    out
}

/// Reads a node's children; `None` if the bytes are no node of this level.
pub fn decode_node(bytes: &[u8], level: u8) -> Option<Vec<BlockId>> {
    let mut fields = Fields::new(bytes);
    if fields.array::<4>()? != MAGIC || fields.array::<2>()? != [VERSION, level] {
        return None;
    }
    let count = usize::from(fields.u16()?);
    if count as u64 > NODE_CHILDREN || bytes.len() != HEAD_BYTES + count * BlockId::BYTES {
        return None;
    }
    (0..count).map(|_| fields.array().map(BlockId)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_have_the_right_shape() {
        assert_eq!([1, 1024, 1025, 1 << 20, (1 << 20) + 1].map(tree_height), [1, 1, 2, 2, 3]);
        assert_eq!(child_count(0, 1, 1500), 476);
        assert_eq!(child_count(1, 0, 1500), 2);
        assert_eq!(child_count(0, 2, 1500), 0);
    }

    #[test]
    fn nodes_come_back() {
        let ids: Vec<BlockId> = (0..1024u32).map(|i| BlockId([i as u8; 32])).collect();
        let bytes = encode_node(2, &ids);
        assert_eq!(decode_node(&bytes, 2), Some(ids));
        assert_eq!(decode_node(&bytes, 1), None);
        assert_eq!(decode_node(&bytes[..bytes.len() - 1], 2), None);
        assert_eq!(decode_node(&[], 0), None);
    }
}
