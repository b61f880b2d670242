//! Reading a repository in full: is every byte that a restore would need what was written?
//!
//! In: a reader. Out: what is damaged, by file, pack and offset, and which points, disks and blocks
//! it hits. Packs are read once, from end to end, in large pieces; trees are walked with each
//! shared clean node visited once, as far as [`NODES_REMEMBERED_MAX`] reaches. Where the index is
//! writable, what was found is remembered: damaged records are no longer answered as known.
//! Must not: repair anything.

use std::collections::HashSet;

use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::BlockId;
use gantry_common::limits::NODE_CHILDREN;
use gantry_common::manage::{Hit, LISTED_MAX, VerifyReport};

use super::error::StoreError;
use super::footer::{PackHead, Slot, read_footer};
use super::index::{Finding, Location, Walked};
use super::layout::PackNumber;
use super::manifest::{DiskRecord, Manifest};
use super::map_node::{child_count, node_blocks, tree_height};
use super::pack_scan::{PackBytes, scan_pack};
use super::reader::StoreReader;
use super::record::{RecordDecoder, RecordFault};
use super::storage::{OpenMode, Storage};
use super::superblock::Superblock;

/// Clean nodes that are remembered, 16 bytes each; beyond, shared nodes are walked again.
pub const NODES_REMEMBERED_MAX: usize = 4 << 20;
/// Told now and then: bytes read, bytes there are.
pub type OnProgress<'a> = dyn FnMut(u64, u64) + 'a;

struct Verifier<'a, S: Storage> {
    reader: &'a StoreReader<S>,
    decoder: RecordDecoder,
    report: VerifyReport,
    bad: HashSet<(PackNumber, u64)>,
    clean: HashSet<[u8; 16]>,
}

/// Verifies the whole repository.
///
/// # Errors
/// Only if the folder or the index fails; damage is in the report.
pub fn verify<S: Storage>(
    reader: &StoreReader<S>,
    on_progress: &mut OnProgress<'_>,
) -> Result<VerifyReport, StoreError> {
    let mut verifier = Verifier {
        reader,
        decoder: RecordDecoder::new(reader.id_key()),
        report: VerifyReport::default(),
        bad: HashSet::new(),
        clean: HashSet::new(),
    };
    let storage = &reader.repo().storage;
    if Superblock::read(storage)?.1 {
        verifier.report.damage(&storage.place("superblock"), 0, "a copy is damaged or missing");
    }
    let packs = reader.repo().packs();
    let total: u64 = packs.values().map(|row| row.file_bytes).sum();
    for pack in packs.into_keys() {
        verifier.pack(pack)?;
        on_progress(verifier.report.bytes_read.min(total), total);
    }
    for listed in reader.all_points()?.into_iter().chain(reader.all_deleted_points()?) {
        let place = listed.place();
        for fault in listed.fault.iter().chain(&reader.copy_fault(&listed)) {
            verifier.report.damage(&place, 0, fault);
        }
        match listed.manifest {
            // Its blocks are a collection's to give up; its manifest may be asked for again.
            Ok(_) if listed.is_deleted => {}
            Ok(manifest) => verifier.point(&manifest)?,
            Err(StoreError::Damaged { path, offset, what, .. }) => {
                verifier.report.damage(&path, offset, what);
            }
            // Unreadable for another reason: not clean.
            Err(error) => verifier.report.damage(&place, 0, error),
        }
    }
    let index = &reader.repo().index;
    if index.is_writable() {
        let all = Some(!verifier.report.is_clean());
        let generation = index.damage_generation()?;
        index.keep_walked(&Walked { rows: Vec::new(), all }, generation)?;
    }
    Ok(verifier.report)
}

