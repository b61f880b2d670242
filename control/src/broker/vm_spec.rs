//! A captured configuration as the specification of a new machine. Pure.
//!
//! In: a point's [`VmConfig`] (foreign: it may come from another installation), what is wanted, the
//! networks of the place. Out: a [`VmSpec`] that writes itself in the order of vSphere's schema, and
//! notes about everything that does not come back as it was. Must not: let a text of the point become
//! a type or an element; take over an identity unless asked to.

use std::collections::BTreeMap;

use super::places::Network;
use super::vm_config::{ConfigController, ConfigDisk, Network as Adapter, VmConfig};
use crate::vcenter::xml_writer::XmlWriter;

/// Where IDE controllers, which every machine has by itself, have their keys.
const IDE_KEY: i32 = 200;
/// Models of controllers that are made again as they were.
const CONTROLLERS: [&str; 6] = [
    "ParaVirtualSCSIController",
    "VirtualLsiLogicController",
    "VirtualLsiLogicSASController",
    "VirtualBusLogicController",
    "VirtualAHCIController",
    "VirtualNVMEController",
];
/// What an unknown controller becomes: every guest has a driver of it.
const CONTROLLER_ELSE: &str = "VirtualLsiLogicController";
/// Models of network adapters that are made again as they were.
const ADAPTERS: [&str; 5] =
    ["VirtualVmxnet3", "VirtualE1000e", "VirtualE1000", "VirtualPCNet32", "VirtualVmxnet2"];
const ADAPTER_ELSE: &str = "VirtualVmxnet3";

/// What a disk of the new machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// This file, which is there already, as a datastore path.
    Existing(String),
    /// A new, empty, thin one at this datastore path.
    New(String),
}

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wish<'a> {
    /// Name of the new machine; else the old one's.
    pub name: Option<&'a str>,
    /// Whether it is to be the same machine: UUIDs and MAC addresses stay.
    pub keep_identity: bool,
    /// Datastore path of its folder, such as `[ds] web`; its files are made there.
    pub folder: &'a str,
    /// By the device key of the point. A disk that is not here is left out, with a note.
    pub disks: BTreeMap<i32, DiskSource>,
    /// Names of networks in the point, and those that take their place.
    pub networks: BTreeMap<String, String>,
    /// Networks that the host reaches.
    pub reachable: &'a [Network],
    /// A new instance UUID; vCenter gives one if there is none. Not used with `keep_identity`.
    pub instance_uuid: Option<&'a str>,
}

/// A new machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Its name.
    pub name: String,
    /// Datastore path of its configuration file.
    pub config_file: String,
    config: VmConfig,
    /// BIOS and instance UUID, where they are set.
    uuids: (Option<String>, Option<String>),
    controllers: Vec<ControllerSpec>,
    disks: Vec<DiskSpec>,
    adapters: Vec<AdapterSpec>,
    /// What does not come back as it was, for people.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ControllerSpec {
    key: i32,
    model: &'static str,
    bus: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct DiskSpec {
    key: i32,
    controller: i32,
    unit: i32,
    capacity_bytes: u64,
    source: DiskSource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct AdapterSpec {
    key: i32,
    model: &'static str,
    mac: Option<String>,
    network: Network,
    is_connected: bool,
}

/// Why no machine can be made of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Its structure is newer than this program.
    #[error("the point's configuration of '{name}' has format {format}; this program knows 1")]
    Format {
        /// The machine.
        name: String,
        /// The format.
        format: u32,
    },
    /// Something that must be there is not.
    #[error("the point's configuration of '{name}' cannot be used: {what}")]
    Unusable {
        /// The machine.
        name: String,
        /// What is wrong.
        what: String,
    },
}

