//! gantryd as its REST API sees it: the API's one trait over the parts of the service.
//!
//! In: checked requests. Out: records of the database, facts of the fleet and of the vCenters,
//! sessions that were begun. `records` keeps configuration, `access` lets people and movers in,
//! `inventory` shows vCenters, `sessions` begins, shows and stops, `points` asks repositories.
//! Must not: hold a secret any longer than a request.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_api::access::{KnownToken, Principal, TokenDigest};
use gantry_api::backend::{Answered, Backend, Numbers, PointChange, PointFilter, SessionFilter};
use gantry_api::views::{
    CollectRequest, ConnectionTest, Enrolment, EnrolmentMade, EnrolmentRequest, InventoryVm,
    MoverState, NumberedEvent, Point, Progress, RepositoryStat, RestoreRequest, StartRequest,
    StopMode, Token, TokenRequest, VerifyRequest, VmRun,
};
use gantry_api::{Problem, Records};
use gantry_common::enrolment::{EnrolReply, EnrolRequest, RenewRequest};
use gantry_database::DatabaseError;
use gantry_database::model::{Id, Job, SessionRecord, Setting};
use serde_json::Value;

use super::Parts;
use super::start::Started;
use crate::fleet::enrolment::Enrolment as Admission;
use crate::run::now_ms;

mod access;
mod inventory;
mod points;
mod records;
mod sessions;

/// gantryd behind its API.
pub struct Gantryd {
    parts: Parts,
    admission: Arc<Admission>,
}

impl Gantryd {
    /// Over the parts that were started.
    pub fn new(started: &Started) -> Gantryd {
        Gantryd { parts: started.parts.clone(), admission: Arc::clone(&started.enrolment) }
    }
}

/// What a database's error is to a client.
fn refused(error: DatabaseError) -> Problem {
    let text = error.to_string();
    match error {
        DatabaseError::NotFound { what, key } => Problem::not_found(what, key),
        DatabaseError::Taken { .. } | DatabaseError::Stale { .. } => {
            Problem::conflict(text, "look at what is there, and choose otherwise")
        }
        DatabaseError::InUse { .. } => {
            Problem::conflict(text, "change or delete what uses it, then try again")
        }
        DatabaseError::StateMoved { .. } => Problem::conflict(text, "look at it again"),
        other if other.is_refusal() => Problem::invalid(text),
        _ => Problem::internal(text),
    }
}

#[async_trait]
impl Backend for Gantryd {
    async fn known_tokens(&self) -> Answered<Vec<KnownToken>> {
        self.all_known_tokens().await
    }

    async fn token_used(&self, id: &str, now_ms: u64) {
        self.note_token(id, now_ms).await;
    }

    async fn tokens(&self) -> Answered<Vec<Token>> {
        self.all_tokens().await
    }

    async fn create_token(
        &self,
        request: TokenRequest,
        digest: TokenDigest,
        now_ms: u64,
    ) -> Answered<Token> {
        self.keep_token(request, digest, now_ms).await
    }

    async fn delete_token(&self, id: Id) -> Answered<()> {
        self.drop_token(id, now_ms()).await
    }

    async fn enrolments(&self) -> Answered<Vec<Enrolment>> {
        let all = self.parts.database.enrolments().await.map_err(refused)?;
        Ok(all.into_iter().map(Enrolment::from).collect())
    }

    async fn create_enrolment(&self, request: EnrolmentRequest) -> Answered<EnrolmentMade> {
        self.invite(request).await
    }

    async fn delete_enrolment(&self, mover: &str) -> Answered<()> {
        self.parts.database.delete_enrolments(mover).await.map_err(refused)
    }

    async fn enrol(&self, request: EnrolRequest) -> Answered<EnrolReply> {
        Ok(self.admission.enroll(request, now_ms()).await.map_err(access::not_let_in)?)
    }

    async fn renew(&self, request: RenewRequest) -> Answered<EnrolReply> {
        Ok(self.admission.renew(request, now_ms()).await.map_err(access::not_let_in)?)
    }

    async fn movers(&self) -> Answered<Vec<MoverState>> {
        self.all_movers().await
    }

    async fn revoke_mover(&self, pin: &str) -> Answered<()> {
        self.lock_out(pin).await
    }

    async fn test_vcenter(&self, id: Id) -> Answered<ConnectionTest> {
        self.look_at_vcenter(id).await
    }

    async fn inventory(&self, vcenter: Id) -> Answered<Vec<InventoryVm>> {
        self.machines(vcenter).await
    }

    async fn repository_stat(&self, id: Id) -> Answered<RepositoryStat> {
        self.stat(id).await
    }

    async fn verify(&self, id: Id, how: VerifyRequest, who: &Principal) -> Answered<SessionRecord> {
        self.begin_verify(id, how, who).await
    }

    async fn collect(
        &self,
        id: Id,
        how: CollectRequest,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        self.begin_collect(id, how, who).await
    }

    async fn job_vms(&self, id: Id) -> Answered<Vec<InventoryVm>> {
        self.selected(id).await
    }

    async fn start_job(
        &self,
        id: Id,
        how: StartRequest,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        self.begin_job(id, how, who).await
    }

    async fn stop_job(&self, id: Id, mode: StopMode, who: &Principal) -> Answered<SessionRecord> {
        self.end_job(id, mode, who).await
    }

    async fn enable_job(&self, id: Id, enabled: bool) -> Answered<Job> {
        let mut job: Job = Records::<Job>::get(self, id).await?;
        job.enabled = enabled;
        Records::<Job>::update(self, job, None).await
    }

    async fn sessions(&self, filter: SessionFilter) -> Answered<Vec<SessionRecord>> {
        self.list_sessions(filter).await
    }

    async fn session(&self, id: Id) -> Answered<SessionRecord> {
        self.parts.database.session(id).await.map_err(refused)
    }

    async fn session_vms(&self, id: Id) -> Answered<Vec<VmRun>> {
        self.runs_with_disks(id).await
    }

    async fn session_events(&self, id: Id, after: u64, limit: u32) -> Answered<Vec<NumberedEvent>> {
        self.session(id).await?;
        let events = self.parts.database.events(id, after, limit).await.map_err(refused)?;
        Ok(events.into_iter().map(|(number, event)| NumberedEvent { number, event }).collect())
    }

    async fn session_progress(&self, id: Id) -> Answered<Progress> {
        self.numbers_of(id).await
    }

    async fn stop_session(
        &self,
        id: Id,
        mode: StopMode,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        self.end_session(id, mode, who).await
    }

    async fn points(&self, filter: PointFilter) -> Answered<Vec<Point>> {
        self.list_points(filter).await
    }

    async fn point(&self, repository: Id, point: &str) -> Answered<Point> {
        self.one_point(repository, point).await
    }

    async fn point_vm_config(&self, repository: Id, point: &str) -> Answered<Value> {
        self.config_of_point(repository, point).await
    }

    async fn change_point(
        &self,
        repository: Id,
        point: &str,
        change: PointChange,
    ) -> Answered<Point> {
        self.change(repository, point, change).await
    }

    async fn restore(&self, request: RestoreRequest, who: &Principal) -> Answered<SessionRecord> {
        self.begin_restore(request, who).await
    }

    async fn settings(&self) -> Answered<Vec<Setting>> {
        self.all_settings().await
    }

    async fn set_setting(&self, setting: Setting) -> Answered<Setting> {
        self.keep_setting(setting).await
    }

    async fn export(&self) -> Answered<Value> {
        self.whole_configuration().await
    }

    async fn numbers(&self) -> Answered<Numbers> {
        self.metrics().await
    }
}
