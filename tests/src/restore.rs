//! `gantry-mover restore` as a scenario calls it, and the proof that it was right.
//!
//! In: a point, a disk, the source to compare with. Out: a restored file that equals it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::compare::assert_same;
use crate::program::{Outcome, Running, mover};
use crate::site::Party;

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A restore to be run.
#[derive(Debug)]
pub struct RestoreRun {
    folder: PathBuf,
    command: Command,
}

impl RestoreRun {
    /// Of VM `name` from `repository`; files go to `folder`.
    pub fn new(folder: &Path, repository: &str, name: &str) -> RestoreRun {
        let mut command = Command::new(mover());
        command.args(["restore", "--repo", repository, "--name", name]);
        RestoreRun { folder: folder.to_owned(), command }
    }

    /// As this party.
    pub fn credentials(mut self, party: &Party) -> RestoreRun {
        self.command.arg("--identity").arg(&party.identity).arg("--peer").arg(&party.trust);
        self
    }

    /// This point.
    pub fn point(self, point: &str) -> RestoreRun {
        self.args(["--point", point])
    }

    /// This disk of it.
    pub fn disk(self, disk: usize) -> RestoreRun {
        self.args(["--disk", &disk.to_string()])
    }

    /// Further options.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> RestoreRun {
        self.command.args(arguments);
        self
    }

    /// Starts it towards `to`.
    pub fn start(mut self, to: &Path) -> Running {
        self.command.arg("--to").arg(to);
        Running::start(&self.folder, &mut self.command)
    }

    /// Runs it towards `to`.
    pub fn run(self, to: &Path) -> Outcome {
        self.start(to).wait()
    }

    /// A file of the scenario's folder that no other restore writes.
    pub fn fresh_file(&self) -> PathBuf {
        self.folder.join(format!("restored-{}.raw", NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    /// Restores to a file, compares it with `source` bit for bit and removes it.
    #[track_caller]
    pub fn equals(self, source: &Path) {
        let to = self.fresh_file();
        self.run(&to).ok();
        assert_same(source, &to);
        std::fs::remove_file(&to).expect("removable");
    }
}
