//! Gantry's reader of VMDK images, and reader and writer of streamOptimized VMDKs.
//!
//! In: a datastore's folder, as it is mounted on this machine, and a descriptor in it. Out: an
//! [`Image`]: the disk's bytes at any place, where data is, and which files it consists of.
//! [`stream`] does the same for an export that arrives front to back, and writes such exports.
//!
//! Read in this order: [`descriptor`] (text) → [`link`] (its extents, opened) → [`chain`] (its
//! parents) → [`image`] (all of them as one disk), with [`sparse`] for how a grain is found.
//!
//! Invariants: every file is opened for reading only, and within the folder; every byte of a file
//! is foreign, and bounded by [`limits`]; memory is bounded by the options, never by the disk;
//! what is not understood is an error, never zeros. Must not: know anything else of Gantry.

mod bytes;
pub mod limits;
mod error;
mod datastore;
mod source_file;
mod descriptor;
mod tables;
mod grain;
mod sparse;
mod link;
mod chain;
mod image;
pub mod stream;

pub use error::VmdkError;
pub use image::{FlatExtent, Image, OpenOptions};
pub use source_file::FileState;
