//! What a run reads of each disk: the decision about CBT, carried out.
//!
//! In: the snapshot's disk, the base point's facts of it. Out: [`Changes`]. Invariant: where
//! [`crate::cbt`] has any doubt, everything that is allocated is read, and the reason is told.

use gantry_common::extents::Extent;

use crate::broker::DiskFacts;
use crate::cbt::decide::explained_full;
use crate::cbt::query::DiskQuery;
use crate::cbt::{
    BaseFacts, CbtFacts, ChangeId, ChangeIdFact, Decision, FullReason, Policy, PolicyOutcome,
    Tracking, allocated_extents, changed_extents, decide,
};
use crate::mover::PointDisk;
use crate::snapshots::{FrozenDisk, Snapshot};
use crate::vcenter::{VCenter, VmRef};

/// What is to be read of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Changed since the base.
    pub changed: Option<Vec<Extent>>,
    /// Allocated at all, where everything is read.
    pub allocated: Option<Vec<Extent>>,
    /// For the session log.
    pub reason: String,
    /// What the job's policy makes of it.
    pub outcome: PolicyOutcome,
}

impl Changes {
    /// Whether every allocated block is read.
    pub fn is_full(&self) -> bool {
        self.changed.is_none()
    }

    /// Bytes that will be read, as far as is known.
    pub fn todo_bytes(&self, capacity_bytes: u64) -> u64 {
        let areas = self.changed.as_ref().or(self.allocated.as_ref());
        areas.map_or(capacity_bytes, |areas| areas.iter().map(|area| area.length).sum())
    }
}

/// What is the same for every disk of the run.
#[derive(Debug, Clone)]
pub struct VmTracking<'a> {
    /// The machine.
    pub vm: &'a VmRef,
    /// Hardware version.
    pub hardware_version: u32,
    /// As the session found it.
    pub tracking: Tracking,
    /// Version and build of its host.
    pub host: Option<(&'a str, &'a str)>,
    /// A full was asked for.
    pub is_full_asked: bool,
    /// Size of the blocks that are read.
    pub block_bytes: u64,
    /// The job's policy.
    pub policy: Policy,
}

impl VmTracking<'_> {
    fn facts<'b>(
        &'b self,
        capacity_bytes: u64,
        change_id: ChangeIdFact<'b>,
        held: Option<&'b PointDisk>,
    ) -> CbtFacts<'b> {
        CbtFacts {
            capacity_bytes,
            allocated_bytes: None,
            hardware_version: self.hardware_version,
            tracking: self.tracking,
            change_id,
            base: held.map(|held| BaseFacts {
                change_id: held.change_id.as_deref(),
                capacity_bytes: held.size_bytes,
            }),
            // A revert goes back in the change id, or begins a new tracker: both are looked at.
            was_reverted: false,
            was_enabled_under_snapshots: false,
            is_full_asked: self.is_full_asked,
            distrusted: None,
            host: self.host,
        }
    }

    /// What the policy says of a disk before the snapshot is made.
    pub fn foresee(&self, disk: &DiskFacts, held: Option<&PointDisk>) -> PolicyOutcome {
        // The running disk's id tells whether tracking began anew, and nothing else for certain.
        let now = disk.change_id.as_deref();
        let ids = now
            .and_then(|now| now.parse::<ChangeId>().ok())
            .zip(held.and_then(|held| held.change_id.as_deref()?.parse::<ChangeId>().ok()));
        let change_id = match (now, ids) {
            (Some(now), Some((new, old))) if !new.has_tracker_of(&old) => ChangeIdFact::Is(now),
            _ => ChangeIdFact::NotYetKnown,
        };
        let (label, facts) = (&disk.label, self.facts(disk.capacity_bytes, change_id, held));
        decide(&facts).under(self.policy, label)
    }

    /// Asks what is to be read of a frozen disk.
    pub async fn of_disk(
        &self,
        vcenter: &VCenter,
        snapshot: &Snapshot,
        disk: &FrozenDisk,
        held: Option<&PointDisk>,
    ) -> Changes {
        let change_id = disk.facts.change_id.as_deref();
        let capacity_bytes = disk.facts.capacity_bytes;
        let facts = self.facts(
            capacity_bytes,
            change_id.map_or(ChangeIdFact::Absent, ChangeIdFact::Is),
            held,
        );
        let query = DiskQuery {
            vm: self.vm,
            snapshot: &snapshot.moref,
            device_key: disk.facts.key,
            capacity_bytes,
            block_bytes: self.block_bytes,
        };
        let mut decision = decide(&facts);
        if let Decision::Extents { since } = &decision {
            match changed_extents(vcenter, &query, since).await {
                Ok(changed) => {
                    let bytes: u64 = changed.iter().map(|area| area.length).sum();
                    return Changes {
                        reason: format!(
                            "{bytes} bytes in {} areas changed since the base",
                            changed.len()
                        ),
                        changed: Some(changed),
                        allocated: None,
                        outcome: PolicyOutcome::Go,
                    };
                }
                Err(error) => {
                    decision = explained_full(&facts, FullReason::QueryFailed(error.to_string()));
                }
            }
        }
        let why = match &decision {
            Decision::ExplainedFull { reason, .. } => reason.to_string(),
            Decision::Extents { .. } => String::new(),
        };
        let (allocated, known) = self.allocated(vcenter, &query, change_id.is_some()).await;
        Changes {
            changed: None,
            allocated,
            reason: format!("everything is read: {why}; {known}"),
            outcome: decision.under(self.policy, &disk.facts.label),
        }
    }

    /// What is allocated, as far as vSphere can be believed; and in words.
    async fn allocated(
        &self,
        vcenter: &VCenter,
        query: &DiskQuery<'_>,
        is_tracked: bool,
    ) -> (Option<Vec<Extent>>, String) {
        if !is_tracked {
            return (None, "without tracking vSphere does not say what is allocated".to_owned());
        }
        match allocated_extents(vcenter, query).await {
            Ok(allocated) => {
                let bytes: u64 = allocated.iter().map(|area| area.length).sum();
                let text = format!("{bytes} of {} bytes are allocated", query.capacity_bytes);
                (Some(allocated), text)
            }
            Err(error) => (None, format!("what is allocated cannot be had: {error}")),
        }
    }
}
