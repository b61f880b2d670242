//! Looking after a repository, also from another host: requests, their options and reports.
//!
//! In: what an administrator asks. Out: what the repository did, for a table or JSON. Invariant:
//! plain data; lists in reports are bounded by [`LISTED_MAX`], what is beyond is only counted.

use serde::{Deserialize, Serialize};

use crate::extents::Run;
use crate::ids::PointId;
use crate::limits;

mod points;
mod stat;

pub use self::points::{Decision, KeepReason, PointFlags, PointsReport, PruneReport, Retention};
pub use self::stat::{StatReport, Unfinished};

/// Entries of a list in a report; more are only counted.
pub const LISTED_MAX: usize = 10_000;

/// What is asked of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManageRequest {
    /// Takes points out of every list; undoable until the next collection.
    DeletePoints {
        /// The VM's name.
        name: String,
        /// The points.
        points: Vec<PointId>,
        /// Also if the name then has no point left.
        last_too: bool,
    },
    /// Brings deleted points back; all of the name that still can be if none is given.
    UndeletePoints {
        /// The VM's name.
        name: String,
        /// The points.
        points: Vec<PointId>,
    },
    /// Protects points from deleting and retention, or ends that.
    ProtectPoints {
        /// The VM's name.
        name: String,
        /// The points.
        points: Vec<PointId>,
        /// Whether they are to be protected.
        protect: bool,
    },
    /// Applies retention to a name, or to all names.
    Prune {
        /// The VM's name; all if nothing.
        name: Option<String>,
        /// What to keep.
        retention: Retention,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Gives back what no restore point needs.
    Collect(CollectOptions),
    /// Reads and checks packs and trees.
    Verify(VerifyOptions),
    /// Counts what there is.
    Stat,
    /// Gives up what unfinished sessions of a VM, parts above all, brought and kept; those that run
    /// go on. The next collection gives it back.
    Abandon {
        /// The VM's name.
        name: String,
        /// The frozen state, as its sessions named it; nothing: every one.
        snapshot: Option<String>,
    },
}

impl ManageRequest {
    /// The VM that it is about; nothing if it is about all.
    pub fn name(&self) -> Option<&str> {
        match self {
            ManageRequest::DeletePoints { name, .. }
            | ManageRequest::UndeletePoints { name, .. }
            | ManageRequest::ProtectPoints { name, .. }
            | ManageRequest::Abandon { name, .. } => Some(name),
            ManageRequest::Prune { name, .. } => name.as_deref(),
            ManageRequest::Collect(_) | ManageRequest::Verify(_) | ManageRequest::Stat => None,
        }
    }
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManageReport {
    /// Of deleting, undeleting, protecting.
    Points(PointsReport),
    /// Of retention.
    Prune(PruneReport),
    /// Of a collection.
    Collect(CollectReport),
    /// Of a verification.
    Verify(VerifyReport),
    /// Of counting.
    Stat(StatReport),
    /// Of giving up.
    Abandoned {
        /// Disks whose progress was given up.
        disks: u64,
    },
}

impl ManageReport {
    /// Its bytes on the wire: at most [`limits::MANAGE_REPORT_BYTES_MAX`]. Lists are shortened until
    /// it fits; a note says so.
    pub fn encode(mut self) -> Vec<u8> {
        let mut bytes = postcard::to_stdvec(&self).expect("reports always encode");
        let mut listed = LISTED_MAX;
        while bytes.len() > limits::MANAGE_REPORT_BYTES_MAX {
            listed /= 2;
            self.shorten(listed);
            bytes = postcard::to_stdvec(&self).expect("reports always encode");
        }
        bytes
    }

    /// Reads it; nothing if it is no report.
    pub fn decode(bytes: &[u8]) -> Option<ManageReport> {
        match postcard::take_from_bytes(bytes) {
            Ok((report, [])) => Some(report),
            _ => None,
        }
    }

    fn shorten(&mut self, listed: usize) {
        let note = format!("lists are cut to {listed} entries: the report would be too long");
        let notes = match self {
            ManageReport::Points(report) => &mut report.notes,
            ManageReport::Prune(report) => {
                report.decisions.truncate(listed);
                &mut report.notes
            }
            ManageReport::Collect(report) => &mut report.notes,
            ManageReport::Verify(report) => {
                report.damaged.truncate(listed);
                report.hits.truncate(listed);
                report.hits.iter_mut().for_each(|hit| hit.runs.truncate(listed));
                &mut report.notes
            }
            ManageReport::Stat(report) => {
                report.unfinished.truncate(listed);
                &mut report.notes
            }
            ManageReport::Abandoned { .. } => return,
        };
        notes.truncate(listed);
        notes.push(note);
    }
}

/// How to collect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectOptions {
    /// Only say what would be given back.
    pub dry_run: bool,
    /// Bytes of live records that may be copied to empty mostly dead packs; nothing means a tenth
    /// of what is stored.
    pub rewrite_bytes_max: Option<u64>,
    /// Also give up progress of backups that nobody works on; they can then not be resumed.
    pub abandon_unfinished: bool,
}

