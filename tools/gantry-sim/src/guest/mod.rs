//! The built-in guest of a machine as guest operations see it: files in memory, users, processes.
//!
//! In: what methods ask for. Out: files, processes and their ends. It is a POSIX guest, whatever the
//! machine's guest id. Disks have no part in it: what is written here is on no disk, and is gone with
//! the simulator. Programs are scripts in a small language of their own ([`shell`]); nothing of the
//! machine that the simulator runs on is ever run, read or written.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::sim::Sim;

pub mod files;
pub mod process;
pub mod shell;

use files::Files;
use process::Processes;

/// One machine's guest.
#[derive(Debug, Default)]
pub struct System {
    /// Its files.
    pub files: Files,
    /// Its processes.
    pub processes: Processes,
}

/// A file on its way in or out, behind a one-time address.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// The machine.
    pub machine: u32,
    /// What opens it.
    pub token: String,
    /// The file in the guest.
    pub path: String,
    /// A transfer into the guest: the size that was said, and the file's permissions.
    pub upload: Option<(u64, u32)>,
    /// When it was asked for.
    pub begun: Timestamp,
}

/// All machines' guests.
#[derive(Debug, Default)]
pub struct Systems {
    systems: BTreeMap<u32, System>,
    /// Open transfers by their number.
    pub transfers: BTreeMap<u64, Transfer>,
    next_transfer: u64,
}

impl Systems {
    /// A machine's guest; it comes into being when it is first asked for.
    pub fn of(&mut self, machine: u32) -> &mut System {
        self.systems.entry(machine).or_default()
    }

    /// A machine lost its power: what ran runs no more; files stay.
    pub fn power_lost(&mut self, machine: u32) {
        if let Some(system) = self.systems.get_mut(&machine) {
            system.processes.clear();
        }
        self.transfers.retain(|_, transfer| transfer.machine != machine);
    }

    /// A machine was destroyed.
    pub fn destroyed(&mut self, machine: u32) {
        self.power_lost(machine);
        self.systems.remove(&machine);
    }

    /// Opens a transfer; its number.
    pub fn open(&mut self, transfer: Transfer) -> u64 {
        let late = Timestamp::now() - crate::limits::GUEST_TRANSFER_LIFE;
        self.transfers.retain(|_, transfer| transfer.begun > late);
        while self.transfers.len() >= crate::limits::GUEST_TRANSFERS_MAX {
            self.transfers.pop_first();
        }
        self.next_transfer += 1;
        self.transfers.insert(self.next_transfer, transfer);
        self.next_transfer
    }
}

impl Sim {
    /// The guests. Not to be held together with the state's lock.
    pub fn guest_systems(&self) -> MutexGuard<'_, Systems> {
        self.guest_systems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content of a file in a machine's guest, for tests: nothing if it is not there.
    #[must_use]
    pub fn guest_file(&self, machine: &str, path: &str) -> Option<Vec<u8>> {
        let id = self.lock().site.machines.values().find(|m| m.name == machine)?.id;
        let mut systems = self.guest_systems();
        systems.of(id).files.read(path).ok().map(<[u8]>::to_vec)
    }
}
