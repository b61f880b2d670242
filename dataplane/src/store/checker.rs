//! Verifying one record: whether it is what its id says. Off the store's thread.
//!
//! In: [`Check`]s. Out: good or damaged, or nothing where the disk would not say: an I/O error of
//! a moment is not held against a record, a name that is gone is.

use std::sync::Arc;

use super::engine::Check;
use super::error::StoreError;
use super::index::Finding;
use super::record::RecordDecoder;
use super::repo::Repo;
use super::storage::Storage;

/// Reads, decodes and compares; one a thread.
#[derive(Debug)]
pub struct Checker<S: Storage> {
    repo: Arc<Repo<S>>,
    decoder: RecordDecoder,
}

impl<S: Storage> Checker<S> {
    /// For this repository.
    pub fn new(repo: Arc<Repo<S>>) -> Checker<S> {
        let decoder = RecordDecoder::new(repo.id_key());
        Checker { repo, decoder }
    }

    /// What the record is.
    pub fn check(&mut self, check: &Check) -> Option<Finding> {
        let error = match self.repo.check_record(&mut self.decoder, &check.id, &check.at) {
            Ok(_) => return Some(Finding::Good),
            Err(error) => error,
        };
        tracing::warn!("{error}");
        match error {
            StoreError::Damaged { .. } => Some(Finding::Damaged),
            StoreError::Io { source, .. }
                if source.kind() == std::io::ErrorKind::NotFound
                    && self.repo.has_pack(check.at.pack) =>
            {
                Some(Finding::Damaged)
            }
            _ => None,
        }
    }
}
