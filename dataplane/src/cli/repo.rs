//! `gantry-mover repo` and `point`: looking after a repository.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::manage::{VerifyOptions, VerifyReport};
use gantry_common::units::format_bytes;
use gantry_common::wire::PointSummary;
use serde::Serialize;
use serde_json::{Value, json};

use super::arguments::{FolderArguments, PointCommand, RepoCommand};
use super::display::Bars;
use super::{connector, runtime, say, say_json, usage};
use crate::host::now_ms;
use crate::restore::Progress;
use crate::store::admin::{self, PointLine, RepoStat};
use crate::store::engine::Store;
use crate::store::error::StoreError;
use crate::store::reader::StoreReader;
use crate::store::storage::kernel::KernelStorage;
use crate::store::verify;

pub(super) fn run(command: RepoCommand) -> Result<(), Failure> {
    match command {
        RepoCommand::Init(folder) => {
            let made = admin::init(&folder.dir, now_ms())?;
            let text = format!("repository {} made in {}", made.repository, made.place);
            show(&folder, &made, &[text])
        }
        RepoCommand::List(folder) => list(&folder),
        RepoCommand::Show { folder, point } => {
            let reader = open(&folder.dir)?;
            let name = admin::list(&reader, None)?
                .into_iter()
                .find(|line| line.point == point.to_string())
                .map(|line| line.name)
                .ok_or_else(|| {
                    usage(format!("no restore point {point} in {}", folder.dir.display()))
                })?;
            say_json(&admin::show(&reader, &name, Some(point))?)
        }
        RepoCommand::Verify(folder) => verify(&folder),
        RepoCommand::Repair { folder, dry_run } => super::repair::run(&folder, dry_run),
        RepoCommand::Stat(folder) => {
            let stat = admin::stat(&open(&folder.dir)?)?;
            show(&folder, &stat, &stat_lines(&stat))
        }
        RepoCommand::RebuildIndex(folder) => {
            let rebuilt = admin::rebuild_index(KernelStorage::new(&folder.dir))?;
            let text =
                format!("index built anew: {} packs, {} blocks", rebuilt.packs, rebuilt.blocks);
            let mut lines = vec![text];
            lines.extend(rebuilt.notes.iter().map(|note| format!("  - {note}")));
            show(&folder, &rebuilt, &lines)
        }
    }
}

/// Opens for reading only; says on standard error what was noticed.
fn open(dir: &Path) -> Result<StoreReader, Failure> {
    let (reader, notes) = StoreReader::open(KernelStorage::new(dir))?;
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    Ok(reader)
}

fn show(folder: &FolderArguments, value: &impl Serialize, lines: &[String]) -> Result<(), Failure> {
    if folder.json {
        return say_json(value);
    }
    lines.iter().for_each(|line| say(line));
    Ok(())
}

fn list(folder: &FolderArguments) -> Result<(), Failure> {
    let points = admin::list(&open(&folder.dir)?, None)?;
    let mut lines = Vec::new();
    let mut values = Vec::new();
    for point in &points {
        values.push(line_as_json(point));
        match (&point.summary, &point.unreadable) {
            (Some(summary), _) => lines.extend(point_lines(summary)),
            (None, why) => {
                let why = why.as_deref().unwrap_or("it cannot be read");
                lines.push(format!("{} {}: UNREADABLE: {why}", point.point, point.name));
            }
        }
    }
    show(folder, &values, &lines)
}

fn line_as_json(line: &PointLine) -> Value {
    let mut value = match &line.summary {
        Some(summary) => as_json(summary),
        None => json!({ "point": line.point, "name": line.name }),
    };
    value["bytes_stored"] = json!(line.bytes_stored);
    value["unreadable"] = json!(line.unreadable);
    value
}

fn stat_lines(stat: &RepoStat) -> Vec<String> {
    let ratio = |of: u64, to: u64| if to == 0 { 0.0 } else { of as f64 / to as f64 };
    let mut lines = vec![
        format!("repository {}", stat.repository),
        format!(
            "  {} points of {} VMs, {} protected",
            stat.points,
            stat.names,
            format_bytes(stat.bytes_protected)
        ),
        format!("  {} packs, {} blocks, {} map nodes", stat.packs, stat.blocks, stat.nodes),
        format!(
            "  {} stored, {} raw: compression {:.2}; protected to stored {:.2}; {} free",
            format_bytes(stat.bytes_stored),
            format_bytes(stat.bytes_raw),
            ratio(stat.bytes_raw, stat.bytes_stored),
            ratio(stat.bytes_protected, stat.bytes_stored),
            format_bytes(stat.bytes_free),
        ),
    ];
    lines.extend(stat.notes.iter().map(|note| format!("  - {note}")));
    lines
}

