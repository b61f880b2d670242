//! Files with holes: where data lies, copies that keep or fill holes, what differs.
//!
//! In: files. Out: copies, changed extents, figures. Holes are never read: they count as zeros.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gantry_common::extents::Extent;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::layout::{MIB, Region};

/// Granularity of changed extents, as vSphere tracks them.
pub const CHANGE_BYTES: u64 = 64 << 10;
static ZEROS: [u8; MIB as usize] = [0; MIB as usize];

/// Whether all bytes are zero (a memcmp: as fast without optimisation as with it).
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|part| *part == ZEROS[..part.len()])
}

/// Opens for reading, with the path in the error.
///
/// # Errors
/// As `File::open`.
pub fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Opens for writing in place, with the path in the error.
///
/// # Errors
/// As `OpenOptions::open`.
pub fn open_write(path: &Path) -> Result<File> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

/// The file's data ranges in order; what lies between is holes.
///
/// # Errors
/// When the file system does not answer.
pub fn data_ranges(file: &File, region: Region) -> Result<Vec<Region>> {
    let end = region.start + region.length;
    let mut ranges = Vec::new();
    let mut at = region.start;
    while at < end {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        if start >= end {
            break;
        }
        let stop = seek(file, SeekFrom::Hole(start))?.min(end);
        ranges.push(Region { start, length: stop - start });
        at = stop;
    }
    Ok(ranges)
}

/// Copies a region of a file to a place in another: data only, and of it only what is not zero.
/// The target region must be all holes or the copy be meant to lie over it.
///
/// # Errors
/// When reading or writing fails.
pub fn copy_region(from: &File, region: Region, to: &File, to_start: u64) -> Result<()> {
    let mut buffer = vec![0; MIB as usize];
    for range in data_ranges(from, region)? {
        let mut at = range.start;
        while at < range.start + range.length {
            let length = (range.start + range.length - at).min(MIB) as usize;
            let bytes = &mut buffer[..length];
            from.read_exact_at(bytes, at)?;
            for (number, page) in bytes.chunks(4096).enumerate() {
                if !is_zero(page) {
                    let offset = at - region.start + number as u64 * 4096;
                    to.write_all_at(page, to_start + offset)?;
                }
            }
            at += length as u64;
        }
    }
    Ok(())
}

/// Copies a whole file, holes staying holes, by the kernel where the file system shares extents.
///
/// # Errors
/// When reading or writing fails.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let mut command = crate::shell::command("cp");
    command.args(["--sparse=auto", "--reflink=auto"]).arg(from).arg(to);
    crate::shell::output(&mut command).map(drop)
}

/// Copies a whole file so that every block is allocated and written, zeros too.
///
/// # Errors
/// When reading or writing fails.
pub fn copy_full(from: &Path, to: &Path) -> Result<()> {
    let mut command = crate::shell::command("cp");
    command.args(["--sparse=never", "--reflink=never"]).arg(from).arg(to);
    crate::shell::output(&mut command).map(drop)
}

/// The extents, at [`CHANGE_BYTES`] granularity and merged, in which the two files differ.
///
/// # Errors
/// When the sizes differ or reading fails.
pub fn changed_extents(before: &Path, after: &Path) -> Result<Vec<Extent>> {
    let (before, after) = (open(before)?, open(after)?);
    let size = before.metadata()?.len();
    ensure!(size == after.metadata()?.len(), "the two versions differ in size");
    let whole = Region { start: 0, length: size };
    let mut chunks = touched_chunks(&data_ranges(&before, whole)?);
    chunks.extend(touched_chunks(&data_ranges(&after, whole)?));
    chunks.sort_unstable();
    chunks.dedup();
    let mut extents: Vec<Extent> = Vec::new();
    let (mut old, mut new) = (vec![0; CHANGE_BYTES as usize], vec![0; CHANGE_BYTES as usize]);
    for chunk in chunks {
        let start = chunk * CHANGE_BYTES;
        let length = CHANGE_BYTES.min(size - start);
        before.read_exact_at(&mut old[..length as usize], start)?;
        after.read_exact_at(&mut new[..length as usize], start)?;
        if old[..length as usize] == new[..length as usize] {
            continue;
        }
        match extents.last_mut() {
            Some(last) if last.start + last.length == start => last.length += length,
            _ => extents.push(Extent { start, length }),
        }
    }
    Ok(extents)
}

