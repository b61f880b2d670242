//! The simulator's state and who may touch it.
//!
//! In: options and a site. Out: [`Sim`], shared by all listeners and tasks. One lock holds the site
//! and every endpoint's objects; it is never held across a wait or a disk operation.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::drill::{Rules, Writer};
use crate::guest::Systems;
use crate::model::Model;
use crate::requests::Requests;
use crate::schema::Ref;
use crate::session::Sessions;
use crate::site::{Site, Subject};
use crate::storage::{DiskId, Storage};
use crate::ticket::Tickets;

/// A password, which nothing prints.
#[derive(Clone, serde::Deserialize)]
#[serde(transparent)]
pub struct Password(String);

impl Password {
    /// Takes the password.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether a client's password is this one.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        self.0 == text
    }

    /// The password itself, for its file.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(not shown)")
    }
}

/// How the simulator behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The one user of all endpoints.
    pub user: String,
    /// That user's password.
    pub password: Password,
    /// Where datastores' folders are.
    pub root: PathBuf,
    /// After how long without a request a session expires.
    pub session_idle: Duration,
    /// Objects in a page of `RetrievePropertiesEx` when the client says nothing.
    pub page_objects: usize,
    /// Objects in one `UpdateSet` when the client says nothing.
    pub update_objects: usize,
    /// How long a task takes at least.
    pub task_time: Duration,
    /// After how long without progress an NFC lease ends.
    pub lease_time: Duration,
    /// NFC leases that may be open at a time.
    pub leases_open_max: usize,
    /// Privileges that the user lacks.
    pub denied: Vec<String>,
    /// What all random choices come from.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            user: "administrator@vsphere.local".into(),
            password: Password::new(String::new()),
            root: PathBuf::from("gantry-sim-datastores"),
            session_idle: Duration::from_secs(30 * 60),
            page_objects: 100,
            update_objects: 100,
            task_time: Duration::from_millis(20),
            lease_time: Duration::from_secs(300),
            leases_open_max: 50,
            denied: Vec::new(),
            seed: 1,
        }
    }
}

/// What an endpoint plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The vCenter of the whole site.
    VCenter,
    /// One ESXi host, by its number in the site.
    Host(usize),
}

/// One address that clients talk to.
#[derive(Debug)]
pub struct Endpoint {
    /// What it plays.
    pub kind: Kind,
    /// Its managed objects.
    pub model: Model,
    /// Its sessions.
    pub sessions: Sessions,
    /// Where it listens.
    pub address: Option<SocketAddr>,
    /// What its certificate is, as clients pin it.
    pub thumbprint: String,
    /// The same by SHA-256.
    pub thumbprint_sha256: String,
    /// Its certificate in PEM.
    pub certificate: String,
    /// Its one-time tickets.
    pub tickets: Tickets,
    /// Its tasks, oldest first.
    pub tasks: VecDeque<Ref>,
    /// Its events, oldest first.
    pub events: Vec<crate::schema::Value>,
    references: HashMap<Subject, Ref>,
    subjects: BTreeMap<Arc<str>, Subject>,
}

impl Endpoint {
    /// An endpoint without objects.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            model: Model::new(),
            sessions: Sessions::default(),
            address: None,
            thumbprint: String::new(),
            thumbprint_sha256: String::new(),
            certificate: String::new(),
            tickets: Tickets::default(),
            tasks: VecDeque::new(),
            events: Vec::new(),
            references: HashMap::new(),
            subjects: BTreeMap::new(),
        }
    }

    /// Ties a thing of the site to its object here.
    pub fn tie(&mut self, subject: Subject, reference: &Ref) {
        self.subjects.insert(reference.id.clone(), subject.clone());
        self.references.insert(subject, reference.clone());
        self.model.add(reference);
    }

    /// Removes a thing's object.
    pub fn untie(&mut self, subject: &Subject) {
        if let Some(reference) = self.references.remove(subject) {
            self.subjects.remove(&reference.id);
            self.model.remove(&reference.id);
        }
    }

    /// The object of a thing, if it has one here.
    #[must_use]
    pub fn reference(&self, subject: &Subject) -> Option<&Ref> {
        self.references.get(subject)
    }

    /// All things that have an object here.
    pub fn tied(&self) -> impl Iterator<Item = Subject> {
        self.references.keys().cloned().collect::<Vec<_>>().into_iter()
    }

    /// The thing behind an object.
    #[must_use]
    pub fn subject(&self, reference: &Ref) -> Option<&Subject> {
        self.subjects.get(&reference.id)
    }
}

/// Everything that changes.
#[derive(Debug)]
pub struct State {
    /// The simulated site.
    pub site: Site,
    /// The vCenter first, then each host.
    pub endpoints: Vec<Endpoint>,
    /// All random choices.
    pub random: fastrand::Rng,
    /// Machines that were unregistered and may come back, by the path of their `.vmx`.
    pub unregistered: BTreeMap<String, crate::site::Machine>,
    /// NFC leases that may be open at a time.
    pub leases_open_max: usize,
    /// Open and ended NFC leases by id.
    pub leases: BTreeMap<Arc<str>, crate::lease::Lease>,
}

/// The simulator.
#[derive(Debug)]
pub struct Sim {
    /// How it behaves.
    pub options: Options,
    /// The disk engine. Its calls block: never under the state's lock.
    pub storage: Storage,
    pub(crate) requests: Mutex<Requests>,
    rules: Mutex<Rules>,
    guests: Mutex<BTreeMap<DiskId, Writer>>,
    pub(crate) guest_systems: Mutex<Systems>,
    state: Mutex<State>,
}

impl Sim {
    /// A simulator of the site, with its vCenter and all its hosts, listening nowhere yet.
    #[must_use]
    pub fn new(options: Options, site: Site, storage: Storage) -> Arc<Self> {
        let mut endpoints = vec![Endpoint::new(Kind::VCenter)];
        endpoints.extend((0..site.hosts.len()).map(|host| Endpoint::new(Kind::Host(host))));
        let random = fastrand::Rng::with_seed(options.seed);
        let mut state = State {
            site,
            endpoints,
            random,
            unregistered: BTreeMap::new(),
            leases_open_max: options.leases_open_max,
            leases: BTreeMap::new(),
        };
        state.build(&options);
        let rules = Mutex::new(Rules::new(options.seed));
        let (guests, state) = (Mutex::default(), Mutex::new(state));
        let (requests, guest_systems) = (Mutex::default(), Mutex::default());
        Arc::new(Self { options, storage, requests, rules, guests, guest_systems, state })
    }

    /// The state, for as short as possible.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        // A handler that panicked has left at most one half-done change, which tests will show.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sim {
    /// The rules of drills.
    pub fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What writes for guests, by disk. What is taken out stops when it is dropped.
    pub fn guests(&self) -> MutexGuard<'_, BTreeMap<DiskId, Writer>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Tells every endpoint's watchers of what changed.
    pub fn publish(&mut self) {
        for endpoint in &mut self.endpoints {
            endpoint.model.publish();
        }
    }
}
