//! One link of a chain: a descriptor and its extents, opened and checked.
//!
//! In: the place of a descriptor, or of an extent that holds its own. Out: a [`Link`] whose extents
//! cover its disk without a gap. Invariant: every place that a header names lies within its file,
//! and no byte of a file is in two extents. Must not: look at parents.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bytes::{Sector, le64};
use crate::datastore::{Datastore, Place};
use crate::descriptor::{Descriptor, ExtentKind, ExtentLine};
use crate::error::VmdkError;
use crate::limits::{DESCRIPTOR_BYTES_MAX, HOSTED_TABLE_ENTRIES, SECTOR_BYTES};
use crate::source_file::SourceFile;
use crate::sparse::hosted::{DIRECTORY_AT_END, HostedHeader};
use crate::sparse::{Geometry, Layout, SparseExtent, cowd, hosted, se_sparse};
use crate::stream::is_footer_marker;

/// Where an extent's bytes are.
#[derive(Debug)]
pub(crate) enum Body {
    /// In a file, as they are, from a byte on.
    Flat(Arc<SourceFile>, u64),
    Zero,
    Sparse(SparseExtent),
}

/// Part of a link's disk; `start` and `end` in bytes of the disk.
#[derive(Debug)]
pub(crate) struct Extent {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) body: Body,
}

/// One link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) path: PathBuf,
    /// None for a delta that was opened without its descriptor.
    pub(crate) descriptor: Option<Descriptor>,
    pub(crate) size_bytes: u64,
    /// In the order of the disk.
    pub(crate) extents: Vec<Extent>,
    pub(crate) format: String,
}

/// What a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Hosted,
    Cowd,
    SeSparse,
    Text,
}

/// Opens links, and remembers every file that they consist of.
pub(crate) struct Opener {
    pub(crate) datastore: Datastore,
    pub(crate) bare_delta: bool,
    pub(crate) files: Vec<Arc<SourceFile>>,
}

impl Opener {
    /// Opens the link at `place`; `from` is the file that names it.
    pub(crate) fn link(&mut self, from: &Path, place: &Place) -> Result<Link, VmdkError> {
        let (number, file) = self.file(from, place)?;
        match format(&file)? {
            Format::Text => self.described(&file),
            Format::Hosted => self.embedded(number, &file),
            Format::Cowd | Format::SeSparse if !self.bare_delta => Err(VmdkError::NotADisk {
                path: file.path().to_owned(),
                why: "it is the data of a delta; open the descriptor that names it".into(),
            }),
            other => {
                let body = sparse(number, &file, other)?;
                let name = if other == Format::Cowd { "vmfsSparse" } else { "seSparse" };
                Ok(single(&file, None, format!("{name} without descriptor"), body))
            }
        }
    }

    fn file(&mut self, from: &Path, place: &Place) -> Result<(usize, Arc<SourceFile>), VmdkError> {
        let file = Arc::new(self.datastore.open_file(from, place)?);
        self.files.push(Arc::clone(&file));
        Ok((self.files.len() - 1, file))
    }

    /// A descriptor file, and the extents that it names.
    fn described(&mut self, file: &Arc<SourceFile>) -> Result<Link, VmdkError> {
        let path = file.path().to_owned();
        let mut bytes = vec![0; file.size_bytes().min(DESCRIPTOR_BYTES_MAX) as usize];
        file.read_exact_at(0, &mut bytes, "the descriptor")?;
        let finding = |(line, why)| VmdkError::Descriptor { path: path.clone(), line, why };
        let descriptor = Descriptor::parse(&bytes).map_err(finding)?;
        refuse_obstacle(&path, &descriptor)?;
        let mut extents = Vec::with_capacity(descriptor.extents.len());
        let mut start = 0;
        for line in &descriptor.extents {
            let end = start + line.sectors * SECTOR_BYTES;
            let body = self.body(file, line)?;
            extents.push(Extent { start, end, body });
            start = end;
        }
        refuse_overlaps(&path, &extents)?;
        let size_bytes = descriptor.size_bytes();
        let format = descriptor.create_type.clone();
        Ok(Link { path, descriptor: Some(descriptor), size_bytes, extents, format })
    }

