//! What a lost node may have held, tried until its id proves one.
//!
//! In: a lost node, the points of its disk, what sessions wrote where. Out: its children, if they
//! hash to its id. A node is that of a neighbouring point, older or newer, with the children that
//! sessions between the two wrote exchanged; or it began with zeros.

use gantry_common::ids::{BlockId, SessionId};
use gantry_common::limits::NODE_CHILDREN;
use gantry_common::wire::TaskNumber;

use super::nodes::{BuiltNode, DiskTree, Lineage, LostNode};
use super::origins::Origins;
use crate::store::error::StoreError;
use crate::store::map_node::encode_node;
use crate::store::map_tree::node_id;
use crate::store::repo::Repo;
use crate::store::storage::Storage;

/// Neighbouring points that are tried, nearest first.
const NEIGHBOURS_MAX: usize = 16;
/// Sessions without a point whose records are tried.
const ORPHANS_MAX: usize = 32;

/// Tries candidates for the nodes of one disk.
pub(super) struct Proof<'a, S: Storage> {
    repo: &'a Repo<S>,
    lineage: &'a Lineage,
    origins: &'a Origins,
}

/// The same node in another point.
struct Neighbour {
    at: usize,
    children: Vec<BlockId>,
}

type Writer = (SessionId, TaskNumber);

impl<'a, S: Storage> Proof<'a, S> {
    pub(super) fn new(
        repo: &'a Repo<S>,
        lineage: &'a Lineage,
        origins: &'a Origins,
    ) -> Proof<'a, S> {
        Proof { repo, lineage, origins }
    }

    pub(super) fn find(&self, node: &LostNode) -> Result<Option<BuiltNode>, StoreError> {
        let mut held = Vec::new();
        for disk in self.lineage {
            held.push(self.id_in(disk, node)?);
        }
        let holds = |at: &usize| held[*at] == Some(node.id);
        let all = 0..self.lineage.len();
        let (Some(first), Some(last)) = (all.clone().find(holds), all.rev().find(holds)) else {
            return Ok(None);
        };
        let mut neighbours = Vec::new();
        for distance in 1..=self.lineage.len() {
            for at in [first.checked_sub(distance), Some(last + distance)].into_iter().flatten() {
                let id = held.get(at).copied().flatten();
                if let Some(children) = id.and_then(|id| self.children(&id, node)) {
                    neighbours.push(Neighbour { at, children });
                }
            }
            if neighbours.len() >= NEIGHBOURS_MAX {
                break;
            }
        }
        let writer = self.writer(first);
        let children = self.try_all(node, first, last, &neighbours);
        Ok(children.map(|children| BuiltNode {
            session: writer.0,
            task: writer.1,
            level: node.level,
            index: node.index,
            children,
        }))
    }

    fn writer(&self, at: usize) -> Writer {
        (self.lineage[at].session, self.lineage[at].task)
    }

    fn id_in(&self, disk: &DiskTree, node: &LostNode) -> Result<Option<BlockId>, StoreError> {
        let mut read = |id: &BlockId, level| self.repo.node(id, level);
        match node_id(&disk.tree, node.level, node.index, &mut read) {
            Err(error @ StoreError::Index { .. }) => Err(error),
            found => Ok(found.ok().flatten()),
        }
    }

    /// A node's children, cut or extended with zeros to the lost one's count.
    fn children(&self, id: &BlockId, node: &LostNode) -> Option<Vec<BlockId>> {
        let mut children = match id.is_zero() {
            true => Vec::new(),
            false => self.repo.node(id, node.level).ok()?.to_vec(),
        };
        children.resize(node.count, BlockId::ZERO);
        Some(children)
    }

    fn try_all(
        &self,
        node: &LostNode,
        first: usize,
        last: usize,
        neighbours: &[Neighbour],
    ) -> Option<Vec<BlockId>> {
        let zeros = vec![BlockId::ZERO; node.count];
        let older = || neighbours.iter().filter(|neighbour| neighbour.at < first);
        let newer = || neighbours.iter().filter(|neighbour| neighbour.at > last);
        let own = self.writer(first);
        let orphans = self.origins.orphans.iter().take(ORPHANS_MAX);
        let mut writers = vec![vec![own]];
        writers.extend(orphans.clone().map(|orphan| vec![(*orphan, own.1), own]));
        writers.push(orphans.map(|orphan| (*orphan, own.1)).chain([own]).collect());
        for writers in &writers {
            let bases = older().map(|neighbour| &neighbour.children).chain([&zeros]);
            for base in bases {
                for oldest in [false, true] {
                    let children = self.patched(node, base, writers, oldest);
                    if self.is_proven(node, &children) {
                        return Some(children);
                    }
                }
            }
        }
        for newer in newer() {
            for base in older().map(|neighbour| &neighbour.children).chain([&zeros]) {
                for writers in &writers {
                    let children = self.undone(node, newer, last, base, writers);
                    if self.is_proven(node, &children) {
                        return Some(children);
                    }
                }
            }
        }
        None
    }

    /// A base with what the writers wrote, later ones over earlier ones.
    fn patched(
        &self,
        node: &LostNode,
        base: &[BlockId],
        writers: &[Writer],
        oldest: bool,
    ) -> Vec<BlockId> {
        let mut children = base.to_vec();
        for (number, child) in (node.index * NODE_CHILDREN..).zip(&mut children) {
            for (session, task) in writers {
                let ids = self.origins.of(*session, *task, node.level, number);
                if let Some(id) = if oldest { ids.first() } else { ids.last() } {
                    *child = *id;
                }
            }
        }
        children
    }

    /// A newer point's node with what was written after the lost one taken back.
    fn undone(
        &self,
        node: &LostNode,
        newer: &Neighbour,
        last: usize,
        base: &[BlockId],
        writers: &[Writer],
    ) -> Vec<BlockId> {
        let before = self.patched(node, base, writers, false);
        let numbers = node.index * NODE_CHILDREN..;
        let was_written = |number| {
            (last + 1..=newer.at).any(|at| {
                let (session, task) = self.writer(at);
                !self.origins.of(session, task, node.level, number).is_empty()
            })
        };
        let child = |((number, before), newer): ((u64, &BlockId), &BlockId)| {
            if was_written(number) { *before } else { *newer }
        };
        numbers.zip(&before).zip(&newer.children).map(child).collect()
    }

    fn is_proven(&self, node: &LostNode, children: &[BlockId]) -> bool {
        let raw = encode_node(node.level, children);
        self.repo.id_key().node_key().block_id(&raw) == node.id
    }
}
