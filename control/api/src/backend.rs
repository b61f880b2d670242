//! What the API asks of gantryd: one trait.
//!
//! In: checked requests. Out: records, views, or a [`Problem`]. The API checks who asks, bounds and
//! fields; a backend sees to it that what a record refers to exists, that names are unique (409),
//! and that secrets are kept encrypted and never given back. Methods end within
//! [`crate::limits::ANSWER_SECONDS_MAX`]: what takes longer begins a session and gives its record.

use async_trait::async_trait;
use gantry_common::enrolment::{EnrolReply, EnrolRequest, RenewRequest};
use gantry_common::secret::Secret;
use serde_json::Value;

use crate::access::{KnownToken, Principal, TokenDigest};
use crate::model::{
    CredentialRecord, Id, Job, Proxy, Repository, SessionKind, SessionRecord, SessionState,
    Setting, TrafficRule, VCenter,
};
use crate::problem::Problem;
use crate::record::Record;
use crate::views::{
    CollectRequest, ConnectionTest, Enrolment, EnrolmentMade, EnrolmentRequest, InventoryVm,
    MoverState, NumberedEvent, Point, Progress, RepositoryStat, RestoreRequest, StartRequest,
    StopMode, Token, TokenRequest, VerifyRequest, VmRun,
};

/// A backend's answer.
pub type Answered<T> = Result<T, Problem>;

/// Records of one kind.
#[async_trait]
pub trait Records<T: Record>: Send + Sync {
    /// All of them, by name.
    async fn list(&self) -> Answered<Vec<T>>;
    /// One; 404 if there is none.
    async fn get(&self, id: Id) -> Answered<T>;
    /// Keeps a new one, whose id the API has drawn, and its secret.
    async fn create(&self, record: T, secret: Option<Secret>) -> Answered<T>;
    /// Replaces one; without a secret the old one stays.
    async fn update(&self, record: T, secret: Option<Secret>) -> Answered<T>;
    /// Deletes one; 409 while something refers to it.
    async fn delete(&self, id: Id) -> Answered<()>;
}

/// Which sessions are listed, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// Of this job.
    pub job: Option<Id>,
    /// Of this kind.
    pub kind: Option<SessionKind>,
    /// In this state.
    pub state: Option<SessionState>,
    /// Older than this one: where the last page ended.
    pub after: Option<Id>,
    /// At most so many.
    pub limit: u32,
}

/// Which restore points are listed, oldest first within a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PointFilter {
    /// In this repository; nothing: in all.
    pub repository: Option<Id>,
    /// Of this name; nothing: of all.
    pub name: Option<String>,
    /// Deleted ones instead.
    pub deleted: bool,
}

/// What is done with a restore point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointChange {
    /// Deleted; the last of its name only if told so.
    Delete {
        /// Also if the name then has none left.
        last_too: bool,
    },
    /// Brought back.
    Undelete,
    /// Protected, or no longer.
    Protect(bool),
}

/// Numbers for `/metrics`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Numbers {
    /// Sessions that ended since gantryd began to count: kind, result, how many.
    pub sessions_ended: Vec<(String, String, u64)>,
    /// Sessions that are not over.
    pub sessions_running: u64,
    /// Tasks that run.
    pub tasks_running: u64,
    /// Tasks that wait for a slot.
    pub tasks_waiting: u64,
    /// Bytes read from sources since gantryd began to count.
    pub read_bytes: u64,
    /// Bytes sent between movers.
    pub transferred_bytes: u64,
    /// Repositories: name, free bytes, capacity.
    pub repositories: Vec<(String, u64, u64)>,
    /// Movers: role, how many are connected, how many have enrolled.
    pub movers: Vec<(String, u64, u64)>,
}