fn verify(folder: &FolderArguments) -> Result<(), Failure> {
    let numbers = Arc::new(Progress::default());
    let bar = Bars::of_restore("verify", Arc::clone(&numbers));
    let mut progress = |done, all| {
        numbers.done_bytes.store(done, Ordering::Relaxed);
        numbers.todo_bytes.store(all, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    // For writing where that is possible: packs that a killed mover left open are sealed, and what
    // is found damaged is remembered, so that the next backup heals it.
    let mut store = match Store::open(KernelStorage::new(&folder.dir)) {
        Ok(store) => Some(store),
        Err(error @ StoreError::Locked { .. }) => return Err(error.into()),
        Err(_) => None,
    };
    let reader = match &store {
        Some(store) => {
            store.notes().iter().for_each(|note| tracing::warn!("{note}"));
            store.reader()
        }
        None => open(&folder.dir)?,
    };
    let report = verify::verify(&reader, &VerifyOptions::default(), now_ms(), &mut progress);
    drop(bar);
    if let Some(store) = &mut store {
        store.shut_down();
    }
    let report = report?;
    show(folder, &report, &verify_lines(&report))?;
    if report.is_clean() {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Target,
        format!(
            "repository {} is damaged: {} places, {} disks of points are hit, all named above. Points not named there are whole; \
             the next backup of a disk that is hit sends its damaged blocks again",
            folder.dir.display(),
            report.damages,
            report.hits.len(),
        ),
    ))
}

fn verify_lines(report: &VerifyReport) -> Vec<String> {
    let mut lines = vec![format!(
        "{} packs, {} records good, {} read, {} points, {} map nodes",
        report.packs,
        report.records_good,
        format_bytes(report.bytes_read),
        report.points,
        report.nodes
    )];
    lines.extend(
        report
            .damaged
            .iter()
            .map(|at| format!("DAMAGED {} at {}: {}", at.file, at.offset, at.what)),
    );
    lines.extend(report.hits.iter().map(|hit| {
        let blocks: Vec<String> =
            hit.runs.iter().map(|run| format!("{}+{}", run.first, run.count)).collect();
        format!(
            "  hits point {} of {}, disk {}: {} blocks lost ({})",
            hit.point,
            hit.name,
            hit.disk,
            hit.blocks_lost,
            blocks.join(", ")
        )
    }));
    lines.extend(report.notes.iter().map(|note| format!("  - {note}")));
    lines
}

/// `point list`.
pub(super) fn points(command: PointCommand) -> Result<(), Failure> {
    let PointCommand::List { repository, name, json } = command;
    let connector = connector(&repository, false)?;
    let points = runtime()?.block_on(connector.list(&name))?;
    drop(connector);
    if json {
        return say_json(&points.iter().map(as_json).collect::<Vec<_>>());
    }
    points.iter().flat_map(point_lines).for_each(|line| say(&line));
    Ok(())
}

fn point_lines(point: &PointSummary) -> Vec<String> {
    let mut lines = vec![format!("{} {} {}", point.point, when(point.created_ms), point.name)];
    lines.extend(point.disks.iter().enumerate().map(|(number, disk)| {
        format!("  disk {number}: {} {}", format_bytes(disk.size_bytes), disk.label)
    }));
    lines
}

fn when(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| format!("{ms} ms"), |at| format!("{at:.0}"))
}

fn as_json(point: &PointSummary) -> Value {
    let disks: Vec<Value> = point
        .disks
        .iter()
        .map(|disk| {
            json!({
                "identity": disk.identity, "label": disk.label, "size_bytes": disk.size_bytes,
                "block_size": disk.block_size.bytes(), "totals": disk.totals,
            })
        })
        .collect();
    json!({
        "point": point.point.to_string(), "name": point.name, "created": when(point.created_ms),
        "parent": point.parent.map(|parent| parent.to_string()), "disks": disks,
    })
}
