//! vCenters, repositories, movers and their invitations, beyond their records.

use axum::http::Method;
use gantry_common::enrolment::{ENROL_PATH, EnrolRequest, RENEW_PATH, RenewRequest};
use gantry_common::ids::PeerId;
use gantry_common::secret::Secret;

use crate::access::Access;
use crate::answer::{Begun, Done, Listed, Made, Shown};
use crate::api::now_ms;
use crate::call::{Call, Json};
use crate::model::{Id, SessionRecord};
use crate::problem::Problem;
use crate::table::{Head, Route, route};
use crate::views::{
    CollectRequest, ConnectionTest, Enrol, Enrolled, Enrolment, EnrolmentMade, EnrolmentRequest,
    InventoryVm, MoverState, Renew, RepositoryStat, VerifyRequest,
};

#[rustfmt::skip]
pub(super) fn routes() -> Vec<Route> {
    let head = |method, path, access, name, summary| Head { method, path, access, name, summary };
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    vec![
        route(head(post.clone(), "/api/v1/vcenters/{id}/test", Access::OPERATOR, "vcenter_test", "Logs in to the vCenter and looks."), test).asks_elsewhere(),
        route(head(get.clone(), "/api/v1/vcenters/{id}/vms", Access::VIEWER, "vcenter_vms", "Its virtual machines."), inventory).asks_elsewhere(),
        route(head(get.clone(), "/api/v1/repositories/{id}/stat", Access::VIEWER, "repository_stat", "What the repository holds."), stat).asks_elsewhere(),
        route(head(post.clone(), "/api/v1/repositories/{id}/verify", Access::OPERATOR, "repository_verify", "Begins to verify it; a session tells how it goes."), verify).asks_elsewhere(),
        route(head(post.clone(), "/api/v1/repositories/{id}/collect", Access::ADMIN, "repository_collect", "Begins to give back what no point needs."), collect).asks_elsewhere(),
        route(head(get.clone(), "/api/v1/movers", Access::VIEWER, "mover_list", "Movers that have enrolled, as they stand."), movers),
        route(head(delete.clone(), "/api/v1/movers/{pin}", Access::ADMIN, "mover_revoke", "Locks a mover out for good."), revoke),
        route(head(get, "/api/v1/enrolments", Access::ADMIN, "enrolment_list", "Invitations of movers."), enrolments),
        route(head(post.clone(), "/api/v1/enrolments", Access::ADMIN, "enrolment_create", "Invites a mover; the line is shown this once."), invite),
        route(head(delete, "/api/v1/enrolments/{mover}", Access::ADMIN, "enrolment_delete", "Withdraws invitations that were not used."), withdraw),
        route(head(post.clone(), ENROL_PATH, Access::Public, "mover_enrol", "A mover's first certificate, for its invitation's secret."), enrol),
        route(head(post, RENEW_PATH, Access::Public, "mover_renew", "A mover's next certificate, for a request signed with its key."), renew),
    ]
}

async fn test(call: Call<Id>) -> Result<Shown<ConnectionTest>, Problem> {
    call.api.backend().test_vcenter(call.path).await.map(Shown)
}

async fn inventory(call: Call<Id>) -> Result<Listed<InventoryVm>, Problem> {
    call.api.backend().inventory(call.path).await.map(Listed::all)
}

async fn stat(call: Call<Id>) -> Result<Shown<RepositoryStat>, Problem> {
    call.api.backend().repository_stat(call.path).await.map(Shown)
}

async fn verify(call: Call<Id, (), Json<VerifyRequest>>) -> Result<Begun<SessionRecord>, Problem> {
    call.api.backend().verify(call.path, call.body.0, &call.who).await.map(Begun)
}

async fn collect(
    call: Call<Id, (), Json<CollectRequest>>,
) -> Result<Begun<SessionRecord>, Problem> {
    call.api.backend().collect(call.path, call.body.0, &call.who).await.map(Begun)
}

async fn movers(call: Call) -> Result<Listed<MoverState>, Problem> {
    call.api.backend().movers().await.map(Listed::all)
}

async fn revoke(call: Call<String>) -> Result<Done, Problem> {
    let pin: PeerId =
        call.path.parse().map_err(|error| Problem::bad_request(format!("{error}")))?;
    call.api.backend().revoke_mover(&pin.to_string()).await.map(|()| Done)
}

async fn enrolments(call: Call) -> Result<Listed<Enrolment>, Problem> {
    call.api.backend().enrolments().await.map(Listed::all)
}

async fn invite(
    call: Call<(), (), Json<EnrolmentRequest>>,
) -> Result<Made<EnrolmentMade>, Problem> {
    call.api.backend().create_enrolment(call.body.0).await.map(Made)
}

async fn withdraw(call: Call<String>) -> Result<Done, Problem> {
    call.api.backend().delete_enrolment(&call.path).await.map(|()| Done)
}

async fn enrol(call: Call<(), (), Json<Enrol>>) -> Result<Shown<Enrolled>, Problem> {
    let now_ms = now_ms();
    call.api.guard(call.peer, now_ms)?;
    let Json(Enrol { mover, secret, csr }) = call.body;
    let request = EnrolRequest { mover, secret: Secret::new(secret), csr };
    let reply = call.api.backend().enrol(request).await;
    reply.map(|reply| Shown(reply.into())).inspect_err(|problem| {
        if problem.status < 500 {
            call.api.failed(call.peer, now_ms);
        }
    })
}

async fn renew(call: Call<(), (), Json<Renew>>) -> Result<Shown<Enrolled>, Problem> {
    let now_ms = now_ms();
    call.api.guard(call.peer, now_ms)?;
    let reply = call.api.backend().renew(RenewRequest { csr: call.body.0.csr }).await;
    reply.map(|reply| Shown(reply.into())).inspect_err(|problem| {
        if problem.status < 500 {
            call.api.failed(call.peer, now_ms);
        }
    })
}
