//! Verifying points: manifests and trees, and what damage means for their disks.
//!
//! In: what is known to be damaged. Out: hits; after a verification of everything also the rows
//! from which the store answers what of a base is lost. Trees are walked unless a part of the
//! packs was read and no damage is known.

use gantry_common::extents::Run;
use gantry_common::ids::BlockId;
use gantry_common::manage::{Hit, LISTED_MAX};

use super::Verifier;
use crate::store::error::StoreError;
use crate::store::index::{Location, Walked};
use crate::store::lost::{LostBlocks, message_runs};
use crate::store::manifest::Manifest;
use crate::store::map_tree::TreeRoot;
use crate::store::reader::ListedPoint;
use crate::store::storage::{OpenMode, Storage};

impl<S: Storage> Verifier<'_, S> {
    pub(super) fn trees(&mut self) -> Result<(), StoreError> {
        let repo = self.reader.repo();
        let generation = repo.index.damage_generation()?;
        let wanted = self.report.complete || !self.bad.is_empty() || repo.index.is_suspect();
        if !wanted {
            let note = "a part of the packs was read: maps were not walked";
            self.report.notes.push(note.into());
        }
        let bad = std::mem::take(&mut self.bad);
        let is_bad = |at: &Location| bad.contains(&(at.pack, at.offset));
        let mut walk = LostBlocks::new(repo, &is_bad);
        if self.options.checksums_only {
            walk = walk.without_key();
        }
        let mut rows = Vec::new();
        let deleted = self.reader.all_deleted_points()?;
        for listed in self.reader.all_points()?.into_iter().chain(deleted) {
            self.manifest(&listed);
            // A deleted point's blocks are a collection's to give up.
            if let Ok(manifest) = &listed.manifest
                && !listed.is_deleted
                && wanted
                && !self.pace.is_stopped
            {
                self.point(&mut walk, manifest, &listed.place(), &mut rows)?;
                self.pace.read(self.report.bytes_read);
            }
        }
        self.report.nodes = walk.nodes;
        let is_whole = self.report.complete && !self.pace.is_stopped;
        if is_whole && !self.options.checksums_only && repo.index.is_writable() {
            let suspect = !self.unresolved.is_empty() || !self.report.hits.is_empty();
            let all = Some(suspect);
            if !repo.index.keep_walked(&Walked { rows, all }, generation)? {
                let note = "more damage came to light meanwhile: verify again";
                self.report.notes.push(note.into());
            }
        }
        Ok(())
    }

    /// What is wrong with a point's two files, unless they were taken away meanwhile.
    fn manifest(&mut self, listed: &ListedPoint) {
        let place = self.reader.repo().storage.place(&listed.place());
        if let Some(fault) = &listed.fault {
            let what = match fault {
                StoreError::Damaged { what, .. } => what.clone(),
                error => error.to_string(),
            };
            let what = format!("{what}; its copy serves: run repo repair to write it anew");
            self.report.damage(&place, 0, what);
        }
        if let Some(fault) = self.reader.copy_fault(listed) {
            self.report.damage(&place, 0, fault);
        }
        match &listed.manifest {
            Err(_) if !self.is_there(&listed.place()) => {}
            Err(StoreError::Damaged { path, offset, what, .. }) => {
                self.report.damage(path, *offset, what);
            }
            // Unreadable for another reason (a later version's): not clean.
            Err(error) => self.report.damage(&place, 0, error),
            Ok(_) => {}
        }
    }

    fn is_there(&self, path: &str) -> bool {
        match self.reader.repo().storage.open(path, OpenMode::Read) {
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
            Ok(_) => true,
        }
    }

    fn point(
        &mut self,
        walk: &mut LostBlocks<'_, S>,
        manifest: &Manifest,
        path: &str,
        rows: &mut Vec<(BlockId, Vec<Run>)>,
    ) -> Result<(), StoreError> {
        self.report.points += 1;
        let mut hits = Vec::new();
        let before = rows.len();
        hits_of_point(walk, manifest, &mut hits, rows)?;
        if !hits.is_empty() && !self.is_there(path) {
            // Deleted meanwhile, and its blocks collected: nobody misses them.
            rows.truncate(before);
            return Ok(());
        }
        let room = LISTED_MAX.saturating_sub(self.report.hits.len());
        self.report.hits.extend(hits.into_iter().take(room));
        Ok(())
    }
}

/// What is lost of a point's disks: hits, and a row for each tree.
pub(in crate::store) fn hits_of_point<S: Storage>(
    walk: &mut LostBlocks<'_, S>,
    manifest: &Manifest,
    hits: &mut Vec<Hit>,
    rows: &mut Vec<(BlockId, Vec<Run>)>,
) -> Result<(), StoreError> {
    for disk in &manifest.disks {
        let lost = walk.of_tree(&TreeRoot { root: disk.root, blocks: disk.blocks() })?;
        if !lost.is_empty() && hits.len() < LISTED_MAX {
            hits.push(Hit {
                name: manifest.name.clone(),
                point: manifest.point.to_string(),
                disk: disk.label.clone(),
                blocks_lost: lost.blocks(),
                runs: lost.iter().take(LISTED_MAX).collect(),
            });
        }
        rows.push((disk.root, message_runs(lost)));
    }
    Ok(())
}
