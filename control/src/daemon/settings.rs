//! A job's settings as a run takes them, and its selection as the broker takes it. Pure.

use gantry_common::failure::{Failure, FailureKind};
use gantry_database::model::{DiskExclusion, Job, Quiesce as JobQuiesce, Selection};

use crate::broker::selection::{Rule, Selection as Rules};
use crate::run::settings::{Quiesce, RunSettings};
use crate::snapshots::remove::usual_pauses;

/// How a job's runs back up.
pub fn run_settings(job: &Job) -> RunSettings {
    RunSettings {
        modes: job.transport.modes.clone(),
        failover: job.transport.failover,
        on_full: job.cbt.on_full,
        enable_cbt: job.cbt.enable,
        audit_per_million: job.cbt.audit_per_million(),
        quiesce: match job.quiesce {
            JobQuiesce::Off => Quiesce::Off,
            JobQuiesce::On => Quiesce::On,
            JobQuiesce::FallBack => Quiesce::Fallback,
        },
        // The scheduler holds machines back instead: a run that was let in does not look again.
        snapshots_per_datastore: usize::MAX,
        removal_pauses: usual_pauses().to_vec(),
        block_size: job.block_size,
        compression: job.compression,
        rate: job.rate_bytes_per_second,
        retention: job.retention,
    }
}

/// A job's selection as rules for the inventory. Exclusions of disks depend on the machine and are
/// judged by [`excluded`].
///
/// # Errors
/// `Usage`: it names tags, which the broker does not know yet. Leaving one out in silence could take
/// a machine that must not be taken, or miss one that must.
pub fn rules(selection: &Selection) -> Result<Rules, Failure> {
    if !selection.tags.is_empty() || !selection.exclude_tags.is_empty() {
        return Err(Failure::new(
            FailureKind::Usage,
            "the job selects by tags, which this version does not read: use folders, patterns or \
             datastores",
        ));
    }
    let rule = |list: &[String], rule: fn(String) -> Rule| -> Vec<Rule> {
        list.iter().cloned().map(rule).collect()
    };
    Ok(Rules {
        include: [
            rule(&selection.patterns, Rule::Name),
            rule(&selection.folders, Rule::Folder),
            rule(&selection.datastores, Rule::Datastore),
        ]
        .concat(),
        exclude: [
            rule(&selection.exclude_patterns, Rule::Name),
            rule(&selection.exclude_folders, Rule::Folder),
        ]
        .concat(),
        exclude_disks: Vec::new(),
    })
}

/// Why a job leaves a disk out; nothing: it does not.
pub fn excluded(
    rules: &[DiskExclusion],
    vm: &str,
    (label, place, datastore): (&str, &str, &str),
) -> Option<String> {
    let fits = |pattern: &Option<String>, text: &str| {
        pattern.as_ref().is_none_or(|pattern| {
            wildmatch::WildMatch::new(&pattern.to_lowercase()).matches(&text.to_lowercase())
        })
    };
    let rule = rules.iter().find(|rule| {
        fits(&rule.vm, vm)
            && fits(&rule.label, label)
            && fits(&rule.place, place)
            && fits(&rule.datastore, datastore)
    })?;
    let parts = [
        ("machine", &rule.vm),
        ("label", &rule.label),
        ("place", &rule.place),
        ("datastore", &rule.datastore),
    ];
    let named = parts.iter().filter_map(|(what, pattern)| Some((what, pattern.as_ref()?)));
    let named: Vec<String> = named.map(|(what, pattern)| format!("{what} '{pattern}'")).collect();
    Some(format!("the job excludes {}", named.join(", ")))
}
