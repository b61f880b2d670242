//! `gantry vm list|backup` and `gantry cleanup`: sessions without a service.
//!
//! In: a configuration file, names of machines. Out: reports. One machine after the other; the exit
//! code is that of the first failure.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;
use gantry_common::units::format_bytes;
use gantry_common::work::DiskProgress;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{BackupArguments, ConfigArguments, connect, say, say_json};
use crate::broker::Broker;
use crate::config::{self, Config};
use crate::ledger::Ledger;
use crate::local::LocalSite;
use crate::mover::Mover;
use crate::run::document::{Outcome, RunDocument};
use crate::run::removal::remove_stranded;
use crate::run::report::{RunReport, RunResult, report};
use crate::run::undo::undo_all;
use crate::run::{Context, drive, random_id, vcenter_id};

/// How long the inventory may take at the start.
const READY_WITHIN: Duration = Duration::from_secs(120);

struct Open {
    config: Config,
    broker: Broker,
    ledger: Ledger,
}

async fn open(arguments: &ConfigArguments) -> Result<Open, Failure> {
    let config = Config::load(&arguments.config)?;
    let ledger = Ledger::open(&config.state)?;
    let vcenter = connect(&config.vcenter)?;
    vcenter.content().await.map_err(|error| error.failure())?;
    let broker = Broker::start(vcenter);
    let ready = broker.ready(READY_WITHIN).await;
    ready.map_err(|text| Failure::new(FailureKind::Network, text))?;
    Ok(Open { config, broker, ledger })
}

/// Undoes what is open, and tells what else bears Gantry's mark.
async fn clean(open: &mut Open) -> Result<Vec<String>, Failure> {
    let vcenter = open.broker.vcenter().clone();
    // The ledger's lock says that no session of this installation runs.
    let mut lines = remove_cookies(&open.config.private())?;
    let id = vcenter_id(&vcenter).await?;
    let pauses = open.config.backup.removal_pauses();
    let left = open.ledger.open_undos();
    lines.extend(undo_all(&vcenter, &id, &open.ledger, left, &pauses).await?);
    let owner = config::owner(&open.config.state, &id)?;
    lines.extend(remove_stranded(&open.broker, &owner, &open.ledger, &pauses).await);
    Ok(lines)
}

/// Removes what a killed session left of its cookies.
fn remove_cookies(private: &Path) -> Result<Vec<String>, Failure> {
    let fail = |error: std::io::Error| {
        Failure::new(FailureKind::Internal, format!("{}: {error}", private.display()))
    };
    let entries = match std::fs::read_dir(private) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut lines = Vec::new();
    for entry in entries {
        std::fs::remove_dir_all(entry.map_err(fail)?.path()).map_err(fail)?;
        lines.push("a cookie that a killed session left was removed".to_owned());
    }
    Ok(lines)
}

/// Ends the session with vCenter. Before, the broker stops waiting for updates: a server may let a
/// log-out wait for that.
async fn log_out(open: Open) {
    let vcenter = open.broker.vcenter().clone();
    drop(open.broker);
    if let Err(error) = vcenter.log_out().await {
        tracing::info!("{error}");
    }
}

pub(super) async fn cleanup(arguments: &ConfigArguments) -> Result<(), Failure> {
    let mut open = open(arguments).await?;
    let lines = clean(&mut open).await?;
    let left = open.ledger.open_undos().len();
    log_out(open).await;
    if arguments.json {
        say_json(&json!({"done": lines, "open": left}))?;
    } else {
        lines.iter().for_each(|line| say(line));
        say(&format!("{left} steps are still to be undone"));
    }
    match left {
        0 => Ok(()),
        _ => Err(Failure::new(FailureKind::Source, "not everything could be undone; see above")),
    }
}

pub(super) async fn list(arguments: &ConfigArguments) -> Result<(), Failure> {
    let open = open(arguments).await?;
    let mut rows: Vec<_> = open.broker.read(|cache| {
        let row = |facts: &crate::broker::VmFacts| {
            json!({
                "name": facts.name, "instance_uuid": facts.instance_uuid,
                "folder": cache.folder_of(facts), "power": facts.power_state,
                "template": facts.is_template, "cbt": facts.change_tracking,
                "snapshots": facts.snapshots.len(),
                "disks": facts.disks.values().map(|disk| json!({
                    "label": disk.label, "capacity_bytes": disk.capacity_bytes, "file": disk.file,
                })).collect::<Vec<_>>(),
            })
        };
        cache.vms().map(|(_, facts)| row(facts)).collect()
    });
    rows.sort_by_key(|row| row["name"].as_str().unwrap_or_default().to_owned());
    log_out(open).await;
    if arguments.json {
        return say_json(&rows);
    }
    for row in &rows {
        let disks = row["disks"].as_array().map_or(0, Vec::len);
        let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
        say(&format!(
            "{:<30} {:<12} {disks} disks  {}",
            text("name"),
            text("power"),
            text("folder")
        ));
    }
    Ok(())
}

