//! The inventory file: what the simulated site consists of.
//!
//! In: TOML (see `gantry-sim --help`), or nothing for the built-in site. Out: a [`Site`] and the
//! disks to create. Names, sizes and references are checked; a mistake names the machine or disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde::Deserialize;

use super::machine::{Disk, Link, LinkKind, Machine, Power};
use super::{Compute, CustomField, Datacenter, Datastore, Host, Network, Site, Tree, uuid};
use crate::limits;
use crate::sim::Password;

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// vCenter's name.
    #[serde(default = "default_name")]
    pub name: String,
    /// vCenter's and the hosts' version.
    #[serde(default = "default_version")]
    pub version: String,
    /// The build's number.
    #[serde(default = "default_build")]
    pub build: String,
    /// Datacenters.
    #[serde(default)]
    pub datacenter: Vec<DatacenterEntry>,
    /// Machines and templates.
    #[serde(default)]
    pub vm: Vec<MachineEntry>,
    /// Names of custom attributes.
    #[serde(default)]
    pub attributes: Vec<String>,
    /// Users and passwords in guests of machines that name none of their own.
    #[serde(default)]
    pub guest_users: BTreeMap<String, Password>,
}

/// A datacenter of the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatacenterEntry {
    /// Its name.
    pub name: String,
    /// Clusters.
    #[serde(default)]
    pub cluster: Vec<ClusterEntry>,
    /// Hosts outside clusters.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Datastores.
    #[serde(default)]
    pub datastore: Vec<DatastoreEntry>,
    /// Networks.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Empty folders for machines.
    #[serde(default)]
    pub folders: Vec<String>,
}

/// A cluster of the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterEntry {
    /// Its name.
    pub name: String,
    /// Its hosts.
    pub hosts: Vec<String>,
    /// Its resource pools' paths.
    #[serde(default)]
    pub pools: Vec<String>,
}

/// A datastore of the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatastoreEntry {
    /// Its name.
    pub name: String,
    /// `VMFS`, `NFS`, `NFS41`, `vsan`.
    #[serde(default = "default_kind")]
    pub kind: String,
    /// Its size in GiB.
    #[serde(default = "default_capacity")]
    pub capacity_gib: u64,
    /// The hosts that mount it; all of the datacenter when absent.
    pub hosts: Option<Vec<String>>,
}

/// A machine of the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineEntry {
    /// Its name.
    pub name: String,
    /// Its datacenter; the first when absent.
    pub datacenter: Option<String>,
    /// Its folder's path.
    #[serde(default)]
    pub folder: String,
    /// Its host; the datacenter's first when absent.
    pub host: Option<String>,
    /// Its resource pool's path.
    #[serde(default)]
    pub pool: String,
    /// Its datastore; the datacenter's first when absent.
    pub datastore: Option<String>,
    /// Whether it runs.
    #[serde(default = "default_true")]
    pub on: bool,
    /// Whether it is a template.
    #[serde(default)]
    pub template: bool,
    /// The guest's id.
    #[serde(default = "default_guest")]
    pub guest_id: String,
    /// Whether its tools run.
    #[serde(default = "default_true")]
    pub tools: bool,
    /// Processors.
    #[serde(default = "default_cpus")]
    pub cpus: i32,
    /// Memory in MiB.
    #[serde(default = "default_memory")]
    pub memory_mib: i32,
    /// Hardware version.
    #[serde(default = "default_hardware")]
    pub hardware: String,
    /// `bios` or `efi`.
    #[serde(default = "default_firmware")]
    pub firmware: String,
    /// Whether it has a virtual TPM.
    #[serde(default)]
    pub tpm: bool,
    /// Whether changed blocks are tracked from the start.
    #[serde(default)]
    pub cbt: bool,
    /// Its networks; the datacenter's first when absent.
    pub networks: Option<Vec<String>>,
    /// A note.
    #[serde(default)]
    pub annotation: String,
    /// Values of custom attributes.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// `none`, `virtual`, `physical`: sharing of the SCSI controller.
    pub bus_sharing: Option<String>,
    /// BIOS UUID; made from the name when absent.
    pub uuid: Option<String>,
    /// Users and passwords in its guest; the site's when absent.
    pub guest_users: Option<BTreeMap<String, Password>>,
    /// How often its guest writes to each disk in a second, from the start; 0 is as fast as it goes.
    pub guest_writes_per_second: Option<u32>,
    /// Its disks.
    #[serde(default)]
    pub disk: Vec<DiskEntry>,
}

