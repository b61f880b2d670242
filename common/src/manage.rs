//! Looking after a repository, also from another host: requests, their options and reports.
//!
//! In: what an administrator asks. Out: what the repository did, for a table or JSON. Invariant:
//! plain data; lists in reports are bounded by [`LISTED_MAX`], what is beyond is only counted.

use serde::{Deserialize, Serialize};

use crate::extents::Run;
use crate::ids::PointId;

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
}

/// Flags of a restore point, kept in its manifest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PointFlags(pub u32);

impl PointFlags {
    /// Neither deleted by hand nor by retention.
    pub const PROTECTED: PointFlags = PointFlags(1);
    /// The first of its ISO week (UTC) when it was made.
    pub const WEEKLY: PointFlags = PointFlags(2);
    /// The first of its month.
    pub const MONTHLY: PointFlags = PointFlags(4);
    /// The first of its year.
    pub const YEARLY: PointFlags = PointFlags(8);

    /// Whether all of `wanted` are set.
    pub fn has(self, wanted: PointFlags) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// With these set, or not set.
    #[must_use]
    pub fn with(self, flags: PointFlags, set: bool) -> PointFlags {
        PointFlags(if set { self.0 | flags.0 } else { self.0 & !flags.0 })
    }

    /// The names of those that are set.
    pub fn names(self) -> Vec<&'static str> {
        let all = [
            (PointFlags::PROTECTED, "protected"),
            (PointFlags::WEEKLY, "weekly"),
            (PointFlags::MONTHLY, "monthly"),
            (PointFlags::YEARLY, "yearly"),
        ];
        all.into_iter().filter(|(flag, _)| self.has(*flag)).map(|(_, name)| name).collect()
    }
}

/// Which points of a VM to keep. A point goes only if no rule keeps it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// Points younger than this many days stay.
    pub days: u32,
    /// At least this many of the newest points stay, whatever their age; 0 counts as 1.
    pub points_min: u32,
    /// The first point of a week, month, year (UTC) is flagged when it is made, and stays while it
    /// is among this many newest ones with that flag.
    pub weekly: u32,
    /// As `weekly`, by month.
    pub monthly: u32,
    /// As `weekly`, by year.
    pub yearly: u32,
}

impl Retention {
    /// Whether any rule is there. Without one only the newest point would stay.
    pub fn has_rule(&self) -> bool {
        *self != Retention::default()
    }
}

/// Why retention keeps a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KeepReason {
    /// Its manifest cannot be read, so nothing is known of it.
    Unreadable,
    /// It is protected.
    Protected,
    /// It is among the newest that stay whatever their age.
    Newest,
    /// It is young enough.
    Days,
    /// It stands for its week.
    Weekly,
    /// It stands for its month.
    Monthly,
    /// It stands for its year.
    Yearly,
}

impl KeepReason {
    /// For a person.
    pub fn text(self) -> &'static str {
        match self {
            KeepReason::Unreadable => "cannot be read",
            KeepReason::Protected => "protected",
            KeepReason::Newest => "newest",
            KeepReason::Days => "days",
            KeepReason::Weekly => "weekly",
            KeepReason::Monthly => "monthly",
            KeepReason::Yearly => "yearly",
        }
    }
}

/// What retention decides about a point: it goes if no reason keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The VM's name.
    pub name: String,
    /// The point.
    pub point: PointId,
    /// Its flags, as far as they are known.
    pub flags: PointFlags,
    /// Why it stays.
    pub keep: Vec<KeepReason>,
}

/// What an application of retention did (or would do).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Points looked at, oldest first within a name; the first [`LISTED_MAX`].
    pub decisions: Vec<Decision>,
    /// Points deleted; undoable until the next collection.
    pub points_deleted: u64,
    /// Points that stay.
    pub points_kept: u64,
    /// For a person.
    pub notes: Vec<String>,
}

/// What deleting, undeleting or protecting points did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointsReport {
    /// Points that are as asked now, and were not before.
    pub changed: Vec<PointId>,
    /// Points that were so already.
    pub unchanged: Vec<PointId>,
    /// For a person.
    pub notes: Vec<String>,
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
