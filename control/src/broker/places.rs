//! Where a machine can be made again: folders, pools, hosts, datastores and networks by name.
//!
//! In: a vCenter or ESXi; a [`Target`] in a person's words. Out: a [`Placement`] in references, or
//! what is missing and what there is instead. Read on demand: a restore is rare, and the broker does
//! not keep what only a restore needs. [`Places::place`] is pure. Must not guess between two things of
//! one name.

use std::collections::BTreeMap;

use super::parse::{text, unescaped};
use crate::limits;
use crate::vcenter::property::{ObjectContent, Properties, Start};
use crate::vcenter::{Element, MoRef, VCenter, VimError};

/// What the target of a restore is asked to be; what is not said is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    /// Folder of the inventory as a path, such as `/DC0/vm/Web`; else the datacenter's own.
    pub folder: Option<String>,
    /// Resource pool: its name, or its path below the cluster or host, such as `Resources/Test`.
    pub pool: Option<String>,
    /// Cluster.
    pub cluster: Option<String>,
    /// Host.
    pub host: Option<String>,
    /// Datastore.
    pub datastore: String,
}

/// Where the machine will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Folder of the inventory.
    pub folder: MoRef,
    /// Datacenter.
    pub datacenter: MoRef,
    /// Resource pool.
    pub pool: MoRef,
    /// Host.
    pub host: MoRef,
    /// Datastore.
    pub datastore: MoRef,
    /// Its name, as datastore paths begin.
    pub datastore_name: String,
    /// Networks that the host reaches.
    pub networks: Vec<Network>,
    /// What was chosen, for people.
    pub notes: Vec<String>,
}

/// A network that adapters can be on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its reference.
    pub moref: MoRef,
    /// Its name.
    pub name: String,
    /// A distributed port group's key and its switch's UUID.
    pub port_group: Option<(String, String)>,
}

/// Why a machine cannot be placed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// There is no such thing.
    #[error("there is no {what} '{name}'; there are: {known}")]
    Missing {
        /// Of what kind.
        what: &'static str,
        /// As asked for.
        name: String,
        /// Names that there are, some of them.
        known: String,
    },
    /// There are several of this name.
    #[error("there are several of {what} '{name}'; say which by its path, host or cluster")]
    Ambiguous {
        /// Of what kind.
        what: &'static str,
        /// As asked for.
        name: String,
    },
    /// No host can run it there.
    #[error(
        "no connected host outside maintenance reaches the datastore '{datastore}' within what was asked for"
    )]
    NoHost {
        /// The datastore.
        datastore: String,
    },
}

/// One object of the inventory.
#[derive(Debug, Clone, Default)]
struct Place {
    name: String,
    parent: Option<MoRef>,
    /// Of a datacenter: its folder of machines. Of a compute resource: its root pool.
    root: Option<MoRef>,
    /// Of a host: datastores, then networks.
    datastores: Vec<MoRef>,
    networks: Vec<MoRef>,
    /// Of a host: connected and not in maintenance.
    is_usable: bool,
    /// Of a distributed port group.
    port_group: Option<(String, MoRef)>,
    /// Of a distributed switch.
    uuid: String,
}

/// The places of an inventory.
#[derive(Debug, Clone, Default)]
pub struct Places {
    all: BTreeMap<MoRef, Place>,
}

const KINDS: [(&str, &[&str]); 8] = [
    ("Folder", &["name", "parent"]),
    ("Datacenter", &["name", "parent", "vmFolder"]),
    ("ComputeResource", &["name", "parent", "resourcePool"]),
    ("ResourcePool", &["name", "parent"]),
    (
        "HostSystem",
        &[
            "name",
            "parent",
            "datastore",
            "network",
            "runtime.connectionState",
            "runtime.inMaintenanceMode",
        ],
    ),
    ("Datastore", &["name", "parent"]),
    ("Network", &["name", "parent"]),
    ("DistributedVirtualSwitch", &["name", "parent", "uuid"]),
];
const PORT_GROUP: [&str; 4] = ["name", "parent", "key", "config.distributedVirtualSwitch"];

impl Places {
    /// Reads all places of an inventory.
    ///
    /// # Errors
    /// As any call.
    pub async fn read(vcenter: &VCenter) -> Result<Places, VimError> {
        let mut places = Places::default();
        // The root folder is in no view of itself.
        let root = vcenter.content().await?.root_folder.clone();
        places.add(&vcenter.properties_of(&root, "root folder", &["name"]).await?);
        let is_vcenter = vcenter.content().await?.is_vcenter;
        for (kind, paths) in KINDS {
            if is_vcenter || kind != "DistributedVirtualSwitch" {
                places.read_kind(vcenter, kind, paths).await?;
            }
        }
        if is_vcenter {
            places.read_kind(vcenter, "DistributedVirtualPortgroup", &PORT_GROUP).await?;
        }
        Ok(places)
    }

