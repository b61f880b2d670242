//! What looked wrong about the index, looked at once more at the end.
//!
//! In: entries and rows that differed from the packs. Out: how many still do. A collection changes
//! the index before it changes a pack, so beside one a difference may be nothing but a moment's.

use std::collections::BTreeSet;

use gantry_common::ids::BlockId;
use gantry_common::limits;

use super::Verifier;
use crate::store::error::StoreError;
use crate::store::footer::read_footer;
use crate::store::index::{Location, PackRow};
use crate::store::inquiries::Inquiry;
use crate::store::layout::PackNumber;
use crate::store::reader::StoreReader;
use crate::store::storage::{OpenMode, Storage, StorageFile};

/// A difference between the index and a pack.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wrong {
    /// A good record whose id the index does not find here or at another good place.
    Entry { id: BlockId, at: Location },
    /// The numbers of a pack.
    Row { pack: PackNumber },
}

impl<S: Storage> Verifier<'_, S> {
    pub(super) fn note_wrong(&mut self, wrong: Wrong) {
        match self.wrong.len() < limits::INQUIRIES_MAX {
            true => self.wrong.push(wrong),
            false => self.report.index_wrong += 1,
        }
    }

    /// The index knows one place of each id. Where that is damaged, another record of the id may
    /// stand in a pack that was read before.
    pub(super) fn offer_copies(&self) {
        let repo = self.reader.repo();
        if self.unresolved.is_empty() {
            return;
        }
        for pack in repo.packs().into_keys() {
            let file = repo.storage.open(&pack.path(), OpenMode::Read);
            let slots = file.ok().and_then(|file| read_footer(&file, pack).ok());
            for (position, slot) in (0..).zip(slots.iter().flatten()) {
                let is_bad = self.bad.contains(&(pack, slot.offset));
                if !slot.is_gone && !is_bad && self.unresolved.contains(&slot.id) {
                    let at = Location::of(slot, position, pack);
                    repo.inquiries.push(Inquiry::Copy(slot.id, at));
                }
            }
        }
    }

    pub(super) fn recheck(&mut self) -> Result<(), StoreError> {
        for wrong in std::mem::take(&mut self.wrong) {
            let still = match wrong {
                Wrong::Entry { id, at } => self.is_entry_wrong(&id, &at)?,
                Wrong::Row { pack } => self.is_row_wrong(pack),
            };
            self.report.index_wrong += u64::from(still);
        }
        Ok(())
    }

    fn is_entry_wrong(&self, id: &BlockId, at: &Location) -> Result<bool, StoreError> {
        let repo = self.reader.repo();
        let known = repo.find_one(id)?;
        let right = |known: Location| {
            let same = Location { verified: known.verified, damaged: known.damaged, ..*at };
            known == same || !known.is_same_place(at)
        };
        if known.is_some_and(right) || !repo.has_pack(at.pack) {
            return Ok(false);
        }
        let file = repo.storage.open(&at.pack.path(), OpenMode::Read);
        let slots = file.ok().and_then(|file| read_footer(&file, at.pack).ok());
        let slot = slots.as_ref().and_then(|slots| slots.get(at.slot as usize));
        Ok(slot.is_none_or(|slot| !slot.is_gone))
    }

    fn is_row_wrong(&self, pack: PackNumber) -> bool {
        let repo = self.reader.repo();
        let Some(known) = repo.packs().get(&pack).copied() else { return false };
        let row = || {
            let file = repo.storage.open(&pack.path(), OpenMode::Read).ok()?;
            let slots = read_footer(&file, pack).ok()?;
            Some(PackRow::of(&slots, file.len().ok()?))
        };
        row().is_some_and(|row| !known.is_alike(&row))
    }
}

/// Records for which the index names no place, or a wrong one. Reads footers only; not beside a
/// collection.
pub(in crate::store) fn index_differences<S: Storage>(
    reader: &StoreReader<S>,
) -> Result<u64, StoreError> {
    let repo = reader.repo();
    let mut differences = 0;
    for (pack, row) in repo.packs() {
        let file = repo.storage.open(&pack.path(), OpenMode::Read).ok();
        let bytes = file.as_ref().and_then(|file| file.len().ok()).unwrap_or(0);
        let Some(slots) = file.and_then(|file| read_footer(&file, pack).ok()) else { continue };
        differences += u64::from(!row.is_alike(&PackRow::of(&slots, bytes)));
        let ids: Vec<BlockId> = slots.iter().map(|slot| slot.id).collect();
        let places: BTreeSet<(u64, BlockId)> =
            slots.iter().map(|slot| (slot.offset, slot.id)).collect();
        for ((position, slot), known) in (0..).zip(&slots).zip(repo.index.find(&ids)?) {
            let at = Location::of(slot, position, pack);
            let right = |known: Location| match known.pack == pack {
                true if known.is_same_place(&at) => {
                    known == Location { verified: known.verified, damaged: known.damaged, ..at }
                }
                true => places.contains(&(known.offset, slot.id)),
                false => repo.has_pack(known.pack),
            };
            differences += u64::from(!slot.is_gone && !known.is_some_and(right));
        }
    }
    Ok(differences)
}
