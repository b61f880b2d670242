//! What the mover knows of its tasks, on disk: a file a task, so that a mover that was killed tells of
//! every task that it was given.
//!
//! In: beginnings and ends. Out: the same after a restart; what was running then has died with the
//! mover (its process lives only as long as the mover does). Invariant: a task's beginning is durable
//! before its process starts, its end before it is told. Must not: wait for the network.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use gantry_common::control::TaskOutcome;
use gantry_common::ids::TaskId;

use crate::transport::durable_file;

/// Bytes of one end's file: a report and a little.
pub(super) const OUTCOME_BYTES_MAX: usize = 4 << 20;

/// First byte of a file: the task runs.
const RUNNING: u8 = 0;
/// First byte of a file: the task's end follows (postcard of `TaskOutcome`).
const ENDED: u8 = 1;

/// The folder with a file for each task.
#[derive(Debug, Clone)]
pub(super) struct Standings {
    folder: PathBuf,
}

impl Standings {
    /// Reads what an earlier run left, and writes down what died with it.
    pub(super) fn open(folder: &Path) -> io::Result<(Standings, BTreeMap<TaskId, TaskOutcome>)> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let standings = Standings { folder: folder.to_owned() };
        let mut known = BTreeMap::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(task) = name.and_then(|name| name.parse::<TaskId>().ok()) else {
                // The remains of a write that a crash cut off.
                let _ = std::fs::remove_file(&path);
                continue;
            };
            let outcome = match read(&path)? {
                Some(outcome) => outcome,
                None => {
                    let text = "the mover was stopped or killed while the task ran";
                    let died = TaskOutcome::Died(text.to_owned());
                    standings.ended(task, &died)?;
                    died
                }
            };
            known.insert(task, outcome);
        }
        Ok((standings, known))
    }

    fn path(&self, task: TaskId) -> PathBuf {
        self.folder.join(task.to_string())
    }

    /// Before the task's process starts.
    pub(super) fn began(&self, task: TaskId) -> io::Result<()> {
        durable_file::replace(&self.path(task), &[RUNNING])
    }

    /// Before the end is told.
    pub(super) fn ended(&self, task: TaskId, outcome: &TaskOutcome) -> io::Result<()> {
        let bytes = postcard::to_extend(outcome, vec![ENDED]).map_err(io::Error::other)?;
        durable_file::replace(&self.path(task), &bytes)
    }

    /// A crash may bring it back: then it is told once more.
    pub(super) fn forget(&self, task: TaskId) {
        let removed = std::fs::remove_file(self.path(task));
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%task, "its end cannot be forgotten: {error}");
        }
    }
}

/// A task's end; nothing if it ran.
fn read(path: &Path) -> io::Result<Option<TaskOutcome>> {
    let mut bytes = Vec::new();
    let limit = OUTCOME_BYTES_MAX as u64 + 64;
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(match bytes.split_first() {
        Some((&ENDED, rest)) => match postcard::from_bytes(rest) {
            Ok(outcome) => Some(outcome),
            Err(_) => {
                let text = format!("what {} says of its end cannot be read", path.display());
                Some(TaskOutcome::Died(text))
            }
        },
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_come_back_and_what_ran_has_died() {
        let folder = tempfile::tempdir().unwrap();
        let [done, ran, gone] = [1, 2, 3].map(|byte| TaskId([byte; 16]));
        let (standings, known) = Standings::open(folder.path()).unwrap();
        assert!(known.is_empty());
        for task in [done, ran, gone] {
            standings.began(task).unwrap();
        }
        let outcome = TaskOutcome::Done(b"{}".to_vec());
        standings.ended(done, &outcome).unwrap();
        standings.forget(gone);
        standings.forget(gone);
        std::fs::write(folder.path().join("rest.new"), b"x").unwrap();
        for _ in 0..2 {
            let (_, known) = Standings::open(folder.path()).unwrap();
            assert_eq!(known.len(), 2);
            assert_eq!(known[&done], outcome);
            assert!(matches!(&known[&ran], TaskOutcome::Died(text) if text.contains("killed")));
        }
        std::fs::write(folder.path().join(done.to_string()), [ENDED, 200, 1]).unwrap();
        let (_, known) = Standings::open(folder.path()).unwrap();
        assert!(
            matches!(&known[&done], TaskOutcome::Died(text) if text.contains("cannot be read"))
        );
    }
}