fn touched_chunks(ranges: &[Region]) -> Vec<u64> {
    let chunks = |range: &Region| {
        range.start / CHANGE_BYTES..(range.start + range.length).div_ceil(CHANGE_BYTES)
    };
    ranges.iter().flat_map(chunks).collect()
}

/// Figures of one file.
pub struct Figures {
    /// What it takes on this machine's disk.
    pub allocated_bytes: u64,
    /// Bytes in 1 MiB blocks that hold something.
    pub nonzero_block_bytes: u64,
    /// Bytes in 4 KiB pages that hold something.
    pub nonzero_page_bytes: u64,
    /// BLAKE3-256 of the whole content, holes as zeros.
    pub blake3: String,
}

/// Reads the whole file once (but no hole).
///
/// # Errors
/// When reading fails.
pub fn figures(path: &Path) -> Result<Figures> {
    let file = open(path)?;
    let size = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    let mut figures = Figures {
        allocated_bytes: file.metadata()?.blocks() * 512,
        nonzero_block_bytes: 0,
        nonzero_page_bytes: 0,
        blake3: String::new(),
    };
    let ranges = data_ranges(&file, Region { start: 0, length: size })?;
    let mut blocks: Vec<u64> = ranges
        .iter()
        .flat_map(|range| range.start / MIB..(range.start + range.length).div_ceil(MIB))
        .collect();
    blocks.dedup();
    let mut buffer = vec![0; MIB as usize];
    let mut at = 0;
    for block in blocks {
        feed_zeros(&mut hasher, block * MIB - at)?;
        let length = MIB.min(size - block * MIB);
        let bytes = &mut buffer[..length as usize];
        file.read_exact_at(bytes, block * MIB)?;
        hasher.write_all(bytes)?;
        at = block * MIB + length;
        if !is_zero(bytes) {
            figures.nonzero_block_bytes += length;
            let pages = bytes.chunks(4096).filter(|page| !is_zero(page));
            figures.nonzero_page_bytes += pages.map(|page| page.len() as u64).sum::<u64>();
        }
    }
    feed_zeros(&mut hasher, size - at)?;
    figures.blake3 = hasher.finalize().to_hex().to_string();
    Ok(figures)
}

fn feed_zeros(hasher: &mut blake3::Hasher, mut bytes: u64) -> Result<()> {
    while bytes > 0 {
        let length = bytes.min(MIB);
        hasher.write_all(&ZEROS[..length as usize])?;
        bytes -= length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use gantry_common::extents::Extent;

    use super::{changed_extents, copy_full, copy_sparse, figures};
    use crate::corpus::layout::create_sparse;

    #[test]
    fn changes_are_found_in_data_in_holes_and_in_the_short_tail() {
        let folder = tempfile::tempdir().expect("a folder");
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        let size = (4 << 20) + 513;
        let file = create_sparse(&one, size).expect("a file");
        file.write_all_at(&[7; 70_000], 1 << 20).expect("written");
        copy_sparse(&one, &two).expect("copied");
        assert_eq!(changed_extents(&one, &two).expect("compared"), []);
        let file = super::open_write(&two).expect("opened");
        file.write_all_at(&[8], (1 << 20) + 65_536).expect("written");
        file.write_all_at(&[8], (1 << 20) + 131_072).expect("written");
        file.write_all_at(&[0; 4096], 3 << 20).expect("zeros over a hole are no change");
        file.write_all_at(&[8], size - 1).expect("written");
        let expected = [
            Extent { start: (1 << 20) + 65_536, length: 131_072 },
            Extent { start: 4 << 20, length: 513 },
        ];
        assert_eq!(changed_extents(&one, &two).expect("compared"), expected);
    }

    #[test]
    fn figures_count_holes_as_zeros() {
        let folder = tempfile::tempdir().expect("a folder");
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        let file = create_sparse(&one, (5 << 20) + 9).expect("a file");
        file.write_all_at(b"x", 2 << 20).expect("written");
        copy_full(&one, &two).expect("copied");
        let (sparse, full) = (figures(&one).expect("read"), figures(&two).expect("read"));
        assert_eq!(sparse.blake3, blake3::hash(&std::fs::read(&one).expect("read")).to_string());
        assert_eq!(sparse.blake3, full.blake3);
        assert_eq!(sparse.nonzero_block_bytes, 1 << 20);
        assert_eq!(full.nonzero_page_bytes, 4096);
        assert!(full.allocated_bytes > sparse.allocated_bytes);
    }
}
