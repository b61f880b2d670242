//! gantryd: the thin control plane as a service.
//!
//! In: a state folder, addresses to listen on. Out: sessions that run, the fleet of movers, the REST
//! API. [`Parts`] is what everything shares: configuration database, fleet, scheduler, ledger, vCenters.
//! Invariant: what was about to be done is written down before; a start goes on with what an
//! interrupted gantryd left, and undoes what nobody wants any more. Must not: touch block data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::PeerId;
use gantry_database::model::{
    EventRecord, Id, Proxy, Repository, SessionRecord, SessionResult, SessionState, Severity,
    VmRunRecord,
};
use gantry_database::{Database, Page};
use gantry_scheduler::DatastoreName;
use tokio::sync::{Notify, watch};

mod application;
mod attempts;
pub mod backend;
mod calendar;
pub mod clock;
pub mod copies;
pub mod dispatcher;
mod facts;
mod job_start;
pub mod journal;
pub mod live;
mod maintenance;
pub mod program;
mod registry;
pub mod restore;
pub mod sessions;
pub mod settings;
mod site;
pub mod start;
mod sums;
mod times;
pub mod traffic;
pub mod vcenters;
mod waits;

use self::clock::Clock;
use self::dispatcher::Dispatcher;
use self::journal::EventWriter;
use self::live::{Change, Live};
use self::traffic::Traffic;
use self::vcenters::VCenters;
use crate::fleet::{Fleet, MoverView};
use crate::ledger::Ledger;
use crate::run::site::{Proxy as RunProxy, Wish};
use crate::run::{failed, now_ms};

/// Records of one kind that are read at once.
const RECORDS_MAX: u32 = 1000;

/// What everything shares. Cloning is cheap.
#[derive(Clone)]
pub struct Parts {
    /// Configuration and sessions.
    pub database: Database,
    /// The movers.
    pub fleet: Fleet,
    /// The scheduler.
    pub dispatcher: Dispatcher,
    /// What stands in vSphere until it is undone.
    pub ledger: Arc<Ledger>,
    /// The log.
    pub events: EventWriter,
    /// What runs right now.
    pub live: Live,
    /// The vCenters.
    pub vcenters: VCenters,
    /// The throttle.
    pub traffic: Traffic,
    /// The clock of schedules and windows.
    pub clock: Clock,
    /// Has the calendar look at once, as after a job was changed.
    pub calendar: Arc<Notify>,
    /// How long a restore waits for a proxy that is gone.
    pub proxy_back_within: Duration,
    /// A session of a job begins: one at a time.
    starting: Arc<tokio::sync::Mutex<()>>,
    known: Arc<RwLock<Known>>,
    running: Arc<Mutex<BTreeMap<Id, watch::Sender<Wish>>>>,
    counts: Arc<Mutex<Counts>>,
}

/// What has happened since gantryd began to count, for metrics.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Sessions that ended: kind, result, how many.
    pub sessions_ended: Vec<(String, String, u64)>,
    /// Bytes read from sources by sessions that ended.
    pub read_bytes: u64,
    /// Bytes sent between movers by them.
    pub transferred_bytes: u64,
}

impl Counts {
    fn note(&mut self, record: &SessionRecord) {
        let word = |value: serde_json::Result<serde_json::Value>| {
            value.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
        };
        let kind = word(serde_json::to_value(record.kind));
        let result = word(serde_json::to_value(record.result.unwrap_or(SessionResult::Failed)));
        let known = self.sessions_ended.iter_mut().find(|(a, b, _)| (a, b) == (&kind, &result));
        match known {
            Some((_, _, count)) => *count += 1,
            None => self.sessions_ended.push((kind, result, 1)),
        }
        self.read_bytes += record.totals.read_bytes;
        self.transferred_bytes += record.totals.transferred_bytes;
    }
}

/// Records that are looked at all the time.
#[derive(Debug, Default)]
struct Known {
    proxies: Vec<Proxy>,
    repositories: Vec<Repository>,
}

impl Parts {
    /// Reads proxies and repositories anew: after each change of them, and at the start.
    ///
    /// # Errors
    /// Of the database.
    pub async fn refresh(&self) -> Result<(), Failure> {
        let page = Page::first(RECORDS_MAX);
        let proxies = self.database.list::<Proxy>(&page).await?;
        let repositories = self.database.list::<Repository>(&page).await?;
        let known = Known {
            proxies: proxies.into_iter().map(|stored| stored.value).collect(),
            repositories: repositories.into_iter().map(|stored| stored.value).collect(),
        };
        let gone: Vec<String> = {
            let mut held = self.known.write().unwrap_or_else(PoisonError::into_inner);
            let is_left = |old: &Proxy| known.proxies.iter().any(|new| new.name == old.name);
            let gone = held.proxies.iter().filter(|old| !is_left(old));
            let gone = gone.map(|proxy| proxy.name.clone()).collect();
            *held = known;
            gone
        };
        gone.iter().for_each(|name| self.dispatcher.remove_proxy(&name.as_str().into()));
        self.tell_scheduler();
        Ok(())
    }

