//! What an interrupted restore leaves beside its destination: `PATH.gantry-restore`.
//!
//! In: what is restored, and which blocks are durable at the destination. Out: a small JSON file,
//! replaced atomically, and back. Invariant: a sidecar never names a block that was not synced
//! before the sidecar was written. Must not: be believed about another disk, point or destination.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use gantry_common::extents::{Run, RunSet};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{PointId, RepositoryId};
use gantry_common::limits;
use gantry_common::units::BlockSize;
use serde::{Deserialize, Serialize};

use super::target::sync_directory;

const FORMAT: u32 = 1;
/// A sidecar with the most runs stays well below this.
const SIDECAR_BYTES_MAX: u64 = 8 << 20;

/// Tells a file or device from another that has taken its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TargetId {
    /// Of the file system, or of the device itself.
    pub(super) device: u64,
    /// Of the file; 0 for a device.
    pub(super) inode: u64,
    /// Of a device: its name, since another disk may be given its numbers.
    #[serde(default)]
    pub(super) name: Option<String>,
}

/// What is being restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct What {
    /// The repository; text, so that a person can read it.
    pub(super) repository: String,
    /// VM name.
    pub(super) name: String,
    /// The point.
    pub(super) point: String,
    /// Position of the disk in the point.
    pub(super) disk: u16,
    /// Bytes of the disk.
    pub(super) size_bytes: u64,
    /// Bytes of its blocks.
    pub(super) block_bytes: u32,
}

impl What {
    /// Of a disk that was opened at the repository.
    pub(super) fn new(
        repository: RepositoryId,
        name: &str,
        point: PointId,
        disk: u16,
        size_bytes: u64,
        block_size: BlockSize,
    ) -> What {
        What {
            repository: repository.to_string(),
            name: name.to_owned(),
            point: point.to_string(),
            disk,
            size_bytes,
            block_bytes: block_size.bytes(),
        }
    }

    fn describe(&self) -> String {
        let What { name, point, disk, size_bytes, repository, .. } = self;
        format!("{name}, point {point}, disk {disk}, {size_bytes} bytes, repository {repository}")
    }
}

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sidecar {
    format: u32,
    /// What is being restored.
    pub(super) what: What,
    /// Where to; unknown until the destination exists, and then nothing is covered.
    target: Option<TargetId>,
    /// First block and number of blocks of each durable run.
    covered: Vec<(u64, u64)>,
}

/// The sidecar's name for a destination.
pub(super) fn sidecar_path(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".gantry-restore");
    name.into()
}

impl Sidecar {
    /// For what is under way.
    pub(super) fn new(what: What, target: Option<TargetId>, covered: &RunSet) -> Sidecar {
        let covered = covered.iter().map(|run| (run.first, run.count)).collect();
        Sidecar { format: FORMAT, what, target, covered }
    }

    /// Reads what an earlier run left; nothing if there is none.
    ///
    /// # Errors
    /// `Usage`: there is one that cannot be read.
    pub(super) fn load(path: &Path) -> Result<Option<Sidecar>, Failure> {
        let fail = |what: String| {
            let text = format!("{}: {what}; remove it to start over", path.display());
            Failure::new(FailureKind::Usage, text)
        };
        let mut text = String::new();
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error.to_string())),
            Ok(file) => file.take(SIDECAR_BYTES_MAX).read_to_string(&mut text),
        }
        .map_err(|error| fail(error.to_string()))?;
        let sidecar: Sidecar = serde_json::from_str(&text)
            .map_err(|error| fail(format!("is no record of a restore ({error})")))?;
        match sidecar.format == FORMAT && sidecar.covered.len() <= limits::COVERAGE_RUNS_MAX {
            true => Ok(Some(sidecar)),
            false => Err(fail("is of another version of Gantry".to_owned())),
        }
    }

    /// Writes it so that a crash leaves the old one or the new one.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_directory(path)
    }

    /// The point that it continues.
    pub(super) fn point(&self) -> Option<PointId> {
        self.what.point.parse().ok()
    }

    /// Whether it is about this VM and disk, of whatever point.
    pub(super) fn is_of(&self, name: &str, disk: u16) -> bool {
        self.what.name == name && self.what.disk == disk
    }

    /// Whether it is about this.
    ///
    /// # Errors
    /// `Usage`: it is about something else.
    pub(super) fn check(&self, what: &What) -> Result<(), Failure> {
        match self.what == *what {
            true => Ok(()),
            false => {
                let (old, new) = (self.what.describe(), what.describe());
                Err(refuse(&format!("an unfinished restore of {old} is there, not of {new}")))
            }
        }
    }

    /// The blocks of this destination that need not come again.
    ///
    /// # Errors
    /// `Usage`: it is about another destination, or damaged.
    pub(super) fn covered(&self, target: &TargetId, blocks: u64) -> Result<RunSet, Failure> {
        if !self.covered.is_empty() && self.target.as_ref() != Some(target) {
            let what =
                "the destination is another file or device than the one that was being restored";
            return Err(refuse(what));
        }
        let runs = self.covered.iter().map(|&(first, count)| Run { first, count });
        match runs.clone().all(|run| run.end().is_some_and(|end| end <= blocks)) {
            true => Ok(runs.collect()),
            false => Err(refuse("the record of the unfinished restore is damaged")),
        }
    }
}

fn refuse(what: &str) -> Failure {
    let remedy =
        "restore the same again, or remove PATH.gantry-restore and start over with --force";
    Failure::new(FailureKind::Usage, format!("{what}: {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::{Sidecar, TargetId, What, sidecar_path};
    use gantry_common::extents::{Run, RunSet};
    use gantry_common::ids::{PointId, RepositoryId};
    use gantry_common::units::BlockSize;

    fn what(point: u8) -> What {
        let point = PointId::new(5, [point; 10]);
        What::new(RepositoryId([1; 16]), "vm", point, 0, 10 << 20, BlockSize::M1)
    }

    #[test]
    fn a_sidecar_comes_back_and_serves_only_the_same_restore() {
        let dir = tempfile::tempdir().unwrap();
        let path = sidecar_path(&dir.path().join("disk.raw"));
        assert!(path.to_string_lossy().ends_with("disk.raw.gantry-restore"));
        assert_eq!(Sidecar::load(&path), Ok(None));
        let covered: RunSet = [Run { first: 2, count: 3 }].into_iter().collect();
        let target = TargetId { device: 1, inode: 2, name: None };
        Sidecar::new(what(1), Some(target.clone()), &covered).save(&path).unwrap();
        let again = Sidecar::load(&path).unwrap().unwrap();
        assert_eq!(again.covered(&target, 10), Ok(covered));
        again.check(&what(1)).unwrap();
        assert_eq!(again.point(), Some(PointId::new(5, [1; 10])));
        assert!(again.is_of("vm", 0) && !again.is_of("vm", 1) && !again.is_of("other", 0));
        let text = again.check(&what(2)).unwrap_err().to_string();
        assert!(text.contains("--force") && text.contains("unfinished"), "{text}");
        assert!(again.covered(&TargetId { inode: 3, ..target.clone() }, 10).is_err());
        let other = TargetId { name: Some("wwid:another".into()), ..target.clone() };
        assert!(again.covered(&other, 10).is_err(), "another disk with the same numbers");
        assert!(again.covered(&target, 4).is_err(), "beyond the disk");
        for rubbish in ["", "{}", "[1", "\u{0}"] {
            std::fs::write(&path, rubbish).unwrap();
            let text = Sidecar::load(&path).unwrap_err().to_string();
            assert!(text.contains("remove it"), "{text}");
        }
    }
}
