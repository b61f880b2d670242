//! `gantry-mover backup` as a scenario calls it, and its report.
//!
//! In: sources and options. Out: an [`Outcome`], or a [`Report`] whose sums have been checked.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::program::{Outcome, Running, mover};
use crate::site::Party;

/// A backup to be run.
#[derive(Debug)]
pub struct BackupRun {
    folder: std::path::PathBuf,
    command: Command,
}

impl BackupRun {
    /// Of VM `name` into `repository`; output files go to `folder`.
    pub fn new(folder: &Path, repository: &str, name: &str) -> BackupRun {
        let mut command = Command::new(mover());
        command.args(["backup", "--json", "--repo", repository, "--name", name]);
        BackupRun { folder: folder.to_owned(), command }
    }

    /// As this party.
    pub fn credentials(mut self, party: &Party) -> BackupRun {
        self.command.arg("--identity").arg(&party.identity).arg("--peer").arg(&party.trust);
        self
    }

    /// A disk, with an identity that does not depend on its path.
    pub fn disk(mut self, source: &Path, identity: &str) -> BackupRun {
        self.command.arg(source).args(["--disk-id", identity]);
        self
    }

    /// A disk under its default identity.
    pub fn source(mut self, source: &Path) -> BackupRun {
        self.command.arg(source);
        self
    }

    /// Changed extents of the next disk, since `base` (which is given once for all disks).
    pub fn changed(self, extents: &Path) -> BackupRun {
        self.args([OsStr::new("--changed-extents"), extents.as_os_str()])
    }

    /// Further options.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> BackupRun {
        self.command.args(arguments);
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        Running::start(&self.folder, &mut self.command)
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        self.start().wait()
    }

    /// Runs it; asserts success and that the report's sums are right.
    #[track_caller]
    pub fn report(self) -> Report {
        Report::of(&self.run().ok())
    }
}

/// What a backup reported.
#[derive(Debug)]
pub struct Report {
    /// The JSON object.
    pub json: Value,
}

impl Report {
    /// Takes it from a finished backup and checks every sum in it.
    #[track_caller]
    pub fn of(outcome: &Outcome) -> Report {
        let report = Report { json: outcome.json() };
        report.check_sums();
        report
    }

    /// A number of the session.
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        number(&self.json, field)
    }

    /// A number of one disk.
    #[track_caller]
    pub fn disk_number(&self, disk: usize, field: &str) -> u64 {
        number(&self.json["disks"][disk], field)
    }

    /// The committed point.
    #[track_caller]
    pub fn point(&self) -> String {
        self.json["point"].as_str().expect("a report names its point").to_owned()
    }

    /// How a disk was read: `full`, `extents`, `compare`.
    #[track_caller]
    pub fn mode(&self, disk: usize) -> &str {
        self.json["disks"][disk]["mode"].as_str().expect("a disk has a mode")
    }

    /// The session's log, one line a choice, in lower case.
    pub fn log(&self) -> String {
        let lines = self.json["log"].as_array().into_iter().flatten();
        let lines: Vec<&str> = lines.filter_map(Value::as_str).collect();
        lines.join("\n").to_lowercase()
    }

    /// Asserts that the log holds each of these words.
    #[track_caller]
    pub fn log_says(&self, words: &[&str]) {
        let log = self.log();
        for word in words {
            assert!(log.contains(&word.to_lowercase()), "the log does not say '{word}': {log}");
        }
    }

    /// Every byte of a disk has one fate, and the session is the sum of its disks.
    #[track_caller]
    fn check_sums(&self) {
        const FATES: [&str; 5] =
            ["bytes_zero", "bytes_unchanged", "bytes_duplicate", "bytes_sent_raw", "bytes_resumed"];
        const SUMMED: [&str; 3] = ["bytes_virtual", "bytes_processed", "bytes_transferred"];
        let disks = self.json["disks"].as_array().expect("a report has disks");
        for (disk, facts) in disks.iter().enumerate() {
            let sum: u64 = FATES.iter().map(|field| number(facts, field)).sum();
            let size = number(facts, "bytes_virtual");
            assert_eq!(sum, size, "disk {disk} does not add up: {facts:#}");
            let skipped = facts["bytes_skipped"].as_object().expect("reasons");
            let skipped: u64 = skipped.values().filter_map(Value::as_u64).sum();
            let processed = number(facts, "bytes_processed");
            assert_eq!(skipped + number(facts, "bytes_sent_raw"), processed, "{facts:#}");
            assert_eq!(processed, size, "disk {disk} is not done: {facts:#}");
            let (sent, raw) = (number(facts, "bytes_transferred"), number(facts, "bytes_sent_raw"));
            assert!(sent <= raw && (sent == 0) == (raw == 0), "disk {disk}: {facts:#}");
        }
        for field in FATES.iter().chain(&SUMMED) {
            let sum: u64 = disks.iter().map(|facts| number(facts, field)).sum();
            assert_eq!(sum, self.number(field), "{field} is not the sum of the disks");
        }
        for part in ["source", "proxy", "network", "target"] {
            let percent = self.json["bottleneck"][part].as_f64().expect("a percentage");
            assert!((0.0..=100.0).contains(&percent), "{part} {percent} %");
        }
    }
}

#[track_caller]
fn number(facts: &Value, field: &str) -> u64 {
    facts[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {facts:#}"))
}
