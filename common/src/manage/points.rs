//! Restore points' flags, retention, and what came of changing them.
//!
//! In: nothing. Out: plain data; the bits of [`PointFlags`] stand in manifests.

use serde::{Deserialize, Serialize};

use crate::ids::PointId;

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
    /// Points looked at, oldest first within a name; the first [`super::LISTED_MAX`].
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
