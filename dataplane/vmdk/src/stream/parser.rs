//! Reads a stream front to back: bytes in, grains of the disk out, in order.
//!
//! In: any [`Read`]. Out: [`Grain`]s with growing offsets; what is between them is zero. After the
//! last one the footer, the tables and the directory have been found to agree with what came.
//! Invariant: a stream that was cut, or that lacks a grain which its tables list, ends in an error,
//! never in silence. Memory: one grain plain, one deflated, and the [`Audit`].
//! Must not: seek, or take a length without a bound.

use std::io::{self, Read};

use crate::bytes::Sector;
use crate::descriptor::Descriptor;
use crate::grain::{self, Inflater, MARKER_BYTES};
use crate::limits::{DESCRIPTOR_BYTES_MAX, HOSTED_TABLE_ENTRIES, SECTOR_BYTES};
use crate::sparse::hosted::{DIRECTORY_AT_END, HostedHeader};
use crate::stream::audit::Audit;
use crate::stream::marker::Marker;

/// Sectors before the first grain that are believed: header, descriptor, padding.
const OVERHEAD_SECTORS_MAX: u64 = 2 * DESCRIPTOR_BYTES_MAX / SECTOR_BYTES;

/// Why a stream cannot be read on. Offsets are bytes of the stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The source of the bytes failed.
    #[error("reading the stream failed at byte {offset}: {source}")]
    Io {
        /// Bytes that had come before.
        offset: u64,
        /// The source's error.
        source: io::Error,
    },
    /// The bytes ended before the stream's end marker.
    #[error("the stream was cut: it ends at byte {offset}, within {what}")]
    Truncated {
        /// Bytes that came.
        offset: u64,
        /// What was being read.
        what: &'static str,
    },
    /// It is no stream that can be read front to back.
    #[error("this is no streamOptimized export: {why}")]
    NotAStream {
        /// What it is instead.
        why: String,
    },
    /// A part makes no sense.
    #[error("the stream is damaged at byte {offset}: {why}")]
    Damaged {
        /// Where the part begins.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// A grain lies before or on the one that came last.
    #[error(
        "the stream goes back at byte {offset}: a grain of disk byte {found} after that of {last}"
    )]
    Backwards {
        /// Where the grain's marker stands.
        offset: u64,
        /// Its place on the disk in bytes.
        found: u64,
        /// The last grain's place on the disk in bytes.
        last: u64,
    },
    /// The tables and the grains that came disagree.
    #[error("the stream's tables do not fit its grains at byte {offset}: {why}")]
    Inconsistent {
        /// Where the directory stands.
        offset: u64,
        /// How they differ.
        why: String,
    },
}

/// What the header and the descriptor say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// Bytes of a grain, the most that one [`Grain`] has.
    pub grain_bytes: u64,
    /// `CID` of the descriptor, if there is one.
    pub content_id: Option<u32>,
    /// `ddb.uuid` of the descriptor, in the form in which vSphere names disks.
    pub uuid: Option<String>,
}

/// Some of the disk's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grain<'a> {
    /// Where on the disk they begin, in bytes.
    pub offset: u64,
    /// The bytes; at the disk's end fewer than a grain.
    pub data: &'a [u8],
}

/// A stream that is being read.
pub struct Parser<R> {
    source: R,
    /// Bytes taken from the source.
    position: u64,
    header: HostedHeader,
    info: StreamInfo,
    inflater: Inflater,
    deflated: Vec<u8>,
    plain: Vec<u8>,
    /// Number of the last grain that came.
    last_grain: Option<u64>,
    audit: Audit,
    /// Sector of the stream where the directory's entries begin, once it has come.
    directory: Option<u64>,
    footer_came: bool,
    ended: bool,
}

impl<R: Read> Parser<R> {
    /// Reads header and descriptor.
    ///
    /// # Errors
    /// [`StreamError`]; `NotAStream` also for an image whose tables stand in front (qemu-img writes
    /// those): they cannot be checked front to back, and [`crate::Image`] reads them.
    pub fn new(source: R) -> Result<Parser<R>, StreamError> {
        let mut input = Input { source, position: 0 };
        let mut sector: Sector = [0; SECTOR_BYTES as usize];
        input.fill(&mut sector, "the header")?;
        let header = HostedHeader::parse(&sector).map_err(|why| StreamError::NotAStream { why })?;
        if !header.compressed() {
            return Err(StreamError::NotAStream { why: "its grains are not compressed".into() });
        }
        if header.directory != DIRECTORY_AT_END {
            let why = "its directory is not at the end; open it as an image".into();
            return Err(StreamError::NotAStream { why });
        }
        let damaged = |why: &str| StreamError::Damaged { offset: 0, why: why.into() };
        if header.overhead == 0 || header.overhead > OVERHEAD_SECTORS_MAX {
            return Err(damaged("the header's overhead is not believable"));
        }
        let mut front = vec![0; ((header.overhead - 1) * SECTOR_BYTES) as usize];
        input.fill(&mut front, "the descriptor")?;
        let descriptor = descriptor(&header, &front)?;
        let grain_bytes = header.grain * SECTOR_BYTES;
        let info = StreamInfo {
            size_bytes: header.capacity * SECTOR_BYTES,
            grain_bytes,
            content_id: descriptor.as_ref().map(|descriptor| descriptor.content_id),
            uuid: descriptor.and_then(|descriptor| descriptor.uuid),
        };
        Ok(Parser {
            source: input.source,
            position: input.position,
            header,
            info,
            inflater: Inflater::new(),
            deflated: Vec::new(),
            plain: vec![0; grain_bytes as usize],
            last_grain: None,
            audit: Audit::default(),
            directory: None,
            footer_came: false,
            ended: false,
        })
    }

