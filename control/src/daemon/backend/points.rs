//! Restore points and repositories: asked of the movers that keep them.
//!
//! In: a repository's record, a point. Out: what its mover answers; verifying and collecting as
//! sessions, since they may take hours. Must not: keep a list of points of its own: the repository's
//! is the truth.

use gantry_api::access::Principal;
use gantry_api::backend::{Answered, PointChange, PointFilter};
use gantry_api::views::{
    CollectRequest, Point, PointDisk, RepositoryStat, RestoreRequest, VerifyRequest,
};
use gantry_api::{Problem, Records};
use gantry_common::ids::PointId;
use gantry_common::manage::{
    CollectOptions, ManageReport, ManageRequest, PointFlags, VerifyOptions,
};
use gantry_common::wire::PointSummary;
use gantry_database::model::{Id, Repository, SessionRecord};
use serde_json::Value;

use super::Gantryd;
use crate::daemon::{maintenance, restore};

impl Gantryd {
    pub(super) async fn stat(&self, id: Id) -> Answered<RepositoryStat> {
        let repository: Repository = Records::<Repository>::get(self, id).await?;
        let facts = self.parts.fleet.facts(repository.mover).await?;
        let facts = facts.repository.ok_or_else(|| {
            let text = format!("the mover of repository '{}' serves none", repository.name);
            Problem::unavailable(text, "look at the mover's configuration")
        })?;
        let report = self.parts.fleet.manage(repository.mover, ManageRequest::Stat).await?;
        let ManageReport::Stat(report) = report else {
            return Err(Problem::internal("the mover answers another question"));
        };
        let report =
            serde_json::to_value(report).map_err(|error| Problem::internal(error.to_string()))?;
        let (capacity_bytes, free_bytes) = (facts.capacity_bytes, facts.free_bytes);
        Ok(RepositoryStat { capacity_bytes, free_bytes, report })
    }

    pub(super) async fn begin_verify(
        &self,
        id: Id,
        how: VerifyRequest,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        let VerifyRequest { percent, checksums_only, rate_bytes_per_second: rate } = how;
        let options = VerifyOptions { percent, checksums_only, rate };
        self.maintain(id, ManageRequest::Verify(options), who).await
    }

    pub(super) async fn begin_collect(
        &self,
        id: Id,
        how: CollectRequest,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        let CollectRequest { dry_run, rewrite_bytes_max, abandon_unfinished } = how;
        let options = CollectOptions { dry_run, rewrite_bytes_max, abandon_unfinished };
        self.maintain(id, ManageRequest::Collect(options), who).await
    }

    async fn maintain(
        &self,
        id: Id,
        request: ManageRequest,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        let repository: Repository = Records::<Repository>::get(self, id).await?;
        Ok(maintenance::begin(&self.parts, &repository, request, &who.name).await?)
    }

    pub(super) async fn list_points(&self, filter: PointFilter) -> Answered<Vec<Point>> {
        let repositories: Vec<Repository> = match filter.repository {
            Some(id) => vec![Records::<Repository>::get(self, id).await?],
            None => Records::<Repository>::list(self).await?,
        };
        let name = filter.name.as_deref().unwrap_or_default();
        let mut all = Vec::new();
        for repository in repositories {
            let points = self.parts.fleet.points(repository.mover, name, filter.deleted).await;
            let points = match points {
                Ok(points) => points,
                // A list of all shows what can be shown; who names one learns why it cannot.
                Err(failure) if filter.repository.is_none() => {
                    tracing::warn!("repository {}: {failure}", repository.name);
                    continue;
                }
                Err(failure) => return Err(failure.into()),
            };
            all.extend(points.into_iter().map(|point| shown(repository.id, point)));
        }
        let key = |point: &Point| (point.name.clone(), point.created_ms);
        all.sort_by_key(key);
        Ok(all)
    }

    pub(super) async fn one_point(&self, repository: Id, point: &str) -> Answered<Point> {
        for deleted in [false, true] {
            let filter =
                PointFilter { repository: Some(repository), deleted, ..PointFilter::default() };
            let all = self.list_points(filter).await?;
            if let Some(found) = all.into_iter().find(|one| one.id == point) {
                return Ok(found);
            }
        }
        Err(Problem::not_found("point", point))
    }

    pub(super) async fn config_of_point(&self, repository: Id, point: &str) -> Answered<Value> {
        let found = self.one_point(repository, point).await?;
        let repository: Repository = Records::<Repository>::get(self, repository).await?;
        let config = self.parts.fleet.vm_config(repository.mover, &found.name, id_of(point)?);
        let config = config.await?;
        if config.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&config)
            .map_err(|error| Problem::internal(format!("the point's configuration: {error}")))
    }

    pub(super) async fn change(
        &self,
        repository: Id,
        point: &str,
        change: PointChange,
    ) -> Answered<Point> {
        let found = self.one_point(repository, point).await?;
        let record: Repository = Records::<Repository>::get(self, repository).await?;
        let (name, points) = (found.name, vec![id_of(point)?]);
        let request = match change {
            PointChange::Delete { last_too } => {
                ManageRequest::DeletePoints { name, points, last_too }
            }
            PointChange::Undelete => ManageRequest::UndeletePoints { name, points },
            PointChange::Protect(protect) => ManageRequest::ProtectPoints { name, points, protect },
        };
        self.parts.fleet.manage(record.mover, request).await?;
        self.one_point(repository, point).await
    }

    pub(super) async fn begin_restore(
        &self,
        request: RestoreRequest,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        Records::<Repository>::get(self, request.repository).await?;
        Ok(restore::begin(&self.parts, request, &who.name).await?)
    }
}

fn id_of(point: &str) -> Answered<PointId> {
    point.parse().map_err(|_| Problem::not_found("point", point))
}

fn shown(repository: Id, point: PointSummary) -> Point {
    let flags = [
        ("protected", PointFlags::PROTECTED),
        ("weekly", PointFlags::WEEKLY),
        ("monthly", PointFlags::MONTHLY),
        ("yearly", PointFlags::YEARLY),
    ];
    let flags = flags.into_iter().filter(|(_, flag)| point.flags.has(*flag));
    let disks = point.disks.into_iter().map(|disk| PointDisk {
        label: disk.label,
        identity: disk.identity,
        size_bytes: disk.size_bytes,
    });
    Point {
        id: point.point.to_string(),
        repository,
        name: point.name,
        created_ms: point.created_ms,
        parent: point.parent.map(|parent| parent.to_string()),
        flags: flags.map(|(name, _)| name.to_owned()).collect(),
        deleted: point.is_deleted,
        disks: disks.collect(),
    }
}
