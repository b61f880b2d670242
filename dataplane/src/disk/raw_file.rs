//! What is particular to a raw image file: its name, its times, its holes.
//!
//! In: an open file or its metadata. Out: identity, fingerprint, data extents. Invariant: every
//! byte outside the extents given reads as zero. Must not: write; trust an extent beyond the size.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use gantry_common::limits;
use rustix::fs::{SeekFrom, major, minor, seek};
use rustix::io::Errno;

use super::local::State;

/// The sector that an image file stands for.
pub(super) const SECTOR_BYTES: u32 = 512;

pub(super) fn state(metadata: &Metadata) -> State {
    State {
        size_bytes: metadata.size(),
        times: [
            (metadata.mtime(), metadata.mtime_nsec()),
            (metadata.ctime(), metadata.ctime_nsec()),
        ],
    }
}

/// `file:` and the canonical path; of a path that is too long or no UTF-8, its BLAKE3 instead.
pub(super) fn identity(path: &Path) -> io::Result<String> {
    let canonical = path.canonicalize()?;
    match canonical.to_str() {
        Some(text) if text.len() + "file:".len() <= limits::NAME_BYTES_MAX => {
            Ok(format!("file:{text}"))
        }
        _ => Ok(format!("file-blake3:{}", blake3::hash(canonical.as_os_str().as_bytes()))),
    }
}

pub(super) fn fingerprint(metadata: &Metadata) -> String {
    let State { size_bytes, times: [(mtime, mtime_ns), (ctime, ctime_ns)] } = state(metadata);
    format!(
        "file dev={}:{} ino={} size={size_bytes} mtime={mtime}.{mtime_ns:09} ctime={ctime}.{ctime_ns:09}",
        major(metadata.dev()),
        minor(metadata.dev()),
        metadata.ino(),
    )
}

/// See [`super::Disk::next_data`]; `offset` is below `size_bytes`.
pub(super) fn next_data(
    file: &File,
    offset: u64,
    size_bytes: u64,
) -> io::Result<Option<(u64, u64)>> {
    let start = match seek(file, SeekFrom::Data(offset)) {
        Ok(start) if start < offset => offset,
        Ok(start) if start < size_bytes => start,
        // Data beyond what the file had at opening, or none at all.
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        // This filesystem does not know its holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
            return Ok(Some((offset, size_bytes)));
        }
        Err(error) => return Err(error.into()),
    };
    let end = match seek(file, SeekFrom::Hole(start)) {
        Ok(end) if end > start => end.min(size_bytes),
        // No hole is known: the rest is data.
        _ => size_bytes,
    };
    Ok(Some((start, end)))
}
