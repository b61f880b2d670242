//! How many snapshots are open on a datastore at a time: each grows there while its backup runs.
//!
//! In: the datastores that a machine's disks are on. Out: a [`SnapshotSlot`] that counts until it is
//! dropped, or nothing: the task waits in the scheduler's queue. Pure counting; waits for nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::vcenter::MoRef;

/// Counts open snapshots by datastore; clones share the count.
#[derive(Debug, Clone)]
pub struct SnapshotLimit {
    max: usize,
    open: Arc<Mutex<BTreeMap<MoRef, usize>>>,
}

/// One machine's snapshot, counted on each of its datastores until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it frees the place"]
pub struct SnapshotSlot {
    limit: SnapshotLimit,
    datastores: Vec<MoRef>,
}

impl SnapshotLimit {
    /// At most `max` (at least one) on each datastore.
    pub fn new(max: usize) -> SnapshotLimit {
        SnapshotLimit { max: max.max(1), open: Arc::default() }
    }

    /// Takes a place on all of these datastores, or on none.
    pub fn try_take(&self, datastores: &[MoRef]) -> Option<SnapshotSlot> {
        let mut datastores = datastores.to_vec();
        datastores.sort();
        datastores.dedup();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if datastores.iter().any(|one| open.get(one).copied().unwrap_or(0) >= self.max) {
            return None;
        }
        for one in &datastores {
            *open.entry(one.clone()).or_insert(0) += 1;
        }
        drop(open);
        Some(SnapshotSlot { limit: self.clone(), datastores })
    }

    /// Snapshots open on a datastore.
    pub fn open_on(&self, datastore: &MoRef) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(datastore).copied().unwrap_or(0)
    }
}

impl Drop for SnapshotSlot {
    fn drop(&mut self) {
        let mut open = self.limit.open.lock().unwrap_or_else(PoisonError::into_inner);
        for one in &self.datastores {
            if let Some(count) = open.get_mut(one) {
                *count -= 1;
                if *count == 0 {
                    open.remove(one);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SnapshotLimit;
    use crate::vcenter::MoRef;

    #[test]
    fn places_are_taken_on_all_datastores_or_none() {
        let [a, b] = ["a", "b"].map(|name| MoRef::new("Datastore", name));
        let limit = SnapshotLimit::new(2);
        let both = limit.try_take(&[a.clone(), b.clone(), a.clone()]).expect("a place");
        let one = limit.try_take(std::slice::from_ref(&a)).expect("a place");
        assert_eq!((limit.open_on(&a), limit.open_on(&b)), (2, 1), "each datastore once");
        assert!(limit.try_take(&[b.clone(), a.clone()]).is_none());
        assert_eq!(limit.open_on(&b), 1, "a refusal takes nothing");
        drop(both);
        assert_eq!((limit.open_on(&a), limit.open_on(&b)), (1, 0));
        drop(one);
        assert!(limit.clone().try_take(&[a]).is_some());
    }
}
