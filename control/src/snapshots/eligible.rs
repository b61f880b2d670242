//! Which machines and disks can be snapshotted, decided before anything is done. Pure.
//!
//! In: facts. Out: the obstacle, in words that a person can act on. Sources: the vSphere
//! documentation's limits of snapshots; VSPHERE.md.

use crate::broker::facts::{BackingKind, DiskFacts, VmFacts};

/// Why a disk is not in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskObstacle {
    /// Its mode is independent.
    #[error("the disk is independent: snapshots leave it out. Make it dependent to back it up")]
    Independent,
    /// It is a raw LUN in physical mode.
    #[error("the disk is a raw device in physical mode, which cannot be snapshotted")]
    RdmPhysical,
    /// Its controller's bus is shared.
    #[error("the disk is on a controller with a shared bus, which cannot be snapshotted")]
    SharedBus,
    /// Several machines may write it.
    #[error("the disk is shared between machines (multi-writer), which cannot be snapshotted")]
    MultiWriter,
    /// vCenter gives no usable size.
    #[error("vCenter gives no size of the disk")]
    NoSize,
}

/// Why a machine cannot be snapshotted at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmObstacle {
    /// It is a template.
    #[error("it is a template, which cannot be snapshotted")]
    Template,
    /// vCenter cannot reach it.
    #[error("its state is '{state}': its host or its files cannot be reached")]
    NotConnected {
        /// As vCenter says.
        state: String,
    },
    /// It has no UUID by which it could be known again.
    #[error("vCenter gives no instance UUID of it")]
    NoInstanceUuid,
    /// A disk that is shared and not independent makes vSphere refuse every snapshot.
    #[error(
        "its disk '{label}' is shared and not independent: vSphere refuses snapshots of the whole \
         machine while it runs. Make that disk independent"
    )]
    SharedDisk {
        /// The disk.
        label: String,
    },
    /// Something that must be known could not be read.
    #[error("its property {path} cannot be read: {reason}")]
    Unreadable {
        /// The property.
        path: String,
        /// The fault.
        reason: String,
    },
}

/// Properties without which a backup would be wrong.
const NEEDED: [&str; 4] =
    ["config.hardware.device", "config.instanceUuid", "runtime.connectionState", "snapshot"];

/// Why this disk of the machine is not in a snapshot; nothing if it is.
pub fn disk_obstacle(vm: &VmFacts, disk: &DiskFacts) -> Option<DiskObstacle> {
    if disk.backing == BackingKind::RdmPhysical {
        return Some(DiskObstacle::RdmPhysical);
    }
    if disk.mode.is_independent() {
        return Some(DiskObstacle::Independent);
    }
    if vm.controllers.get(&disk.controller_key).is_some_and(|controller| controller.is_shared) {
        return Some(DiskObstacle::SharedBus);
    }
    if disk.is_multi_writer {
        return Some(DiskObstacle::MultiWriter);
    }
    (disk.capacity_bytes == 0).then_some(DiskObstacle::NoSize)
}

/// Why the machine cannot be snapshotted; nothing if it can.
pub fn vm_obstacle(vm: &VmFacts) -> Option<VmObstacle> {
    if vm.is_template {
        return Some(VmObstacle::Template);
    }
    if let Some((path, reason)) = vm.unreadable.iter().find(|(path, _)| NEEDED.contains(&&**path)) {
        return Some(VmObstacle::Unreadable { path: path.to_string(), reason: reason.to_string() });
    }
    // vcsim and old ESXi say nothing when all is well.
    if !vm.connection_state.is_empty() && &*vm.connection_state != "connected" {
        return Some(VmObstacle::NotConnected { state: vm.connection_state.to_string() });
    }
    if vm.instance_uuid.is_empty() {
        return Some(VmObstacle::NoInstanceUuid);
    }
    let shared = |disk: &&DiskFacts| {
        matches!(disk_obstacle(vm, disk), Some(DiskObstacle::SharedBus | DiskObstacle::MultiWriter))
    };
    let runs = &*vm.power_state != "poweredOff";
    vm.disks
        .values()
        .find(shared)
        .filter(|_| runs)
        .map(|disk| VmObstacle::SharedDisk { label: disk.label.to_string() })
}

