//! A disk in VMDK files: all links of its chain as one range of bytes.
//!
//! In: a path and [`OpenOptions`]. Out: an [`Image`], which any number of threads read at once.
//! Invariant: what no link has is zero; what a younger link has, or says is zero, hides what older
//! links have; a child may be larger or smaller than its parent. Must not: write.

mod cursor;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::chain;
use crate::datastore::{Datastore, folder_of};
use crate::error::VmdkError;
use crate::image::cursor::{Cursor, Piece};
use crate::limits::DATA_RUN_BYTES_MAX;
use crate::link::{Body, Link, Opener};
use crate::source_file::{FileState, SourceFile};
use crate::sparse::{Purpose, Scratch, State};
use crate::tables::TableCache;

/// How an image is opened. [`OpenOptions::default`] stays within the image's own folder.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The datastore's folder, which no name may leave; the image's own folder, if there is none.
    pub root: Option<PathBuf>,
    /// Volumes by id or label, as they stand behind `/vmfs/volumes/`, and where they are mounted.
    /// A name on any other volume is looked for in the folder of the file that has the name.
    pub volumes: Vec<(String, PathBuf)>,
    /// Follow symbolic links and relative names also where they leave the folder. Only where nobody
    /// else can put files there.
    pub leave_root: bool,
    /// Open a delta's data without its descriptor, with zeros for what its parent has.
    pub bare_delta: bool,
    /// Bytes of grain tables that are kept.
    pub table_cache_bytes: usize,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            root: None,
            volumes: Vec::new(),
            leave_root: false,
            bare_delta: false,
            table_cache_bytes: 8 << 20,
        }
    }
}

/// A part of the disk that stands in a file as it is.
#[derive(Debug, Clone)]
pub struct FlatExtent {
    /// The file, open for reading; `/proc/self/fd/N` opens it once more with other flags.
    pub file: Arc<File>,
    /// Its path, for messages.
    pub path: PathBuf,
    /// Where the part begins on the disk, in bytes.
    pub disk_start: u64,
    /// Where it begins in the file, in bytes.
    pub file_offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// An open disk.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    datastore: Datastore,
    /// Youngest first; never empty.
    links: Vec<Link>,
    files: Vec<Arc<SourceFile>>,
    tables: TableCache,
    /// Where the map was looked at last, so that going on does not begin anew.
    map: Mutex<Cursor>,
}

