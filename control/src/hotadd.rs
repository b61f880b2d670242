//! Hot-add: a frozen disk, or a new one that is to be filled, attached to the proxy VM, and always
//! detached again.
//!
//! In: the proxy VM, the disk's backing file. Out: the disk on the proxy, or gone from it. A frozen disk
//! is attached as `independent_nonpersistent`: the proxy's writes, if there were any, go to a redo log
//! that vanishes with the detaching, never to the disk. One that a restore fills is
//! `independent_persistent`: a snapshot of the proxy leaves it alone. Detaching names no file operation:
//! the files are the other VM's. Must not: detach a disk that this session did not attach.

use std::time::Duration;

use super::vcenter::xml_writer::XmlWriter;
use super::vcenter::{Element, ErrorKind, TaskWait, VCenter, VimError, VmRef};
use crate::limits;

/// Units of a SCSI controller; 7 is its own.
const SCSI_UNITS: [i32; 15] = [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15];

/// What an attached disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It is frozen, and read.
    Read,
    /// It is new, and filled.
    Fill,
}

impl Purpose {
    fn mode(self) -> &'static str {
        match self {
            Purpose::Read => "independent_nonpersistent",
            Purpose::Fill => "independent_persistent",
        }
    }
}

/// A free place on the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    controller: i32,
    unit: i32,
}

/// A SCSI controller's first free unit, over all devices of `config.hardware.device`.
fn free_place(devices: &Element) -> Option<Place> {
    let number = |device: &Element, name: &str| device.number_at::<i32>(name);
    let all: Vec<&Element> = devices.children.iter().collect();
    let is_scsi = |kind: &str| {
        [
            "ParaVirtualSCSIController",
            "VirtualLsiLogicController",
            "VirtualLsiLogicSASController",
            "VirtualBusLogicController",
        ]
        .contains(&kind)
    };
    all.iter().filter(|device| is_scsi(device.kind())).find_map(|controller| {
        let key = number(controller, "key")?;
        let is_taken = |unit: &i32| {
            all.iter().any(|device| {
                number(device, "controllerKey") == Some(key)
                    && number(device, "unitNumber") == Some(*unit)
            })
        };
        let unit = SCSI_UNITS.into_iter().find(|unit| !is_taken(unit))?;
        Some(Place { controller: key, unit })
    })
}

/// Keys of the disks whose backing is `file`.
fn attached(devices: &Element, file: &str) -> Vec<i32> {
    devices
        .children
        .iter()
        .filter(|device| device.kind() == "VirtualDisk")
        .filter(|device| device.text_at("backing.fileName") == Some(file))
        .filter_map(|device| device.number_at("key"))
        .collect()
}

async fn devices(vcenter: &VCenter, proxy: &VmRef) -> Result<Element, VimError> {
    let path = "config.hardware.device";
    let content = vcenter.properties_of(&proxy.moref, &proxy.to_string(), &[path]).await?;
    content.get(path).cloned().ok_or_else(|| refused(vcenter, proxy, "its devices cannot be read"))
}

fn refused(vcenter: &VCenter, proxy: &VmRef, what: &str) -> VimError {
    VimError {
        endpoint: vcenter.http().endpoint().to_string(),
        method: "ReconfigVM_Task",
        object: proxy.to_string(),
        kind: Box::new(ErrorKind::Unexpected(what.to_owned())),
    }
}

async fn reconfigure(
    vcenter: &VCenter,
    proxy: &VmRef,
    spec: impl FnOnce(&mut XmlWriter),
) -> Result<(), VimError> {
    let task = vcenter.reconfigure(proxy, spec).await?;
    let object = proxy.to_string();
    let timeout = Duration::from_secs(limits::RECONFIGURE_SECONDS_MAX);
    vcenter.wait_for_task(&task, TaskWait::new("ReconfigVM_Task", &object, timeout)).await?;
    Ok(())
}

/// Whether the disk `file` is attached to the proxy.
///
/// # Errors
/// As any call.
pub async fn is_attached(vcenter: &VCenter, proxy: &VmRef, file: &str) -> Result<bool, VimError> {
    Ok(!attached(&devices(vcenter, proxy).await?, file).is_empty())
}

/// Attaches the disk `file` (`[datastore] folder/file.vmdk`) to the proxy. The undo must
/// stand in the ledger before this is called.
///
/// # Errors
/// As any call; no free SCSI unit. The outcome may be unknown: detach looks first.
pub async fn attach(
    vcenter: &VCenter,
    proxy: &VmRef,
    file: &str,
    purpose: Purpose,
) -> Result<(), VimError> {
    let devices = devices(vcenter, proxy).await?;
    if !attached(&devices, file).is_empty() {
        return Err(refused(vcenter, proxy, &format!("{file} is attached to it already")));
    }
    let place = free_place(&devices)
        .ok_or_else(|| refused(vcenter, proxy, "no SCSI controller of it has a free unit"))?;
    reconfigure(vcenter, proxy, |w| {
        w.nest("deviceChange", |w| {
            w.text("operation", "add");
            w.typed("device", "VirtualDisk", |w| {
                w.value("key", -1);
                w.typed("backing", "VirtualDiskFlatVer2BackingInfo", |w| {
                    w.text("fileName", file).text("diskMode", purpose.mode());
                });
                w.value("controllerKey", place.controller).value("unitNumber", place.unit);
                w.value("capacityInKB", 0);
            });
        });
    })
    .await
}

/// Detaches the disk `file` from the proxy and leaves its files alone; true if it was attached.
///
/// # Errors
/// As any call.
pub async fn detach(vcenter: &VCenter, proxy: &VmRef, file: &str) -> Result<bool, VimError> {
    let keys = attached(&devices(vcenter, proxy).await?, file);
    for key in &keys {
        reconfigure(vcenter, proxy, |w| {
            w.nest("deviceChange", |w| {
                w.text("operation", "remove");
                w.typed("device", "VirtualDisk", |w| {
                    w.value("key", key).value("capacityInKB", 0);
                });
            });
        })
        .await?;
    }
    Ok(!keys.is_empty())
}
