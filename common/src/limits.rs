//! Every bound of Gantry in one place: queues, buffers, counts, message sizes.
//!
//! In: nothing. Out: constants. Units stand last in each name. What a peer, a disk or a file
//! announces beyond one of these is refused with an error, never allocated.

use crate::units::BlockSize;

/// Largest raw block.
pub const BLOCK_BYTES_MAX: u32 = BlockSize::M4.bytes();
/// Largest stored form of a block: blocks that do not shrink are stored raw, so never more.
pub const STORED_BYTES_MAX: u32 = BLOCK_BYTES_MAX;
/// Largest virtual disk: 64 TiB, what vSphere allows (62 TiB), rounded up.
pub const DISK_BYTES_MAX: u64 = 64 << 40;
/// Disks of one session (one VM).
pub const SESSION_DISKS_MAX: usize = 256;
/// Bytes of a VM's or a disk's name or identity.
pub const NAME_BYTES_MAX: usize = 512;
/// Points in one list, over all its pages.
pub const LISTED_POINTS_MAX: usize = 1 << 20;
/// Points in one management request.
pub const MANAGE_POINTS_MAX: usize = 1024;
/// Bytes of one page of a management report.
pub const MANAGE_PAGE_BYTES_MAX: usize = 512 << 10;
/// Bytes of a whole management report: longer ones are shortened by who makes them, and refused.
pub const MANAGE_REPORT_BYTES_MAX: usize = 16 << 20;
/// Points that one application of retention deletes; the rest goes the next time.
pub const RETIRED_POINTS_MAX: usize = 4096;
/// Bytes of a VM's configuration (hardware, NVRAM) in a session's offer.
pub const VM_CONFIG_BYTES_MAX: usize = 128 << 10;
/// Bytes of a copy of gantryd's database that a repository keeps.
pub const COPY_BYTES_MAX: usize = 64 << 20;
/// Copies that a repository keeps: the newest.
pub const COPIES_KEPT: usize = 8;
/// Blocks of one audit of changed-block tracking, at the least and at the most.
pub const AUDIT_BLOCKS_MIN: u32 = 64;
/// See [`AUDIT_BLOCKS_MIN`].
pub const AUDIT_BLOCKS_MAX: u64 = 1 << 16;
/// Bytes of a text that a peer sends for a person (error, reason).
pub const TEXT_BYTES_MAX: usize = 4096;

/// Children of a map node (see docs/repository-format.md).
pub const NODE_CHILDREN: u64 = 1024;
/// Levels of a map tree: 1024^3 blocks of 256 KiB are 256 TiB.
pub const NODE_LEVELS_MAX: u8 = 3;

/// Bytes of one frame's postcard header, on any stream.
pub const FRAME_HEADER_BYTES_MAX: u32 = 1 << 20;
/// Bytes of one frame's payload.
pub const FRAME_PAYLOAD_BYTES_MAX: u32 = STORED_BYTES_MAX;
/// Block ids in one known-block query.
pub const QUERY_IDS_MAX: usize = 256;
/// Known-block queries of one task without an answer yet.
pub const QUERIES_IN_FLIGHT_MAX: usize = 16;
/// Base leaves that one task has asked for without an answer yet.
pub const BASE_LEAVES_IN_FLIGHT_MAX: usize = 64;
/// Runs of blocks in one message.
pub const RUNS_MAX: usize = 8192;
/// Base ids in one reply: one map leaf.
pub const BASE_IDS_MAX: usize = NODE_CHILDREN as usize;
/// Store commands of one session that wait to be taken before its receiver wants no more frames.
pub const STORE_COMMANDS_MAX: usize = 256;
/// Data streams of one connection.
pub const LANES_MAX: usize = 4;
/// Blocks whose fate one task has not yet made known, in order: bounds the holes in a coverage.
pub const COVERAGE_RUNS_MAX: usize = 65_536;

