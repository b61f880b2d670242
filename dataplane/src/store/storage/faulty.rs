//! A simulated disk that fails as disks do, from a seed: lost, torn and reordered writes, lost
//! names, errors, failed syncs, late completions, rot, a full disk.
//!
//! In: file operations. Out: the same as a disk. Each file holds what a reader sees, what is
//! durable, and the changes between; each folder likewise for its names. [`FaultyStorage::crash`]
//! gives what a disk may hold after a power cut, [`FaultyStorage::kill`] what a killed process
//! leaves. Every operation is counted, so that a crash can be placed at each. Deterministic: no
//! clock, no thread; the same seed and the same operations give the same disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;

use super::{Entry, LockError, OpenMode, Storage};

mod content;
mod inode;
mod names;
mod state;
mod file;

#[cfg(test)]
mod tests;

use self::inode::{Change, Leaves};
use self::state::State;

pub use self::file::{FaultyFile, FaultyQueue};
pub use self::state::Fault;

/// The disk; clones share it.
#[derive(Debug, Clone, Default)]
pub struct FaultyStorage {
    state: Arc<Mutex<State>>,
}

/// Its lock.
#[derive(Debug)]
pub struct FaultyLock {
    disk: FaultyStorage,
    exclusive: bool,
}

impl FaultyStorage {
    /// An empty disk on which nothing goes wrong unless it is asked for.
    pub fn new() -> FaultyStorage {
        FaultyStorage::default()
    }

    /// An empty disk whose queue completes late and in random order.
    pub fn late(seed: u64) -> FaultyStorage {
        let disk = FaultyStorage::new();
        {
            let mut state = disk.state();
            state.is_late = true;
            state.random.0 = Rng::with_seed(seed);
        }
        disk
    }