impl<S: Storage> Verifier<'_, S> {
    fn pack(&mut self, pack: PackNumber) -> Result<(), StoreError> {
        let repo = self.reader.repo();
        let (storage, repository) = (&repo.storage, repo.repository());
        let place = storage.place(&pack.path());
        self.report.packs += 1;
        let file = match storage.open(&pack.path(), OpenMode::ReadUncached) {
            Ok(file) => file,
            Err(error) => {
                self.report.damage(&place, 0, error);
                return Ok(());
            }
        };
        if let Err(fault) = PackHead::read(&file, repository, pack) {
            self.report.damage(&place, 0, fault);
        }
        let fail = |source| StoreError::io("read", place.clone(), source);
        let slots = match read_footer(&file, pack) {
            Ok(slots) => slots,
            Err(fault) => {
                self.report.damage(&place, 0, fault);
                let scan = scan_pack(&file, repository).map_err(fail)?;
                for (offset, fault) in scan.damaged {
                    self.report.damage(&place, offset, fault);
                }
                scan.slots
            }
        };
        let mut bytes = PackBytes::new(&file).map_err(fail)?;
        let mut checked = Vec::with_capacity(slots.len());
        for (position, slot) in (0..).zip(&slots).filter(|(_, slot)| !slot.is_gone) {
            let result =
                bytes.record(slot.offset, repository).and_then(|(head, stored)| {
                    match slot.matches(&head) {
                        true => self.decoder.raw(&head, stored).map(drop),
                        false => Err(RecordFault::Other { wanted: slot.id, found: head.id }),
                    }
                });
            let finding = if result.is_ok() { Finding::Good } else { Finding::Damaged };
            checked.push((slot.id, Location::of(slot, position, pack), finding));
            match result {
                Ok(()) => self.report.records_good += 1,
                Err(fault) => {
                    self.bad.insert((pack, slot.offset));
                    self.report.damage(&place, slot.offset, fault);
                }
            }
        }
        self.report.bytes_read += bytes.bytes_read;
        self.compare_index(pack, &slots)?;
        if repo.index.is_writable() { repo.index.mark(&checked).map(drop) } else { Ok(()) }
    }

    /// An entry that names this pack must name the record's own place in it.
    fn compare_index(&mut self, pack: PackNumber, slots: &[Slot]) -> Result<(), StoreError> {
        let ids: Vec<BlockId> = slots.iter().map(|slot| slot.id).collect();
        let found = self.reader.repo().index.find(&ids)?;
        let same_place = |slot: &Slot, position: u32, at: Location| {
            let wanted = Location::of(slot, position, pack);
            at == Location { verified: at.verified, damaged: at.damaged, ..wanted }
        };
        for ((position, slot), at) in (0..).zip(slots).zip(found) {
            if slot.is_gone {
                continue;
            }
            let right = at.is_some_and(|at| {
                at.pack != pack && self.reader.repo().has_pack(at.pack)
                    || same_place(slot, position, at)
            });
            // The same id twice in one pack (a damaged first record): the index names one of them.
            let is_other_twin = at.is_some_and(|at| {
                at.pack == pack && ids.iter().filter(|id| **id == slot.id).count() > 1
            });
            if !right && !is_other_twin {
                self.report.index_wrong += 1;
            }
        }
        Ok(())
    }

    fn point(&mut self, manifest: &Manifest) -> Result<(), StoreError> {
        self.report.points += 1;
        for disk in &manifest.disks {
            let mut lost = RunSet::new();
            if !disk.root.is_zero() {
                self.tree(disk, &disk.root, tree_height(disk.blocks()) - 1, 0, &mut lost)?;
            }
            if !lost.is_empty() && self.report.hits.len() < LISTED_MAX {
                self.report.hits.push(Hit {
                    name: manifest.name.clone(),
                    point: manifest.point.to_string(),
                    disk: disk.label.clone(),
                    blocks_lost: lost.blocks(),
                    runs: lost.iter().take(LISTED_MAX).collect(),
                });
            }
        }
        Ok(())
    }

    /// Walks a node; adds the blocks that cannot be restored. A clean node is not walked again.
    fn tree(
        &mut self,
        disk: &DiskRecord,
        id: &BlockId,
        level: u8,
        index: u64,
        lost: &mut RunSet,
    ) -> Result<(), StoreError> {
        let mut short = [0; 16];
        short.copy_from_slice(&id.0[..16]);
        if self.clean.contains(&short) {
            return Ok(());
        }
        let before = lost.blocks();
        let first = index * node_blocks(level);
        let whole = Run { first, count: node_blocks(level).min(disk.blocks() - first) };
        let bad = |location: &Option<Location>, bad: &HashSet<_>| {
            location.is_none_or(|at| bad.contains(&(at.pack, at.offset)))
        };
        let own = self.reader.locate(std::slice::from_ref(id))?;
        self.report.nodes += 1;
        let children = match self.reader.repo().node(id, level) {
            Ok(children)
                if !bad(&own[0], &self.bad)
                    && children.len() == child_count(level, index, disk.blocks()) =>
            {
                children
            }
            _ => {
                lost.insert(whole);
                return Ok(());
            }
        };
        if level > 0 {
            for (at, child) in (index * NODE_CHILDREN..).zip(children.iter()) {
                if !child.is_zero() {
                    self.tree(disk, child, level - 1, at, lost)?;
                }
            }
        } else {
            let found = self.reader.locate(&children)?;
            for (at, (child, location)) in (first..).zip(children.iter().zip(&found)) {
                if !child.is_zero() && bad(location, &self.bad) {
                    lost.insert(Run { first: at, count: 1 });
                }
            }
        }
        if lost.blocks() == before && self.clean.len() < NODES_REMEMBERED_MAX {
            self.clean.insert(short);
        }
        Ok(())
    }
}
