//! `gantry-mover point`: listing, deleting, bringing back, protecting and pruning restore points.

use gantry_common::failure::Failure;
use gantry_common::ids::PointId;
use gantry_common::manage::{Decision, ManageReport, ManageRequest, PointsReport, PruneReport};
use gantry_common::units::format_bytes;
use gantry_common::wire::{PointSummary, is_name};
use serde_json::{Value, json};

use super::arguments::{NamedPoints, PointCommand, PruneArguments, RepositoryArguments};
use super::job::{ask_points, unexpected};
use super::{Use, connector, runtime, say, say_json, usage};

pub(super) fn run(command: PointCommand) -> Result<(), Failure> {
    match command {
        PointCommand::List { repository, name, deleted, json } => {
            list(&repository, &name, deleted, json)
        }
        PointCommand::Delete { points, last_too } => {
            let request = |name, points| ManageRequest::DeletePoints { name, points, last_too };
            change(&points, false, request, "deleted", "deleted already")
        }
        PointCommand::Undelete { points, all_deleted } => {
            let request = |name, points| ManageRequest::UndeletePoints { name, points };
            change(&points, all_deleted, request, "brought back", "not deleted")
        }
        PointCommand::Protect { points, off } => {
            let request =
                |name, points| ManageRequest::ProtectPoints { name, points, protect: !off };
            let (done, already) = match off {
                false => ("protected", "protected already"),
                true => ("no longer protected", "not protected"),
            };
            change(&points, false, request, done, already)
        }
        PointCommand::Prune(arguments) => prune(arguments),
    }
}

fn list(
    repository: &RepositoryArguments,
    name: &str,
    deleted: bool,
    json: bool,
) -> Result<(), Failure> {
    if !name.is_empty() {
        check_name(name)?;
    }
    let connector = connector(&repository.repo, &repository.access, Use::Read)?;
    let points = runtime()?.block_on(connector.list(name, deleted))?;
    drop(connector);
    if json {
        return say_json(&points.iter().map(as_json).collect::<Vec<_>>());
    }
    points.iter().flat_map(point_lines).for_each(|line| say(&line));
    Ok(())
}

fn check_name(name: &str) -> Result<(), Failure> {
    match is_name(name) {
        true => Ok(()),
        false => Err(usage("--name takes 1 to 512 bytes without control characters")),
    }
}

/// Has points changed and says which are as asked now.
fn change(
    arguments: &NamedPoints,
    all: bool,
    request: impl FnOnce(String, Vec<PointId>) -> ManageRequest,
    done: &str,
    already: &str,
) -> Result<(), Failure> {
    check_name(&arguments.name)?;
    if arguments.points.is_empty() && !all {
        return Err(usage("say which points: --point ID, as point list shows them"));
    }
    let request = request(arguments.name.clone(), arguments.points.clone());
    let ManageReport::Points(report) = ask_points(&arguments.repository, request)? else {
        return Err(unexpected());
    };
    if arguments.json {
        return say_json(&points_as_json(&report));
    }
    let name = &arguments.name;
    report.changed.iter().for_each(|point| say(&format!("{point} of {name}: {done}")));
    report.unchanged.iter().for_each(|point| say(&format!("{point} of {name}: {already}")));
    report.notes.iter().for_each(|note| say(&format!("  - {note}")));
    if report.changed.is_empty() && report.unchanged.is_empty() {
        say("nothing to do");
    }
    Ok(())
}

fn points_as_json(report: &PointsReport) -> Value {
    let ids = |points: &[PointId]| points.iter().map(PointId::to_string).collect::<Vec<_>>();
    json!({
        "changed": ids(&report.changed), "unchanged": ids(&report.unchanged), "notes": report.notes,
    })
}

fn prune(arguments: PruneArguments) -> Result<(), Failure> {
    arguments.name.as_deref().map_or(Ok(()), check_name)?;
    let retention = arguments.retention.retention().map_err(usage)?;
    let retention = retention.ok_or_else(|| {
        usage("say what to keep: --keep-days, --keep-min, --keep-weekly, --keep-monthly, --keep-yearly")
    })?;
    let PruneArguments { repository, name, dry_run, json, .. } = arguments;
    let request = ManageRequest::Prune { name, retention, dry_run };
    let ManageReport::Prune(report) = ask_points(&repository, request)? else {
        return Err(unexpected());
    };
    if json {
        return say_json(&prune_as_json(&report));
    }
    report.decisions.iter().for_each(|decision| say(&decision_line(decision, dry_run)));
    report.notes.iter().for_each(|note| say(&format!("  - {note}")));
    let would = if dry_run { " would be" } else { "" };
    say(&format!(
        "{} points{would} deleted, {} kept{}",
        report.points_deleted,
        report.points_kept,
        if dry_run { "" } else { "; point undelete brings them back until the next repo gc" }
    ));
    Ok(())
}

fn decision_line(decision: &Decision, dry_run: bool) -> String {
    let reasons: Vec<&str> = decision.keep.iter().map(|reason| reason.text()).collect();
    let what = match (reasons.is_empty(), dry_run) {
        (false, _) => format!("keep   ({})", reasons.join(", ")),
        (true, false) => "delete".to_owned(),
        (true, true) => "would delete".to_owned(),
    };
    let made = when(decision.point.created_ms());
    format!("{} {made} {}: {what}", decision.point, decision.name)
}

fn prune_as_json(report: &PruneReport) -> Value {
    let decisions: Vec<Value> = report
        .decisions
        .iter()
        .map(|decision| {
            let keep: Vec<&str> = decision.keep.iter().map(|reason| reason.text()).collect();
            json!({
                "name": decision.name, "point": decision.point.to_string(),
                "created": when(decision.point.created_ms()), "flags": decision.flags.names(),
                "keep": keep,
            })
        })
        .collect();
    json!({
        "dry_run": report.dry_run, "points_deleted": report.points_deleted,
        "points_kept": report.points_kept, "decisions": decisions, "notes": report.notes,
    })
}

pub(super) fn point_lines(point: &PointSummary) -> Vec<String> {
    let mut marks = point.flags.names();
    marks.extend(point.is_deleted.then_some("deleted"));
    let marks = if marks.is_empty() { String::new() } else { format!(" [{}]", marks.join(", ")) };
    let made = when(point.created_ms);
    let mut lines = vec![format!("{} {made} {}{marks}", point.point, point.name)];
    lines.extend(point.disks.iter().enumerate().map(|(number, disk)| {
        format!("  disk {number}: {} {}", format_bytes(disk.size_bytes), disk.label)
    }));
    lines
}

/// A moment, for a person.
pub(super) fn when(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| format!("{ms} ms"), |at| format!("{at:.0}"))
}

pub(super) fn as_json(point: &PointSummary) -> Value {
    let disks: Vec<Value> = point
        .disks
        .iter()
        .map(|disk| {
            json!({
                "identity": disk.identity, "label": disk.label, "size_bytes": disk.size_bytes,
                "block_size": disk.block_size.bytes(), "totals": disk.totals,
                "change_id": disk.change_id,
            })
        })
        .collect();
    json!({
        "point": point.point.to_string(), "name": point.name, "created": when(point.created_ms),
        "created_ms": point.created_ms,
        "parent": point.parent.map(|parent| parent.to_string()), "flags": point.flags.names(),
        "deleted": point.is_deleted, "disks": disks,
    })
}
