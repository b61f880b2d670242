//! What the receiver asks of the repository's store, and what the store tells it.
//!
//! The store answers every command that has an answer exactly once: in any order between tasks, in
//! order within one task, and `Detach` last of all (see there). `P` is the payload type: opaque
//! here. A task is named by `TaskKey`, unique within the store process for as long as the session
//! lives.

use crate::extents::Run;
use crate::failure::Failure;
use crate::ids::{BlockId, PointId, SessionId};
use crate::wire::{
    BaseAnswer, BlockHead, Mark, MaskRange, SessionKind, SessionOffer, TaskNumber, TaskTotals,
};

/// A task: session and disk number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey {
    /// The session.
    pub session: SessionId,
    /// The disk.
    pub task: TaskNumber,
}

/// Receiver → store.
#[derive(Debug, Clone, PartialEq)]
pub enum StoreCommand<P> {
    /// Makes the session known: claims the VM's name for it, or, for a part, just its disks. Answered by `SessionOpened` or
    /// `Failed`. Repeated for a session that is open (a resume): answered again.
    OpenSession {
        /// The session.
        session: SessionId,
        /// What it brings.
        offer: SessionOffer,
        /// What it is for.
        kind: SessionKind,
    },
    /// Opens or, from its journal, resumes a task. Answered by `TaskOpened` or `Failed`.
    OpenTask {
        /// Which task.
        key: TaskKey,
    },
    /// Answered by `BaseIds` or `Failed`.
    NeedBase {
        /// Which task.
        key: TaskKey,
        /// Leaf number.
        leaf: u64,
    },
    /// Blocks without bytes. No answer but, in time, `Durable`.
    Marks {
        /// Which task.
        key: TaskKey,
        /// The runs.
        marks: Vec<Mark>,
    },
    /// Answered by `Answered`. Blocks that are known are pinned and count as delivered.
    Query {
        /// Which task.
        key: TaskKey,
        /// The connection's batch number, returned.
        batch: u64,
        /// Block numbers and ids.
        blocks: Vec<(u64, BlockId)>,
    },
    /// Stores one block. Answered by `Appended` when its buffer is free (also where the block could
    /// not be stored, or its task has failed), and in time `Durable`. A block or mark may come
    /// again after a reconnection; it then replaces what the task had at its place.
    Append {
        /// Which task.
        key: TaskKey,
        /// Block number.
        block: u64,
        /// What the payload is.
        head: BlockHead,
        /// Stored bytes.
        payload: P,
    },
    /// Complete the disk: every block must be accounted for. Answered by `Sealed` or `Failed`.
    /// When every disk of the session is sealed the store commits the point by itself and answers
    /// `Committed`; not that of a part. Idempotent.
    Seal {
        /// Which task.
        key: TaskKey,
        /// The source's totals.
        totals: TaskTotals,
        /// What the content has zeroed on purpose.
        mask: Vec<MaskRange>,
    },
    /// The connection is gone: make durable what is there and close the session's files; it may
    /// come back with `OpenSession` and then `OpenTask` for every disk, sealed ones too. Answered
    /// by `Detached` after every other report of what the session commanded before, whatever
    /// failed: until then the receiver takes reports as belonging to the lost connection.
    Detach {
        /// The session.
        session: SessionId,
    },
}

/// Store → receiver.
#[derive(Debug, Clone, PartialEq)]
pub enum StoreReport {
    /// The session may go on. `committed` if an earlier attempt already committed it (then no
    /// `Committed` follows).
    SessionOpened {
        /// The session.
        session: SessionId,
        /// The point, where it is done already.
        committed: Option<PointId>,
    },
    /// The task may go on. A resumed task keeps the base that it began with.
    TaskOpened {
        /// Which task.
        key: TaskKey,
        /// The base.
        base: BaseAnswer,
        /// Blocks already durable.
        durable: Vec<Run>,
    },
    /// Base ids of a leaf.
    BaseIds {
        /// Which task.
        key: TaskKey,
        /// Leaf number.
        leaf: u64,
        /// The ids.
        ids: Vec<BlockId>,
    },
    /// Which blocks of a query are known.
    Answered {
        /// Which task.
        key: TaskKey,
        /// The batch.
        batch: u64,
        /// In the query's order.
        known: Vec<bool>,
    },
    /// A block's bytes left its buffer (not yet durable).
    Appended {
        /// Which task.
        key: TaskKey,
        /// Block number.
        block: u64,
    },
    /// These blocks survive any crash. At any time between `TaskOpened` and `Detached`.
    Durable {
        /// Which task.
        key: TaskKey,
        /// The blocks.
        runs: Vec<Run>,
    },
    /// The disk is complete and durable.
    Sealed {
        /// Which task.
        key: TaskKey,
        /// Bytes added to the repository.
        bytes_stored: u64,
    },
    /// The point exists.
    Committed {
        /// The session.
        session: SessionId,
        /// The point.
        point: PointId,
        /// Older points that the session's retention deleted.
        deleted: Vec<PointId>,
    },
    /// Answer to `Detach`: every earlier command of the session is answered, every buffer is back,
    /// and nothing more comes until `OpenSession` is repeated.
    Detached {
        /// The session.
        session: SessionId,
    },
    /// The task or the session cannot go on: the connection will end, and a `Detach` follows.
    Failed {
        /// The session.
        session: SessionId,
        /// The disk, if one.
        task: Option<TaskNumber>,
        /// Why.
        failure: Failure,
    },
}
