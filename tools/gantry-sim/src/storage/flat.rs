//! The flat extent of a base disk: `x-flat.vmdk`, the disk's bytes in order, holes where nothing was
//! ever written.
//!
//! In: offsets and bytes of the disk. Out: the same, and which parts the file system has allocated.
//! It must not know about chains or who may write.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom};

use super::error::{IoContext, Result, StorageError};

/// An open flat extent.
#[derive(Debug)]
pub(super) struct FlatExtent {
    file: File,
    path: PathBuf,
}

impl FlatExtent {
    pub(super) fn create(path: &Path, capacity_bytes: u64) -> Result<FlatExtent> {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.at("create", path)?;
        file.set_len(capacity_bytes).at("size", path)?;
        Ok(FlatExtent { file, path: path.to_owned() })
    }

    pub(super) fn open(path: &Path) -> Result<FlatExtent> {
        let file = OpenOptions::new().read(true).write(true).open(path).at("open", path)?;
        Ok(FlatExtent { file, path: path.to_owned() })
    }

    /// Fills `buf` from `offset`; what lies behind the end of the file reads as zeros.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        read_or_zeros(&self.file, offset, buf).at("read", &self.path)
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).at("write", &self.path)
    }

    /// Makes a range read as zeros and gives its space back, like an unmap of a thin disk.
    pub(super) fn punch(&self, offset: u64, length: u64) -> Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, how, offset, length).at("punch a hole in", &self.path)
    }

    pub(super) fn resize(&self, capacity_bytes: u64) -> Result<()> {
        self.file.set_len(capacity_bytes).at("size", &self.path)
    }

    /// Fills the extent from a raw image: by reflink where the file system can, else its data only.
    pub(super) fn import(&self, image: &Path) -> Result<()> {
        let source = File::open(image).at("open", image)?;
        let length = source.metadata().at("read", image)?.len();
        let capacity_bytes = self.file.metadata().at("read", &self.path)?.len();
        if length > capacity_bytes {
            return Err(StorageError::Invalid(format!(
                "image {} has {length} bytes, the disk only {capacity_bytes}",
                image.display()
            )));
        }
        if rustix::fs::ioctl_ficlone(&self.file, &source).is_err() {
            copy_data(&source, &self.file).at("copy", image)?;
        }
        self.file.set_len(capacity_bytes).at("size", &self.path)
    }

    /// The ranges that are not holes, in order, below `end`.
    pub(super) fn allocated(&self, end: u64) -> Result<Vec<Range<u64>>> {
        data_ranges(&self.file, end).at("find holes of", &self.path)
    }
}

/// The ranges of a file that are not holes, in order, below `end`.
pub(super) fn data_ranges(file: &File, end: u64) -> std::io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < end {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        if start >= end {
            break;
        }
        let hole = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(end);
        ranges.push(start..hole);
        at = hole;
    }
    Ok(ranges)
}

/// Copies what is not a hole, without passing it through this process where the kernel can.
fn copy_data(source: &File, target: &File) -> std::io::Result<()> {
    for range in data_ranges(source, source.metadata()?.len())? {
        let (mut from, mut to) = (range.start, range.start);
        while from < range.end {
            let left = (range.end - from) as usize;
            let n =
                rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), left)?;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(())
}

/// Reads a whole buffer; behind the end of the file are zeros.
pub(super) fn read_or_zeros(file: &File, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => {
                buf[done..].fill(0);
                return Ok(());
            }
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
