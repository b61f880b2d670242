//! What changed on a frozen disk, as vSphere says; and where it cannot say, why.
//!
//! In: the frozen disk, what the base point holds of it. Out: [`Changes`]. Invariant: an answer that
//! is not provably whole is no answer: then everything is read, with the reason. Traps: VSPHERE.md,
//! "CBT rules".

use std::time::Duration;

use gantry_common::extents::Extent;

use super::freeze::{Frozen, FrozenVmDisk};
use crate::broker::VmFacts;
use crate::config::BackupConfig;
use crate::mover::PointDisk;
use crate::vcenter::{DiskChangeQuery, TaskWait, VCenter, VmRef};

/// Answers to one disk's question, and areas in them.
const PAGES_MAX: usize = 100_000;
const AREAS_MAX: usize = 4_000_000;
const RECONFIGURE_WITHIN: Duration = Duration::from_secs(120);
/// Hardware versions below have no changed-block tracking.
const HARDWARE_MIN: u32 = 7;

/// What is to be read of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Changed since the base.
    pub changed: Option<Vec<Extent>>,
    /// Allocated at all.
    pub allocated: Option<Vec<Extent>>,
    /// For the session log.
    pub reason: String,
    /// A base is there, and yet everything is read: the job's policy has a say.
    pub is_unexpected: bool,
}

impl Changes {
    /// Whether every allocated block is read.
    pub fn is_full(&self) -> bool {
        self.changed.is_none()
    }
}

/// Switches changed-block tracking on, where that is safe; says what it did.
pub async fn enable(
    vcenter: &VCenter,
    vm: &VmRef,
    facts: &VmFacts,
    config: &BackupConfig,
) -> String {
    if !config.enable_cbt {
        return "changed-block tracking is off, and the job leaves it so".to_owned();
    }
    if facts.hardware_version != 0 && facts.hardware_version < HARDWARE_MIN {
        return format!(
            "hardware version {} has no changed-block tracking: everything is read each time",
            facts.hardware_version
        );
    }
    if !facts.snapshots.is_empty() {
        // Since 6.5 vSphere accepts it, and its answers are then wrong without saying so.
        return format!(
            "changed-block tracking stays off: the machine has {} snapshots, and switching it on \
             with snapshots gives wrong answers. Remove them, then it is switched on",
            facts.snapshots.len()
        );
    }
    let object = vm.to_string();
    let switched = async {
        let task = vcenter.set_change_tracking(vm, true).await?;
        let wait = TaskWait::new("ReconfigVM_Task", &object, RECONFIGURE_WITHIN);
        vcenter.wait_for_task(&task, wait).await
    };
    match switched.await {
        Ok(_) => "changed-block tracking was switched on; it counts from this snapshot".to_owned(),
        Err(error) => format!("changed-block tracking could not be switched on: {error}"),
    }
}

/// What of a frozen disk is to be read.
pub async fn of_disk(
    vcenter: &VCenter,
    vm: &VmRef,
    frozen: &Frozen,
    disk: &FrozenVmDisk,
    held: Option<&PointDisk>,
    full: bool,
) -> Changes {
    match base_change_id(disk, held, full) {
        Ok(change_id) => match areas(vcenter, vm, frozen, disk, &change_id).await {
            Ok(changed) => Changes {
                reason: format!(
                    "{} areas changed since the base, {} bytes",
                    changed.len(),
                    changed.iter().map(|area| area.length).sum::<u64>()
                ),
                changed: Some(changed),
                ..Changes::default()
            },
            Err(what) => {
                let reason = format!("the changes since the base cannot be had: {what}");
                allocated(vcenter, vm, frozen, disk, reason, true).await
            }
        },
        Err((reason, is_unexpected)) => {
            allocated(vcenter, vm, frozen, disk, reason, is_unexpected).await
        }
    }
}

