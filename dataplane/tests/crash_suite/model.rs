//! The model: which points there are, as far as the store has said, and what each holds.
//!
//! In: reports of the store, and what is listed after a crash. Out: what must be there, what may be,
//! what must not.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_common::ids::PointId;

use super::vm::{Disk, Frozen};

/// What the store has said of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Committed: it is listed and restores.
    Live,
    /// Deleted: in no list of live points; it comes back if asked, until a collection.
    Deleted,
    /// A change of it was begun, and nothing said how it ended: one of both.
    Doubtful,
    /// A collection has purged it: it never comes back.
    Purged,
}

/// A point.
#[derive(Debug, Clone)]
pub struct Point {
    pub name: String,
    pub frozen: Arc<Frozen>,
    pub state: State,
    /// Deleting must be refused; nothing: not known.
    pub protected: Option<bool>,
    /// A collection has begun since it was deleted: it may be purged at any time.
    pub may_go: bool,
}

/// All points that were ever reported or seen.
#[derive(Debug, Default)]
pub struct Points {
    pub all: BTreeMap<PointId, Point>,
    /// Bytes were spoilt on purpose: what cannot be read must be said, and is no fault.
    pub is_damaged: bool,
}

impl Points {
    /// A point is reported committed, or was seen.
    pub fn commit(&mut self, point: PointId, name: &str, frozen: Arc<Frozen>) {
        self.all.entry(point).or_insert_with(|| Point {
            name: name.to_owned(),
            frozen,
            state: State::Live,
            protected: Some(false),
            may_go: false,
        });
    }

    /// What a disk of a point holds.
    pub fn disk(&self, point: PointId, identity: &str) -> Option<&Disk> {
        let point = self.all.get(&point)?;
        point.frozen.disks.iter().find(|disk| disk.identity == identity)
    }

    /// Points of a name, whatever became of them.
    pub fn of(&self, name: &str) -> Vec<PointId> {
        let own = self.all.iter().filter(|(_, point)| point.name == name);
        own.map(|(point, _)| *point).collect()
    }

    /// Points in a state.
    pub fn that_are(&self, state: State) -> Vec<PointId> {
        let those = self.all.iter().filter(|(_, point)| point.state == state);
        those.map(|(point, _)| *point).collect()
    }

    pub fn is_live(&self, point: PointId) -> bool {
        self.all.get(&point).is_some_and(|point| point.state == State::Live)
    }

    pub fn set(&mut self, points: &[PointId], state: State) {
        for point in points {
            if let Some(point) = self.all.get_mut(point) {
                point.state = state;
            }
        }
    }

    /// Retention may have deleted any point of this name.
    pub fn doubt(&mut self, name: &str) {
        let own = self.all.values_mut().filter(|point| point.name == name);
        for point in own.filter(|point| point.state == State::Live) {
            point.state = State::Doubtful;
        }
    }

    /// A collection may purge these at any time now, as far as they are deleted.
    pub fn let_go(&mut self, points: &[PointId]) {
        for point in points {
            if let Some(point) = self.all.get_mut(point) {
                point.may_go = true;
            }
        }
    }
}
