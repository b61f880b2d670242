//! What the scheduler and the runs are told about proxies and repositories.
//!
//! In: their records, what their movers say of themselves, the vCenters' facts. Out: the scheduler's
//! facts. Must not: choose.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::PoisonError;

use gantry_database::model;
use gantry_scheduler::{DatastoreName, Proxy, Repository, TransportMode};

use super::Parts;
use super::vcenters::VCenters;
use crate::fleet::MoverView;
use crate::transport::{ProxyFacts, ProxyVm};

/// What a proxy can do.
pub(super) fn proxy_facts(
    record: &model::Proxy,
    view: Option<&MoverView>,
    vcenters: &VCenters,
) -> ProxyFacts {
    let told = view.map(|view| view.facts.mounts.clone()).unwrap_or_default();
    let mounts = told.into_iter().chain(record.mounts.clone());
    let vm = record.vm_instance_uuid.as_ref().map(|uuid| ProxyVm {
        instance_uuid: uuid.clone(),
        datastores: vcenters.datastores_of_proxy(uuid),
        device_folder: record.device_folder.as_ref().map(PathBuf::from),
    });
    ProxyFacts {
        mounts: mounts.map(|(name, folder)| (name, PathBuf::from(folder))).collect(),
        vm,
        nbd_template: record.nbd_template.clone(),
        modes: record.modes.clone(),
    }
}

impl Parts {
    /// Tells the scheduler how proxies and repositories stand: whenever something may have changed.
    pub fn tell_scheduler(&self) {
        let (proxies, repositories) = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            (known.proxies.clone(), known.repositories.clone())
        };
        for record in proxies {
            let view = self.view(record.mover);
            let is_there = view.is_some();
            self.dispatcher.set_proxy(self.scheduled(&record, view.as_ref()), is_there);
        }
        for record in repositories {
            let view = self.view(record.mover);
            let facts = view.as_ref().and_then(|view| view.facts.repository.as_ref());
            let free_bytes = facts.map_or(0, |facts| facts.free_bytes);
            self.dispatcher.set_repository(Repository {
                slots: record.task_slots,
                enabled: view.is_some(),
                bytes_per_second_max: record.rate_bytes_per_second,
                ..Repository::new(
                    record.name.as_str().into(),
                    free_bytes.saturating_sub(record.free_bytes_min),
                )
            });
        }
        self.dispatcher.tick();
    }

    fn scheduled(&self, record: &model::Proxy, view: Option<&MoverView>) -> Proxy {
        let facts = proxy_facts(record, view, &self.vcenters);
        let may = |mode: &TransportMode| facts.modes.is_empty() || facts.modes.contains(mode);
        let mut everywhere = vec![TransportMode::Https, TransportMode::Nfc];
        everywhere.extend(facts.nbd_template.is_some().then_some(TransportMode::Nbd));
        let mut datastores: BTreeMap<DatastoreName, BTreeSet<TransportMode>> = BTreeMap::new();
        for vcenter in self.vcenters.ids() {
            let reached = facts.vm.iter().flat_map(|vm| &vm.datastores);
            let by = facts.mounts.keys().map(|name| (name, TransportMode::Direct));
            let by = by.chain(reached.map(|name| (name, TransportMode::Hotadd)));
            for (name, mode) in by.filter(|(_, mode)| may(mode)) {
                let key = self.datastore_name(&vcenter, name);
                datastores.entry(key).or_default().insert(mode);
            }
        }
        let (cores, load) = view.map_or((1, 0), |view| (view.facts.cores, view.load_hundredths));
        Proxy {
            name: record.name.as_str().into(),
            slots: record.slots(cores),
            load_percent: (load / cores.max(1)).min(100) as u8,
            enabled: record.enabled,
            everywhere: everywhere.into_iter().filter(|mode| may(mode)).collect(),
            datastores,
        }
    }
}
