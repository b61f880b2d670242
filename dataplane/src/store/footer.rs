//! A pack's first and last bytes: its header, and the footer that lists its records.
//!
//! In: slots, or a pack file. Out: bytes, or the list of records without reading them. A pack
//! without a valid footer was never sealed and is scanned. Drawn in docs/repository-format.md.

use std::io;

use gantry_common::ids::{BlockId, RepositoryId, SessionId, StoredChecksum};
use gantry_common::limits;
use gantry_common::wire::Codec;

use super::fields::Fields;
use super::layout::{ALIGN, FORMAT_VERSION, PackNumber};
use super::record::{RecordHead, RecordKind, codec_code, codec_from_code, record_bytes};
use super::storage::StorageFile;

/// Bytes of a pack's header.
pub const PACK_HEAD_BYTES: u64 = ALIGN;
const PACK_MAGIC: [u8; 8] = *b"GANTPACK";
const TRAILER_MAGIC: [u8; 8] = *b"GANTFOOT";
const SLOT_BYTES: usize = 64;
const TRAILER_BYTES: usize = 128;
/// Slot flag: a collection gave the record up; its bytes may be gone.
const FLAG_GONE: u16 = 1;
const HEAD_CRC_AT: usize = ALIGN as usize - 4;

/// What a pack's header or footer is wrong about.
#[derive(Debug, thiserror::Error)]
pub enum PackFault {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It was never sealed, or its end is damaged.
    #[error("it has no footer")]
    NoFooter,
    /// The structure is not what was written.
    #[error("its {0}")]
    Damaged(&'static str),
}

/// A record's place and nature, as the footer lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Id of the raw bytes.
    pub id: BlockId,
    /// Where in the pack, in bytes; a multiple of 4096.
    pub offset: u64,
    /// Bytes when decoded.
    pub raw_len: u32,
    /// Bytes as stored.
    pub stored_len: u32,
    /// Coding.
    pub codec: Codec,
    /// Block or node.
    pub kind: RecordKind,
    /// Checksum of the stored bytes.
    pub checksum: StoredChecksum,
    /// A collection gave it up: its bytes may be gone, and no restore point needs it.
    pub is_gone: bool,
}

impl Slot {
    /// The slot of a record at `offset`.
    pub fn of(head: &RecordHead, offset: u64) -> Slot {
        Slot {
            id: head.id,
            offset,
            raw_len: head.raw_len,
            stored_len: head.stored_len,
            codec: head.codec,
            kind: head.kind,
            checksum: head.checksum,
            is_gone: false,
        }
    }

    /// Whether this record's header is the one that the slot lists.
    pub fn matches(&self, head: &RecordHead) -> bool {
        *self == Slot::of(head, self.offset)
    }

    /// The byte after the record.
    pub fn end(&self) -> u64 {
        self.offset + record_bytes(self.stored_len)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.id.0);
        out.extend(((self.offset / ALIGN) as u32).to_le_bytes());
        out.extend(self.raw_len.to_le_bytes());
        out.extend(self.stored_len.to_le_bytes());
        out.extend([codec_code(self.codec), self.kind.code()]);
        let flags = if self.is_gone { FLAG_GONE } else { 0 };
        out.extend(flags.to_le_bytes());
        out.extend(self.checksum.0);
    }

    /// The first `count` slots of a footer's bytes; fewer if they cannot be read.
    pub fn decode_all(footer: &[u8], count: usize) -> Vec<Slot> {
        footer.chunks_exact(SLOT_BYTES).take(count).map_while(Slot::decode).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Slot> {
        let mut fields = Fields::new(bytes);
        let id = BlockId(fields.array()?);
        let offset = u64::from(fields.u32()?) * ALIGN;
        let (raw_len, stored_len) = (fields.u32()?, fields.u32()?);
        let codec = codec_from_code(fields.u8()?)?;
        let kind = RecordKind::from_code(fields.u8()?)?;
        let flags = fields.u16()?;
        let checksum = StoredChecksum(fields.array()?);
        let is_gone = flags & FLAG_GONE != 0;
        let sane = flags & !FLAG_GONE == 0
            && raw_len > 0
            && raw_len <= limits::BLOCK_BYTES_MAX
            && stored_len > 0
            && stored_len <= raw_len;
        sane.then_some(Slot { id, offset, raw_len, stored_len, codec, kind, checksum, is_gone })
    }
}

