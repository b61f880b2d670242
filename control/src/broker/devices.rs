//! Reads `config.hardware.device`: controllers, disks, vTPM. Other devices are passed over.
//!
//! In: the property's value, from a virtual machine or from a snapshot of one. Out: bounded facts.

use std::collections::BTreeMap;

use super::facts::{BackingKind, Controller, ControllerKind, DiskFacts, DiskMode};
use super::parse::text;
use crate::limits;
use crate::vcenter::Element;

/// The devices of a machine that matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Devices {
    /// Controllers by key.
    pub controllers: BTreeMap<i32, Controller>,
    /// Disks by key.
    pub disks: BTreeMap<i32, DiskFacts>,
    /// Whether there is a virtual TPM.
    pub has_vtpm: bool,
}

impl Devices {
    /// Reads the whole property: an `ArrayOfVirtualDevice`.
    pub fn parse(value: &Element) -> Devices {
        let mut devices = Devices::default();
        for device in &value.children {
            if devices.controllers.len() + devices.disks.len() >= limits::VM_DEVICES_MAX {
                break;
            }
            devices.add(device);
        }
        devices
    }

    fn add(&mut self, device: &Element) {
        let Some(key) = device.number_at("key") else { return };
        if device.kind() == "VirtualDisk" {
            self.disks.insert(key, disk(key, device));
        } else if device.kind() == "VirtualTPM" {
            self.has_vtpm = true;
        } else if let Some(kind) = controller_kind(device.kind()) {
            let sharing = device.text_at("sharedBus").unwrap_or("noSharing");
            let controller = Controller {
                kind,
                model: text(Some(device.kind())),
                bus: device.number_at("busNumber").unwrap_or(-1),
                is_shared: sharing != "noSharing",
            };
            self.controllers.insert(key, controller);
        }
    }
}

fn controller_kind(name: &str) -> Option<ControllerKind> {
    match name {
        "VirtualIDEController" => Some(ControllerKind::Ide),
        "VirtualNVMEController" => Some(ControllerKind::Nvme),
        _ if name.contains("AHCI") || name.contains("SATA") => Some(ControllerKind::Sata),
        "VirtualBusLogicController"
        | "VirtualLsiLogicController"
        | "VirtualLsiLogicSASController"
        | "ParaVirtualSCSIController" => Some(ControllerKind::Scsi),
        _ if name.contains("SCSI") => Some(ControllerKind::Scsi),
        _ => None,
    }
}

fn disk(key: i32, device: &Element) -> DiskFacts {
    let empty = Element::default();
    let backing = device.child("backing").unwrap_or(&empty);
    let bytes = device.number_at::<u64>("capacityInBytes").filter(|bytes| *bytes > 0);
    let kib = || device.number_at::<u64>("capacityInKB").unwrap_or(0).saturating_mul(1024);
    let mut chain = Vec::new();
    let mut below = backing.child("parent");
    while let Some(parent) = below
        && chain.len() < limits::BACKING_CHAIN_MAX
    {
        chain.push(text(parent.text_at("fileName")));
        below = parent.child("parent");
    }
    DiskFacts {
        key,
        label: text(device.text_at("deviceInfo.label")),
        controller_key: device.number_at("controllerKey").unwrap_or(-1),
        unit: device.number_at("unitNumber").unwrap_or(-1),
        uuid: text(backing.text_at("uuid")),
        capacity_bytes: bytes.unwrap_or_else(kib),
        file: text(backing.text_at("fileName")),
        datastore: backing.moref_at("datastore"),
        chain,
        backing: backing_kind(backing),
        mode: disk_mode(backing.text_at("diskMode").unwrap_or("persistent")),
        is_multi_writer: backing.text_at("sharing") == Some("sharingMultiWriter"),
        is_encrypted: backing.child("keyId").is_some(),
        change_id: backing.text_at("changeId").map(|id| text(Some(id))),
    }
}

fn backing_kind(backing: &Element) -> BackingKind {
    match backing.kind() {
        "VirtualDiskFlatVer1BackingInfo" | "VirtualDiskFlatVer2BackingInfo" => BackingKind::Flat,
        "VirtualDiskSparseVer1BackingInfo" | "VirtualDiskSparseVer2BackingInfo" => {
            BackingKind::Sparse
        }
        "VirtualDiskSeSparseBackingInfo" => BackingKind::SeSparse,
        "VirtualDiskRawDiskMappingVer1BackingInfo" => {
            if backing.text_at("compatibilityMode") == Some("virtualMode") {
                BackingKind::RdmVirtual
            } else {
                BackingKind::RdmPhysical
            }
        }
        other => BackingKind::Other(text(Some(other))),
    }
}

