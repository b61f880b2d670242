//! The journal of XFS: whether a mount would replay anything that matters.
//!
//! In: the journal's bytes. Out: [`LogState`]. A clean unmount leaves an unmount record at the head. A
//! frozen file system leaves records that hold nothing but the superblock, so that all other metadata
//! on disk is what is true. Everything else is dirty. Invariant: stricter than the kernel, which mends
//! torn ends: each block near the head must be of the cycle it ought to be of, each record from tail to
//! head have a good checksum. Must not: read more than [`limits::XFS_LOG_SCAN_BYTES_MAX`] of records.
//! Source: Linux `fs/xfs/xfs_log_recover.c` (`xlog_find_head`, `xlog_find_tail`), `xfs_log_format.h`.

use crate::bytes::{be32, be64, le16, le32, le64};
use crate::disk::Disk;
use crate::limits;
use crate::volume::Refused;
use crate::xfs::superblock::Geometry;

const BLOCK_BYTES: u64 = 512;
const RECORD_MAGIC: u32 = 0xfeed_babe;
/// Data of a record per header block: each word of cycle data stands for a block.
const HEADER_COVERS_BYTES: u64 = 32 << 10;
const RECORD_BYTES_MAX: u64 = 256 << 10;
/// Eight buffers may be under way at once; beyond them nothing near the head can be torn.
const WINDOW_BLOCKS: u64 = 8 * RECORD_BYTES_MAX / BLOCK_BYTES;
const FORMAT_LINUX_LITTLE_ENDIAN: u32 = 1;
/// Sizes of the record header with and without padding, on which kernels differ.
const HEADER_SUMMED_BYTES: [usize; 2] = [328, 324];
const EXTENDED_SUMMED_BYTES: usize = 260;

const OPERATION_BYTES: usize = 12;
const CLIENT_TRANSACTION: u8 = 0x69;
const FLAG_START: u8 = 0x01;
const FLAG_COMMIT: u8 = 0x02;
const FLAG_UNMOUNT: u8 = 0x20;
const TRANSACTION_MAGIC: u32 = 0x5452_414e;
const ITEM_BUFFER: u16 = 0x123c;
const BUFFER_CANCEL: u16 = 0x2;

/// What a mount would find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LogState {
    /// Unmounted.
    Clean,
    /// Frozen or idle: only counters in the superblock would be replayed.
    OnlySuperblock,
    /// Metadata on disk is not what is true, or the journal is not understood.
    Dirty(String),
}

/// Reads the journal's state.
pub(super) fn state(disk: &dyn Disk, geometry: &Geometry) -> LogState {
    let log = Log {
        disk,
        start: geometry.log.start,
        blocks: geometry.log.length / BLOCK_BYTES,
        geometry,
    };
    log.state().unwrap_or_else(|refused| LogState::Dirty(refused.why))
}

struct Log<'a> {
    disk: &'a dyn Disk,
    start: u64,
    blocks: u64,
    geometry: &'a Geometry,
}

/// The place where the next record would be written.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Head {
    block: u64,
    /// Of the blocks before it.
    cycle: u32,
}

struct Record {
    tail: u64,
    operations: u32,
    /// Blocks of headers and data.
    blocks: u64,
    data: Vec<u8>,
}

fn dirty(text: &str) -> Refused {
    Refused::new(format!("the journal of this XFS {text}"))
}

