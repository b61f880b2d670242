//! What a machine's past says about its tracking: was it reverted, was tracking switched on under
//! snapshots.
//!
//! In: a vCenter, a machine, the time of the last restore point. Out: a [`History`], in which `None` means
//! that nobody can know. Two sources: the events of vCenter, and each existing snapshot's own
//! configuration, which holds the flag of its time. [`judge_events`] and [`judge_flags`] are pure.

use super::decide::CbtFacts;
use crate::snapshots::create::list;
use crate::vcenter::events::EventFact;
use crate::vcenter::{Element, VCenter, VimError, VmRef};

/// The event of a revert, and the tasks that revert.
const REVERTED: &str = "com.vmware.vc.vm.VmStateRevertedToSnapshot";
const TASK_EVENT: &str = "vim.event.TaskEvent";
const REVERTING: [&str; 2] =
    ["VirtualMachine.revertToCurrentSnapshot", "VirtualMachineSnapshot.revert"];
/// An answer as long as this may have been cut off.
const EVENTS_WHOLE_MAX: usize = 1_000;

/// What is known of the past; `None`: nobody can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct History {
    /// The machine was reverted to a snapshot since the last restore point.
    pub was_reverted: Option<bool>,
    /// Tracking was switched on while a snapshot existed that still exists.
    pub was_enabled_under_snapshots: Option<bool>,
}

impl History {
    /// Reads what can be known. A source that fails leaves its part unknown, with a line in the log.
    pub async fn read(vcenter: &VCenter, vm: &VmRef, since: Option<&str>) -> History {
        let known = |what: &str, read: Result<Option<bool>, VimError>| {
            read.unwrap_or_else(|error| {
                tracing::info!(%error, "it is not known whether the VM {what}");
                None
            })
        };
        let was_reverted = match since {
            Some(since) => {
                let events = vcenter.events_of(vm, since, &[REVERTED, TASK_EVENT]).await;
                known("was reverted", events.map(|events| judge_events(&events)))
            }
            None => None,
        };
        let flags = flags(vcenter, vm).await;
        let under = flags.map(|(now, then)| judge_flags(now, &then));
        let was_enabled_under_snapshots = known("had tracking switched on under snapshots", under);
        History { was_reverted, was_enabled_under_snapshots }
    }

    /// Tells a decision what is known; the unknown changes nothing in it.
    pub fn apply(&self, facts: &mut CbtFacts<'_>) {
        facts.was_reverted |= self.was_reverted == Some(true);
        facts.was_enabled_under_snapshots |= self.was_enabled_under_snapshots == Some(true);
    }
}

/// Whether these events hold a revert; unknown when there may be more than these.
pub fn judge_events(events: &[EventFact]) -> Option<bool> {
    let reverts = |event: &EventFact| {
        event.kind == REVERTED
            || event.task.as_deref().is_some_and(|task| REVERTING.contains(&task))
    };
    let is_whole = events.len() < EVENTS_WHOLE_MAX;
    if events.iter().any(reverts) { Some(true) } else { is_whole.then_some(false) }
}

/// Whether tracking is on and a snapshot that exists was made before it was. Without snapshots the
/// past has left no trace.
pub fn judge_flags(now: bool, then: &[Option<bool>]) -> Option<bool> {
    if now && then.contains(&Some(false)) {
        Some(true)
    } else if then.is_empty() || then.contains(&None) {
        None
    } else {
        Some(false)
    }
}

async fn flags(vcenter: &VCenter, vm: &VmRef) -> Result<(bool, Vec<Option<bool>>), VimError> {
    let path = "config.changeTrackingEnabled";
    let name = vm.to_string();
    let now = vcenter.properties_of(&vm.moref, &name, &[path]).await?;
    let now = now.get(path).and_then(Element::as_bool).unwrap_or(false);
    let mut then = Vec::new();
    for snapshot in list(vcenter, vm).await? {
        let content = vcenter.properties_of(&snapshot.moref, &name, &[path]).await?;
        then.push(content.get(path).and_then(Element::as_bool));
    }
    Ok((now, then))
}

#[cfg(test)]
mod tests {
    use super::{EVENTS_WHOLE_MAX, REVERTED, judge_events, judge_flags};
    use crate::vcenter::events::EventFact;

    #[test]
    fn the_past_is_known_or_unknown_never_guessed() {
        let event = |kind: &str, task: Option<&str>| EventFact {
            kind: kind.into(),
            created: String::new(),
            task: task.map(str::to_owned),
        };
        let other = event("vim.event.TaskEvent", Some("VirtualMachine.createSnapshot"));
        let task = event("vim.event.TaskEvent", Some("VirtualMachineSnapshot.revert"));
        assert_eq!(judge_events(&[]), Some(false));
        assert_eq!(judge_events(std::slice::from_ref(&other)), Some(false));
        assert_eq!(judge_events(&[other.clone(), task]), Some(true));
        assert_eq!(judge_events(&[event(REVERTED, None)]), Some(true));
        assert_eq!(judge_events(&vec![other; EVENTS_WHOLE_MAX]), None, "there may be more");
        assert_eq!(judge_flags(true, &[Some(true), Some(false)]), Some(true));
        assert_eq!(judge_flags(true, &[Some(true)]), Some(false));
        assert_eq!(judge_flags(true, &[]), None);
        assert_eq!(judge_flags(true, &[None]), None);
        assert_eq!(judge_flags(false, &[Some(false)]), Some(false));
    }
}