    async fn read_kind(
        &mut self,
        vcenter: &VCenter,
        kind: &str,
        paths: &[&str],
    ) -> Result<(), VimError> {
        let view = vcenter.container_view(None, &[kind]).await?;
        let properties = [Properties { kind, paths }];
        let read = vcenter.retrieve(&properties, &Start::View(&view), |one| self.add(&one)).await;
        let _ = vcenter.destroy_view(&view).await;
        read
    }

    fn add(&mut self, content: &ObjectContent) {
        if self.all.len() >= limits::BROKER_PLACES_MAX {
            return;
        }
        let moref = |path: &str| content.get(path).and_then(Element::as_moref);
        let list = |path: &str| -> Vec<MoRef> {
            let children = content.get(path).map(|value| value.children.as_slice());
            let all = children.unwrap_or_default().iter().filter_map(Element::as_moref);
            all.take(limits::OBJECT_DATASTORES_MAX).collect()
        };
        let in_maintenance = content.get("runtime.inMaintenanceMode").and_then(Element::as_bool);
        let key = content.text("key").map(|key| text(Some(key)).into_string());
        let place = Place {
            name: unescaped(&text(content.text("name"))).into_string(),
            parent: moref("parent"),
            root: moref("vmFolder").or(moref("resourcePool")),
            datastores: list("datastore"),
            networks: list("network"),
            is_usable: content.text("runtime.connectionState") == Some("connected")
                && in_maintenance != Some(true),
            port_group: key.zip(moref("config.distributedVirtualSwitch")),
            uuid: text(content.text("uuid")).into_string(),
        };
        self.all.insert(content.object.clone(), place);
    }

