//! Parts: what sessions of single disks brought in, until a session commits it or it is given up.
//!
//! In: journals of parts, points. Out: the point that holds a frozen state already; parts given up.
//! Invariant: a part's journal pins what it names until a committing session has taken it over, a
//! point holds it, or it is abandoned; it never becomes a point by itself.

use gantry_common::ids::PointId;
use gantry_common::session::store_port::TaskKey;
use gantry_common::wire::{DiskOffer, SessionOffer};

use super::Store;
use crate::store::error::StoreError;
use crate::store::layout::{JOURNALS, points_dir};
use crate::store::manifest::{DiskRecord, Manifest, list_points};
use crate::store::storage::Storage;

/// How much later a part may have begun than its point, by the clocks of two movers.
const CLOCKS_APART_MS: u64 = 3600 * 1000;

/// Whether a point's disk is this one in this frozen state, cut and read in the same way.
fn is_same_frozen(record: &DiskRecord, disk: &DiskOffer) -> bool {
    record.identity == disk.identity
        && record.snapshot == disk.snapshot
        && record.size_bytes == disk.size_bytes
        && record.block_size == disk.block_size
        && record.read_digest == disk.read_digest
}

impl<S: Storage> Store<S> {
    /// The newest point of the VM that holds exactly these disks in this frozen state. One that
    /// cannot be read does not count.
    ///
    /// # Errors
    /// [`StoreError::Io`] of the folder.
    pub(super) fn point_of_frozen(
        &self,
        offer: &SessionOffer,
    ) -> Result<Option<PointId>, StoreError> {
        self.newest_point(&offer.name, 0, |manifest| {
            manifest.disks.len() == offer.disks.len()
                && offer
                    .disks
                    .iter()
                    .all(|disk| manifest.disks.iter().any(|record| is_same_frozen(record, disk)))
        })
    }

    fn newest_point(
        &self,
        name: &str,
        since_ms: u64,
        fits: impl Fn(&Manifest) -> bool,
    ) -> Result<Option<PointId>, StoreError> {
        let storage = &self.repo.storage;
        let points = list_points(storage, &points_dir(name))?;
        let mut recent =
            points.into_iter().rev().take_while(|point| point.created_ms() >= since_ms);
        let fits = |point: &PointId| {
            let found = Manifest::find(storage, name, *point, self.repo.repository());
            matches!(found, Ok(Some(manifest)) if fits(&manifest))
        };
        Ok(recent.find(fits))
    }

    /// At the opening: journals of parts that a crash left although a point holds their disks.
    pub(super) fn drop_committed_parts(&mut self) -> Result<(), StoreError> {
        let mut left = Vec::new();
        for (key, head) in self.journals.iter().filter(|(_, head)| head.is_part) {
            let Some(disk) = head.disk() else { continue };
            let holds = |manifest: &Manifest| {
                manifest.disks.iter().any(|record| is_same_frozen(record, disk))
            };
            let since_ms = head.offer.created_ms.saturating_sub(CLOCKS_APART_MS);
            if self.newest_point(&head.offer.name, since_ms, holds)?.is_some() {
                left.push(*key);
            }
        }
        left.into_iter().for_each(|key| self.drop_journal(key));
        Ok(())
    }

    /// Gives up what unfinished sessions of a VM brought of this snapshot, of every one if none is
    /// named; those that run keep theirs. Returns how many disks' progress went. What they pinned
    /// goes with the next collection.
    ///
    /// # Errors
    /// [`StoreError::Io`]: the folder of the journals could not be synced.
    pub fn abandon(&mut self, name: &str, snapshot: Option<&str>) -> Result<u64, StoreError> {
        let is_named = |disk: Option<&DiskOffer>| {
            snapshot.is_none_or(|wanted| disk.is_some_and(|disk| disk.snapshot == wanted))
        };
        let is_left = |key: &TaskKey| {
            !self.sessions.get(&key.session).is_some_and(|session| session.is_attached)
        };
        let left: Vec<TaskKey> = self
            .journals
            .iter()
            .filter(|(key, head)| head.offer.name == name && is_named(head.disk()) && is_left(key))
            .map(|(key, _)| *key)
            .collect();
        for key in &left {
            self.drop_journal(*key);
            if let Some(session) = self.sessions.get_mut(&key.session) {
                session.sealed.remove(&key.task);
            }
        }
        self.sessions.retain(|_, session| {
            session.is_attached
                || session.offer.name != name
                || !session.offer.disks.iter().all(|disk| is_named(Some(disk)))
        });
        let storage = &self.repo.storage;
        let synced = storage.sync_dir(JOURNALS);
        synced.map_err(|source| StoreError::io("sync", storage.place(JOURNALS), source))?;
        Ok(left.len() as u64)
    }
}
