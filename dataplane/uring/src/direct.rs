//! O_DIRECT: whether a file can be read and written past the page cache, and what alignment that
//! demands.
//!
//! In: a path, or an open file. Out: the file in the best mode with the reason if that is not
//! direct. Invariant: a file reported direct has passed a real read of one unit where it has bytes.
//! Must not: write.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_setfl, ioctl_blksszget, statx};
use rustix::io::{Errno, pread};

use crate::buffer::{BufferPool, SLOT_ALIGN};

/// What O_DIRECT demands when nothing better is known.
const ALIGN_DEFAULT: u32 = SLOT_ALIGN as u32;

/// How a file's data are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Whether O_DIRECT is on.
    pub direct: bool,
    /// Bytes to which file offsets and lengths must be aligned; 1 if not direct.
    pub offset_align: u32,
    /// Bytes to which memory must be aligned; 1 if not direct.
    pub memory_align: u32,
    /// Why it is not direct though asked for.
    pub note: Option<String>,
}

impl Access {
    fn buffered(note: Option<String>) -> Access {
        Access { direct: false, offset_align: 1, memory_align: 1, note }
    }
}

/// Opens `path` for reading only (O_RDONLY, O_CLOEXEC), with O_DIRECT if `direct` and possible.
/// Never hangs on a pipe without a writer. It opens whatever the path names: the caller checks the
/// kind of file.
pub fn open_read_only(path: &Path, direct: bool) -> io::Result<(File, Access)> {
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path)?;
    // Off again: in a ring a non-blocking file answers EAGAIN instead of waiting for the device.
    fcntl_setfl(&file, OFlags::empty())?;
    let access = if direct { enable_direct(&file)? } else { Access::buffered(None) };
    Ok((file, access))
}

/// Switches an open file (or block device) to O_DIRECT if it can, and says what came of it. Clears
/// its other status flags (append, non-blocking).
///
/// Fails only if the file's flags cannot be put back.
pub fn enable_direct(file: &File) -> io::Result<Access> {
    let (offset_align, memory_align) = match alignment(file) {
        Ok(aligns) => aligns,
        Err(note) => return Ok(Access::buffered(Some(note))),
    };
    let attempt = fcntl_setfl(file, OFlags::DIRECT).map_err(io::Error::from).and_then(|()| {
        match probe_read(file, offset_align.max(memory_align)) {
            // Not open for reading: there is nothing to probe with.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BADF) => Ok(()),
            other => other,
        }
    });
    match attempt {
        Ok(()) => Ok(Access { direct: true, offset_align, memory_align, note: None }),
        Err(error) => {
            fcntl_setfl(file, OFlags::empty())?;
            Ok(Access::buffered(Some(format!(
                "O_DIRECT does not work on this file or filesystem ({error}); the page cache is used"
            ))))
        }
    }
}

/// Alignment of offsets and of memory, or why there can be none.
fn alignment(file: &File) -> Result<(u32, u32), String> {
    let kind =
        file.metadata().map_err(|error| format!("its kind is unknown: {error}"))?.file_type();
    let told = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .ok()
        .filter(|stat| stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0)
        .map(|stat| (stat.stx_dio_offset_align, stat.stx_dio_mem_align));
    let sector = || ioctl_blksszget(file).unwrap_or(ALIGN_DEFAULT);
    let (offset, memory) = match told {
        Some((0, _) | (_, 0)) if kind.is_file() => {
            return Err("this filesystem says that it cannot do O_DIRECT on this file".to_owned());
        }
        Some((offset, memory)) if offset > 0 && memory > 0 => (offset, memory),
        _ if kind.is_block_device() => (sector(), sector()),
        _ => (ALIGN_DEFAULT, ALIGN_DEFAULT),
    };
    let fits = |align: u32| align.is_power_of_two() && align <= ALIGN_DEFAULT;
    if fits(offset) && fits(memory) {
        Ok((offset, memory))
    } else {
        Err(format!("it demands an alignment of {offset} and {memory} bytes, ours is {SLOT_ALIGN}"))
    }
}

/// Reads the first unit: some filesystems take the flag and refuse the reads.
fn probe_read(file: &File, bytes: u32) -> io::Result<()> {
    let pool = BufferPool::new(1, bytes as usize)?;
    let Some(mut buf) = pool.try_take() else { return Ok(()) };
    loop {
        match pread(file, &mut buf[..bytes as usize], 0) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{enable_direct, open_read_only};
    use rustix::fs::{OFlags, fcntl_getfl};
    use std::fs::File;
    use std::path::Path;

    #[test]
    fn a_regular_file_is_direct_or_says_why_not() {
        let named = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(named.path(), [1u8; 10_000]).unwrap();
        let (file, access) = open_read_only(named.path(), true).unwrap();
        let flags = fcntl_getfl(&file).unwrap();
        assert_eq!(flags.contains(OFlags::DIRECT), access.direct);
        assert_eq!(access.direct, access.note.is_none());
        assert!(!flags.intersects(OFlags::NONBLOCK | OFlags::WRONLY | OFlags::RDWR));
        if access.direct {
            assert!(access.offset_align.is_power_of_two() && access.offset_align <= 4096);
        }
        let (file, access) = open_read_only(named.path(), false).unwrap();
        assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
        assert_eq!((access.direct, access.note, access.offset_align), (false, None, 1));
    }

    #[test]
    fn what_cannot_be_direct_falls_back_with_a_reason() {
        let (file, access) = open_read_only(Path::new("/proc/self/status"), true).unwrap();
        assert!(!access.direct && access.note.is_some(), "{access:?}");
        assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
    }

    #[test]
    fn a_file_open_for_writing_only_can_be_direct() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("pack")).unwrap();
        let access = enable_direct(&file).unwrap();
        assert_eq!(access.direct, access.note.is_none());
    }

    #[test]
    fn a_pipe_without_a_writer_does_not_hang() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let (_, access) = open_read_only(&path, true).unwrap();
        assert!(!access.direct);
    }
}
