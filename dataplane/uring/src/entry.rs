//! Submission queue entries, built from what a ring knows.
//!
//! In: a file's target, an address, an offset. Out: an `Entry` without its `user_data`. Must not:
//! check ranges or own anything (the ring does).

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags};

/// A file as a submission names it.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// Index in the registered table.
    Fixed(u32),
    /// Plain descriptor.
    Plain(i32),
}

impl Target {
    /// The number in the entry's `fd` field, and the flag that says which kind it is.
    fn parts(self) -> (Fd, Flags) {
        match self {
            Target::Fixed(slot) => (Fd(slot as i32), Flags::FIXED_FILE),
            Target::Plain(fd) => (Fd(fd), Flags::empty()),
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// Memory and file range of a transfer.
pub(crate) struct Place {
    pub(crate) address: *mut u8,
    pub(crate) len: u32,
    pub(crate) offset: u64,
    /// Index of the registered buffer that holds the memory.
    pub(crate) registered: Option<u16>,
}

pub(crate) fn transfer(direction: Direction, target: Target, place: &Place) -> Entry {
    let &Place { address, len, offset, registered } = place;
    let (fd, flags) = target.parts();
    match (direction, registered) {
        (Direction::Read, Some(index)) => {
            opcode::ReadFixed::new(fd, address, len, index).offset(offset).build()
        }
        (Direction::Read, None) => opcode::Read::new(fd, address, len).offset(offset).build(),
        (Direction::Write, Some(index)) => {
            opcode::WriteFixed::new(fd, address, len, index).offset(offset).build()
        }
        (Direction::Write, None) => opcode::Write::new(fd, address, len).offset(offset).build(),
    }
    .flags(flags)
}

pub(crate) fn fdatasync(target: Target) -> Entry {
    let (fd, flags) = target.parts();
    opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build().flags(flags)
}

/// Completes once when `fd` can be read.
pub(crate) fn poll_readable(fd: i32) -> Entry {
    opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).build()
}
