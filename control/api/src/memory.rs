//! A backend in memory: for tests of the API and of its clients.
//!
//! In: what the API asks. Out: answers, as gantryd's would look; a job that is started makes
//! a session with one machine and one disk, which [`Memory::advance`] carries on. Keeps nothing and
//! reaches nobody. References between records are checked as far as tests need it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use gantry_common::enrolment::{EnrolReply, EnrolRequest, RenewRequest};
use gantry_common::secret::Secret;
use serde_json::{Value, json};

use crate::access::{KnownToken, Principal, TokenDigest};
use crate::backend::{
    Answered, Backend, Numbers, PointChange, PointFilter, Records, SessionFilter,
};
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

mod sessions;

/// Records of one kind that are kept at most.
const RECORDS_MAX: usize = 2000;

/// Everything that there is.
#[derive(Default)]
struct State {
    vcenters: BTreeMap<Id, VCenter>,
    proxies: BTreeMap<Id, Proxy>,
    repositories: BTreeMap<Id, Repository>,
    jobs: BTreeMap<Id, Job>,
    rules: BTreeMap<Id, TrafficRule>,
    credentials: BTreeMap<Id, CredentialRecord>,
    secrets: BTreeMap<Id, Secret>,
    tokens: BTreeMap<Id, (Token, TokenDigest)>,
    enrolments: BTreeMap<String, Enrolment>,
    sessions: BTreeMap<Id, SessionRecord>,
    events: BTreeMap<Id, Vec<NumberedEvent>>,
    points: Vec<Point>,
    settings: BTreeMap<String, Value>,
    now_ms: u64,
}

/// The backend.
#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets in who has the token with this digest.
    pub fn add_token(&self, name: &str, role: crate::model::Role, digest: TokenDigest) -> Id {
        let id = Id::draw(1);
        let token = Token {
            id,
            name: name.to_owned(),
            role,
            created_ms: 1,
            expires_ms: None,
            last_used_ms: None,
        };
        self.lock().tokens.insert(id, (token, digest));
        id
    }

    /// Adds a restore point.
    pub fn add_point(&self, point: Point) {
        self.lock().points.push(point);
    }

    /// The secret that came with a record: nothing else shows it.
    pub fn secret(&self, id: Id) -> Option<Secret> {
        self.lock().secrets.get(&id).cloned()
    }
}

/// A record of a map, by the map's field.
macro_rules! records {
    ($type:ty, $field:ident) => {
        #[async_trait]
        impl Records<$type> for Memory {
            async fn list(&self) -> Answered<Vec<$type>> {
                let mut all: Vec<$type> = self.lock().$field.values().cloned().collect();
                all.sort_by(|a, b| a.name.cmp(&b.name));
                Ok(all)
            }

            async fn get(&self, id: Id) -> Answered<$type> {
                let found = self.lock().$field.get(&id).cloned();
                found.ok_or_else(|| Problem::not_found(<$type>::KIND, id))
            }

            async fn create(&self, record: $type, secret: Option<Secret>) -> Answered<$type> {
                let mut state = self.lock();
                if state.$field.len() >= RECORDS_MAX {
                    return Err(Problem::conflict("there are too many", "delete some"));
                }
                unique(state.$field.values(), &record)?;
                state.$field.insert(record.id, record.clone());
                secret.map(|secret| state.secrets.insert(record.id, secret));
                Ok(record)
            }

            async fn update(&self, record: $type, secret: Option<Secret>) -> Answered<$type> {
                let mut state = self.lock();
                unique(state.$field.values(), &record)?;
                state.$field.insert(record.id, record.clone());
                secret.map(|secret| state.secrets.insert(record.id, secret));
                Ok(record)
            }

            async fn delete(&self, id: Id) -> Answered<()> {
                let mut state = self.lock();
                state.secrets.remove(&id);
                let found = state.$field.remove(&id);
                found.map(drop).ok_or_else(|| Problem::not_found(<$type>::KIND, id))
            }
        }
    };
}

records!(VCenter, vcenters);
records!(Proxy, proxies);
records!(Repository, repositories);
records!(Job, jobs);
records!(TrafficRule, rules);
records!(CredentialRecord, credentials);

fn unique<'a, T: Record>(mut all: impl Iterator<Item = &'a T>, record: &T) -> Answered<()> {
    match all.any(|other| other.name() == record.name() && other.id() != record.id()) {
        true => {
            let detail = format!("there is a {} '{}' already", T::KIND, record.name());
            Err(Problem::conflict(detail, "choose another name"))
        }
        false => Ok(()),
    }
}

fn exists<T>(map: &BTreeMap<Id, T>, kind: &str, id: Id) -> Answered<()> {
    map.get(&id).map(drop).ok_or_else(|| Problem::not_found(kind, id))
}

#[async_trait]
impl Backend for Memory {
    async fn known_tokens(&self) -> Answered<Vec<KnownToken>> {
        let state = self.lock();
        let known = state.tokens.values().map(|(token, digest)| KnownToken {
            id: token.id.to_string(),
            name: token.name.clone(),
            role: token.role,
            digest: *digest,
            expires_ms: token.expires_ms,
        });
        Ok(known.collect())
    }

