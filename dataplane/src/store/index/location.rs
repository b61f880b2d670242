//! The rows of the index: where a record stands, and what is known of a pack without opening it.
//!
//! In: slots of footers, or bytes of the index. Out: bytes, or rows that are sane. The index is a
//! cache: a change of a row's form is a new [`INDEX_VERSION`], and older indexes are built anew.

use gantry_common::limits;
use gantry_common::wire::Codec;

use crate::store::fields::Fields;
use crate::store::footer::Slot;
use crate::store::layout::{ALIGN, PackNumber};
use crate::store::record::{RecordKind, codec_code, codec_from_code};

/// Form of the rows below.
pub(super) const INDEX_VERSION: u16 = 2;
/// Bytes of a block's row.
pub(super) const BLOCK_ROW_BYTES: usize = 28;
/// Bytes of a pack's row.
pub(super) const PACK_ROW_BYTES: usize = 48;
const FLAG_VERIFIED: u8 = 1;
const FLAG_DAMAGED: u8 = 2;

/// Where a record stands, and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The pack.
    pub pack: PackNumber,
    /// First byte of the record in it.
    pub offset: u64,
    /// Position of its slot in the pack's footer.
    pub slot: u32,
    /// Bytes as stored.
    pub stored_len: u32,
    /// Bytes when decoded.
    pub raw_len: u32,
    /// Coding.
    pub codec: Codec,
    /// Block or node.
    pub kind: RecordKind,
    /// This store has decoded it and found its id right.
    pub verified: bool,
    /// This store found it damaged.
    pub damaged: bool,
}

impl Location {
    /// The location of slot number `position` of a pack, not verified.
    pub fn of(slot: &Slot, position: u32, pack: PackNumber) -> Location {
        Location {
            pack,
            offset: slot.offset,
            slot: position,
            stored_len: slot.stored_len,
            raw_len: slot.raw_len,
            codec: slot.codec,
            kind: slot.kind,
            verified: false,
            damaged: false,
        }
    }

    /// Whether both name the same record of the same file.
    pub fn is_same_place(&self, other: &Location) -> bool {
        (self.pack, self.offset) == (other.pack, other.offset)
    }

    pub(super) fn encode(&self) -> [u8; BLOCK_ROW_BYTES] {
        let mut out = Vec::with_capacity(BLOCK_ROW_BYTES);
        out.extend(self.pack.0.to_le_bytes());
        out.extend(((self.offset / ALIGN) as u32).to_le_bytes());
        out.extend(self.slot.to_le_bytes());
        out.extend(self.stored_len.to_le_bytes());
        out.extend(self.raw_len.to_le_bytes());
        let verified = if self.verified { FLAG_VERIFIED } else { 0 };
        let damaged = if self.damaged { FLAG_DAMAGED } else { 0 };
        out.extend([codec_code(self.codec), self.kind.code(), verified | damaged, 0]);
        fixed(&out)
    }

    pub(super) fn decode(bytes: &[u8; BLOCK_ROW_BYTES]) -> Option<Location> {
        let mut fields = Fields::new(bytes);
        let pack = PackNumber(fields.u64()?);
        let offset = u64::from(fields.u32()?) * ALIGN;
        let slot = fields.u32()?;
        let (stored_len, raw_len) = (fields.u32()?, fields.u32()?);
        let codec = codec_from_code(fields.u8()?)?;
        let kind = RecordKind::from_code(fields.u8()?)?;
        let flags = fields.u8()?;
        let sane = stored_len <= limits::STORED_BYTES_MAX && raw_len <= limits::BLOCK_BYTES_MAX;
        sane.then_some(Location {
            pack,
            offset,
            slot,
            stored_len,
            raw_len,
            codec,
            kind,
            verified: flags & FLAG_VERIFIED != 0,
            damaged: flags & FLAG_DAMAGED != 0,
        })
    }
}

/// What is known of a sealed pack without opening it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackRow {
    /// Blocks in it.
    pub blocks: u32,
    /// Map nodes in it.
    pub nodes: u32,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of its blocks when decoded.
    pub raw_bytes: u64,
    /// Records that a collection gave up; not counted in `blocks` and `nodes`.
    pub gone: u32,
    /// Bytes of the file that a collection gave back to the file system.
    pub hole_bytes: u64,
    /// When every record of it was last read and checked, milliseconds since 1970; 0: never.
    pub checked_ms: u64,
    /// Records that were damaged then; a collection gives dead ones among them up.
    pub damaged: u32,
}

impl PackRow {
    /// The row of a pack with these records.
    pub fn of(slots: &[Slot], file_bytes: u64) -> PackRow {
        let mut row = PackRow { file_bytes, ..PackRow::default() };
        for slot in slots {
            if slot.is_gone {
                row.gone += 1;
                row.hole_bytes += slot.end() - slot.offset;
                continue;
            }
            match slot.kind {
                RecordKind::Block => {
                    row.blocks += 1;
                    row.raw_bytes += u64::from(slot.raw_len);
                }
                RecordKind::Node => row.nodes += 1,
            }
        }
        row
    }

    /// Whether both say the same of the records; holes and checks may differ.
    pub fn is_alike(&self, other: &PackRow) -> bool {
        let of = |row: &PackRow| PackRow { hole_bytes: 0, checked_ms: 0, damaged: 0, ..*row };
        of(self) == of(other)
    }

    /// Records that its footer lists, those given up included.
    pub fn slots(&self) -> u32 {
        self.blocks + self.nodes + self.gone
    }

    pub(super) fn encode(&self) -> [u8; PACK_ROW_BYTES] {
        let mut out = Vec::with_capacity(PACK_ROW_BYTES);
        out.extend(self.blocks.to_le_bytes());
        out.extend(self.nodes.to_le_bytes());
        out.extend(self.file_bytes.to_le_bytes());
        out.extend(self.raw_bytes.to_le_bytes());
        out.extend(self.gone.to_le_bytes());
        out.extend(self.hole_bytes.to_le_bytes());
        out.extend(self.checked_ms.to_le_bytes());
        out.extend(self.damaged.to_le_bytes());
        fixed(&out)
    }

    pub(super) fn decode(bytes: &[u8; PACK_ROW_BYTES]) -> Option<PackRow> {
        let mut fields = Fields::new(bytes);
        Some(PackRow {
            blocks: fields.u32()?,
            nodes: fields.u32()?,
            file_bytes: fields.u64()?,
            raw_bytes: fields.u64()?,
            gone: fields.u32()?,
            hole_bytes: fields.u64()?,
            checked_ms: fields.u64()?,
            damaged: fields.u32()?,
        })
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}
