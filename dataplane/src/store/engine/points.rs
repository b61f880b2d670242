//! Points while the store runs: deleting, bringing back, protecting, retention.
//!
//! In: names and points that a person (or a session's retention) means. Out: what has changed, on
//! the disk. Invariant: a request is checked whole before its first change; a protected point, one
//! that cannot be read, and (unless asked for) a name's last readable one are never deleted. What
//! is deleted stays whole until a collection purges it. Must not: touch packs or the index.

use gantry_common::ids::PointId;
use gantry_common::limits::RETIRED_POINTS_MAX;
use gantry_common::manage::{
    Decision, KeepReason, LISTED_MAX, PointFlags, PointsReport, PruneReport, Retention,
};

use super::Store;
use crate::store::error::StoreError;
use crate::store::index::Collected;
use crate::store::layout::{PointFile, points_dir};
use crate::store::manifest::list_files;
use crate::store::points::{ReadPoint, candidates, read_point, rename, set_flags};
use crate::store::retention::{Candidate, decide, flags_of_new};
use crate::store::storage::Storage;

impl<S: Storage> Store<S> {
    /// Tells the time of day, milliseconds since 1970; retention after a commit goes by it.
    pub fn set_wall_ms(&mut self, wall_ms: u64) {
        self.wall_ms = wall_ms;
    }

