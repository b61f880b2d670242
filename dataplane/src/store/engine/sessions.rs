//! Sessions: who may work on which VM, and how a session leaves.
//!
//! In: `OpenSession`, `Detach`. Out: `SessionOpened`, `Detached`. Invariant: one attached session
//! a VM name, or several parts of different disks; a detached one is superseded by the next.

use gantry_common::ids::SessionId;
use gantry_common::session::store_port::{StoreReport, TaskKey};
use gantry_common::wire::{SessionKind, SessionOffer};

use super::{Session, Store};
use crate::store::error::StoreError;
use crate::store::manifest::{Manifest, point_of};
use crate::store::storage::{Storage, WriteQueue};

impl<S: Storage> Store<S> {
    pub(super) fn open_session(
        &mut self,
        session: SessionId,
        offer: SessionOffer,
        kind: SessionKind,
    ) {
        match self.admit(session, offer, kind) {
            Ok(()) => {
                let committed = self
                    .sessions
                    .get(&session)
                    .and_then(|session| session.committed.then_some(session.point));
                self.reports.push_back(StoreReport::SessionOpened { session, committed });
            }
            Err(error) => self.fail_session(session, &error),
        }
    }

    fn admit(
        &mut self,
        session: SessionId,
        offer: SessionOffer,
        kind: SessionKind,
    ) -> Result<(), StoreError> {
        if let Some(open) = self.sessions.get_mut(&session) {
            if open.offer != offer || open.kind != kind {
                return Err(StoreError::Refused(format!(
                    "session {session} comes back with another offer: start a new session"
                )));
            }
            open.is_attached = true;
            return Ok(());
        }
        let excludes = |other: &Session| {
            other.offer.name == offer.name
                && kind.excludes(&offer.disks, other.kind, &other.offer.disks)
        };
        let mut sessions = self.sessions.iter();
        let holder = sessions.find(|(_, other)| other.is_attached && excludes(other));
        if let Some((holder, _)) = holder {
            return Err(StoreError::Refused(format!(
                "a session for '{}' is running ({holder}): wait for it or stop it",
                offer.name
            )));
        }
        self.sessions.retain(|_, other| other.is_attached || !excludes(other));
        let mut point = point_of(offer.created_ms, session);
        // A point that was deleted since was committed all the same: it is not made again.
        let repository = self.repo.repository();
        let made = Manifest::find_even_deleted(&self.repo.storage, &offer.name, point, repository)?;
        let mut committed = made.is_some_and(|manifest| manifest.session == session);
        if kind == SessionKind::Commit
            && !committed
            && let Some(made) = self.point_of_frozen(&offer)?
        {
            (point, committed) = (made, true);
        }
        let sealed = std::collections::BTreeMap::new();
        let open = Session { offer, kind, point, is_attached: true, sealed, committed };
        self.sessions.insert(session, open);
        Ok(())
    }

    pub(super) fn detach(&mut self, session: SessionId) {
        self.release(session);
        self.reports.push_back(StoreReport::Detached { session });
    }

    /// Makes a session's progress durable, closes its files, and answers all that it asked.
    pub(super) fn release(&mut self, session: SessionId) {
        let keys: Vec<TaskKey> =
            self.tasks.keys().filter(|key| key.session == session).copied().collect();
        for &key in &keys {
            self.close_task(key);
        }
        while self.flights.values().any(|flight| flight.key.session == session) {
            let before = self.flights.len();
            self.collect(true);
            let lost = self.queue.in_flight() == 0 && self.flights.len() >= before;
            assert!(!lost, "a queue lost an operation");
        }
        for key in keys {
            // What was not yet in the journal and needs no pack.
            self.with_task(key, |store| store.finish_detach(key));
        }
        self.seal_failed_packs();
        match self.sessions.get_mut(&session) {
            Some(open) if open.committed => drop(self.sessions.remove(&session)),
            Some(open) => open.is_attached = false,
            None => {}
        }
    }

    /// Begins to seal a task's packs, and answers its queries as far as they are known.
    fn close_task(&mut self, key: TaskKey) {
        self.checking.retain(|_, (_, other, _, _)| *other != key);
        let Some(task) = self.tasks.get_mut(&key) else { return };
        while let Some(answer) = task.answers.pop_front() {
            let (batch, known) = (answer.batch, answer.known);
            self.reports.push_back(StoreReport::Answered { key, batch, known });
        }
        task.packs.close();
        self.with_task(key, |store| store.advance(key));
    }

    fn finish_detach(&mut self, key: TaskKey) -> Result<(), StoreError> {
        let Some(task) = self.tasks.get_mut(&key) else { return Ok(()) };
        debug_assert!(task.packs.packs.is_empty());
        let runs = task.write_journal(Vec::new())?;
        self.report_durable(key, &runs);
        self.tasks.remove(&key);
        Ok(())
    }
}
