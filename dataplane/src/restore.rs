//! The road back: a restore point's disk to a sparse file, a block device or stdout.
//!
//! In: which disk of which point, a connection to its repository, a destination. Out: the disk, bit
//! for bit, and a [`RestoreReport`]. Invariant: no block reaches the destination unless it was asked
//! for, has the right length and matches its id; a success means that every block is durable there.
//! Must not: depend on a stage of the road forth.
//!
//! ```text
//!  server: store -> plan (pack order) -> pack_files (few large reads) -> serve ~~~> lanes
//!  client: lanes ~~~> client -> writer (decompress, verify, write) -> coverage -> keeper (sidecar)
//!                            \-> stream (decompress, verify | in order) -> stdout
//! ```

mod client;
mod compare;
mod decode;
mod keeper;
mod lookup;
mod pack_files;
mod plan;
mod report;
mod requests;
mod resume;
mod road;
mod run;
mod serve;
mod session;
mod stream;
mod target;
mod to_device;
mod to_file;
mod workers;
mod writer;
mod zero;

pub use client::{RestoreOptions, RestoreRequest, restore};
pub use compare::verify_against;
pub use pack_files::PackFiles;
pub use report::{Progress, RestoreReport};
pub use serve::{ServeOptions, serve};
pub use target::Destination;
pub use to_device::restore_to_new_device;
pub use to_file::{NewFile, restore_to_file};

#[cfg(test)]
mod tests;
