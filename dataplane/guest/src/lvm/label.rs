//! A physical volume's label and the place of its metadata.
//!
//! In: a partition or disk. Out: its UUID, and the committed metadata text with a good checksum.
//! Must not: read a metadata area that is ignored, or fall back to an older text.

use crc::{Algorithm, Crc};

use crate::bytes::{le32, le64};
use crate::disk::Disk;
use crate::limits;
use crate::volume::Refused;

/// The checksum of LVM: that of zlib with another start and no inversion at the end.
const LVM_CRC: Algorithm<u32> = Algorithm {
    width: 32,
    poly: 0x04c1_1db7,
    init: 0xf597_a6cf_u32.reverse_bits(),
    refin: true,
    refout: true,
    xorout: 0,
    check: 0,
    residue: 0,
};
const CRC: Crc<u32> = Crc::<u32>::new(&LVM_CRC);
const SECTOR_BYTES: usize = 512;
const LABEL_SECTORS: usize = 4;
const AREA_HEADER_BYTES: u64 = 512;
const AREA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// Areas that a header names at most; lvm2 makes two.
const AREAS_MAX: usize = 16;

/// What a label says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhysicalVolume {
    /// Without dashes.
    pub uuid: String,
    /// Offset and length of each metadata area.
    areas: Vec<(u64, u64)>,
}

/// Whether these first bytes have an LVM2 label, good or not.
pub fn has_label(head: &[u8]) -> bool {
    head.chunks_exact(SECTOR_BYTES)
        .take(LABEL_SECTORS)
        .any(|sector| sector.starts_with(b"LABELONE") && &sector[24..32] == b"LVM2 001")
}

impl PhysicalVolume {
    /// Reads the label.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn read(volume: &dyn Disk) -> Result<PhysicalVolume, Refused> {
        let mut head = [0; SECTOR_BYTES * LABEL_SECTORS];
        volume.read_at(0, &mut head)?;
        let mut labels = head
            .chunks_exact(SECTOR_BYTES)
            .zip(0u64..)
            .filter(|(sector, _)| sector.starts_with(b"LABELONE"));
        let damaged = || Refused::new("its LVM label is damaged");
        let (sector, number) = labels.next().ok_or_else(damaged)?;
        if labels.next().is_some()
            || le64(sector, 8)? != number
            || CRC.checksum(&sector[20..]) != le32(sector, 16)?
        {
            return Err(damaged());
        }
        let at = le32(sector, 20)? as usize;
        let header = sector.get(at..).filter(|rest| rest.len() > 40).ok_or_else(damaged)?;
        let uuid = header[..32].iter().map(|&byte| char::from(byte)).collect();
        let mut lists = [Vec::new(), Vec::new()];
        let mut place = 40;
        for list in &mut lists {
            loop {
                let (offset, length) = (le64(header, place)?, le64(header, place + 8)?);
                place += 16;
                if offset == 0 {
                    break;
                }
                if list.len() == AREAS_MAX {
                    return Err(damaged());
                }
                list.push((offset, length));
            }
        }
        let [_, areas] = lists;
        Ok(PhysicalVolume { uuid, areas })
    }

    /// The committed metadata; nothing if this volume holds none.
    ///
    /// # Errors
    /// It is damaged, or two areas disagree.
    pub fn metadata(&self, volume: &dyn Disk) -> Result<Option<Vec<u8>>, Refused> {
        let mut found: Option<Vec<u8>> = None;
        for &(offset, length) in &self.areas {
            let Some(text) = area(volume, offset, length)? else { continue };
            if found.as_ref().is_some_and(|other| *other != text) {
                return Err(Refused::new("its two copies of the LVM metadata disagree"));
            }
            found = Some(text);
        }
        Ok(found)
    }
}

/// The text of one area.
fn area(volume: &dyn Disk, offset: u64, length: u64) -> Result<Option<Vec<u8>>, Refused> {
    let damaged = || Refused::new("its LVM metadata is damaged");
    let mut header = [0; AREA_HEADER_BYTES as usize];
    volume.read_at(offset, &mut header)?;
    if CRC.checksum(&header[4..]) != le32(&header, 0)?
        || &header[4..20] != AREA_MAGIC
        || le32(&header, 20)? != 1
        || le64(&header, 24)? != offset
    {
        return Err(damaged());
    }
    let (start, size) = (le64(&header, 40)?, le64(&header, 48)?);
    let (checksum, flags) = (le32(&header, 56)?, le32(&header, 60)?);
    if start == 0 || flags & 1 != 0 {
        return Ok(None);
    }
    let room = length.checked_sub(AREA_HEADER_BYTES).ok_or_else(damaged)?;
    if size == 0 || size > room.min(limits::LVM_TEXT_BYTES_MAX) || !(512..length).contains(&start) {
        return Err(damaged());
    }
    let mut text = vec![0; size as usize];
    // The area is a ring behind its header.
    let first = size.min(length - start) as usize;
    let (straight, wrapped) = text.split_at_mut(first);
    read_long(volume, offset.checked_add(start).ok_or_else(damaged)?, straight)?;
    read_long(volume, offset.checked_add(AREA_HEADER_BYTES).ok_or_else(damaged)?, wrapped)?;
    if CRC.checksum(&text) != checksum {
        return Err(damaged());
    }
    Ok(Some(text))
}

fn read_long(volume: &dyn Disk, offset: u64, into: &mut [u8]) -> Result<(), Refused> {
    let mut at = offset;
    for part in into.chunks_mut(limits::READ_BYTES_MAX) {
        volume.read_at(at, part)?;
        at = at.saturating_add(part.len() as u64);
    }
    Ok(())
}
