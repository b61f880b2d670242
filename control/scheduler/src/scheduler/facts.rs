//! Facts come in: proxies, repositories, datastores, at any time and as often as they change.

use std::collections::BTreeSet;

use crate::names::{DatastoreName, ProxyName, RepositoryName};
use crate::placement::ModeSet;
use crate::resources::{Datastore, GuardState, Proxy, Repository};

use super::Scheduler;
use super::state::{DatastoreState, ProxyState, RepositoryState};

impl Scheduler {
    /// Adds a proxy or replaces what is known of it; what it runs goes on, also with fewer slots.
    pub fn set_proxy(&mut self, proxy: Proxy) {
        let index = match self.proxy_index.get(&proxy.name) {
            Some(index) => *index,
            None => {
                let index = self.proxies.len();
                self.proxy_index.insert(proxy.name.clone(), index);
                let (used, lost, gone) = (0, false, false);
                self.proxies.push(ProxyState { facts: proxy.clone(), used, lost, gone });
                index
            }
        };
        for (datastore, reach) in &mut self.reach {
            reach.resize(self.proxies.len(), ModeSet::default());
            reach[index] = modes_at(&proxy, datastore);
        }
        let state = &mut self.proxies[index];
        state.facts = proxy;
        state.gone = false;
    }

    /// A proxy's own measurement changed; false: unknown proxy.
    pub fn set_proxy_load(&mut self, name: &ProxyName, load_percent: u8) -> bool {
        let Some(index) = self.proxy_index.get(name) else { return false };
        self.proxies[*index].facts.load_percent = load_percent;
        true
    }

    /// Adds a repository or replaces what is known of it.
    pub fn set_repository(&mut self, repository: Repository) {
        match self.repositories.get_mut(&repository.name) {
            Some(state) => state.facts = repository,
            None => {
                let (name, used, expected_bytes) = (repository.name.clone(), 0, 0);
                let state = RepositoryState { facts: repository, used, expected_bytes };
                self.repositories.insert(name, state);
            }
        }
    }

    /// A repository's free space was measured; false: unknown repository.
    pub fn set_free_bytes(&mut self, name: &RepositoryName, free_bytes: u64) -> bool {
        let Some(state) = self.repositories.get_mut(name) else { return false };
        state.facts.free_bytes = free_bytes;
        true
    }

    /// Adds a datastore or replaces what is known of it. One that is never described has the
    /// defaults.
    pub fn set_datastore(&mut self, datastore: Datastore) {
        let name = datastore.name.clone();
        self.know_datastore(&name).facts = datastore;
    }

    /// The latency guard changed its mind about a datastore.
    pub fn set_guard(&mut self, name: &DatastoreName, guard: GuardState) {
        self.know_datastore(name).facts.guard = guard;
    }

    /// How many snapshots a datastore may have open at a time.
    pub fn set_snapshots_max(&mut self, name: &DatastoreName, snapshots_max: u32) {
        self.know_datastore(name).facts.snapshots_max = snapshots_max;
    }

    pub(super) fn know_datastore(&mut self, name: &DatastoreName) -> &mut DatastoreState {
        if !self.reach.contains_key(name) {
            let reach = self.proxies.iter().map(|state| modes_at(&state.facts, name)).collect();
            self.reach.insert(name.clone(), reach);
        }
        self.datastores.entry(name.clone()).or_insert_with(|| DatastoreState {
            facts: Datastore::new(name.clone()),
            open: 0,
            running: 0,
        })
    }
}

fn modes_at(proxy: &Proxy, datastore: &DatastoreName) -> ModeSet {
    let none = BTreeSet::new();
    let local = proxy.datastores.get(datastore).unwrap_or(&none);
    ModeSet::of(proxy.everywhere.iter().chain(local))
}
