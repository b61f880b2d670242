//! What two movers say to each other: the messages of protocol 1 and their frame.
//!
//! In: messages. Out: bytes, and back, bounded by `limits`. The same frames travel over QUIC,
//! TLS/TCP and the in-memory transport. postcard does not describe itself, so every change of a
//! type in this file is a new protocol number in [`ALPN`] (see docs/protocol.md).
//!
//! A frame is `header_len: u32 LE`, `payload_len: u32 LE`, the postcard header (one message), and
//! the raw payload, which only [`ToTarget::Block`] and [`ToSource::Block`] have.

use serde::{Deserialize, Serialize};

mod frame;

pub use self::frame::{
    FrameError, FramePrefix, Message, check_offer, check_request, decode, encode, is_name,
};

use crate::extents::Run;
use crate::failure::Failure;
use crate::ids::{BlockId, IdKey, PointId, RepositoryId, SessionId, StoredChecksum};
use crate::manage::{ManageRequest, PointFlags, Retention};
use crate::units::{BlockSize, Compression};

/// Protocol number, sent in `Hello` too, so that a transport without ALPN still checks it.
pub const PROTOCOL: u16 = 1;
/// ALPN of QUIC and TLS connections: carries the protocol version.
pub const ALPN: &[u8] = b"gantry/1";
/// Bytes before a frame's header.
pub const FRAME_PREFIX_BYTES: usize = 8;

/// How a block's stored bytes are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// As they are.
    Raw,
    /// One zstd frame with its content size.
    Zstd,
}

/// Everything about one block on the wire or in a record, but its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockHead {
    /// Id of the raw bytes.
    pub id: BlockId,
    /// Coding of the stored bytes.
    pub codec: Codec,
    /// Bytes when decoded.
    pub raw_len: u32,
    /// Checksum of the stored bytes.
    pub checksum: StoredChecksum,
}

/// Why a run of blocks needs no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MarkKind {
    /// Reads as zeros.
    Zero,
    /// As in the base point.
    Unchanged,
}

/// A run of blocks and why no bytes come for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The blocks.
    pub run: Run,
    /// Why.
    pub kind: MarkKind,
}

/// A range of a disk's effective mask: what the stored content has zeroed on purpose, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskRange {
    /// Why, as a code; [`MaskRange::UNKNOWN`] where nobody can say what is zeroed.
    pub reason: u16,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl MaskRange {
    /// Stands alone in a mask of which nothing is known. No reader of masks takes it: a backup on such
    /// a base reads the whole disk.
    pub const UNKNOWN: MaskRange = MaskRange { reason: u16::MAX, start: 0, length: 0 };
}

/// Number of a disk's task within its session: its place in [`SessionOffer::disks`].
pub type TaskNumber = u16;

/// What the target must know of one disk before its task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskOffer {
    /// Identity that stays when a disk moves: vCenter instance, VM instance UUID and disk UUID, or
    /// what `--disk-id` says. Never a position.
    pub identity: String,
    /// For a person: file or device name.
    pub label: String,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Block size of this task.
    pub block_size: BlockSize,
    /// Which frozen state of the disk is read: snapshot id, or device, inode, size and mtime. A
    /// resume with another value starts over.
    pub snapshot: String,
    /// Digest of what decides which blocks are not read: filter map, changed extents and their
    /// base. All zero: everything is read. An attempt is gone on with only by one with the same.
    pub read_digest: [u8; 32],
    /// The point that changed extents refer to, or that is compared with. `Latest` takes the
    /// newest committed point that holds this disk.
    pub base: BaseChoice,
    /// CBT change id of the snapshot, for the next incremental.
    pub change_id: Option<String>,
}

/// Which base a task asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BaseChoice {
    /// None: a full.
    None,
    /// The newest point of this name that holds the disk, if any.
    Latest,
    /// This point and no other.
    Point(PointId),
}

/// One backup session of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOffer {
    /// The VM's (or image set's) name: points are listed under it.
    pub name: String,
    /// Every disk of the session; the point is committed once all are sealed.
    pub disks: Vec<DiskOffer>,
    /// Compression, recorded in the point.
    pub compression: Compression,
    /// Milliseconds since 1970 of the snapshot.
    pub created_ms: u64,
    /// VM configuration (opaque to the data plane; vSphere fills it).
    pub vm_config: Vec<u8>,
    /// Which points the target keeps once this one is committed; nothing: all of them.
    pub retention: Option<Retention>,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// Bring a session in; the same session id again is a resume.
    Backup(SessionOffer),
    /// Read one disk of a committed point.
    Restore(RestoreOffer),
    /// Ask for the points of a name (all names if empty).
    List {
        /// The name.
        name: String,
        /// The deleted ones, instead of those that are not.
        deleted: bool,
    },
    /// Look after the repository.
    Manage(ManageRequest),
    /// Bring some of a VM's disks in and keep them; nothing is committed. Sessions of different
    /// disks of one VM may run at once.
    Part(SessionOffer),
    /// Commit a VM whose disks parts have brought in. Where a point holds exactly these disks in
    /// this frozen state already, that is the answer.
    Commit(SessionOffer),
}

