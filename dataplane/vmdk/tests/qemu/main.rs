//! Against qemu-img and qemu-io: what they write we read, what we write they read, byte for byte.
//!
//! A test that finds no qemu-img fails: `cargo xtask test` installs it.

mod tool;
mod subformats;
mod streams;
