//! A VMDK as a disk: flat extents by the readers' rings, everything else through `gantry-vmdk`.
//!
//! In: a path. Out: a [`FlatVmdk`], whose extents are places in files, or a [`SparseVmdk`], a
//! [`RemoteSource`] with a few threads. Invariant: what the disk's size covers is read from the
//! files that the image named when it was opened. Must not: interpret a VMDK itself.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use gantry_uring::direct::{Access, open_read_only};
use gantry_vmdk::{FlatExtent, Image, OpenOptions};

use super::remote::{ReadRequest, RemoteError, RemoteSource};
use super::{DiskError, Place, raw_file};

/// Threads that read grains: decompression keeps one busy while others wait for the disk.
const THREADS: usize = 4;

const REMEDY: &str = "check the VMDK with the tools of its maker, and that nothing writes to it";

/// What all VMDKs have.
#[derive(Debug)]
pub(super) struct Opened {
    image: Image,
    identity: String,
    fingerprint: String,
}

/// A VMDK that is only flat extents.
#[derive(Debug)]
pub(super) struct FlatVmdk {
    pub opened: Opened,
    files: Vec<File>,
    parts: Vec<Part>,
    pub access: Access,
}

#[derive(Debug)]
struct Part {
    start: u64,
    end: u64,
    file: u32,
    file_offset: u64,
}

/// A VMDK with grains.
#[derive(Debug)]
pub(super) struct SparseVmdk {
    opened: Arc<Opened>,
    label: String,
    requests: Option<Sender<ReadRequest>>,
    threads: Vec<JoinHandle<()>>,
}

/// Either kind.
pub(super) enum Vmdk {
    /// Read by descriptors.
    Flat(Box<FlatVmdk>),
    /// Read by requests.
    Sparse(SparseVmdk),
}

impl Vmdk {
    /// Opens an image with its extents and parents, all within its folder.
    ///
    /// # Errors
    /// What of it cannot be opened or understood.
    pub(super) fn open(path: &Path, direct: bool) -> Result<Vmdk, DiskError> {
        let image = Image::open(path, &OpenOptions::default())?;
        super::check_size(path, image.size_bytes())?;
        let identity = raw_file::identity(path).map_err(|source| DiskError::Query {
            path: path.to_owned(),
            action: "find the identity",
            source,
        })?;
        let mut hasher = blake3::Hasher::new_derive_key("gantry 2026 vmdk files 1");
        for (path, state) in image.files() {
            hasher.update(format!("{path:?} {state:?}\n").as_bytes());
        }
        let fingerprint = format!("vmdk {}", hasher.finalize());
        let flat = image.flat_extents();
        let opened = Opened { image, identity, fingerprint };
        Ok(match flat {
            Some(extents) if !extents.is_empty() => {
                Vmdk::Flat(Box::new(FlatVmdk::new(opened, extents, direct)?))
            }
            _ => Vmdk::Sparse(SparseVmdk::new(opened, path.display().to_string())),
        })
    }
}

impl Opened {
    pub(super) fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// For the session log.
    pub(super) fn describe(&self) -> String {
        format!("read as a VMDK: {}", self.image.describe())
    }

    pub(super) fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, DiskError> {
        Ok(self.image.next_data(offset)?)
    }

    pub(super) fn changed_since_open(&self) -> Result<Option<String>, DiskError> {
        let changed = self.image.changed_since_open()?;
        Ok(changed.map(|path| format!("{} changed while it was read", path.display())))
    }
}

impl FlatVmdk {
    fn new(opened: Opened, extents: Vec<FlatExtent>, direct: bool) -> Result<FlatVmdk, DiskError> {
        let mut named: Vec<Arc<File>> = Vec::new();
        let mut parts = Vec::with_capacity(extents.len());
        for extent in &extents {
            let known = named.iter().position(|file| Arc::ptr_eq(file, &extent.file));
            let file = known.unwrap_or_else(|| {
                named.push(Arc::clone(&extent.file));
                named.len() - 1
            });
            parts.push(Part {
                start: extent.disk_start,
                end: extent.disk_start + extent.length,
                file: file as u32,
                file_offset: extent.file_offset,
            });
        }
        let path_of = |number: usize| {
            let extent = extents.iter().find(|extent| Arc::ptr_eq(&extent.file, &named[number]));
            extent.map(|extent| extent.path.clone()).unwrap_or_default()
        };
        let open_all = |direct: bool| {
            let opened = named.iter().enumerate().map(|(number, file)| {
                // The very file that is open already, whatever its name leads to by now.
                let again = format!("/proc/self/fd/{}", file.as_raw_fd());
                open_read_only(Path::new(&again), direct).map_err(|source| DiskError::Open {
                    path: path_of(number),
                    source,
                    hint: "",
                })
            });
            opened.collect::<Result<Vec<(File, Access)>, DiskError>>()
        };
        let mut files = open_all(direct)?;
        let mut access = common_access(&files);
        let align = u64::from(access.offset_align.max(access.memory_align).max(1));
        let last = parts.len() - 1;
        let aligned = parts.iter().enumerate().all(|(number, part)| {
            [part.start, part.file_offset].iter().all(|at| at % align == 0)
                && (number == last || part.end % align == 0)
        });
        if !aligned {
            files = open_all(false)?;
            let note = format!("an extent does not begin at a multiple of {align} bytes");
            access = Access { note: Some(note), ..common_access(&files) };
        }
        let files = files.into_iter().map(|(file, _)| file).collect();
        Ok(FlatVmdk { opened, files, parts, access })
    }

