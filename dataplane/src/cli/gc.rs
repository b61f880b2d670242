//! `gantry-mover repo gc`.

use gantry_common::failure::Failure;
use gantry_common::manage::{CollectOptions, CollectReport, ManageReport, ManageRequest};
use gantry_common::units::format_bytes;

use super::arguments::GcArguments;
use super::job::{ask_repo, unexpected};
use super::{Use, say, say_json};

pub(super) fn run(arguments: &GcArguments) -> Result<(), Failure> {
    let options = CollectOptions {
        dry_run: arguments.dry_run,
        rewrite_bytes_max: arguments.rewrite_max,
        abandon_unfinished: arguments.abandon_unfinished,
    };
    let request = ManageRequest::Collect(options);
    let ManageReport::Collect(report) = ask_repo(&arguments.repository, Use::Write, request)?
    else {
        return Err(unexpected());
    };
    if arguments.repository.json {
        return say_json(&report);
    }
    lines(&report).iter().for_each(|line| say(line));
    Ok(())
}

fn lines(report: &CollectReport) -> Vec<String> {
    let would = if report.dry_run { " would be" } else { "" };
    let mut lines = vec![
        format!("{}{would} given back", format_bytes(report.bytes_freed)),
        format!(
            "  live: {} points, {} unfinished backups, {} records, {} map nodes visited",
            report.points_live, report.unfinished, report.records_live, report.nodes_visited
        ),
        format!(
            "  gone: {} deleted points, {} records; {} packs removed, {} punched, {} rewritten ({} copied)",
            report.points_purged,
            report.records_dead,
            report.packs_removed,
            report.packs_punched,
            report.packs_rewritten,
            format_bytes(report.bytes_rewritten),
        ),
        format!(
            "  {} of dead records stay where they are; marking {:.1} s, giving back {:.1} s",
            format_bytes(report.bytes_dead_left),
            report.ms_mark as f64 / 1000.0,
            report.ms_sweep as f64 / 1000.0,
        ),
    ];
    lines.extend(report.notes.iter().map(|note| format!("  - {note}")));
    lines
}
