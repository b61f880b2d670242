//! `gantry-mover backup`: gives the arguments their meaning, runs the session, prints the result.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gantry_common::extents::Extent;
use gantry_common::failure::Failure;
use gantry_common::limits::NAME_BYTES_MAX;
use gantry_common::source::SourceSpec;
use gantry_common::units::{Rate, format_bytes};
use gantry_common::wire::{SessionKind, is_name};

use super::arguments::BackupArguments;
use super::display::Bars;
use super::{Use, connector, read_text, runtime, say, say_json, usage};
use crate::backup::{self, BackupOptions, BackupReport, BackupSource};
use crate::filters::Filters;
use crate::host;
use crate::transport::{Pacer, read_secret};

/// How often the rate file is looked at.
const RATE_FILE_EVERY: Duration = Duration::from_millis(500);

pub(super) fn run(arguments: BackupArguments) -> Result<(), Failure> {
    let options = options(&arguments)?;
    let rate = match &arguments.rate_file {
        Some(file) => parse_rate(&read_text(file)?)?,
        None => arguments.rate,
    };
    let pacer = Pacer::unlimited();
    pacer.set_rate(rate.and_then(|rate| NonZeroU64::new(rate.bytes_per_second)));
    let connector =
        connector(&arguments.repository.repo, &arguments.repository.access, Use::Write)?;
    let runtime = runtime()?;
    let report = runtime.block_on(async {
        if let Some(file) = arguments.rate_file.clone() {
            tokio::spawn(follow_rate(file, pacer.clone()));
        }
        let mut bars = None;
        let watch = |disks| bars = Some(Bars::of_backup(disks));
        backup::run(options, &connector, pacer, watch).await
    });
    drop(connector);
    let report = report?;
    if arguments.json { say_json(&report) } else { print(&report) }
}

fn options(arguments: &BackupArguments) -> Result<BackupOptions, Failure> {
    let specs = source_specs(arguments)?;
    let sources = specs.len();
    for text in arguments.disk_ids.iter().chain([&arguments.name]) {
        if !is_name(text) {
            return Err(usage(format!(
                "--name and --disk-id take 1 to {NAME_BYTES_MAX} bytes without control characters"
            )));
        }
    }
    let count = |given: usize, option: &str| {
        if given == 0 || given == sources {
            Ok(())
        } else {
            Err(usage(format!(
                "{sources} sources but {given} {option}: give one for each, in order"
            )))
        }
    };
    count(arguments.disk_ids.len(), "--disk-id")?;
    count(arguments.changed_extents.len(), "--changed-extents")?;
    let mut list = Vec::with_capacity(sources);
    for (number, spec) in specs.into_iter().enumerate() {
        let changed = arguments.changed_extents.get(number);
        list.push(BackupSource {
            spec,
            identity: arguments.disk_ids.get(number).cloned(),
            changed_extents: changed.map(|file| read_extents(file)).transpose()?,
            allocated_extents: None,
            change_id: None,
            read_digest: None,
            filters: Filters {
                swap: arguments.exclude_swap,
                deleted: arguments.exclude_deleted,
                excluded: arguments.exclude_files.clone(),
                snapshot: arguments.state.kind(),
            },
        });
    }
    let cores = host::worker_cores(
        arguments.workers.map(|workers| workers as usize),
        arguments.cpu_set.as_deref(),
    );
    Ok(BackupOptions {
        session: None,
        kind: SessionKind::Backup,
        ticket: None,
        created_ms: None,
        name: arguments.name.clone(),
        sources: list,
        base: arguments.base,
        full: arguments.full,
        audit_per_million: arguments.audit.map(|share| (share * 10_000.0).ceil() as u32),
        vm_config: Vec::new(),
        retention: arguments.retention.retention().map_err(usage)?,
        snapshot: arguments.snapshot.clone(),
        block_size: arguments.block_size,
        compression: arguments.compression,
        cores: cores.map_err(usage)?,
        queue_depth: arguments.queue_depth as usize,
        tasks_max: arguments.tasks as usize,
        reconnect_for: Duration::from_secs(arguments.repository.reconnect),
    })
}

