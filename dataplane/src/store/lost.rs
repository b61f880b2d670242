//! Which blocks of a disk's tree cannot be restored, as far as is known.
//!
//! In: trees. Out: runs of lost blocks; below a map node that cannot be read every block is lost.
//! A shared node under which nothing is lost is walked once. Invariant: names too much rather than
//! too little. Must not: change anything.

use std::collections::HashSet;

use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::BlockId;
use gantry_common::limits::{self, NODE_CHILDREN};

use super::error::StoreError;
use super::index::Location;
use super::map_node::{child_count, node_blocks, tree_height};
use super::map_tree::TreeRoot;
use super::record::{RecordDecoder, RecordKind};
use super::repo::Repo;
use super::storage::Storage;

/// Clean nodes that are remembered, 16 bytes each; beyond, shared nodes are walked again.
pub const NODES_REMEMBERED_MAX: usize = 4 << 20;
/// Times that a node is looked up again because a collection moved it meanwhile.
const MOVES_MAX: usize = 4;

/// Walks trees.
pub struct LostBlocks<'a, S: Storage> {
    repo: &'a Repo<S>,
    is_bad: &'a dyn Fn(&Location) -> bool,
    keyless: Option<RecordDecoder>,
    clean: HashSet<[u8; 16]>,
    /// Nodes looked at.
    pub nodes: u64,
    /// Nodes could not be read; perhaps only for a moment.
    pub had_io_errors: bool,
}

impl<S: Storage> std::fmt::Debug for LostBlocks<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LostBlocks({} nodes)", self.nodes)
    }
}

impl<'a, S: Storage> LostBlocks<'a, S> {
    /// A walk in which records at places for which `is_bad` holds are lost, besides those that
    /// the index knows to be.
    pub fn new(repo: &'a Repo<S>, is_bad: &'a dyn Fn(&Location) -> bool) -> LostBlocks<'a, S> {
        LostBlocks {
            repo,
            is_bad,
            keyless: None,
            clean: HashSet::new(),
            nodes: 0,
            had_io_errors: false,
        }
    }

    /// Reads nodes without the id key: their stored checksums must do.
    pub fn without_key(mut self) -> LostBlocks<'a, S> {
        self.keyless = Some(RecordDecoder::without_key());
        self
    }

    /// The lost blocks of a tree.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn of_tree(&mut self, tree: &TreeRoot) -> Result<RunSet, StoreError> {
        let mut lost = RunSet::new();
        if !tree.root.is_zero() {
            self.subtree(tree.blocks, &tree.root, tree_height(tree.blocks) - 1, 0, &mut lost)?;
        }
        Ok(lost)
    }

    /// Adds what is lost below a node; true if anything is.
    fn subtree(
        &mut self,
        blocks: u64,
        id: &BlockId,
        level: u8,
        index: u64,
        lost: &mut RunSet,
    ) -> Result<bool, StoreError> {
        let mut short = [0; 16];
        short.copy_from_slice(&id.0[..16]);
        if self.clean.contains(&short) {
            return Ok(false);
        }
        self.nodes += 1;
        let mut any = false;
        let first = index * node_blocks(level);
        let count = child_count(level, index, blocks);
        let children = match self.children(id, level)? {
            Some(children) if children.len() == count => children,
            _ => {
                let count = node_blocks(level).min(blocks - first);
                add(lost, Run { first, count });
                return Ok(true);
            }
        };
        if level > 0 {
            for (at, child) in (index * NODE_CHILDREN..).zip(&children) {
                if !child.is_zero() {
                    any |= self.subtree(blocks, child, level - 1, at, lost)?;
                }
            }
        } else {
            let found = self.repo.find(&children)?;
            for (at, (child, location)) in (first..).zip(children.iter().zip(&found)) {
                let is_lost =
                    location.is_none_or(|at| at.kind != RecordKind::Block || (self.is_bad)(&at));
                if !child.is_zero() && is_lost {
                    any = true;
                    add(lost, Run { first: at, count: 1 });
                }
            }
        }
        if !any && self.clean.len() < NODES_REMEMBERED_MAX {
            self.clean.insert(short);
        }
        Ok(any)
    }

    /// A node's children; nothing if it is lost.
    fn children(&mut self, id: &BlockId, level: u8) -> Result<Option<Vec<BlockId>>, StoreError> {
        let mut tried = None;
        for _ in 0..MOVES_MAX {
            let place = self.repo.find_one(id)?.filter(|at| at.kind == RecordKind::Node);
            let Some(at) = place.filter(|at| !(self.is_bad)(at) && tried != Some(*at)) else {
                return Ok(None);
            };
            let read = match &mut self.keyless {
                Some(decoder) => self.repo.node_at(decoder, id, &at, level),
                None => self.repo.node(id, level).map(|children| children.to_vec()),
            };
            match read {
                Ok(children) => return Ok(Some(children)),
                Err(error @ StoreError::Index { .. }) => return Err(error),
                Err(error) => {
                    self.had_io_errors |= matches!(error, StoreError::Io { .. });
                    tried = Some(at);
                }
            }
        }
        Ok(None)
    }
}

/// Adds a run; where there are too many, all become one that covers them.
fn add(lost: &mut RunSet, run: Run) {
    if lost.insert_bounded(run, limits::COVERAGE_RUNS_MAX).is_err() {
        cover(lost);
    }
}

fn cover(lost: &mut RunSet) {
    let ends = lost.iter().next().zip(lost.iter().last());
    if let Some((first, last)) = ends {
        lost.insert(Run { first: first.first, count: last.first + last.count - first.first });
    }
}

/// A set's runs, as many as a message holds: more than that become one that covers them, which
/// reads too much, never too little.
pub fn message_runs(mut lost: RunSet) -> Vec<Run> {
    if lost.run_count() > limits::RUNS_MAX {
        cover(&mut lost);
    }
    lost.iter().collect()
}
