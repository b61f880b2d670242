//! Whether a run may read only what CBT reports. Pure.
//!
//! In: [`CbtFacts`], before the snapshot as far as they are known then, and after it. Out: a
//! [`Decision`]; a job's [`Policy`] applied to it. Every trap of VSPHERE.md is a [`FullReason`].

pub use gantry_common::policy::CbtPolicy as Policy;

use super::change_id::ChangeId;
use crate::broker::facts::VmFacts;

/// The least hardware version with tracking.
const HARDWARE_VERSION_MIN: u32 = 7;
/// VMware's 310751 (formerly KB 2090639): ESXi 4.x, 5.0, 5.1 and 5.5 give wrong areas of a disk that has
/// grown past a multiple of 128 GiB while it was tracked. Only a larger disk can have done so. Patches
/// of early 2015 mend 5.x, but the article as it can be read today names no build, and tracking that was
/// wrong before stays wrong after: all of 5.x counts as affected.
const GROWN_DISK_BYTES: u64 = 128 << 30;
/// VMware's 317933 (formerly KB 2136854): ESXi 6.0 loses changes that are made during a consolidation;
/// resolved in patch ESXi600-201511001 of 2015-11-25, which published lists of builds give as 3247720.
const ESXI_60_FIXED_BUILD: u64 = 3_247_720;

/// What is known of the disk's change id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeIdFact<'a> {
    /// There is no snapshot yet.
    NotYetKnown,
    /// The snapshot's disk has none.
    Absent,
    /// The snapshot's disk has this one.
    Is(&'a str),
}

/// The restore point that an incremental would build on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseFacts<'a> {
    /// Its change id of the same disk (by disk UUID).
    pub change_id: Option<&'a str>,
    /// The disk's size in it.
    pub capacity_bytes: u64,
}

/// Everything that the decision depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CbtFacts<'a> {
    /// The disk's size now.
    pub capacity_bytes: u64,
    /// What of it is allocated, where that is known.
    pub allocated_bytes: Option<u64>,
    /// Virtual hardware version; 0 if unknown.
    pub hardware_version: u32,
    /// What became of switching tracking on.
    pub tracking: Tracking,
    /// Its change id.
    pub change_id: ChangeIdFact<'a>,
    /// The last restore point of the same disk in the same repository.
    pub base: Option<BaseFacts<'a>>,
    /// The machine was reverted to a snapshot since then.
    pub was_reverted: bool,
    /// Tracking was switched on while snapshots existed: it answers wrongly and without error.
    pub was_enabled_under_snapshots: bool,
    /// The job or a person asks for a full read.
    pub is_full_asked: bool,
    /// Why CBT is not trusted for this disk, such as a mistake that an audit found.
    pub distrusted: Option<&'a str>,
    /// Version and build of the host, such as `6.0.0` and `2494585`.
    pub host: Option<(&'a str, &'a str)>,
}

/// Whether changes are tracked, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracking {
    /// They were when the session began.
    On,
    /// They are not, and can be: switch it on before the snapshot. This run reads everything.
    CanTurnOn,
    /// The hardware version is too low.
    HardwareTooOld,
    /// It has snapshots: tracking must not be switched on under them.
    SnapshotsExist,
}

/// Whether a machine's changes are tracked; `own_snapshots` are those that Gantry removes first.
pub fn tracking(vm: &VmFacts, own_snapshots: usize) -> Tracking {
    if vm.change_tracking {
        Tracking::On
    } else if vm.hardware_version != 0 && vm.hardware_version < HARDWARE_VERSION_MIN {
        Tracking::HardwareTooOld
    } else if vm.snapshots.len() > own_snapshots {
        Tracking::SnapshotsExist
    } else {
        Tracking::CanTurnOn
    }
}

/// Why everything is read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FullReason {
    /// There is nothing to build on.
    #[error("this is the first backup of the disk")]
    FirstRun,
    /// A person or the job wants everything read.
    #[error("a full was asked for")]
    Asked,
    /// The audit, or whoever knows this disk, does not trust CBT.
    #[error("changed block tracking is not trusted: {0}")]
    Distrusted(String),
    /// The hardware is too old.
    #[error("hardware version {0} has no changed block tracking (it begins with 7)")]
    HardwareTooOld(u32),
    /// Tracking cannot be switched on.
    #[error(
        "changed block tracking is off and cannot be switched on while the VM has snapshots; remove them"
    )]
    SnapshotsForbidEnabling,
    /// Tracking is switched on by this run.
    #[error("changed block tracking was off; it is switched on with this run")]
    JustEnabled,
    /// Tracking was switched on under snapshots.
    #[error(
        "changed block tracking was switched on while snapshots existed, which makes it answer wrongly; reset it"
    )]
    EnabledUnderSnapshots,
    /// The disk has no change id.
    #[error("vSphere gives no change id of the disk although tracking is on")]
    NoChangeId,
    /// The disk's change id cannot be read.
    #[error("vSphere's change id '{0}' cannot be read")]
    StrangeChangeId(String),
    /// The base has no change id.
    #[error("the last restore point holds no change id of the disk")]
    NoBaseChangeId,
    /// The base's change id cannot be read.
    #[error("the last restore point's change id '{0}' cannot be read")]
    StrangeBaseChangeId(String),
    /// Tracking was reset.
    #[error("changed block tracking was reset since the last restore point")]
    TrackerChanged,
    /// The number of the change id went back, which a revert does.
    #[error("the change id went back from {base} to {now}: the disk was reverted")]
    SequenceWentBack {
        /// In the base.
        base: u64,
        /// Now.
        now: u64,
    },
    /// The machine was reverted.
    #[error("the VM was reverted to a snapshot since the last restore point")]
    Reverted,
    /// The disk has another size.
    #[error("the disk's size has changed from {base_bytes} to {now_bytes} bytes")]
    CapacityChanged {
        /// In the base.
        base_bytes: u64,
        /// Now.
        now_bytes: u64,
    },
    /// The host's build is known to lose changes.
    #[error(
        "ESXi {version} build {build} is known to lose changed blocks (VMware's {fault}); update the host"
    )]
    KnownBadBuild {
        /// Version.
        version: String,
        /// Build.
        build: String,
        /// VMware's number of the fault.
        fault: u32,
    },
    /// Asking failed, or the answer cannot be right.
    #[error("{0}")]
    QueryFailed(String),
}