fn disk_mode(mode: &str) -> DiskMode {
    match mode {
        "persistent" => DiskMode::Persistent,
        "independent_persistent" => DiskMode::IndependentPersistent,
        "independent_nonpersistent" => DiskMode::IndependentNonPersistent,
        _ => DiskMode::Other,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{BackingKind, ControllerKind, Devices, DiskMode};
    use crate::vcenter::xml;

    pub(crate) const DEVICES: &str = r#"<val xmlns:xsi="x" xsi:type="ArrayOfVirtualDevice">
      <VirtualDevice xsi:type="VirtualIDEController"><key>200</key><busNumber>0</busNumber></VirtualDevice>
      <VirtualDevice xsi:type="ParaVirtualSCSIController"><key>1000</key><busNumber>0</busNumber>
        <device>2000</device><sharedBus>noSharing</sharedBus></VirtualDevice>
      <VirtualDevice xsi:type="VirtualLsiLogicSASController"><key>1001</key><busNumber>1</busNumber>
        <sharedBus>physicalSharing</sharedBus></VirtualDevice>
      <VirtualDevice xsi:type="VirtualTPM"><key>11000</key></VirtualDevice>
      <VirtualDevice xsi:type="VirtualVmxnet3"><key>4000</key></VirtualDevice>
      <VirtualDevice xsi:type="VirtualDisk"><key>2000</key>
        <deviceInfo><label>Hard disk 1</label></deviceInfo>
        <backing xsi:type="VirtualDiskFlatVer2BackingInfo">
          <fileName>[fast] web/web-000001.vmdk</fileName><datastore type="Datastore">datastore-1</datastore>
          <diskMode>persistent</diskMode><uuid>6000C291</uuid><changeId>52 aa/7</changeId>
          <parent xsi:type="VirtualDiskFlatVer2BackingInfo"><fileName>[fast] web/web.vmdk</fileName></parent>
          <sharing>sharingNone</sharing></backing>
        <controllerKey>1000</controllerKey><unitNumber>0</unitNumber>
        <capacityInKB>1024</capacityInKB><capacityInBytes>1048576</capacityInBytes></VirtualDevice>
      <VirtualDevice xsi:type="VirtualDisk"><key>2016</key>
        <deviceInfo><label>Hard disk 2</label></deviceInfo>
        <backing xsi:type="VirtualDiskRawDiskMappingVer1BackingInfo"><fileName>[slow] web/r.vmdk</fileName>
          <compatibilityMode>physicalMode</compatibilityMode>
          <diskMode>independent_persistent</diskMode><sharing>sharingMultiWriter</sharing></backing>
        <controllerKey>1001</controllerKey><unitNumber>3</unitNumber>
        <capacityInKB>2048</capacityInKB></VirtualDevice></val>"#;

    #[test]
    fn disks_and_controllers_are_read() {
        let devices = Devices::parse(&xml::parse(DEVICES.as_bytes()).expect("XML"));
        assert_eq!((devices.controllers.len(), devices.disks.len()), (3, 2));
        assert!(devices.has_vtpm);
        let first = &devices.disks[&2000];
        assert_eq!((&*first.label, first.capacity_bytes), ("Hard disk 1", 1 << 20));
        assert_eq!((first.base_file(), first.datastore_name()), ("[fast] web/web.vmdk", "fast"));
        assert_eq!(first.change_id.as_deref(), Some("52 aa/7"));
        assert_eq!((&first.backing, first.mode), (&BackingKind::Flat, DiskMode::Persistent));
        let second = &devices.disks[&2016];
        assert_eq!(second.capacity_bytes, 2 << 20, "old services know only kibibytes");
        assert_eq!(second.backing, BackingKind::RdmPhysical);
        assert!(second.mode.is_independent() && second.is_multi_writer);
        let shared = &devices.controllers[&1001];
        assert!(shared.is_shared && shared.kind == ControllerKind::Scsi && shared.bus == 1);
        assert!(!devices.controllers[&1000].is_shared);
    }

    #[test]
    fn a_hostile_number_of_devices_is_cut() {
        let one = |key| {
            format!(
                "<d xsi:type=\"VirtualDisk\"><key>{key}</key><capacityInKB>-1</capacityInKB></d>"
            )
        };
        let all: String = (0..1000).map(one).collect();
        let value =
            xml::parse(format!("<val xmlns:xsi=\"x\">{all}</val>").as_bytes()).expect("XML");
        let devices = Devices::parse(&value);
        assert_eq!(devices.disks.len(), crate::limits::VM_DEVICES_MAX);
        assert_eq!(devices.disks[&0].capacity_bytes, 0);
    }
}
