//! `gantry-mover restore`: brings a disk back, and compares it if asked to.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gantry_common::failure::Failure;
use gantry_common::units::format_bytes;
use gantry_common::wire::RestoreOffer;
use serde::Serialize;

use super::arguments::RestoreArguments;
use super::display::Bars;
use super::{Use, connector, runtime, say_json, usage};
use crate::restore::{
    Destination, Progress, RestoreOptions, RestoreReport, RestoreRequest, restore, verify_against,
};

/// The report, with what `--verify-against` found.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    report: &'a RestoreReport,
    bottleneck_name: &'static str,
    bytes_processed: u64,
    bytes_read: u64,
    bytes_unchanged: u64,
    bytes_duplicate: u64,
    bytes_stored: u64,
    verified_against: Option<String>,
}

pub(super) fn run(arguments: &RestoreArguments) -> Result<(), Failure> {
    if let Some(source) = &arguments.verify_against {
        let same = |path: &Path| std::fs::canonicalize(path).ok();
        if !source.exists() {
            return Err(usage(format!("--verify-against {}: it is not there", source.display())));
        }
        if same(source) == same(Path::new(&arguments.to)) {
            return Err(usage("--verify-against and --to are the same file"));
        }
    }
    let destination = Destination::of(Path::new(&arguments.to));
    let to_stdout = destination == Destination::Stdout;
    if to_stdout && arguments.verify_against.is_some() {
        return Err(usage("--verify-against needs --to PATH: a stream cannot be read again"));
    }
    if to_stdout && arguments.json {
        return Err(usage("--json and --to - would share standard output: take --to PATH"));
    }
    let connector = connector(&arguments.repository.repo, &arguments.repository.access, Use::Read)?;
    let offer = RestoreOffer {
        name: arguments.name.clone(),
        point: arguments.point.0,
        disk: arguments.disk,
    };
    let request = RestoreRequest { offer, destination };
    let options = RestoreOptions {
        force: arguments.force,
        reconnect_for: Duration::from_secs(arguments.repository.reconnect),
        ..RestoreOptions::default()
    };
    let progress = Arc::new(Progress::default());
    let bar = Bars::of_restore("restore", Arc::clone(&progress));
    let connect = || async {
        let (connection, notes) = connector.connect().await.map_err(Failure::from)?;
        notes.iter().for_each(|note| tracing::info!("{note}"));
        Ok(connection)
    };
    let report = runtime()?.block_on(restore(connect, request, options, progress));
    drop(bar);
    drop(connector);
    let report = report?;
    let verified = verify(arguments)?;
    if arguments.json {
        let bottleneck_name = report.bottleneck.name();
        return say_json(&Shown {
            report: &report,
            bottleneck_name,
            bytes_processed: report.bytes_virtual - report.bytes_resumed,
            // What left the repository; nothing is compared or deduplicated on the way back.
            bytes_read: report.bytes_transferred,
            bytes_unchanged: 0,
            bytes_duplicate: 0,
            bytes_stored: 0,
            verified_against: verified,
        });
    }
    // Standard output may be the disk itself.
    for line in lines(&report, &arguments.to, verified.as_deref()) {
        eprintln!("{line}");
    }
    Ok(())
}

fn verify(arguments: &RestoreArguments) -> Result<Option<String>, Failure> {
    let Some(source) = &arguments.verify_against else { return Ok(None) };
    let progress = Arc::new(Progress::default());
    let bar = Bars::of_restore("compare", Arc::clone(&progress));
    let compared = verify_against(Path::new(&arguments.to), source, &progress);
    drop(bar);
    compared?;
    Ok(Some(source.display().to_string()))
}

fn lines(report: &RestoreReport, to: &str, verified: Option<&str>) -> Vec<String> {
    let rate = report.bytes_virtual as f64 / report.wall_seconds.max(1e-9);
    let b = &report.bottleneck;
    let mut lines = vec![
        format!(
            "point {} restored to {to}: {} written, {} zeros, {} transferred",
            report.point,
            format_bytes(report.bytes_written),
            format_bytes(report.bytes_zero),
            format_bytes(report.bytes_transferred),
        ),
        format!(
            "  {:.1} s, {}/s, CPU {:.1} s, peak memory {}",
            report.wall_seconds,
            format_bytes(rate as u64),
            report.cpu_seconds,
            format_bytes(report.peak_rss_bytes),
        ),
        format!(
            "  load: source {:.0} % > proxy {:.0} % > network {:.0} % > target {:.0} %; bottleneck: {}",
            b.source,
            b.proxy,
            b.network,
            b.target,
            b.name()
        ),
    ];
    lines.extend(report.notes.iter().map(|note| format!("  - {note}")));
    lines.extend(verified.map(|source| format!("  identical to {source}, byte for byte")));
    lines
}
