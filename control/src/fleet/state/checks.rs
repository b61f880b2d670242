//! What is taken from a mover's greeting and from owners' credentials, and what is not.
//!
//! In: foreign or given values. Out: nothing, or why they are refused. Never shows a secret.

use std::collections::BTreeSet;

use gantry_common::control::{CONTROL_PROTOCOL, MoverFacts, TaskStanding};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::secret::Secret;

use crate::limits;

pub(super) fn usage(text: String) -> Failure {
    Failure::new(FailureKind::Usage, text)
}

pub(super) fn check_credential(name: &str, content: &Secret) -> Result<(), Failure> {
    let is_file_name = (1..=limits::CREDENTIAL_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if !is_file_name {
        let text = format!("'{}' is no name of a credential", name.escape_default());
        return Err(usage(text.chars().take(limits::QUOTED_BYTES_MAX).collect()));
    }
    let bytes = content.reveal().len();
    if bytes > limits::CREDENTIAL_BYTES_MAX {
        return Err(usage(format!("credential '{name}' has {bytes} bytes")));
    }
    Ok(())
}

pub(super) fn check_hello(
    protocol: u16,
    software: &str,
    facts: &MoverFacts,
    tasks: &[TaskStanding],
) -> Result<(), String> {
    if protocol != CONTROL_PROTOCOL {
        return Err(format!(
            "speaks control protocol {protocol}, gantryd speaks {CONTROL_PROTOCOL}: install the same version of both"
        ));
    }
    if tasks.len() > limits::MOVER_TASKS_MAX {
        return Err(format!("knows {} tasks", tasks.len()));
    }
    if tasks.iter().map(|standing| standing.task).collect::<BTreeSet<_>>().len() != tasks.len() {
        return Err("names a task twice".into());
    }
    let path = facts.repository.as_ref().map(|repository| repository.path.as_str());
    let texts = [software, &facts.host, &facts.private_folder].into_iter();
    let texts = texts.chain(facts.machine_uuid.as_deref()).chain(path);
    let mounts = facts.mounts.iter().flat_map(|(name, folder)| [name.as_str(), folder.as_str()]);
    if facts.mounts.len() > limits::MOVER_MOUNTS_MAX
        || texts.chain(mounts).any(|text| text.len() > limits::MOVER_TEXT_BYTES_MAX)
    {
        return Err("has more mounts or longer names than are taken".into());
    }
    Ok(())
}
