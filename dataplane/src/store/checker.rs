//! Verifying one record: whether it is what its id says. Off the store's thread.
//!
//! In: [`Check`]s. Out: good or not. A record that cannot be read is not good.

use std::sync::Arc;

use super::engine::Check;
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

    /// Whether the record is good.
    pub fn check(&mut self, check: &Check) -> bool {
        match self.repo.check_record(&mut self.decoder, &check.id, &check.at) {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!("{error}");
                false
            }
        }
    }
}
