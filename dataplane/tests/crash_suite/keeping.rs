//! Points deleted and brought back, and collections that run beside everything else.
//!
//! In: the world's random numbers. Out: requests to the store; the model learns what they said. A
//! collection is begun, stepped and handed over piece by piece, between all other actions.

use gantry_common::ids::PointId;
use gantry_common::manage::CollectOptions;
use gantry_dataplane::store::error::StoreError;
use gantry_dataplane::store::layout::{PointFile, points_dir};
use gantry_dataplane::store::manifest::list_files;

use super::model::State;
use super::world::World;

impl World {
    /// Deletes, brings back or protects some point.
    pub fn keep_or_delete(&mut self) {
        match self.random.u8(0..5) {
            0..3 => self.delete_some(),
            3 => self.undelete_some(),
            _ => self.protect_some(),
        }
    }

    fn draw_point(&mut self, state: State) -> Option<(PointId, String)> {
        let points = self.points.that_are(state);
        if points.is_empty() {
            return None;
        }
        let point = points[self.random.usize(0..points.len())];
        Some((point, self.points.all[&point].name.clone()))
    }

    fn delete_some(&mut self) {
        let Some((point, name)) = self.draw_point(State::Live) else { return };
        let last_too = self.random.bool();
        self.delete(point, &name, last_too);
    }

    /// Deletes a point.
    pub fn delete(&mut self, point: PointId, name: &str, last_too: bool) {
        let result = self.store().delete_points(name, &[point], last_too);
        self.note(format!("delete {point} of {name}: {result:?}"));
        match result {
            Ok(_) => {
                let protected = self.points.all[&point].protected;
                assert_ne!(protected, Some(true), "{point} is protected, and was deleted");
                self.points.set(&[point], State::Deleted);
                self.stats.deleted += 1;
            }
            Err(StoreError::Usage(_)) => {}
            Err(error) => {
                assert!(self.may_fail(), "delete {point}: {error}");
                self.points.set(&[point], State::Doubtful);
            }
        }
    }

    fn undelete_some(&mut self) {
        let Some((point, name)) = self.draw_point(State::Deleted) else { return };
        let result = self.store().undelete_points(&name, &[point]);
        self.note(format!("undelete {point} of {name}: {result:?}"));
        match result {
            Ok(_) => {
                self.points.set(&[point], State::Live);
                self.stats.undeleted += 1;
            }
            Err(StoreError::Usage(_) | StoreError::Refused(_))
                if self.points.all[&point].may_go => {}
            Err(error) => {
                assert!(self.may_fail(), "undelete {point}: {error}");
                self.points.set(&[point], State::Doubtful);
            }
        }
    }

    fn protect_some(&mut self) {
        let Some((point, name)) = self.draw_point(State::Live) else { return };
        let protect = self.random.bool();
        let result = self.store().protect_points(&name, &[point], protect);
        let done = result.is_ok();
        assert!(done || self.may_fail(), "protect {point}: {result:?}");
        if let Some(point) = self.points.all.get_mut(&point) {
            point.protected = done.then_some(protect);
        }
    }

    /// Begins a collection, or brings the one that runs further.
    pub fn collect(&mut self) {
        let Some(mut marker) = self.marker.take() else {
            if !self.store().is_collecting() {
                self.begin_collection();
            }
            return;
        };
        for _ in 0..self.random.u8(1..6) {
            match marker.step() {
                Ok(false) => {}
                Ok(true) => {
                    self.marker = self.store().handle_marked(marker);
                    if self.marker.is_none() {
                        // Every mark is complete: from now on, and not before, points may go.
                        let purging = std::mem::take(&mut self.purging);
                        self.points.let_go(&purging);
                    }
                    return;
                }
                Err(error) => {
                    self.note(format!("marking: {error}"));
                    let known = self.may_fail() || self.points.is_damaged;
                    assert!(known || self.was_cancelled, "marking: {error}");
                    return self.store().fail_collection(error);
                }
            }
        }
        if self.random.u8(0..40) == 0 {
            self.was_cancelled = true;
            self.store().cancel_collection();
        }
        self.marker = Some(marker);
    }