/// The change id to ask from; else the reason for reading everything, and whether that is news.
fn base_change_id(
    disk: &FrozenVmDisk,
    held: Option<&PointDisk>,
    full: bool,
) -> Result<String, (String, bool)> {
    if full {
        return Err(("a full was asked for".to_owned(), false));
    }
    let Some(held) = held else {
        return Err(("there is no restore point of this disk yet".to_owned(), false));
    };
    let Some(now) = &disk.change_id else {
        return Err(("the snapshot has no change id: changed blocks are not tracked".into(), true));
    };
    let Some(before) = &held.change_id else {
        return Err(("the base was made without changed-block tracking".to_owned(), false));
    };
    if held.size_bytes != disk.capacity_bytes {
        let (from, to) = (held.size_bytes, disk.capacity_bytes);
        return Err((format!("the disk's size changed from {from} to {to} bytes"), true));
    }
    let parts = |text: &str| text.rsplit_once('/').map(|(id, seq)| (id.to_owned(), seq.to_owned()));
    match (parts(before), parts(now)) {
        (Some((old, _)), Some((new, _))) if old != new => {
            Err((format!("changed-block tracking began anew ({old} became {new})"), true))
        }
        (Some((_, old)), Some((_, new))) if is_before(&new, &old) => {
            Err(("the change id went back: the machine was reverted".to_owned(), true))
        }
        (Some(_), Some(_)) => Ok(before.clone()),
        _ => Err((format!("change ids '{before}' and '{now}' are not understood"), true)),
    }
}

fn is_before(one: &str, other: &str) -> bool {
    match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => one < other,
        _ => false,
    }
}

/// Everything is read: at least what is not allocated is left out, where vSphere says so.
async fn allocated(
    vcenter: &VCenter,
    vm: &VmRef,
    frozen: &Frozen,
    disk: &FrozenVmDisk,
    reason: String,
    is_unexpected: bool,
) -> Changes {
    // Without tracking vSphere does not know, and with older snapshots below its answer is not to
    // be relied on.
    if disk.change_id.is_none() {
        return Changes { reason, is_unexpected, ..Changes::default() };
    }
    match areas(vcenter, vm, frozen, disk, "*").await {
        Ok(allocated) => {
            let bytes: u64 = allocated.iter().map(|area| area.length).sum();
            let reason =
                format!("{reason}; {bytes} of {} bytes are allocated", disk.capacity_bytes);
            Changes { allocated: Some(allocated), reason, is_unexpected, changed: None }
        }
        Err(what) => {
            let reason = format!("{reason}; which areas are allocated cannot be had: {what}");
            Changes { reason, is_unexpected, ..Changes::default() }
        }
    }
}

/// All areas, page by page.
async fn areas(
    vcenter: &VCenter,
    vm: &VmRef,
    frozen: &Frozen,
    disk: &FrozenVmDisk,
    change_id: &str,
) -> Result<Vec<Extent>, String> {
    let mut whole = Vec::new();
    let mut start = 0;
    for _ in 0..PAGES_MAX {
        let query =
            DiskChangeQuery { snapshot: &frozen.snapshot, device_key: disk.key, start, change_id };
        let page = vcenter.query_changed_disk_areas(vm, &query).await;
        let page = page.map_err(|error| error.to_string())?;
        let end = next_start(start, page.start, page.length, disk.capacity_bytes)?;
        take_page(&mut whole, &page.areas, start, end)?;
        if end >= disk.capacity_bytes {
            return Ok(whole);
        }
        start = end;
    }
    Err(format!("more than {PAGES_MAX} answers"))
}

/// Where the next page begins: each must go on where the last ended, and further.
fn next_start(asked: u64, start: u64, length: u64, capacity: u64) -> Result<u64, String> {
    let end = start.checked_add(length).ok_or("an answer beyond all numbers")?;
    if start != asked || end <= asked {
        return Err(format!("asked from byte {asked}, the answer covers {start} to {end}"));
    }
    Ok(end.min(capacity))
}

/// Areas must lie in the page, in order and apart: anything else is not understood.
fn take_page(whole: &mut Vec<Extent>, page: &[Extent], from: u64, to: u64) -> Result<(), String> {
    let mut at = from;
    for area in page {
        let end = area.start.checked_add(area.length);
        let end = end.filter(|end| area.length > 0 && area.start >= at && *end <= to);
        let Some(end) = end else {
            return Err(format!(
                "an area of {} bytes at {} does not fit between {at} and {to}",
                area.length, area.start
            ));
        };
        at = end;
        if whole.len() >= AREAS_MAX {
            return Err(format!("more than {AREAS_MAX} areas"));
        }
        whole.push(*area);
    }
    Ok(())
}