impl Log<'_> {
    fn state(&self) -> Result<LogState, Refused> {
        let head = self.head()?;
        let (at, last) = self.last_record(head)?;
        let cycle = if at < head.block { head.cycle } else { head.cycle.wrapping_sub(1) };
        let flags = last.data.get(9).copied().unwrap_or(0);
        if last.operations == 1 && flags & FLAG_UNMOUNT != 0 {
            return Ok(LogState::Clean);
        }
        let (mut block, mut tail_cycle) = (last.tail & 0xffff_ffff, (last.tail >> 32) as u32);
        let before =
            tail_cycle == cycle && block <= at || tail_cycle == cycle.wrapping_sub(1) && block > at;
        if block >= self.blocks || !before {
            return Err(dirty("has no plausible tail"));
        }
        let mut bytes = 0;
        loop {
            let record = self.record(block, tail_cycle)?;
            only_superblock(&record, self.geometry)?;
            let end = block + record.blocks;
            bytes += record.blocks * BLOCK_BYTES;
            if block == at && tail_cycle == cycle {
                return Ok(LogState::OnlySuperblock);
            }
            if bytes > limits::XFS_LOG_SCAN_BYTES_MAX {
                return Err(dirty("holds changes that are not on disk"));
            }
            block = end % self.blocks;
            tail_cycle = if end >= self.blocks { tail_cycle.wrapping_add(1) } else { tail_cycle };
        }
    }

    /// Blocks from `first` on, past the end to the beginning.
    fn read(&self, first: u64, count: u64) -> Result<Vec<u8>, Refused> {
        if count > self.blocks || first >= self.blocks {
            return Err(dirty("has a record that is longer than it"));
        }
        let mut bytes = vec![0; (count * BLOCK_BYTES) as usize];
        let now = (self.blocks - first).min(count) * BLOCK_BYTES;
        let (one, two) = bytes.split_at_mut(now as usize);
        self.disk.read_at(self.start + first * BLOCK_BYTES, one)?;
        if !two.is_empty() {
            self.disk.read_at(self.start, two)?;
        }
        Ok(bytes)
    }

    fn cycle(&self, block: u64) -> Result<u32, Refused> {
        cycle_of(&self.read(block, 1)?)
    }

    /// Finds where the cycle number changes, and demands that it changes once near there.
    fn head(&self) -> Result<Head, Refused> {
        if self.blocks < 2 * WINDOW_BLOCKS / 16 || self.blocks > limits::XFS_LOG_BLOCKS_MAX {
            return Err(dirty("has an implausible size"));
        }
        let (first, last) = (self.cycle(0)?, self.cycle(self.blocks - 1)?);
        if first == 0 || first != last && first != last.wrapping_add(1) {
            return Err(dirty("has implausible cycle numbers"));
        }
        let mut head = self.blocks;
        if first != last {
            let mut known = 0;
            head = self.blocks - 1;
            while head - known > 1 {
                let middle = known + (head - known) / 2;
                match self.cycle(middle)? {
                    cycle if cycle == first => known = middle,
                    cycle if cycle == last => head = middle,
                    _ => return Err(dirty("has implausible cycle numbers")),
                }
            }
        }
        let window = WINDOW_BLOCKS.min(self.blocks);
        let before = window.min(head);
        self.expect_cycle(head - before, before, first)?;
        self.expect_cycle(head, window.min(self.blocks - head), last)?;
        if before < window && head + (window - before) < self.blocks {
            self.expect_cycle(self.blocks - (window - before), window - before, last)?;
        }
        if head == self.blocks {
            // The next record begins the next cycle.
            return Ok(Head { block: 0, cycle: first.wrapping_add(1) });
        }
        Ok(Head { block: head, cycle: first })
    }

    fn expect_cycle(&self, first: u64, count: u64, cycle: u32) -> Result<(), Refused> {
        if count == 0 {
            return Ok(());
        }
        let bytes = self.read(first, count)?;
        for block in bytes.chunks_exact(BLOCK_BYTES as usize) {
            if cycle_of(block)? != cycle {
                return Err(dirty("has a torn end"));
            }
        }
        Ok(())
    }

    /// The record that ends at the head, and where it begins.
    fn last_record(&self, head: Head) -> Result<(u64, Record), Refused> {
        let longest = RECORD_BYTES_MAX / BLOCK_BYTES + RECORD_BYTES_MAX / HEADER_COVERS_BYTES;
        for back in 1..=longest.min(self.blocks - 1) {
            let at = (head.block + self.blocks - back) % self.blocks;
            if be32(&self.read(at, 1)?, 0)? != RECORD_MAGIC {
                continue;
            }
            let cycle = if at < head.block { head.cycle } else { head.cycle.wrapping_sub(1) };
            let record = self.record(at, cycle)?;
            if record.blocks != back {
                return Err(dirty("does not end with a whole record"));
            }
            return Ok((at, record));
        }
        Err(dirty("does not end with a record"))
    }

    /// The record that begins at this block, checked whole.
    fn record(&self, block: u64, cycle: u32) -> Result<Record, Refused> {
        let header = self.read(block, 1)?;
        let lsn = u64::from(cycle) << 32 | block;
        let version = be32(&header, 8)?;
        let (length, size) = (u64::from(be32(&header, 12)?), u64::from(be32(&header, 320)?));
        let fits = be32(&header, 0)? == RECORD_MAGIC
            && be32(&header, 4)? == cycle
            && be64(&header, 16)? == lsn
            && matches!(version, 1 | 2)
            && (1..=RECORD_BYTES_MAX).contains(&length)
            && length.is_multiple_of(BLOCK_BYTES)
            && size <= RECORD_BYTES_MAX
            && be32(&header, 300)? == FORMAT_LINUX_LITTLE_ENDIAN
            && header[304..320] == self.geometry.uuid;
        if !fits {
            return Err(dirty("has a damaged or foreign record"));
        }
        let headers = if version == 2 { size.div_ceil(HEADER_COVERS_BYTES).max(1) } else { 1 };
        let blocks = headers + length / BLOCK_BYTES;
        let mut bytes = self.read(block, blocks)?;
        let mut data = bytes.split_off((headers * BLOCK_BYTES) as usize);
        if !checksum_fits(&bytes, &data) {
            return Err(dirty("has a record with a wrong checksum"));
        }
        unpack(&bytes, &mut data)?;
        let operations = be32(&header, 40)?;
        Ok(Record { tail: be64(&header, 24)?, operations, blocks, data })
    }
}

