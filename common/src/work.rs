//! What a control plane tells a source mover that it has started, and what it hears back.
//!
//! In: one line of JSON ([`BackupWork`], or [`RestoreWork`] in the field `restore`) on the mover's standard input, which stays open as long as
//! the work is wanted. Out: [`WorkReport`]s, one
//! JSON object a line, on its standard output; the last is [`WorkReport::Done`] or
//! [`WorkReport::Failed`]. Secrets (session cookies) are part of it, which is why it is neither an
//! argument nor a file. Invariant: plain data, bounded by [`WORK_BYTES_MAX`].

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::extents::Extent;
use crate::failure::Failure;
use crate::manage::Retention;
use crate::source::SourceSpec;
use crate::stages::StageNumbers;
use crate::units::{BlockSize, Compression};

/// Bytes of a work document: some million changed extents.
pub const WORK_BYTES_MAX: u64 = 256 << 20;

/// Bytes of a line that follows the work.
pub const ORDER_BYTES_MAX: u64 = 64 << 10;

/// What a mover may be told while it works: one a line, after the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkOrder {
    /// Limit of the rate on the wire from now on, bytes a second; null or 0: none.
    SetRate(Option<u64>),
}

/// Where the repository is, and how the mover is let in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepositoryAccess {
    /// A folder, or `gantry://HOST:PORT`.
    pub address: String,
    /// The mover's identity file.
    pub identity: Option<PathBuf>,
    /// File with the repository mover's pin or certificate.
    pub peer: Option<PathBuf>,
    /// The repository mover's pin itself, in hexadecimal, instead of a file: a control plane knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
    /// Session ticket in hexadecimal, made out to this mover for the work's session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// One disk of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskWork {
    /// Where it is read from.
    pub source: SourceSpec,
    /// Identity that stays when the disk moves: vCenter instance, VM instance UUID, disk UUID.
    pub identity: String,
    /// Changed extents since the base point.
    #[serde(default)]
    pub changed_extents: Option<Vec<Extent>>,
    /// All that is allocated: what lies outside reads as zeros.
    #[serde(default)]
    pub allocated_extents: Option<Vec<Extent>>,
    /// CBT change id of the snapshot. The session that commits decides what the point keeps.
    #[serde(default)]
    pub change_id: Option<String>,
    /// Digest of what is read, in hexadecimal, as a part's report tells it (default: that of the
    /// extents and base): a part counts only for a session that says the same of its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_digest: Option<String>,
}

/// One backup of one VM, a part of one, or the commit of its parts.
///
/// With `hold` it is a **part**: all blocks of the disks are brought in and kept, and nothing is
/// committed; parts of different disks of a VM may run at once, on any movers. Work whose sources are
/// all [`SourceSpec::Durable`] is a **commit**: with the name, and each disk's identity, snapshot, size,
/// block size and read digest, of the parts it makes them one restore point, or names the one
/// that holds them already. What a part brought counts as long as those are the same, whichever
/// mover, transport mode, label or session it had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupWork {
    /// Name under which the point is kept.
    pub name: String,
    /// Where to.
    pub repository: RepositoryAccess,
    /// Every disk.
    pub disks: Vec<DiskWork>,
    /// Identity of the frozen state: the snapshot's.
    pub snapshot: String,
    /// The session in hexadecimal, one of its own for each task (default: random). The same again
    /// is the same session if all else is the same too, `created_ms` above all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Milliseconds since 1970 of the snapshot; default: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_ms: Option<u64>,
    /// Bring the disks in, keep them, and do not commit.
    #[serde(default)]
    pub hold: bool,
    /// The point that changed extents refer to, in hexadecimal.
    #[serde(default)]
    pub base: Option<String>,
    /// Read everything, whatever the base.
    #[serde(default)]
    pub full: bool,
    /// CBT audit: of a million blocks called unchanged, how many are compared.
    #[serde(default)]
    pub audit_per_million: Option<u32>,
    /// The VM's configuration, kept in the point.
    #[serde(default)]
    pub vm_config: String,
    /// What the repository keeps.
    #[serde(default)]
    pub retention: Option<Retention>,
    /// Block size.
    #[serde(default)]
    pub block_size: BlockSize,
    /// Compression.
    #[serde(default)]
    pub compression: Compression,
    /// Limit of the rate on the wire, bytes a second.
    #[serde(default)]
    pub rate: Option<u64>,
    /// Workers; default: one a core.
    #[serde(default)]
    pub workers: Option<usize>,
    /// Disks at a time.
    #[serde(default = "tasks_default")]
    pub tasks: usize,
    /// Seconds to go on reconnecting to the repository.
    #[serde(default = "reconnect_default")]
    pub reconnect_seconds: u64,
}

/// What a mover is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// A backup, a part of one, or a commit: the JSON of [`BackupWork`].
    Backup(Box<BackupWork>),
    /// A restore: `{"restore": ...}`.
    Restore(Box<RestoreWork>),
}

#[derive(Deserialize)]
struct Probe {
    restore: Option<IgnoredAny>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RestoreDocument {
    restore: RestoreWork,
}

impl Work {
    /// Reads a work document.
    ///
    /// # Errors
    /// It is neither kind; the error says where.
    pub fn from_json(text: &[u8]) -> Result<Work, serde_json::Error> {
        match serde_json::from_slice::<Probe>(text)?.restore {
            Some(_) => {
                let document: RestoreDocument = serde_json::from_slice(text)?;
                Ok(Work::Restore(Box::new(document.restore)))
            }
            None => serde_json::from_slice(text).map(Work::Backup),
        }
    }
}

/// Disks of one restore point, each to a new raw image file on the mover's host, or to a new disk that
/// is attached to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreWork {
    /// Name under which the point is kept.
    pub name: String,
    /// The point, in hexadecimal.
    pub point: String,
    /// Where from.
    pub repository: RepositoryAccess,
    /// The session in hexadecimal, for which the ticket is made out; it also names what is not
    /// finished yet.
    pub session: String,
    /// Which disks, one after the other.
    pub disks: Vec<DiskRestore>,
    /// Seconds to go on reconnecting to the repository.
    #[serde(default = "reconnect_default")]
    pub reconnect_seconds: u64,
}

