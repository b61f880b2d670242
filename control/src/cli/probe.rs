//! `gantry vcenter probe`: prints the report.
//!
//! In: arguments. Out: a table, or JSON. The session is closed at the end.

use gantry_common::failure::Failure;
use gantry_common::units::format_bytes;

use super::{ProbeArguments, connect, say, say_json};
use crate::probe::{Machine, ProbeReport, probe};

pub(super) async fn run(arguments: &ProbeArguments) -> Result<(), Failure> {
    let (target, proxy) = arguments.target()?;
    let vcenter = connect(&target)?;
    let report = probe(&vcenter, &proxy).await;
    if let Err(error) = vcenter.log_out().await {
        tracing::info!("{error}");
    }
    let report = report.map_err(|error| error.failure())?;
    if arguments.json { say_json(&report) } else { print(&report) }
}

fn print(report: &ProbeReport) -> Result<(), Failure> {
    say(&format!("{} ({}), API {}", report.product, report.endpoint, report.api_version));
    if let Some(uuid) = &report.instance_uuid {
        say(&format!("instance {uuid}"));
    }
    let missing = report.privileges.iter().filter(|privilege| !privilege.granted);
    let missing: Vec<&str> = missing.map(|privilege| privilege.name).collect();
    match (report.privileges.len(), missing.len()) {
        (0, _) => say("privileges: unknown"),
        (_, 0) => say("privileges: all that a backup uses"),
        _ => say(&format!("privileges missing on the root folder: {}", missing.join(", "))),
    }
    report.machines.iter().for_each(machine);
    match &report.https_read {
        Some(read) => say(&format!(
            "https: {} of {} in {:.2} s, {}/s",
            format_bytes(read.bytes),
            read.file,
            read.seconds,
            format_bytes((read.bytes as f64 / read.seconds.max(1e-9)) as u64),
        )),
        None => say("https: not measured"),
    }
    report.notes.iter().for_each(|note| say(&format!("note: {note}")));
    say(report.support);
    Ok(())
}

fn machine(machine: &Machine) {
    let cbt = match (machine.cbt_enabled, machine.cbt_supported) {
        (true, _) => "CBT on",
        (false, Some(false)) => "CBT not supported",
        (false, _) => "CBT off",
    };
    let mut facts = vec![cbt.to_owned()];
    facts.extend(machine.hardware.clone());
    facts.extend(machine.power.clone());
    if machine.is_template {
        facts.push("template".to_owned());
    }
    if machine.snapshots > 0 {
        facts.push(format!("{} snapshots", machine.snapshots));
    }
    if machine.consolidation_needed {
        facts.push("consolidation needed".to_owned());
    }
    say(&format!("{} ({})", machine.name, facts.join(", ")));
    for disk in &machine.disks {
        let modes = match &disk.refused {
            Some(reason) => reason.clone(),
            None => format!("{} for a full", disk.transports.join(", ")),
        };
        say(&format!(
            "  {:<14} {:>10}  {}  {modes}",
            disk.label,
            format_bytes(disk.capacity_bytes),
            disk.file
        ));
    }
}
