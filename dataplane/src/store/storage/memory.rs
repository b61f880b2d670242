//! A disk in memory, for tests: it forgets what was not synced, and fails when told to.
//!
//! In: file operations. Out: the same as a disk. [`MemoryStorage::after_power_loss`] gives what a
//! disk would hold after a crash in which every unsynced byte and name is lost. Every operation is
//! counted, so that a test can cut the power at each. Deterministic: no clock, no thread.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use gantry_uring::buffer::PooledBuf;

use super::{Completion, Entry, LockError, OpenMode, Storage, StorageFile, Wake, WriteQueue};

mod content;

use self::content::{Content, PAGE};

#[derive(Debug, Clone, Default)]
struct Inode {
    now: Content,
    durable: Content,
}

#[derive(Debug, Clone, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    dirs: Vec<String>,
    holder: Option<String>,
    readers: usize,
    operations: u64,
    power_off_at: Option<u64>,
    faults: Vec<Fault>,
    lies: Vec<String>,
    free_bytes: Option<u64>,
}

/// An operation that is to fail.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Which operation: "write", "sync", "open", "rename", "read", "allocate".
    pub operation: &'static str,
    /// Only on paths that contain this.
    pub path_part: String,
    /// With this OS error number.
    pub errno: i32,
    /// How many matching operations succeed before.
    pub skip: u32,
    /// How many fail then.
    pub count: u32,
}

/// The disk; clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryStorage {
    state: Arc<Mutex<State>>,
}

/// An open file of it.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    disk: MemoryStorage,
    path: String,
    inode: u64,
}

/// Its lock.
#[derive(Debug)]
pub struct MemoryLock {
    disk: MemoryStorage,
    exclusive: bool,
}

/// Offset, buffer, bytes.
type QueuedWrite = (u64, PooledBuf, usize);

