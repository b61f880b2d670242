//! The streamOptimized VMDK of a frozen disk, as an NFC lease serves it.
//!
//! In: a disk at a snapshot, or a disk whose VM is off. Out: the stream's bytes, made as they are
//! read: memory is a part of the disk and its deflated form. Invariant: the lock is held for one
//! part at a time, and the chain is looked up anew for each, since merges below the snapshot move
//! it. A snapshot that goes away ends the stream with an error.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use gantry_vmdk::stream::{Writer, WriterError, WriterOptions};

use super::Shared;
use super::chain::{join, parts};
use super::error::{Result, StorageError};
use super::path::DatastorePath;
use super::state::{DiskId, LinkId, SnapshotId};
use super::world::World;

/// Bytes of the stream that the writer has made and nobody has read yet.
#[derive(Debug, Clone, Default)]
struct Made(Arc<Mutex<VecDeque<u8>>>);

impl Write for Made {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that is being read.
pub struct ExportStream {
    shared: Arc<Shared>,
    disk: DiskId,
    snapshot: Option<SnapshotId>,
    file: DatastorePath,
    parts: std::vec::IntoIter<Range<u64>>,
    /// None once the end has been written.
    writer: Option<Writer<Made>>,
    made: Made,
}

impl ExportStream {
    pub(super) fn open(
        shared: &Arc<Shared>,
        disk: DiskId,
        snapshot: Option<SnapshotId>,
    ) -> Result<ExportStream> {
        let world = shared.lock();
        let link = world.export_link(disk, snapshot)?;
        let state = world.state.disk(disk)?;
        let grain = Writer::<Made>::GRAIN_BYTES;
        let grains = world.allocated(link)?.into_iter().map(|range| {
            let end = range.end.next_multiple_of(grain).min(state.capacity_bytes);
            range.start - range.start % grain..end
        });
        let parts: Vec<Range<u64>> = join(grains.collect()).into_iter().flat_map(parts).collect();
        let mut options = WriterOptions::new(state.capacity_bytes);
        options.content_id = world.state.link(link)?.cid;
        let digits: String = state.uuid.chars().filter(char::is_ascii_hexdigit).collect();
        options.uuid = u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes);
        let made = Made::default();
        let writer = Writer::new(made.clone(), &options);
        let writer = writer.map_err(|e| failed(&state.file, &e))?;
        Ok(ExportStream {
            shared: Arc::clone(shared),
            disk,
            snapshot,
            file: state.file.clone(),
            parts: parts.into_iter(),
            writer: Some(writer),
            made,
        })
    }

    /// Makes the next bytes. False at the end of the stream.
    fn advance(&mut self) -> Result<bool> {
        let Some(part) = self.parts.next() else {
            let Some(writer) = self.writer.take() else { return Ok(false) };
            writer.finish().map_err(|e| failed(&self.file, &e))?;
            return Ok(true);
        };
        self.shared.pass_read(&self.file, part.clone())?;
        let mut bytes = vec![0; (part.end - part.start) as usize];
        {
            let world = self.shared.lock();
            let link = world.export_link(self.disk, self.snapshot)?;
            world.read_link(link, part.start, &mut bytes)?;
        }
        if let Some(writer) = &mut self.writer {
            writer.write(part.start, &bytes).map_err(|e| failed(&self.file, &e))?;
        }
        Ok(true)
    }
}

impl Read for ExportStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let made = Arc::clone(&self.made.0);
            let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
            if !made.is_empty() || buf.is_empty() {
                return made.read(buf);
            }
            drop(made);
            if !self.advance().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
    }
}

fn failed(file: &DatastorePath, error: &WriterError) -> StorageError {
    StorageError::Invalid(format!("{file} cannot be exported: {error}"))
}

impl World {
    /// The link to export: a snapshot's, or the live one of a VM that is off.
    fn export_link(&self, disk: DiskId, snapshot: Option<SnapshotId>) -> Result<LinkId> {
        if let Some(snapshot) = snapshot {
            return Ok(self.state.frozen(snapshot, disk)?.link);
        }
        let state = self.state.disk(disk)?;
        if state.powered_on {
            let file = state.file.to_string();
            return Err(StorageError::Locked { file, holder: "its VM runs".into() });
        }
        Ok(state.live)
    }
}