    async fn token_used(&self, id: &str, now_ms: u64) {
        let mut state = self.lock();
        let used = id.parse().ok().and_then(|id: Id| state.tokens.get_mut(&id));
        if let Some((token, _)) = used {
            token.last_used_ms = Some(now_ms);
        }
    }

    async fn tokens(&self) -> Answered<Vec<Token>> {
        Ok(self.lock().tokens.values().map(|(token, _)| token.clone()).collect())
    }

    async fn create_token(
        &self,
        request: TokenRequest,
        digest: TokenDigest,
        now_ms: u64,
    ) -> Answered<Token> {
        let expires_ms = request.valid_ms.map(|valid| now_ms.saturating_add(valid));
        let (id, TokenRequest { name, role, .. }) = (Id::draw(now_ms), request);
        let token = Token { id, name, role, created_ms: now_ms, expires_ms, last_used_ms: None };
        self.lock().tokens.insert(id, (token.clone(), digest));
        Ok(token)
    }

    async fn delete_token(&self, id: Id) -> Answered<()> {
        let found = self.lock().tokens.remove(&id);
        found.map(drop).ok_or_else(|| Problem::not_found("token", id))
    }

    async fn enrolments(&self) -> Answered<Vec<Enrolment>> {
        Ok(self.lock().enrolments.values().cloned().collect())
    }

    async fn create_enrolment(&self, request: EnrolmentRequest) -> Answered<EnrolmentMade> {
        let EnrolmentRequest { mover, role, valid_seconds } = request;
        let expires_ms = valid_seconds * 1000;
        let enrolment = Enrolment { mover, role, created_ms: 0, expires_ms, used_ms: None };
        self.lock().enrolments.insert(enrolment.mover.clone(), enrolment.clone());
        Ok(EnrolmentMade { enrolment, line: "bWVtb3J5".to_owned() })
    }

    async fn delete_enrolment(&self, mover: &str) -> Answered<()> {
        let found = self.lock().enrolments.remove(mover);
        found.map(drop).ok_or_else(|| Problem::not_found("enrolment", mover))
    }

    async fn enrol(&self, request: EnrolRequest) -> Answered<EnrolReply> {
        match request.secret.reveal() == "invited" {
            true => Ok(EnrolReply { certificate: "PEM".into(), authority: "PEM".into() }),
            false => Err(Problem::not_found("enrolment", &request.mover)),
        }
    }

    async fn renew(&self, _request: RenewRequest) -> Answered<EnrolReply> {
        Err(Problem::invalid("csr: is signed with no enrolled key"))
    }

    async fn movers(&self) -> Answered<Vec<MoverState>> {
        Ok(Vec::new())
    }

    async fn revoke_mover(&self, pin: &str) -> Answered<()> {
        Err(Problem::not_found("mover", pin))
    }

    async fn test_vcenter(&self, id: Id) -> Answered<ConnectionTest> {
        exists(&self.lock().vcenters, "vcenter", id)?;
        Ok(ConnectionTest { product: "VMware in memory".to_owned(), ..ConnectionTest::default() })
    }

    async fn inventory(&self, vcenter: Id) -> Answered<Vec<InventoryVm>> {
        exists(&self.lock().vcenters, "vcenter", vcenter)?;
        let web = InventoryVm { name: "web01".to_owned(), ..InventoryVm::default() };
        Ok(vec![web])
    }

    async fn repository_stat(&self, id: Id) -> Answered<RepositoryStat> {
        exists(&self.lock().repositories, "repository", id)?;
        Ok(RepositoryStat { capacity_bytes: 1 << 40, free_bytes: 1 << 39, report: json!({}) })
    }

    async fn verify(&self, id: Id, _: VerifyRequest, who: &Principal) -> Answered<SessionRecord> {
        exists(&self.lock().repositories, "repository", id)?;
        self.begin(SessionKind::Maintenance, None, "verify", who)
    }

    async fn collect(&self, id: Id, _: CollectRequest, who: &Principal) -> Answered<SessionRecord> {
        exists(&self.lock().repositories, "repository", id)?;
        self.begin(SessionKind::Maintenance, None, "collect", who)
    }

    async fn job_vms(&self, id: Id) -> Answered<Vec<InventoryVm>> {
        exists(&self.lock().jobs, "job", id)?;
        Ok(vec![InventoryVm { name: "web01".to_owned(), ..InventoryVm::default() }])
    }

    async fn start_job(
        &self,
        id: Id,
        _how: StartRequest,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        let job = Records::<Job>::get(self, id).await?;
        if self.running(id).is_some() {
            let detail = format!("job '{}' runs already", job.name);
            return Err(Problem::conflict(detail, "wait for its end, or stop it"));
        }
        self.begin(SessionKind::Backup, Some(id), &job.name, who)
    }

