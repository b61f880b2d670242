//! Tasks and sessions that cannot go on, and what becomes of their packs.
//!
//! In: errors. Out: `Failed`. Invariant: a pack in which a block was acknowledged stays, and serves
//! again with what was durable; any other goes at once.

use gantry_common::failure::Failure;
use gantry_common::ids::SessionId;
use gantry_common::limits;
use gantry_common::session::store_port::{StoreReport, TaskKey};

use super::Store;
use crate::store::error::StoreError;
use crate::store::storage::Storage;

impl<S: Storage> Store<S> {
    /// A task cannot go on: its packs are kept (if anything in them was acknowledged) to be sealed
    /// when the session leaves, or removed.
    pub(super) fn fail(&mut self, key: TaskKey, error: &StoreError) {
        tracing::error!("session {} disk {}: {error}", key.session, key.task);
        if let Some(task) = self.tasks.remove(&key) {
            for pack in task.packs.packs {
                match pack.is_acknowledged() {
                    true => self.failed_packs.push((key, pack)),
                    false => drop(self.repo.storage.remove(&pack.number.path())),
                }
            }
        }
        self.checking.retain(|_, (_, other, _, _)| *other != key);
        self.reports.push_back(StoreReport::Failed {
            session: key.session,
            task: Some(key.task),
            failure: Failure::from(error),
        });
    }

    pub(super) fn fail_session(&mut self, session: SessionId, error: &StoreError) {
        tracing::error!("session {session}: {error}");
        let failure = Failure::from(error);
        self.reports.push_back(StoreReport::Failed { session, task: None, failure });
    }

    /// Lets what was acknowledged in packs of failed tasks serve again: a resume then has it. A pack
    /// that cannot be sealed is tried again when a task is opened; the next opening of the
    /// repository would read it from the disk.
    pub(super) fn seal_failed_packs(&mut self) {
        for (key, pack) in std::mem::take(&mut self.failed_packs) {
            if self.flights.values().any(|flight| flight.key == key) {
                self.failed_packs.push((key, pack));
                continue;
            }
            let sealed = pack
                .rescue()
                .and_then(|(slots, bytes)| self.take_sealed(key, pack.number, &slots, bytes));
            if let Err(error) = sealed {
                tracing::warn!("{error}; what is durable in it serves later");
                if self.failed_packs.len() < limits::FAILED_PACKS_MAX {
                    self.failed_packs.push((key, pack));
                }
            }
        }
    }
}