/// Its queue: operations happen when completions are asked for.
#[derive(Debug)]
pub struct MemoryQueue {
    waiting: VecDeque<(u64, MemoryFile, Option<QueuedWrite>)>,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl MemoryStorage {
    /// An empty disk.
    pub fn new() -> MemoryStorage {
        MemoryStorage::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn begin(&self, operation: &str, path: &str) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.operations += 1;
        if state.power_off_at.is_some_and(|at| state.operations > at) {
            return Err(io::Error::other("the power is off"));
        }
        for fault in &mut state.faults {
            if fault.operation == operation && path.contains(&fault.path_part) && fault.count > 0 {
                if fault.skip > 0 {
                    fault.skip -= 1;
                } else {
                    fault.count -= 1;
                    return Err(io::Error::from_raw_os_error(fault.errno));
                }
            }
        }
        Ok(state)
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Every operation after this many fails, as if the power were off.
    pub fn power_off_at(&self, operations: u64) {
        self.state().power_off_at = Some(operations);
    }

    /// Makes an operation fail.
    pub fn fail(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// From now on syncs of files and folders whose path contains this do nothing, and succeed: as
    /// if the store had forgotten them.
    pub fn forget_syncs(&self, path_part: &str) {
        self.state().lies.push(path_part.to_owned());
    }

    /// What a disk holds after a power loss that takes every unsynced byte and name.
    pub fn after_power_loss(&self) -> MemoryStorage {
        let mut state = self.state().clone();
        for inode in state.inodes.values_mut() {
            inode.now = inode.durable.clone();
        }
        state.names = state.durable_names.clone();
        state.holder = None;
        state.readers = 0;
        state.power_off_at = None;
        state.faults.clear();
        MemoryStorage { state: Arc::new(Mutex::new(state)) }
    }

    /// Copies the disk as a killed process leaves it: all written bytes are there.
    pub fn after_kill(&self) -> MemoryStorage {
        let mut state = self.state().clone();
        state.holder = None;
        state.readers = 0;
        state.power_off_at = None;
        state.faults.clear();
        MemoryStorage { state: Arc::new(Mutex::new(state)) }
    }

    /// Paths of all files.
    pub fn files(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// Every file with a digest of its bytes.
    pub fn image(&self) -> Vec<(String, u64, blake3::Hash)> {
        let state = self.state();
        let digest = |inode: &u64| {
            let content = &state.inodes[inode].now;
            let mut bytes = vec![0; content.len as usize];
            content.read(0, &mut bytes);
            (content.len, blake3::hash(&bytes))
        };
        let line = |(path, inode): (&String, &u64)| {
            let (len, hash) = digest(inode);
            (path.clone(), len, hash)
        };
        state.names.iter().map(line).collect()
    }

    /// Changes one byte of a file, behind everybody's back.
    pub fn flip(&self, path: &str, offset: u64) {
        let mut state = self.state();
        let Some(&inode) = state.names.get(path) else { return };
        if let Some(inode) = state.inodes.get_mut(&inode) {
            for content in [&mut inode.now, &mut inode.durable] {
                let mut byte = [0];
                if content.read(offset, &mut byte) == 1 {
                    content.write(offset, &[byte[0] ^ 0x40]);
                }
            }
        }
    }
}

impl Storage for MemoryStorage {
    type File = MemoryFile;
    type Queue = MemoryQueue;
    type Lock = MemoryLock;

    fn place(&self, path: &str) -> String {
        format!("memory:/{path}")
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<MemoryFile> {
        let mut state = self.begin("open", path)?;
        let existing = state.names.get(path).copied();
        let create = |state: &mut State| {
            state.next_inode += 1;
            let inode = state.next_inode;
            state.inodes.insert(inode, Inode::default());
            inode
        };
        let inode = match (mode, existing) {
            (OpenMode::Scratch, _) => create(&mut state),
            (OpenMode::Read | OpenMode::ReadUncached | OpenMode::Write, Some(inode)) => inode,
            (OpenMode::Read | OpenMode::ReadUncached | OpenMode::Write, None) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            (OpenMode::CreateNew | OpenMode::CreatePack, Some(_)) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            (OpenMode::Create, Some(inode)) => {
                if let Some(inode) = state.inodes.get_mut(&inode) {
                    inode.now = Content::default();
                }
                inode
            }
            (_, None) => {
                if !state.dirs.iter().any(|dir| dir == parent(path)) && !parent(path).is_empty() {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let inode = create(&mut state);
                state.names.insert(path.to_owned(), inode);
                inode
            }
        };
        Ok(MemoryFile { disk: self.clone(), path: path.to_owned(), inode })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.begin("rename", to)?;
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.begin("remove", path)?;
        state.names.remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.begin("remove", path)?;
        state.dirs.retain(|dir| dir != path);
        Ok(())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.begin("create_dir", path)?;
        if !state.dirs.iter().any(|dir| dir == path) {
            state.dirs.push(path.to_owned());
        }
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let state = self.begin("list", path)?;
        let within = |full: &str| {
            (parent(full) == path && !full.is_empty())
                .then(|| full.rsplit('/').next().unwrap_or(full).to_owned())
        };
        let files = state.names.keys().filter_map(|full| within(full));
        let dirs = state.dirs.iter().filter_map(|full| within(full));
        let mut entries: Vec<Entry> = files
            .map(|name| Entry { name, is_dir: false })
            .chain(dirs.map(|name| Entry { name, is_dir: true }))
            .collect();
        entries.sort();
        Ok(entries)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.begin("sync", path)?;
        if state.lies.iter().any(|lie| path.contains(lie)) {
            return Ok(());
        }
        state.durable_names.retain(|full, _| parent(full) != path);
        let now: Vec<_> = state.names.iter().filter(|(full, _)| parent(full) == path).collect();
        let now: Vec<_> = now.into_iter().map(|(full, inode)| (full.clone(), *inode)).collect();
        state.durable_names.extend(now);
        Ok(())
    }

    fn lock(&self, _path: &str, exclusive: bool, holder: &str) -> Result<MemoryLock, LockError> {
        let mut state = self.begin("lock", "lock").map_err(LockError::Io)?;
        if let Some(holder) = &state.holder {
            return Err(LockError::Held(holder.clone()));
        }
        if exclusive && state.readers > 0 {
            return Err(LockError::Held("a reader".into()));
        }
        if exclusive {
            state.holder = Some(holder.to_owned());
        } else {
            state.readers += 1;
        }
        Ok(MemoryLock { disk: self.clone(), exclusive })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.begin("free", "")?.free_bytes.unwrap_or(1 << 50))
    }

    fn write_queue(&self) -> io::Result<MemoryQueue> {
        Ok(MemoryQueue { waiting: VecDeque::new() })
    }
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if self.exclusive {
            state.holder = None;
        } else {
            state.readers = state.readers.saturating_sub(1);
        }
    }
}

impl MemoryFile {
    fn content<R>(
        &self,
        operation: &str,
        act: impl FnOnce(&mut Inode) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut state = self.disk.begin(operation, &self.path)?;
        act(state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?)
    }
}

impl StorageFile for MemoryFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.content("read", |inode| Ok(inode.now.read(offset, bytes)))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.content("write", |inode| {
            inode.now.write(offset, bytes);
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.content("len", |inode| Ok(inode.now.len))
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.content("write", |inode| {
            inode.now.set_len(bytes);
            Ok(())
        })
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.content("allocate", |inode| {
            inode.now.len = inode.now.len.max(bytes);
            Ok(())
        })
    }

    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.content("punch", |inode| {
            inode.now.punch(offset, bytes);
            Ok(())
        })
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.content("len", |inode| Ok(inode.now.allocated_bytes()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let lie = self.disk.state().lies.iter().any(|lie| self.path.contains(lie));
        self.content("sync", |inode| {
            if !lie {
                inode.durable = inode.now.clone();
            }
            Ok(())
        })
    }
}

impl WriteQueue<MemoryFile> for MemoryQueue {
    fn submit_write(
        &mut self,
        file: &MemoryFile,
        offset: u64,
        buffer: PooledBuf,
        len: usize,
        tag: u64,
    ) {
        assert!(offset.is_multiple_of(PAGE as u64) && len.is_multiple_of(PAGE), "unaligned write");
        self.waiting.push_back((tag, file.clone(), Some((offset, buffer, len))));
    }

    fn submit_sync(&mut self, file: &MemoryFile, tag: u64) {
        self.waiting.push_back((tag, file.clone(), None));
    }

    fn complete(&mut self, _wait: bool, out: &mut Vec<Completion>) {
        while let Some((tag, file, write)) = self.waiting.pop_front() {
            let result = match write {
                Some((offset, buffer, len)) => file.write_at(offset, &buffer[..len]),
                None => file.sync_data(),
            };
            out.push(Completion { tag, result });
        }
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn waker(&mut self) -> io::Result<Wake> {
        Ok(Arc::new(|| {}))
    }

    fn wait(&mut self, _timeout: Option<Duration>) {}
}
