//! Snapshots: what can be snapshotted.
//!
//! In: facts of the broker. Out: obstacles, told before anything is done.

pub mod eligible;
