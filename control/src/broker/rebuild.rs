//! Makes a machine again from its restore point's configuration, or registers one from its files.
//!
//! In: a configuration, a [`Placement`], disks' files. Out: the new machine and notes on what does not
//! come back. Refused: a name that is taken in the folder, a kept identity that another machine has.
//! A lost answer is not taken for a failure: the machine is looked for. Undo: `UnregisterVM`. It is
//! never switched on here.

use std::time::Duration;

use super::parse::unescaped;
use super::places::Placement;
use super::vm_config::VmConfig;
use super::vm_spec::{SpecError, VmSpec, Wish};
use crate::limits;
use crate::vcenter::property::{Properties, Start};
use crate::vcenter::{Element, MoRef, Registration, TaskWait, VCenter, VimError, VmRef};

/// A machine that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// Which.
    pub vm: VmRef,
    /// Datastore path of its configuration file.
    pub config_file: String,
    /// What was chosen, and what does not come back as it was.
    pub notes: Vec<String>,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// A call or the task failed.
    #[error("{0}")]
    Call(#[from] VimError),
    /// The configuration cannot be used.
    #[error("{0}")]
    Spec(#[from] SpecError),
    /// The name is taken.
    #[error(
        "a VM named '{name}' is already in that folder ({vm}); choose another name or folder, or remove it first"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        vm: MoRef,
    },
    /// The identity is taken.
    #[error(
        "the machine's identity (instance UUID {uuid}) is that of {vm}, which is still in the inventory; restore without keeping it, or unregister that machine first"
    )]
    IdentityTaken {
        /// The instance UUID.
        uuid: String,
        /// Who has it.
        vm: MoRef,
    },
}

/// Makes a machine. Disks that are said to exist must be there; the folder is made.
///
/// # Errors
/// See [`RebuildError`].
pub async fn rebuild(
    vcenter: &VCenter,
    config: &VmConfig,
    placement: &Placement,
    wish: &Wish<'_>,
) -> Result<Rebuilt, RebuildError> {
    // Known beforehand, so that a lost answer can be told from a failure, and so that it differs from
    // the old machine's for certain.
    let fresh = new_uuid();
    let wish = Wish {
        reachable: &placement.networks,
        instance_uuid: wish.instance_uuid.or(Some(&fresh)),
        ..wish.clone()
    };
    let spec = VmSpec::build(config, &wish)?;
    let uuid = if wish.keep_identity && !config.instance_uuid.is_empty() {
        config.instance_uuid.as_str()
    } else {
        wish.instance_uuid.unwrap_or_default()
    };
    refuse_taken(vcenter, placement, &spec.name, uuid).await?;
    vcenter.make_datastore_folder(&placement.datacenter, wish.folder).await?;
    let Placement { folder, pool, host, .. } = placement;
    let begun = vcenter.create_vm(folder, &spec.name, pool, Some(host), |w| spec.write(w)).await;
    let object = format!("new VM '{}'", spec.name);
    let moref = match ended(vcenter, "CreateVM_Task", &object, begun).await {
        Err(error) if error.outcome_is_unknown() => {
            tracing::warn!(%error, "it is looked for the machine, since the outcome is unknown");
            vcenter.find_by_uuid(uuid, true).await?.ok_or(error)?
        }
        made => made?,
    };
    let mut notes = placement.notes.clone();
    notes.extend(spec.notes.iter().cloned());
    let vm = VmRef::new(moref, spec.name.clone());
    Ok(Rebuilt { vm, config_file: spec.config_file, notes })
}

/// Registers a machine from its configuration file, which must be on the placement's datastore.
///
/// # Errors
/// See [`RebuildError`].
pub async fn register(
    vcenter: &VCenter,
    placement: &Placement,
    config_file: &str,
    name: &str,
) -> Result<Rebuilt, RebuildError> {
    refuse_taken_name(vcenter, placement, name).await?;
    let registration = Registration {
        folder: &placement.folder,
        config_file,
        name: Some(name),
        pool: &placement.pool,
        host: Some(&placement.host),
    };
    let begun = vcenter.register_vm(&registration).await;
    let moref = match ended(vcenter, "RegisterVM_Task", config_file, begun).await {
        Err(error) if error.outcome_is_unknown() => {
            named(vcenter, &placement.folder, name).await?.ok_or(error)?
        }
        made => made?,
    };
    let notes = placement.notes.clone();
    Ok(Rebuilt { vm: VmRef::new(moref, name), config_file: config_file.to_owned(), notes })
}

async fn ended(
    vcenter: &VCenter,
    method: &'static str,
    object: &str,
    begun: Result<MoRef, VimError>,
) -> Result<MoRef, VimError> {
    let timeout = Duration::from_secs(limits::REBUILD_SECONDS_MAX);
    let wait = TaskWait::new(method, object, timeout);
    let end = vcenter.wait_for_task(&begun?, wait).await?;
    let made = end.result.as_ref().and_then(Element::as_moref);
    made.ok_or_else(|| vcenter.unexpected(method, object, "the task gave no machine"))
}

/// Refuses a name that is taken in the folder, and an instance UUID that another machine has.
///
/// # Errors
/// See [`RebuildError`].
pub async fn refuse_taken(
    vcenter: &VCenter,
    placement: &Placement,
    name: &str,
    uuid: &str,
) -> Result<(), RebuildError> {
    refuse_taken_name(vcenter, placement, name).await?;
    match vcenter.find_by_uuid(uuid, true).await? {
        Some(vm) => Err(RebuildError::IdentityTaken { uuid: uuid.to_owned(), vm }),
        None => Ok(()),
    }
}

async fn refuse_taken_name(
    vcenter: &VCenter,
    placement: &Placement,
    name: &str,
) -> Result<(), RebuildError> {
    match named(vcenter, &placement.folder, name).await? {
        Some(vm) => Err(RebuildError::NameTaken { name: name.to_owned(), vm }),
        None => Ok(()),
    }
}

/// The machine of this name in this very folder; vCenter does not tell names apart by case.
async fn named(vcenter: &VCenter, folder: &MoRef, name: &str) -> Result<Option<MoRef>, VimError> {
    let view = vcenter.container_view(Some(folder), &["VirtualMachine"]).await?;
    let properties = [Properties { kind: "VirtualMachine", paths: &["name", "parent"] }];
    let mut found = None;
    let each = |one: crate::vcenter::property::ObjectContent| {
        let is_named = one
            .text("name")
            .is_some_and(|text| unescaped(text).to_lowercase() == name.to_lowercase());
        if is_named && one.get("parent").and_then(Element::as_moref).as_ref() == Some(folder) {
            found = Some(one.object);
        }
    };
    let read = vcenter.retrieve(&properties, &Start::View(&view), each).await;
    let _ = vcenter.destroy_view(&view).await;
    read.map(|()| found)
}

/// A random UUID (RFC 9562, version 4).
pub fn new_uuid() -> String {
    let random = fastrand::u128(..);
    let value = (random & !(0xf << 76) & !(0b11 << 62)) | (0x4 << 76) | (0b10 << 62);
    let digits = format!("{value:032x}");
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_uuid_says_its_version() {
        for _ in 0..50 {
            let uuid = super::new_uuid();
            let marks = (uuid.len(), &uuid[14..15], "89ab".contains(&uuid[19..20]));
            assert_eq!(marks, (36, "4", true), "{uuid}");
        }
    }
}