    fn body(&mut self, from: &SourceFile, line: &ExtentLine) -> Result<Body, VmdkError> {
        if line.kind == ExtentKind::Zero {
            return Ok(Body::Zero);
        }
        let place = self.datastore.named(from.place(), &line.file_name)?;
        let (number, file) = self.file(from.path(), &place)?;
        let needed = line.sectors * SECTOR_BYTES;
        if line.kind == ExtentKind::Flat {
            let offset = line.file_sector * SECTOR_BYTES;
            return if offset.checked_add(needed).is_some_and(|end| end <= file.size_bytes()) {
                Ok(Body::Flat(file, offset))
            } else {
                Err(VmdkError::Truncated {
                    path: file.path().to_owned(),
                    offset: file.size_bytes(),
                    size_bytes: file.size_bytes(),
                    what: "more of the extent that its descriptor announces",
                })
            };
        }
        let found = format(&file)?;
        let expected = match line.kind {
            ExtentKind::SeSparse => found == Format::SeSparse,
            _ => matches!(found, Format::Hosted | Format::Cowd),
        };
        if !expected {
            let why = format!(
                "{} names it as {:?}, but its first bytes are of another format",
                from.path().display(),
                line.kind
            );
            return Err(VmdkError::Damaged { path: file.path().to_owned(), offset: 0, why });
        }
        let sparse = sparse(number, &file, found)?;
        if sparse.geometry.capacity < line.sectors {
            let why = format!(
                "it holds {} sectors, where {} announces {}",
                sparse.geometry.capacity,
                from.path().display(),
                line.sectors
            );
            return Err(VmdkError::Damaged { path: file.path().to_owned(), offset: 0, why });
        }
        Ok(Body::Sparse(sparse))
    }

    /// A sparse extent that holds its own descriptor.
    fn embedded(&mut self, number: usize, file: &Arc<SourceFile>) -> Result<Link, VmdkError> {
        let path = file.path().to_owned();
        let header = hosted_header(file)?;
        let (offset, sectors) = (header.descriptor_offset, header.descriptor_length);
        let part = |path| VmdkError::NotADisk {
            path,
            why: "it is one extent of a disk; open the descriptor that names it".into(),
        };
        if offset == 0 || sectors == 0 {
            return Err(part(path));
        }
        let bytes =
            sectors.checked_mul(SECTOR_BYTES).filter(|&bytes| bytes <= DESCRIPTOR_BYTES_MAX);
        let place = offset.checked_mul(SECTOR_BYTES).filter(|&at| at < file.size_bytes());
        let (Some(bytes), Some(place)) = (bytes, place) else {
            let why = format!("a descriptor of {sectors} sectors at sector {offset}");
            return Err(VmdkError::Damaged { path, offset: 28, why });
        };
        let mut text = vec![0; bytes as usize];
        file.read_exact_at(place, &mut text, "the descriptor")?;
        if text.first() == Some(&0) {
            return Err(part(path));
        }
        let finding = |(line, why)| VmdkError::Descriptor { path: path.clone(), line, why };
        let descriptor = Descriptor::parse_embedded(&text).map_err(finding)?;
        refuse_obstacle(&path, &descriptor)?;
        if descriptor.extents.len() != 1 {
            let why = format!("it has {} extents, but is within one", descriptor.extents.len());
            return Err(VmdkError::Descriptor { path, line: 0, why });
        }
        let body = sparse(number, file, Format::Hosted)?;
        let format = descriptor.create_type.clone();
        Ok(single(file, Some(descriptor), format, body))
    }
}

fn single(
    file: &Arc<SourceFile>,
    descriptor: Option<Descriptor>,
    format: String,
    body: SparseExtent,
) -> Link {
    let size_bytes = body.geometry.capacity * SECTOR_BYTES;
    let extent = Extent { start: 0, end: size_bytes, body: Body::Sparse(body) };
    Link { path: file.path().to_owned(), descriptor, size_bytes, extents: vec![extent], format }
}

fn refuse_obstacle(path: &Path, descriptor: &Descriptor) -> Result<(), VmdkError> {
    match &descriptor.obstacle {
        Some(what) => Err(VmdkError::Unsupported { path: path.to_owned(), what: what.clone() }),
        None => Ok(()),
    }
}

/// Two extents that share bytes of a file are no disk that a product writes.
fn refuse_overlaps(path: &Path, extents: &[Extent]) -> Result<(), VmdkError> {
    let mut flat = Vec::new();
    let mut whole = HashSet::new();
    let mut shared = None;
    for extent in extents {
        match &extent.body {
            Body::Flat(file, offset) => {
                let state = file.state();
                let end = offset + (extent.end - extent.start);
                flat.push(((state.device, state.inode), *offset, end, file));
            }
            Body::Sparse(sparse) => {
                let state = sparse.file.state();
                if !whole.insert((state.device, state.inode)) {
                    shared = Some(Arc::clone(&sparse.file));
                }
            }
            Body::Zero => {}
        }
    }
    flat.sort_unstable_by_key(|&(id, offset, ..)| (id, offset));
    for pair in flat.windows(2) {
        if pair[0].0 == pair[1].0 && pair[1].1 < pair[0].2 {
            shared = Some(Arc::clone(pair[1].3));
        }
    }
    if let Some((.., file)) = flat.iter().find(|(id, ..)| whole.contains(id)) {
        shared = Some(Arc::clone(file));
    }
    match shared {
        None => Ok(()),
        Some(file) => Err(VmdkError::Descriptor {
            path: path.to_owned(),
            line: 0,
            why: format!("two of its extents are the same bytes of {}", file.path().display()),
        }),
    }
}