impl Intent {
    /// What a session of this kind says.
    pub fn of_session(kind: SessionKind, offer: SessionOffer) -> Intent {
        match kind {
            SessionKind::Backup => Intent::Backup(offer),
            SessionKind::Part => Intent::Part(offer),
            SessionKind::Commit => Intent::Commit(offer),
        }
    }
}

/// What a session that brings disks in is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// The point is committed once every disk of the session is sealed.
    Backup,
    /// The session is over once its disks are sealed; what it brought stays for a later session.
    Part,
    /// As `Backup`, of disks that parts have brought in; done already where a point holds them.
    Commit,
}

impl SessionKind {
    /// Whether two sessions of one VM, with these kinds and disks, must not run at once.
    pub fn excludes(self, disks: &[DiskOffer], other: SessionKind, others: &[DiskOffer]) -> bool {
        let shares =
            || disks.iter().any(|disk| others.iter().any(|other| other.identity == disk.identity));
        self != SessionKind::Part || other != SessionKind::Part || shares()
    }
}

/// Which disk of which point to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreOffer {
    /// The VM's name.
    pub name: String,
    /// The point; nothing means the newest.
    pub point: Option<PointId>,
    /// Position in the point's disk list.
    pub disk: u16,
}

/// Session ticket: proves that this peer may do this, for a while. Opaque to whoever carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketBytes(pub Vec<u8>);

/// Totals of one disk that the source knows, kept in the point. Bytes of raw disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTotals {
    /// Bytes that were read from the source.
    pub bytes_read: u64,
    /// Bytes in blocks that read as zeros (holes included).
    pub bytes_zero: u64,
    /// Bytes in blocks taken over from the base.
    pub bytes_unchanged: u64,
    /// Bytes in blocks that the repository already knew.
    pub bytes_duplicate: u64,
    /// Raw bytes in blocks that were sent.
    pub bytes_sent_raw: u64,
    /// Their bytes as sent (compressed, without frame headers).
    pub bytes_transferred: u64,
    /// Bytes in blocks that an earlier, interrupted attempt had made durable.
    pub bytes_resumed: u64,
}

/// From source mover (or restoring client) to target mover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToTarget {
    /// First frame on the control stream.
    Hello {
        /// [`PROTOCOL`].
        protocol: u16,
        /// Program and version, for the log.
        software: String,
        /// The session; kept by a resume.
        session: SessionId,
        /// What for.
        intent: Intent,
        /// The ticket, where one was issued; required on every reconnection.
        ticket: Option<TicketBytes>,
    },
    /// Starts (or, after a reconnection, restarts) one disk's task.
    OpenTask {
        /// Which disk.
        task: TaskNumber,
    },
    /// Asks for the base's block ids of one map leaf.
    NeedBase {
        /// Which disk.
        task: TaskNumber,
        /// Leaf number: blocks `leaf * NODE_CHILDREN ..`.
        leaf: u64,
    },
    /// Runs of blocks that need no bytes.
    Marks {
        /// Which disk.
        task: TaskNumber,
        /// The runs.
        marks: Vec<Mark>,
    },
    /// Are these blocks' contents known? Those that are count as delivered.
    Query {
        /// Which disk.
        task: TaskNumber,
        /// Number of the batch within the connection.
        batch: u64,
        /// Block numbers and ids.
        blocks: Vec<(u64, BlockId)>,
    },
    /// One block; its stored bytes are the payload. Needs one credit.
    Block {
        /// Which disk.
        task: TaskNumber,
        /// Block number.
        block: u64,
        /// What the payload is.
        head: BlockHead,
    },
    /// Every block of the disk has been accounted for; answered by `Sealed` once all is durable.
    Seal {
        /// Which disk.
        task: TaskNumber,
        /// Totals, kept in the point.
        totals: TaskTotals,
        /// What the content has zeroed on purpose, kept in the point; at most
        /// [`MASK_RANGES_MAX`](crate::limits::MASK_RANGES_MAX) ranges.
        mask: Vec<MaskRange>,
    },
    /// The source gives up this disk: nothing of the session will be committed now.
    GiveUp {
        /// Which disk.
        task: TaskNumber,
        /// Why.
        failure: Failure,
    },
    /// Restore: read these blocks; answered by lanes of `Block`, then `ReadDone` on control.
    Read {
        /// Number of the request within the connection.
        batch: u64,
        /// The blocks.
        run: Run,
    },
    /// Restore: how many `Block` frames the client has room for, counted from the connection's
    /// start.
    Credit {
        /// Total since the start of the connection.
        total: u64,
    },
    /// Last frame of a connection that ends well.
    Bye,
}