/// Addresses and paths as typed, then what the spec files say.
fn source_specs(arguments: &BackupArguments) -> Result<Vec<SourceSpec>, Failure> {
    let mut specs = Vec::new();
    for text in &arguments.sources {
        specs.push(match SourceSpec::parse(text).map_err(usage)? {
            SourceSpec::Path { path, .. } => {
                SourceSpec::Path { path, format: arguments.source_format }
            }
            other => other,
        });
    }
    for file in &arguments.source_specs {
        let bytes = read_secret(file)?;
        let spec = serde_json::from_slice::<SourceSpec>(&bytes).map_err(|error| {
            // Errors of other kinds quote the text, which may hold a password.
            let text = error.to_string();
            let names =
                ["missing field", "unknown field"].iter().any(|kind| text.starts_with(kind));
            let what = if names { text } else { "no JSON of a source specification".into() };
            usage(format!("{}: {what}; see docs/operations.md", file.display()))
        })?;
        spec.check().map_err(usage)?;
        specs.push(spec);
    }
    Ok(specs)
}

/// Reads a list of changed extents, as vSphere returns them.
fn read_extents(file: &Path) -> Result<Vec<Extent>, Failure> {
    serde_json::from_str(&read_text(file)?).map_err(|error| {
        usage(format!(
            "{}: {error}; expected a JSON list such as [{{\"start\":0,\"length\":65536}}]",
            file.display()
        ))
    })
}

fn parse_rate(text: &str) -> Result<Option<Rate>, Failure> {
    match text.trim() {
        "unlimited" => Ok(None),
        rate => rate.parse().map(Some).map_err(usage),
    }
}

/// Applies the rate file whenever it changes; a broken one leaves the rate as it is.
async fn follow_rate(file: PathBuf, pacer: Pacer) {
    let modified = || std::fs::metadata(&file).and_then(|facts| facts.modified()).ok();
    let mut seen: Option<SystemTime> = modified();
    loop {
        tokio::time::sleep(RATE_FILE_EVERY).await;
        let now = modified();
        if now == seen {
            continue;
        }
        seen = now;
        match read_text(&file).and_then(|text| parse_rate(&text)) {
            Ok(rate) => {
                pacer.set_rate(rate.and_then(|rate| NonZeroU64::new(rate.bytes_per_second)));
            }
            Err(failure) => tracing::warn!("rate not changed: {failure}"),
        }
    }
}

fn print(report: &BackupReport) -> Result<(), Failure> {
    let volumes = &report.volumes;
    let point = report.point.as_deref().unwrap_or_default();
    say(&format!("point {point} of {} is committed", report.name));
    let row = |name: &str, bytes: u64| say(&format!("  {name:<12} {:>12}", format_bytes(bytes)));
    row("processed", volumes.bytes_processed);
    row("read", volumes.bytes_read);
    row("zero", volumes.bytes_zero);
    row("unchanged", volumes.bytes_unchanged);
    row("duplicate", volumes.bytes_duplicate);
    if volumes.bytes_resumed > 0 {
        row("resumed", volumes.bytes_resumed);
    }
    row("transferred", volumes.bytes_transferred);
    row("stored", volumes.bytes_stored);
    let rate = volumes.bytes_processed as f64 / report.wall_seconds.max(1e-9);
    say(&format!(
        "  {:.1} s, {}/s, CPU {:.1} s, peak memory {}, compression {:.2}, dedup {:.2}",
        report.wall_seconds,
        format_bytes(rate as u64),
        report.cpu_seconds,
        format_bytes(report.peak_rss_bytes),
        report.compression_ratio,
        report.dedup_ratio,
    ));
    let b = &report.bottleneck;
    say(&format!(
        "  load: source {:.0} % > proxy {:.0} % > network {:.0} % > target {:.0} %; bottleneck: {}",
        b.source, b.proxy, b.network, b.target, report.bottleneck_name
    ));
    report.log.iter().for_each(|line| say(&format!("  - {line}")));
    Ok(())
}