impl Image {
    /// Opens the disk at `path`: a descriptor, or an extent that holds its own; with all parents.
    ///
    /// # Errors
    /// [`VmdkError`]; it names the file that is the obstacle.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Image, VmdkError> {
        let (folder, path) = match &options.root {
            Some(root) => (root.clone(), path.to_owned()),
            None => folder_of(path),
        };
        let datastore = Datastore::open(&folder, &options.volumes, options.leave_root)?;
        let place = datastore.image(&path)?;
        let bare_delta = options.bare_delta;
        let mut opener = Opener { datastore, bare_delta, files: Vec::new() };
        let links = chain::open(&mut opener, &path, place)?;
        let map = Mutex::new(Cursor::new(links.len(), Purpose::Map));
        let tables = TableCache::new(options.table_cache_bytes);
        let Opener { datastore, files, .. } = opener;
        Ok(Image { path, datastore, links, files, tables, map })
    }

    /// The disk's size in bytes: that of the youngest link.
    pub fn size_bytes(&self) -> u64 {
        self.links[0].size_bytes
    }

    /// `CID` of the youngest link; none if it was opened without a descriptor.
    pub fn content_id(&self) -> Option<u32> {
        self.links[0].descriptor.as_ref().map(|descriptor| descriptor.content_id)
    }

    /// `ddb.longContentID` of the youngest link.
    pub fn long_content_id(&self) -> Option<&str> {
        self.links[0].descriptor.as_ref()?.long_content_id.as_deref()
    }

    /// `ddb.uuid` in vSphere's form (`6000c294-443e-5005-5cd6-e24fbe780908`), of the youngest link
    /// that has one: deltas mostly have none.
    pub fn uuid(&self) -> Option<&str> {
        self.links.iter().find_map(|link| link.descriptor.as_ref()?.uuid.as_deref())
    }

    /// The chain for the session log, youngest first:
    /// `seSparse vm-000001.vmdk on vmfs vm.vmdk (2 links, 4 files)`.
    pub fn describe(&self) -> String {
        let names: Vec<String> = self
            .links
            .iter()
            .map(|link| {
                let name = link.path.file_name().unwrap_or(link.path.as_os_str());
                format!("{} {}", link.format, name.to_string_lossy())
            })
            .collect();
        let counts = format!("{} links, {} files", self.links.len(), self.files.len());
        format!("{} ({counts})", names.join(" on "))
    }

    /// Fills `buffer` with the disk's bytes from `offset` on. Any number of threads may do so.
    ///
    /// # Errors
    /// [`VmdkError::OutOfRange`] for bytes that the disk does not have; others for what is damaged.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), VmdkError> {
        let length = buffer.len() as u64;
        let size_bytes = self.size_bytes();
        if offset.checked_add(length).is_none_or(|end| end > size_bytes) {
            let path = self.path.clone();
            return Err(VmdkError::OutOfRange { path, offset, length, size_bytes });
        }
        let mut cursor = Cursor::new(self.links.len(), Purpose::Read);
        let mut scratch = None;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let piece = cursor.piece(&self.links, &self.tables, at, offset + length)?;
            let part = &mut buffer[done..done + (piece.end - at) as usize];
            self.read_piece(&piece, at, part, &mut scratch)?;
            done += part.len();
        }
        Ok(())
    }

    /// Reads the bytes from `at` on, which are all of `piece`.
    fn read_piece(
        &self,
        piece: &Piece,
        at: u64,
        part: &mut [u8],
        scratch: &mut Option<Scratch>,
    ) -> Result<(), VmdkError> {
        let within = at - piece.start;
        match (&self.links[piece.link].extents[piece.extent].body, piece.state) {
            (_, State::Unallocated | State::Zero) => {
                part.fill(0);
                Ok(())
            }
            (Body::Flat(file, _), State::Data(place)) => {
                file.read_exact_at(place + within, part, "a flat extent")
            }
            (Body::Sparse(sparse), State::Data(place)) => {
                sparse.file.read_exact_at(place + within, part, "a grain")
            }
            (Body::Sparse(sparse), State::Deflated(place)) => {
                let start = piece.start - self.links[piece.link].extents[piece.extent].start;
                let scratch = scratch.get_or_insert_with(Scratch::new);
                let plain = sparse.inflate(place, start, scratch)?;
                let within = within as usize;
                part.copy_from_slice(&plain[within..within + part.len()]);
                Ok(())
            }
            (Body::Zero | Body::Flat(..), _) => {
                unreachable!("a flat extent has no grains, and one of zeros no data")
            }
        }
    }

    /// The first run of data at or behind `offset`, as first byte and end; nothing if all that is
    /// left is zero. A run may be cut where more data follows, and may hold zeros that were written.
    /// Walking on from each run's end looks at each table once.
    ///
    /// # Errors
    /// [`VmdkError`] for metadata that is damaged or cannot be read.
    pub fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, VmdkError> {
        let size = self.size_bytes();
        let mut cursor = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = offset;
        let mut start = None;
        while at < size {
            let piece = cursor.piece(&self.links, &self.tables, at, size)?;
            let data = matches!(piece.state, State::Data(_) | State::Deflated(_));
            match (data, start) {
                (true, None) => start = Some(at),
                (false, Some(_)) => break,
                _ => {}
            }
            at = piece.end;
            if start.is_some_and(|start| at - start >= DATA_RUN_BYTES_MAX) {
                break;
            }
        }
        Ok(start.map(|start| (start, at)))
    }

    /// The disk as parts of plain files, in order and without a gap, if that is all it is. The data
    /// plane reads those past this crate.
    pub fn flat_extents(&self) -> Option<Vec<FlatExtent>> {
        let extents = &self.links[0].extents;
        extents
            .iter()
            .map(|extent| match &extent.body {
                Body::Flat(file, offset) => Some(FlatExtent {
                    file: Arc::clone(file.file()),
                    path: file.path().to_owned(),
                    disk_start: extent.start,
                    file_offset: *offset,
                    length: extent.end - extent.start,
                }),
                Body::Zero | Body::Sparse(_) => None,
            })
            .collect()
    }

    /// Every file of the image as it was when it was opened, for a fingerprint: descriptors and
    /// extents, youngest link first.
    pub fn files(&self) -> impl Iterator<Item = (&Path, FileState)> {
        self.files.iter().map(|file| (file.path(), file.state()))
    }

    /// The first file that has changed since the image was opened, or whose name now belongs to
    /// another file; nothing if all are as they were.
    ///
    /// # Errors
    /// [`VmdkError::Open`] if the system does not tell.
    pub fn changed_since_open(&self) -> Result<Option<&Path>, VmdkError> {
        for file in &self.files {
            let error = |source| VmdkError::Open { path: file.path().to_owned(), source, hint: "" };
            if file.state_now().map_err(error)? != file.state() {
                return Ok(Some(file.path()));
            }
            let named = self.datastore.open_at(file.place()).map(File::from);
            let same = match named {
                Ok(named) => FileState::of(&named).map_err(error)? == file.state(),
                Err(_) => false,
            };
            if !same {
                return Ok(Some(file.path()));
            }
        }
        Ok(None)
    }
}