/// Target size of a pack file.
pub const PACK_BYTES_TARGET: u64 = 256 << 20;
/// Largest pack file that is accepted: the target, one more block, and its footer.
pub const PACK_BYTES_MAX: u64 = 1 << 30;
/// Bytes that packs leave free on the repository's file system, so that what is not a pack (epoch,
/// journals, manifests, index, footers) can be written even when no block can.
pub const REPOSITORY_FREE_BYTES_MIN: u64 = 32 << 20;
/// Records of one pack: the smallest record takes 4 KiB.
pub const PACK_RECORDS_MAX: usize = (PACK_BYTES_MAX / 4096) as usize;
/// Packs of failed tasks that wait to be sealed in this process; others wait for the next start.
pub const FAILED_PACKS_MAX: usize = 16;
/// Bytes of a manifest.
pub const MANIFEST_BYTES_MAX: usize = 48 << 20;
/// Ranges of a disk's mask that a point keeps; beyond, the smallest are copied.
pub const MASK_RANGES_MAX: usize = 8192;
/// Bytes of one task journal entry.
pub const JOURNAL_ENTRY_BYTES_MAX: usize = 1 << 20;
/// Bytes appended since the last durable checkpoint of a task before the next is forced.
pub const CHECKPOINT_BYTES_MAX: u64 = 1 << 30;
/// Milliseconds after which unsynced progress of a task is made durable.
pub const CHECKPOINT_MS_MAX: u64 = 5_000;

/// Records that readers asked the store to look at and it has not yet.
pub const INQUIRIES_MAX: usize = 4096;
/// Bytes of a collection's live map that are in memory; the rest is in a scratch file.
pub const LIVE_MAP_CACHE_BYTES: usize = 8 << 20;
/// Map nodes in new packs that a collection remembers to have walked; beyond, it walks them again.
pub const COLLECT_NEW_NODES_MAX: usize = 64 << 10;
/// Ids of blocks, 32 bytes each, that a collection gathers and sorts before it looks them up, so
/// that neighbours in the index are read together.
pub const COLLECT_GATHERED_IDS_MAX: usize = 1 << 20;
/// Packs that a collection changes in one step; between steps the store does its other work.
pub const COLLECT_BATCH_PACKS_MAX: usize = 8;
/// Records that such a step gives up, unless a single pack has more.
pub const COLLECT_BATCH_SLOTS_MAX: usize = 8192;
/// Packs whose live bits such a step counts.
pub const COLLECT_COUNTED_PACKS_MAX: usize = 1024;
/// Bytes of the file that says what a collection is about to change.
pub const COLLECT_INTENT_BYTES_MAX: usize = 128 << 20;
/// Dead bytes for which a pack gets holes, whatever its share of dead bytes.
pub const COLLECT_PUNCH_BYTES_MIN: u64 = 1 << 20;
/// A pack also gets holes if this share of it is dead: one part in so many.
pub const COLLECT_PUNCH_PARTS: u64 = 8;
/// A pack is rewritten if less than this share of it is live, percent.
pub const COLLECT_REWRITE_LIVE_PERCENT: u64 = 25;
/// As above, where files cannot have holes.
pub const COLLECT_REWRITE_LIVE_PERCENT_WITHOUT_HOLES: u64 = 50;
/// Of what is stored, one part in so many may be copied to empty mostly dead packs.
pub const COLLECT_REWRITE_PARTS: u64 = 10;
/// Bytes of records that are checked or copied in one step of that.
pub const COLLECT_COPY_BYTES: u64 = 8 << 20;
/// Bytes of the file that is given up on a full file system, so that it can be collected.
pub const BALLAST_BYTES_MAX: u64 = 32 << 20;
/// It is not made smaller than this.
pub const BALLAST_BYTES_MIN: u64 = 1 << 20;
/// It takes one part in so many of what is free, where that is less.
pub const BALLAST_FREE_PARTS: u64 = 64;
/// A collection gives it up if fewer bytes than this are free.
pub const COLLECT_FREE_BYTES_MIN: u64 = 48 << 20;
/// So does an opening, which needs less.
pub const OPEN_FREE_BYTES_MIN: u64 = 4 << 20;
/// Share of its time that a collection marks for while sessions are attached, percent.
pub const COLLECT_DUTY_PERCENT: u32 = 15;
/// Milliseconds between the steps of a collection while sessions are attached.
pub const COLLECT_STEP_MS_MIN: u64 = 200;

