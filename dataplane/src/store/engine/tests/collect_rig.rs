//! Driving collections in tests, and knowing what must be left.
//!
//! In: a rig. Out: reports; the ids that every point needs, found the naive way.

use std::collections::BTreeSet;

use gantry_common::ids::{BlockId, PointId};
use gantry_common::manage::{CollectOptions, CollectReport};

use super::rig::{Model, Rig, offer, session};
use crate::store::engine::Marker;
use crate::store::error::StoreError;
use crate::store::map_node::tree_height;
use crate::store::storage::memory::MemoryStorage;

pub type MemoryMarker = Marker<MemoryStorage>;

impl Rig {
    /// A backup of one disk of `blocks` blocks of 256 KiB, as this session.
    pub fn point(&mut self, name: &str, number: u8, blocks: u64, model: &Model) -> PointId {
        let mut offer = offer(name, &[blocks * super::K256]);
        offer.created_ms = 1000 + u64::from(number);
        offer.disks[0].snapshot = format!("s{number}");
        let done = self.backup(session(number), &offer, std::slice::from_ref(model));
        done.unwrap_or_else(|| panic!("{:?}", self.failure())).0
    }

    pub fn delete_point(&mut self, name: &str, point: PointId) {
        self.store.delete_points(name, &[point], true).unwrap();
    }

    pub fn begin(&mut self) -> MemoryMarker {
        self.store.begin_collection(CollectOptions::default()).unwrap().gather_at_most(2)
    }

    /// Marks to the end, as far as roots are known.
    pub fn mark_all(&mut self, mut marker: MemoryMarker) {
        loop {
            while !marker.step().unwrap() {}
            match self.store.handle_marked(marker) {
                Some(more) => marker = more,
                None => return,
            }
        }
    }

    /// Gives back to the end.
    pub fn give_back(&mut self) -> Result<CollectReport, StoreError> {
        for _ in 0..10_000 {
            if let Some(result) = self.store.take_collected() {
                return result;
            }
            self.now_ms += 1000;
            self.settle();
        }
        panic!("the collection does not end");
    }

    pub fn try_collect(&mut self, options: CollectOptions) -> Result<CollectReport, StoreError> {
        let mut marker = self.store.begin_collection(options)?.gather_at_most(5);
        loop {
            match marker.step() {
                Ok(false) => {}
                Ok(true) => match self.store.handle_marked(marker) {
                    Some(more) => {
                        marker = more;
                        self.settle();
                    }
                    None => return self.give_back(),
                },
                Err(error) => {
                    self.store.fail_collection(error);
                    return self.give_back();
                }
            }
        }
    }

    pub fn collect(&mut self) -> CollectReport {
        self.try_collect(CollectOptions::default()).unwrap()
    }

    /// Every id that a point needs.
    pub fn needed(&self) -> BTreeSet<BlockId> {
        fn walk(rig: &Rig, id: &BlockId, level: u8, needed: &mut BTreeSet<BlockId>) {
            if id.is_zero() || !needed.insert(*id) {
                return;
            }
            for child in rig.store.repo.node(id, level).unwrap().iter() {
                match level {
                    0 if child.is_zero() => {}
                    0 => drop(needed.insert(*child)),
                    _ => walk(rig, child, level - 1, needed),
                }
            }
        }
        let mut needed = BTreeSet::new();
        for listed in self.store.reader().all_points().unwrap() {
            for disk in listed.manifest.unwrap().disks {
                walk(self, &disk.root, tree_height(disk.blocks()) - 1, &mut needed);
            }
        }
        needed
    }

    pub fn packs(&self) -> Vec<String> {
        self.disk.files().into_iter().filter(|file| file.ends_with(".pack")).collect()
    }
}