    fn of(state: State) -> FaultyStorage {
        FaultyStorage { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn begin(&self, operation: &str, path: &str) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.begin(operation, path)?;
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

    /// The power goes off right after the next operation of this kind (see [`Fault::operation`])
    /// but `skip`: where an order of operations matters, the moments between them are rare.
    pub fn power_off_after(&self, operation: &'static str, skip: u64) {
        self.state().power_off_after = Some((operation, skip));
    }

    /// The first operation that found the power off.
    pub fn cut_operation(&self) -> Option<String> {
        self.state().cut_operation.clone()
    }

    /// Makes operations of a kind fail.
    pub fn fail(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Makes one operation fail, whatever it is: the one after `operations`.
    pub fn fail_at(&self, operations: u64, errno: i32) {
        self.state().fail_at = Some((operations + 1, errno));
    }

    /// Ends every fault that was asked for.
    pub fn end_faults(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.fail_at = None;
        state.short_reads.clear();
        state.lies.clear();
    }

    /// The next `count` reads of paths that contain this end in the middle of what was asked for.
    pub fn read_short(&self, path_part: &str, count: u32) {
        self.state().short_reads.push((path_part.to_owned(), count));
    }

    /// From now on syncs of files and folders whose path contains this do nothing, and succeed: as
    /// if the store had forgotten them.
    pub fn forget_syncs(&self, path_part: &str) {
        self.state().lies.push(path_part.to_owned());
    }

    /// The bytes that fit on the disk; beyond, writes fail as on a full one.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    /// Says that so many bytes are free, whatever is written.
    pub fn show_free(&self, bytes: Option<u64>) {
        self.state().shown_free_bytes = bytes;
    }

    /// A file system that cannot reserve space.
    pub fn refuse_allocation(&self) {
        self.state().cannot_allocate = true;
    }

    /// Bytes that files take.
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// A file system that has no holes.
    pub fn refuse_holes(&self) {
        self.state().cannot_punch = true;
    }

    /// What a disk may hold after a power cut: of what was not synced, writes are kept, lost or
    /// torn, lengths and names go back to some moment since.
    pub fn crash(&self, seed: u64) -> FaultyStorage {
        let mut random = Rng::with_seed(seed);
        let leaves = Leaves::draw(&mut random);
        self.power_cut(leaves, &mut random)
    }

    /// What a disk holds after a power cut that takes every unsynced byte and name.
    pub fn after_power_loss(&self) -> FaultyStorage {
        self.power_cut(Leaves::NOTHING, &mut Rng::with_seed(0))
    }

    fn power_cut(&self, leaves: Leaves, random: &mut Rng) -> FaultyStorage {
        let state = self.state();
        let folders = state.folders.power_cut(leaves.names, random);
        let mut inodes = BTreeMap::new();
        for inode in folders.files().into_values() {
            if let Some(file) = state.inodes.get(&inode) {
                inodes.insert(inode, file.power_cut(leaves, random));
            }
        }
        FaultyStorage::of(State { folders, inodes, ..state.restarted() })
    }

    /// What a killed process leaves: what it wrote is there, though not durable; writes under way
    /// are done, half done or not.
    pub fn kill(&self, seed: u64) -> FaultyStorage {
        let mut random = Rng::with_seed(seed);
        let state = self.state();
        let mut inodes = state.inodes.clone();
        let at = state.now();
        inodes.values_mut().for_each(|inode| inode.kill(at, &mut random));
        FaultyStorage::of(State { inodes, ..state.restarted() })
    }

    /// As [`FaultyStorage::kill`].
    pub fn after_kill(&self) -> FaultyStorage {
        self.kill(0)
    }

    /// Paths of all files.
    pub fn files(&self) -> Vec<String> {
        self.state().folders.files().into_keys().collect()
    }

    /// Every file with its length and a digest of its bytes.
    pub fn image(&self) -> Vec<(String, u64, blake3::Hash)> {
        let state = self.state();
        let line = |(path, inode): (String, u64)| {
            let content = &state.inodes[&inode].now;
            let mut bytes = vec![0; content.len as usize];
            content.read(0, &mut bytes);
            (path, content.len, blake3::hash(&bytes))
        };
        state.folders.files().into_iter().map(line).collect()
    }

    /// Changes one byte of a file, behind everybody's back.
    pub fn flip(&self, path: &str, offset: u64) {
        self.rot(path, offset, 0x40);
    }

    /// Changes these bits of a byte of a file, behind everybody's back.
    pub fn rot(&self, path: &str, offset: u64, bits: u8) {
        let mut state = self.state();
        if let Some(inode) = state.folders.file(path)
            && let Ok(inode) = state.inode(inode)
        {
            inode.flip(offset, bits);
        }
    }

    fn is_short(&self, path: &str) -> bool {
        let mut state = self.state();
        let short = state.short_reads.iter_mut();
        let hit =
            short.into_iter().find(|(part, count)| *count > 0 && path.contains(part.as_str()));
        hit.map(|(_, count)| *count -= 1).is_some()
    }

    /// Which of a queue's `count` operations complete now, as positions at which to take one after
    /// the other out of the queue.
    fn draw_completions(&self, count: usize, wait: bool) -> Vec<usize> {
        let mut state = self.state();
        if !state.is_late {
            return vec![0; count];
        }
        let random = &mut state.random.0;
        let least = usize::from(wait && count > 0);
        let taken = random.usize(least..=count);
        (0..taken).map(|done| random.usize(0..count - done)).collect()
    }
}

impl Storage for FaultyStorage {
    type File = FaultyFile;
    type Queue = FaultyQueue;
    type Lock = FaultyLock;

    fn place(&self, path: &str) -> String {
        format!("memory:/{path}")
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<FaultyFile> {
        let mut state = self.begin("open", path)?;
        let existing = state.folders.file(path);
        let inode = match (mode, existing) {
            (OpenMode::Scratch, _) => state.new_inode(),
            (OpenMode::Read | OpenMode::ReadUncached | OpenMode::Write, existing) => {
                existing.ok_or(io::ErrorKind::NotFound)?
            }
            (OpenMode::CreateNew | OpenMode::CreatePack, Some(_)) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            (OpenMode::Create, Some(inode)) => {
                let at = state.tick();
                state.inode(inode)?.change(at, Change::SetLen(0));
                inode
            }
            (OpenMode::CreateNew | OpenMode::CreatePack | OpenMode::Create, None) => {
                let inode = state.new_inode();
                if !state.folders.link(path, inode) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                inode
            }
        };
        let is_uncached = mode == OpenMode::ReadUncached;
        Ok(FaultyFile { disk: self.clone(), path: path.to_owned(), inode, is_uncached })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        found(self.begin("rename", to)?.folders.rename(from, to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        found(self.begin("remove", path)?.folders.unlink(path))
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        found(self.begin("remove", path)?.folders.remove_folder(path))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.begin("create_dir", path)?;
        if state.folders.has_folder(path) {
            return Ok(());
        }
        found(state.folders.make(path))
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        Ok(self.begin("list", path)?.folders.list(path))
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.begin("sync", path)?;
        if state.lies_about(path) {
            return Ok(());
        }
        found(state.folders.sync(path))
    }

    fn lock(&self, _path: &str, exclusive: bool, holder: &str) -> Result<FaultyLock, LockError> {
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
        Ok(FaultyLock { disk: self.clone(), exclusive })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.begin("free", "")?;
        Ok(state.shown_free_bytes.or_else(|| state.free_bytes()).unwrap_or(1 << 50))
    }

    fn write_queue(&self) -> io::Result<FaultyQueue> {
        Ok(FaultyQueue::new(self.clone()))
    }
}

fn found(is_there: bool) -> io::Result<()> {
    if is_there { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

impl Drop for FaultyLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if self.exclusive {
            state.holder = None;
        } else {
            state.readers = state.readers.saturating_sub(1);
        }
    }
}
