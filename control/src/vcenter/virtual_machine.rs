//! Calls that change a virtual machine. Each begins a task and gives its reference.
//!
//! None is repeated when its answer was lost: whoever called looks at the machine first
//! (`snapshots` does so by the snapshot's name).

use super::error::VimError;
use super::moref::{MoRef, VmRef};
use super::retry::Repeat;
use super::session::VCenter;
use super::xml::Element;
use super::xml_writer::XmlWriter;

/// From this API version on, `CreateSnapshot_Task` is deprecated.
const CREATE_SNAPSHOT_EX_SINCE: (u32, u32) = (8, 0);

/// A snapshot to be made. Memory is never part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSnapshot<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its description.
    pub description: &'a str,
    /// Whether VMware Tools quiesce the guest.
    pub quiesce: bool,
}

impl VCenter {
    async fn begin(
        &self,
        method: &'static str,
        this: &MoRef,
        vm: &VmRef,
        arguments: impl FnOnce(&mut XmlWriter),
    ) -> Result<MoRef, VimError> {
        let object = vm.to_string();
        let answer = self.call(method, this, &object, Repeat::Changes, arguments).await?;
        self.task_of(method, &object, &answer)
    }

    fn task_of(
        &self,
        method: &'static str,
        object: &str,
        answer: &Element,
    ) -> Result<MoRef, VimError> {
        let task = answer.moref_at("returnval");
        task.ok_or_else(|| self.unexpected(method, object, "no task"))
    }

    /// Begins to make a snapshot: `CreateSnapshotEx_Task` or `CreateSnapshot_Task`, by the API
    /// version, and the other one where the first is not known.
    ///
    /// # Errors
    /// As any call.
    pub async fn create_snapshot(
        &self,
        vm: &VmRef,
        snapshot: &NewSnapshot<'_>,
    ) -> Result<MoRef, VimError> {
        let newer = self.content().await?.api() >= CREATE_SNAPSHOT_EX_SINCE;
        match self.create_snapshot_by(vm, snapshot, newer).await {
            // The service did nothing: it does not know the method.
            Err(error) if error.fault() == Some(&super::FaultKind::MethodNotFound) => {
                self.create_snapshot_by(vm, snapshot, !newer).await
            }
            begun => begun,
        }
    }

    async fn create_snapshot_by(
        &self,
        vm: &VmRef,
        snapshot: &NewSnapshot<'_>,
        newer: bool,
    ) -> Result<MoRef, VimError> {
        let method = if newer { "CreateSnapshotEx_Task" } else { "CreateSnapshot_Task" };
        self.begin(method, &vm.moref, vm, |w| {
            w.text("name", snapshot.name).text("description", snapshot.description);
            w.value("memory", false);
            if !newer {
                w.value("quiesce", snapshot.quiesce);
            } else if snapshot.quiesce {
                w.typed("quiesceSpec", "VirtualMachineGuestQuiesceSpec", |_| {});
            }
        })
        .await
    }

    /// Begins to remove one snapshot, keeping its children. Its disks are merged, which is the
    /// service's default: with `consolidate` false the delta files would stay, and the machine would
    /// go on writing to one of them.
    ///
    /// # Errors
    /// As any call.
    pub async fn remove_snapshot(&self, vm: &VmRef, snapshot: &MoRef) -> Result<MoRef, VimError> {
        self.begin("RemoveSnapshot_Task", snapshot, vm, |w| {
            w.value("removeChildren", false).value("consolidate", true);
        })
        .await
    }

    /// Begins to remove all snapshots of a machine, whoever made them.
    ///
    /// # Errors
    /// As any call.
    pub async fn remove_all_snapshots(&self, vm: &VmRef) -> Result<MoRef, VimError> {
        self.begin("RemoveAllSnapshots_Task", &vm.moref, vm, |w| {
            w.value("consolidate", true);
        })
        .await
    }

    /// Begins to switch a machine on.
    ///
    /// # Errors
    /// As any call.
    pub async fn power_on(&self, vm: &VmRef) -> Result<MoRef, VimError> {
        self.begin("PowerOnVM_Task", &vm.moref, vm, |_| {}).await
    }

    /// Begins to delete a machine with its files.
    ///
    /// # Errors
    /// As any call.
    pub async fn destroy(&self, vm: &VmRef) -> Result<MoRef, VimError> {
        self.begin("Destroy_Task", &vm.moref, vm, |_| {}).await
    }

    /// Begins to merge delta files that no snapshot needs any more.
    ///
    /// # Errors
    /// As any call.
    pub async fn consolidate_disks(&self, vm: &VmRef) -> Result<MoRef, VimError> {
        self.begin("ConsolidateVMDisks_Task", &vm.moref, vm, |_| {}).await
    }

    /// Begins to change a machine's configuration; `spec` writes the inside of a
    /// `VirtualMachineConfigSpec`, in the schema's order.
    ///
    /// # Errors
    /// As any call.
    pub async fn reconfigure(
        &self,
        vm: &VmRef,
        spec: impl FnOnce(&mut XmlWriter),
    ) -> Result<MoRef, VimError> {
        self.begin("ReconfigVM_Task", &vm.moref, vm, |w| {
            w.nest("spec", spec);
        })
        .await
    }

    /// Begins to switch changed block tracking on or off. It takes effect with the next stun, such
    /// as a snapshot.
    ///
    /// # Errors
    /// As any call.
    pub async fn set_change_tracking(&self, vm: &VmRef, on: bool) -> Result<MoRef, VimError> {
        self.reconfigure(vm, |w| {
            w.value("changeTrackingEnabled", on);
        })
        .await
    }
}