    /// Notes when a collection ended and what it left, for `repo stat`.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn remember_collection(&mut self, collected: Collected) -> Result<(), StoreError> {
        self.repo.index.set_collected(collected)
    }

    /// Deletes points of a VM: they are in no list any more and cannot be restored, but can be
    /// brought back until a collection. All of them or, where one may not go, none.
    ///
    /// # Errors
    /// [`StoreError::Usage`]: one is not there, protected, cannot be read, or no readable point
    /// would be left and `last_too` is not given.
    pub fn delete_points(
        &mut self,
        name: &str,
        points: &[PointId],
        last_too: bool,
    ) -> Result<PointsReport, StoreError> {
        let mut report = PointsReport::default();
        for point in unique(points) {
            match self.read(name, point, PointFile::Manifest) {
                Ok(Some(found)) if found.manifest.flags.has(PointFlags::PROTECTED) => {
                    return Err(StoreError::Usage(format!(
                        "restore point {point} of '{name}' is protected: end that first with \
                         point protect --off; nothing was deleted"
                    )));
                }
                Ok(Some(_)) => report.changed.push(point),
                Ok(None) if self.is_there(name, point, PointFile::Deleted)? => {
                    report.unchanged.push(point);
                }
                Ok(None) => return Err(missing(name, point, "nothing was deleted")),
                Err(error) => {
                    return Err(StoreError::Usage(format!(
                        "{error}. Whether the point is protected is not known: run repo repair, \
                         which sets it aside; nothing was deleted"
                    )));
                }
            }
        }
        let left = self.candidates(name)?;
        let is_left =
            |left: &Candidate| left.flags.is_some() && !report.changed.contains(&left.point);
        if !last_too && !report.changed.is_empty() && !left.iter().any(is_left) {
            return Err(StoreError::Usage(format!(
                "'{name}' would have no restore point left: add --last-too if that is meant; \
                 nothing was deleted"
            )));
        }
        self.delete_files(name, &report.changed)?;
        Ok(report)
    }

    /// Brings deleted points of a VM back; all that there are if none is named.
    ///
    /// # Errors
    /// [`StoreError::Usage`]: one is not there any more, or cannot be read.
    pub fn undelete_points(
        &mut self,
        name: &str,
        points: &[PointId],
    ) -> Result<PointsReport, StoreError> {
        let dir = points_dir(name);
        let wanted = match points {
            [] => list_files(&self.repo.storage, &dir, PointFile::Deleted)?,
            points => unique(points),
        };
        let mut report = PointsReport::default();
        for point in wanted {
            if self.is_there(name, point, PointFile::Manifest)? {
                report.unchanged.push(point);
                continue;
            }
            self.may_undelete(&dir, point)?;
            match self.read(name, point, PointFile::Deleted)? {
                Some(found) => {
                    for disk in &found.manifest.disks {
                        let of = format!("{} of '{name}', point {point}", disk.label);
                        self.add_root(disk.root, disk.blocks(), &of);
                    }
                    report.changed.push(point);
                }
                None => {
                    return Err(StoreError::Usage(format!(
                        "'{name}' has no deleted restore point {point}: once a collection has \
                         run it is gone for good; nothing was changed"
                    )));
                }
            }
        }
        let (from, to) = (PointFile::Deleted, PointFile::Manifest);
        rename(&self.repo.storage, &dir, &report.changed, from, to)?;
        for point in &report.changed {
            tracing::info!("restore point {point} of '{name}' is brought back");
        }
        Ok(report)
    }

    /// Protects points of a VM from deleting and retention, or ends that.
    ///
    /// # Errors
    /// [`StoreError::Usage`]: one is not there, or cannot be read.
    pub fn protect_points(
        &mut self,
        name: &str,
        points: &[PointId],
        protect: bool,
    ) -> Result<PointsReport, StoreError> {
        let mut report = PointsReport::default();
        let mut found = Vec::new();
        for point in unique(points) {
            match self.read(name, point, PointFile::Manifest)? {
                Some(read) if read.manifest.flags.has(PointFlags::PROTECTED) == protect => {
                    report.unchanged.push(point);
                }
                Some(read) => found.push(read),
                None => return Err(missing(name, point, "nothing was changed")),
            }
        }
        for read in &found {
            let flags = read.manifest.flags.with(PointFlags::PROTECTED, protect);
            set_flags(&self.repo.storage, read, flags)?;
            let (point, what) = (read.manifest.point, if protect { "" } else { "no longer " });
            tracing::info!("restore point {point} of '{name}' is {what}protected");
            report.changed.push(point);
        }
        Ok(report)
    }

    /// Applies retention to the points of a VM at `now_ms` since 1970; only says what it would do
    /// if `dry_run`. At most [`RETIRED_POINTS_MAX`] go at once, the oldest first.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn prune_points(
        &mut self,
        name: &str,
        retention: &Retention,
        now_ms: u64,
        dry_run: bool,
    ) -> Result<PruneReport, StoreError> {
        let mut report = PruneReport { dry_run, ..PruneReport::default() };
        let decided = decide(&self.candidates(name)?, retention, now_ms);
        let goes = |(_, keep): &&(Candidate, Vec<KeepReason>)| keep.is_empty();
        let gone: Vec<PointId> =
            decided.iter().filter(goes).map(|(candidate, _)| candidate.point).collect();
        report.points_kept = (decided.len() - gone.len()) as u64;
        let now = &gone[..gone.len().min(RETIRED_POINTS_MAX)];
        if now.len() < gone.len() {
            report.notes.push(format!(
                "{} points of '{name}' are left for the next time",
                gone.len() - now.len()
            ));
        }
        report.points_deleted = now.len() as u64;
        report.decisions = decided
            .into_iter()
            .take(LISTED_MAX)
            .map(|(candidate, keep)| Decision {
                name: name.to_owned(),
                point: candidate.point,
                flags: candidate.flags.unwrap_or_default(),
                keep,
            })
            .collect();
        if !dry_run {
            self.delete_files(name, now)?;
        }
        Ok(report)
    }

    /// What the retention of the session that committed `point` deletes. The older of both clocks
    /// counts, the target's and the source's, so that one wrong clock deletes nothing too early.
    pub(super) fn retire(
        &mut self,
        name: &str,
        point: PointId,
        retention: &Retention,
    ) -> Result<Vec<PointId>, StoreError> {
        let now_ms = self.wall_ms.min(point.created_ms());
        let decided = decide(&self.candidates(name)?, retention, now_ms);
        let gone = decided.into_iter().filter(|(candidate, keep)| {
            // A source whose clock is behind must not lose what it has just brought.
            keep.is_empty() && candidate.point != point
        });
        let gone: Vec<PointId> =
            gone.map(|(candidate, _)| candidate.point).take(RETIRED_POINTS_MAX).collect();
        self.delete_files(name, &gone)?;
        Ok(gone)
    }

    /// Flags for a point that is about to be committed.
    pub(super) fn flags_for(
        &self,
        name: &str,
        point: PointId,
        retention: Option<&Retention>,
    ) -> Result<PointFlags, StoreError> {
        let Some(retention) = retention else { return Ok(PointFlags::default()) };
        if (retention.weekly, retention.monthly, retention.yearly) == (0, 0, 0) {
            return Ok(PointFlags::default());
        }
        Ok(flags_of_new(point, &self.candidates(name)?, retention))
    }

    fn delete_files(&self, name: &str, points: &[PointId]) -> Result<(), StoreError> {
        let (from, to) = (PointFile::Manifest, PointFile::Deleted);
        rename(&self.repo.storage, &points_dir(name), points, from, to)?;
        for point in points {
            tracing::info!("restore point {point} of '{name}' is deleted");
        }
        Ok(())
    }

    fn candidates(&self, name: &str) -> Result<Vec<Candidate>, StoreError> {
        candidates(&self.repo.storage, &points_dir(name), self.repo.repository())
    }

    fn read(
        &self,
        name: &str,
        point: PointId,
        file: PointFile,
    ) -> Result<Option<ReadPoint>, StoreError> {
        read_point(&self.repo.storage, &points_dir(name), point, file, self.repo.repository())
    }

    fn is_there(&self, name: &str, point: PointId, file: PointFile) -> Result<bool, StoreError> {
        Ok(list_files(&self.repo.storage, &points_dir(name), file)?.contains(&point))
    }
}

fn unique(points: &[PointId]) -> Vec<PointId> {
    let mut points = points.to_vec();
    points.sort();
    points.dedup();
    points
}

fn missing(name: &str, point: PointId, more: &str) -> StoreError {
    StoreError::Usage(format!("'{name}' has no restore point {point}; {more}"))
}
