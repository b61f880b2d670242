//! GUID partition tables of the images.
//!
//! In: sizes. Out: an image file with a table, the same bytes every time. All figures in bytes.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use crate::shell;

/// Partitions begin at multiples of this.
pub const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// A byte range of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl Region {
    /// A region given in MiB.
    pub const fn mib(start: u64, length: u64) -> Region {
        Region { start: start * MIB, length: length * MIB }
    }
}

/// Partition types, by their well-known GUIDs (UEFI specification, systemd's and Microsoft's lists).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionType {
    /// A Linux file system.
    LinuxData,
    /// Linux swap.
    LinuxSwap,
    /// Microsoft's reserved partition, empty by definition.
    WindowsReserved,
    /// A Windows file system.
    WindowsData,
}

impl PartitionType {
    const fn guid(self) -> &'static str {
        match self {
            PartitionType::LinuxData => "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
            PartitionType::LinuxSwap => "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
            PartitionType::WindowsReserved => "E3C9E316-0B5C-4DB8-817D-F92DF00215AE",
            PartitionType::WindowsData => "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
        }
    }
}

/// A made-up UUID that is the same for the same image and number.
pub fn fixed_uuid(image: &str, number: usize) -> String {
    let digest = blake3::hash(format!("gantry corpus {image} {number}").as_bytes()).to_hex();
    let (a, b) = (&digest[0..8], &digest[8..12]);
    format!("{a}-{b}-4{}-8{}-{}", &digest[13..16], &digest[17..20], &digest[20..32])
}

/// Creates an all-hole file of that size.
///
/// # Errors
/// When it exists already or the folder is not writable.
pub fn create_sparse(path: &Path, size: u64) -> Result<File> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(path);
    let file = file.with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(size)?;
    Ok(file)
}

/// Creates an image of `size` bytes with these partitions.
///
/// # Errors
/// When the file cannot be made or the partitions do not fit.
pub fn create_partitioned(
    path: &Path,
    image: &str,
    size: u64,
    partitions: &[(Region, PartitionType)],
) -> Result<()> {
    create_sparse(path, size)?;
    let mut script = format!("label: gpt\nlabel-id: {}\n", fixed_uuid(image, 0));
    for (number, (region, kind)) in partitions.iter().enumerate() {
        let (start, sectors) = (region.start / SECTOR, region.length / SECTOR);
        let uuid = fixed_uuid(image, number + 1);
        writeln!(script, "start={start}, size={sectors}, type={}, uuid={uuid}", kind.guid())?;
    }
    let mut command = shell::command("sfdisk");
    command.args(["--quiet", "--no-reread", "--no-tell-kernel"]).arg(path);
    shell::feed(&mut command, &script)
}

#[cfg(test)]
mod tests {
    use super::fixed_uuid;

    #[test]
    fn uuids_are_stable_distinct_and_well_formed() {
        let uuid = fixed_uuid("linux", 1);
        assert_eq!(uuid, fixed_uuid("linux", 1));
        assert_ne!(uuid, fixed_uuid("linux", 2));
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
    }
}
