//! Snapshots: what can be snapshotted; making one; finding its frozen disks; removing it, whatever
//! it takes.
//!
//! In: facts of the broker, a session's [`Mark`]. Out: a [`Snapshot`] with its frozen disks, gone
//! again afterwards. Every step that makes something has its named undo: [`create`](create::create)
//! is undone by [`remove`](remove::remove) with the same name, and whoever crashed in between finds
//! the snapshot by that name. Invariants: memory is never part of a snapshot; a snapshot that is not
//! Gantry's is never removed; hot-added disks are detached before any removal.

pub mod eligible;
pub mod mark;
pub mod create;
pub mod remove;
pub mod limit;

pub use create::{FrozenDisk, NewRequest, Snapshot, SnapshotError, create, find, frozen_disks};
pub use limit::{SnapshotLimit, SnapshotSlot};
pub use mark::Mark;
pub use remove::{Detach, Removal, Removed, Whose, remove};
