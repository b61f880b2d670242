//! Marking: walks every tree that must stay, each shared node once, and sets the bits of all that
//! is in it.
//!
//! In: roots. Out: bits. One path of a tree is in memory, of 1024 children a level, and
//! [`limits::COLLECT_GATHERED_IDS_MAX`] ids of blocks. Runs on any thread beside the store. Invariant: a node's bit is set when its children are queued, and
//! marking is done only when nothing is queued. Must not: leave anything out; what cannot be read
//! ends the collection.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use gantry_common::ids::{BlockId, PointId};
use gantry_common::limits;
use gantry_common::manage::CollectReport;

use super::roots::{Root, RootSource, open_journal};
use super::{Shared, locked};
use crate::store::error::StoreError;
use crate::store::index::Location;
use crate::store::journal::{Entry, JournalReader};
use crate::store::map_node::tree_height;
use crate::store::record::{RecordDecoder, RecordKind};
use crate::store::repo::Repo;
use crate::store::storage::Storage;

/// A node whose children are walked.
#[derive(Debug)]
struct Frame {
    /// Its children that are stored, with their places.
    children: std::vec::IntoIter<(BlockId, Option<Location>)>,
    /// The children's level.
    level: u8,
}

/// A collection's marking; see the module's text.
#[derive(Debug)]
pub struct Marker<S: Storage> {
    repo: Arc<Repo<S>>,
    shared: Arc<Shared<S>>,
    roots: VecDeque<RootSource>,
    roots_done: u64,
    roots_total: u64,
    journal: Option<(JournalReader<S::File>, u64)>,
    path: Vec<Frame>,
    /// Blocks of leaves, to be looked up together; sorted, and marked from the end, once there are
    /// enough.
    gathered: Vec<BlockId>,
    gathered_max: usize,
    is_gathering: bool,
    /// Whose tree is walked, for messages.
    of: String,
    /// Nodes in packs that are not judged, which have no bit.
    new_nodes: HashSet<[u8; 16]>,
    decoder: RecordDecoder,
    points: u64,
    unfinished: u64,
    nodes: u64,
    /// Blocks that are in no pack, or damaged.
    lost: u64,
    /// Journals name blocks that are in no pack.
    has_unfound: bool,
}

impl<S: Storage> Marker<S> {
    pub(super) fn new(
        repo: Arc<Repo<S>>,
        shared: Arc<Shared<S>>,
        roots: VecDeque<RootSource>,
    ) -> Marker<S> {
        Marker {
            decoder: RecordDecoder::new(repo.id_key()),
            repo,
            shared,
            roots_done: 0,
            roots_total: roots.len() as u64,
            roots,
            journal: None,
            path: Vec::new(),
            gathered: Vec::new(),
            gathered_max: limits::COLLECT_GATHERED_IDS_MAX,
            is_gathering: true,
            of: String::new(),
            new_nodes: HashSet::new(),
            points: 0,
            unfinished: 0,
            nodes: 0,
            lost: 0,
            has_unfound: false,
        }
    }

    /// Looks blocks up in batches of about this many.
    #[cfg(test)]
    pub(in crate::store::engine) fn gather_at_most(mut self, ids: usize) -> Marker<S> {
        self.gathered_max = ids;
        self
    }

