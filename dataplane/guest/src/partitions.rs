//! Partition tables: MBR with logical partitions, GPT.
//!
//! In: a [`Disk`]. Out: its partitions in the order of the disk, or why they are not known. Invariant:
//! partitions lie within the disk and do not overlap. Must not: guess; a table that two readers could
//! read in two ways is refused. Readers of our own, because the crates `gpt` and `mbrman` want a disk
//! that can be written and sought, and they do not tell a doubtful table (hybrid, two GPTs that
//! disagree, overlaps) from a plain one. Source: UEFI 2.10 §5.

use crc::{CRC_32_ISO_HDLC, Crc};

use crate::bytes::{le16, le32, le64};
use crate::disk::Disk;
use crate::limits;
use crate::volume::{Extent, Refused};

const CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// MBRs count in these, whatever the disk's sectors are.
const SECTOR_BYTES: u64 = 512;
const KIND_EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const KIND_PROTECTIVE: u8 = 0xee;
/// Logical Disk Manager: what Windows calls dynamic disks.
const KIND_LDM: u8 = 0x42;
/// GUIDs of partitions that are no volumes, as they stand on disk.
const OPAQUE_GUIDS: [(u128, &str); 4] = [
    (0xe3c9_e316_0b5c_4db8_817d_f92d_f002_15ae, "it is Microsoft's reserved partition"),
    (0x5808_c8aa_7e8f_42e0_85d2_e1e9_0434_cfb3, "it belongs to a dynamic disk of Windows"),
    (0xaf9b_60a0_1431_4f62_bc68_3311_714a_69ad, "it belongs to a dynamic disk of Windows"),
    (0xe75c_af8f_f680_4cee_afa3_b001_e56e_fc2d, "it belongs to a Windows storage pool"),
];

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as Linux counts.
    pub number: u32,
    /// Bytes of the disk.
    pub range: Extent,
    /// Why its content must not be looked into, by its type.
    pub opaque: Option<&'static str>,
}

/// What a disk's first sectors say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Table {
    /// There is none.
    None,
    /// MBR.
    Mbr(Vec<Partition>),
    /// GPT.
    Gpt(Vec<Partition>),
}

/// Reads the partition table.
///
/// # Errors
/// There is one, but what it says is doubtful.
pub fn read_table(disk: &dyn Disk) -> Result<Table, Refused> {
    if disk.length() < 2 * SECTOR_BYTES {
        return Ok(Table::None);
    }
    let mut sector = [0; SECTOR_BYTES as usize];
    disk.read_at(0, &mut sector)?;
    if le16(&sector, 510)? != 0xaa55 {
        return Ok(Table::None);
    }
    let entries = entries(&sector)?;
    if entries.iter().any(|entry| entry.kind == KIND_PROTECTIVE) {
        if entries.len() != 1 {
            let text =
                "its partition table is a hybrid of MBR and GPT, which systems read differently";
            return Err(Refused::new(text));
        }
        return gpt(disk).and_then(checked).map(Table::Gpt);
    }
    // A boot sector of a file system has the same signature, and code where the entries would be.
    let plain = entries.iter().all(|entry| matches!(entry.status, 0 | 0x80))
        && entries.iter().filter(|entry| entry.status == 0x80).count() <= 1;
    if entries.is_empty() || !plain {
        return Ok(Table::None);
    }
    mbr(disk, &entries).and_then(checked).map(Table::Mbr)
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    slot: u32,
    status: u8,
    kind: u8,
    start: u64,
    length: u64,
}

/// Those of the four entries that are in use.
fn entries(sector: &[u8]) -> Result<Vec<Entry>, Refused> {
    let mut found = Vec::new();
    for slot in 0..4 {
        let at = 446 + 16 * slot;
        let entry = Entry {
            slot: slot as u32,
            status: sector[at],
            kind: sector[at + 4],
            start: u64::from(le32(sector, at + 8)?) * SECTOR_BYTES,
            length: u64::from(le32(sector, at + 12)?) * SECTOR_BYTES,
        };
        if entry.kind != 0 && entry.length != 0 {
            found.push(entry);
        }
    }
    Ok(found)
}