impl VmSpec {
    /// Makes a specification.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn build(config: &VmConfig, wish: &Wish<'_>) -> Result<VmSpec, SpecError> {
        let name = wish.name.unwrap_or(&config.name).to_owned();
        check(config, &name)?;
        let mut notes = notes_on(config, wish);
        let controllers = controllers(&config.controllers, &mut notes);
        let disks = disks(config, wish, &mut notes);
        for disk in &disks {
            let is_there = |key: i32| controllers.iter().any(|one| one.key == key);
            if !is_there(disk.controller) && ![IDE_KEY, IDE_KEY + 1].contains(&disk.controller) {
                let what = format!("disk {} has no controller {}", disk.key, disk.controller);
                return Err(SpecError::Unusable { name, what });
            }
        }
        let networks = config.networks.iter();
        let adapters = networks.filter_map(|one| adapter(one, wish, &mut notes)).collect();
        let kept = |uuid: &str| (wish.keep_identity && !uuid.is_empty()).then(|| uuid.to_owned());
        let instance = kept(&config.instance_uuid).or(wish.instance_uuid.map(str::to_owned));
        let folder = wish.folder.trim_end_matches('/');
        Ok(VmSpec {
            config_file: format!("{folder}/{}.vmx", file_name(&name)),
            uuids: (kept(&config.bios_uuid), instance),
            config: config.clone(),
            name,
            controllers,
            disks,
            adapters,
            notes,
        })
    }

    /// The datastore path at which a new disk stands: `[ds] folder/name_N.vmdk`, as vSphere names them.
    pub fn disk_file(folder: &str, name: &str, number: usize) -> String {
        let folder = folder.trim_end_matches('/');
        let part = if number == 0 { String::new() } else { format!("_{number}") };
        format!("{folder}/{}{part}.vmdk", file_name(name))
    }

    /// A folder of a datastore for a machine's files, `[ds] name_mark`: the mark keeps it apart from every
    /// other.
    pub fn home(datastore: &str, name: &str, mark: &str) -> String {
        format!("[{datastore}] {}_{mark}", file_name(name))
    }

    /// Writes the inside of a `VirtualMachineConfigSpec`.
    pub fn write(&self, w: &mut XmlWriter) {
        let config = &self.config;
        let (bios, instance) = &self.uuids;
        let set = |text: &'_ String| (!text.is_empty()).then(|| text.clone());
        // vCenter wants slashes, backslashes and percent signs of a name escaped.
        w.text("name", &escaped(&self.name));
        w.optional("version", set(&config.hardware_version).as_deref());
        w.optional("uuid", bios.as_deref()).optional("instanceUuid", instance.as_deref());
        w.optional("guestId", set(&config.guest_id).as_deref());
        w.optional("annotation", set(&config.annotation).as_deref());
        w.nest("files", |w| {
            w.text("vmPathName", &self.config_file);
        });
        w.value("numCPUs", config.cpus);
        if config.cores_per_socket > 0 {
            w.value("numCoresPerSocket", config.cores_per_socket);
        }
        w.value("memoryMB", config.memory_mib);
        self.controllers.iter().for_each(|one| write_controller(one, w));
        self.disks.iter().for_each(|one| write_disk(one, w));
        self.adapters.iter().for_each(|one| write_adapter(one, w));
        if config.secure_boot {
            w.nest("bootOptions", |w| {
                w.value("efiSecureBootEnabled", true);
            });
        }
        w.optional("firmware", set(&config.firmware).as_deref());
    }
}

fn check(config: &VmConfig, name: &str) -> Result<(), SpecError> {
    if config.format != 1 {
        return Err(SpecError::Format { name: name.to_owned(), format: config.format });
    }
    let what = if name.trim().is_empty() || name.chars().count() > 80 {
        "a name of a machine has 1 to 80 characters"
    } else if config.cpus == 0 || config.memory_mib == 0 {
        "it has no processors or no memory"
    } else if config.cores_per_socket > 0 && !config.cpus.is_multiple_of(config.cores_per_socket) {
        "its processors cannot be divided into its sockets"
    } else if !["", "bios", "efi"].contains(&config.firmware.as_str()) {
        "its firmware is neither BIOS nor EFI"
    } else {
        return Ok(());
    };
    Err(SpecError::Unusable { name: name.to_owned(), what: what.to_owned() })
}

