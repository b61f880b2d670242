//! What the sender asks of the source pipeline, and what the pipeline tells it.
//!
//! The pipeline reads, scans, hashes and compresses; the sender decides what is needed and keeps
//! account of every block's fate. `P` is the payload type: opaque here.

use crate::extents::Run;
use crate::failure::Failure;
use crate::ids::{BlockId, IdKey, PointId};
use crate::wire::{BaseAnswer, BlockHead, Mark, MaskRange, TaskNumber, TaskTotals};

/// Sender → pipeline.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceCommand {
    /// Begin this disk: everything but `durable` is to be accounted for, in ascending order.
    Start {
        /// Which disk.
        task: TaskNumber,
        /// Key for block ids.
        id_key: IdKey,
        /// The base, for the choice between full, extents and compare.
        base: BaseAnswer,
        /// Blocks that an earlier attempt made durable: skip them.
        durable: Vec<Run>,
    },
    /// Base ids of a leaf that the pipeline asked for.
    Base {
        /// Which disk.
        task: TaskNumber,
        /// Leaf number.
        leaf: u64,
        /// Ids of its blocks.
        ids: Vec<BlockId>,
    },
    /// The target has this block: drop it.
    Known {
        /// Which disk.
        task: TaskNumber,
        /// Block number.
        block: u64,
    },
    /// The target does not have it: compress and report it.
    Wanted {
        /// Which disk.
        task: TaskNumber,
        /// Block number.
        block: u64,
    },
    /// These blocks' fate was lost with a connection before it was durable: do them again. Blocks
    /// that are still inside the pipeline are never named. May follow `Totals`, even `Sealed`: a
    /// disk stays open until `Finished` or `Failed`.
    Redo {
        /// Which disk.
        task: TaskNumber,
        /// The blocks.
        runs: Vec<Run>,
    },
    /// The disk is complete and durable at the target.
    Sealed {
        /// Which disk.
        task: TaskNumber,
        /// Bytes that it added to the repository.
        bytes_stored: u64,
    },
    /// The point exists; the session is over. May be the only command, where an earlier attempt of
    /// this session had already committed it.
    Finished {
        /// The point.
        point: PointId,
        /// Older points that the session's retention deleted.
        deleted: Vec<PointId>,
    },
    /// Every disk of a part is complete and durable, and kept; the session is over.
    Held,
    /// The session cannot go on: stop every disk. Also the answer to the pipeline's own `Failed`.
    Failed {
        /// Which disk, if one.
        task: Option<TaskNumber>,
        /// Why.
        failure: Failure,
    },
}

/// Pipeline → sender.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceReport<P> {
    /// These blocks need no bytes.
    Marked {
        /// Which disk.
        task: TaskNumber,
        /// The run and why.
        mark: Mark,
    },
    /// The pipeline needs the base's ids of this leaf. Only where the base is usable; one `Base`
    /// comes for a leaf, empty beyond the base's end.
    NeedBase {
        /// Which disk.
        task: TaskNumber,
        /// Leaf number.
        leaf: u64,
    },
    /// A block was read and hashed and waits for `Known` or `Wanted`. The answer may take a
    /// reconnection; it comes exactly once.
    Hashed {
        /// Which disk.
        task: TaskNumber,
        /// Block number.
        block: u64,
        /// Its id.
        id: BlockId,
    },
    /// A block ready to be sent: wanted, or never asked about.
    Ready {
        /// Which disk.
        task: TaskNumber,
        /// Block number.
        block: u64,
        /// What the payload is.
        head: BlockHead,
        /// Stored bytes.
        payload: P,
    },
    /// Totals of this disk. Sent whenever every block of `Start` and of each `Redo` so far has met
    /// its fate inside the pipeline (marked, known or ready), also where there was none to do. The
    /// seal waits for totals that are newer than the last block reported or redone.
    Totals {
        /// Which disk.
        task: TaskNumber,
        /// The totals.
        totals: TaskTotals,
        /// What the content has zeroed on purpose.
        mask: Vec<MaskRange>,
    },
    /// The source failed for good.
    Failed {
        /// Which disk.
        task: TaskNumber,
        /// Why.
        failure: Failure,
    },
}