    pub(super) fn is_of(&self, shared: &Arc<Shared<S>>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    pub(super) fn is_done(&self) -> bool {
        let is_idle = self.path.is_empty() && self.gathered.is_empty();
        is_idle && self.journal.is_none() && self.roots.is_empty()
    }

    pub(super) fn has_lost(&self) -> bool {
        self.lost > 0 || self.has_unfound
    }

    pub(super) fn report_to(&self, report: &mut CollectReport) {
        report.points_live = self.points;
        report.unfinished = self.unfinished;
        report.nodes_visited = self.nodes;
        if self.lost > 0 {
            report.notes.push(format!(
                "{} blocks that are needed are in no pack or damaged: run repo verify",
                self.lost
            ));
        }
    }

    /// How far it is: points and journals done, and there are.
    pub fn progress(&self) -> (u64, u64) {
        (self.roots_done, self.roots_total)
    }

    /// A bounded piece of marking: one node, or one entry of a journal. True when nothing is left
    /// that is known of.
    ///
    /// # Errors
    /// Anything that cannot be read: the collection must then end ([`super::super::Store::fail_collection`]).
    pub fn step(&mut self) -> Result<bool, StoreError> {
        if self.shared.is_stopped() {
            let fault = locked(&self.shared.fault).take();
            let text = "the collection was stopped before it gave anything back";
            return Err(fault.unwrap_or_else(|| StoreError::Refused(text.to_owned())));
        }
        if !self.is_gathering {
            return self.mark_gathered().map(|()| false);
        }
        if let Some(frame) = self.path.last_mut() {
            let level = frame.level;
            match frame.children.next() {
                Some((id, at)) => self.visit(&id, level, at)?,
                None => drop(self.path.pop()),
            }
            return Ok(false);
        }
        if self.journal.is_some() {
            return self.journal_entry().map(|()| false);
        }
        if let Some(source) = self.roots.pop_front() {
            self.roots_done += 1;
            return self.begin_root(source).map(|()| false);
        }
        let grey = locked(&self.shared.grey).pop_front();
        match grey {
            Some(root) => self.tree(&root).map(|()| false),
            None if self.gathered.is_empty() => Ok(true),
            None => {
                self.begin_marking_gathered();
                Ok(false)
            }
        }
    }

    fn begin_root(&mut self, source: RootSource) -> Result<(), StoreError> {
        match source {
            RootSource::Point { dir, point } => {
                if !self.point(&dir, point)? {
                    return Err(StoreError::Refused(format!(
                        "nothing is given back: restore point {point} in {} has vanished while \
                         its blocks were marked; collect again",
                        self.repo.storage.place(&dir)
                    )));
                }
            }
            // A reader that came too late holds a pin of a point that is gone.
            RootSource::ReadPoint { dir, point } => drop(self.point(&dir, point)?),
            RootSource::Journal { path, whole_to } => {
                let reader = open_journal(&self.repo.storage, &path)?;
                self.unfinished += 1;
                let head = &reader.head;
                if let (Some(base), Some(disk)) = (&head.base, head.disk()) {
                    let blocks = disk.block_size.block_count(base.size_bytes);
                    let of = format!("the base of session {}, disk {}", head.session, head.task);
                    let root = Root { id: base.root, blocks, of };
                    self.roots.push_front(RootSource::Tree(root));
                    self.roots_total += 1;
                }
                self.journal = Some((reader, whole_to));
            }
            RootSource::Tree(root) => self.tree(&root)?,
            // Some of them may be unknown: they were only asked for.
            RootSource::Blocks(ids) => drop(self.blocks(&ids)?),
        }
        Ok(())
    }

    /// Queues the trees of a point; false if it is nowhere.
    fn point(&mut self, dir: &str, point: PointId) -> Result<bool, StoreError> {
        let (storage, repository) = (&self.repo.storage, self.repo.repository());
        let manifest = RootSource::manifest(storage, dir, point, repository)?;
        let Some(manifest) = manifest else { return Ok(false) };
        self.points += 1;
        for disk in &manifest.disks {
            let of = format!("{} of '{}', point {point}", disk.label, manifest.name);
            let root = Root { id: disk.root, blocks: disk.blocks(), of };
            self.roots.push_front(RootSource::Tree(root));
            self.roots_total += 1;
        }
        Ok(true)
    }

    fn journal_entry(&mut self) -> Result<(), StoreError> {
        let Some((reader, whole_to)) = &mut self.journal else { return Ok(()) };
        match reader.next_entry()? {
            Some(Entry::Stored(blocks) | Entry::Known(blocks)) => {
                let ids: Vec<BlockId> = blocks.iter().map(|(_, id)| *id).collect();
                for ids in ids.chunks(limits::NODE_CHILDREN as usize) {
                    // In a pack that a failed task has not sealed yet, or lost: nobody takes it
                    // over then, but it might be what a record without an entry is.
                    self.has_unfound |= self.blocks(ids)? > 0;
                }
                Ok(())
            }
            Some(Entry::Sealed(sealed)) => {
                let head = &reader.head;
                let Some(disk) = head.disk() else { return Ok(()) };
                let blocks = disk.block_size.block_count(disk.size_bytes);
                let of = format!("session {}, disk {}", head.session, head.task);
                // Without its root, nobody takes the seal as one.
                if sealed.root.is_zero() || self.repo.find_one(&sealed.root)?.is_some() {
                    let root = Root { id: sealed.root, blocks, of };
                    self.roots.push_front(RootSource::Tree(root));
                    self.roots_total += 1;
                }
                Ok(())
            }
            Some(Entry::Marks(_) | Entry::Part) => Ok(()),
            None if reader.position() < *whole_to => {
                let what = "an entry of a running backup does not match its checksum";
                let remedy = "let that backup end, and run the collection again";
                let offset = reader.position();
                Err(StoreError::damaged(reader.place(), offset, what, remedy))
            }
            None => {
                self.journal = None;
                Ok(())
            }
        }
    }

    fn tree(&mut self, root: &Root) -> Result<(), StoreError> {
        if root.id.is_zero() {
            return Ok(());
        }
        self.of.clone_from(&root.of);
        let at = self.repo.index.find(std::slice::from_ref(&root.id))?.pop().flatten();
        self.visit(&root.id, tree_height(root.blocks) - 1, at)
    }

    /// Makes a node live and queues its children, unless that was done.
    fn visit(&mut self, id: &BlockId, level: u8, at: Option<Location>) -> Result<(), StoreError> {
        let at = match at {
            Some(at) if at.kind == RecordKind::Node && self.repo.has_pack(at.pack) => at,
            _ => return self.lost_node(id, "it is in no pack"),
        };
        match self.shared.set_live(&at)? {
            Some(true) => return Ok(()),
            Some(false) => {}
            None => {
                let mut short = [0; 16];
                short.copy_from_slice(&id.0[..16]);
                if self.new_nodes.contains(&short) {
                    return Ok(());
                }
                if self.new_nodes.len() < limits::COLLECT_NEW_NODES_MAX {
                    self.new_nodes.insert(short);
                }
            }
        }
        self.nodes += 1;
        let children = match self.repo.node_at(&mut self.decoder, id, &at, level) {
            Ok(children) => children,
            Err(error @ StoreError::Damaged { .. }) => {
                return self.lost_node(id, &error.to_string());
            }
            Err(error) => return Err(error),
        };
        if level == 0 {
            self.gathered.extend(children.iter().filter(|id| !id.is_zero()));
            if self.gathered.len() >= self.gathered_max {
                self.begin_marking_gathered();
            }
            return Ok(());
        }
        let ids: Vec<BlockId> = children.into_iter().filter(|id| !id.is_zero()).collect();
        let places = self.repo.index.find(&ids)?;
        let children: Vec<_> = ids.into_iter().zip(places).collect();
        self.path.push(Frame { children: children.into_iter(), level: level - 1 });
        Ok(())
    }

    /// A node that is needed and cannot be read: what is below it is not known.
    fn lost_node(&mut self, id: &BlockId, what: &str) -> Result<(), StoreError> {
        if self.repo.index.given_up(id)? {
            self.lost += 1;
            return Ok(());
        }
        Err(StoreError::Refused(format!(
            "nothing is given back: map node {id} of {} cannot be read ({what}), so it is not \
             known which blocks it needs; run repo repair, then collect again",
            self.of
        )))
    }

    fn begin_marking_gathered(&mut self) {
        self.gathered.sort_unstable();
        self.gathered.dedup();
        self.is_gathering = false;
    }

    /// Marks a piece of what was gathered.
    fn mark_gathered(&mut self) -> Result<(), StoreError> {
        let from = self.gathered.len().saturating_sub(limits::NODE_CHILDREN as usize);
        let ids = self.gathered.split_off(from);
        self.lost += self.blocks(&ids)?;
        self.is_gathering = self.gathered.is_empty();
        Ok(())
    }

    /// Makes blocks live; how many of them are in no pack, or damaged.
    fn blocks(&mut self, ids: &[BlockId]) -> Result<u64, StoreError> {
        let mut ids: Vec<BlockId> = ids.iter().filter(|id| !id.is_zero()).copied().collect();
        // Neighbours in the index are looked up one after the other.
        ids.sort_unstable();
        let places = self.repo.index.find(&ids)?;
        let mut lost = 0;
        let mut live = locked(&self.shared.live);
        for at in places {
            let Some(at) = at.filter(|at| self.repo.has_pack(at.pack)) else {
                lost += 1;
                continue;
            };
            lost += u64::from(at.damaged);
            live.set_live(at.pack, at.slot).map_err(|fault| self.shared.fault(fault))?;
        }
        Ok(lost)
    }
}
