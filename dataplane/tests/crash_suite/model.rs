//! The model: which points there are, as far as the store has said, and what each holds.
//!
//! In: reports of the store. Out: what must be there, what may be, what must not.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_common::ids::PointId;

use super::vm::{Disk, Frozen};

/// A point.
#[derive(Debug, Clone)]
pub struct Point {
    pub name: String,
    pub frozen: Arc<Frozen>,
}

/// All points that were ever reported or seen.
#[derive(Debug, Default)]
pub struct Points {
    pub all: BTreeMap<PointId, Point>,
}

impl Points {
    /// A point is reported committed, or was seen.
    pub fn commit(&mut self, point: PointId, name: &str, frozen: Arc<Frozen>) {
        self.all.entry(point).or_insert_with(|| Point { name: name.to_owned(), frozen });
    }

    /// What a disk of a point holds.
    pub fn disk(&self, point: PointId, identity: &str) -> Option<&Disk> {
        let point = self.all.get(&point)?;
        point.frozen.disks.iter().find(|disk| disk.identity == identity)
    }

    /// Points of a name.
    pub fn of(&self, name: &str) -> Vec<PointId> {
        let own = self.all.iter().filter(|(_, point)| point.name == name);
        own.map(|(point, _)| *point).collect()
    }

    /// Whether bytes were spoilt on purpose.
    pub fn has_damage(&self) -> bool {
        false
    }
}
