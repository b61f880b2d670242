//! What all handles of a simulated disk share, and how an operation begins: counted, and failing if
//! it is to fail.
//!
//! In: the name of an operation and a path. Out: the state, locked, or an error. Deterministic: no
//! clock, no thread; every choice comes from the disk's own random numbers.

use std::collections::BTreeMap;
use std::io;

use fastrand::Rng;

use super::inode::Inode;
use super::names::Folders;

/// "No space left on device", errno(3) of Linux.
const ENOSPC: i32 = 28;

/// An operation that is to fail.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Which operation: "write", "sync", "open", "rename", "read", "allocate", "punch", "remove",
    /// "list".
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

#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) folders: Folders,
    pub(super) holder: Option<String>,
    pub(super) readers: usize,
    pub(super) operations: u64,
    pub(super) power_off_at: Option<u64>,
    /// The power goes off right after an operation of this kind, once this many more were done.
    pub(super) power_off_after: Option<(&'static str, u64)>,
    /// The operation that met the power cut first.
    pub(super) cut_operation: Option<String>,
    pub(super) faults: Vec<Fault>,
    pub(super) fail_at: Option<(u64, i32)>,
    pub(super) short_reads: Vec<(String, u32)>,
    pub(super) lies: Vec<String>,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) shown_free_bytes: Option<u64>,
    pub(super) cannot_allocate: bool,
    pub(super) cannot_punch: bool,
    pub(super) is_late: bool,
    pub(super) random: Random,
    pub(super) next_inode: u64,
    pub(super) clock: u64,
}

/// The disk's random numbers; seed 0 unless a seed is given.
#[derive(Debug, Clone)]
pub(super) struct Random(pub(super) Rng);

impl Default for Random {
    fn default() -> Random {
        Random(Rng::with_seed(0))
    }
}

impl State {
    /// Counts an operation; its error, if it is to fail.
    pub(super) fn begin(&mut self, operation: &str, path: &str) -> io::Result<()> {
        self.operations += 1;
        if self.power_off_at.is_some_and(|at| self.operations > at) {
            self.cut_operation.get_or_insert_with(|| format!("{operation} {path}"));
            return Err(io::Error::other("the power is off"));
        }
        if let Some((_, errno)) = self.fail_at.take_if(|(at, _)| *at == self.operations) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.see_power_off_after(operation);
        for fault in &mut self.faults {
            if fault.operation == operation && path.contains(&fault.path_part) && fault.count > 0 {
                if fault.skip > 0 {
                    fault.skip -= 1;
                } else {
                    fault.count -= 1;
                    return Err(io::Error::from_raw_os_error(fault.errno));
                }
            }
        }
        Ok(())
    }

    /// Places the power cut behind this operation, if it is the one that was asked for.
    fn see_power_off_after(&mut self, operation: &str) {
        match &mut self.power_off_after {
            Some((kind, 0)) if *kind == operation => {
                let at = self.power_off_at.unwrap_or(u64::MAX);
                self.power_off_at = Some(at.min(self.operations));
                self.power_off_after = None;
            }
            Some((kind, left)) if *kind == operation => *left -= 1,
            _ => {}
        }
    }

    /// Whether syncs of this path do nothing.
    pub(super) fn lies_about(&self, path: &str) -> bool {
        self.lies.iter().any(|lie| path.contains(lie))
    }

    /// The next moment: changes and syncs are ordered by these.
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub(super) fn now(&self) -> u64 {
        self.clock
    }

    pub(super) fn new_inode(&mut self) -> u64 {
        self.next_inode += 1;
        self.inodes.insert(self.next_inode, Inode::default());
        self.next_inode
    }

    pub(super) fn inode(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&inode).ok_or(io::ErrorKind::NotFound.into())
    }

    /// Bytes that files with a name take.
    pub(super) fn used_bytes(&self) -> u64 {
        let inodes = self.folders.files();
        inodes.values().filter_map(|inode| self.inodes.get(inode)).map(Inode::used_bytes).sum()
    }

    /// Bytes free, if the disk has an end.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        self.capacity_bytes.map(|capacity| capacity.saturating_sub(self.used_bytes()))
    }

    /// Whether so many bytes more fit.
    pub(super) fn make_room(&self, bytes: u64) -> io::Result<()> {
        match self.capacity_bytes {
            Some(_) if bytes > 0 && self.free_bytes().is_some_and(|free| free < bytes) => {
                Err(io::Error::from_raw_os_error(ENOSPC))
            }
            _ => Ok(()),
        }
    }

    /// As after a start of the computer: no holder, no faults; the space there is stays.
    pub(super) fn restarted(&self) -> State {
        State {
            folders: self.folders.clone(),
            operations: 0,
            capacity_bytes: self.capacity_bytes,
            shown_free_bytes: self.shown_free_bytes,
            cannot_allocate: self.cannot_allocate,
            cannot_punch: self.cannot_punch,
            is_late: self.is_late,
            lies: self.lies.clone(),
            random: self.random.clone(),
            next_inode: self.next_inode,
            clock: self.clock,
            ..State::default()
        }
    }
}