/// What makes a snapshot slower or riskier without forbidding it; for the session's log.
pub fn remarks(vm: &VmFacts) -> Vec<String> {
    let mut remarks = Vec::new();
    if vm.is_encrypted || vm.disks.values().any(|disk| disk.is_encrypted) {
        remarks.push(
            "it is encrypted: only the transport modes hotadd and nfc read its disks in clear"
                .into(),
        );
    }
    if vm.has_vtpm {
        remarks.push("it has a virtual TPM, whose secrets are not part of a backup".into());
    }
    if vm.consolidation_needed {
        remarks.push("its disks need consolidation, left over from an earlier snapshot".into());
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::{DiskObstacle, VmObstacle, disk_obstacle, vm_obstacle};
    use crate::broker::devices::Devices;
    use crate::broker::devices::tests::DEVICES;
    use crate::broker::facts::{BackingKind, DiskFacts, DiskMode, VmFacts};
    use crate::vcenter::xml;

    fn machine() -> VmFacts {
        let devices = Devices::parse(&xml::parse(DEVICES.as_bytes()).expect("XML"));
        VmFacts {
            instance_uuid: "u".into(),
            power_state: "poweredOn".into(),
            controllers: devices.controllers,
            disks: devices.disks,
            ..VmFacts::default()
        }
    }

    #[test]
    fn each_obstacle_of_a_disk_is_told() {
        let vm = machine();
        let good = vm.disks[&2000].clone();
        assert_eq!(disk_obstacle(&vm, &good), None);
        let told = |change: &dyn Fn(&mut DiskFacts)| {
            let mut disk = good.clone();
            change(&mut disk);
            disk_obstacle(&vm, &disk)
        };
        let mode = DiskMode::IndependentNonPersistent;
        assert_eq!(told(&|disk| disk.mode = mode), Some(DiskObstacle::Independent));
        assert_eq!(
            told(&|disk| disk.backing = BackingKind::RdmPhysical),
            Some(DiskObstacle::RdmPhysical)
        );
        assert_eq!(told(&|disk| disk.backing = BackingKind::RdmVirtual), None);
        assert_eq!(told(&|disk| disk.controller_key = 1001), Some(DiskObstacle::SharedBus));
        assert_eq!(told(&|disk| disk.is_multi_writer = true), Some(DiskObstacle::MultiWriter));
        assert_eq!(told(&|disk| disk.capacity_bytes = 0), Some(DiskObstacle::NoSize));
    }

    #[test]
    fn each_obstacle_of_a_machine_is_told() {
        let vm = machine();
        assert_eq!(vm_obstacle(&vm), None, "the shared disk is independent");
        assert_eq!(
            vm_obstacle(&VmFacts { is_template: true, ..machine() }),
            Some(VmObstacle::Template)
        );
        let state = || "inaccessible".into();
        let lost = VmFacts { connection_state: state(), ..machine() };
        assert!(matches!(vm_obstacle(&lost), Some(VmObstacle::NotConnected { .. })));
        let nameless = VmFacts { instance_uuid: "".into(), ..machine() };
        assert_eq!(vm_obstacle(&nameless), Some(VmObstacle::NoInstanceUuid));
        let mut shared = machine();
        shared.disks.entry(2000).and_modify(|disk| disk.is_multi_writer = true);
        assert!(matches!(vm_obstacle(&shared), Some(VmObstacle::SharedDisk { .. })));
        shared.power_state = "poweredOff".into();
        assert_eq!(vm_obstacle(&shared), None);
        let mut unread = machine();
        unread.unreadable.push(("snapshot".into(), "no".into()));
        assert!(matches!(vm_obstacle(&unread), Some(VmObstacle::Unreadable { .. })));
    }
}
