//! Names in a repository's folder, and the numbers that its formats share.
//!
//! In: pack numbers, session ids, VM names. Out: relative paths. Invariant: every name is ASCII,
//! free of `/` from outside, and at most 255 bytes long.

use std::fmt;

use gantry_common::ids::{PointId, SessionId};
use gantry_common::wire::TaskNumber;
use serde::{Deserialize, Serialize};

/// Version of every structure of the repository.
pub const FORMAT_VERSION: u16 = 1;
/// Records, footers and headers stand on multiples of this many bytes.
pub const ALIGN: u64 = 4096;

/// The superblock and its copies.
pub const SUPERBLOCKS: [&str; 3] = ["superblock", "superblock.1", "superblock.2"];
/// The lock file.
pub const LOCK: &str = "lock";
/// The epoch file.
pub const EPOCH: &str = "epoch";
/// What a collection is about to change.
pub const COLLECT_INTENT: &str = "collect.intent";
/// Space held back for collections on a full file system.
pub const BALLAST: &str = "ballast";
/// Folder of packs.
pub const PACKS: &str = "packs";
/// Folder of the index.
pub const INDEX_DIR: &str = "index";
/// The index.
pub const INDEX: &str = "index/index.redb";
/// Folder of task journals.
pub const JOURNALS: &str = "journal";
/// Folder of restore points.
pub const POINTS: &str = "points";

/// Number of a pack: the writer's epoch in the upper half, a counter in the lower, so that no
/// number is ever used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PackNumber(pub u64);

impl PackNumber {
    /// The `count`th pack of an epoch.
    pub fn new(epoch: u32, count: u32) -> PackNumber {
        PackNumber(u64::from(epoch) << 32 | u64::from(count))
    }

    /// Epoch of its writer.
    pub fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The folder that it stands in.
    pub fn dir(self) -> String {
        format!("{PACKS}/{:02x}", self.0 & 0xff)
    }

    /// Its file.
    pub fn path(self) -> String {
        format!("{}/{self}.pack", self.dir())
    }

    /// Reads the number from a file name.
    pub fn from_file_name(name: &str) -> Option<PackNumber> {
        let digits = name.strip_suffix(".pack")?;
        let number = u64::from_str_radix(digits, 16).ok().map(PackNumber)?;
        (number.to_string() == digits).then_some(number)
    }
}

impl fmt::Display for PackNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for PackNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackNumber({self})")
    }
}

/// The journal of a task.
pub fn journal_path(session: SessionId, task: TaskNumber) -> String {
    format!("{JOURNALS}/{session}-{task:05}.journal")
}

/// Longest escaped name that stands as it is; longer ones are cut and given a digest.
const ESCAPED_BYTES_MAX: usize = 200;

/// The folder name of a VM: letters, digits, `.`, `_`, `-` as they are (but no leading dot), other
/// bytes as `%xx`. Names too long for a file system end in `~` and a digest of the whole.
pub fn escape_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (position, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric()
            || matches!(byte, b'_' | b'-')
            || (byte == b'.' && position > 0);
        if plain {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02x}"));
        }
    }
    if out.len() > ESCAPED_BYTES_MAX {
        let digest = blake3::hash(name.as_bytes()).to_hex();
        out.truncate(ESCAPED_BYTES_MAX - 40);
        out.push('~');
        out.push_str(&digest[..32]);
    }
    out
}

/// The folder of a VM's points.
pub fn points_dir(name: &str) -> String {
    format!("{POINTS}/{}", escape_name(name))
}

/// What the file of a point is; each point has one of the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointFile {
    /// The manifest: the point exists.
    Manifest,
    /// The manifest of a deleted point until the next collection: the same file, renamed.
    Deleted,
    /// The manifest's bytes once more. Without one of the others it means nothing.
    Copy,
}

impl PointFile {
    /// Ending of the file's name.
    pub fn ending(self) -> &'static str {
        match self {
            PointFile::Manifest => ".manifest",
            PointFile::Deleted => ".deleted",
            PointFile::Copy => ".copy",
        }
    }

    /// The file of a point in the folder of its VM.
    pub fn path(self, dir: &str, point: PointId) -> String {
        format!("{dir}/{point}{}", self.ending())
    }
}

/// A point's manifest.
pub fn manifest_path(name: &str, point: PointId) -> String {
    PointFile::Manifest.path(&points_dir(name), point)
}

/// The manifest of a deleted point until the next collection: the same file, renamed.
pub fn deleted_path(name: &str, point: PointId) -> String {
    PointFile::Deleted.path(&points_dir(name), point)
}

/// The second copy of a point's manifest.
pub fn copy_path(name: &str, point: PointId) -> String {
    PointFile::Copy.path(&points_dir(name), point)
}

#[cfg(test)]
mod tests {
    use super::{PackNumber, escape_name};

    #[test]
    fn names_are_escaped_without_collision() {
        assert_eq!(escape_name("web-01.example"), "web-01.example");
        assert_eq!(escape_name("../ü b"), "%2e.%2f%c3%bc%20b");
        assert_ne!(escape_name("%2e"), escape_name("."));
        let long =
            ["x".repeat(512), format!("{}y", "x".repeat(511))].map(|name| escape_name(&name));
        assert!(long[0] != long[1] && long.iter().all(|name| name.len() < 255));
    }

    #[test]
    fn pack_names_parse_back() {
        let number = PackNumber::new(7, 0x1234);
        assert_eq!(number.path(), "packs/34/0000000700001234.pack");
        assert_eq!(PackNumber::from_file_name("0000000700001234.pack"), Some(number));
        for bad in ["700001234.pack", "0000000700001234", "000000070000123G.pack"] {
            assert_eq!(PackNumber::from_file_name(bad), None);
        }
    }
}