    fn of_kind<'a>(&'a self, kinds: &'a [&'a str]) -> impl Iterator<Item = (&'a MoRef, &'a Place)> {
        self.all.iter().filter(|(moref, _)| kinds.contains(&&*moref.kind))
    }

    /// The first object upward of one of these kinds, itself included.
    fn above(&self, moref: &MoRef, kinds: &[&str]) -> Option<MoRef> {
        let mut at = moref.clone();
        for _ in 0..limits::FOLDER_DEPTH_MAX {
            if kinds.contains(&&*at.kind) {
                return Some(at);
            }
            at = self.all.get(&at)?.parent.clone()?;
        }
        None
    }

    /// An object's path below the root, such as `/DC0/vm/Web`.
    fn path(&self, moref: &MoRef) -> String {
        let mut names = Vec::new();
        let mut at = self.all.get(moref);
        while let Some(place) = at
            && let Some(parent) = &place.parent
            && names.len() < limits::FOLDER_DEPTH_MAX
        {
            names.push(place.name.as_str());
            at = self.all.get(parent);
        }
        names.iter().rev().fold(String::new(), |path, name| path + "/" + name)
    }

    fn missing<'a>(
        what: &'static str,
        name: &str,
        known: impl Iterator<Item = &'a str>,
    ) -> PlaceError {
        let mut known: Vec<_> = known.take(20).map(|name| format!("'{name}'")).collect();
        known.sort();
        PlaceError::Missing { what, name: name.to_owned(), known: known.join(", ") }
    }

    /// The one object of these kinds and this name that `fits`.
    fn one(
        &self,
        what: &'static str,
        kinds: &[&str],
        name: &str,
        fits: impl Fn(&MoRef) -> bool,
    ) -> Result<MoRef, PlaceError> {
        let fitting = || self.of_kind(kinds).filter(|(moref, _)| fits(moref));
        let mut named = fitting().filter(|(_, place)| place.name == name);
        match (named.next(), named.next()) {
            (Some((moref, _)), None) => Ok(moref.clone()),
            (Some(_), Some(_)) => Err(PlaceError::Ambiguous { what, name: name.to_owned() }),
            (None, _) => Err(Self::missing(what, name, fitting().map(|(_, p)| p.name.as_str()))),
        }
    }

    /// Decides where a machine will be. Pure.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn place(&self, target: &Target) -> Result<Placement, PlaceError> {
        let mut notes = Vec::new();
        let wanted = target.folder.as_deref().map(|path| self.folder(path)).transpose()?;
        let of_folder = wanted.as_ref().and_then(|folder| self.above(folder, &["Datacenter"]));
        let within =
            |moref: &MoRef| of_folder.is_none() || self.above(moref, &["Datacenter"]) == of_folder;
        let datastore = self.one("datastore", &["Datastore"], &target.datastore, within)?;
        let datacenter = self.above(&datastore, &["Datacenter"]).ok_or_else(|| {
            Self::missing("datacenter of the datastore", &target.datastore, std::iter::empty())
        })?;
        let folder = match wanted {
            Some(folder) => folder,
            None => {
                let folder = self.all.get(&datacenter).and_then(|place| place.root.clone());
                let folder = folder.ok_or_else(|| {
                    Self::missing("folder of machines of the datacenter", "", std::iter::empty())
                })?;
                notes.push(format!("it is made in the folder {}", self.path(&folder)));
                folder
            }
        };
        let (host, pool) = self.compute(target, &datacenter, &datastore, &mut notes)?;
        let networks = self.networks(&host);
        let datastore_name = target.datastore.clone();
        Ok(Placement { folder, datacenter, pool, host, datastore, datastore_name, networks, notes })
    }

    fn folder(&self, path: &str) -> Result<MoRef, PlaceError> {
        let path = path.trim_end_matches('/');
        let machines = |moref: &MoRef| self.above(moref, &["Datacenter"]).is_some();
        let mut folders = self.of_kind(&["Folder", "Datacenter"]).filter(|(m, _)| machines(m));
        let found = folders.find(|(moref, _)| self.path(moref) == path);
        match found {
            Some((_, Place { root: Some(root), .. })) => Ok(root.clone()),
            Some((folder, _)) => Ok(folder.clone()),
            None => {
                let known: Vec<String> = self
                    .of_kind(&["Folder"])
                    .map(|(moref, _)| self.path(moref))
                    .filter(|path| !path.is_empty())
                    .collect();
                Err(Self::missing("folder", path, known.iter().map(String::as_str)))
            }
        }
    }

    fn compute(
        &self,
        target: &Target,
        datacenter: &MoRef,
        datastore: &MoRef,
        notes: &mut Vec<String>,
    ) -> Result<(MoRef, MoRef), PlaceError> {
        const COMPUTE: [&str; 2] = ["ComputeResource", "ClusterComputeResource"];
        let here = |moref: &MoRef| self.above(moref, &["Datacenter"]).as_ref() == Some(datacenter);
        let asked_host = target.host.as_deref();
        let asked_host =
            asked_host.map(|name| self.one("host", &["HostSystem"], name, here)).transpose()?;
        let cluster = target.cluster.as_deref();
        let cluster = cluster
            .map(|name| self.one("cluster", &["ClusterComputeResource"], name, here))
            .transpose()?;
        let asked_pool = target
            .pool
            .as_deref()
            .map(|pool| self.pool(pool, cluster.as_ref(), &here))
            .transpose()?;
        let of_pool = asked_pool.as_ref().and_then(|pool| self.above(pool, &COMPUTE));
        let fits = |moref: &MoRef, place: &Place| {
            let compute = self.above(moref, &COMPUTE);
            here(moref)
                && place.is_usable
                && place.datastores.contains(datastore)
                && asked_host.as_ref().is_none_or(|host| host == moref)
                && (cluster.is_none() || cluster == compute)
                && (of_pool.is_none() || of_pool == compute)
        };
        let hosts = self.of_kind(&["HostSystem"]).filter(|(moref, place)| fits(moref, place));
        let (host, place) = hosts
            .min_by(|(_, one), (_, other)| one.name.cmp(&other.name))
            .ok_or_else(|| PlaceError::NoHost { datastore: target.datastore.clone() })?;
        if asked_host.is_none() {
            notes.push(format!("it is made on the host {}", place.name));
        }
        let root = || self.all.get(&self.above(host, &COMPUTE)?)?.root.clone();
        let pool = asked_pool.or_else(root).ok_or_else(|| {
            Self::missing("resource pool of the host", &place.name, std::iter::empty())
        })?;
        Ok((host.clone(), pool))
    }

    fn pool(
        &self,
        asked: &str,
        cluster: Option<&MoRef>,
        here: &dyn Fn(&MoRef) -> bool,
    ) -> Result<MoRef, PlaceError> {
        let kinds = ["ResourcePool", "VirtualApp"];
        let fits = |moref: &MoRef| {
            let of = self.above(moref, &["ClusterComputeResource"]);
            here(moref) && cluster.is_none_or(|cluster| of.as_ref() == Some(cluster))
        };
        let Some((_, name)) = asked.trim_matches('/').rsplit_once('/') else {
            return self.one("resource pool", &kinds, asked, fits);
        };
        let ends = format!("/{}", asked.trim_matches('/'));
        self.one("resource pool", &kinds, name, |m| fits(m) && self.path(m).ends_with(&ends))
    }

    fn networks(&self, host: &MoRef) -> Vec<Network> {
        let reached = self.all.get(host).map(|place| place.networks.as_slice());
        let network = |moref: &MoRef| {
            let place = self.all.get(moref)?;
            let port_group = match &place.port_group {
                Some((key, switch)) => Some((key.clone(), self.all.get(switch)?.uuid.clone())),
                None if &*moref.kind == "DistributedVirtualPortgroup" => return None,
                None => None,
            };
            // Opaque networks need what only their own manager knows.
            (&*moref.kind != "OpaqueNetwork").then(|| Network {
                moref: moref.clone(),
                name: place.name.clone(),
                port_group,
            })
        };
        reached.unwrap_or_default().iter().filter_map(network).collect()
    }
}

#[cfg(test)]
mod tests;