/// A pack's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackHead {
    /// The repository that it belongs to.
    pub repository: RepositoryId,
    /// Its number.
    pub number: PackNumber,
    /// The session that wrote it.
    pub session: SessionId,
}

impl PackHead {
    /// Its 4096 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ALIGN as usize);
        out.extend(PACK_MAGIC);
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend([0; 6]); // flags, key epoch: reserved
        out.extend(self.repository.0);
        out.extend(self.number.0.to_le_bytes());
        out.extend(u64::from(self.number.epoch()).to_le_bytes());
        out.extend(self.session.0);
        out.resize(HEAD_CRC_AT, 0);
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`PackFault::Damaged`].
    pub fn decode(bytes: &[u8]) -> Result<PackHead, PackFault> {
        let bytes = bytes.get(..ALIGN as usize).ok_or(PackFault::Damaged("header is cut off"))?;
        if bytes[..8] != PACK_MAGIC {
            return Err(PackFault::Damaged("header has no pack's magic"));
        }
        if bytes[HEAD_CRC_AT..] != crc32c::crc32c(&bytes[..HEAD_CRC_AT]).to_le_bytes() {
            return Err(PackFault::Damaged("header does not match its checksum"));
        }
        let mut fields = Fields::new(&bytes[8..]);
        let mut read = || {
            let version = fields.u16()?;
            fields.array::<6>()?;
            let repository = RepositoryId(fields.array()?);
            let number = PackNumber(fields.u64()?);
            fields.u64()?;
            Some((version, PackHead { repository, number, session: SessionId(fields.array()?) }))
        };
        match read() {
            Some((FORMAT_VERSION, head)) => Ok(head),
            _ => Err(PackFault::Damaged("header has a format version of a newer Gantry")),
        }
    }

    /// Reads and checks the header of pack `number` of `repository`.
    ///
    /// # Errors
    /// [`PackFault`].
    pub fn read<F: StorageFile>(
        file: &F,
        repository: RepositoryId,
        number: PackNumber,
    ) -> Result<PackHead, PackFault> {
        let mut bytes = vec![0; ALIGN as usize];
        match file.read_exact_at(0, &mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(PackFault::Damaged("header is cut off"));
            }
            result => result?,
        }
        let head = PackHead::decode(&bytes)?;
        if head.repository != repository {
            return Err(PackFault::Damaged("header names another repository"));
        }
        if head.number != number {
            return Err(PackFault::Damaged("header names another pack than its file name"));
        }
        Ok(head)
    }
}