/// What became of the base that a task asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BaseAnswer {
    /// No base was asked for.
    NotAsked,
    /// This committed point is the base.
    Usable {
        /// The point.
        point: PointId,
        /// Bytes of the disk in that point.
        size_bytes: u64,
        /// CBT change id stored with it.
        change_id: Option<String>,
        /// Blocks of it known to be damaged: always in the read set.
        damaged: Vec<Run>,
        /// What that point's content has zeroed on purpose: to be read again where nothing masks it
        /// any more, since no change tracking reports it.
        mask: Vec<MaskRange>,
        /// Why this is not the point that `BaseChoice::Point` asked for: the store then falls
        /// back to the newest usable point, good for a compare but not for changed extents.
        fallback_reason: Option<String>,
    },
    /// It cannot serve; everything is read, for this reason.
    Unusable {
        /// For the session log.
        reason: String,
    },
}

/// A restore point as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointSummary {
    /// The point.
    pub point: PointId,
    /// VM name.
    pub name: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Its base, if it had one.
    pub parent: Option<PointId>,
    /// Protected, kept longer.
    pub flags: PointFlags,
    /// It is deleted; it can be brought back until a collection.
    pub is_deleted: bool,
    /// Each disk.
    pub disks: Vec<DiskSummary>,
}

/// A disk of a listed point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSummary {
    /// Identity.
    pub identity: String,
    /// For a person.
    pub label: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Block size.
    pub block_size: BlockSize,
    /// Totals of the run that made it.
    pub totals: TaskTotals,
    /// CBT change id of the snapshot: what a later run asks vSphere for changes since.
    pub change_id: Option<String>,
}

/// From target mover to source mover (or restoring client).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSource {
    /// Answer to `Hello`.
    Welcome {
        /// The repository.
        repository: RepositoryId,
        /// Its id key.
        id_key: IdKey,
        /// Ticket to present at a reconnection.
        ticket: Option<TicketBytes>,
        /// First credit: `Block` frames the source may send on this connection.
        credit: u64,
    },
    /// Answer to `Hello` of a refused peer; the connection then closes.
    Refused {
        /// Why.
        failure: Failure,
    },
    /// Answer to `OpenTask`.
    TaskOpened {
        /// Which disk.
        task: TaskNumber,
        /// The base; counts in the first page only, later ones say `NotAsked`.
        base: BaseAnswer,
        /// Blocks already durable from an earlier attempt; at most `RUNS_MAX` a message.
        durable: Vec<Run>,
        /// Whether a further `TaskOpened` with more of `durable` follows.
        more: bool,
    },
    /// Answer to `NeedBase`: ids of that leaf's blocks in the base (ZERO: reads as zeros), fewer
    /// than `NODE_CHILDREN` at the base's end.
    BaseIds {
        /// Which disk.
        task: TaskNumber,
        /// Leaf number.
        leaf: u64,
        /// The ids.
        ids: Vec<BlockId>,
    },
    /// Answer to `Query`, in the same order.
    Known {
        /// Which disk.
        task: TaskNumber,
        /// The batch.
        batch: u64,
        /// True: delivered; false: send the block.
        known: Vec<bool>,
    },
    /// How many `Block` frames may be sent, counted from the connection's start.
    Credit {
        /// Total since the start of the connection.
        total: u64,
    },
    /// These blocks are durable: they survive any crash of the target.
    Durable {
        /// Which disk.
        task: TaskNumber,
        /// The blocks.
        runs: Vec<Run>,
    },
    /// The disk is complete and durable.
    Sealed {
        /// Which disk.
        task: TaskNumber,
        /// Bytes that the task added to the repository (records, map nodes, footers).
        bytes_stored: u64,
    },
    /// The point exists.
    Committed {
        /// The point.
        point: PointId,
        /// Older points that the session's retention deleted; undoable until a collection.
        deleted: Vec<PointId>,
    },
    /// The task, or (without one) the whole session, cannot go on.
    Failed {
        /// Which disk, if one.
        task: Option<TaskNumber>,
        /// Why.
        failure: Failure,
    },
    /// Answer to a restore's `Hello`, after `Welcome`.
    PointOpened {
        /// The point.
        point: PointSummary,
    },
    /// Restore: one block; its stored bytes are the payload.
    Block {
        /// Block number.
        block: u64,
        /// What the payload is.
        head: BlockHead,
    },
    /// Restore: these blocks read as zeros.
    Zeros {
        /// The blocks.
        runs: Vec<Run>,
    },
    /// Restore: every block of that request has been sent, on the lanes or as `Zeros`.
    ReadDone {
        /// The request.
        batch: u64,
        /// `Block` frames sent for it, so that the client knows when the lanes have delivered.
        blocks: u64,
        /// Microseconds in which nothing could be sent because the repository was still reading.
        reading_us: u64,
        /// Microseconds in which the lanes took nothing more.
        sending_us: u64,
    },
    /// Answer to `Intent::Manage`, now and then: how far it is.
    Progress {
        /// What is being done.
        phase: String,
        /// So much of it is done,
        done: u64,
        /// of so much; 0: not known.
        total: u64,
    },
    /// Answer to `Intent::Manage`, last: postcard of a [`crate::manage::ManageReport`], in pages.
    Report {
        /// The next bytes.
        page: Vec<u8>,
        /// Whether another page follows.
        more: bool,
    },
    /// Answer to `Intent::List`, in pages.
    Points {
        /// Newest last.
        points: Vec<PointSummary>,
        /// Whether another page follows.
        more: bool,
    },
}