/// What a collection did (or would do).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Restore points whose content is live.
    pub points_live: u64,
    /// Deleted points that are gone for good now.
    pub points_purged: u64,
    /// Unfinished backups whose progress is live.
    pub unfinished: u64,
    /// Map nodes visited, each once.
    pub nodes_visited: u64,
    /// Records that are live.
    pub records_live: u64,
    /// Records that were given up.
    pub records_dead: u64,
    /// Packs removed whole.
    pub packs_removed: u64,
    /// Packs in which holes were made.
    pub packs_punched: u64,
    /// Packs whose live records moved to a new pack.
    pub packs_rewritten: u64,
    /// Bytes of live records copied for that.
    pub bytes_rewritten: u64,
    /// Bytes given back to the file system.
    pub bytes_freed: u64,
    /// Bytes of dead records that stay, because moving their neighbours is not worth it.
    pub bytes_dead_left: u64,
    /// Milliseconds of marking and of giving back.
    pub ms_mark: u64,
    /// See `ms_mark`.
    pub ms_sweep: u64,
    /// For a person.
    pub notes: Vec<String>,
}

/// What to verify.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyOptions {
    /// Share of the stored bytes to read, percent, oldest-checked packs first; 100: everything.
    pub percent: u8,
    /// Checks stored checksums only, without decoding: needs no key, and half the CPU.
    pub checksums_only: bool,
    /// Bytes of packs read a second; nothing: unlimited.
    pub rate: Option<u64>,
}

/// A damaged place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// File.
    pub file: String,
    /// Byte in it.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

/// What the damage means for a disk of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hit {
    /// VM name.
    pub name: String,
    /// The point.
    pub point: String,
    /// The disk's label.
    pub disk: String,
    /// Blocks that cannot be restored.
    pub blocks_lost: u64,
    /// Where they are, as far as listed.
    pub runs: Vec<Run>,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Every pack was read.
    pub complete: bool,
    /// Packs read.
    pub packs: u64,
    /// Records read, decoded and found right.
    pub records_good: u64,
    /// Bytes read from packs.
    pub bytes_read: u64,
    /// Points whose trees were walked.
    pub points: u64,
    /// Map nodes walked.
    pub nodes: u64,
    /// Damaged places found.
    pub damages: u64,
    /// The first of them.
    pub damaged: Vec<Damage>,
    /// Disks of points that they hit.
    pub hits: Vec<Hit>,
    /// Index entries that differ from the packs: run repo rebuild-index.
    pub index_wrong: u64,
    /// For a person.
    pub notes: Vec<String>,
}

impl VerifyReport {
    /// Whether nothing at all is wrong.
    pub fn is_clean(&self) -> bool {
        self.damages == 0 && self.hits.is_empty() && self.index_wrong == 0
    }

    /// Notes a damaged place.
    pub fn damage(&mut self, file: &str, offset: u64, what: impl ToString) {
        self.damages += 1;
        if self.damaged.len() < LISTED_MAX {
            let what = what.to_string();
            self.damaged.push(Damage { file: file.to_owned(), offset, what });
        }
    }
}

impl Default for VerifyOptions {
    fn default() -> VerifyOptions {
        VerifyOptions { percent: 100, checksums_only: false, rate: None }
    }
}

/// What a repair did (or would do), and what it could not save.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Copies of the superblock that were written anew.
    pub superblocks_written: u64,
    /// Packs whose header or footer was written anew from their records.
    pub packs_sealed: u64,
    /// The index was built anew from the packs.
    pub index_rebuilt: bool,
    /// Manifests, or copies of them, that were written anew from the other one.
    pub manifests_restored: u64,
    /// Manifests of which neither copy can be read: renamed to `.damaged`.
    pub manifests_set_aside: Vec<String>,
    /// Lost map nodes that were built again from records, and proven by their ids.
    pub nodes_rebuilt: u64,
    /// Lost map nodes that could not be: a collection no longer waits for them.
    pub nodes_given_up: u64,
    /// Records read and found right.
    pub records_good: u64,
    /// Damaged places found.
    pub damages: u64,
    /// The first of them.
    pub damaged: Vec<Damage>,
    /// Disks of points that stay hit.
    pub hits: Vec<Hit>,
    /// For a person.
    pub notes: Vec<String>,
}

impl RepairReport {
    /// Whether every point can be restored whole.
    pub fn is_whole(&self) -> bool {
        self.hits.is_empty() && self.manifests_set_aside.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_is_too_long_is_shortened_and_says_so() {
        let hit = Hit {
            name: "n".repeat(500),
            point: "p".into(),
            disk: "d".into(),
            blocks_lost: 1,
            runs: vec![Run { first: u64::MAX, count: u64::MAX }; LISTED_MAX],
        };
        let report = VerifyReport { hits: vec![hit; 300], ..VerifyReport::default() };
        let bytes = ManageReport::Verify(report).encode();
        assert!(bytes.len() <= limits::MANAGE_REPORT_BYTES_MAX);
        let Some(ManageReport::Verify(read)) = ManageReport::decode(&bytes) else {
            panic!("it reads")
        };
        assert!(!read.hits.is_empty() && read.notes[0].contains("cut to"), "{:?}", read.notes);
        assert!(!read.is_clean());
        assert_eq!(ManageReport::decode(&[bytes, vec![0]].concat()), None);
    }

    #[test]
    fn random_bytes_are_no_report_and_no_panic() {
        for seed in 0..5_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let bytes: Vec<u8> = (0..random.usize(0..100)).map(|_| random.u8(..)).collect();
            let _ = ManageReport::decode(&bytes);
        }
    }
}
