//! What the file systems' readers have in common: ranges, reasons, refusals.
//!
//! In and out: plain data. A reader takes a [`crate::Disk`] (a volume) and gives ranges in bytes of
//! that volume; [`crate::View::on_disk`] leads back to the disk.

use serde::{Deserialize, Serialize};

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// Why a range need not be read. The numbers stand in restore points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u16)]
pub enum Reason {
    /// A Linux swap partition or swap file.
    Swap = 1,
    /// pagefile.sys, swapfile.sys.
    PageFile = 2,
    /// hiberfil.sys.
    Hibernation = 3,
    /// Free for the file system, in every state that it may be replayed to.
    Deleted = 4,
    /// Content of a file that the administrator excludes.
    Excluded = 5,
}

/// How the snapshot was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// The machine was off.
    Off,
    /// VMware Tools has quiesced the guest's file systems, and said so.
    Quiesced,
    /// As after a power cut.
    Crash,
}

/// What state a file system is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Unmounted, or frozen: what is on disk is what is true.
    Clean,
    /// By the hypervisor's word.
    Quiesced,
    /// The journal will be replayed, and its effect is known.
    Replayable,
    /// What is on disk may be wrong, because of this.
    Unsafe(String),
}

/// A filter is off for a volume, and everything in it is copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("{why}")]
pub struct Refused {
    /// Why, for the session's log.
    pub why: String,
}

impl Refused {
    /// Because of this.
    pub fn new(why: impl Into<String>) -> Refused {
        Refused { why: why.into() }
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Refused {
        Refused::new(format!("it cannot be read: {error}"))
    }
}

/// Whether a file is excluded, by its path within the volume: `/Users/ann/video.mkv`, with `/` on
/// every system and without a drive's letter.
pub trait FileMasks {
    /// Whether this file's content is excluded.
    fn excludes(&self, path: &str) -> bool;
    /// Whether something beneath this folder may be excluded; false saves a walk.
    fn may_exclude_beneath(&self, folder: &str) -> bool;
    /// The same where case does not matter (NTFS), if that differs.
    fn ignoring_case(&self) -> Option<&dyn FileMasks> {
        None
    }
}

/// A range that belongs to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRange {
    /// Bytes of the volume.
    pub range: Extent,
    /// Why it is named.
    pub reason: Reason,
    /// The file's path within the volume.
    pub path: String,
}

/// A file system that was recognised, opened and found plausible. All methods read the volume anew
/// through a bounded cache; ranges are in bytes of the volume, need no order, and are not rounded.
pub trait GuestFs {
    /// `ext4`, `xfs`, `ntfs`.
    fn kind(&self) -> &'static str;

    /// Label and UUID, for a person.
    fn identity(&self) -> String;

    /// What state it is in.
    fn consistency(&self) -> Consistency;

    /// Gives every range that is free now and after any replay of its journal.
    ///
    /// # Errors
    /// It is not provable which those are; what was given until then must not be used.
    fn free(&self, give: &mut dyn FnMut(Extent)) -> Result<(), Refused>;

    /// Gives ranges of page files, swap files and hibernation files that may be dropped; a file that
    /// may not is left out and `left_out` gets its path and why.
    ///
    /// # Errors
    /// As [`GuestFs::free`].
    fn system_files(
        &self,
        give: &mut dyn FnMut(FileRange),
        left_out: &mut dyn FnMut(&str, Refused),
    ) -> Result<(), Refused>;

    /// Gives data ranges of the files that `masks` exclude; as [`GuestFs::system_files`].
    ///
    /// # Errors
    /// As [`GuestFs::free`].
    fn excluded_files(
        &self,
        masks: &dyn FileMasks,
        give: &mut dyn FnMut(FileRange),
        left_out: &mut dyn FnMut(&str, Refused),
    ) -> Result<(), Refused>;

    /// Gives ranges that are certainly in use: the metadata that is read, and the content of sampled
    /// files (`seed` chooses). What a filter names must not touch them.
    ///
    /// # Errors
    /// As [`GuestFs::free`].
    fn in_use(&self, seed: u64, give: &mut dyn FnMut(Extent)) -> Result<(), Refused>;
}
