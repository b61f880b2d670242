//! Verifying what is neither pack nor point: superblock, epoch, packs that nobody knows.
//!
//! In: the folder. Out: damaged places.

use std::collections::BTreeSet;

use super::Verifier;
use crate::store::error::StoreError;
use crate::store::layout::EPOCH;
use crate::store::reconcile::packs_on_disk;
use crate::store::storage::Storage;
use crate::store::superblock::{Superblock, read_epoch};

impl<S: Storage> Verifier<'_, S> {
    pub(super) fn structures(&mut self) -> Result<(), StoreError> {
        let repo = self.reader.repo();
        let storage = &repo.storage;
        for (place, what) in Superblock::faults(storage) {
            self.report.damage(&place, 0, what);
        }
        let epoch = match read_epoch(storage) {
            Ok(epoch) => epoch,
            Err(error) => {
                self.report.damage(&storage.place(EPOCH), 0, error);
                None
            }
        };
        // Packs of the newest epoch may be those that are being written beside us.
        let known: BTreeSet<_> = repo.packs().into_keys().collect();
        let may_be_open = |number: u32| {
            self.reader.is_beside_writer() && epoch.is_none_or(|epoch| number >= epoch)
        };
        for pack in packs_on_disk(storage)? {
            if !known.contains(&pack) && !may_be_open(pack.epoch()) && !repo.has_pack(pack) {
                let what = "not one record in it can be read, nor its footer";
                self.report.damage(&storage.place(&pack.path()), 0, what);
            }
        }
        Ok(())
    }
}