    /// What the header and the descriptor say.
    pub fn info(&self) -> &StreamInfo {
        &self.info
    }

    /// Bytes of the stream that were read so far.
    pub fn position_bytes(&self) -> u64 {
        self.position
    }

    /// Gives the source back, which stands behind the end marker if [`Parser::next_grain`] gave `None`.
    pub fn into_inner(self) -> R {
        self.source
    }

    /// The next grain, or `None` at the end of a stream that was found whole.
    ///
    /// # Errors
    /// [`StreamError`]; what came before it is as the stream had it, but the stream as a whole must
    /// not be taken for the disk.
    pub fn next_grain(&mut self) -> Result<Option<Grain<'_>>, StreamError> {
        while !self.ended {
            let start = self.position;
            let mut sector: Sector = [0; SECTOR_BYTES as usize];
            self.fill(&mut sector, "a marker")?;
            let damaged = |why| StreamError::Damaged { offset: start, why };
            match Marker::parse(&sector).map_err(damaged)? {
                Marker::Grain { lba, deflated_bytes } => {
                    let grain = self.place(start, lba)?;
                    let made = self.grain(start, grain, deflated_bytes, &sector)?;
                    let offset = grain * self.info.grain_bytes;
                    return Ok(Some(Grain { offset, data: &self.plain[..made] }));
                }
                Marker::Table { sectors } => self.table(start, sectors)?,
                Marker::Directory { sectors } => self.directory(start, sectors)?,
                Marker::Footer { sectors } => self.footer(start, sectors)?,
                Marker::Progress => self.audit.progress(),
                Marker::End => self.end(start)?,
            }
        }
        Ok(None)
    }

    /// The number of a grain, if a grain may come now and there.
    fn place(&mut self, start: u64, lba: u64) -> Result<u64, StreamError> {
        let damaged = |why: String| StreamError::Damaged { offset: start, why };
        if self.directory.is_some() {
            return Err(damaged("a grain comes after the directory".into()));
        }
        if lba >= self.header.capacity || !lba.is_multiple_of(self.header.grain) {
            return Err(damaged(format!(
                "a grain of disk sector {lba} fits neither the disk's {} sectors nor its grains",
                self.header.capacity
            )));
        }
        let grain = lba / self.header.grain;
        if let Some(last) = self.last_grain.filter(|&last| last >= grain) {
            return Err(StreamError::Backwards {
                offset: start,
                found: lba * SECTOR_BYTES,
                last: last * self.info.grain_bytes,
            });
        }
        let sector = u32::try_from(start / SECTOR_BYTES)
            .map_err(|_| damaged("no table can name a grain beyond 2 TiB".into()))?;
        self.audit.grain(grain, sector);
        self.last_grain = Some(grain);
        Ok(grain)
    }

    /// Reads and inflates a grain, and gives its length on the disk.
    fn grain(
        &mut self,
        start: u64,
        grain: u64,
        deflated_bytes: u32,
        sector: &Sector,
    ) -> Result<usize, StreamError> {
        let grain_bytes = self.info.grain_bytes;
        let damaged = |why: String| StreamError::Damaged { offset: start, why };
        let max = grain::deflated_bytes_max(grain_bytes);
        if u64::from(deflated_bytes) > max {
            return Err(damaged(format!(
                "a grain of {deflated_bytes} deflated bytes exceeds {max}"
            )));
        }
        let first = &sector[MARKER_BYTES..];
        let whole =
            (MARKER_BYTES + deflated_bytes as usize).next_multiple_of(SECTOR_BYTES as usize);
        let mut deflated = std::mem::take(&mut self.deflated);
        deflated.clear();
        deflated.extend_from_slice(first);
        deflated.resize(whole - MARKER_BYTES, 0);
        self.fill(&mut deflated[first.len()..], "a grain")?;
        let left = self.info.size_bytes - grain * grain_bytes;
        let made = self
            .inflater
            .inflate(&deflated[..deflated_bytes as usize], &mut self.plain)
            .and_then(|made| grain::check_length(made, grain_bytes, left));
        self.deflated = deflated;
        made.map_err(|why| {
            damaged(format!("the grain of disk byte {}: {why}", grain * grain_bytes))
        })?;
        Ok(grain_bytes.min(left) as usize)
    }

    fn table(&mut self, start: u64, sectors: u64) -> Result<(), StreamError> {
        let damaged = |why: String| StreamError::Damaged { offset: start, why };
        if sectors != HOSTED_TABLE_ENTRIES * 4 / SECTOR_BYTES {
            return Err(damaged(format!("a grain table of {sectors} sectors")));
        }
        let place = u32::try_from(self.position / SECTOR_BYTES)
            .map_err(|_| damaged("no directory can name a table beyond 2 TiB".into()))?;
        let mut entries = [0; HOSTED_TABLE_ENTRIES as usize * 4];
        self.fill(&mut entries, "a grain table")?;
        self.audit.table(place, &entries, self.header.zero_grains());
        Ok(())
    }

    fn directory(&mut self, start: u64, sectors: u64) -> Result<(), StreamError> {
        let tables = self.header.tables();
        let wanted = (tables * 4).div_ceil(SECTOR_BYTES);
        if sectors != wanted || self.directory.is_some() {
            let why = format!("a directory of {sectors} sectors instead of one of {wanted}");
            return Err(StreamError::Damaged { offset: start, why });
        }
        self.directory = Some(self.position / SECTOR_BYTES);
        let inconsistent = |why| StreamError::Inconsistent { offset: start, why };
        let mut sector: Sector = [0; SECTOR_BYTES as usize];
        let per_sector = SECTOR_BYTES / 4;
        for number in 0..sectors * per_sector {
            let at = (number % per_sector) as usize;
            if at == 0 {
                self.fill(&mut sector, "the grain directory")?;
            }
            let entry = crate::bytes::le32(&sector, at * 4);
            if number < tables {
                self.audit.directory_entry(number, entry).map_err(inconsistent)?;
            }
        }
        Ok(())
    }

    fn footer(&mut self, start: u64, sectors: u64) -> Result<(), StreamError> {
        let damaged = |why: String| StreamError::Damaged { offset: start, why };
        if sectors != 1 || self.footer_came {
            return Err(damaged(format!("a footer of {sectors} sectors, or a second one")));
        }
        let mut sector: Sector = [0; SECTOR_BYTES as usize];
        self.fill(&mut sector, "the footer")?;
        let footer = HostedHeader::parse(&sector).map_err(damaged)?;
        if (footer.capacity, footer.grain) != (self.header.capacity, self.header.grain) {
            return Err(damaged("the footer is of another disk than the header".into()));
        }
        let named = Some(footer.directory) == self.directory;
        if self.directory.is_none() || !(named || self.audit.shifted()) {
            return Err(damaged("the footer does not name the place of the directory".into()));
        }
        self.footer_came = true;
        Ok(())
    }

    fn end(&mut self, start: u64) -> Result<(), StreamError> {
        if !self.footer_came {
            let why = "the end comes before directory and footer".into();
            return Err(StreamError::Damaged { offset: start, why });
        }
        self.ended = true;
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), StreamError> {
        let mut input = Input { source: &mut self.source, position: self.position };
        let result = input.fill(buffer, what);
        self.position = input.position;
        result
    }
}

