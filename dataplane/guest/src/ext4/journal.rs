//! JBD2: which blocks a replay of the journal would write, and with what.
//!
//! In: the journal's blocks. Out: [`Journal`]: every copy of a block that a committed transaction holds,
//! and which of them is the last. Invariant: what cannot be read as the kernel reads it is a refusal,
//! never a shorter journal; a transaction without its commit block does not count. Must not: replay.
//! Source: Linux `fs/jbd2/recovery.c`, `include/linux/jbd2.h`.

use std::collections::HashMap;

use crate::bytes::{be16, be32, crc32c_from};
use crate::limits;
use crate::volume::Refused;

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
/// revoke, 64bit, csum_v2, csum_v3; not async_commit, not fast_commit.
const INCOMPAT_KNOWN: u32 = 0x1 | 0x2 | 0x8 | 0x10;

const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_DELETED: u32 = 4;
const TAG_LAST: u32 = 8;

/// A block's copy in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copy {
    /// Its place in the file system.
    block: u64,
    /// The block of the file system in which the copy stands.
    pub(super) at: u64,
    sequence: u32,
    checksum: u32,
    escaped: bool,
}

/// What a log holds.
#[derive(Debug, Default)]
pub(super) struct Journal {
    checks: Checks,
    /// Of committed transactions, sorted by block, then as they were written.
    copies: Vec<Copy>,
    /// Blocks that a replay leaves alone up to and with this transaction.
    revoked: HashMap<u64, u32>,
}

/// How the log is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Checks {
    #[default]
    None,
    /// Tags have 16 bits of a checksum.
    V2(u32),
    /// Tags have 32 bits of a checksum.
    V3(u32),
}

impl Checks {
    fn seed(self) -> Option<u32> {
        match self {
            Checks::None => None,
            Checks::V2(seed) | Checks::V3(seed) => Some(seed),
        }
    }
}

impl Journal {
    /// The copies of a block in all committed transactions.
    pub(super) fn copies(&self, block: u64) -> &[Copy] {
        let from = self.copies.partition_point(|copy| copy.block < block);
        let count = self.copies[from..].partition_point(|copy| copy.block == block);
        &self.copies[from..from + count]
    }

    /// What a replay writes to a block, if it does.
    pub(super) fn last(&self, block: u64) -> Option<&Copy> {
        let copy = self.copies(block).last()?;
        let revoked = self.revoked.get(&block);
        // Sequences begin anew after 2^32.
        let later = |sequence: &u32| (copy.sequence.wrapping_sub(*sequence) as i32) > 0;
        revoked.is_none_or(later).then_some(copy)
    }

    /// A copy's bytes as they stand in the log in, as replay would write them out.
    pub(super) fn verified(&self, copy: &Copy, mut bytes: Vec<u8>) -> Result<Vec<u8>, Refused> {
        if let Some(seed) = self.checks.seed() {
            let sum = crc32c_from(crc32c_from(seed, &copy.sequence.to_be_bytes()), &bytes);
            let mask = if matches!(self.checks, Checks::V2(_)) { 0xffff } else { u32::MAX };
            if sum & mask != copy.checksum & mask {
                return Err(Refused::new("a block in its journal has a wrong checksum"));
            }
        }
        if copy.escaped {
            bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        }
        Ok(bytes)
    }
}

/// The log's own superblock.
struct LogHeader {
    first: u64,
    end: u64,
    sequence: u32,
    start: u64,
    wide: bool,
    checks: Checks,
    /// A checksum of whole transactions, by which a replay may end earlier than it seems.
    old_checksums: bool,
}

