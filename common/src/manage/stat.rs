//! What a repository holds: the figures of `repo stat`.
//!
//! In: nothing. Out: plain data.

use serde::{Deserialize, Serialize};

/// An unfinished backup whose progress is kept, and which pins what it refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The VM's name.
    pub name: String,
    /// Its session.
    pub session: String,
    /// Disks of which there is progress.
    pub disks: u32,
    /// When it began, milliseconds since 1970.
    pub created_ms: u64,
}

/// What a repository holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatReport {
    /// Its id.
    pub repository: String,
    /// Names with points.
    pub names: u64,
    /// Restore points.
    pub points: u64,
    /// Of them, protected ones.
    pub points_protected: u64,
    /// Points deleted since the last collection.
    pub points_deleted: u64,
    /// Bytes of all disks of all points: what restoring everything would give.
    pub bytes_protected: u64,
    /// Pack files.
    pub packs: u64,
    /// Blocks in them.
    pub blocks: u64,
    /// Map nodes in them.
    pub nodes: u64,
    /// Bytes of the pack files, without what collections gave back.
    pub bytes_stored: u64,
    /// Bytes of their blocks when decoded.
    pub bytes_raw: u64,
    /// Bytes within pack files that collections gave back to the file system.
    pub bytes_holes: u64,
    /// Of `bytes_protected`, those in blocks that are not zeros (of unchanged blocks: all).
    pub bytes_content: u64,
    /// Bytes that the deleted points' runs had added: about what a collection may give back.
    pub bytes_deleted: u64,
    /// Bytes of dead records that the last collection left where they are.
    pub bytes_dead_left: u64,
    /// When the last collection ended, milliseconds since 1970; 0: not known.
    pub collected_ms: u64,
    /// Packs that no verification has read whole.
    pub packs_unchecked: u64,
    /// When the pack was read whole that was so the longest ago, milliseconds since 1970; 0: none was.
    pub checked_oldest_ms: u64,
    /// The same, the latest.
    pub checked_newest_ms: u64,
    /// Damage is known of, or may be there: a verification is due.
    pub suspect: bool,
    /// Bytes free on the file system.
    pub bytes_free: u64,
    /// Unfinished backups that pin what they refer to.
    pub unfinished: Vec<Unfinished>,
    /// For a person.
    pub notes: Vec<String>,
}