/// A disk of the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskEntry {
    /// Its size in MiB; the image's when absent.
    pub size_mib: Option<u64>,
    /// A raw image to copy into it.
    pub image: Option<PathBuf>,
    /// `persistent`, `independent_persistent`, `independent_nonpersistent`.
    #[serde(default = "default_mode")]
    pub mode: String,
    /// Its datastore; the machine's when absent.
    pub datastore: Option<String>,
    /// Whether blocks are allocated only when written.
    #[serde(default = "default_true")]
    pub thin: bool,
    /// `physical` or `virtual` for a raw device mapping.
    pub rdm: Option<String>,
    /// Whether several machines may write to it.
    #[serde(default)]
    pub shared: bool,
}

/// A disk that the storage has to create for a machine.
#[derive(Debug, Clone)]
pub struct NewDisk {
    /// The machine.
    pub machine: u32,
    /// The device's key.
    pub key: i32,
    /// An image to copy.
    pub image: Option<PathBuf>,
}

fn default_name() -> String {
    "vcenter.sim.example".into()
}
fn default_version() -> String {
    "8.0.3".into()
}
fn default_build() -> String {
    "24022515".into()
}
fn default_kind() -> String {
    "VMFS".into()
}
fn default_capacity() -> u64 {
    1024
}
fn default_true() -> bool {
    true
}
fn default_guest() -> String {
    "otherLinux64Guest".into()
}
fn default_cpus() -> i32 {
    2
}
fn default_memory() -> i32 {
    2048
}
fn default_hardware() -> String {
    "vmx-19".into()
}
fn default_firmware() -> String {
    "bios".into()
}
fn default_mode() -> String {
    "persistent".into()
}

/// The site that is there when no inventory is given.
pub const BUILT_IN: &str = include_str!("built_in.toml");

/// Reads an inventory file, or the built-in one.
///
/// # Errors
/// When the file cannot be read, is too large or not an inventory.
pub fn read(path: Option<&Path>) -> Result<Inventory> {
    let Some(path) = path else {
        return toml::from_str(BUILT_IN).context("the built-in inventory");
    };
    let named = || format!("inventory {}", path.display());
    let size = std::fs::metadata(path).with_context(named)?.len();
    ensure!(size <= limits::INVENTORY_BYTES_MAX, "{}: {size} bytes are too many", named());
    let text = std::fs::read_to_string(path).with_context(named)?;
    toml::from_str(&text).with_context(named)
}

impl Inventory {
    /// The site, and the disks to create.
    ///
    /// # Errors
    /// When names are used twice or refer to nothing, or a size is impossible.
    pub fn site(&self) -> Result<(Site, Vec<NewDisk>)> {
        ensure!(!self.datacenter.is_empty(), "an inventory needs a datacenter");
        let mut site = self.empty_site();
        for (number, entry) in self.datacenter.iter().enumerate() {
            add_datacenter(&mut site, number, entry)?;
        }
        let mut disks = Vec::new();
        for entry in &self.vm {
            add_machine(&mut site, entry, &mut disks)
                .with_context(|| format!("machine {}", entry.name))?;
        }
        Ok((site, disks))
    }

    fn empty_site(&self) -> Site {
        let field = |(at, name): (usize, &String)| CustomField {
            key: i32::try_from(at).unwrap_or_default() + 101,
            name: name.clone(),
        };
        Site {
            name: self.name.clone(),
            version: self.version.clone(),
            build: self.build.clone(),
            instance_uuid: stable_uuid(&["vcenter", &self.name]),
            datacenters: Vec::new(),
            computes: Vec::new(),
            hosts: Vec::new(),
            datastores: Vec::new(),
            networks: Vec::new(),
            machines: BTreeMap::new(),
            fields: self.attributes.iter().enumerate().map(field).collect(),
            guest_users: self.guest_users.clone(),
            started: Timestamp::now(),
            next_machine: 1,
            next_snapshot: 1,
        }
    }
}

