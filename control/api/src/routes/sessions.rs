//! Sessions: listed, shown, followed, stopped. Restores and maintenance are sessions too.

use axum::http::Method;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};

use crate::access::Access;
use crate::answer::{Begun, Listed, Shown, Streamed};
use crate::backend::SessionFilter;
use crate::call::{Call, Fields, Json};
use crate::limits;
use crate::model::{Id, SessionKind, SessionRecord, SessionState};
use crate::problem::Problem;
use crate::stream;
use crate::table::{Head, Route, route};
use crate::views::{NumberedEvent, Progress, StopRequest, VmRun};

#[rustfmt::skip]
pub(super) fn routes() -> Vec<Route> {
    let head = |method, path, access, name, summary| Head { method, path, access, name, summary };
    let (get, post) = (Method::GET, Method::POST);
    vec![
        route(head(get.clone(), "/api/v1/sessions", Access::VIEWER, "session_list", "Sessions, newest first."), list),
        route(head(get.clone(), "/api/v1/sessions/{id}", Access::VIEWER, "session_get", "One session."), show),
        route(head(get.clone(), "/api/v1/sessions/{id}/vms", Access::VIEWER, "session_vms", "Its machines and their disks."), vms),
        route(head(get.clone(), "/api/v1/sessions/{id}/events", Access::VIEWER, "session_events", "What was told of it."), events),
        route(head(get.clone(), "/api/v1/sessions/{id}/progress", Access::VIEWER, "session_progress", "Its live numbers."), progress),
        route(head(get, "/api/v1/sessions/{id}/stream", Access::VIEWER, "session_stream", "Events and numbers as they come."), follow)
            .parameter(last_event_id()),
        route(head(post, "/api/v1/sessions/{id}/stop", Access::OPERATOR, "session_stop", "Stops it."), stop),
    ]
}

fn last_event_id() -> Parameter {
    ParameterBuilder::new()
        .name("Last-Event-ID")
        .parameter_in(ParameterIn::Header)
        .description(Some("Number of the last event that is known: those after it follow."))
        .schema(Some(
            ObjectBuilder::new().schema_type(SchemaType::new(Type::Integer)).minimum(Some(0)),
        ))
        .build()
}

/// Which sessions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct SessionQuery {
    /// Of this job.
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    job: Option<Id>,
    /// Of this kind.
    #[param(inline)]
    kind: Option<SessionKind>,
    /// In this state.
    #[param(inline)]
    state: Option<SessionState>,
    /// Those older than this one.
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    after: Option<Id>,
    /// At most so many.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct EventQuery {
    /// Those with a number above this.
    after: Option<u64>,
    /// At most so many.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// Length of a page.
///
/// # Errors
/// 400.
pub(super) fn page(limit: Option<u32>) -> Result<u32, Problem> {
    match limit.unwrap_or(limits::PAGE_DEFAULT) {
        limit @ 1..=limits::PAGE_MAX => Ok(limit),
        _ => Err(Problem::bad_request(format!("limit: give 1 to {}", limits::PAGE_MAX))),
    }
}

async fn list(call: Call<(), Fields<SessionQuery>>) -> Result<Listed<SessionRecord>, Problem> {
    let SessionQuery { job, kind, state, after, limit } = call.query.0;
    let limit = page(limit)?;
    let filter = SessionFilter { job, kind, state, after, limit };
    let items = call.api.backend().sessions(filter).await?;
    let full = items.len() >= limit as usize;
    let next = items.last().filter(|_| full).map(|last| last.id.to_string());
    Ok(Listed { items, next })
}

async fn show(call: Call<Id>) -> Result<Shown<SessionRecord>, Problem> {
    call.api.backend().session(call.path).await.map(Shown)
}

async fn vms(call: Call<Id>) -> Result<Listed<VmRun>, Problem> {
    call.api.backend().session_vms(call.path).await.map(Listed::all)
}

async fn events(call: Call<Id, Fields<EventQuery>>) -> Result<Listed<NumberedEvent>, Problem> {
    let limit = page(call.query.0.limit)?;
    let after = call.query.0.after.unwrap_or(0);
    let items = call.api.backend().session_events(call.path, after, limit).await?;
    let full = items.len() >= limit as usize;
    let next = items.last().filter(|_| full).map(|last| last.number.to_string());
    Ok(Listed { items, next })
}

async fn progress(call: Call<Id>) -> Result<Shown<Progress>, Problem> {
    call.api.backend().session_progress(call.path).await.map(Shown)
}

async fn follow(call: Call<Id>) -> Result<Streamed, Problem> {
    let after = stream::last_event(&call.headers)?;
    stream::open(&call.api, call.path, after).await.map(Streamed)
}

async fn stop(call: Call<Id, (), Json<StopRequest>>) -> Result<Begun<SessionRecord>, Problem> {
    call.api.backend().stop_session(call.path, call.body.0.mode, &call.who).await.map(Begun)
}