impl FullReason {
    /// Whether the run was bound to read everything, so that no policy needs to hear of it.
    pub fn is_expected(&self) -> bool {
        matches!(self, FullReason::Asked | FullReason::FirstRun | FullReason::JustEnabled)
    }
}

/// What a run reads of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// What has changed since this id (before the snapshot: since the base's, as far as is known).
    Extents {
        /// To ask with.
        since: ChangeId,
    },
    /// Everything.
    ExplainedFull {
        /// Why.
        reason: FullReason,
        /// Bytes that will be read: what is allocated, where that is known.
        predicted_bytes: u64,
    },
}

/// Decides for one disk.
pub fn decide(facts: &CbtFacts<'_>) -> Decision {
    match doubt(facts) {
        Ok(since) => Decision::Extents { since },
        Err(reason) => explained_full(facts, reason),
    }
}

/// A full read for this reason; also for what is found out later ([`FullReason::QueryFailed`]).
pub fn explained_full(facts: &CbtFacts<'_>, reason: FullReason) -> Decision {
    let allocated = facts.allocated_bytes.unwrap_or(facts.capacity_bytes);
    Decision::ExplainedFull { reason, predicted_bytes: allocated.min(facts.capacity_bytes) }
}

fn doubt(facts: &CbtFacts<'_>) -> Result<ChangeId, FullReason> {
    if facts.is_full_asked {
        return Err(FullReason::Asked);
    }
    if let Some(why) = facts.distrusted {
        return Err(FullReason::Distrusted(why.to_owned()));
    }
    let Some(base) = facts.base else { return Err(FullReason::FirstRun) };
    match facts.tracking {
        Tracking::On => {}
        Tracking::CanTurnOn => return Err(FullReason::JustEnabled),
        Tracking::HardwareTooOld => {
            return Err(FullReason::HardwareTooOld(facts.hardware_version));
        }
        Tracking::SnapshotsExist => return Err(FullReason::SnapshotsForbidEnabling),
    }
    if facts.was_enabled_under_snapshots {
        return Err(FullReason::EnabledUnderSnapshots);
    }
    if facts.was_reverted {
        return Err(FullReason::Reverted);
    }
    if base.capacity_bytes != facts.capacity_bytes {
        let (base_bytes, now_bytes) = (base.capacity_bytes, facts.capacity_bytes);
        return Err(FullReason::CapacityChanged { base_bytes, now_bytes });
    }
    if let Some(reason) = known_bad_build(facts) {
        return Err(reason);
    }
    let since = base.change_id.ok_or(FullReason::NoBaseChangeId)?;
    let since: ChangeId =
        since.parse().map_err(|_| FullReason::StrangeBaseChangeId(short(since)))?;
    let now = match facts.change_id {
        ChangeIdFact::NotYetKnown => return Ok(since),
        ChangeIdFact::Absent => return Err(FullReason::NoChangeId),
        ChangeIdFact::Is(text) => text,
    };
    let now: ChangeId = now.parse().map_err(|_| FullReason::StrangeChangeId(short(now)))?;
    if !now.has_tracker_of(&since) {
        return Err(FullReason::TrackerChanged);
    }
    if now.sequence() < since.sequence() {
        let (base, now) = (since.sequence(), now.sequence());
        return Err(FullReason::SequenceWentBack { base, now });
    }
    Ok(since)
}

fn known_bad_build(facts: &CbtFacts<'_>) -> Option<FullReason> {
    let (version, build) = facts.host?;
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let number = build.parse::<u64>().unwrap_or(u64::MAX);
    let fault = match (major, minor) {
        (4 | 5, _) if facts.capacity_bytes > GROWN_DISK_BYTES => 310_751,
        (6, 0) if number < ESXI_60_FIXED_BUILD => 317_933,
        _ => return None,
    };
    let (version, build) = (version.to_owned(), build.to_owned());
    Some(FullReason::KnownBadBuild { version, build, fault })
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// What a policy makes of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyOutcome {
    /// Go on.
    Go,
    /// Go on, and warn with this.
    Warn(String),
    /// Stop, with this reason.
    Stop(String),
}

impl Decision {
    /// What the job's policy makes of it for this disk. Asked before the snapshot with what is known
    /// then, and once more after it.
    pub fn under(&self, policy: Policy, disk: &str) -> PolicyOutcome {
        let Decision::ExplainedFull { reason, predicted_bytes } = self else {
            return PolicyOutcome::Go;
        };
        if reason.is_expected() {
            return PolicyOutcome::Go;
        }
        let text = format!("{disk}: everything is read (about {predicted_bytes} bytes): {reason}");
        match policy {
            Policy::Continue => PolicyOutcome::Go,
            Policy::Warn => PolicyOutcome::Warn(text),
            Policy::Fail => PolicyOutcome::Stop(format!("{text}; the job's policy is to fail")),
        }
    }
}

#[cfg(test)]
mod tests;