    async fn stop_job(&self, id: Id, mode: StopMode, who: &Principal) -> Answered<SessionRecord> {
        exists(&self.lock().jobs, "job", id)?;
        let Some(session) = self.running(id) else {
            return Err(Problem::conflict("the job does not run", "nothing is to be done"));
        };
        self.stop_session(session, mode, who).await
    }

    async fn enable_job(&self, id: Id, enabled: bool) -> Answered<Job> {
        let mut state = self.lock();
        let job = state.jobs.get_mut(&id).ok_or_else(|| Problem::not_found("job", id))?;
        job.enabled = enabled;
        Ok(job.clone())
    }

    async fn sessions(&self, filter: SessionFilter) -> Answered<Vec<SessionRecord>> {
        let state = self.lock();
        let fits = |session: &&SessionRecord| {
            filter.job.is_none_or(|job| session.job == Some(job))
                && filter.kind.is_none_or(|kind| session.kind == kind)
                && filter.state.is_none_or(|state| session.state == state)
                && filter.after.is_none_or(|after| session.id < after)
        };
        let newest = state.sessions.values().rev().filter(fits);
        Ok(newest.take(filter.limit as usize).cloned().collect())
    }

    async fn session(&self, id: Id) -> Answered<SessionRecord> {
        self.lock().sessions.get(&id).cloned().ok_or_else(|| Problem::not_found("session", id))
    }

    async fn session_vms(&self, id: Id) -> Answered<Vec<VmRun>> {
        self.session(id).await.map(|_| Vec::new())
    }

    async fn session_events(&self, id: Id, after: u64, limit: u32) -> Answered<Vec<NumberedEvent>> {
        self.session(id).await?;
        let state = self.lock();
        let all = state.events.get(&id).into_iter().flatten();
        let later = all.filter(|event| event.number > after);
        Ok(later.take(limit as usize).cloned().collect())
    }

    async fn session_progress(&self, id: Id) -> Answered<Progress> {
        self.session(id).await.map(|session| sessions::progress(&session))
    }

    async fn stop_session(
        &self,
        id: Id,
        _mode: StopMode,
        _who: &Principal,
    ) -> Answered<SessionRecord> {
        if self.session(id).await?.state == SessionState::Finished {
            return Err(Problem::conflict("the session is over", "nothing is to be done"));
        }
        self.finish(id);
        self.session(id).await
    }

    async fn points(&self, filter: PointFilter) -> Answered<Vec<Point>> {
        let state = self.lock();
        let fits = |point: &&Point| {
            filter.repository.is_none_or(|repository| point.repository == repository)
                && filter.name.as_ref().is_none_or(|name| point.name == *name)
                && point.deleted == filter.deleted
        };
        Ok(state.points.iter().filter(fits).cloned().collect())
    }

    async fn point(&self, repository: Id, point: &str) -> Answered<Point> {
        let state = self.lock();
        let mut all = state.points.iter();
        let found = all.find(|each| each.repository == repository && each.id == point);
        found.cloned().ok_or_else(|| Problem::not_found("point", point))
    }

    async fn point_vm_config(&self, repository: Id, point: &str) -> Answered<Value> {
        self.point(repository, point).await.map(|point| json!({"name": point.name}))
    }

    async fn change_point(
        &self,
        repository: Id,
        point: &str,
        change: PointChange,
    ) -> Answered<Point> {
        self.point(repository, point).await?;
        let mut state = self.lock();
        let found = state.points.iter_mut().find(|each| each.id == point);
        let found = found.ok_or_else(|| Problem::not_found("point", point))?;
        match change {
            PointChange::Delete { .. } => found.deleted = true,
            PointChange::Undelete => found.deleted = false,
            PointChange::Protect(on) => {
                found.flags.retain(|flag| flag != "protected");
                found.flags.extend(on.then(|| "protected".to_owned()));
            }
        }
        Ok(found.clone())
    }

    async fn restore(&self, request: RestoreRequest, who: &Principal) -> Answered<SessionRecord> {
        exists(&self.lock().repositories, "repository", request.repository)?;
        self.begin(SessionKind::Restore, None, &request.name, who)
    }

    async fn settings(&self) -> Answered<Vec<Setting>> {
        let state = self.lock();
        let all = state.settings.iter();
        Ok(all.map(|(name, value)| Setting { name: name.clone(), value: value.clone() }).collect())
    }

    async fn set_setting(&self, setting: Setting) -> Answered<Setting> {
        if setting.name != Setting::SESSION_DAYS {
            return Err(Problem::not_found("setting", setting.name));
        }
        self.lock().settings.insert(setting.name.clone(), setting.value.clone());
        Ok(setting)
    }

    async fn export(&self) -> Answered<Value> {
        let state = self.lock();
        let jobs: Vec<&Job> = state.jobs.values().collect();
        Ok(json!({"jobs": jobs, "vcenters": state.vcenters.values().collect::<Vec<_>>()}))
    }

    async fn numbers(&self) -> Answered<Numbers> {
        let state = self.lock();
        let repositories = state.repositories.values();
        let repositories = repositories.map(|each| (each.name.clone(), 1 << 39, 1 << 40)).collect();
        Ok(Numbers { repositories, ..Numbers::default() })
    }
}