impl LogHeader {
    fn parse(bytes: &[u8], block_bytes: u64, blocks: u64) -> Result<LogHeader, Refused> {
        if be32(bytes, 0)? != MAGIC || be32(bytes, 4)? != SUPERBLOCK_V2 {
            return Err(Refused::new("its journal has no superblock that is known"));
        }
        let incompat = be32(bytes, 0x28)?;
        if incompat & !INCOMPAT_KNOWN != 0 {
            let text = "its journal has features that are not understood (async or fast commits)";
            return Err(Refused::new(text));
        }
        let seed = crc32c_from(u32::MAX, &bytes[0x30..0x40]);
        let checks = match (incompat & INCOMPAT_CSUM_V2, incompat & INCOMPAT_CSUM_V3) {
            (0, 0) => Checks::None,
            (_, 0) => Checks::V2(seed),
            (0, _) => Checks::V3(seed),
            _ => return Err(Refused::new("its journal's features contradict each other")),
        };
        if checks != Checks::None {
            let mut plain = bytes[..1024].to_vec();
            plain[0xfc..0x100].fill(0);
            if bytes[0x50] != 4 || crc32c_from(u32::MAX, &plain) != be32(bytes, 0xfc)? {
                return Err(Refused::new("its journal's superblock has a wrong checksum"));
            }
        }
        let header = LogHeader {
            first: u64::from(be32(bytes, 0x14)?),
            end: u64::from(be32(bytes, 0x10)?),
            sequence: be32(bytes, 0x18)?,
            start: u64::from(be32(bytes, 0x1c)?),
            wide: incompat & INCOMPAT_64BIT != 0,
            checks,
            old_checksums: be32(bytes, 0x24)? != 0,
        };
        let bounds = header.first >= 1 && header.first < header.end && header.end <= blocks;
        let started = header.start == 0 || (header.first..header.end).contains(&header.start);
        if u64::from(be32(bytes, 0xc)?) != block_bytes || !bounds || !started {
            return Err(Refused::new("its journal's superblock is implausible"));
        }
        if be32(bytes, 0x20)? != 0 {
            return Err(Refused::new("its journal notes an error; run 'e2fsck' in the guest"));
        }
        Ok(header)
    }
}

/// Reads the log. `place` gives the block of the file system for a block of the log, `read` its bytes;
/// `blocks` is the log's length and `file_system` the file system's, in blocks. Nothing if the log is empty.
///
/// # Errors
/// It is damaged, or not understood.
pub(super) fn read_log(
    block_bytes: u64,
    blocks: u64,
    file_system: u64,
    place: &dyn Fn(u64) -> Result<u64, Refused>,
    read: &dyn Fn(u64) -> Result<Vec<u8>, Refused>,
) -> Result<Option<Journal>, Refused> {
    let header = LogHeader::parse(&read(place(0)?)?, block_bytes, blocks)?;
    if header.start == 0 {
        return Ok(None);
    }
    if header.old_checksums {
        return Err(Refused::new("its journal has old checksums, which are not understood"));
    }
    let journal = Journal { checks: header.checks, ..Journal::default() };
    let mut scan = Scan {
        at: header.start,
        left: header.end - header.first,
        sequence: header.sequence,
        pending: Transaction::default(),
        journal,
        header,
        file_system,
        place,
        read,
    };
    while scan.step()? {}
    let mut journal = scan.journal;
    // Stable: copies of one block stay in the order of the log.
    journal.copies.sort_by_key(|copy| copy.block);
    Ok(Some(journal))
}

/// What a transaction says until its commit block makes it true.
#[derive(Default)]
struct Transaction {
    copies: Vec<Copy>,
    revoked: Vec<u64>,
    /// A checksum in it is wrong: it must not be committed.
    doubtful: bool,
}

struct Scan<'a> {
    header: LogHeader,
    file_system: u64,
    place: &'a dyn Fn(u64) -> Result<u64, Refused>,
    read: &'a dyn Fn(u64) -> Result<Vec<u8>, Refused>,
    /// The next block of the log.
    at: u64,
    /// Blocks of the log that were not seen yet.
    left: u64,
    sequence: u32,
    pending: Transaction,
    journal: Journal,
}

