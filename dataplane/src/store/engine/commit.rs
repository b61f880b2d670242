//! Committing a point: the manifest, once every disk of the session is sealed.
//!
//! In: sealed disks. Out: `Committed`, and no journal left. Invariant: idempotent; the same
//! session always makes the same point. A crash after the last seal is made good at the opening.

use std::collections::BTreeMap;

use gantry_common::ids::{PointId, SessionId};
use gantry_common::manage::{PointFlags, Retention};
use gantry_common::session::store_port::{StoreReport, TaskKey};
use gantry_common::wire::{SessionKind, SessionOffer, TaskNumber};

use super::Store;
use crate::store::error::StoreError;
use crate::store::journal::{BaseRoot, Entry, JournalReader, SealedDisk};
use crate::store::layout::{JOURNALS, journal_path};
use crate::store::manifest::{DiskRecord, Manifest, point_of};
use crate::store::repo::Repo;
use crate::store::storage::{OpenMode, Storage};

type SealedDisks = BTreeMap<TaskNumber, (SealedDisk, Option<BaseRoot>)>;

impl<S: Storage> Store<S> {
    /// Commits the session's point if every disk is sealed.
    pub(super) fn commit_if_complete(&mut self, session: SessionId) {
        let Some(open) = self.sessions.get_mut(&session) else { return };
        if open.kind == SessionKind::Part || open.sealed.len() < open.offer.disks.len() {
            return;
        }
        let point = open.point;
        let mut deleted = Vec::new();
        if !open.committed {
            let (name, retention) = (open.offer.name.clone(), open.offer.retention);
            let created_ms = open.offer.created_ms;
            let manifest =
                manifest_of(&self.repo, self.numbers.epoch, session, &open.offer, &open.sealed);
            if let Err(error) = self.commit_with_flags(manifest, retention.as_ref()) {
                return self.fail_session(session, &error);
            }
            if let Some(open) = self.sessions.get_mut(&session) {
                open.committed = true;
            }
            tracing::info!("restore point {point} of '{name}' is committed");
            self.drop_journals(&name, created_ms);
            deleted = self.apply_retention(&name, point, retention.as_ref());
        }
        self.reports.push_back(StoreReport::Committed { session, point, deleted });
    }

    fn commit_with_flags(
        &self,
        mut manifest: Manifest,
        retention: Option<&Retention>,
    ) -> Result<(), StoreError> {
        manifest.flags = self.flags_for(&manifest.name, manifest.point, retention)?;
        manifest.commit(&self.repo.storage)
    }

    /// The point stands whatever becomes of older ones: a failure is only logged, and the next
    /// session's retention makes it good.
    fn apply_retention(
        &mut self,
        name: &str,
        point: PointId,
        retention: Option<&Retention>,
    ) -> Vec<PointId> {
        let Some(retention) = retention else { return Vec::new() };
        self.retire(name, point, retention).unwrap_or_else(|error| {
            tracing::warn!("retention of '{name}' was not applied: {error}");
            Vec::new()
        })
    }