impl RestoreWork {
    /// The document that a mover reads.
    ///
    /// # Errors
    /// A path that is no text.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&RestoreDocument { restore: self.clone() })
    }
}

/// One disk of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRestore {
    /// Position in the point's list of disks.
    pub disk: u16,
    /// Identity that the disk there must have.
    pub identity: String,
    /// For a person.
    pub label: String,
    /// Where to.
    pub to: RestoreTo,
}

/// Where a disk of a restore goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RestoreTo {
    /// Absolute path of a file that does not exist. Until all of it is there it is called
    /// [`unfinished_name`].
    File(PathBuf),
    /// A disk that was made for this restore, holds nothing but zeros and what this restore has
    /// written, and is attached to the mover's host for writing.
    NewDevice {
        /// Its UUID, which is part of a device's name in the folder.
        uuid: String,
        /// Where attached disks appear; nothing: `/dev/disk/by-id`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        folder: Option<PathBuf>,
    },
}

impl fmt::Display for RestoreTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoreTo::File(file) => write!(f, "{}", file.display()),
            RestoreTo::NewDevice { uuid, .. } => write!(f, "the attached disk {uuid}"),
        }
    }
}

/// What a restored file is called until every block is in it, checked and durable.
pub fn unfinished_name(file: &Path, session: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{session}.unfinished"));
    name.into()
}

/// What a restore did: the report of its [`WorkReport::Done`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RestoreDone {
    /// Each disk.
    pub disks: Vec<DiskRestored>,
}

/// A disk that is whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskRestored {
    /// For a person.
    pub label: String,
    /// Where it is.
    pub to: RestoreTo,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Of these, written.
    pub written_bytes: u64,
    /// Of these, zeros: left as holes.
    pub zero_bytes: u64,
    /// Stored bytes that came from the repository.
    pub transferred_bytes: u64,
    /// Blocks whose content was checked against their ids before it was written.
    pub verified_blocks: u64,
    /// Wall time.
    pub seconds: f64,
    /// Which stage was the slowest.
    pub bottleneck: String,
    /// What each stage took.
    #[serde(default)]
    pub stages: Vec<StageNumbers>,
    /// What a person should know.
    pub notes: Vec<String>,
}

fn tasks_default() -> usize {
    4
}

fn reconnect_default() -> u64 {
    300
}

/// Live numbers of one disk, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskProgress {
    /// Name for a person.
    pub label: String,
    /// Done of what must be read.
    pub done_bytes: u64,
    /// What must be read, as far as is known.
    pub todo_bytes: u64,
    /// Read from the source.
    pub read_bytes: u64,
    /// Sent, compressed.
    pub sent_bytes: u64,
    /// Reads of the source that have ended.
    #[serde(default)]
    pub reads: u64,
    /// What they took together, in microseconds.
    #[serde(default)]
    pub reads_us: u64,
    /// For how many milliseconds the limit of the rate has held back what the whole work sends.
    #[serde(default)]
    pub held_back_ms: u64,
}

/// What a mover says about its work; `R` is the mover's whole report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkReport<R> {
    /// Every second.
    Progress {
        /// Each disk.
        disks: Vec<DiskProgress>,
    },
    /// The point is committed, or the part is kept.
    Done {
        /// As `gantry-mover backup --json` prints it.
        report: R,
    },
    /// Nothing was committed.
    Failed {
        /// Why.
        failure: Failure,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_work_are_read_and_nothing_else() {
        let disk = r#"{"disk":1,"identity":"i","label":"l","to":{"file":"/r/d.raw"}}"#;
        let restore = format!(
            r#"{{"restore":{{"name":"vm","point":"00","repository":{{"address":"/r"}},"session":"11","disks":[{disk}]}}}}"#
        );
        let Work::Restore(work) = Work::from_json(restore.as_bytes()).unwrap() else {
            panic!("a restore")
        };
        assert_eq!((work.disks[0].disk, work.reconnect_seconds), (1, 300));
        let again = Work::from_json(&work.to_json().unwrap()).unwrap();
        assert_eq!(again, Work::Restore(work));
        let attached = disk.replace(r#"{"file":"/r/d.raw"}"#, r#"{"new_device":{"uuid":"6000"}}"#);
        let attached = Work::from_json(restore.replace(disk, &attached).as_bytes()).unwrap();
        let Work::Restore(attached) = attached else { panic!("a restore") };
        let to = RestoreTo::NewDevice { uuid: "6000".into(), folder: None };
        assert_eq!(
            (&attached.disks[0].to, to.to_string().as_str()),
            (&to, "the attached disk 6000")
        );
        let backup = r#"{"name":"vm","repository":{"address":"/r"},"disks":[],"snapshot":"s"}"#;
        assert!(matches!(Work::from_json(backup.as_bytes()).unwrap(), Work::Backup(_)));
        let both = format!("{},{}", &restore[..restore.len() - 1], &backup[1..]);
        for bad in ["{}", "[]", r#"{"restore":{}}"#, both.as_str()] {
            assert!(Work::from_json(bad.as_bytes()).is_err(), "{bad}");
        }
        let file = unfinished_name(Path::new("/r/d.raw"), "11");
        assert_eq!(file, Path::new("/r/d.raw.11.unfinished"));
    }
}
