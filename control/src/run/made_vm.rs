//! Removes a machine that a restore began to make and did not finish.
//!
//! In: its instance UUID, the folder of its files, which is the restore's own. Out: neither is there any
//! more, or what stays and why. Invariant: only a machine that lies in that very folder is removed, and
//! none that has been switched on: by then it is the administrator's.

use std::time::Duration;

use gantry_common::failure::Failure;

use crate::limits;
use crate::vcenter::{FaultKind, MoRef, TaskWait, VCenter, VimError, VmRef};

/// Removes it; says what was there. `vm`: instance UUID and name.
///
/// # Errors
/// As any call: something may be left.
pub(super) async fn remove(
    vcenter: &VCenter,
    (uuid, name): (&str, &str),
    datacenter: &MoRef,
    folder: &str,
) -> Result<String, Failure> {
    let done = try_remove(vcenter, (uuid, name), datacenter, folder).await;
    done.map_err(|error| error.failure())
}

async fn try_remove(
    vcenter: &VCenter,
    (uuid, name): (&str, &str),
    datacenter: &MoRef,
    folder: &str,
) -> Result<String, VimError> {
    if let Some(moref) = vcenter.find_by_uuid(uuid, true).await? {
        let vm = VmRef::new(moref, name);
        let paths = ["config.files.vmPathName", "runtime.powerState"];
        let facts = vcenter.properties_of(&vm.moref, name, &paths).await?;
        let file = facts.text("config.files.vmPathName").unwrap_or_default();
        if !is_within(file, folder) {
            return Ok(format!(
                "the machine with the UUID {uuid} is at '{file}', not in {folder}: it is left alone"
            ));
        }
        if facts.text("runtime.powerState") != Some("poweredOff") {
            return Ok(format!("the machine '{name}' has been switched on: it is left alone"));
        }
        let task = vcenter.destroy(&vm).await?;
        ended(vcenter, &task, "Destroy_Task", name).await?;
    }
    let task = match vcenter.delete_datastore_file(datacenter, folder).await {
        Err(error) if is_not_there(&error) => None,
        task => Some(task?),
    };
    if let Some(task) = task {
        match ended(vcenter, &task, "DeleteDatastoreFile_Task", folder).await {
            Err(error) if !is_not_there(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(format!("the unfinished machine '{name}' and its files in {folder} were removed"))
}

async fn ended(
    vcenter: &VCenter,
    task: &MoRef,
    method: &'static str,
    object: &str,
) -> Result<(), VimError> {
    let timeout = Duration::from_secs(limits::REBUILD_SECONDS_MAX);
    vcenter.wait_for_task(task, TaskWait::new(method, object, timeout)).await.map(drop)
}

fn is_not_there(error: &VimError) -> bool {
    let missing = ["FileNotFound", "NotFound"];
    matches!(error.fault(), Some(FaultKind::FileFault { fault, .. }) if missing.contains(&fault.as_str()))
}

/// Whether a file lies directly in the folder.
fn is_within(file: &str, folder: &str) -> bool {
    let rest = file.strip_prefix(folder.trim_end_matches('/'));
    rest.and_then(|rest| rest.strip_prefix('/')).is_some_and(|name| !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::is_within;

    #[test]
    fn only_what_lies_in_the_very_folder_is_the_restore_s() {
        for (file, folder, is_it) in [
            ("[ds] web_1/web.vmx", "[ds] web_1", true),
            ("[ds] web_1/web.vmx", "[ds] web_1/", true),
            ("[ds] web_10/web.vmx", "[ds] web_1", false),
            ("[ds] web_1/a/web.vmx", "[ds] web_1", false),
            ("[ds2] web_1/web.vmx", "[ds] web_1", false),
            ("", "[ds] web_1", false),
        ] {
            assert_eq!(is_within(file, folder), is_it, "{file} in {folder}");
        }
    }
}
