//! Calls that bring a machine into the inventory or take it out: CreateVM_Task, RegisterVM_Task,
//! UnregisterVM, and the folders of a datastore that a machine's files stand in.
//!
//! In: a folder, a resource pool, a host, a configuration. Out: the new machine's reference. None is
//! repeated when its answer was lost: whoever called looks for the machine first
//! ([`VCenter::find_by_uuid`], or its name in the folder). Source: the vSphere Web Services API
//! reference, `Folder`, `VirtualMachine`, `FileManager`.

use super::error::VimError;
use super::moref::{MoRef, VmRef};
use super::retry::Repeat;
use super::session::VCenter;
use super::xml_writer::XmlWriter;

/// A machine whose configuration file is already on a datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration<'a> {
    /// The folder of the inventory.
    pub folder: &'a MoRef,
    /// Datastore path of the `.vmx`.
    pub config_file: &'a str,
    /// Another name than the configuration file says.
    pub name: Option<&'a str>,
    /// Resource pool.
    pub pool: &'a MoRef,
    /// Host; vCenter chooses in a cluster that balances load.
    pub host: Option<&'a MoRef>,
}

impl VCenter {
    async fn file_manager(&self, method: &'static str, path: &str) -> Result<MoRef, VimError> {
        let manager = self.content().await?.file_manager.clone();
        manager.ok_or_else(|| self.unexpected(method, path, "the endpoint has no file manager"))
    }

    async fn begin_task_on(
        &self,
        method: &'static str,
        folder: &MoRef,
        object: &str,
        arguments: impl FnOnce(&mut XmlWriter),
    ) -> Result<MoRef, VimError> {
        let answer = self.call(method, folder, object, Repeat::Changes, arguments).await?;
        let task = answer.moref_at("returnval");
        task.ok_or_else(|| self.unexpected(method, object, "no task"))
    }

    /// Begins to make a machine; `config` writes the inside of a `VirtualMachineConfigSpec`, in the
    /// schema's order. The task's result is the machine. `name` is for errors.
    ///
    /// # Errors
    /// As any call.
    pub async fn create_vm(
        &self,
        folder: &MoRef,
        name: &str,
        pool: &MoRef,
        host: Option<&MoRef>,
        config: impl FnOnce(&mut XmlWriter),
    ) -> Result<MoRef, VimError> {
        let object = format!("new VM '{name}'");
        self.begin_task_on("CreateVM_Task", folder, &object, |w| {
            w.nest("config", config).moref("pool", pool);
            if let Some(host) = host {
                w.moref("host", host);
            }
        })
        .await
    }

    /// Begins to register a machine whose files are on a datastore. The task's result is the
    /// machine.
    ///
    /// # Errors
    /// As any call.
    pub async fn register_vm(&self, what: &Registration<'_>) -> Result<MoRef, VimError> {
        self.begin_task_on("RegisterVM_Task", what.folder, what.config_file, |w| {
            w.text("path", what.config_file).optional("name", what.name);
            w.value("asTemplate", false).moref("pool", what.pool);
            if let Some(host) = what.host {
                w.moref("host", host);
            }
        })
        .await
    }

    /// Takes a machine out of the inventory; its files stay. One that is gone already is no error.
    ///
    /// # Errors
    /// As any call.
    pub async fn unregister_vm(&self, vm: &VmRef) -> Result<(), VimError> {
        let method = "UnregisterVM";
        match self.call(method, &vm.moref, &vm.to_string(), Repeat::Changes, |_| {}).await {
            Err(error) if !error.is_gone() => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes a folder on a datastore, with those above it; one that is there is no error.
    ///
    /// # Errors
    /// As any call.
    pub async fn make_datastore_folder(
        &self,
        datacenter: &MoRef,
        path: &str,
    ) -> Result<(), VimError> {
        let manager = self.file_manager("MakeDirectory", path).await?;
        let made = self
            .call("MakeDirectory", &manager, path, Repeat::Harmless, |w| {
                w.text("name", path).moref("datacenter", datacenter);
                w.value("createParentDirectories", true);
            })
            .await;
        let is_there = |error: &VimError| matches!(error.fault(), Some(super::FaultKind::FileFault { fault, .. }) if fault == "FileAlreadyExists");
        match made {
            Err(error) if is_there(&error) => Ok(()),
            made => made.map(drop),
        }
    }

    /// Begins to delete a file or a folder with everything in it from a datastore.
    ///
    /// # Errors
    /// As any call.
    pub async fn delete_datastore_file(
        &self,
        datacenter: &MoRef,
        path: &str,
    ) -> Result<MoRef, VimError> {
        let manager = self.file_manager("DeleteDatastoreFile_Task", path).await?;
        self.begin_task_on("DeleteDatastoreFile_Task", &manager, path, |w| {
            w.text("name", path).moref("datacenter", datacenter);
        })
        .await
    }
}
