//! The destination of a restore: what may be overwritten, and how it is opened.
//!
//! In: a path, the disk's size, what an earlier run left. Out: an open [`Target`]. Invariant: nothing
//! is overwritten that the person did not name and that is not ours, empty of use, and large enough.
//! Must not: write content.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gantry_common::failure::{Failure, FailureKind};
use gantry_uring::direct::enable_direct;
use rustix::fs::{FlockOperation, OFlags, flock, major, minor};

use super::resume::{Sidecar, TargetId};
use crate::disk::attached_name;

/// Where a restored disk goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A raw file with holes where the disk has zeros.
    SparseFile(PathBuf),
    /// An existing block device.
    BlockDevice(PathBuf),
    /// Standard output, in order.
    Stdout,
}

impl Destination {
    /// What `--to` means: `-`, the path of a block device, or of a file.
    pub fn of(to: &Path) -> Destination {
        let is_device =
            || std::fs::metadata(to).is_ok_and(|stat| stat.file_type().is_block_device());
        match to.as_os_str() == "-" {
            true => Destination::Stdout,
            false if is_device() => Destination::BlockDevice(to.to_owned()),
            false => Destination::SparseFile(to.to_owned()),
        }
    }
}

/// An open destination that takes blocks in any order.
#[derive(Debug)]
pub(super) struct Target {
    /// For messages.
    pub(super) path: PathBuf,
    /// Ours alone (locked, or exclusive): zeroing, syncing. Never given to a ring, because a ring
    /// lets go of its files some time after its end, and the next restore would find this one
    /// taken.
    pub(super) owned: File,
    /// Through the page cache, for odd tails.
    pub(super) buffered: File,
    /// Past it, if that is possible.
    pub(super) direct: Option<File>,
    /// Bytes to which direct writes must be aligned.
    pub(super) align: u32,
    /// Bytes of the disk.
    pub(super) size_bytes: u64,
    /// A block device, not a file.
    pub(super) is_device: bool,
    /// Everything that was never written reads as zeros.
    pub(super) is_fresh: bool,
    /// For a person: why not direct.
    pub(super) note: Option<String>,
}

pub(super) fn source_failure(path: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Source, format!("{}: {what}", path.display()))
}

fn usage(path: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Usage, format!("{}: {what}", path.display()))
}

/// Checks what stands at the destination before anything is asked of the repository.
///
/// `sidecar` is what an earlier run left there; `force` allows overwriting.
///
/// # Errors
/// `Usage`: it exists and may not be overwritten, or is no file or device.
pub(super) fn check_before(
    to: &Destination,
    sidecar: Option<&Sidecar>,
    force: bool,
) -> Result<(), Failure> {
    match to {
        Destination::Stdout => Ok(()),
        Destination::SparseFile(path) => match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(source_failure(path, error)),
            Ok(stat) if !stat.is_file() => Err(usage(path, "is neither a file nor a block device")),
            Ok(_) if force || sidecar.is_some() => Ok(()),
            Ok(_) => Err(usage(path, "exists: name another file, or overwrite it with --force")),
        },
        Destination::BlockDevice(path) => {
            let stat = std::fs::metadata(path).map_err(|error| source_failure(path, error))?;
            if !stat.file_type().is_block_device() {
                return Err(usage(path, "is no block device"));
            }
            if let Some(place) = mounted_at(stat.rdev()) {
                let text = format!("is mounted at {place}: unmount it first");
                return Err(usage(path, text));
            }
            match force || sidecar.is_some() {
                true => Ok(()),
                false => Err(usage(
                    path,
                    "everything on this device will be overwritten: confirm with --force",
                )),
            }
        }
    }
}

/// Where a device is mounted, if it is (proc(5), mountinfo).
fn mounted_at(device: u64) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let wanted = format!("{}:{}", major(device), minor(device));
    table.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == wanted).then(|| fields.nth(1).unwrap_or("?").to_owned())
    })
}