fn notes_on(config: &VmConfig, wish: &Wish<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    if config.has_vtpm {
        notes.push(
            "it had a virtual TPM, whose secrets are in no backup: the new machine has none, and a \
             guest that sealed its keys in it asks for its recovery key"
                .to_owned(),
        );
    }
    if let Some(nvram) = &config.nvram {
        notes.push(format!(
            "its NVRAM file ({nvram}) is not in the point: firmware settings such as boot entries \
             begin anew"
        ));
    }
    if !wish.keep_identity {
        notes.push("it has new UUIDs and new MAC addresses".to_owned());
    }
    notes
}

fn controllers(all: &[ConfigController], notes: &mut Vec<String>) -> Vec<ControllerSpec> {
    let mut made: Vec<ControllerSpec> = Vec::new();
    for one in all.iter().filter(|one| one.model != "VirtualIDEController") {
        let known = CONTROLLERS.into_iter().find(|model| *model == one.model);
        if known.is_none() {
            notes.push(format!(
                "its controller '{}' is not known: it becomes a {CONTROLLER_ELSE}",
                crate::vcenter::soap::quoted(&one.model)
            ));
        }
        if one.is_shared {
            notes.push(format!("the bus of its controller {} is no longer shared", one.key));
        }
        if made.iter().all(|other| other.key != one.key) {
            let (key, bus) = (one.key, one.bus.max(0));
            made.push(ControllerSpec { key, model: known.unwrap_or(CONTROLLER_ELSE), bus });
        }
    }
    made
}

fn disks(config: &VmConfig, wish: &Wish<'_>, notes: &mut Vec<String>) -> Vec<DiskSpec> {
    let ide = |disk: &ConfigDisk| {
        let of = config.controllers.iter().find(|one| one.key == disk.controller_key);
        of.filter(|one| one.model == "VirtualIDEController").map(|one| IDE_KEY + one.bus)
    };
    let mut made = Vec::new();
    for disk in &config.disks {
        match wish.disks.get(&disk.key) {
            Some(source) => made.push(DiskSpec {
                key: disk.key,
                controller: ide(disk).unwrap_or(disk.controller_key),
                unit: disk.unit,
                capacity_bytes: disk.capacity_bytes,
                source: source.clone(),
            }),
            None => notes.push(format!("its disk '{}' is left out", disk.label)),
        }
    }
    made
}

fn adapter(one: &Adapter, wish: &Wish<'_>, notes: &mut Vec<String>) -> Option<AdapterSpec> {
    let label = &one.label;
    let old = one.network.as_deref().or(one.port_group_name.as_deref());
    let wanted = old.map(|name| wish.networks.get(name).map_or(name, String::as_str));
    let is_mapped = old.is_some_and(|name| wish.networks.contains_key(name));
    // The key tells port groups of one name apart, in the same vCenter.
    let by_key = wish.reachable.iter().filter(|_| !is_mapped).find(|network| {
        network.port_group.as_ref().is_some_and(|(key, _)| Some(key) == one.port_group.as_ref())
    });
    let is_wanted = |network: &&Network| Some(network.name.as_str()) == wanted;
    let found = by_key.or_else(|| wish.reachable.iter().find(is_wanted));
    let known = ADAPTERS.into_iter().find(|model| *model == one.model);
    if known.is_none() {
        let old = crate::vcenter::soap::quoted(&one.model);
        notes.push(format!("{label}: its model '{old}' becomes {ADAPTER_ELSE}"));
    }
    if found.is_none() {
        let name = wanted.or(one.port_group.as_deref()).unwrap_or("unknown");
        // vSphere has no adapter without a network: it is put on any, unplugged.
        let any = wish.reachable.first().map_or(
            "left out, since the host has no network",
            |_| "disconnected; connect it to the right network",
        );
        notes.push(format!("{label}: there is no network '{name}' here: the adapter is {any}"));
    }
    let network = found.or(wish.reachable.first())?.clone();
    let mac = (wish.keep_identity && !one.mac.is_empty()).then(|| one.mac.clone());
    Some(AdapterSpec {
        key: one.key,
        model: known.unwrap_or(ADAPTER_ELSE),
        mac,
        network,
        is_connected: found.is_some() && one.starts_connected,
    })
}

