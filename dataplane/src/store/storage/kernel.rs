//! The store's file operations on a real file system.
//!
//! In: a repository's folder. Out: files, locks, completions. Packs are opened with O_DIRECT where
//! the file system allows it, and else buffered, with one note in the log. Must not: retry an
//! fsync, or write outside the folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gantry_uring::buffer::BufferPool;
use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};

use super::{Entry, LockError, OpenMode, Storage, StorageFile};

mod queue;

pub use queue::KernelQueue;

const ALIGN: usize = 4096;

/// A repository's folder; clones share it.
#[derive(Debug, Clone)]
pub struct KernelStorage {
    dir: Arc<PathBuf>,
    direct_refused: Arc<AtomicBool>,
    pools: Arc<Vec<BufferPool>>,
}

/// An open file.
#[derive(Debug, Clone)]
pub struct KernelFile {
    file: Arc<File>,
    direct: bool,
}

/// The lock: released when the file closes.
#[derive(Debug)]
pub struct KernelLock {
    _file: File,
}

impl KernelStorage {
    /// The folder `dir`; it need not exist yet.
    pub fn new(dir: &Path) -> KernelStorage {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        KernelStorage { dir: Arc::new(dir), direct_refused: Arc::default(), pools: Arc::default() }
    }

    /// The same, with the pools whose buffers will be written: they are registered with the ring.
    pub fn with_pools(self, pools: Vec<BufferPool>) -> KernelStorage {
        KernelStorage { pools: Arc::new(pools), ..self }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn full(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.dir.to_path_buf() } else { self.dir.join(path) }
    }

    fn open_direct(&self, path: &Path, options: &OpenOptions) -> io::Result<KernelFile> {
        if !self.direct_refused.load(Ordering::Relaxed) {
            let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
            match options.clone().custom_flags(flags).open(path) {
                Ok(file) => return Ok(KernelFile { file: Arc::new(file), direct: true }),
                Err(error) if error.raw_os_error() == Some(22) => {
                    self.direct_refused.store(true, Ordering::Relaxed);
                    tracing::info!(
                        "{} does not allow O_DIRECT: packs are written through the page cache",
                        self.dir.display()
                    );
                    // Linux creates the file before it refuses the flag.
                    let _ = fs::metadata(path)
                        .map(|data| data.len() == 0 && fs::remove_file(path).is_ok());
                }
                Err(error) => return Err(error),
            }
        }
        options.open(path).map(|file| KernelFile { file: Arc::new(file), direct: false })
    }

    fn scratch(&self) -> io::Result<KernelFile> {
        for attempt in 0..1000u32 {
            let path = self.dir.join(format!("scratch.{}.{attempt}", std::process::id()));
            let options = &mut OpenOptions::new();
            match options.read(true).write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => {
                    fs::remove_file(&path)?;
                    return Ok(KernelFile { file: Arc::new(file), direct: false });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Storage for KernelStorage {
    type File = KernelFile;
    type Queue = KernelQueue;
    type Lock = KernelLock;

    fn place(&self, path: &str) -> String {
        self.full(path).display().to_string()
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<KernelFile> {
        let full = self.full(path);
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match mode {
            OpenMode::Scratch => return self.scratch(),
            OpenMode::Read => {}
            OpenMode::ReadUncached => {
                let file = options.open(&full)?;
                rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
                return Ok(KernelFile { file: Arc::new(file), direct: false });
            }
            OpenMode::Write => drop(options.write(true)),
            OpenMode::CreateNew => drop(options.write(true).create_new(true)),
            OpenMode::Create => drop(options.write(true).create(true).truncate(true)),
            OpenMode::CreatePack => {
                options.write(true).create_new(true);
                return self.open_direct(&full, &options);
            }
        }
        options.open(&full).map(|file| KernelFile { file: Arc::new(file), direct: false })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.full(from), self.full(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.full(path))
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        fs::remove_dir(self.full(path))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(self.full(path)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let reader = match fs::read_dir(self.full(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            reader => reader?,
        };
        let mut entries = Vec::new();
        for entry in reader {
            let entry = entry?;
            // Names of ours are ASCII; others are not ours.
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(Entry { name, is_dir: entry.file_type()?.is_dir() });
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        File::open(self.full(path))?.sync_all()
    }

    fn lock(&self, path: &str, exclusive: bool, holder: &str) -> Result<KernelLock, LockError> {
        let full = self.full(path);
        let mut options = OpenOptions::new();
        options.read(true).write(exclusive).create(exclusive).truncate(false).mode(0o600);
        let mut file = match options.open(&full) {
            Ok(file) => file,
            // A copy on a read-only medium: nobody can write, so nobody must be kept out.
            Err(error) if !exclusive && error.kind() == io::ErrorKind::NotFound => {
                File::open(&*self.dir).map_err(LockError::Io)?
            }
            Err(error) => return Err(LockError::Io(error)),
        };
        let operation = match exclusive {
            true => FlockOperation::NonBlockingLockExclusive,
            false => FlockOperation::NonBlockingLockShared,
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = (&mut file).take(512).read_to_string(&mut holder);
                // The file names the last writer; if we could read beside them, they are readers.
                let beside = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
                if beside.is_ok() || holder.trim().is_empty() {
                    holder = "a process that reads it (verify, list or restore)".into();
                }
                return Err(LockError::Held(holder.trim().to_owned()));
            }
            Err(error) => return Err(LockError::Io(error.into())),
        }
        if exclusive {
            let write = file.set_len(0).and_then(|()| file.rewind());
            write.and_then(|()| file.write_all(holder.as_bytes())).map_err(LockError::Io)?;
        }
        Ok(KernelLock { _file: file })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&*self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn write_queue(&self) -> io::Result<KernelQueue> {
        Ok(KernelQueue::new(&self.pools))
    }
}

impl KernelFile {
    /// The file itself, for a reader with its own ring.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }
}

impl StorageFile for KernelFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.direct || bytes.as_ptr().addr().is_multiple_of(ALIGN) {
            return self.file.write_all_at(bytes, offset);
        }
        let mut bounce = vec![0; bytes.len() + ALIGN];
        let start = bounce.as_ptr().addr().next_multiple_of(ALIGN) - bounce.as_ptr().addr();
        bounce[start..start + bytes.len()].copy_from_slice(bytes);
        self.file.write_all_at(&bounce[start..start + bytes.len()], offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes)?)
    }

    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
            result => Ok(result?),
        }
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