    /// Where a byte of the disk is.
    pub(super) fn place(&self, offset: u64) -> Place {
        let number = self.parts.partition_point(|part| part.end <= offset);
        let last = self.parts.len() - 1;
        let part = &self.parts[number.min(last)];
        let at = part.file_offset + (offset - part.start);
        // A read of the last part may reach beyond the disk, up to the alignment.
        let len = if number >= last { u64::MAX - at } else { part.end - offset };
        Place { file: part.file, offset: at, len }
    }

    pub(super) fn descriptor(&self, file: u32) -> std::io::Result<Option<OwnedFd>> {
        let file = self.files.get(file as usize);
        file.map(|file| file.try_clone().map(OwnedFd::from)).transpose()
    }
}

/// What holds for all of some files.
fn common_access(files: &[(File, Access)]) -> Access {
    let mut common = Access { direct: true, offset_align: 1, memory_align: 1, note: None };
    for (_, access) in files {
        common.direct &= access.direct;
        common.offset_align = common.offset_align.max(access.offset_align);
        common.memory_align = common.memory_align.max(access.memory_align);
        common.note = common.note.or_else(|| access.note.clone());
    }
    common
}

impl SparseVmdk {
    fn new(opened: Opened, label: String) -> SparseVmdk {
        let opened = Arc::new(opened);
        // Bounded by the readers: each request brings its own buffer.
        let (requests, queue) = unbounded();
        let start = |number: usize| {
            let (opened, queue) = (Arc::clone(&opened), Receiver::clone(&queue));
            let thread = std::thread::Builder::new().name(format!("vmdk-{number}"));
            thread.spawn(move || read_grains(&opened.image, &queue)).ok()
        };
        let threads = (0..THREADS).filter_map(start).collect();
        SparseVmdk { opened, label, requests: Some(requests), threads }
    }
}

/// One thread's work, until the source is dropped.
fn read_grains(image: &Image, queue: &Receiver<ReadRequest>) {
    while let Ok(mut request) = queue.recv() {
        let offset = request.offset();
        let result = image.read_at(offset, request.bytes_mut());
        request.complete(result.map_err(|error| RemoteError::new(error.to_string(), REMEDY)));
    }
}

impl RemoteSource for SparseVmdk {
    fn label(&self) -> &str {
        &self.label
    }

    fn notes(&self) -> Vec<String> {
        vec![self.opened.describe()]
    }

    fn size_bytes(&self) -> u64 {
        self.opened.size_bytes()
    }

    fn sector_bytes(&self) -> u32 {
        raw_file::SECTOR_BYTES
    }

    fn identity(&self) -> &str {
        &self.opened.identity
    }

    fn fingerprint(&self) -> &str {
        &self.opened.fingerprint
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, RemoteError> {
        let found = self.opened.image.next_data(offset);
        found.map_err(|error| RemoteError::new(error.to_string(), REMEDY))
    }

    fn submit(&self, request: ReadRequest) {
        // Without a thread the request's drop answers it.
        if let Some(requests) = self.requests.as_ref().filter(|_| !self.threads.is_empty()) {
            let _ = requests.send(request);
        }
    }

    fn changed_since_open(&self) -> Result<Option<String>, RemoteError> {
        let changed = self.opened.changed_since_open();
        changed.map_err(|error| RemoteError::new(error.to_string(), REMEDY))
    }
}

impl Drop for SparseVmdk {
    fn drop(&mut self) {
        self.requests = None;
        for thread in self.threads.drain(..) {
            // A panic there was printed; its request was answered by its drop.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