fn write_controller(one: &ControllerSpec, w: &mut XmlWriter) {
    w.nest("deviceChange", |w| {
        w.text("operation", "add").typed("device", one.model, |w| {
            w.value("key", one.key).value("busNumber", one.bus);
            if one.model.contains("SCSI") || one.model.contains("Logic") {
                w.text("sharedBus", "noSharing");
            }
        });
    });
}

fn write_disk(one: &DiskSpec, w: &mut XmlWriter) {
    w.nest("deviceChange", |w| {
        w.text("operation", "add");
        let (file, is_new) = match &one.source {
            DiskSource::Existing(file) => (file, false),
            DiskSource::New(file) => (file, true),
        };
        if is_new {
            w.text("fileOperation", "create");
        }
        w.typed("device", "VirtualDisk", |w| {
            w.value("key", one.key);
            w.typed("backing", "VirtualDiskFlatVer2BackingInfo", |w| {
                w.text("fileName", file).text("diskMode", "persistent");
                if is_new {
                    w.value("thinProvisioned", true);
                }
            });
            w.value("controllerKey", one.controller).value("unitNumber", one.unit);
            w.value("capacityInKB", one.capacity_bytes.div_ceil(1024));
            w.value("capacityInBytes", one.capacity_bytes);
        });
    });
}

fn write_adapter(one: &AdapterSpec, w: &mut XmlWriter) {
    w.nest("deviceChange", |w| {
        w.text("operation", "add").typed("device", one.model, |w| {
            w.value("key", one.key);
            match &one.network.port_group {
                Some((key, switch)) => {
                    let kind = "VirtualEthernetCardDistributedVirtualPortBackingInfo";
                    w.typed("backing", kind, |w| {
                        w.nest("port", |w| {
                            w.text("switchUuid", switch).text("portgroupKey", key);
                        });
                    });
                }
                None => {
                    w.typed("backing", "VirtualEthernetCardNetworkBackingInfo", |w| {
                        w.text("deviceName", &one.network.name);
                    });
                }
            }
            w.nest("connectable", |w| {
                w.value("startConnected", one.is_connected).value("allowGuestControl", true);
                w.value("connected", one.is_connected);
            });
            match &one.mac {
                Some(mac) => {
                    w.text("addressType", mac_kind(mac)).text("macAddress", mac);
                }
                None => {
                    w.text("addressType", "generated");
                }
            }
        });
    });
}

/// `manual` is for VMware's range of static addresses (00:50:56:00 to 3F); vSphere refuses others
/// under that name.
fn mac_kind(mac: &str) -> &'static str {
    let mac = mac.to_ascii_lowercase();
    let fourth = mac.strip_prefix("00:50:56:").and_then(|rest| rest.get(..2));
    match fourth.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        Some(0..=0x3f) => "manual",
        _ => "assigned",
    }
}

/// A name as a file of a datastore: what would leave the folder, or mean something in a path, does
/// not stay.
fn file_name(name: &str) -> String {
    let fits = |c: char| !c.is_control() && !"/\\:*?\"<>|[]%".contains(c);
    let kept: String = name.trim().chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if kept.starts_with('.') { kept.replacen('.', "_", 1) } else { kept }
}

/// The characters of paths as vCenter wants them in a name.
fn escaped(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2f").replace('\\', "%5c")
}

#[cfg(test)]
mod tests;
