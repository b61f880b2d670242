//! Snapshots: forks a chain, takes a snapshot out of the tree, goes back to one, consolidates.
//!
//! ```text
//! snapshot:  base(live)            ->  base(frozen) <- 000001(live)
//! remove:    base <- 000001(live)  ->  base(live)          000001 is merged into base
//! revert:    base <- 000001(live)  ->  base <- 000002(live)         000001 is gone
//! ```
//!
//! A link that is neither live nor held by a snapshot is a left-over. One without children is
//! deleted, one with a single child takes over what the child holds and stands in its place, one
//! with several is a branch of the tree and stays. Left-overs that cannot be settled at once, because
//! a proxy has them attached, are orphans: the VM needs consolidation.
//!
//! In: ids. Out: changed chains. It must not change what any snapshot or guest sees.

use std::collections::BTreeMap;

use super::disk::Link;
use super::error::{Result, StorageError, missing};
use super::path::DatastorePath;
use super::state::{DiskId, FrozenState, LinkId, SnapshotId, SnapshotState};
use super::world::World;

/// Deepest chain, as on ESXi.
const SNAPSHOT_DEPTH_MAX: usize = 32;

/// How a snapshot's removal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// Files of the snapshot stay behind: the VM's disks need consolidation.
    pub consolidation_needed: bool,
}

/// A disk as a snapshot holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenDisk {
    /// Which disk.
    pub disk: DiskId,
    /// The frozen descriptor: `backing.fileName` in the snapshot's configuration.
    pub file: DatastorePath,
    /// The frozen chain, from `file` down to the base.
    pub chain: Vec<Link>,
    /// The disk's size then.
    pub capacity_bytes: u64,
    /// Its `changeId` at that instant; none if tracking was not active.
    pub change_id: Option<String>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The snapshot before it, if any.
    pub parent: Option<SnapshotId>,
    /// Its disks, by id.
    pub disks: Vec<FrozenDisk>,
}

impl World {
    /// Forks all disks at one instant.
    pub(super) fn fork(&mut self, disks: &[DiskId]) -> Result<SnapshotId> {
        let mut ids = disks.to_vec();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() || ids.len() != disks.len() {
            return Err(StorageError::Invalid("a snapshot needs disks, each named once".into()));
        }
        for disk in &ids {
            self.stun(*disk)?;
        }
        let mut deltas = Vec::new();
        for disk in &ids {
            match self.prepare_fork(*disk) {
                Ok(delta) => deltas.push(delta),
                Err(e) => {
                    self.drop_links(&deltas)?;
                    return Err(e);
                }
            }
        }
        let id = SnapshotId(self.state.new_id());
        for disk in &ids {
            if let Err(e) = self.keep_oracle(*disk, id) {
                self.drop_links(&deltas)?;
                return Err(e);
            }
        }
        let mut frozen = BTreeMap::new();
        let mut parent = None;
        for (disk, delta) in ids.iter().zip(deltas) {
            let state = self.state.disk_mut(*disk)?;
            let (link, capacity_bytes) = (state.live, state.capacity_bytes);
            let change_id = state.tracking.change_id();
            parent = parent.max(state.current);
            state.live = delta;
            state.current = Some(id);
            state.tracking.epoch += 1;
            frozen.insert(*disk, FrozenState { link, capacity_bytes, change_id });
        }
        self.state.snapshots.insert(id, SnapshotState { parent, disks: frozen });
        self.save()?;
        Ok(id)
    }

    /// Gives the live link a new content id, since it was written to, and makes its delta.
    fn prepare_fork(&mut self, disk: DiskId) -> Result<LinkId> {
        let live = self.state.disk(disk)?.live;
        if self.state.chain(live)?.len() > SNAPSHOT_DEPTH_MAX {
            let file = &self.state.disk(disk)?.file;
            return Err(StorageError::Invalid(format!(
                "{file} has {SNAPSHOT_DEPTH_MAX} levels of snapshots: remove some first"
            )));
        }
        let cid = self.new_cid();
        if let Some(link) = self.state.links.get_mut(&live) {
            link.cid = cid;
        }
        self.write_descriptor(live)?;
        let delta = self.fork_link(live)?;
        if let Err(e) = self.fork_map(disk, live, delta) {
            self.drop_links(&[delta])?;
            return Err(e);
        }
        Ok(delta)
    }