pub(super) async fn backup(arguments: &BackupArguments) -> Result<(), Failure> {
    let mut open = open(&arguments.config).await?;
    for line in clean(&mut open).await? {
        tracing::warn!("{line}");
    }
    let mover = Mover::new(open.config.mover()?);
    let mut reports = Vec::new();
    let mut first = Ok(());
    for vm in &arguments.vms {
        let bar = bar(vm);
        let result = back_up(&open, &mover, vm, arguments.full, &bar).await;
        bar.finish_and_clear();
        let result = match result {
            Ok((report, outcome)) => {
                if !arguments.config.json {
                    print(&report);
                }
                reports.push(report);
                match outcome {
                    Outcome::Point(_) => Ok(()),
                    Outcome::Failed(failure) => Err(failure),
                    Outcome::Stopped(why) => Err(Failure::new(FailureKind::Source, why)),
                }
            }
            Err(failure) => Err(failure),
        };
        first = first.and(result);
    }
    log_out(open).await;
    if arguments.config.json {
        say_json(&reports)?;
    }
    first
}

/// One machine.
async fn back_up(
    open: &Open,
    mover: &Mover,
    vm: &str,
    full: bool,
    bar: &ProgressBar,
) -> Result<(RunReport, Outcome), Failure> {
    let Open { config, broker, ledger } = open;
    let instance_uuid = find(broker, vm)?;
    let site = LocalSite::new(config, mover.clone(), vm, |disks| show(bar, disks.values()));
    let vcenter_id = vcenter_id(broker.vcenter()).await?;
    let context = Context {
        guest: None,
        broker,
        vcenter_id: &vcenter_id,
        endpoint: &config.vcenter.endpoint()?,
        trust: &config.vcenter.server_trust()?,
        owner: &config::owner(&config.state, &vcenter_id)?,
        settings: &config.backup.settings()?,
        excluded: &BTreeMap::new(),
        ledger,
        site: &site,
    };
    let mut document = RunDocument::new(SessionId(random_id()?), &instance_uuid, vm, full);
    let outcome = drive(&context, &mut document).await?;
    Ok((report(&document, &site.log()), outcome))
}

/// The instance UUID of the only machine of this name.
fn find(broker: &Broker, name: &str) -> Result<String, Failure> {
    let usage = |text: String| Failure::new(FailureKind::Usage, text);
    broker.read(|cache| {
        let mut found = cache.vms().filter(|(_, facts)| *facts.name == *name);
        match (found.next(), found.next()) {
            (Some((_, facts)), None) => Ok(facts.instance_uuid.to_string()),
            (Some(_), Some(_)) => {
                Err(usage(format!("several virtual machines are named '{name}'")))
            }
            (None, _) => Err(usage(format!(
                "no virtual machine is named '{name}'; 'gantry vm list' shows them"
            ))),
        }
    })
}

fn bar(vm: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:24!} {bar:28} {bytes}/{total_bytes} ETA {eta}");
    let bar = ProgressBar::new(0);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_message(vm.to_owned());
    bar
}

fn show<'a>(bar: &ProgressBar, disks: impl Iterator<Item = &'a DiskProgress>) {
    let sum = |(todo, done), disk: &DiskProgress| (todo + disk.todo_bytes, done + disk.done_bytes);
    let (todo, done) = disks.fold((0, 0), sum);
    bar.set_length(todo);
    bar.set_position(done);
}

fn print(report: &RunReport) {
    let word = match report.result {
        RunResult::Success => "success",
        RunResult::Warning => "warning",
        RunResult::Failed => "failed",
    };
    let point = report.point.as_deref().unwrap_or("none");
    say(&format!("{}: {word}, restore point {point}", report.vm));
    if let Some(mover) = &report.mover {
        let bytes = |field: &str| format_bytes(mover[field].as_u64().unwrap_or(0));
        say(&format!(
            "  processed {}, read {}, transferred {}",
            bytes("bytes_processed"),
            bytes("bytes_read"),
            bytes("bytes_transferred")
        ));
    }
    report.log.iter().for_each(|line| say(&format!("  - {line}")));
}
