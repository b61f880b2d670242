//! The files of one ring: a table of slots, registered with the kernel where it allows that.
//!
//! In: open files. Out: what a submission names. Invariant: a slot's file stays open while an
//! operation on it is in flight, and is never exchanged then. Must not: open or read files.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::IoUring;

use crate::entry::Target;

/// A place in a ring's file table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileSlot(pub u32);

/// Whether the kernel took a registration; when not, all works the same, only slower.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Registration {
    /// Registered.
    Registered,
    /// Not registered; the text says why.
    Unregistered(String),
}

impl Registration {
    /// Whether the kernel took it.
    pub fn is_registered(&self) -> bool {
        matches!(self, Registration::Registered)
    }
}

struct Entry {
    file: OwnedFd,
    fixed: bool,
    in_flight: u32,
}

#[derive(Default)]
pub(crate) struct FileTable {
    entries: Vec<Option<Entry>>,
    registered: bool,
}

impl FileTable {
    pub(crate) fn register(&mut self, ring: &IoUring, slots: u32) -> io::Result<Registration> {
        if !self.entries.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "this ring already has a file table",
            ));
        }
        self.entries.resize_with(slots as usize, || None);
        match ring.submitter().register_files_sparse(slots) {
            Ok(()) => {
                self.registered = true;
                Ok(Registration::Registered)
            }
            Err(error) => Ok(Registration::Unregistered(format!(
                "the kernel refused {slots} registered files ({error}); plain descriptors are used"
            ))),
        }
    }

    /// Puts `file` into `slot`, or empties it; what was there is given back.
    pub(crate) fn exchange(
        &mut self,
        ring: &IoUring,
        slot: FileSlot,
        file: Option<OwnedFd>,
    ) -> io::Result<Option<OwnedFd>> {
        let slots = self.entries.len();
        let entry = self.entries.get_mut(slot.0 as usize).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("file slot {} of a table of {slots}", slot.0),
            )
        })?;
        if entry.as_ref().is_some_and(|old| old.in_flight > 0) {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("file slot {} has operations in flight", slot.0),
            ));
        }
        let was_fixed = entry.as_ref().is_some_and(|old| old.fixed);
        let mut fixed = false;
        if self.registered && (file.is_some() || was_fixed) {
            let fd = file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            match ring.submitter().register_files_update(slot.0, &[fd]) {
                Ok(_) => fixed = file.is_some(),
                // The kernel still holds the old file there; harmless, since the slot is now
                // addressed by its plain descriptor.
                Err(_) if file.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        let new = file.map(|file| Entry { file, fixed, in_flight: 0 });
        Ok(std::mem::replace(entry, new).map(|old| old.file))
    }

    pub(crate) fn target(&self, slot: FileSlot) -> Option<Target> {
        let entry = self.entries.get(slot.0 as usize)?.as_ref()?;
        Some(if entry.fixed {
            Target::Fixed(slot.0)
        } else {
            Target::Plain(entry.file.as_raw_fd())
        })
    }

    pub(crate) fn started(&mut self, slot: FileSlot) {
        if let Some(Some(entry)) = self.entries.get_mut(slot.0 as usize) {
            entry.in_flight += 1;
        }
    }

    pub(crate) fn finished(&mut self, slot: FileSlot) {
        if let Some(Some(entry)) = self.entries.get_mut(slot.0 as usize) {
            entry.in_flight -= 1;
        }
    }
}
