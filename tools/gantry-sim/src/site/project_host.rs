//! The site as one ESXi host shows it by itself.
//!
//! In: the site and the host. Out: the host's own tree, whose references differ from vCenter's:
//! `ha-folder-root`, `ha-datacenter`, machines by number.

use super::project::{entity, host_properties, network_summary};
use super::{Site, Subject, Tree};
use crate::schema::{Ref, list, reference};
use crate::sim::Endpoint;

pub(super) fn host(endpoint: &mut Endpoint, site: &Site, number: usize) {
    let datacenter = site.datacenter_of(number);
    let root = tie(endpoint, Subject::Root, "Folder", "ha-folder-root");
    entity(endpoint, &root, "ha-folder-root", None);
    endpoint.model.set(&root, "childType", list(["Datacenter"]));
    let dc = tie(endpoint, Subject::Datacenter(datacenter), "Datacenter", "ha-datacenter");
    entity(endpoint, &dc, "ha-datacenter", Some(&root));
    for (tree, name) in [
        (Tree::Vm, "vm"),
        (Tree::Host, "host"),
        (Tree::Datastore, "datastore"),
        (Tree::Network, "network"),
    ] {
        let subject = Subject::Folder(datacenter, tree, String::new());
        let folder = tie(endpoint, subject, "Folder", &format!("ha-folder-{name}"));
        entity(endpoint, &folder, name, Some(&dc));
        endpoint.model.set(&dc, &format!("{name}Folder"), &folder);
    }
    let host_folder = reference("Folder", "ha-folder-host");
    let compute = site.hosts[number].compute;
    let resource = tie(endpoint, Subject::Compute(compute), "ComputeResource", "ha-compute-res");
    entity(endpoint, &resource, &site.hosts[number].name, Some(&host_folder));
    let pool = Subject::Pool(compute, String::new());
    let pool = tie(endpoint, pool, "ResourcePool", "ha-root-pool");
    entity(endpoint, &pool, "Resources", Some(&resource));
    endpoint.model.set(&pool, "owner", &resource);
    endpoint.model.set(&resource, "resourcePool", &pool);
    let this = tie(endpoint, Subject::Host(number), "HostSystem", "ha-host");
    entity(endpoint, &this, &site.hosts[number].name, Some(&resource));
    host_properties(endpoint, site, number, &this);
    for (at, store) in site.datastores.iter().enumerate() {
        if store.hosts.contains(&number) {
            tie(endpoint, Subject::Datastore(at), "Datastore", &store.uuid);
        }
    }
    let networks = reference("Folder", "ha-folder-network");
    for (at, network) in site.networks.iter().enumerate() {
        if network.datacenter == datacenter {
            let id = format!("HaNetwork-{}", network.name);
            let this = tie(endpoint, Subject::Network(at), "Network", &id);
            entity(endpoint, &this, &network.name, Some(&networks));
            network_summary(endpoint, &this, &network.name);
        }
    }
}

fn tie(endpoint: &mut Endpoint, subject: Subject, ty: &str, id: &str) -> Ref {
    let this = reference(ty, id);
    endpoint.tie(subject, &this);
    this
}