impl Scan<'_> {
    /// Takes the next block of the log; false at its end.
    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        let now = self.at;
        self.at = if now + 1 == self.header.end { self.header.first } else { now + 1 };
        Some(now)
    }

    fn step(&mut self) -> Result<bool, Refused> {
        let Some(block) = self.next() else { return Ok(false) };
        let bytes = (self.read)((self.place)(block)?)?;
        if be32(&bytes, 0)? != MAGIC || be32(&bytes, 8)? != self.sequence {
            return Ok(false);
        }
        match be32(&bytes, 4)? {
            DESCRIPTOR => return self.descriptor(&bytes),
            REVOKE => self.revoke(&bytes)?,
            COMMIT => self.commit(&bytes)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the checksum in a block's last four bytes is right.
    fn tail_is_good(&self, bytes: &[u8]) -> Result<bool, Refused> {
        let Some(seed) = self.header.checks.seed() else { return Ok(true) };
        let body = bytes.len() - 4;
        let sum = crc32c_from(crc32c_from(seed, &bytes[..body]), &[0; 4]);
        Ok(sum == be32(bytes, body)?)
    }

    fn descriptor(&mut self, bytes: &[u8]) -> Result<bool, Refused> {
        self.pending.doubtful |= !self.tail_is_good(bytes)?;
        let tail = if self.header.checks == Checks::None { 0 } else { 4 };
        let length = match self.header.checks {
            Checks::V3(_) => 16,
            Checks::V2(_) if self.header.wide => 14,
            Checks::V2(_) => 10,
            Checks::None if self.header.wide => 12,
            Checks::None => 8,
        };
        let (mut at, end) = (12, bytes.len() - tail);
        while at + length <= end {
            let (copy, flags) = self.tag(&bytes[at..at + length])?;
            at += length;
            if flags & TAG_SAME_UUID == 0 {
                at += 16;
            }
            let Some(log_block) = self.next() else { return Ok(false) };
            if flags & TAG_DELETED == 0 {
                let at = (self.place)(log_block)?;
                self.pending.copies.push(Copy { at, ..copy });
            }
            if self.pending.copies.len() + self.journal.copies.len() > limits::EXT4_JOURNAL_TAGS_MAX
            {
                return Err(Refused::new("its journal names too many blocks"));
            }
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(true)
    }

    fn tag(&self, tag: &[u8]) -> Result<(Copy, u32), Refused> {
        let low = u64::from(be32(tag, 0)?);
        let (flags, checksum, high) = match self.header.checks {
            Checks::V3(_) => (be32(tag, 4)?, be32(tag, 12)?, be32(tag, 8)?),
            _ => {
                let high = if self.header.wide { be32(tag, 8)? } else { 0 };
                (u32::from(be16(tag, 6)?), u32::from(be16(tag, 4)?), high)
            }
        };
        let block = if self.header.wide { u64::from(high) << 32 | low } else { low };
        let escaped = flags & TAG_ESCAPED != 0;
        Ok((Copy { block, at: 0, sequence: self.sequence, checksum, escaped }, flags))
    }

    fn revoke(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        self.pending.doubtful |= !self.tail_is_good(bytes)?;
        let end = be32(bytes, 12)? as usize;
        let tail = if self.header.checks == Checks::None { 0 } else { 4 };
        if !(16..=bytes.len() - tail).contains(&end) {
            self.pending.doubtful = true;
            return Ok(());
        }
        let length = if self.header.wide { 8 } else { 4 };
        for entry in bytes[16..end].chunks_exact(length) {
            let low = u64::from(be32(entry, length - 4)?);
            let high = if self.header.wide { u64::from(be32(entry, 0)?) } else { 0 };
            self.pending.revoked.push(high << 32 | low);
        }
        if self.pending.revoked.len() + self.journal.revoked.len() > limits::EXT4_JOURNAL_TAGS_MAX {
            return Err(Refused::new("its journal revokes too many blocks"));
        }
        Ok(())
    }

    fn commit(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let transaction = std::mem::take(&mut self.pending);
        if let Some(seed) = self.header.checks.seed() {
            let mut plain = bytes.to_vec();
            plain[16..20].fill(0);
            if crc32c_from(seed, &plain) != be32(bytes, 16)? || transaction.doubtful {
                return Err(Refused::new("a transaction in its journal has a wrong checksum"));
            }
        }
        if transaction.doubtful
            || transaction.copies.iter().any(|copy| copy.block >= self.file_system)
        {
            return Err(Refused::new("a transaction in its journal cannot be understood"));
        }
        for block in transaction.revoked {
            self.journal.revoked.insert(block, self.sequence);
        }
        self.journal.copies.extend(transaction.copies);
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }
}