    /// By which name the scheduler knows a datastore.
    pub fn datastore_name(&self, vcenter: &str, datastore: &str) -> DatastoreName {
        format!("{vcenter}/{datastore}").into()
    }

    /// Every proxy that is in service and whose mover is connected.
    pub fn proxies(&self) -> Vec<RunProxy> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let connected = |proxy: &&Proxy| proxy.enabled && self.view(proxy.mover).is_some();
        let there = known.proxies.iter().filter(connected);
        there
            .map(|proxy| {
                let facts =
                    facts::proxy_facts(proxy, self.view(proxy.mover).as_ref(), &self.vcenters);
                RunProxy { id: proxy.name.clone(), facts }
            })
            .collect()
    }

    /// Whether every mover that is in service is connected.
    pub fn is_complete(&self) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let proxies = known.proxies.iter().filter(|proxy| proxy.enabled).map(|proxy| proxy.mover);
        let mut pins = proxies.chain(known.repositories.iter().map(|one| one.mover));
        pins.all(|pin| self.view(pin).is_some())
    }

    /// The mover of a proxy, if it is connected.
    pub fn mover_of_proxy(&self, name: &str) -> Option<MoverView> {
        self.view(self.known_mover_of_proxy(name)?)
    }

    /// The key of a proxy's mover.
    pub fn known_mover_of_proxy(&self, name: &str) -> Option<PeerId> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.proxies.iter().find(|proxy| proxy.name == name).map(|proxy| proxy.mover)
    }

    /// Names of proxies by their ids.
    pub fn proxy_names(&self, ids: &[Id]) -> BTreeSet<String> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let chosen = known.proxies.iter().filter(|proxy| ids.contains(&proxy.id));
        chosen.map(|proxy| proxy.name.clone()).collect()
    }

    /// Keys of the repositories' movers that are connected.
    fn repository_movers(&self) -> BTreeSet<PeerId> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let pins = known.repositories.iter().map(|repository| repository.mover);
        pins.filter(|pin| self.view(*pin).is_some()).collect()
    }

    /// A repository's record.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn repository(&self, id: Id) -> Result<Repository, Failure> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let found = known.repositories.iter().find(|repository| repository.id == id);
        found.cloned().ok_or_else(|| {
            failed(FailureKind::Usage, format!("there is no repository {id} (any more)"))
        })
    }

    /// A mover that is connected.
    fn view(&self, pin: PeerId) -> Option<MoverView> {
        let mut movers = self.fleet.movers().into_iter();
        movers.find(|mover| mover.pin == pin && mover.connected_since_ms.is_some())
    }

    /// A line of a session's log.
    pub fn say(&self, session: Id, severity: Severity, text: &str) {
        let (vm, disk, time_ms) = (None, None, now_ms());
        self.events.say(EventRecord {
            session,
            vm,
            disk,
            time_ms,
            severity,
            text: text.to_owned(),
        });
    }

    async fn runs_of(&self, session: Id) -> Result<Vec<VmRunRecord>, Failure> {
        Ok(self.database.vm_runs(session).await?)
    }

    async fn add_runs(&self, session: Id, runs: &[VmRunRecord]) -> Result<(), Failure> {
        Ok(self.database.add_vm_runs(session, runs).await?)
    }

    /// Begins a session that is written down, or goes on with one.
    pub fn begin(&self, record: SessionRecord) {
        let wish = match record.state {
            SessionState::Stopping => {
                Wish::DoNotBegin("it was being stopped when gantryd was interrupted".to_owned())
            }
            _ => Wish::GoOn,
        };
        let (sender, wish) = watch::channel(wish);
        let id = record.id;
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        self.live.tell(Change::State { session: id });
        tokio::spawn(sessions::run(self.clone(), record, wish));
    }

    /// Tells a session to end; false: it does not run. A weaker wish than the one that it has
    /// changes nothing.
    pub fn stop(&self, session: Id, wish: Wish) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = running.get(&session) else { return false };
        sender.send_if_modified(|held| {
            let is_stronger = match held {
                Wish::GoOn => wish != Wish::GoOn,
                Wish::DoNotBegin(_) => wish.stop().is_some(),
                Wish::Stop(_) => false,
            };
            if is_stronger {
                *held = wish;
            }
            is_stronger
        });
        true
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sessions that run.
    pub fn running(&self) -> Vec<Id> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Writes a session's end down.
    async fn finish(&self, record: SessionRecord) {
        self.events.flush().await;
        let result = record.result.unwrap_or(SessionResult::Failed);
        let (reason, totals) = (record.reason.as_deref(), &record.totals);
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).note(&record);
        let done =
            self.database.finish_session(record.id, result, reason, totals, self.clock.now_ms());
        let done = done.await;
        if let Err(error) = done {
            tracing::error!("session {}: its end could not be kept: {error}", record.id);
        }
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&record.id);
        self.live.forget_session(record.id);
        self.live.tell(Change::State { session: record.id });
        // Other jobs may follow this one.
        self.calendar.notify_one();
    }
}
