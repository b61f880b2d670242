//! A machine's configuration as a restore point keeps it, so that the machine can be made again.
//!
//! In: a machine. Out: [`VmConfig`], versioned, as JSON in the manifest. Read on demand, once a
//! session: the broker does not keep what only a backup needs.

use gantry_common::limits::VM_CONFIG_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::devices::Devices;
use super::parse::{text, unescaped};
use crate::vcenter::property::ObjectContent;
use crate::vcenter::{Element, MoRef, VCenter, VimError, VmRef};

/// The version that this code writes.
const FORMAT: u32 = 1;

const PATHS: &[&str] = &[
    "name",
    "config.instanceUuid",
    "config.uuid",
    "config.guestId",
    "config.guestFullName",
    "config.version",
    "config.firmware",
    "config.annotation",
    "config.files.vmPathName",
    "config.bootOptions.efiSecureBootEnabled",
    "config.hardware.numCPU",
    "config.hardware.numCoresPerSocket",
    "config.hardware.memoryMB",
    "config.hardware.device",
    "config.extraConfig",
];

/// A network adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Device key.
    pub key: i32,
    /// Label.
    pub label: String,
    /// Model, such as `VirtualVmxnet3`.
    pub model: String,
    /// MAC address.
    pub mac: String,
    /// Name of the standard port group, if it is on one.
    pub network: Option<String>,
    /// Key of the distributed port group, if it is on one.
    pub port_group: Option<String>,
    /// Name of that port group, where it could be read: in another vCenter only the name may be the
    /// same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_group_name: Option<String>,
    /// Whether it is connected at power-on.
    pub starts_connected: bool,
}

/// A disk controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigController {
    /// Device key, to which disks refer.
    pub key: i32,
    /// Model, such as `ParaVirtualSCSIController`.
    pub model: String,
    /// Bus number.
    pub bus: i32,
    /// Whether its bus is shared.
    pub is_shared: bool,
}

/// Where a disk was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDisk {
    /// Device key.
    pub key: i32,
    /// Label.
    pub label: String,
    /// UUID of its backing.
    pub uuid: String,
    /// Size.
    pub capacity_bytes: u64,
    /// Base file.
    pub file: String,
    /// Device key of its controller.
    pub controller_key: i32,
    /// Unit number.
    pub unit: i32,
}

/// A machine's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Version of this structure.
    pub format: u32,
    /// Name.
    pub name: String,
    /// Instance UUID.
    pub instance_uuid: String,
    /// BIOS UUID.
    pub bios_uuid: String,
    /// Guest operating system, as vSphere names it.
    pub guest_id: String,
    /// The same for people.
    pub guest_name: String,
    /// Hardware version, such as `vmx-19`.
    pub hardware_version: String,
    /// `bios` or `efi`.
    pub firmware: String,
    /// Whether EFI secure boot is on.
    pub secure_boot: bool,
    /// Name of the NVRAM file beside the configuration file, if known.
    pub nvram: Option<String>,
    /// Datastore path of the configuration file.
    pub config_file: String,
    /// Notes.
    pub annotation: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Cores in each socket.
    pub cores_per_socket: u32,
    /// Memory.
    pub memory_mib: u64,
    /// Whether it has a virtual TPM.
    pub has_vtpm: bool,
    /// Controllers.
    pub controllers: Vec<ConfigController>,
    /// Disks, those that are not backed up too.
    pub disks: Vec<ConfigDisk>,
    /// Network adapters.
    pub networks: Vec<Network>,
}

/// A configuration that does not fit a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{vm}: its configuration takes {bytes} bytes, more than the {VM_CONFIG_BYTES_MAX} of a restore point"
)]
pub struct ConfigTooLarge {
    /// The machine.
    pub vm: String,
    /// Its size.
    pub bytes: usize,
}

impl VmConfig {
    /// Reads a machine's configuration.
    ///
    /// # Errors
    /// As any call.
    pub async fn capture(vcenter: &VCenter, vm: &VmRef) -> Result<VmConfig, VimError> {
        let content = vcenter.properties_of(&vm.moref, &vm.to_string(), PATHS).await?;
        let mut config = VmConfig::from_content(&content);
        for network in &mut config.networks {
            let Some(key) = &network.port_group else { continue };
            // A port group's key is also its reference.
            let group = MoRef::new("DistributedVirtualPortgroup", key);
            match vcenter.properties_of(&group, key, &["name"]).await {
                Ok(content) => {
                    let name = unescaped(&text(content.text("name"))).into_string();
                    network.port_group_name = Some(name).filter(|name| !name.is_empty());
                }
                Err(error) => tracing::info!(%error, "a port group's name cannot be read"),
            }
        }
        Ok(config)
    }

