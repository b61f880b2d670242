//! Feeds the cache: waits for updates, resynchronises after a loss, reads again what it must.
//!
//! In: a vCenter. Out: a [`Broker`] whose cache follows it. A task does it until the broker is
//! dropped. Loss of the session, of the connection or of the collector's version all have one
//! answer: a new view, a new filter, a full listing; meanwhile the old facts serve, with their age
//! told by [`BrokerState`].

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::cache::Cache;
use super::parse::{
    DATASTORE_PATHS, HOST_PATHS, PLACE_PATHS, VM_KEY_PATH, VM_KEY_SINCE, VM_PATHS, text,
};
use crate::limits;
use crate::vcenter::property::{Properties, Start};
use crate::vcenter::updates::Watch;
use crate::vcenter::{MoRef, VCenter, VimError};

/// The types that the view holds; a compute resource may be a cluster.
const VIEW_KINDS: [&str; 6] =
    ["VirtualMachine", "HostSystem", "Datastore", "Folder", "Datacenter", "ComputeResource"];

/// How current the facts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerState {
    /// The first listing is under way.
    Starting,
    /// They follow the vCenter.
    Current,
    /// The vCenter is lost; the facts are as old as this.
    Lost {
        /// Since when.
        since: Instant,
        /// The last error.
        error: String,
    },
}

/// The cache of one vCenter, kept current by a task; needs a tokio runtime.
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    state: watch::Receiver<BrokerState>,
    task: tokio::task::AbortHandle,
}

#[derive(Debug)]
struct Shared {
    vcenter: VCenter,
    cache: RwLock<Cache>,
    state: watch::Sender<BrokerState>,
}

impl Broker {
    /// Begins to follow a vCenter.
    pub fn start(vcenter: VCenter) -> Broker {
        let (sender, state) = watch::channel(BrokerState::Starting);
        let cache = RwLock::new(Cache::new());
        let shared = Arc::new(Shared { vcenter, cache, state: sender });
        let task = tokio::spawn(follow(shared.clone())).abort_handle();
        Broker { shared, state, task }
    }

    /// Waits until the facts are complete and current.
    ///
    /// # Errors
    /// What the last try to reach the vCenter met, after `within`.
    pub async fn ready(&self, within: Duration) -> Result<(), String> {
        let mut state = self.state.clone();
        let current = state.wait_for(|state| *state == BrokerState::Current);
        if tokio::time::timeout(within, current).await.is_ok_and(|found| found.is_ok()) {
            return Ok(());
        }
        Err(match self.state() {
            BrokerState::Lost { error, .. } => error,
            _ => format!("the inventory was not complete within {} s", within.as_secs()),
        })
    }

    /// How current the facts are.
    pub fn state(&self) -> BrokerState {
        self.state.borrow().clone()
    }

