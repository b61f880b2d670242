//! What is particular to a block device: its size, its sectors, the names it has for itself.
//!
//! In: an open device or its metadata. Out: size, sector size, identity, fingerprint.
//! Invariant: an identity is the same after a reboot if the device has a name of its own.
//! Must not: write, or issue any ioctl but those that read sizes.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gantry_common::limits;
use rustix::fs::{ioctl_blksszget, major, minor};

/// Attributes under a device's sysfs directory that name it wherever it is attached, best first,
/// with the prefix that says which it is.
const NAMES: [(&str, &str); 6] = [
    ("dm/uuid", "dm-uuid"),
    ("md/uuid", "md-uuid"),
    ("wwid", "wwid"),
    ("device/wwid", "wwid"),
    ("serial", "serial"),
    ("device/serial", "serial"),
];

/// Bytes of the device: where its end is.
pub(super) fn size_bytes(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

pub(super) fn sector_bytes(file: &File) -> io::Result<u32> {
    Ok(ioctl_blksszget(file)?)
}

/// The device's own name, else a by-id link's, else its numbers.
pub(super) fn identity(metadata: &Metadata) -> String {
    let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
    let numbers = format!("dev:{major}:{minor}");
    let directory = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
    let found = name_in(&directory).or_else(|| by_id(metadata.rdev()));
    found.filter(|name| name.len() <= limits::NAME_BYTES_MAX).unwrap_or(numbers)
}

/// What tells a device from another that is given its numbers later: its own name, else the number that
/// the kernel gave to this attachment, which is never given again before the next boot.
pub(crate) fn attached_name(metadata: &Metadata) -> Option<String> {
    let identity = identity(metadata);
    if !identity.starts_with("dev:") {
        return Some(identity);
    }
    let numbers = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
    let directory = Path::new("/sys/dev/block").join(numbers).canonicalize().ok()?;
    // A partition has the number of its disk, in whose directory its own is.
    let mut places = [Some(directory.as_path()), directory.parent()].into_iter().flatten();
    let sequence = places.find_map(|place| attribute(&place.join("diskseq")))?;
    let boot = attribute(Path::new("/proc/sys/kernel/random/boot_id"))?;
    Some(format!("diskseq:{boot}:{sequence}"))
}

/// The name in a sysfs directory; of a partition, its disk's name and its number.
fn name_in(directory: &Path) -> Option<String> {
    let Some(partition) = attribute(&directory.join("partition")) else {
        return NAMES.iter().find_map(|(file, prefix)| {
            attribute(&directory.join(file)).map(|name| format!("{prefix}:{name}"))
        });
    };
    // The directory's real place is inside that of the whole disk.
    let disk: PathBuf = directory.canonicalize().ok()?.parent()?.to_owned();
    NAMES.iter().find_map(|(file, prefix)| {
        attribute(&disk.join(file)).map(|name| format!("{prefix}:{name}:part{partition}"))
    })
}

/// A non-empty sysfs attribute, its runs of blanks made one.
fn attribute(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let words: Vec<&str> = text.split_whitespace().collect();
    Some(words.join(" ")).filter(|name| !name.is_empty() && !name.contains(char::is_control))
}

/// The first link in /dev/disk/by-id, in alphabetical order, that leads to the device.
fn by_id(rdev: u64) -> Option<String> {
    let leads_here = |path: &Path| std::fs::metadata(path).is_ok_and(|found| found.rdev() == rdev);
    let entries = std::fs::read_dir("/dev/disk/by-id").ok()?;
    entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| leads_here(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .min()
        .map(|name| format!("by-id:{name}"))
}

/// Never the same twice: nothing about a device tells whether it was written to.
pub(super) fn fingerprint(metadata: &Metadata, size_bytes: u64) -> io::Result<String> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(format!(
        "block rdev={}:{} size={size_bytes} opening={:032x}",
        major(metadata.rdev()),
        minor(metadata.rdev()),
        u128::from_le_bytes(random),
    ))
}

#[cfg(test)]
mod tests {
    use super::name_in;
    use std::fs;

    #[test]
    fn a_device_is_named_by_the_best_of_its_own_names() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("sda");
        let partition = disk.join("sda3");
        fs::create_dir_all(disk.join("device")).unwrap();
        fs::create_dir_all(&partition).unwrap();
        assert_eq!(name_in(&disk), None);
        fs::write(disk.join("serial"), " S3 \n").unwrap();
        assert_eq!(name_in(&disk).as_deref(), Some("serial:S3"));
        fs::write(disk.join("device/wwid"), "t10.ATA   QEMU  7\n").unwrap();
        assert_eq!(name_in(&disk).as_deref(), Some("wwid:t10.ATA QEMU 7"));
        fs::write(partition.join("partition"), "3\n").unwrap();
        assert_eq!(name_in(&partition).as_deref(), Some("wwid:t10.ATA QEMU 7:part3"));
        fs::write(disk.join("device/wwid"), "a\u{1}b\n").unwrap();
        fs::write(disk.join("serial"), "\n").unwrap();
        assert_eq!(name_in(&disk), None, "neither control characters nor nothing is a name");
    }
}