/// Bytes of rows that are put in order at once when an index is built anew.
pub const INDEX_SORT_BYTES: usize = 64 << 20;
/// Bytes of the index's own cache.
pub const INDEX_CACHE_BYTES: usize = 32 << 20;

/// Bytes of raw read buffers of a source mover, over all its workers.
pub const READ_POOL_BYTES: usize = 64 << 20;
/// Bytes of compressed output buffers of a source mover (returned when acknowledged).
pub const SEND_POOL_BYTES: usize = 64 << 20;
/// Bytes of receive buffers for each session at a target mover: what its credits hand out.
pub const RECEIVE_POOL_BYTES: usize = 32 << 20;
/// Bytes of read buffers of one restore.
pub const RESTORE_POOL_BYTES: usize = 64 << 20;

/// Bytes of a path or of a URL's path and query.
pub const PATH_BYTES_MAX: usize = 4096;
/// Connections to one source.
pub const SOURCE_CONNECTIONS_MAX: u16 = 32;
/// Requests in flight to one source.
pub const SOURCE_IN_FLIGHT_MAX: u16 = 256;
/// Open files of all disks that one worker reads by io_uring.
pub const SOURCE_FILES_MAX: usize = 512;
/// Milliseconds that a source may fail without one read that succeeds before its disk fails.
pub const SOURCE_PATIENCE_MS_MAX: u64 = 60_000;
/// Milliseconds without a byte, though some are awaited, after which a connection counts as lost.
pub const SOURCE_STALL_MS_MAX: u64 = 30_000;
/// Milliseconds between two attempts to reach a source, at the most and at the least.
pub const SOURCE_BACKOFF_MS: (u64, u64) = (100, 5_000);
/// Times that a block is asked for when the source answers with an error.
pub const SOURCE_READ_TRIES_MAX: u32 = 4;
/// Bytes of an NBD name (export, context), the protocol's own bound.
pub const NBD_NAME_BYTES_MAX: usize = 4096;

/// Largest slice that the throttle lets out at once.
pub const PACE_SLICE_BYTES_MAX: usize = 64 << 10;

// A range takes at most 3 + 10 + 10 bytes, in practice 15.
const _: () = assert!(SESSION_DISKS_MAX * MASK_RANGES_MAX * 23 <= MANIFEST_BYTES_MAX);
const _: () = assert!(RUNS_MAX * 2 * 24 + MASK_RANGES_MAX * 23 < FRAME_HEADER_BYTES_MAX as usize);
const _: () = assert!(
    SESSION_DISKS_MAX * (4 * NAME_BYTES_MAX + 128) + VM_CONFIG_BYTES_MAX + MASK_RANGES_MAX * 23
        < JOURNAL_ENTRY_BYTES_MAX
);
const _: () = assert!(COVERAGE_RUNS_MAX >= RUNS_MAX);
const _: () = assert!(MANAGE_PAGE_BYTES_MAX + 64 < FRAME_HEADER_BYTES_MAX as usize);
const _: () = assert!(MANAGE_POINTS_MAX * 16 + 1024 < FRAME_HEADER_BYTES_MAX as usize);
const _: () = assert!(RETIRED_POINTS_MAX * 16 + 1024 < FRAME_HEADER_BYTES_MAX as usize);
const _: () = assert!(BASE_IDS_MAX * 32 < FRAME_HEADER_BYTES_MAX as usize);
const _: () = assert!(RUNS_MAX * 24 < FRAME_HEADER_BYTES_MAX as usize);
const _: () = assert!(QUERY_IDS_MAX * 64 < FRAME_HEADER_BYTES_MAX as usize);
const _: () = assert!(
    NODE_CHILDREN.pow(NODE_LEVELS_MAX as u32) * BlockSize::K256.bytes() as u64 >= DISK_BYTES_MAX
);
const _: () = assert!(
    SESSION_DISKS_MAX * (4 * NAME_BYTES_MAX + 128) + VM_CONFIG_BYTES_MAX + 4096
        < FRAME_HEADER_BYTES_MAX as usize
);