fn cycle_of(block: &[u8]) -> Result<u32, Refused> {
    match be32(block, 0)? {
        RECORD_MAGIC => be32(block, 4),
        cycle => Ok(cycle),
    }
}

/// Headers as they are on disk, and data with the cycle numbers still in it.
fn checksum_fits(headers: &[u8], data: &[u8]) -> bool {
    let Ok(stored) = le32(headers, 32) else { return false };
    let extended = data.len().div_ceil(HEADER_COVERS_BYTES as usize);
    HEADER_SUMMED_BYTES.into_iter().any(|summed| {
        let mut sum = crc32c::crc32c(&headers[..32]);
        sum = crc32c::crc32c_append(sum, &[0; 4]);
        sum = crc32c::crc32c_append(sum, &headers[36..summed]);
        for header in headers.chunks_exact(BLOCK_BYTES as usize).take(extended).skip(1) {
            sum = crc32c::crc32c_append(sum, &header[..EXTENDED_SUMMED_BYTES]);
        }
        crc32c::crc32c_append(sum, data) == stored
    })
}

/// Puts back the first word of every block, for which a cycle number stands on disk.
fn unpack(headers: &[u8], data: &mut [u8]) -> Result<(), Refused> {
    let words = (HEADER_COVERS_BYTES / BLOCK_BYTES) as usize;
    for (number, block) in data.chunks_exact_mut(BLOCK_BYTES as usize).enumerate() {
        let (header, word) = (number / words, number % words);
        let begin = if header == 0 { 44 } else { header * BLOCK_BYTES as usize + 4 };
        let at = begin + word * 4;
        let stored = headers.get(at..at + 4).ok_or_else(|| dirty("has a damaged record"))?;
        block[..4].copy_from_slice(stored);
    }
    Ok(())
}

/// Demands that a record's transactions change the superblock's buffer and nothing else.
fn only_superblock(record: &Record, geometry: &Geometry) -> Result<(), Refused> {
    let changes = || dirty("holds changes that are not on disk");
    let (mut at, mut regions_left, mut open) = (0usize, 0u16, None);
    for _ in 0..record.operations {
        let head = record.data.get(at..at + OPERATION_BYTES).ok_or_else(changes)?;
        let (transaction, length) = (be32(head, 0)?, be32(head, 4)? as usize);
        let (client, flags) = (head[8], head[9]);
        at += OPERATION_BYTES;
        let region = at.checked_add(length).and_then(|end| record.data.get(at..end));
        let region = region.ok_or_else(changes)?;
        at += length;
        if client != CLIENT_TRANSACTION || open.is_some_and(|open| open != transaction) {
            return Err(changes());
        }
        match flags {
            FLAG_START if open.is_none() && region.is_empty() => open = Some(transaction),
            FLAG_COMMIT if open.is_some() && region.is_empty() && regions_left == 0 => open = None,
            0 if open.is_some() && regions_left > 0 => regions_left -= 1,
            0 if open.is_some() && region.len() == 16 && le32(region, 0)? == TRANSACTION_MAGIC => {}
            0 if open.is_some() => {
                let regions = le16(region, 2)?;
                let superblock = le16(region, 0)? == ITEM_BUFFER
                    && regions > 0
                    && le16(region, 4)? & BUFFER_CANCEL == 0
                    && u64::from(le16(region, 6)?) * BLOCK_BYTES <= geometry.sector_bytes
                    && le64(region, 8)? == 0;
                if !superblock {
                    return Err(changes());
                }
                regions_left = regions - 1;
            }
            _ => return Err(changes()),
        }
    }
    if open.is_some() { Err(changes()) } else { Ok(()) }
}
