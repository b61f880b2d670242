//! What the store needs from a disk: every file operation goes through these three traits.
//!
//! In: paths relative to the repository, bytes. Out: bytes, completions, `io::Error`s. The kernel
//! implementation stands under production; under tests stands a simulated disk, which loses, tears,
//! reorders and fails (and under unit tests, as [`memory`], only what they ask for). The store does
//! nothing behind their back. Invariant: nothing is durable before `sync_data` (contents) and
//! `sync_dir` (names).

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use gantry_uring::buffer::PooledBuf;

pub mod kernel;
pub mod faulty;
pub mod memory;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, read only.
    Read,
    /// An existing file, read only, past the page cache where that is possible: what is read was
    /// really on the disk.
    ReadUncached,
    /// An existing file, to read and write.
    Write,
    /// A file that must not exist yet, mode 0600.
    CreateNew,
    /// As `CreateNew`, or emptied if it exists.
    Create,
    /// As `CreateNew`, and written past the page cache where that is possible.
    CreatePack,
    /// A scratch file without a name: gone with its handle, never synced.
    Scratch,
}

/// A directory entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Name without its directory.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Why a repository's lock was not given.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else has it; the text that the holder left.
    Held(String),
    /// The operating system refused.
    Io(io::Error),
}

/// A repository's folder.
pub trait Storage: Clone + Debug + Send + Sync + 'static {
    /// An open file; clones share it.
    type File: StorageFile;
    /// The asynchronous road of pack writes.
    type Queue: WriteQueue<Self::File>;
    /// Held until dropped.
    type Lock: Debug + Send + 'static;

    /// The full name of a path, for messages.
    fn place(&self, path: &str) -> String;
    /// Opens a file.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Self::File>;
    /// Renames, replacing; durable after `sync_dir` of the directory.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; durable after `sync_dir`.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &str) -> io::Result<()>;
    /// Creates a directory unless it is there, mode 0700.
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// Entries of a directory, sorted; none if it does not exist.
    fn list(&self, path: &str) -> io::Result<Vec<Entry>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// Takes the repository's lock: alone if `exclusive`, else beside other readers. An exclusive
    /// holder leaves `holder` in the file.
    fn lock(&self, path: &str, exclusive: bool, holder: &str) -> Result<Self::Lock, LockError>;
    /// Bytes free for us.
    fn free_bytes(&self) -> io::Result<u64>;
    /// The queue for pack writes of one store.
    fn write_queue(&self) -> io::Result<Self::Queue>;
}

/// An open file.
pub trait StorageFile: Clone + Debug + Send + Sync + 'static {
    /// Reads at `offset` until `bytes` is full or the file ends; returns how many bytes came.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Bytes of the file.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros).
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Reserves space and extends the file to `bytes`; `Unsupported` where it cannot.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Gives the bytes from `offset` on back to the file system: they read as zeros, the length
    /// stays. `Unsupported` where it cannot.
    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// Bytes that the file takes on the disk, holes left out.
    fn allocated_bytes(&self) -> io::Result<u64>;
    /// Makes contents and length durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Reads exactly `bytes.len()` bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        match self.read_at(offset, bytes)? {
            read if read == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A finished operation of a queue.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub tag: u64,
    /// How it went.
    pub result: io::Result<()>,
}

/// Ends a queue's present or next wait, from any thread.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Writes that go on while the store's thread does something else. Completions may come in any
/// order; a buffer is held until its write has completed, and then dropped.
pub trait WriteQueue<F>: Debug {
    /// Writes the first `len` bytes of `buffer` at `offset`. All are multiples of 4096.
    fn submit_write(&mut self, file: &F, offset: u64, buffer: PooledBuf, len: usize, tag: u64);
    /// Makes durable every write to the file that had completed before this call.
    fn submit_sync(&mut self, file: &F, tag: u64);
    /// Collects completions; waits for at least one if `wait` and anything is under way.
    fn complete(&mut self, wait: bool, out: &mut Vec<Completion>);
    /// Operations under way.
    fn in_flight(&self) -> usize;
    /// A waker for [`WriteQueue::wait`].
    fn waker(&mut self) -> io::Result<Wake>;
    /// Sleeps until something completes, the waker is used, or the timeout is over.
    fn wait(&mut self, timeout: Option<Duration>);
}
