//! A disk in memory, for tests: the simulated disk, with nothing going wrong but what a test asks
//! for.
//!
//! In: file operations. Out: the same as a disk. There is one simulation of a disk, in
//! [`super::faulty`]; these are the names under which unit tests use it.

pub use super::faulty::{
    Fault, FaultyFile as MemoryFile, FaultyLock as MemoryLock, FaultyQueue as MemoryQueue,
    FaultyStorage as MemoryStorage,
};