    pub fn begin_collection(&mut self) {
        let options = CollectOptions {
            dry_run: self.random.u8(0..8) == 0,
            abandon_unfinished: self.random.u8(0..12) == 0,
            rewrite_bytes_max: [None, Some(0), Some(1 << 20)][self.random.usize(0..3)],
        };
        self.note(format!("collection: {options:?}"));
        self.purging.clear();
        if !options.dry_run {
            let gone = [State::Deleted, State::Doubtful];
            // One that is brought back and deleted again meanwhile goes too.
            let points = self.points.all.iter();
            let listed = points.filter(|(_, point)| gone.contains(&point.state));
            self.purging = listed.map(|(point, _)| *point).collect();
        }
        if options.abandon_unfinished && !options.dry_run {
            let detached = self.backups.values_mut().filter(|backup| !backup.is_attached);
            detached.for_each(super::backup::Backup::forget);
        }
        self.has_collected |= !options.dry_run;
        self.was_cancelled = false;
        match self.store().begin_collection(options) {
            Ok(marker) => self.marker = Some(marker),
            Err(error) => {
                self.note(format!("no collection: {error}"));
                let known = self.may_fail() || self.points.is_damaged;
                assert!(known, "collection: {error}");
            }
        }
    }

    /// Takes in how a collection ended.
    pub fn take_collected(&mut self) {
        let Some(result) = self.store().take_collected() else { return };
        self.note(format!("collected: {result:?}"));
        self.marker = None;
        match result {
            Ok(report) if !report.dry_run => {
                self.stats.collections += 1;
                self.stats.packs_removed += report.packs_removed;
                self.stats.packs_punched += report.packs_punched;
                self.stats.packs_rewritten += report.packs_rewritten;
                self.stats.purged += report.points_purged;
            }
            Ok(_) => {}
            Err(error) => {
                let known = self.may_fail() || self.points.is_damaged || self.was_cancelled;
                assert!(known, "collection: {error}");
            }
        }
    }

    /// Brings a collection as far as it comes within a while, with nothing else in between.
    pub fn collect_to_the_end(&mut self) {
        for _ in 0..60 {
            self.collect();
            self.now_ms += 1000;
            self.poll();
            let is_over = !self.store().is_collecting() && self.marker.is_none();
            if is_over || self.is_cut() {
                return;
            }
        }
    }

    /// Lets the collection that runs come to its end.
    pub fn finish_collection(&mut self) {
        for _ in 0..10_000 {
            if !self.store().is_collecting() && self.marker.is_none() {
                return;
            }
            if self.marker.is_some() {
                self.collect();
            }
            self.now_ms += 1000;
            self.settle();
        }
        panic!("the collection does not end");
    }

    /// Compares which points are deleted with the model, after the live ones.
    pub fn see_deleted(&mut self, live: &[PointId]) {
        let names: Vec<String> = self.vms.iter().map(|vm| vm.name.clone()).collect();
        let mut deleted = Vec::new();
        for name in names {
            let listed = list_files(&self.disk, &points_dir(&name), PointFile::Deleted);
            deleted.extend(listed.expect("the points can be listed"));
        }
        for (id, point) in &mut self.points.all {
            let (is_live, is_deleted) = (live.contains(id), deleted.contains(id));
            assert!(!(is_live && is_deleted), "{id} is live and deleted");
            point.state = match point.state {
                State::Live => {
                    assert!(is_live, "{id} of {} was committed and is not listed", point.name);
                    State::Live
                }
                State::Deleted if is_deleted => State::Deleted,
                State::Deleted => {
                    assert!(!is_live, "{id} of {} was deleted and is back", point.name);
                    assert!(point.may_go, "{id} of {} went without a collection", point.name);
                    State::Purged
                }
                State::Doubtful if is_live => State::Live,
                State::Doubtful if is_deleted => State::Deleted,
                State::Doubtful => {
                    assert!(point.may_go, "{id} of {} was not deleted, and went", point.name);
                    State::Purged
                }
                State::Purged => {
                    assert!(!is_live && !is_deleted, "{id} of {} was purged", point.name);
                    State::Purged
                }
            };
            if point.state == State::Live {
                point.may_go = false;
            }
        }
    }
}