fn format(file: &SourceFile) -> Result<Format, VmdkError> {
    let mut first: Sector = [0; SECTOR_BYTES as usize];
    let count = file.read_up_to(0, &mut first)?;
    if first[..4] == hosted::MAGIC {
        return Ok(Format::Hosted);
    }
    if first[..4] == cowd::MAGIC {
        return Ok(Format::Cowd);
    }
    if le64(&first, 0) == se_sparse::MAGIC {
        return Ok(Format::SeSparse);
    }
    let not_a_disk =
        |why: &str| Err(VmdkError::NotADisk { path: file.path().to_owned(), why: why.to_owned() });
    if count == 0 {
        return not_a_disk("it is empty");
    }
    if file.size_bytes() > DESCRIPTOR_BYTES_MAX || !is_text(&first[..count.min(16)]) {
        return not_a_disk(
            "it does not begin like a VMDK; where it is the data of a flat disk (-flat.vmdk), open \
             the descriptor beside it",
        );
    }
    Ok(Format::Text)
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| !byte.is_ascii_control() || byte.is_ascii_whitespace())
}

fn sector_at(file: &SourceFile, offset: u64, what: &'static str) -> Result<Sector, VmdkError> {
    let mut sector = [0; SECTOR_BYTES as usize];
    file.read_exact_at(offset, &mut sector, what)?;
    Ok(sector)
}

/// The header in force: the footer, where the header says that the directory is at the end.
fn hosted_header(file: &SourceFile) -> Result<HostedHeader, VmdkError> {
    let damaged =
        |offset| move |why| VmdkError::Damaged { path: file.path().to_owned(), offset, why };
    let header = HostedHeader::parse(&sector_at(file, 0, "the header")?).map_err(damaged(0))?;
    if header.directory != DIRECTORY_AT_END {
        return Ok(header);
    }
    // The last three sectors: marker of the footer, footer, end marker.
    let Some(place) = file.size_bytes().checked_sub(3 * SECTOR_BYTES) else {
        return Err(damaged(0)("it is too short for its footer".into()));
    };
    let marker = sector_at(file, place, "the footer's marker")?;
    if !is_footer_marker(&marker) {
        let why = "its footer is missing: the stream was cut, or is still being written";
        return Err(damaged(place)(why.into()));
    }
    let place = place + SECTOR_BYTES;
    let footer =
        HostedHeader::parse(&sector_at(file, place, "the footer")?).map_err(damaged(place))?;
    if (footer.capacity, footer.grain) != (header.capacity, header.grain)
        || footer.directory == DIRECTORY_AT_END
    {
        return Err(damaged(place)("its footer does not fit its header".into()));
    }
    Ok(footer)
}

/// Reads the headers of a sparse extent, and checks that its directory is within the file.
fn sparse(
    number: usize,
    file: &Arc<SourceFile>,
    format: Format,
) -> Result<SparseExtent, VmdkError> {
    let damaged =
        |offset| move |why| VmdkError::Damaged { path: file.path().to_owned(), offset, why };
    let geometry = match format {
        Format::Cowd => cowd::parse(&sector_at(file, 0, "the header")?).map_err(damaged(0))?,
        Format::SeSparse => {
            let header = sector_at(file, 0, "the header")?;
            let header = se_sparse::parse(&header).map_err(damaged(0))?;
            let place = header.volatile_header * SECTOR_BYTES;
            let volatile = sector_at(file, place, "the volatile header")?;
            se_sparse::check_volatile(&volatile).map_err(damaged(place))?;
            header.geometry
        }
        Format::Hosted | Format::Text => {
            let header = hosted_header(file)?;
            Geometry {
                capacity: header.capacity,
                grain: header.grain,
                table_entries: HOSTED_TABLE_ENTRIES,
                directory: header.directory,
                layout: Layout::Short {
                    zero_grains: header.zero_grains(),
                    deflated: header.compressed(),
                    first_sector: 2,
                },
            }
        }
    };
    let tables = geometry.capacity.div_ceil(geometry.grain * geometry.table_entries);
    let directory_bytes = tables * geometry.layout.entry_bytes();
    let offset = geometry.directory.checked_mul(SECTOR_BYTES);
    let end = offset.and_then(|offset| offset.checked_add(directory_bytes));
    if geometry.directory == 0 || end.is_none_or(|end| end > file.size_bytes()) {
        return Err(VmdkError::Truncated {
            path: file.path().to_owned(),
            offset: offset.unwrap_or(u64::MAX),
            size_bytes: file.size_bytes(),
            what: "its grain directory",
        });
    }
    Ok(SparseExtent { number, file: Arc::clone(file), geometry })
}
