//! Whole images: against qemu-img and qemu-io, byte for byte, and against hostile bytes.
//!
//! What they write we read, what we write they read. Deltas that no tool here writes come from
//! small generators, and qemu-img reads those too. A test that finds no qemu-img fails:
//! `cargo xtask test` installs it.

mod tool;
mod deltas;
mod subformats;
mod streams;
mod chains;
mod names;
mod limits;
mod mutations;