    fn from_content(content: &ObjectContent) -> VmConfig {
        let string = |path: &str| text(content.text(path)).into_string();
        let number = |path: &str| content.text(path).and_then(|t| t.trim().parse().ok());
        let empty = Element::default();
        let devices = content.get("config.hardware.device").unwrap_or(&empty);
        let known = Devices::parse(devices);
        let nvram = content.get("config.extraConfig").and_then(|extra| {
            let option = extra.children.iter().find(|o| o.text_at("key") == Some("nvram"))?;
            option.text_at("value").map(|value| text(Some(value)).into_string())
        });
        let controllers = known.controllers.iter().map(|(key, one)| ConfigController {
            key: *key,
            model: one.model.to_string(),
            bus: one.bus,
            is_shared: one.is_shared,
        });
        let disks = known.disks.values().map(|one| ConfigDisk {
            key: one.key,
            label: one.label.to_string(),
            uuid: one.uuid.to_string(),
            capacity_bytes: one.capacity_bytes,
            file: one.base_file().to_owned(),
            controller_key: one.controller_key,
            unit: one.unit,
        });
        let secure_boot = content.get("config.bootOptions.efiSecureBootEnabled");
        VmConfig {
            format: FORMAT,
            name: unescaped(&string("name")).into_string(),
            instance_uuid: string("config.instanceUuid"),
            bios_uuid: string("config.uuid"),
            guest_id: string("config.guestId"),
            guest_name: string("config.guestFullName"),
            hardware_version: string("config.version"),
            firmware: string("config.firmware"),
            secure_boot: secure_boot.and_then(Element::as_bool).unwrap_or(false),
            nvram,
            config_file: string("config.files.vmPathName"),
            annotation: string("config.annotation"),
            cpus: number("config.hardware.numCPU").unwrap_or(0) as u32,
            cores_per_socket: number("config.hardware.numCoresPerSocket").unwrap_or(0) as u32,
            memory_mib: number("config.hardware.memoryMB").unwrap_or(0),
            has_vtpm: known.has_vtpm,
            controllers: controllers.collect(),
            disks: disks.collect(),
            networks: devices.children.iter().filter_map(network).take(64).collect(),
        }
    }

    /// As a manifest holds it.
    ///
    /// # Errors
    /// [`ConfigTooLarge`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, ConfigTooLarge> {
        // Its types always have a JSON form.
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        if bytes.len() > VM_CONFIG_BYTES_MAX {
            return Err(ConfigTooLarge { vm: self.name.clone(), bytes: bytes.len() });
        }
        Ok(bytes)
    }
}

fn network(device: &Element) -> Option<Network> {
    let mac = device.text_at("macAddress")?;
    let string = |path: &str| text(device.text_at(path)).into_string();
    let backing = device.child("backing");
    let is_standard =
        backing.is_some_and(|backing| backing.kind() == "VirtualEthernetCardNetworkBackingInfo");
    let group = device.text_at("backing.port.portgroupKey");
    Some(Network {
        key: device.number_at("key").unwrap_or(0),
        label: string("deviceInfo.label"),
        model: text(Some(device.kind())).into_string(),
        mac: text(Some(mac)).into_string(),
        network: is_standard.then(|| string("backing.deviceName")),
        port_group: group.map(|group| text(Some(group)).into_string()),
        port_group_name: None,
        starts_connected: device.bool_at("connectable.startConnected").unwrap_or(true),
    })
}

#[cfg(test)]
mod tests {
    use super::VmConfig;
    use crate::broker::devices::tests::DEVICES;
    use crate::vcenter::property::{ObjectContent, Property};
    use crate::vcenter::{MoRef, xml};

    #[test]
    fn a_configuration_is_captured_and_survives_json() {
        let card = "<d xsi:type=\"VirtualVmxnet3\"><key>4000</key><deviceInfo><label>Network adapter 1\
            </label></deviceInfo><backing xsi:type=\"VirtualEthernetCardNetworkBackingInfo\"><deviceName>\
            VM Network</deviceName></backing><macAddress>00:50:56:01:02:03</macAddress></d></val>";
        let devices = DEVICES.replace("</val>", card);
        let extra = "<v><o><key>a</key><value>b</value></o><o><key>nvram</key><value>web.nvram</value>\
                     </o></v>";
        let property = |path: &str, document: &str| Property {
            path: path.into(),
            value: xml::parse(document.as_bytes()).expect("XML"),
        };
        let content = ObjectContent {
            object: MoRef::new("VirtualMachine", "vm-1"),
            properties: vec![
                property("name", "<v>web</v>"),
                property("config.firmware", "<v>efi</v>"),
                property("config.hardware.memoryMB", "<v>4096</v>"),
                property("config.hardware.device", &devices),
                property("config.extraConfig", extra),
            ],
            missing: Vec::new(),
        };
        let config = VmConfig::from_content(&content);
        assert_eq!((config.name.as_str(), config.memory_mib), ("web", 4096));
        assert_eq!((config.disks.len(), config.controllers.len()), (2, 3));
        assert_eq!(config.networks[0].network.as_deref(), Some("VM Network"));
        assert_eq!(config.nvram.as_deref(), Some("web.nvram"));
        assert!(config.has_vtpm && config.firmware == "efi");
        let bytes = config.to_bytes().expect("it is small");
        assert_eq!(serde_json::from_slice::<VmConfig>(&bytes).expect("JSON"), config);
    }
}