    /// Takes a snapshot out of the tree and merges what only it needed, if `consolidate`.
    pub(super) fn remove_snapshot(&mut self, id: SnapshotId, consolidate: bool) -> Result<Removal> {
        let gone = self.state.snapshot(id)?.clone();
        let disks: Vec<DiskId> = gone.disks.keys().copied().collect();
        if self.faults.removal_fails(&disks) {
            return Err(StorageError::Injected(format!("{id} cannot be removed")));
        }
        self.state.snapshots.remove(&id);
        for snapshot in self.state.snapshots.values_mut().filter(|s| s.parent == Some(id)) {
            snapshot.parent = gone.parent;
        }
        for disk in self.state.disks.values_mut().filter(|d| d.current == Some(id)) {
            disk.current = gone.parent;
        }
        self.save()?;
        for disk in disks.iter().filter(|_| consolidate) {
            if !self.faults.consolidation_sticks(*disk) {
                self.settle(*disk)?;
            }
        }
        for disk in &disks {
            self.stun(*disk)?;
        }
        self.save()?;
        Ok(Removal { consolidation_needed: self.consolidation_needed(&disks)? })
    }

    /// Throws away what was written since `id` and goes on from it.
    pub(super) fn revert(&mut self, id: SnapshotId) -> Result<()> {
        let target = self.state.snapshot(id)?.clone();
        for disk in target.disks.keys() {
            self.check_unattached(self.state.disk(*disk)?.live)?;
        }
        let mut old = Vec::new();
        for (disk, frozen) in &target.disks {
            let delta = self.fork_link(frozen.link)?;
            let state = self.state.disk_mut(*disk)?;
            old.push(std::mem::replace(&mut state.live, delta));
            state.current = Some(id);
            let (capacity_bytes, tracked) = (state.capacity_bytes, state.tracking.enabled);
            self.soil(*disk, 0..capacity_bytes);
            if tracked {
                self.begin_period(*disk)?;
            }
        }
        self.drop_links(&old)?;
        for disk in target.disks.keys() {
            self.settle(*disk)?;
        }
        Ok(())
    }

    /// Merges all left-overs of the disks that nobody holds.
    pub(super) fn consolidate(&mut self, disks: &[DiskId]) -> Result<()> {
        for disk in disks {
            let file = self.state.disk(*disk)?.file.clone();
            if self.faults.consolidation_sticks(*disk) {
                let text = format!("the deltas of {file} cannot be merged");
                return Err(StorageError::Injected(text));
            }
            self.settle(*disk)?;
            self.stun(*disk)?;
        }
        self.save()
    }

    /// True if files lie in a chain that neither a snapshot nor the guest needs.
    pub(super) fn consolidation_needed(&self, disks: &[DiskId]) -> Result<bool> {
        for disk in disks {
            self.state.disk(*disk)?;
            let links = self.state.links_of(*disk);
            if links.iter().any(|link| self.is_left_over(*link)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_left_over(&self, link: LinkId) -> bool {
        !self.state.is_live(link)
            && !self.state.is_frozen(link)
            && self.state.children(link).len() <= 1
    }

    /// Deletes or merges every left-over of a disk that can be.
    fn settle(&mut self, disk: DiskId) -> Result<()> {
        loop {
            let held = self.held_links()?;
            let links = self.state.links_of(disk).into_iter();
            let next = links.filter(|link| !held.contains(link)).find_map(|link| {
                let child = self.state.children(link).first().copied();
                let ready = self.is_left_over(link) && child.is_none_or(|c| !held.contains(&c));
                ready.then_some((link, child))
            });
            match next {
                None => return Ok(()),
                Some((link, None)) => self.drop_links(&[link])?,
                Some((link, Some(child))) => self.merge(link, child)?,
            }
        }
    }

    /// `link` takes over what its only child holds, and the child's place.
    fn merge(&mut self, link: LinkId, child: LinkId) -> Result<()> {
        self.copy_into_parent(child)?;
        self.inherit_map(link, child)?;
        let grandchildren = self.state.children(child);
        let cid = self.state.link(child)?.cid;
        for (id, state) in &mut self.state.links {
            if *id == link {
                state.cid = cid;
            } else if grandchildren.contains(id) {
                state.parent = Some(link);
            }
        }
        for disk in self.state.disks.values_mut().filter(|d| d.live == child) {
            disk.live = link;
        }
        let snapshots = self.state.snapshots.values_mut();
        for frozen in snapshots.flat_map(|s| s.disks.values_mut()).filter(|f| f.link == child) {
            frozen.link = link;
        }
        self.drop_links(&[child])?;
        self.write_descriptor(link)?;
        for id in grandchildren {
            self.write_descriptor(id)?;
        }
        Ok(())
    }
    pub(super) fn snapshot_info(&self, id: SnapshotId) -> Result<SnapshotInfo> {
        let snapshot = self.state.snapshot(id)?;
        let disks = snapshot.disks.iter().map(|(disk, frozen)| {
            let link = self.state.links.get(&frozen.link);
            let link = link.ok_or_else(|| missing("link", frozen.link))?;
            Ok(FrozenDisk {
                disk: *disk,
                file: link.file.clone(),
                chain: self.links(frozen.link)?,
                capacity_bytes: frozen.capacity_bytes,
                change_id: frozen.change_id.clone(),
            })
        });
        Ok(SnapshotInfo { parent: snapshot.parent, disks: disks.collect::<Result<_>>()? })
    }
}
