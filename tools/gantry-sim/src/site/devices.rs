//! A machine's virtual hardware as vSphere's device list.
//!
//! In: the machine. Out: controllers, disks with their backing chains, network cards, and the rest
//! that every machine has.

use super::machine::{Disk, Link, LinkKind, Machine};
use super::{Site, Subject};
use crate::schema::{Object, Value, list, object};
use crate::sim::Endpoint;

/// The device list.
pub(super) fn devices(
    endpoint: &Endpoint,
    site: &Site,
    machine: &Machine,
    disks: &[Disk],
) -> Value {
    let mut devices = vec![
        controller("VirtualIDEController", 200, 0, "IDE 0", &[]),
        controller("VirtualIDEController", 201, 1, "IDE 1", &[]),
        controller("VirtualPCIController", 100, 0, "PCI controller 0", &[500, 1000, 4000]),
        fixed("VirtualMachineVideoCard", 500, "Video card ", "Video card"),
    ];
    for (at, (key, sharing)) in machine.controllers.iter().enumerate() {
        let keys: Vec<i32> = disks.iter().filter(|d| d.controller == *key).map(|d| d.key).collect();
        let label = format!("SCSI controller {at}");
        let made = controller("ParaVirtualSCSIController", *key, at, &label, &keys);
        if let Value::Object(found) = &made {
            let mut scsi = Object::clone(found);
            scsi.set("hotAddRemove", true);
            scsi.set("sharedBus", sharing.as_str());
            scsi.set("scsiCtlrUnitNumber", 7);
            devices.push(scsi.into());
        }
    }
    devices.extend(disks.iter().map(|disk| disk_device(endpoint, site, disk)));
    devices.extend(cards(endpoint, site, machine));
    if machine.tpm {
        devices.push(fixed("VirtualTPM", 11000, "Virtual TPM", "Trusted Platform Module"));
    }
    list(devices)
}

fn info(label: &str, summary: &str) -> Value {
    object("Description", [("label", label.into()), ("summary", summary.into())])
}

fn fixed(ty: &str, key: i32, label: &str, summary: &str) -> Value {
    object(ty, [("key", key.into()), ("deviceInfo", info(label.trim_end(), summary))])
}

fn controller(ty: &str, key: i32, bus: usize, label: &str, devices: &[i32]) -> Value {
    let fields = [
        ("key", key.into()),
        ("deviceInfo", info(label, label)),
        ("busNumber", bus.into()),
        ("device", list(devices.iter().copied())),
    ];
    object(ty, fields)
}

fn cards<'a>(
    endpoint: &'a Endpoint,
    site: &'a Site,
    machine: &'a Machine,
) -> impl Iterator<Item = Value> + 'a {
    machine.networks.iter().enumerate().map(move |(at, network)| {
        let name = &site.networks[*network].name;
        let backing = object(
            "VirtualEthernetCardNetworkBackingInfo",
            [
                ("deviceName", name.into()),
                ("network", endpoint.reference(&Subject::Network(*network)).cloned().into()),
            ],
        );
        let connect = object(
            "VirtualDeviceConnectInfo",
            [
                ("startConnected", true.into()),
                ("allowGuestControl", true.into()),
                ("connected", (machine.power == super::Power::On).into()),
                ("status", "ok".into()),
            ],
        );
        let id = machine.id;
        object(
            "VirtualVmxnet3",
            [
                ("key", (4000 + at).into()),
                ("deviceInfo", info(&format!("Network adapter {}", at + 1), name)),
                ("backing", backing),
                ("connectable", connect),
                ("controllerKey", 100.into()),
                ("unitNumber", (7 + at).into()),
                ("addressType", "assigned".into()),
                (
                    "macAddress",
                    format!("00:50:56:{:02x}:{:02x}:{at:02x}", id >> 8, id & 255).into(),
                ),
            ],
        )
    })
}

/// One disk as a device.
pub(super) fn disk_device(endpoint: &Endpoint, site: &Site, disk: &Disk) -> Value {
    let kib = disk.capacity_bytes / 1024;
    let mut grouped = String::new();
    for (at, digit) in kib.to_string().chars().enumerate() {
        if at > 0 && (kib.to_string().len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    object(
        "VirtualDisk",
        [
            ("key", disk.key.into()),
            ("deviceInfo", info(&disk.label, &format!("{grouped} KB"))),
            ("backing", backing(endpoint, site, disk, &disk.chain)),
            ("controllerKey", disk.controller.into()),
            ("unitNumber", disk.unit.into()),
            ("capacityInKB", kib.into()),
            ("capacityInBytes", disk.capacity_bytes.into()),
            ("nativeUnmanagedLinkedClone", false.into()),
        ],
    )
}

/// The backing of a chain's first link, with the others as its parents.
fn backing(endpoint: &Endpoint, site: &Site, disk: &Disk, chain: &[Link]) -> Value {
    let Some((link, parents)) = chain.split_first() else { return Value::Absent };
    let parent = backing(endpoint, site, disk, parents);
    let name = link.file.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let store = name.and_then(|(name, _)| site.datastores.iter().position(|s| s.name == name));
    let store = store.and_then(|store| endpoint.reference(&Subject::Datastore(store)).cloned());
    let common = [
        ("fileName", Value::from(&link.file)),
        ("datastore", store.into()),
        ("diskMode", (&disk.mode).into()),
        ("uuid", (&disk.uuid).into()),
        ("contentId", (&link.content_id).into()),
        ("changeId", link.change_id.clone().into()),
        ("parent", parent),
    ];
    let sharing = if disk.shared { "sharingMultiWriter" } else { "sharingNone" };
    if let LinkKind::RawDevice { physical } = link.kind {
        let mode = if physical { "physicalMode" } else { "virtualMode" };
        let own = [
            ("lunUuid", "02000000006000c29sim".into()),
            ("deviceName", "vml.02000000006000c29sim".into()),
            ("compatibilityMode", mode.into()),
            ("sharing", sharing.into()),
        ];
        let common = common.into_iter().filter(|(name, _)| !(physical && *name == "diskMode"));
        return object("VirtualDiskRawDiskMappingVer1BackingInfo", common.chain(own));
    }
    // A delta shows as a flat backing with a delta format, as real hosts do for redo logs.
    let format = match link.kind {
        LinkKind::SeSparse => Some("seSparseFormat"),
        LinkKind::VmfsSparse => Some("redoLogFormat"),
        _ => None,
    };
    let own = [
        ("split", false.into()),
        ("writeThrough", false.into()),
        ("thinProvisioned", disk.thin.into()),
        ("deltaDiskFormat", format.into()),
        ("digestEnabled", false.into()),
        ("sharing", sharing.into()),
    ];
    object("VirtualDiskFlatVer2BackingInfo", common.into_iter().chain(own))
}