/// The same UUID for the same names, run after run.
#[must_use]
pub fn stable_uuid(names: &[&str]) -> String {
    // FNV-1a (128 bits): identities only have to differ, not to be secret.
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in names.join("\n").bytes() {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    uuid(hash)
}

fn add_datacenter(site: &mut Site, number: usize, entry: &DatacenterEntry) -> Result<()> {
    let mut folders = std::collections::BTreeSet::new();
    for path in &entry.folders {
        add_folder(&mut folders, path);
    }
    site.datacenters.push(Datacenter { name: entry.name.clone(), folders });
    let clusters = entry.cluster.iter().map(|c| (c.name.clone(), true, &c.hosts, &c.pools));
    let none = Vec::new();
    let alone: Vec<Vec<String>> = entry.hosts.iter().map(|host| vec![host.clone()]).collect();
    let alone = alone.iter().map(|hosts| (hosts[0].clone(), false, hosts, &none));
    for (name, cluster, hosts, pools) in clusters.chain(alone) {
        let compute = site.computes.len();
        let pools = pools.clone();
        site.computes.push(Compute { name, datacenter: number, cluster, pools });
        for name in hosts {
            ensure!(site.hosts.iter().all(|h| h.name != *name), "host {name} is there twice");
            let uuid = stable_uuid(&["host", name]);
            let (name, connected) = (name.clone(), true);
            site.hosts.push(Host { name, compute, uuid, connected, maintenance: false });
        }
    }
    for store in &entry.datastore {
        add_datastore(site, number, store)?;
    }
    let networks = entry.networks.iter().cloned();
    site.networks.extend(networks.map(|name| Network { name, datacenter: number }));
    Ok(())
}

fn add_datastore(site: &mut Site, datacenter: usize, entry: &DatastoreEntry) -> Result<()> {
    ensure!(
        site.datastores.iter().all(|store| store.name != entry.name),
        "datastore {} is there twice",
        entry.name
    );
    let all = (0..site.hosts.len()).filter(|host| site.datacenter_of(*host) == datacenter);
    let hosts: Vec<usize> = match &entry.hosts {
        None => all.collect(),
        Some(names) => all.filter(|host| names.contains(&site.hosts[*host].name)).collect(),
    };
    let uuid = stable_uuid(&["datastore", &entry.name]);
    site.datastores.push(Datastore {
        name: entry.name.clone(),
        datacenter,
        kind: entry.kind.clone(),
        capacity_bytes: entry.capacity_gib << 30,
        hosts,
        uuid: format!("{}-{}-{}", &uuid[..8], &uuid[24..32], &uuid[32..]),
        accessible: true,
    });
    Ok(())
}

/// Adds a folder of machines with all above it.
pub fn add_folder(folders: &mut std::collections::BTreeSet<(Tree, String)>, path: &str) {
    let mut at = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if !at.is_empty() {
            at.push('/');
        }
        at.push_str(part);
        folders.insert((Tree::Vm, at.clone()));
    }
}

fn add_machine(site: &mut Site, entry: &MachineEntry, disks: &mut Vec<NewDisk>) -> Result<()> {
    ensure!(entry.name.len() <= limits::NAME_BYTES_MAX, "the name is too long");
    let twice = site.machines.values().any(|m| m.name == entry.name && m.folder == entry.folder);
    ensure!(!twice, "is there twice in folder {:?}", entry.folder);
    let find = |name: &str| site.datacenters.iter().position(|dc| dc.name == name);
    let datacenter = match &entry.datacenter {
        None => 0,
        Some(name) => find(name).with_context(|| format!("no datacenter {name}"))?,
    };
    let mut hosts = (0..site.hosts.len()).filter(|h| site.datacenter_of(*h) == datacenter);
    let host = match &entry.host {
        None => hosts.next().context("the datacenter has no host")?,
        Some(name) => {
            let found = hosts.find(|host| site.hosts[*host].name == *name);
            found.with_context(|| format!("no host {name}"))?
        }
    };
    let store = |name: &Option<String>| match name {
        None => site.datastores.iter().position(|s| s.datacenter == datacenter),
        Some(name) => site.datastore(datacenter, name),
    };
    let datastore = store(&entry.datastore).context("no such datastore")?;
    let id = site.next_machine;
    let mut machine = bare_machine(entry, id);
    (machine.datacenter, machine.host, machine.datastore) = (datacenter, host, datastore);
    if entry.guest_users.is_none() {
        machine.guest_users = site.guest_users.clone();
    }
    for (at, disk) in entry.disk.iter().enumerate() {
        let on = if disk.datastore.is_some() { store(&disk.datastore) } else { Some(datastore) };
        let on = on.with_context(|| format!("disk {at}: no such datastore"))?;
        let store_name = &site.datastores[on].name;
        let made = new_disk(entry, at, disk, store_name).with_context(|| format!("disk {at}"))?;
        disks.push(NewDisk { machine: id, key: made.key, image: disk.image.clone() });
        machine.disks.push(made);
    }
    let here = (0..site.networks.len()).filter(|n| site.networks[*n].datacenter == datacenter);
    machine.networks = match &entry.networks {
        None => here.take(1).collect(),
        Some(names) => here.filter(|n| names.contains(&site.networks[*n].name)).collect(),
    };
    for (name, value) in &entry.attributes {
        let field = site.fields.iter().find(|field| field.name == *name);
        let field = field.with_context(|| format!("no custom attribute {name}"))?;
        machine.fields.insert(field.key, value.clone());
    }
    add_folder(&mut site.datacenters[datacenter].folders, &entry.folder);
    site.next_machine += 1;
    site.machines.insert(id, machine);
    Ok(())
}