/// A source that knows how many bytes were taken.
struct Input<R> {
    source: R,
    position: u64,
}

impl<R: Read> Input<R> {
    fn fill(&mut self, mut buffer: &mut [u8], what: &'static str) -> Result<(), StreamError> {
        while !buffer.is_empty() {
            match self.source.read(buffer) {
                Ok(0) => return Err(StreamError::Truncated { offset: self.position, what }),
                Ok(count) => {
                    self.position += count as u64;
                    buffer = &mut buffer[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(StreamError::Io { offset: self.position, source }),
            }
        }
        Ok(())
    }
}

/// The descriptor within `front`, which begins behind the header.
fn descriptor(header: &HostedHeader, front: &[u8]) -> Result<Option<Descriptor>, StreamError> {
    let (offset, length) = (header.descriptor_offset, header.descriptor_length);
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    let damaged = |why: String| StreamError::Damaged { offset: offset.saturating_mul(512), why };
    let end = offset.checked_add(length).filter(|&end| end <= header.overhead);
    let Some(end) = end else { return Err(damaged("the descriptor is not in front".into())) };
    let bytes = &front[((offset - 1) * SECTOR_BYTES) as usize..((end - 1) * SECTOR_BYTES) as usize];
    if bytes.first() == Some(&0) {
        return Ok(None);
    }
    let descriptor = Descriptor::parse_embedded(bytes)
        .map_err(|(line, why)| damaged(format!("line {line} of the descriptor: {why}")))?;
    if descriptor.parent_id.is_some() {
        let why = "it is a delta, and a stream has no parent".into();
        return Err(StreamError::NotAStream { why });
    }
    Ok(Some(descriptor))
}
