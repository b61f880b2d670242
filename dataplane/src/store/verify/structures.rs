//! Verifying what is neither pack nor point: superblock, epoch, journals, packs that nobody knows.
//!
//! In: the folder. Out: damaged places.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Verifier;
use crate::store::error::StoreError;
use crate::store::journal::JournalReader;
use crate::store::layout::{EPOCH, JOURNALS};
use crate::store::reconcile::packs_on_disk;
use crate::store::storage::{OpenMode, Storage, StorageFile};
use crate::store::superblock::{Superblock, read_epoch};

/// An append that was seen half is whole after this.
const APPEND_PAUSE: Duration = Duration::from_millis(20);

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
        self.journals()
    }

    /// Journals: a damaged one costs an unfinished backup some of its progress.
    fn journals(&mut self) -> Result<(), StoreError> {
        let storage = &self.reader.repo().storage;
        let entries = storage.list(JOURNALS);
        let entries =
            entries.map_err(|source| StoreError::io("list", storage.place(JOURNALS), source))?;
        for entry in entries.iter().filter(|entry| entry.name.ends_with(".journal")) {
            let path = format!("{JOURNALS}/{}", entry.name);
            let place = storage.place(&path);
            let reader = match JournalReader::open(storage, &path, OpenMode::Read) {
                Ok(Some(reader)) => reader,
                Ok(None) => {
                    self.report.damage(&place, 0, "no journal's head; its backup begins anew");
                    continue;
                }
                // It has gone meanwhile.
                Err(StoreError::Io { .. }) => continue,
                Err(error) => {
                    self.report.damage(&place, 0, error);
                    continue;
                }
            };
            if let Some(offset) = fault_in(reader)? {
                let what = "a damaged entry; what it and later ones say is sent again";
                self.report.damage(&place, offset, what);
            }
        }
        Ok(())
    }
}

fn fault_in<F: StorageFile>(mut reader: JournalReader<F>) -> Result<Option<u64>, StoreError> {
    while reader.next_entry()?.is_some() {}
    match reader.hidden_fault()? {
        None => Ok(None),
        // Perhaps it was read while it was written.
        Some(_) => {
            std::thread::sleep(APPEND_PAUSE);
            while reader.next_entry()?.is_some() {}
            reader.hidden_fault()
        }
    }
}