fn mbr(disk: &dyn Disk, entries: &[Entry]) -> Result<Vec<Partition>, Refused> {
    let mut partitions = Vec::new();
    for entry in entries {
        let range = Extent { start: entry.start, length: entry.length };
        if KIND_EXTENDED.contains(&entry.kind) {
            let end = entry.start.saturating_add(entry.length);
            if end > disk.length() {
                return Err(Refused::new("its extended partition is not within the disk"));
            }
            logical(disk, range, &mut partitions)?;
        } else {
            let ldm = entry.kind == KIND_LDM;
            let opaque = ldm.then_some("it belongs to a dynamic disk of Windows");
            partitions.push(Partition { number: entry.slot + 1, range, opaque });
        }
    }
    Ok(partitions)
}

/// The chain of logical partitions: each sector of it names one and the next.
fn logical(disk: &dyn Disk, within: Extent, into: &mut Vec<Partition>) -> Result<(), Refused> {
    if into.iter().any(|partition| partition.number > 4) {
        return Err(Refused::new("it has two extended partitions"));
    }
    let end = within.start + within.length;
    let mut at = within.start;
    for number in 5.. {
        if into.len() >= limits::VOLUMES_MAX {
            return Err(Refused::new("it has too many partitions, or their chain is a ring"));
        }
        let mut sector = [0; SECTOR_BYTES as usize];
        disk.read_at(at, &mut sector)?;
        if le16(&sector, 510)? != 0xaa55 {
            return Err(Refused::new("the chain of its logical partitions is broken"));
        }
        let (links, data): (Vec<_>, Vec<_>) =
            entries(&sector)?.into_iter().partition(|entry| KIND_EXTENDED.contains(&entry.kind));
        if links.len() > 1 || data.len() > 1 {
            return Err(Refused::new("the chain of its logical partitions branches"));
        }
        if let Some(entry) = data.first() {
            let range = Extent { start: at.saturating_add(entry.start), length: entry.length };
            if range.start.saturating_add(range.length) > end {
                return Err(Refused::new("a logical partition is not within the extended one"));
            }
            into.push(Partition { number, range, opaque: None });
        }
        let Some(link) = links.first() else { return Ok(()) };
        let next = within.start.saturating_add(link.start);
        // Forward only, so that it ends.
        if next <= at || next >= end {
            return Err(Refused::new("the chain of its logical partitions leads astray"));
        }
        at = next;
    }
    Ok(())
}

struct Header {
    sector_bytes: u64,
    alternate: u64,
    entries_at: u64,
    entry_count: u32,
    entry_bytes: u32,
    entries_crc: u32,
}

fn gpt(disk: &dyn Disk) -> Result<Vec<Partition>, Refused> {
    let sizes = [512, 4096].into_iter().filter(|size| disk.length() >= 4 * size);
    for sector_bytes in sizes.clone() {
        let Ok(primary) = header(disk, sector_bytes, 1) else { continue };
        let Ok(partitions) = gpt_entries(disk, &primary) else { continue };
        let backup = header(disk, sector_bytes, primary.alternate);
        let other = backup.and_then(|backup| gpt_entries(disk, &backup));
        // One that cannot be read is a disk that has grown; one that says otherwise is a doubt.
        if other.is_ok_and(|other| other != partitions) {
            return Err(Refused::new("its two GPTs disagree"));
        }
        return Ok(partitions);
    }
    for sector_bytes in sizes {
        let Ok(backup) = header(disk, sector_bytes, disk.length() / sector_bytes - 1) else {
            continue;
        };
        return gpt_entries(disk, &backup);
    }
    Err(Refused::new("its GPT and the backup of it are damaged"))
}

