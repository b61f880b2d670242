//! Restore points, and restores from them.

use axum::http::Method;
use gantry_common::ids::PointId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::sessions::page;
use crate::access::Access;
use crate::answer::{Begun, Listed, Shown};
use crate::backend::{PointChange, PointFilter};
use crate::call::{Call, Fields, Json};
use crate::model::{Id, SessionRecord};
use crate::problem::Problem;
use crate::table::{Head, Route, route};
use crate::views::{Document, Point, ProtectRequest, RestoreRequest};

#[rustfmt::skip]
pub(super) fn routes() -> Vec<Route> {
    let head = |method, path, access, name, summary| Head { method, path, access, name, summary };
    let (get, post, put, delete) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    vec![
        route(head(get.clone(), "/api/v1/points", Access::VIEWER, "point_list", "Restore points, oldest first within a name."), list).asks_elsewhere(),
        route(head(get.clone(), "/api/v1/repositories/{repository}/points/{point}", Access::VIEWER, "point_get", "One restore point."), show).asks_elsewhere(),
        route(head(get, "/api/v1/repositories/{repository}/points/{point}/vm-config", Access::VIEWER, "point_config", "The machine's configuration that it keeps."), vm_config).asks_elsewhere(),
        route(head(delete, "/api/v1/repositories/{repository}/points/{point}", Access::ADMIN, "point_delete", "Deletes it; undoable until the next collection."), remove).asks_elsewhere(),
        route(head(post.clone(), "/api/v1/repositories/{repository}/points/{point}/undelete", Access::ADMIN, "point_undelete", "Brings it back."), undelete).asks_elsewhere(),
        route(head(put, "/api/v1/repositories/{repository}/points/{point}/protected", Access::OPERATOR, "point_protect", "Protects it from deleting and retention, or ends that."), protect).asks_elsewhere(),
        route(head(post, "/api/v1/restores", Access::OPERATOR, "restore_start", "Begins a restore; its session tells how it goes."), restore).asks_elsewhere(),
    ]
}

/// Which points.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct PointQuery {
    /// In this repository.
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    repository: Option<Id>,
    /// Of this name.
    name: Option<String>,
    /// Deleted ones instead.
    deleted: Option<bool>,
    /// How many of them were seen already.
    after: Option<u64>,
    /// At most so many.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// How to delete.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct DeleteQuery {
    /// Also if the name then has no point left.
    last_too: Option<bool>,
}

async fn list(call: Call<(), Fields<PointQuery>>) -> Result<Listed<Point>, Problem> {
    let PointQuery { repository, name, deleted, after, limit } = call.query.0;
    let filter = PointFilter { repository, name, deleted: deleted.unwrap_or(false) };
    let (limit, seen) = (page(limit)?, after.unwrap_or(0));
    let all = call.api.backend().points(filter).await?;
    let total = all.len() as u64;
    let skip = usize::try_from(seen).unwrap_or(usize::MAX);
    let items: Vec<Point> = all.into_iter().skip(skip).take(limit as usize).collect();
    let end = seen.saturating_add(items.len() as u64);
    Ok(Listed { items, next: (end < total).then(|| end.to_string()) })
}

/// The repository and the point of a path.
fn place(path: (Id, String)) -> Result<(Id, String), Problem> {
    let point: PointId =
        path.1.parse().map_err(|error| Problem::bad_request(format!("in the path: {error}")))?;
    Ok((path.0, point.to_string()))
}

async fn show(call: Call<(Id, String)>) -> Result<Shown<Point>, Problem> {
    let (repository, point) = place(call.path)?;
    call.api.backend().point(repository, &point).await.map(Shown)
}

async fn vm_config(call: Call<(Id, String)>) -> Result<Shown<Document>, Problem> {
    let (repository, point) = place(call.path)?;
    let config = call.api.backend().point_vm_config(repository, &point).await?;
    Ok(Shown(Document(config)))
}

async fn remove(call: Call<(Id, String), Fields<DeleteQuery>>) -> Result<Shown<Point>, Problem> {
    let (repository, point) = place(call.path)?;
    let change = PointChange::Delete { last_too: call.query.0.last_too.unwrap_or(false) };
    call.api.backend().change_point(repository, &point, change).await.map(Shown)
}

async fn undelete(call: Call<(Id, String)>) -> Result<Shown<Point>, Problem> {
    let (repository, point) = place(call.path)?;
    call.api.backend().change_point(repository, &point, PointChange::Undelete).await.map(Shown)
}

async fn protect(
    call: Call<(Id, String), (), Json<ProtectRequest>>,
) -> Result<Shown<Point>, Problem> {
    let (repository, point) = place(call.path)?;
    let change = PointChange::Protect(call.body.0.protected);
    call.api.backend().change_point(repository, &point, change).await.map(Shown)
}

async fn restore(
    call: Call<(), (), Json<RestoreRequest>>,
) -> Result<Begun<SessionRecord>, Problem> {
    call.api.backend().restore(call.body.0, &call.who).await.map(Begun)
}
