//! Writes a stream front to back: a disk's data in order in, a streamOptimized VMDK out.
//!
//! In: bytes of the disk with growing, grain-aligned offsets; what is left out, and grains of
//! zeros, become holes. Out: bytes on any [`Write`], in the order of [`crate::stream`].
//! Invariant: what is written is a disk only after [`Writer::finish`]; a writer that is dropped
//! leaves a stream without its end, which every reader refuses.
//! Memory: one grain, its deflated form, one table, and the directory (4 bytes for 32 MiB of disk).

use std::io::{self, Write};

use flate2::{Compress, Compression, FlushCompress, Status};

use crate::bytes::{Sector, all_zero};
use crate::grain::{self, MARKER_BYTES};
use crate::limits::{HOSTED_TABLE_ENTRIES, SECTOR_BYTES};
use crate::sparse::hosted::{HostedHeader, check_geometry};
use crate::stream::marker::Marker;

/// Sectors of a grain: 64 KiB, what every product writes and some insist on.
const GRAIN_SECTORS: u64 = 128;
/// Sectors for the descriptor, and for it with the header, as VMware's products lay them out.
const DESCRIPTOR_SECTORS: u64 = 20;
const OVERHEAD_SECTORS: u64 = 128;
/// What heads and sectors a disk shows to old guests.
const GEOMETRY_HEADS: u64 = 255;
const GEOMETRY_SECTORS: u64 = 63;

/// Why a stream cannot be written on.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The sink failed.
    #[error("writing the stream failed: {0}")]
    Io(#[from] io::Error),
    /// The disk's size or an option is not possible.
    #[error("no stream can be written: {0}")]
    Options(String),
    /// Data came in an order or a place that a stream cannot have.
    #[error("data of disk byte {offset} ({length} bytes) cannot be written: {why}")]
    Order {
        /// First byte on the disk.
        offset: u64,
        /// Number of bytes.
        length: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// The stream has reached the largest size that its tables can name.
    #[error("the stream has reached 2 TiB, the most that the format can hold")]
    TooLarge,
}

/// What a stream is to say of its disk.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// The disk's size: a multiple of 512 bytes, at most 64 TiB.
    pub size_bytes: u64,
    /// zlib level, 0 to 9.
    pub level: u32,
    /// `CID` of the descriptor; neither 0 nor `ffffffff`, which mean something else.
    pub content_id: u32,
    /// `ddb.uuid`, as 16 bytes, if the disk is to keep one.
    pub uuid: Option<[u8; 16]>,
    /// `ddb.adapterType`: `lsilogic`, `buslogic` or `ide`.
    pub adapter: &'static str,
}

impl WriterOptions {
    /// What suits a disk of `size_bytes`: fast compression, a SCSI adapter.
    pub fn new(size_bytes: u64) -> WriterOptions {
        WriterOptions {
            size_bytes,
            level: 1,
            content_id: 0xffff_fffe,
            uuid: None,
            adapter: "lsilogic",
        }
    }
}

/// A stream that is being written.
pub struct Writer<W> {
    sink: W,
    header: HostedHeader,
    /// Sectors written.
    position: u64,
    compress: Compress,
    deflated: Vec<u8>,
    padded: Vec<u8>,
    /// Number of the next grain that may come.
    next_grain: u64,
    table: Vec<u32>,
    /// Number of the table that is being filled, if it has a grain.
    table_number: Option<u64>,
    directory: Vec<u32>,
}

impl<W: Write> Writer<W> {
    /// Writes header and descriptor.
    ///
    /// # Errors
    /// [`WriterError`] for a size that no stream can have, or a sink that fails.
    pub fn new(mut sink: W, options: &WriterOptions) -> Result<Writer<W>, WriterError> {
        let capacity = options.size_bytes / SECTOR_BYTES;
        if !options.size_bytes.is_multiple_of(SECTOR_BYTES) {
            let why = format!("{} bytes are no whole sectors", options.size_bytes);
            return Err(WriterError::Options(why));
        }
        check_geometry(capacity, GRAIN_SECTORS).map_err(WriterError::Options)?;
        if options.level > 9 || matches!(options.content_id, 0 | u32::MAX) {
            let why = "the level is at most 9, and the content id neither 0 nor ffffffff";
            return Err(WriterError::Options(why.into()));
        }
        if !["lsilogic", "buslogic", "ide"].contains(&options.adapter) {
            return Err(WriterError::Options(format!("adapter {} is not known", options.adapter)));
        }
        let header =
            HostedHeader::stream(capacity, GRAIN_SECTORS, DESCRIPTOR_SECTORS, OVERHEAD_SECTORS);
        let mut front = header.encode().to_vec();
        front.extend_from_slice(descriptor(options).as_bytes());
        front.resize((OVERHEAD_SECTORS * SECTOR_BYTES) as usize, 0);
        sink.write_all(&front)?;
        let grain_bytes = GRAIN_SECTORS * SECTOR_BYTES;
        Ok(Writer {
            sink,
            header,
            position: OVERHEAD_SECTORS,
            compress: Compress::new(Compression::new(options.level), true),
            deflated: vec![0; MARKER_BYTES + grain::deflated_bytes_max(grain_bytes) as usize],
            padded: Vec::new(),
            next_grain: 0,
            table: vec![0; HOSTED_TABLE_ENTRIES as usize],
            table_number: None,
            directory: vec![0; header.tables() as usize],
        })
    }

    /// Bytes of a grain: the unit of offsets and lengths.
    pub const GRAIN_BYTES: u64 = GRAIN_SECTORS * SECTOR_BYTES;

    /// Bytes of the stream that were written so far.
    pub fn position_bytes(&self) -> u64 {
        self.position * SECTOR_BYTES
    }