impl Target {
    /// Opens a file: the one that `resumed` continues, or a new or emptied one of `size_bytes`.
    ///
    /// # Errors
    /// `Usage` where somebody else uses it, `Source` where the system refuses.
    pub(super) fn open_file(
        path: &Path,
        size_bytes: u64,
        resumed: bool,
        force: bool,
    ) -> Result<Target, Failure> {
        let fail = |error: io::Error| source_failure(path, format!("cannot be opened: {error}"));
        let may_exist = resumed || force;
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match may_exist {
            true => options.create(true).truncate(false),
            false => options.create_new(true),
        };
        let file = options.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                usage(path, "exists: name another file, or overwrite it with --force")
            }
            _ => fail(error),
        })?;
        lock(&file, path)?;
        let size = |bytes| {
            let advice = "does not take the size of the disk: is the file system large enough?";
            let text = move |error| source_failure(path, format!("{advice} ({error})"));
            file.set_len(bytes).map_err(text)
        };
        if !resumed {
            size(0)?;
        }
        size(size_bytes)?;
        Target::finish(path, file, size_bytes, false, !resumed)
    }

    /// Opens a block device for this process alone; `is_fresh`: it reads as zeros but for what this
    /// restore has written.
    ///
    /// # Errors
    /// `Usage` where it is in use or too small, `Source` where the system refuses.
    pub(super) fn open_device(
        path: &Path,
        size_bytes: u64,
        is_fresh: bool,
    ) -> Result<Target, Failure> {
        let exclusive = i32::try_from(OFlags::EXCL.bits()).unwrap_or(0);
        let opened = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path);
        let mut file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => usage(
                path,
                "is in use (mounted, swap, LVM, RAID, or open exclusively): release it first",
            ),
            _ => source_failure(path, format!("cannot be opened: {error}")),
        })?;
        let has = file.seek(SeekFrom::End(0)).map_err(|error| source_failure(path, error))?;
        if has < size_bytes {
            let text = format!("has {has} bytes, the disk has {size_bytes}: use a larger device");
            return Err(usage(path, text));
        }
        Target::finish(path, file, size_bytes, true, is_fresh)
    }

    fn finish(
        path: &Path,
        owned: File,
        size_bytes: u64,
        is_device: bool,
        is_fresh: bool,
    ) -> Result<Target, Failure> {
        // The same file anew, whatever the path names by now: O_DIRECT, locks and exclusiveness
        // belong to an open file, not to a descriptor.
        let again = || {
            let same = format!("/proc/self/fd/{}", owned.as_raw_fd());
            OpenOptions::new().read(true).write(true).open(same)
        };
        let fail = |error: io::Error| source_failure(path, format!("cannot be reopened: {error}"));
        let (buffered, direct) = (again().map_err(fail)?, again().map_err(fail)?);
        let access = enable_direct(&direct).map_err(fail)?;
        let direct = access.direct.then_some(direct);
        let (path, align, note) = (path.to_owned(), access.offset_align, access.note);
        Ok(Target { path, owned, buffered, direct, align, size_bytes, is_device, is_fresh, note })
    }

    /// What tells this file or device from another.
    pub(super) fn id(&self) -> io::Result<TargetId> {
        let stat = self.owned.metadata()?;
        Ok(match self.is_device {
            true => TargetId { device: stat.rdev(), inode: 0, name: attached_name(&stat) },
            false => TargetId { device: stat.dev(), inode: stat.ino(), name: None },
        })
    }

    /// A failed write or sync, with what to do.
    pub(super) fn write_failure(&self, place: &str, error: &io::Error) -> Failure {
        let advice = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space there and run the same restore again: it goes on from here"
            }
            _ => "check the device (dmesg), then run the same restore again: it goes on from here",
        };
        source_failure(&self.path, format!("cannot {place}: {error}; {advice}"))
    }
}

fn lock(file: &File, path: &Path) -> Result<(), Failure> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(usage(path, "is locked by another process, perhaps another restore"))
        }
        // Some network file systems have no locks: the restore does not depend on them.
        Err(_) => Ok(()),
    }
}

/// Makes the names in the directory of `path` durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::{Destination, Target, check_before, mounted_at};
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    #[test]
    fn what_exists_is_not_overwritten_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let to = Destination::of(&path);
        check_before(&to, None, false).unwrap();
        std::fs::write(&path, b"precious").unwrap();
        let text = check_before(&to, None, false).unwrap_err().to_string();
        assert!(text.contains("exists") && text.contains("--force"), "{text}");
        assert!(Target::open_file(&path, 1 << 20, false, false).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        check_before(&to, None, true).unwrap();
        let target = Target::open_file(&path, 1 << 20, false, true).unwrap();
        let stat = target.owned.metadata().unwrap();
        assert_eq!((stat.len(), stat.blocks(), target.is_fresh), (1 << 20, 0, true));
        let text = Target::open_file(&path, 1 << 20, true, false).unwrap_err().to_string();
        assert!(text.contains("another restore"), "{text}");
        assert!(check_before(&Destination::of(dir.path()), None, true).is_err());
    }

    #[test]
    fn a_mounted_device_is_found() {
        let root = std::fs::metadata("/proc").unwrap().dev();
        assert_eq!(mounted_at(root).as_deref(), Some("/proc"));
        assert_eq!(mounted_at(u64::MAX), None);
        assert_eq!(Destination::of(Path::new("-")), Destination::Stdout);
    }
}
