//! Resets changed block tracking, after it was found to be wrong.
//!
//! In: a machine, why, the job's policy, a mark for the snapshot that is needed. Out: tracking that
//! begins anew with the run's own snapshot; that run reads everything ([`super::FullReason::JustEnabled`]).
//! Order: no snapshot at all → off → a snapshot and its removal, which make it take effect → on. A failure
//! at any step leaves tracking off or reset: both end in an explained full, never in a wrong
//! incremental. Undo of the snapshot: its mark, as of any other.
//!
//! Sources: VMware's KB 2139574 (no snapshots; off, then on again) and the Virtual Disk Development Kit
//! Programming Guide, "Enable Changed Block Tracking" (a machine that runs must go through a stun, such
//! as making a snapshot, before a change of the flag takes effect).

use std::time::Duration;

use super::query::enable_tracking;
use crate::broker::facts::VmFacts;
use crate::limits;
use crate::snapshots::remove::{Detach, usual_pauses};
use crate::snapshots::{self, Mark, NewRequest, Removal, SnapshotError, Whose};
use crate::vcenter::{TaskWait, VCenter, VimError, VmRef};

/// Whether Gantry may reset tracking by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetPolicy {
    /// After a mistake that an audit found, and where tracking was switched on under snapshots.
    #[default]
    WhenWrong,
    /// Never: a person does it. Until then every run reads everything.
    Never,
}

/// Why it is to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetCause {
    /// An audit met a change that tracking had left out.
    AuditAlarm,
    /// Tracking was switched on while snapshots existed.
    EnabledUnderSnapshots,
}

/// Why it is not reset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResetRefused {
    /// The job forbids it.
    #[error("the job's policy leaves the reset of changed block tracking to a person")]
    Policy,
    /// There are snapshots.
    #[error(
        "changed block tracking can only be reset without snapshots; the VM has {count}: remove them"
    )]
    Snapshots {
        /// How many.
        count: usize,
    },
    /// It is off already.
    #[error("changed block tracking is off; the next run switches it on")]
    Off,
    /// A disk waits to be merged.
    #[error("the VM's disks need consolidation before changed block tracking can be reset")]
    Consolidation,
}

/// Why a reset failed.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// It must not be done.
    #[error("{vm}: {reason}")]
    Refused {
        /// The machine.
        vm: String,
        /// Why.
        reason: ResetRefused,
    },
    /// A call failed.
    #[error("{0}")]
    Call(#[from] VimError),
    /// The snapshot that makes it take effect failed.
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    /// That snapshot would not go; tracking stays off.
    #[error("{vm}: the snapshot of the reset is still there: {errors}")]
    Stays {
        /// The machine.
        vm: String,
        /// What went wrong.
        errors: String,
    },
}

/// Whether tracking may be reset now. Pure.
///
/// # Errors
/// See [`ResetRefused`].
pub fn may_reset(vm: &VmFacts, policy: ResetPolicy, cause: ResetCause) -> Result<(), ResetRefused> {
    match (policy, cause) {
        (ResetPolicy::Never, _) => return Err(ResetRefused::Policy),
        (ResetPolicy::WhenWrong, ResetCause::AuditAlarm | ResetCause::EnabledUnderSnapshots) => {}
    }
    if !vm.change_tracking {
        return Err(ResetRefused::Off);
    }
    if !vm.snapshots.is_empty() {
        return Err(ResetRefused::Snapshots { count: vm.snapshots.len() });
    }
    if vm.consolidation_needed {
        return Err(ResetRefused::Consolidation);
    }
    Ok(())
}

/// Resets tracking. Ask [`may_reset`] first, and write the mark's undo down; snapshots are looked for
/// once more here, in vCenter itself.
///
/// # Errors
/// See [`ResetError`].
pub async fn reset(
    vcenter: &VCenter,
    vm: &VmRef,
    mark: &Mark,
    detach: &Detach<'_>,
) -> Result<(), ResetError> {
    let count = snapshots::create::list(vcenter, vm).await?.len();
    if count > 0 {
        let reason = ResetRefused::Snapshots { count };
        return Err(ResetError::Refused { vm: vm.to_string(), reason });
    }
    let object = vm.to_string();
    let timeout = Duration::from_secs(limits::SNAPSHOT_CREATE_SECONDS_MAX);
    let task = vcenter.set_change_tracking(vm, false).await?;
    vcenter.wait_for_task(&task, TaskWait::new("ReconfigVM_Task", &object, timeout)).await?;
    let request = NewRequest { vm, mark, quiesce: false, timeout, cancel: None };
    let made = snapshots::create(vcenter, request).await;
    // Removed also when it is not known whether it was made.
    let pauses = usual_pauses();
    let removal = Removal::new(vm, Whose::Named(mark.name()), detach, &pauses);
    let removed = snapshots::remove(vcenter, removal).await?;
    made?;
    if !removed.is_clean() {
        return Err(ResetError::Stays { vm: object, errors: removed.errors.join("; ") });
    }
    // Somebody else's snapshot may have come meanwhile: tracking stays off under it.
    let count = snapshots::create::list(vcenter, vm).await?.len();
    if count > 0 {
        let reason = ResetRefused::Snapshots { count };
        return Err(ResetError::Refused { vm: object, reason });
    }
    Ok(enable_tracking(vcenter, vm).await?)
}

#[cfg(test)]
mod tests {
    use super::{ResetCause, ResetPolicy, ResetRefused, may_reset};
    use crate::broker::facts::{SnapshotFacts, VmFacts};
    use crate::vcenter::MoRef;

    #[test]
    fn tracking_is_reset_only_where_it_helps_and_is_allowed() {
        let vm = VmFacts { change_tracking: true, ..VmFacts::default() };
        let alarm = ResetCause::AuditAlarm;
        assert_eq!(may_reset(&vm, ResetPolicy::default(), alarm), Ok(()));
        assert_eq!(may_reset(&vm, ResetPolicy::Never, alarm), Err(ResetRefused::Policy));
        let ask = |vm: &VmFacts| may_reset(vm, ResetPolicy::WhenWrong, alarm);
        assert_eq!(ask(&VmFacts::default()), Err(ResetRefused::Off));
        let snapshot = SnapshotFacts {
            moref: MoRef::new("VirtualMachineSnapshot", "s"),
            name: "by hand".into(),
            description: "".into(),
            created: "".into(),
            parent: None,
            is_current: true,
        };
        let with = VmFacts { snapshots: vec![snapshot], ..vm.clone() };
        assert_eq!(ask(&with), Err(ResetRefused::Snapshots { count: 1 }));
        let torn = VmFacts { consolidation_needed: true, ..vm };
        assert_eq!(ask(&torn), Err(ResetRefused::Consolidation));
    }
}
