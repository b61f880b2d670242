//! Zeros at a destination that may hold other bytes: punched, zeroed by the device, or written.
//!
//! In: a byte range. Out: it reads as zeros. Invariant: a range is never skipped; what cannot be
//! done cheaply is done by writing. Must not: run on the network's thread, it may block for long.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::target::Target;

/// Bytes of one call on a block device, which may write zeros for that long.
const DEVICE_STEP_BYTES: u64 = 1 << 30;
/// Bytes of one call on a file, where only the map changes.
const FILE_STEP_BYTES: u64 = 1 << 40;
/// Sectors that any device can zero.
const DEVICE_ALIGN: u64 = 4096;
/// Bytes of zeros written at once.
const WRITE_BYTES: usize = 1 << 20;

/// Cheapest first.
const WAYS: [FallocateFlags; 2] = [
    FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE),
    FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE),
];

/// Makes `start..end` of the target read as zeros.
pub(super) fn zero_range(target: &Target, start: u64, end: u64) -> io::Result<()> {
    if target.is_fresh {
        return Ok(());
    }
    // A device zeroes whole sectors only; the odd rest of a disk is written.
    let aligned_end = match target.is_device {
        true => end - end % DEVICE_ALIGN,
        false => end,
    };
    let step_max = if target.is_device { DEVICE_STEP_BYTES } else { FILE_STEP_BYTES };
    let mut at = start;
    let mut ways = &WAYS[..];
    while at < aligned_end {
        let step = step_max.min(aligned_end - at);
        let Some(way) = ways.first() else { break };
        match fallocate(&target.owned, *way, at, step) {
            Ok(()) => at += step,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => ways = &ways[1..],
            Err(error) => return Err(error.into()),
        }
    }
    write_zeros(&target.owned, at, end)
}

fn write_zeros(file: &File, start: u64, end: u64) -> io::Result<()> {
    let zeros = vec![0u8; WRITE_BYTES.min((end.saturating_sub(start)) as usize)];
    let mut at = start;
    while at < end {
        let len = (end - at).min(WRITE_BYTES as u64) as usize;
        file.write_all_at(&zeros[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{write_zeros, zero_range};
    use crate::restore::target::Target;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_range_of_a_file_that_is_not_fresh_reads_as_zeros_and_takes_no_space() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, vec![7u8; 3 << 20]).unwrap();
        let target = Target::open_file(&path, 3 << 20, true, false).unwrap();
        zero_range(&target, 1 << 20, 2 << 20).unwrap();
        zero_range(&target, 100, 200).unwrap();
        write_zeros(&target.owned, (3 << 20) - 5, 3 << 20).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for (at, byte) in bytes.iter().enumerate() {
            let zero =
                (100..200).contains(&at) || (1 << 20..2 << 20).contains(&at) || at >= (3 << 20) - 5;
            assert_eq!(*byte, if zero { 0 } else { 7 }, "byte {at}");
        }
        assert!(target.owned.metadata().unwrap().blocks() * 512 < 5 << 19);
        target.owned.write_all_at(&[1], 0).unwrap();
    }
}