/// gantryd, as the API sees it. `who` is for the event log and for
/// [`SessionRecord::requested_by`].
#[async_trait]
pub trait Backend:
    Records<VCenter>
    + Records<Proxy>
    + Records<Repository>
    + Records<Job>
    + Records<TrafficRule>
    + Records<CredentialRecord>
{
    /// Every token that lets in; the API compares.
    async fn known_tokens(&self) -> Answered<Vec<KnownToken>>;
    /// Notes that a token was used.
    async fn token_used(&self, id: &str, now_ms: u64);
    /// Every token, without what could be used.
    async fn tokens(&self) -> Answered<Vec<Token>>;
    /// Keeps a new one by its digest.
    async fn create_token(
        &self,
        request: TokenRequest,
        digest: TokenDigest,
        now_ms: u64,
    ) -> Answered<Token>;
    /// Deletes one; 409 for the last administrator's.
    async fn delete_token(&self, id: Id) -> Answered<()>;

    /// Invitations of movers.
    async fn enrolments(&self) -> Answered<Vec<Enrolment>>;
    /// Makes one.
    async fn create_enrolment(&self, request: EnrolmentRequest) -> Answered<EnrolmentMade>;
    /// Withdraws those of this name that were not used.
    async fn delete_enrolment(&self, mover: &str) -> Answered<()>;
    /// A mover's first certificate. Comes without a token: the invitation's secret is checked here.
    async fn enrol(&self, request: EnrolRequest) -> Answered<EnrolReply>;
    /// A mover's next certificate.
    async fn renew(&self, request: RenewRequest) -> Answered<EnrolReply>;
    /// Movers that have enrolled.
    async fn movers(&self) -> Answered<Vec<MoverState>>;
    /// Locks a mover out for good.
    async fn revoke_mover(&self, pin: &str) -> Answered<()>;

    /// Logs in to a vCenter and looks.
    async fn test_vcenter(&self, id: Id) -> Answered<ConnectionTest>;
    /// Its machines.
    async fn inventory(&self, vcenter: Id) -> Answered<Vec<InventoryVm>>;

    /// What a repository holds.
    async fn repository_stat(&self, id: Id) -> Answered<RepositoryStat>;
    /// Begins to verify it.
    async fn verify(&self, id: Id, how: VerifyRequest, who: &Principal) -> Answered<SessionRecord>;
    /// Begins to collect.
    async fn collect(
        &self,
        id: Id,
        how: CollectRequest,
        who: &Principal,
    ) -> Answered<SessionRecord>;

    /// Machines that a job's selection names now.
    async fn job_vms(&self, id: Id) -> Answered<Vec<InventoryVm>>;
    /// Starts a job; 409 while it runs.
    async fn start_job(
        &self,
        id: Id,
        how: StartRequest,
        who: &Principal,
    ) -> Answered<SessionRecord>;
    /// Stops a job's session; 409 if none runs.
    async fn stop_job(&self, id: Id, mode: StopMode, who: &Principal) -> Answered<SessionRecord>;
    /// Lets its schedule start it, or no longer.
    async fn enable_job(&self, id: Id, enabled: bool) -> Answered<Job>;

    /// Sessions, newest first.
    async fn sessions(&self, filter: SessionFilter) -> Answered<Vec<SessionRecord>>;
    /// One; 404 if there is none.
    async fn session(&self, id: Id) -> Answered<SessionRecord>;
    /// Its machines and disks.
    async fn session_vms(&self, id: Id) -> Answered<Vec<VmRun>>;
    /// What was told of it with a number above `after` (0: from the start), in order.
    async fn session_events(&self, id: Id, after: u64, limit: u32) -> Answered<Vec<NumberedEvent>>;
    /// Its live numbers; of one that is over, the last ones. Live streams ask for it about once a
    /// second each: it must not wait for anything.
    async fn session_progress(&self, id: Id) -> Answered<Progress>;
    /// Stops it; 409 if it is over.
    async fn stop_session(
        &self,
        id: Id,
        mode: StopMode,
        who: &Principal,
    ) -> Answered<SessionRecord>;

    /// Restore points.
    async fn points(&self, filter: PointFilter) -> Answered<Vec<Point>>;
    /// One; 404 if there is none.
    async fn point(&self, repository: Id, point: &str) -> Answered<Point>;
    /// The machine's configuration that it keeps.
    async fn point_vm_config(&self, repository: Id, point: &str) -> Answered<Value>;
    /// Deletes it, brings it back, protects it.
    async fn change_point(
        &self,
        repository: Id,
        point: &str,
        change: PointChange,
    ) -> Answered<Point>;
    /// Begins a restore.
    async fn restore(&self, request: RestoreRequest, who: &Principal) -> Answered<SessionRecord>;

    /// Settings of the service.
    async fn settings(&self) -> Answered<Vec<Setting>>;
    /// Sets one; 404 for a name that there is not.
    async fn set_setting(&self, setting: Setting) -> Answered<Setting>;
    /// The whole configuration without secrets, to keep or to compare.
    async fn export(&self) -> Answered<Value>;
    /// Numbers for `/metrics`.
    async fn numbers(&self) -> Answered<Numbers>;
}
