//! Reading a pack from end to end: after a crash, to seal it, and to verify it.
//!
//! In: a pack file. Out: the records that are whole, and the places where one was and is not.
//! Invariant: a damaged record hides no other; the search goes on at the next 4 KiB.

use std::io;

use gantry_common::ids::RepositoryId;
use gantry_common::limits;

use super::footer::{PACK_HEAD_BYTES, PackHead, Slot, encode_footer};
use super::layout::ALIGN;
use super::record::{RECORD_HEAD_BYTES, RECORD_MAGIC, RecordFault, RecordHead};
use super::storage::StorageFile;

const WINDOW_BYTES: usize = 8 << 20;
const _: () = assert!(WINDOW_BYTES >= 2 * limits::STORED_BYTES_MAX as usize);

/// A pack read in large pieces.
#[derive(Debug)]
pub struct PackBytes<'a, F> {
    file: &'a F,
    len: u64,
    start: u64,
    window: Vec<u8>,
    /// Bytes read from the file so far.
    pub bytes_read: u64,
    /// Pages that the disk did not give; they came as zeros.
    pub pages_unreadable: u64,
}

impl<'a, F: StorageFile> PackBytes<'a, F> {
    /// At the start of `file`.
    ///
    /// # Errors
    /// Whatever measuring the file gives.
    pub fn new(file: &'a F) -> io::Result<PackBytes<'a, F>> {
        let (len, window) = (file.len()?, Vec::new());
        Ok(PackBytes { file, len, start: 0, window, bytes_read: 0, pages_unreadable: 0 })
    }

    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes at `offset`, fewer than `count` at the file's end. Unreadable sectors come as
    /// zeros, so that one bad sector does not hide the rest.
    pub fn at(&mut self, offset: u64, count: usize) -> &[u8] {
        let end = offset.saturating_add(count as u64).min(self.len);
        if offset < self.start || end > self.start + self.window.len() as u64 {
            self.load(offset);
        }
        let from = offset.saturating_sub(self.start) as usize;
        let to = end.saturating_sub(self.start) as usize;
        self.window.get(from..to).unwrap_or(&[])
    }

    fn load(&mut self, offset: u64) {
        self.start = offset;
        let count = self.len.saturating_sub(offset).min(WINDOW_BYTES as u64) as usize;
        self.window.resize(count, 0);
        self.bytes_read += count as u64;
        if self.file.read_exact_at(offset, &mut self.window).is_ok() {
            return;
        }
        let mut at = offset;
        for piece in self.window.chunks_mut(ALIGN as usize) {
            if self.file.read_exact_at(at, piece).is_err() {
                piece.fill(0);
                self.pages_unreadable += 1;
            }
            at += piece.len() as u64;
        }
    }

    /// The record at `offset`, its stored bytes checked against their checksum.
    ///
    /// # Errors
    /// [`RecordFault`].
    pub fn record(
        &mut self,
        offset: u64,
        repository: RepositoryId,
    ) -> Result<(RecordHead, &[u8]), RecordFault> {
        let head = RecordHead::decode(self.at(offset, RECORD_HEAD_BYTES), repository)?;
        let wanted = head.stored_len as usize;
        let stored = self.at(offset + RECORD_HEAD_BYTES as u64, wanted);
        if stored.len() < wanted {
            return Err(RecordFault::Short);
        }
        head.check_stored(stored)?;
        Ok((head, stored))
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Whole records, in order.
    pub slots: Vec<Slot>,
    /// Where a record began that is not whole.
    pub damaged: Vec<(u64, RecordFault)>,
    /// The byte after the last page that is not all zeros: what follows was only reserved.
    pub data_end: u64,
    /// Pages that the disk did not give: what stands there is not known, so nothing may be cut,
    /// sealed or removed.
    pub pages_unreadable: u64,
}

impl Scan {
    /// Where a footer may be written: nothing before it is lost, not even what is damaged.
    pub fn end(&self) -> u64 {
        self.slots.last().map_or(PACK_HEAD_BYTES, Slot::end).max(self.data_end)
    }
}

/// Finds every whole record of a pack, whatever stands between them.
///
/// # Errors
/// Only if the file cannot be measured.
pub fn scan_pack<F: StorageFile>(file: &F, repository: RepositoryId) -> io::Result<Scan> {
    let mut bytes = PackBytes::new(file)?;
    let mut scan = Scan::default();
    let mut offset = PACK_HEAD_BYTES;
    while offset < bytes.len() && scan.slots.len() < limits::PACK_RECORDS_MAX {
        let record = bytes.record(offset, repository).map(|(head, _)| head);
        match record {
            Ok(head) => {
                scan.slots.push(Slot::of(&head, offset));
                offset += head.record_bytes();
                continue;
            }
            Err(fault) if bytes.at(offset, RECORD_MAGIC.len()) == RECORD_MAGIC => {
                scan.damaged.push((offset, fault));
            }
            Err(_) => {}
        }
        if bytes.at(offset, ALIGN as usize).iter().any(|byte| *byte != 0) {
            scan.data_end = (offset + ALIGN).min(bytes.len().next_multiple_of(ALIGN));
        }
        offset += ALIGN;
    }
    scan.pages_unreadable = bytes.pages_unreadable;
    Ok(scan)
}

/// Seals a pack that a crash left open: cuts what was only reserved, writes the footer, and makes
/// it durable. The header is written anew where the crash took it.
///
/// # Errors
/// Whatever the file gives; the pack is then still open, and can be scanned again.
pub fn seal_scanned<F: StorageFile>(file: &F, scan: &Scan, head: &PackHead) -> io::Result<u64> {
    let end = scan.end();
    if PackHead::read(file, head.repository, head.number).is_err() {
        file.write_at(0, &head.encode())?;
    }
    file.set_len(end)?;
    // The scan may have read what a killed process left unsynced: a footer comes after its records.
    file.sync_data()?;
    let footer = encode_footer(&scan.slots, end, head.number);
    file.write_at(end, &footer)?;
    file.sync_data()?;
    Ok(end + footer.len() as u64)
}
