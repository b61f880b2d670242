//! A machine of vcsim whose one disk is small and has content.
//!
//! In: a running vcsim. Out: its first machine with a flat disk of 16 MiB of noise; the disk's file, to
//! be changed and compared.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_control::broker::devices::Devices;
use gantry_control::vcenter::property::{ObjectContent, Properties, Start};
use gantry_control::vcenter::{TaskWait, VCenter, VmRef};

use super::{Vcsim, vcenter};
use crate::images;

/// The machine.
pub const VM: &str = "DC0_H0_VM0";
const DISK_BYTES: u64 = 16 << 20;

/// Its disk.
pub struct SmallDisk {
    /// Name of its datastore.
    pub datastore: String,
    /// The datastore's folder.
    pub folder: PathBuf,
    /// The file with its bytes.
    pub flat: PathBuf,
}

impl SmallDisk {
    /// Gives the machine the disk; `seed` chooses its content.
    pub async fn make(vcsim: &Vcsim, seed: u64) -> SmallDisk {
        let vcenter = vcenter(vcsim);
        let descriptor = small_disk(&vcenter).await;
        vcenter.log_out().await.expect("logged out");
        let (datastore, file) = descriptor[1..].split_once("] ").expect("a datastore path");
        let folder = vcsim.datastore(datastore);
        let flat = folder.join(file.replace(".vmdk", "-flat.vmdk"));
        images::noise_disk(&flat, DISK_BYTES, seed);
        write_descriptor(&folder.join(file), &flat);
        SmallDisk { datastore: datastore.to_owned(), folder, flat }
    }
}

/// Gives the machine one small disk instead of the large one that vcsim made; its descriptor.
async fn small_disk(vcenter: &VCenter) -> String {
    let index = vcenter.container_view(None, &["VirtualMachine"]).await.expect("a view");
    let paths = ["name", "config.hardware.device"];
    let wanted = Properties { kind: "VirtualMachine", paths: &paths };
    let start = Start::View(&index);
    let mut found = None;
    let each = |content: ObjectContent| {
        if content.text("name") == Some(VM) {
            found = Some(content);
        }
    };
    vcenter.retrieve(&[wanted], &start, each).await.expect("machines");
    let content = found.expect("the machine");
    let devices = Devices::parse(content.get("config.hardware.device").expect("devices"));
    let disk = devices.disks.values().next().expect("a disk").clone();
    let vm = VmRef::new(content.object.clone(), VM);
    let file = disk.file.replace("disk1", "small");
    let task = vcenter
        .reconfigure(&vm, |w| {
            w.nest("deviceChange", |w| {
                w.text("operation", "remove");
                w.typed("device", "VirtualDisk", |w| {
                    w.value("key", disk.key).value("capacityInKB", 0);
                });
            });
            w.nest("deviceChange", |w| {
                w.text("operation", "add").text("fileOperation", "create");
                w.typed("device", "VirtualDisk", |w| {
                    w.value("key", -1);
                    w.typed("backing", "VirtualDiskFlatVer2BackingInfo", |w| {
                        w.text("fileName", &file).text("diskMode", "persistent");
                    });
                    w.value("controllerKey", disk.controller_key).value("unitNumber", disk.unit);
                    w.value("capacityInKB", DISK_BYTES / 1024);
                });
            });
        })
        .await
        .expect("begun");
    let wait = TaskWait::new("ReconfigVM_Task", VM, Duration::from_secs(30));
    vcenter.wait_for_task(&task, wait).await.expect("the disk is small");
    file
}

fn write_descriptor(path: &Path, flat: &Path) {
    let sectors = DISK_BYTES / 512;
    let name = flat.file_name().expect("a name").to_string_lossy();
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\
         RW {sectors} VMFS \"{name}\"\nddb.adapterType = \"lsilogic\"\n"
    );
    std::fs::write(path, text).expect("writable");
}
