//! `gantry-mover repo repair`: saves what can be saved of a folder that nobody serves.
//!
//! In: a folder. Out: what was done and what stays lost; a failure if a point cannot be restored
//! whole.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::manage::RepairReport;

use super::arguments::FolderArguments;
use super::display::Bars;
use super::{say, say_json};
use crate::host::now_ms;
use crate::restore::Progress;
use crate::store::repair::repair;
use crate::store::storage::kernel::KernelStorage;

pub(super) fn run(folder: &FolderArguments, dry_run: bool) -> Result<(), Failure> {
    let numbers = Arc::new(Progress::default());
    let bar = Bars::of_restore("repair", Arc::clone(&numbers));
    let mut progress = |done, all| {
        numbers.done_bytes.store(done, Ordering::Relaxed);
        numbers.todo_bytes.store(all, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    let report = repair(&KernelStorage::new(&folder.dir), dry_run, now_ms(), &mut progress);
    drop(bar);
    let report = report?;
    match folder.json {
        true => say_json(&report)?,
        false => lines(&report).iter().for_each(|line| say(line)),
    }
    if report.is_whole() {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Target,
        format!(
            "repository {}: {} disks of points cannot be restored whole and {} manifests cannot be \
             read, all named above; the next backup of a disk that is hit sends its lost blocks \
             again",
            folder.dir.display(),
            report.hits.len(),
            report.manifests_set_aside.len(),
        ),
    ))
}

fn lines(report: &RepairReport) -> Vec<String> {
    let would = if report.dry_run { "would be " } else { "" };
    let mut lines =
        vec![format!("{} records good, {} places damaged", report.records_good, report.damages)];
    let counts = [
        (report.superblocks_written, "copies of the superblock written anew"),
        (report.packs_sealed, "packs sealed again from their records"),
        (u64::from(report.index_rebuilt), "index built anew"),
        (report.manifests_restored, "manifests written anew from their other copy"),
        (report.nodes_rebuilt, "lost map nodes built again, proven by their ids"),
        (report.nodes_given_up, "lost map nodes given up"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        lines.push(format!("  {would}{count} {what}"));
    }
    for path in &report.manifests_set_aside {
        lines.push(format!("UNREADABLE {path}: {would}set aside as .damaged"));
    }
    for at in &report.damaged {
        lines.push(format!("DAMAGED {} at {}: {}", at.file, at.offset, at.what));
    }
    for hit in &report.hits {
        let blocks: Vec<String> =
            hit.runs.iter().map(|run| format!("{}+{}", run.first, run.count)).collect();
        lines.push(format!(
            "LOST point {} of {}, disk {}: {} blocks ({})",
            hit.point,
            hit.name,
            hit.disk,
            hit.blocks_lost,
            blocks.join(", ")
        ));
    }
    lines.extend(report.notes.iter().map(|note| format!("  - {note}")));
    lines
}
