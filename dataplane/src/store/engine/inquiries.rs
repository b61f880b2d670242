//! Looking into what readers noticed: records that were read wrong, copies that nobody knows of.
//!
//! In: the repository's inquiries. Out: checks, index entries that name good copies. Invariant: an
//! id is pointed only to a record that its pack's footer still lists and that was read and found
//! right here, on the thread on which collections give records up.

use gantry_common::ids::BlockId;

use super::{CHECKS_MAX, Check, Store};
use crate::store::error::StoreError;
use crate::store::footer::read_footer;
use crate::store::index::Location;
use crate::store::inquiries::Inquiry;
use crate::store::record::{RecordDecoder, RecordKind};
use crate::store::storage::{OpenMode, Storage};

/// Inquiries looked into in one go.
const INQUIRIES_AT_ONCE: usize = 16;

impl<S: Storage> Store<S> {
    pub(super) fn look_into_inquiries(&mut self) {
        for _ in 0..INQUIRIES_AT_ONCE {
            if self.checks.len() >= CHECKS_MAX {
                return;
            }
            match self.repo.inquiries.pop() {
                None => return,
                Some(Inquiry::Doubt(id, at)) => {
                    self.next_tag += 1;
                    self.checks.push_back(Check { ticket: self.next_tag, id, at });
                }
                Some(Inquiry::Copy(id, at)) => {
                    if let Err(error) = self.point_to_copy(&id, &at) {
                        tracing::warn!("a second copy of {id} is not used: {error}");
                    }
                }
            }
        }
    }

    fn point_to_copy(&mut self, id: &BlockId, at: &Location) -> Result<(), StoreError> {
        let storage = &self.repo.storage;
        let path = at.pack.path();
        if !self.repo.has_pack(at.pack) {
            return Ok(());
        }
        let file = storage
            .open(&path, OpenMode::Read)
            .map_err(|source| StoreError::io("open", storage.place(&path), source))?;
        let slots = read_footer(&file, at.pack)
            .map_err(|fault| StoreError::Refused(format!("pack {}: {fault}", at.pack)))?;
        let is_listed = slots.get(at.slot as usize).is_some_and(|slot| {
            !slot.is_gone
                && slot.id == *id
                && Location::of(slot, at.slot, at.pack).is_same_place(at)
        });
        if !is_listed {
            return Ok(());
        }
        self.repo.check_record(&mut RecordDecoder::new(self.repo.id_key()), id, at)?;
        // A collection that judges it otherwise keeps it too, and points to it by itself.
        let may_serve = match at.kind {
            RecordKind::Block => self.claim_block(at),
            RecordKind::Node => self.shared_collection().is_none_or(|shared| shared.may_refer(at)),
        };
        if !may_serve {
            return Ok(());
        }
        let copy = Location { verified: true, damaged: false, ..*at };
        let is_live = |pack| self.repo.has_pack(pack);
        let pointed = self.repo.index.point_to_copies(&[(*id, copy)], &is_live)?;
        if pointed.contains(&true) {
            tracing::info!("{id}: pack {} at byte {} serves now", at.pack, at.offset);
        }
        Ok(())
    }
}
