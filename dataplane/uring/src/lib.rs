//! A safe face over io_uring and aligned memory; the only crate of Gantry with unsafe code.
//!
//! In: files, offsets, pooled buffers. Out: completions that hand the buffers back.
//! Invariant: memory that the kernel may still touch is owned by this crate until it is done.
//! Must not: know anything of blocks, disks or the network.

pub mod buffer;
mod tokio_buffer;
pub mod thread;
pub mod direct;
pub mod probe;
pub mod files;
pub mod wake;
mod entry;
mod registered;
mod operations;
pub mod ring;
mod wait;