    /// Reads facts. The closure must be short: updates wait meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&Cache) -> T) -> T {
        look(&self.shared.cache.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The vCenter that it follows.
    pub fn vcenter(&self) -> &VCenter {
        &self.shared.vcenter
    }

    /// Reads one machine's properties anew, for whoever cannot wait for the next update.
    ///
    /// # Errors
    /// As any call; a machine that is gone.
    pub async fn refresh(&self, vm: &MoRef) -> Result<(), VimError> {
        self.shared.read_again(vm).await
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Follows for ever; each round ends with an error.
async fn follow(shared: Arc<Shared>) {
    let mut pause = limits::BROKER_PAUSE_MS;
    let mut lost_since = Instant::now();
    loop {
        let began = Instant::now();
        let Err(error) = shared.follow_once().await;
        if shared.state.borrow().eq(&BrokerState::Current) {
            lost_since = Instant::now();
            pause = limits::BROKER_PAUSE_MS;
        }
        let (since, text) = (lost_since, error.to_string());
        tracing::warn!(error = %text, after = ?began.elapsed(), "the inventory must be listed anew");
        shared.state.send_replace(BrokerState::Lost { since, error: text });
        tokio::time::sleep(Duration::from_millis(pause)).await;
        pause = (pause * 2).min(limits::BROKER_PAUSE_MS_MAX);
    }
}

/// A result that is never good.
type Ended = Result<std::convert::Infallible, VimError>;

impl Shared {
    fn change<T>(&self, how: impl FnOnce(&mut Cache) -> T) -> T {
        how(&mut self.cache.write().unwrap_or_else(PoisonError::into_inner))
    }

    async fn follow_once(&self) -> Ended {
        let view = self.vcenter.container_view(None, &VIEW_KINDS).await?;
        let watch = match self.begin_watch(&view).await {
            Ok(watch) => watch,
            Err(error) => {
                let _ = self.vcenter.destroy_view(&view).await;
                return Err(error);
            }
        };
        let ended = self.listen(&watch).await;
        // After a lost session both are gone already.
        self.vcenter.unwatch(watch).await;
        let _ = self.vcenter.destroy_view(&view).await;
        ended
    }

    async fn begin_watch(&self, view: &MoRef) -> Result<Watch, VimError> {
        let mut vm_paths = VM_PATHS.to_vec();
        if self.vcenter.content().await?.api() >= VM_KEY_SINCE {
            vm_paths.push(VM_KEY_PATH);
        }
        let properties = [
            Properties { kind: "VirtualMachine", paths: &vm_paths },
            Properties { kind: "HostSystem", paths: HOST_PATHS },
            Properties { kind: "Datastore", paths: DATASTORE_PATHS },
            Properties { kind: "Folder", paths: PLACE_PATHS },
            Properties { kind: "Datacenter", paths: PLACE_PATHS },
            Properties { kind: "ComputeResource", paths: PLACE_PATHS },
        ];
        self.vcenter.watch(&properties, &Start::View(view)).await
    }

    async fn listen(&self, watch: &Watch) -> Ended {
        let mut version: Option<String> = None;
        let mut listing = true;
        self.change(Cache::begin_resync);
        let wait = Duration::from_secs(limits::UPDATES_WAIT_SECONDS);
        loop {
            let set = self.vcenter.wait_for_updates(watch, version.as_deref(), wait).await?;
            let truncated = set.as_ref().is_some_and(|set| set.truncated);
            if let Some(set) = set {
                self.change(|cache| set.updates.iter().for_each(|update| cache.apply(update)));
                version = Some(set.version);
            }
            for object in self.change(Cache::take_stale) {
                match self.read_again(&object).await {
                    Err(error) if !error.is_gone() => return Err(error),
                    _ => {}
                }
            }
            if truncated {
                continue;
            }
            if listing {
                self.change(Cache::finish_resync);
                listing = false;
            }
            if self.change(|cache| cache.lacks_attribute_names()) {
                self.read_attribute_names().await?;
            }
            self.state.send_if_modified(|state| {
                let news = *state != BrokerState::Current;
                *state = BrokerState::Current;
                news
            });
        }
    }

    async fn read_again(&self, object: &MoRef) -> Result<(), VimError> {
        let paths = Cache::paths_of(object);
        let content = self.vcenter.properties_of(object, &object.to_string(), paths).await?;
        self.change(|cache| cache.renew(&content));
        Ok(())
    }

    async fn read_attribute_names(&self) -> Result<(), VimError> {
        let Some(manager) = self.vcenter.content().await?.custom_fields_manager.clone() else {
            return Ok(());
        };
        let content = self.vcenter.properties_of(&manager, "custom attributes", &["field"]).await?;
        let fields = content.get("field").map(|field| field.children.as_slice());
        let names: HashMap<i32, Box<str>> = fields
            .unwrap_or_default()
            .iter()
            .filter_map(|field| Some((field.number_at("key")?, text(field.text_at("name")))))
            .collect();
        self.change(|cache| cache.set_attribute_names(names));
        Ok(())
    }
}
