//! Jobs, beyond their records: started, stopped, enabled; what they would take.

use axum::http::Method;

use crate::access::Access;
use crate::answer::{Begun, Listed, Shown};
use crate::call::{Call, Json};
use crate::model::{Id, Job, SessionRecord};
use crate::problem::Problem;
use crate::table::{Head, Route, route};
use crate::views::{EnableRequest, InventoryVm, StartRequest, StopRequest};

#[rustfmt::skip]
pub(super) fn routes() -> Vec<Route> {
    let head = |method, path, access, name, summary| Head { method, path, access, name, summary };
    let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
    vec![
        route(head(get, "/api/v1/jobs/{id}/vms", Access::VIEWER, "job_vms", "The machines that it would take now."), vms).asks_elsewhere(),
        route(head(post.clone(), "/api/v1/jobs/{id}/start", Access::OPERATOR, "job_start", "Starts it."), start),
        route(head(post, "/api/v1/jobs/{id}/stop", Access::OPERATOR, "job_stop", "Stops its session."), stop),
        route(head(put, "/api/v1/jobs/{id}/enabled", Access::OPERATOR, "job_enable", "Lets its schedule start it, or no longer."), enable),
    ]
}

async fn vms(call: Call<Id>) -> Result<Listed<InventoryVm>, Problem> {
    call.api.backend().job_vms(call.path).await.map(Listed::all)
}

async fn start(call: Call<Id, (), Json<StartRequest>>) -> Result<Begun<SessionRecord>, Problem> {
    call.api.backend().start_job(call.path, call.body.0, &call.who).await.map(Begun)
}

async fn stop(call: Call<Id, (), Json<StopRequest>>) -> Result<Begun<SessionRecord>, Problem> {
    call.api.backend().stop_job(call.path, call.body.0.mode, &call.who).await.map(Begun)
}

async fn enable(call: Call<Id, (), Json<EnableRequest>>) -> Result<Shown<Job>, Problem> {
    call.api.backend().enable_job(call.path, call.body.0.enabled).await.map(Shown)
}