/// The footer of a pack whose records end at `at`: a multiple of 4096 bytes, trailer last.
pub fn encode_footer(slots: &[Slot], at: u64, number: PackNumber) -> Vec<u8> {
    let bytes = footer_bytes(slots.len()) as usize;
    let mut out = Vec::with_capacity(bytes);
    slots.iter().for_each(|slot| slot.encode(&mut out));
    let slots_hash = blake3::hash(&out);
    out.resize(bytes - TRAILER_BYTES, 0);
    out.extend(TRAILER_MAGIC);
    out.extend(FORMAT_VERSION.to_le_bytes());
    out.extend([0; 2]);
    out.extend((slots.len() as u32).to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend(number.0.to_le_bytes());
    out.extend(u64::from(number.epoch()).to_le_bytes());
    out.extend(slots_hash.as_bytes());
    out.resize(bytes - 4, 0);
    let crc = crc32c::crc32c(&out[bytes - TRAILER_BYTES..]);
    out.extend(crc.to_le_bytes());
    out
}

/// Bytes of the footer of a pack with so many records.
pub fn footer_bytes(slots: usize) -> u64 {
    (slots * SLOT_BYTES + TRAILER_BYTES).next_multiple_of(ALIGN as usize) as u64
}

/// Reads the list of records of pack `number`.
///
/// # Errors
/// [`PackFault::NoFooter`] if it was never sealed; the caller then scans.
pub fn read_footer<F: StorageFile>(file: &F, number: PackNumber) -> Result<Vec<Slot>, PackFault> {
    let len = file.len()?;
    if !(2 * ALIGN..=limits::PACK_BYTES_MAX).contains(&len) || !len.is_multiple_of(ALIGN) {
        return Err(PackFault::NoFooter);
    }
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(len - TRAILER_BYTES as u64, &mut trailer)?;
    if trailer[..8] != TRAILER_MAGIC {
        return Err(PackFault::NoFooter);
    }
    if trailer[TRAILER_BYTES - 4..] != crc32c::crc32c(&trailer[..TRAILER_BYTES - 4]).to_le_bytes() {
        return Err(PackFault::Damaged("footer's trailer does not match its checksum"));
    }
    let mut fields = Fields::new(&trailer[8..]);
    let mut read = || {
        let version = fields.u16()?;
        fields.u16()?;
        let (count, at, named) = (fields.u32()?, fields.u64()?, fields.u64()?);
        fields.u64()?;
        Some((version, count as usize, at, named, fields.array::<32>()?))
    };
    let (version, count, at, named, hash) = read().ok_or(PackFault::NoFooter)?;
    if version != FORMAT_VERSION {
        return Err(PackFault::Damaged("footer has a format version of a newer Gantry"));
    }
    let bytes = footer_bytes(count.min(limits::PACK_RECORDS_MAX));
    if count > limits::PACK_RECORDS_MAX || named != number.0 || at.checked_add(bytes) != Some(len) {
        return Err(PackFault::Damaged("footer does not belong to this file"));
    }
    let mut slots = vec![0; count * SLOT_BYTES];
    file.read_exact_at(at, &mut slots)?;
    if blake3::hash(&slots).as_bytes() != &hash {
        return Err(PackFault::Damaged("footer's list does not match its hash"));
    }
    let decode = |bytes| {
        Slot::decode(bytes).filter(|slot| slot.offset >= PACK_HEAD_BYTES && slot.end() <= at)
    };
    slots
        .chunks_exact(SLOT_BYTES)
        .map(|bytes| decode(bytes).ok_or(PackFault::Damaged("footer lists an impossible record")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::storage::memory::MemoryStorage;
    use super::super::storage::{OpenMode, Storage};
    use super::*;

    #[test]
    fn footers_and_heads_come_back_and_flipped_bytes_are_found() {
        let number = PackNumber::new(3, 9);
        let head =
            PackHead { repository: RepositoryId([5; 16]), number, session: SessionId([6; 16]) };
        let slots: Vec<Slot> = (0..70)
            .map(|i| Slot {
                id: BlockId([i as u8 + 1; 32]),
                offset: ALIGN * (i + 1),
                raw_len: 3000,
                stored_len: 1000 + i as u32,
                codec: Codec::Zstd,
                kind: RecordKind::Block,
                checksum: StoredChecksum([i as u8; 16]),
                is_gone: i % 7 == 3,
            })
            .collect();
        let end = slots[69].end();
        let disk = MemoryStorage::new();
        let file = disk.open("p", OpenMode::CreateNew).unwrap();
        let footer = encode_footer(&slots, end, number);
        file.write_at(0, &head.encode()).unwrap();
        file.write_at(end, &footer).unwrap();
        assert_eq!(PackHead::read(&file, head.repository, number).unwrap(), head);
        assert_eq!(read_footer(&file, number).unwrap(), slots);
        assert!(read_footer(&file, PackNumber::new(3, 8)).is_err());
        for at in (0..ALIGN).step_by(13) {
            disk.flip("p", at);
            assert!(PackHead::read(&file, head.repository, number).is_err(), "byte {at}");
            disk.flip("p", at);
        }
        let slots_end = end + 70 * 64;
        let trailer = end + footer.len() as u64 - 128;
        for at in (end..slots_end).step_by(7).chain(trailer..trailer + 128) {
            disk.flip("p", at);
            assert!(read_footer(&file, number).is_err(), "byte {at}");
            disk.flip("p", at);
        }
        file.set_len(end + ALIGN).unwrap();
        assert!(matches!(read_footer(&file, number), Err(PackFault::NoFooter)));
    }
}
