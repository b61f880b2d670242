//! Lost map nodes: found by walking every point's trees, built again where that can be proven.
//!
//! In: a reader. Out: nodes for a new pack, from the top down (below a lost node nothing can be
//! seen), and the ids of those that stay lost. Shared nodes are looked at once a pass.

use std::collections::{BTreeMap, HashSet};

use gantry_common::ids::{BlockId, PointId, SessionId};
use gantry_common::limits::NODE_CHILDREN;
use gantry_common::manage::RepairReport;
use gantry_common::wire::TaskNumber;

use super::candidates::Proof;
use super::origins::{Origins, Ranges};
use crate::store::error::StoreError;
use crate::store::lost::NODES_REMEMBERED_MAX;
use crate::store::map_node::{child_count, tree_height};
use crate::store::map_tree::TreeRoot;
use crate::store::reader::StoreReader;
use crate::store::repo::Repo;
use crate::store::storage::Storage;

/// Lost nodes that are dealt with in one pass.
const LOST_AT_ONCE: usize = 1024;
/// Passes: one a level of the trees, and more where a pass was full.
const PASSES_MAX: usize = 64;

/// A disk of a point.
#[derive(Debug, Clone)]
pub(super) struct DiskTree {
    pub(super) point: PointId,
    pub(super) session: SessionId,
    pub(super) task: TaskNumber,
    pub(super) tree: TreeRoot,
}

/// All points of one disk, oldest first.
pub(super) type Lineage = Vec<DiskTree>;

/// A node that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LostNode {
    pub(super) id: BlockId,
    pub(super) level: u8,
    pub(super) index: u64,
    pub(super) count: usize,
}

/// A node that was built again.
#[derive(Debug, Clone)]
pub struct BuiltNode {
    /// Session that wrote it first.
    pub session: SessionId,
    /// Disk within the session.
    pub task: TaskNumber,
    /// Its level.
    pub level: u8,
    /// Its number within the level.
    pub index: u64,
    /// Its children.
    pub children: Vec<BlockId>,
}

/// Builds what can be built, through `write`; returns what stays lost.
pub(super) fn rebuild<S: Storage>(
    reader: &StoreReader<S>,
    write: &mut dyn FnMut(&[BuiltNode]) -> Result<(), StoreError>,
    report: &mut RepairReport,
) -> Result<Vec<BlockId>, StoreError> {
    let lineages = lineages(reader)?;
    let mut given_up: HashSet<BlockId> = HashSet::new();
    for _ in 0..PASSES_MAX {
        let lost = find_lost(reader.repo(), &lineages, &given_up)?;
        if lost.is_empty() {
            break;
        }
        let mut ranges = Ranges::default();
        for (_, node) in &lost {
            ranges.add(node.level, node.index * NODE_CHILDREN, node.count as u64);
        }
        let sessions = lineages.iter().flatten().map(|disk| disk.session).collect();
        let origins = Origins::read(reader.repo(), &ranges, &sessions, report)?;
        let mut built = Vec::new();
        for (lineage, node) in &lost {
            let proof = Proof::new(reader.repo(), &lineages[*lineage], &origins);
            match proof.find(node)? {
                Some(node) => built.push(node),
                None => drop(given_up.insert(node.id)),
            }
        }
        report.nodes_rebuilt += built.len() as u64;
        if report.dry_run {
            // What is below a node that would be built is seen only once it is.
            break;
        }
        write(&built)?;
    }
    Ok(given_up.into_iter().collect())
}

fn lineages<S: Storage>(reader: &StoreReader<S>) -> Result<Vec<Lineage>, StoreError> {
    let mut lineages: BTreeMap<(String, String), Lineage> = BTreeMap::new();
    let points = reader.all_points()?.into_iter().chain(reader.all_deleted_points()?);
    for manifest in points.filter_map(|listed| listed.manifest.ok()) {
        for (task, disk) in (0..).zip(&manifest.disks) {
            let tree = TreeRoot { root: disk.root, blocks: disk.blocks() };
            let (point, session) = (manifest.point, manifest.session);
            lineages
                .entry((manifest.name.clone(), disk.identity.clone()))
                .or_default()
                .push(DiskTree { point, session, task, tree });
        }
    }
    let mut lineages: Vec<Lineage> = lineages.into_values().collect();
    lineages.iter_mut().for_each(|lineage| lineage.sort_by_key(|disk| disk.point));
    Ok(lineages)
}

/// Lost nodes, each with the lineage that it was found in; at the most [`LOST_AT_ONCE`].
fn find_lost<S: Storage>(
    repo: &Repo<S>,
    lineages: &[Lineage],
    given_up: &HashSet<BlockId>,
) -> Result<Vec<(usize, LostNode)>, StoreError> {
    let mut finder = Finder { repo, given_up, seen: HashSet::new(), lost: Vec::new() };
    for (number, lineage) in lineages.iter().enumerate() {
        for disk in lineage {
            if !disk.tree.root.is_zero() {
                let level = tree_height(disk.tree.blocks) - 1;
                finder.walk(number, disk.tree.blocks, &disk.tree.root, level, 0)?;
            }
        }
    }
    Ok(finder.lost)
}

struct Finder<'a, S: Storage> {
    repo: &'a Repo<S>,
    given_up: &'a HashSet<BlockId>,
    seen: HashSet<BlockId>,
    lost: Vec<(usize, LostNode)>,
}

impl<S: Storage> Finder<'_, S> {
    fn walk(
        &mut self,
        lineage: usize,
        blocks: u64,
        id: &BlockId,
        level: u8,
        index: u64,
    ) -> Result<(), StoreError> {
        let is_full = self.lost.len() >= LOST_AT_ONCE;
        if is_full || self.seen.contains(id) || self.given_up.contains(id) {
            return Ok(());
        }
        if self.seen.len() < NODES_REMEMBERED_MAX {
            self.seen.insert(*id);
        }
        let count = child_count(level, index, blocks);
        let is_there = self.repo.find_one(id)?.is_some();
        match self.repo.node(id, level) {
            Ok(children) if is_there && children.len() == count => {
                if level > 0 {
                    for (at, child) in (index * NODE_CHILDREN..).zip(children.iter()) {
                        if !child.is_zero() {
                            self.walk(lineage, blocks, child, level - 1, at)?;
                        }
                    }
                }
            }
            Err(error @ StoreError::Index { .. }) => return Err(error),
            // Unreadable for the moment is not lost: it is neither built nor given up.
            Err(StoreError::Io { .. }) => {}
            _ => self.lost.push((lineage, LostNode { id: *id, level, index, count })),
        }
        Ok(())
    }
}