fn header(disk: &dyn Disk, sector_bytes: u64, sector: u64) -> Result<Header, Refused> {
    let mut bytes = [0; 512];
    let at = sector.checked_mul(sector_bytes).ok_or_else(|| Refused::new("no such sector"))?;
    disk.read_at(at, &mut bytes)?;
    let length = le32(&bytes, 12)? as usize;
    if &bytes[..8] != b"EFI PART" || !(92..=512).contains(&length) {
        return Err(Refused::new("no GPT header"));
    }
    let crc = le32(&bytes, 16)?;
    bytes[16..20].fill(0);
    let header = Header {
        sector_bytes,
        alternate: le64(&bytes, 32)?,
        entries_at: le64(&bytes, 72)?,
        entry_count: le32(&bytes, 80)?,
        entry_bytes: le32(&bytes, 84)?,
        entries_crc: le32(&bytes, 88)?,
    };
    let entry_fits = header.entry_bytes.is_power_of_two() && header.entry_bytes >= 128;
    if CRC32.checksum(&bytes[..length]) != crc
        || le64(&bytes, 24)? != sector
        || !entry_fits
        || header.entry_bytes > 4096
        || header.entry_count > limits::GPT_ENTRIES_MAX
    {
        return Err(Refused::new("a damaged GPT header"));
    }
    Ok(header)
}

fn gpt_entries(disk: &dyn Disk, header: &Header) -> Result<Vec<Partition>, Refused> {
    let entry_bytes = header.entry_bytes as usize;
    let damaged = || Refused::new("a damaged GPT");
    let at = header.entries_at.checked_mul(header.sector_bytes).ok_or_else(damaged)?;
    // At most 4 MiB, by the limits above.
    let mut bytes = vec![0; header.entry_count as usize * entry_bytes];
    for (number, part) in bytes.chunks_mut(limits::READ_BYTES_MAX).enumerate() {
        let from = (number * limits::READ_BYTES_MAX) as u64;
        disk.read_at(at.checked_add(from).ok_or_else(damaged)?, part)?;
    }
    if CRC32.checksum(&bytes) != header.entries_crc {
        return Err(damaged());
    }
    let mut partitions = Vec::new();
    for (entry, number) in bytes.chunks_exact(entry_bytes).zip(1..) {
        let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
        if entry[..16] == [0; 16] {
            continue;
        }
        let sectors = last.checked_sub(first).and_then(|more| more.checked_add(1));
        let length = sectors.and_then(|sectors| sectors.checked_mul(header.sector_bytes));
        let start = first.checked_mul(header.sector_bytes);
        let (Some(start), Some(length)) = (start, length) else { return Err(damaged()) };
        let opaque = opaque_by_guid(&entry[..16])?;
        partitions.push(Partition { number, range: Extent { start, length }, opaque });
    }
    Ok(partitions)
}

fn opaque_by_guid(bytes: &[u8]) -> Result<Option<&'static str>, Refused> {
    let mut guid = u128::from(le32(bytes, 0)?);
    guid = guid << 16 | u128::from(le16(bytes, 4)?);
    guid = guid << 16 | u128::from(le16(bytes, 6)?);
    guid = bytes[8..16].iter().fold(guid, |guid, &byte| guid << 8 | u128::from(byte));
    Ok(OPAQUE_GUIDS.iter().find(|(known, _)| *known == guid).map(|(_, why)| *why))
}

/// Sorted; an overlap is refused. What lies beyond the disk's end is found when it is looked into.
fn checked(mut partitions: Vec<Partition>) -> Result<Vec<Partition>, Refused> {
    partitions.sort_by_key(|partition| partition.range);
    let overlap = partitions.windows(2).find(|pair| {
        pair[0].range.start.saturating_add(pair[0].range.length) > pair[1].range.start
    });
    match overlap {
        Some(pair) => Err(Refused::new(format!(
            "its partitions {} and {} overlap",
            pair[0].number, pair[1].number
        ))),
        None => Ok(partitions),
    }
}
