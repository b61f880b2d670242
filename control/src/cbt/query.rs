//! Asks a vCenter to the end: changed areas, allocated areas; switches tracking on.

use std::time::Duration;

use gantry_common::extents::Extent;

use super::areas::{AreaCollector, AreasRefused, Page};
use super::change_id::ChangeId;
use crate::limits;
use crate::vcenter::{DiskChangeQuery, MoRef, TaskWait, VCenter, VimError, VmRef};

/// Which disk of which snapshot is asked about.
#[derive(Debug, Clone, Copy)]
pub struct DiskQuery<'a> {
    /// The machine.
    pub vm: &'a VmRef,
    /// The snapshot, of the very same endpoint.
    pub snapshot: &'a MoRef,
    /// The disk's device key.
    pub device_key: i32,
    /// The disk's size.
    pub capacity_bytes: u64,
    /// Size of the blocks that are read.
    pub block_bytes: u64,
}

/// Why there are no extents; the run reads everything instead.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The call failed.
    #[error("{0}")]
    Call(#[from] VimError),
    /// The answer cannot be right.
    #[error("{vm}, disk {device_key}: QueryChangedDiskAreas: {reason}")]
    Refused {
        /// The machine.
        vm: String,
        /// The disk.
        device_key: i32,
        /// What is wrong.
        reason: AreasRefused,
    },
}

/// What has changed since a change id, in whole blocks.
///
/// # Errors
/// See [`QueryError`].
pub async fn changed_extents(
    vcenter: &VCenter,
    query: &DiskQuery<'_>,
    since: &ChangeId,
) -> Result<Vec<Extent>, QueryError> {
    ask_to_the_end(vcenter, query, since.as_str()).await
}

/// What is allocated (change id `*`), in whole blocks; best on VMFS, elsewhere it may fail or name the
/// whole disk.
///
/// # Errors
/// See [`QueryError`]: then everything must be read.
pub async fn allocated_extents(
    vcenter: &VCenter,
    query: &DiskQuery<'_>,
) -> Result<Vec<Extent>, QueryError> {
    ask_to_the_end(vcenter, query, "*").await
}

async fn ask_to_the_end(
    vcenter: &VCenter,
    query: &DiskQuery<'_>,
    change_id: &str,
) -> Result<Vec<Extent>, QueryError> {
    let DiskQuery { vm, snapshot, device_key, .. } = *query;
    let mut collector = AreaCollector::new(query.capacity_bytes, query.block_bytes);
    let mut next = collector.first();
    while let Some(start) = next {
        let question = DiskChangeQuery { snapshot, device_key, start, change_id };
        let answer = vcenter.query_changed_disk_areas(vm, &question).await?;
        let page = collector.accept(&answer);
        let page =
            page.map_err(|reason| QueryError::Refused { vm: vm.to_string(), device_key, reason })?;
        next = match page {
            Page::Next(start) => Some(start),
            Page::Last => None,
        };
    }
    Ok(collector.finish())
}

/// Switches tracking on; call it only where [`super::tracking`] says so. It works from the next
/// stun on, which the run's own snapshot brings. Its undo is to leave it on: tracking costs next to
/// nothing, and switching it off would cost the next run a full read.
///
/// # Errors
/// As any call, or the task's fault. Doing it twice does no harm.
pub async fn enable_tracking(vcenter: &VCenter, vm: &VmRef) -> Result<(), VimError> {
    let task = vcenter.set_change_tracking(vm, true).await?;
    let object = vm.to_string();
    let timeout = Duration::from_secs(limits::SNAPSHOT_CREATE_SECONDS_MAX);
    let wait = TaskWait::new("ReconfigVM_Task", &object, timeout);
    vcenter.wait_for_task(&task, wait).await.map(drop)
}