fn bare_machine(entry: &MachineEntry, id: u32) -> Machine {
    let sharing = match entry.bus_sharing.as_deref() {
        Some("virtual") => "virtualSharing",
        Some("physical") => "physicalSharing",
        _ => "noSharing",
    };
    let on = entry.on && !entry.template;
    Machine {
        id,
        name: entry.name.clone(),
        uuid: entry.uuid.clone().unwrap_or_else(|| stable_uuid(&["bios", &entry.name])),
        instance_uuid: stable_uuid(&["instance", &entry.name]),
        datacenter: 0,
        folder: entry.folder.trim_matches('/').to_owned(),
        host: 0,
        pool: entry.pool.clone(),
        datastore: 0,
        home: entry.name.clone(),
        stem: entry.name.clone(),
        power: if on { Power::On } else { Power::Off },
        template: entry.template,
        guest_id: entry.guest_id.clone(),
        host_name: on.then(|| format!("{}.guest.example", entry.name)),
        ip_address: on.then(|| format!("192.0.2.{}", id % 254 + 1)),
        tools: entry.tools && on,
        tools_installed: entry.tools,
        guest_users: entry.guest_users.clone().unwrap_or_default(),
        cpus: entry.cpus,
        memory_mib: entry.memory_mib,
        hardware: entry.hardware.clone(),
        firmware: entry.firmware.clone(),
        tpm: entry.tpm,
        networks: Vec::new(),
        annotation: entry.annotation.clone(),
        cbt: entry.cbt,
        disks: Vec::new(),
        controllers: vec![(1000, sharing.into())],
        snapshots: Vec::new(),
        current: None,
        consolidation_needed: false,
        fields: BTreeMap::new(),
        tags: entry.tags.clone(),
        extra: BTreeMap::new(),
        connection: "connected".into(),
        modified: Timestamp::now(),
        change_version: 1,
        busy: false,
        next_snapshot: 1,
    }
}

fn new_disk(entry: &MachineEntry, at: usize, disk: &DiskEntry, store: &str) -> Result<Disk> {
    ensure!(at < 15, "more than 15 disks on a controller");
    let number = i32::try_from(at)?;
    let capacity_bytes = match (&disk.size_mib, &disk.image) {
        (Some(size), _) => size << 20,
        (None, Some(image)) => {
            let found = std::fs::metadata(image);
            found.with_context(|| format!("image {}", image.display()))?.len().next_multiple_of(512)
        }
        (None, None) => bail!("neither a size nor an image"),
    };
    ensure!(capacity_bytes > 0 && capacity_bytes <= 62 << 40, "{capacity_bytes} bytes");
    let suffix = if at == 0 { String::new() } else { format!("_{at}") };
    let kind = match disk.rdm.as_deref() {
        Some(mode) => LinkKind::RawDevice { physical: mode == "physical" },
        None => LinkKind::Flat,
    };
    let link = Link {
        file: format!("[{store}] {0}/{0}{suffix}.vmdk", entry.name),
        kind,
        change_id: None,
        content_id: format!("{:08x}", 0x1000_0000 + number),
    };
    Ok(Disk {
        key: 2000 + number,
        controller: 1000,
        // Unit 7 is the controller's own.
        unit: if number < 7 { number } else { number + 1 },
        label: format!("Hard disk {}", number + 1),
        mode: disk.mode.clone(),
        capacity_bytes,
        uuid: disk_uuid(&entry.name, at),
        chain: vec![link],
        thin: disk.thin,
        shared: disk.shared,
        attached: false,
        storage: None,
    })
}

/// A disk's identity, in VMware's form (`6000C29…`).
#[must_use]
pub fn disk_uuid(machine: &str, at: usize) -> String {
    let uuid = stable_uuid(&["disk", machine, &at.to_string()]);
    format!("6000C29{}", &uuid[7..])
}
