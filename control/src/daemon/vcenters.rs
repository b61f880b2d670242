//! The vCenters of the service: one broker each, opened when it is first needed, and what is undone
//! there on the way.
//!
//! In: records and passwords of the database. Out: [`OpenVCenter`]s with current facts. Before one is
//! used, what an interrupted gantryd left there and nobody goes on with is undone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;
use gantry_common::source::ServerTrust;
use gantry_database::Database;
use gantry_database::model::{Id, SessionKind, VCenter as Record};
use gantry_http::{Endpoint, Trust};

use crate::broker::Broker;
use crate::config;
use crate::ledger::Ledger;
use crate::run::removal::remove_stranded;
use crate::run::undo::undo_all;
use crate::run::{failed, vcenter_id};
use crate::snapshots::remove::usual_pauses;
use crate::vcenter::{Settings, VCenter};

/// How long the inventory may take at first.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// A vCenter at work.
pub struct OpenVCenter {
    /// Its instance UUID.
    pub id: String,
    /// Its facts.
    pub broker: Broker,
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// Whose certificate it shows.
    pub trust: ServerTrust,
    /// This installation and it, for snapshots' marks.
    pub owner: String,
}

/// All of them. Cloning is cheap.
#[derive(Clone)]
pub struct VCenters {
    database: Database,
    ledger: Arc<Ledger>,
    state: PathBuf,
    open: Arc<Mutex<BTreeMap<Id, Arc<OpenVCenter>>>>,
    /// One is opened at a time.
    opening: Arc<tokio::sync::Mutex<()>>,
}

impl VCenters {
    /// None is open yet.
    pub fn new(database: Database, ledger: Arc<Ledger>, state: PathBuf) -> VCenters {
        let (open, opening) = (Arc::default(), Arc::default());
        VCenters { database, ledger, state, open, opening }
    }

    fn found(&self, id: Id) -> Option<Arc<OpenVCenter>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn all(&self) -> Vec<Arc<OpenVCenter>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().cloned().collect()
    }

    /// Instance UUIDs of those that are open.
    pub fn ids(&self) -> Vec<String> {
        self.all().iter().map(|vcenter| vcenter.id.clone()).collect()
    }

    /// Names of the datastores that the host of a proxy's machine reaches.
    pub fn datastores_of_proxy(&self, instance_uuid: &str) -> BTreeSet<String> {
        let of = |vcenter: &Arc<OpenVCenter>| {
            vcenter.broker.read(|cache| {
                let (_, facts) = cache.vm_by_instance_uuid(instance_uuid)?;
                let host = cache.host(facts.host.as_ref()?)?;
                let name = |moref| Some(cache.datastore(moref)?.name.to_string());
                Some(host.datastores.iter().filter_map(name).collect::<BTreeSet<_>>())
            })
        };
        self.all().iter().find_map(of).unwrap_or_default()
    }

    /// A vCenter by its record's id, opened if it is not.
    ///
    /// # Errors
    /// It is not configured, cannot be reached, or refuses.
    pub async fn open(&self, id: Id) -> Result<Arc<OpenVCenter>, Failure> {
        if let Some(found) = self.found(id) {
            found
                .broker
                .ready(READY_WITHIN)
                .await
                .map_err(|text| failed(FailureKind::Network, text))?;
            return Ok(found);
        }
        let _one = self.opening.lock().await;
        if let Some(found) = self.found(id) {
            return Ok(found);
        }
        let record = self.database.get::<Record>(id).await?.value;
        let opened = Arc::new(self.connect(&record).await?);
        self.clean(&opened).await?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&opened));
        Ok(opened)
    }

    /// A record was changed or deleted: it is opened anew when it is needed next.
    pub fn close(&self, id: Id) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Logs in and waits for the inventory.
    ///
    /// # Errors
    /// As any call.
    pub async fn connect(&self, record: &Record) -> Result<OpenVCenter, Failure> {
        let endpoint = config::endpoint(&record.url)?;
        let password = self.database.secret(&record.password()).await?.ok_or_else(|| {
            failed(FailureKind::Usage, format!("vCenter {} has no password", record.name))
        })?;
        let trust = match &record.trust {
            ServerTrust::Thumbprint(text) => Trust::Sha256Thumbprint(
                text.parse().map_err(|error| failed(FailureKind::Usage, error))?,
            ),
            ServerTrust::CaPem(pem) => Trust::CaPem(pem.clone().into_bytes()),
        };
        let settings = Settings::new(endpoint.clone(), trust, &record.user, password);
        let vcenter = VCenter::new(settings).map_err(|error| error.failure())?;
        let id = vcenter_id(&vcenter).await?;
        let owner = config::owner(&self.state, &id)?;
        let broker = Broker::start(vcenter);
        broker.ready(READY_WITHIN).await.map_err(|text| failed(FailureKind::Network, text))?;
        Ok(OpenVCenter { id, broker, endpoint, trust: record.trust.clone(), owner })
    }

    /// Undoes what nobody goes on with: at first, and again from time to time.
    ///
    /// # Errors
    /// Of ledger and database; what cannot be undone stays, and is told.
    pub async fn clean(&self, vcenter: &OpenVCenter) -> Result<(), Failure> {
        // Read before the runs: what is in it now and belongs to none of them was left by one that ended.
        let mut left = self.ledger.open_undos();
        let runs = self.database.unfinished_vm_runs().await?;
        let sessions = self.database.unfinished_sessions().await?;
        let restores = sessions.iter().filter(|session| session.kind == SessionKind::Restore);
        let going_on = runs.iter().map(|run| run.id).chain(restores.map(|session| session.id));
        let going_on: Vec<SessionId> = going_on.map(SessionId::from).collect();
        left.retain(|open| open.session.parse().map_or(true, |run| !going_on.contains(&run)));
        let (client, pauses) = (vcenter.broker.vcenter(), usual_pauses());
        let mut lines = undo_all(client, &vcenter.id, &self.ledger, left, &pauses).await?;
        let stranded = remove_stranded(&vcenter.broker, &vcenter.owner, &self.ledger, &pauses);
        lines.extend(stranded.await);
        lines.iter().for_each(|line| tracing::warn!("{line}"));
        Ok(())
    }

    /// [`VCenters::clean`] for each that is open.
    pub async fn clean_all(&self) {
        for vcenter in self.all() {
            if let Err(failure) = self.clean(&vcenter).await {
                tracing::warn!("{failure}");
            }
        }
    }
}
