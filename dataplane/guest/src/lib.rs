//! What a guest's disk holds that need not be read: swap, page files, deleted blocks, files that the
//! administrator excludes.
//!
//! In: random reads of one frozen disk ([`Disk`]). Out: ranges of it with a [`Reason`], and for every
//! volume where a filter is off the [`Refused`] that says why. Invariants: nothing is named that a
//! guest may still need after it has replayed its journal; every byte read is hostile; memory, reads
//! and time are bounded by [`limits`]. Must not: write, fail a backup (a refusal means that everything
//! is copied), know how the disk is reached.

mod bytes;
pub mod disk;
pub mod cache;
pub mod partitions;
pub mod lvm;
pub mod signatures;
pub mod swap;
pub mod ext4;
pub mod xfs;
pub mod volumes;
pub mod masks;
pub mod filter_map;
pub mod limits;
pub mod volume;

pub use cache::Cache;
pub use disk::{Disk, View};
pub use filter_map::{FilterMap, FilterOptions, Inspection, Refusal, filter_disk, inspect_disk};
pub use masks::Masks;
pub use signatures::VolumeKind;
pub use volume::{
    Consistency, Extent, FileMasks, FileRange, GuestFs, Reason, Refused, SnapshotKind,
};
pub use volumes::{Volume, Volumes, find_volumes, open_file_system};
