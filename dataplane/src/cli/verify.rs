//! `gantry-mover repo verify`.

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::manage::{ManageReport, ManageRequest, VerifyOptions, VerifyReport};
use gantry_common::units::format_bytes;

use super::arguments::VerifyArguments;
use super::job::{ask_repo, unexpected};
use super::{Use, say, say_json};

pub(super) fn run(arguments: &VerifyArguments) -> Result<(), Failure> {
    let options = VerifyOptions {
        percent: arguments.percent,
        checksums_only: arguments.checksums_only,
        rate: arguments.rate.map(|rate| rate.bytes_per_second),
    };
    let request = ManageRequest::Verify(options);
    let ManageReport::Verify(report) =
        ask_repo(&arguments.repository, Use::WriteIfPossible, request)?
    else {
        return Err(unexpected());
    };
    if arguments.repository.json {
        say_json(&report)?;
    } else {
        lines(&report).iter().for_each(|line| say(line));
    }
    if report.is_clean() {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Target,
        format!(
            "repository {} is damaged: {} places, {} disks of points are hit, all named above. Points not named there are whole; \
             the next backup of a disk that is hit sends its damaged blocks again",
            arguments.repository.repo,
            report.damages,
            report.hits.len(),
        ),
    ))
}

fn lines(report: &VerifyReport) -> Vec<String> {
    let part = if report.complete { "" } else { "a part of the repository: " };
    let mut lines = vec![format!(
        "{part}{} packs, {} records good, {} read, {} points, {} map nodes",
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