    /// Removes the journals of a name's sessions up to this one: its point stands, or a newer one
    /// does. Progress towards a newer point stays. Failing to is harmless while the point's
    /// name is there: the next opening tries again, and a collection before it purges any.
    fn drop_journals(&mut self, name: &str, created_ms: u64) {
        let keys: Vec<TaskKey> = self
            .journals
            .iter()
            .filter(|(_, head)| head.offer.name == name && head.offer.created_ms <= created_ms)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.drop_journal(key);
        }
        if let Err(error) = self.repo.storage.sync_dir(JOURNALS) {
            tracing::warn!("cannot sync {}: {error}", self.repo.storage.place(JOURNALS));
        }
    }

    pub(super) fn drop_journal(&mut self, key: TaskKey) {
        self.journals.remove(&key);
        if self.keeps_journal(key) {
            return;
        }
        let path = journal_path(key.session, key.task);
        if let Err(error) = self.repo.storage.remove(&path) {
            tracing::warn!("cannot remove {}: {error}", self.repo.storage.place(&path));
            self.undropped.insert(key);
        }
    }

    /// Commits sessions whose disks were all sealed when the last process ended, and removes the
    /// journals of those that had committed.
    pub(super) fn commit_sealed_sessions(&mut self) -> Result<(), StoreError> {
        self.drop_committed_parts()?;
        let mut sessions: BTreeMap<SessionId, Vec<TaskKey>> = BTreeMap::new();
        for (key, _) in self.journals.iter().filter(|(_, head)| !head.is_part) {
            sessions.entry(key.session).or_default().push(*key);
        }
        for (session, keys) in sessions {
            let Some(head) = keys.first().and_then(|key| self.journals.get(key)) else { continue };
            let (name, disks) = (head.offer.name.clone(), head.offer.disks.len());
            let created_ms = head.offer.created_ms;
            let point = point_of(created_ms, session);
            let repository = self.repo.repository();
            // A deleted point was committed too, and must not come back by itself.
            let found = Manifest::find_even_deleted(&self.repo.storage, &name, point, repository);
            let is_committed = found.is_ok_and(|manifest| manifest.is_some());
            if is_committed {
                keys.iter().for_each(|key| self.drop_journal(*key));
                continue;
            }
            if keys.len() < disks {
                continue;
            }
            let mut sealed = SealedDisks::new();
            let mut offer = None;
            for key in &keys {
                let path = journal_path(key.session, key.task);
                let reader = JournalReader::open(&self.repo.storage, &path, OpenMode::Read)?;
                let Some(mut reader) = reader else { continue };
                while let Some(entry) = reader.next_entry()? {
                    if let Entry::Sealed(disk) = entry {
                        sealed.insert(key.task, (disk, reader.head.base.clone()));
                    }
                }
                offer = Some(reader.head.offer);
            }
            let Some(offer) = offer.filter(|_| sealed.len() == disks) else { continue };
            let all_there = sealed.values().try_fold(true, |all, (disk, _)| {
                let there = disk.root.is_zero() || self.repo.find_one(&disk.root)?.is_some();
                Ok::<_, StoreError>(all && there)
            })?;
            if all_there {
                let manifest =
                    manifest_of(&self.repo, self.numbers.epoch, session, &offer, &sealed);
                self.commit_with_flags(manifest, offer.retention.as_ref())?;
                self.notes
                    .push(format!("restore point {point} of '{name}' was complete: committed"));
                self.drop_journals(&name, created_ms);
            }
        }
        Ok(())
    }
}

fn manifest_of<S: Storage>(
    repo: &Repo<S>,
    epoch: u32,
    session: SessionId,
    offer: &SessionOffer,
    sealed: &SealedDisks,
) -> Manifest {
    let disk = |(number, (sealed, base)): (&TaskNumber, &(SealedDisk, Option<BaseRoot>))| {
        let disk = &offer.disks[usize::from(*number)];
        DiskRecord {
            identity: disk.identity.clone(),
            label: disk.label.clone(),
            size_bytes: disk.size_bytes,
            block_size: disk.block_size,
            root: sealed.root,
            change_id: disk.change_id.clone(),
            snapshot: disk.snapshot.clone(),
            read_digest: disk.read_digest,
            mask: sealed.mask.clone(),
            totals: sealed.totals,
            base: base.as_ref().map(|base| base.point),
            bytes_stored: sealed.bytes_stored,
        }
    };
    Manifest {
        repository: repo.repository(),
        point: point_of(offer.created_ms, session),
        name: offer.name.clone(),
        session,
        created_ms: offer.created_ms,
        parent: sealed.values().filter_map(|(_, base)| base.as_ref().map(|base| base.point)).max(),
        epoch,
        compression: offer.compression,
        disks: sealed.iter().map(disk).collect(),
        vm_config: offer.vm_config.clone(),
        flags: PointFlags::default(),
        extensions: Vec::new(),
    }
}
