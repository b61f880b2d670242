//! What keeps new references away from what a collection may give up.
//!
//! In: places that the store is about to refer to, journals that it is about to drop, trees that
//! become roots. Out: yes or no. While marking, a block that is referred to becomes live in the same
//! step; while giving back, what is not marked is not there. A map node is never made live by
//! itself: it is live only together with what is below it, so an unmarked one is written anew.
//! Each of these is called on the store's thread, between two steps of giving back.

use std::sync::Arc;

use gantry_common::ids::{BlockId, PointId};
use gantry_common::session::store_port::TaskKey;

use super::super::Store;
use super::roots::Root;
use super::{Collection, Shared, Stage, locked};
use crate::store::error::StoreError;
use crate::store::index::Location;
use crate::store::storage::Storage;

impl<S: Storage> Shared<S> {
    /// Whether the store may let something new refer to this place as it is: it is marked, or
    /// exempt. What is not marked is taken as not there, and written anew.
    pub(in crate::store::engine) fn may_refer(&self, at: &Location) -> bool {
        if self.dry_run {
            return true;
        }
        match locked(&self.live).is_live(at.pack, at.slot) {
            Ok(live) => live.unwrap_or(true),
            Err(fault) => {
                self.fail(self.fault(fault));
                false
            }
        }
    }
}

impl<S: Storage> Collection<S> {
    /// What a writer of new nodes and packs asks about places.
    pub(in crate::store::engine) fn shared(&self) -> Arc<Shared<S>> {
        Arc::clone(&self.shared)
    }
}

impl<S: Storage> Store<S> {
    /// Whether a superseded journal must stay for now; it is then removed when marking ends.
    pub(in crate::store::engine) fn keeps_journal(&mut self, key: TaskKey) -> bool {
        match &mut self.collection {
            Some(Collection { stage: Stage::Marking, dropped, .. }) => {
                dropped.insert(key);
                true
            }
            _ => false,
        }
    }

    /// Lets something new refer to a record that the index names. While marking, that makes it
    /// live; while giving back, only what is live may be referred to. Not for map nodes: a node is
    /// live only together with what is below it.
    pub(in crate::store::engine) fn claim_block(&self, at: &Location) -> bool {
        let Some(collection) = &self.collection else { return true };
        if !matches!(collection.stage, Stage::Marking) {
            return collection.shared.may_refer(at);
        }
        match collection.shared.set_live(at) {
            Ok(_) => true,
            Err(error) => {
                collection.shared.fail(error);
                false
            }
        }
    }

    /// What a writer of new nodes and packs asks about places.
    pub(in crate::store::engine) fn shared_collection(&self) -> Option<Arc<Shared<S>>> {
        self.collection.as_ref().map(Collection::shared)
    }

    /// A tree is a root from now on: of a task's base, of a point that came back.
    pub(in crate::store::engine) fn add_root(&self, id: BlockId, blocks: u64, of: &str) {
        if let Some(collection) = &self.collection
            && matches!(collection.stage, Stage::Marking)
            && !id.is_zero()
        {
            locked(&collection.shared.grey).push_back(Root { id, blocks, of: of.to_owned() });
        }
    }

    /// A task's tree is sealed: if it was built before the collection began, nothing has looked at
    /// what it refers to.
    pub(in crate::store::engine) fn add_built_root(
        &mut self,
        key: TaskKey,
        id: BlockId,
        blocks: u64,
    ) {
        let Some(collection) = &mut self.collection else { return };
        if collection.built.remove(&key) {
            self.add_root(id, blocks, &format!("session {}, disk {}", key.session, key.task));
        }
    }

    /// Whether a deleted point may come back: not once its blocks are being given up.
    pub(in crate::store::engine) fn may_undelete(
        &self,
        dir: &str,
        point: PointId,
    ) -> Result<(), StoreError> {
        let Some(collection) = &self.collection else { return Ok(()) };
        let Stage::Purging(dirs) = &collection.stage else { return Ok(()) };
        match dirs.iter().any(|purged| purged.holds(dir, point)) && !collection.options.dry_run {
            true => Err(StoreError::Refused(format!(
                "restore point {point} cannot come back: a collection is giving its blocks back"
            ))),
            false => Ok(()),
        }
    }
}