    /// Writes `data`, which stands at `offset` of the disk. Offset and length are multiples of
    /// [`Writer::GRAIN_BYTES`], but the length of what reaches the disk's end; offsets only grow.
    ///
    /// # Errors
    /// [`WriterError::Order`] for data that cannot stand there; nothing of it was written.
    /// After any other error the stream is lost.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), WriterError> {
        let order = |why| WriterError::Order { offset, length: data.len(), why };
        let size = self.header.capacity * SECTOR_BYTES;
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= size);
        let Some(end) = end else { return Err(order("it is beyond the disk's end")) };
        if !offset.is_multiple_of(Self::GRAIN_BYTES) {
            return Err(order("the offset is no multiple of a grain"));
        }
        if !end.is_multiple_of(Self::GRAIN_BYTES) && end != size {
            return Err(order("it ends within a grain"));
        }
        let first = offset / Self::GRAIN_BYTES;
        if first < self.next_grain {
            return Err(order("a stream cannot go back"));
        }
        for (index, grain) in (first..).zip(data.chunks(Self::GRAIN_BYTES as usize)) {
            if !all_zero(grain) {
                self.grain(index, grain)?;
            }
            self.next_grain = index + 1;
        }
        Ok(())
    }

    /// Writes tables, directory, footer and end, flushes, and gives the sink back.
    ///
    /// # Errors
    /// [`WriterError`] if the sink fails.
    pub fn finish(mut self) -> Result<W, WriterError> {
        self.flush_table()?;
        let directory: Vec<u8> = self.directory.iter().flat_map(|e| e.to_le_bytes()).collect();
        let sectors = (directory.len() as u64).div_ceil(SECTOR_BYTES);
        let place = self.part(Marker::Directory { sectors }, &directory)?;
        let footer = HostedHeader { directory: place, ..self.header };
        self.part(Marker::Footer { sectors: 1 }, &footer.encode())?;
        self.part(Marker::End, &[])?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    fn grain(&mut self, index: u64, data: &[u8]) -> Result<(), WriterError> {
        let number = index / HOSTED_TABLE_ENTRIES;
        if self.table_number != Some(number) {
            self.flush_table()?;
            self.table_number = Some(number);
        }
        let place = self.place()?;
        self.table[(index % HOSTED_TABLE_ENTRIES) as usize] = place;
        let whole = Self::GRAIN_BYTES as usize;
        let mut padded = std::mem::take(&mut self.padded);
        let data = if data.len() < whole {
            padded.clear();
            padded.extend_from_slice(data);
            padded.resize(whole, 0);
            &padded
        } else {
            data
        };
        self.compress.reset();
        let status = self
            .compress
            .compress(data, &mut self.deflated[MARKER_BYTES..], FlushCompress::Finish)
            .map_err(io::Error::other)?;
        if status != Status::StreamEnd {
            return Err(io::Error::other("a grain did not fit its buffer when deflated").into());
        }
        let length = self.compress.total_out() as usize;
        self.padded = padded;
        self.deflated[..8].copy_from_slice(&(index * GRAIN_SECTORS).to_le_bytes());
        self.deflated[8..MARKER_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
        let written = MARKER_BYTES + length;
        self.sink.write_all(&self.deflated[..written])?;
        self.pad(written)
    }

    fn flush_table(&mut self) -> Result<(), WriterError> {
        let Some(number) = self.table_number.take() else { return Ok(()) };
        let entries: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let sectors = entries.len() as u64 / SECTOR_BYTES;
        let place = self.part(Marker::Table { sectors }, &entries)?;
        self.directory[number as usize] =
            u32::try_from(place).map_err(|_| WriterError::TooLarge)?;
        self.table.fill(0);
        Ok(())
    }

    /// Writes a marker and what it announces; gives the sector where that begins.
    fn part(&mut self, marker: Marker, content: &[u8]) -> Result<u64, WriterError> {
        self.sink.write_all(&marker.encode())?;
        self.position += 1;
        let place = self.position;
        self.sink.write_all(content)?;
        self.pad(content.len())?;
        Ok(place)
    }

    /// Fills up the sector after `written` bytes, and counts them all.
    fn pad(&mut self, written: usize) -> Result<(), WriterError> {
        let whole = written.next_multiple_of(SECTOR_BYTES as usize);
        let zeros: Sector = [0; SECTOR_BYTES as usize];
        self.sink.write_all(&zeros[..whole - written])?;
        self.position += whole as u64 / SECTOR_BYTES;
        Ok(())
    }

    /// The current sector, as a table names it.
    fn place(&self) -> Result<u32, WriterError> {
        u32::try_from(self.position).map_err(|_| WriterError::TooLarge)
    }
}

/// The descriptor of a stream; fits its sectors whatever the options are.
fn descriptor(options: &WriterOptions) -> String {
    let sectors = options.size_bytes / SECTOR_BYTES;
    let cylinders = (sectors / (GEOMETRY_HEADS * GEOMETRY_SECTORS)).clamp(1, 65_535);
    let mut text = format!(
        "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID=ffffffff\n\
         createType=\"streamOptimized\"\n\n# Extent description\n\
         RDONLY {sectors} SPARSE \"generated-stream.vmdk\"\n\n# The Disk Data Base\n#DDB\n\n\
         ddb.adapterType = \"{}\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{GEOMETRY_HEADS}\"\nddb.geometry.sectors = \"{GEOMETRY_SECTORS}\"\n\
         ddb.virtualHWVersion = \"4\"\n",
        options.content_id, options.adapter
    );
    if let Some(uuid) = options.uuid {
        let hex = |bytes: &[u8]| {
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
        };
        text += &format!("ddb.uuid = \"{}-{}\"\n", hex(&uuid[..8]), hex(&uuid[8..]));
    }
    text
}
