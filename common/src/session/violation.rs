//! What a peer of protocol 1 must never do, named.
//!
//! Out of both machines: an error from `handle_frame`. The driver then closes the connection; the
//! machine has dropped it already and takes a new one, on which the session may go on.

use crate::extents::Run;
use crate::wire::TaskNumber;

/// A well-formed message that breaks the rules of docs/protocol.md.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolViolation {
    /// The message may not come now.
    #[error("{message} is not allowed {when}")]
    OutOfTurn {
        /// The message's name.
        message: &'static str,
        /// In which state it came.
        when: &'static str,
    },
    /// The session has no such disk.
    #[error("{message} names disk {task} of a session with {disks}")]
    UnknownTask {
        /// The message's name.
        message: &'static str,
        /// The disk it names.
        task: TaskNumber,
        /// Disks of the session.
        disks: usize,
    },
    /// The disk's task was not opened on this connection.
    #[error("{message} for disk {task}, whose task is not open on this connection")]
    TaskNotOpen {
        /// The message's name.
        message: &'static str,
        /// The disk it names.
        task: TaskNumber,
    },
    /// A block number beyond the disk's end.
    #[error("{message} names {count} block(s) from {first} on disk {task}, which has {blocks}")]
    BeyondDisk {
        /// The message's name.
        message: &'static str,
        /// The disk.
        task: TaskNumber,
        /// First block named.
        first: u64,
        /// Blocks named.
        count: u64,
        /// Blocks of the disk.
        blocks: u64,
    },
    /// A block of another length than its place on the disk has.
    #[error("block {block} of disk {task} comes with {found} bytes and has {expected}")]
    WrongLength {
        /// The disk.
        task: TaskNumber,
        /// The block.
        block: u64,
        /// Its length on the disk.
        expected: u32,
        /// The length in the message.
        found: u32,
    },
    /// A `Block` without credit.
    #[error("a block beyond the credit of {total}")]
    OverCredit {
        /// Credit told so far.
        total: u64,
    },
    /// Credit is a total and never falls.
    #[error("credit fell from {from} to {to}")]
    CreditFell {
        /// Told before.
        from: u64,
        /// Told now.
        to: u64,
    },
    /// An answer to something that was not asked on this connection.
    #[error("{message} answers {number} of disk {task}, which was not asked")]
    NotAsked {
        /// The message's name.
        message: &'static str,
        /// The disk.
        task: TaskNumber,
        /// Batch or leaf.
        number: u64,
    },
    /// Not as many entries as were asked for.
    #[error("{message} carries {found} entries instead of {expected}")]
    WrongCount {
        /// The message's name.
        message: &'static str,
        /// Entries that belong there.
        expected: u64,
        /// Entries found.
        found: u64,
    },
    /// The same number again while the first is not answered.
    #[error("{message} repeats {number} of disk {task} before its answer")]
    Repeated {
        /// The message's name.
        message: &'static str,
        /// The disk.
        task: TaskNumber,
        /// Batch or leaf.
        number: u64,
    },
    /// More of something than `limits` allows at once.
    #[error("more than {max} {what} of disk {task} at once")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The disk.
        task: TaskNumber,
        /// The bound.
        max: usize,
    },
    /// A payload where none belongs, or none where one does.
    #[error("{message} with a payload that does not belong, or without the one that does")]
    Payload {
        /// The message's name.
        message: &'static str,
    },
    /// A resumed session must be the same one.
    #[error("the resumed session is not the one that was begun: another {what}")]
    Changed {
        /// What differs.
        what: &'static str,
    },
}

/// Refuses a message that may not come now.
pub(super) fn out_of_turn(
    message: &'static str,
    when: &'static str,
) -> Result<(), ProtocolViolation> {
    Err(ProtocolViolation::OutOfTurn { message, when })
}

/// Checks that a run is not empty and lies on a disk of `blocks` blocks.
pub(super) fn check_run(
    message: &'static str,
    task: TaskNumber,
    run: Run,
    blocks: u64,
) -> Result<(), ProtocolViolation> {
    if run.count > 0 && run.end().is_some_and(|end| end <= blocks) {
        return Ok(());
    }
    let Run { first, count } = run;
    Err(ProtocolViolation::BeyondDisk { message, task, first, count, blocks })
}
