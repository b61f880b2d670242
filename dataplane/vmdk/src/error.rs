//! What can go wrong with an image: each error names the file, the place, and what to do.
//!
//! In: findings of the readers. Out: [`VmdkError`]. Errors of a sequential stream, which has no
//! file, are [`crate::stream::StreamError`].

use std::io;
use std::path::PathBuf;

/// Why an image cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum VmdkError {
    /// The system refused to open a file.
    #[error("cannot open {path}: {source}{hint}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
        /// What may help; empty, or beginning with a separator.
        hint: &'static str,
    },
    /// The system refused to read.
    #[error("cannot read {path} at byte {offset}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// The file ends before what its structures announce.
    #[error(
        "{path} ends at byte {size_bytes}, but {what} is expected at byte {offset}; the file was cut or is still being copied"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where the missing part begins, in bytes.
        offset: u64,
        /// The file's size in bytes.
        size_bytes: u64,
        /// What is missing.
        what: &'static str,
    },
    /// The file is no VMDK, or only a part of one.
    #[error("{path} cannot be opened as a disk: {why}")]
    NotADisk {
        /// The file.
        path: PathBuf,
        /// What it is instead, and what to open.
        why: String,
    },
    /// A line of the descriptor makes no sense.
    #[error("{path}, line {line} of the descriptor: {why}")]
    Descriptor {
        /// The file that holds the descriptor.
        path: PathBuf,
        /// The line, counted from 1; 0 for the descriptor as a whole.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A binary structure makes no sense.
    #[error("{path} is damaged at byte {offset}: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// It is what it says, and Gantry does not read it.
    #[error("{path} cannot be read directly: {what}; use another transport mode for this disk")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported.
        what: String,
    },
    /// A name points out of the datastore's folder.
    #[error(
        "{from} names {named:?}, which is outside of the datastore folder {root}; map its volume in the options, or open the image with a wider root"
    )]
    OutsideDatastore {
        /// The file that holds the name.
        from: PathBuf,
        /// The name.
        named: String,
        /// The folder that must not be left.
        root: PathBuf,
    },
    /// A delta does not belong to the parent that it names.
    #[error(
        "{child} was made on a parent with content id {expected:08x}, but {parent} has {found:08x}: the parent was changed or is another disk, and reading on would give wrong data"
    )]
    ParentMismatch {
        /// The delta's descriptor.
        child: PathBuf,
        /// The parent's descriptor.
        parent: PathBuf,
        /// The `parentCID` of the child.
        expected: u32,
        /// The `CID` of the parent.
        found: u32,
    },
    /// A chain that does not end.
    #[error("the chain of {path} has more than {max} links or comes back to itself")]
    ChainTooLong {
        /// The image that was opened.
        path: PathBuf,
        /// The bound.
        max: usize,
    },
    /// The caller asked for bytes that the disk does not have.
    #[error("{path} has {size_bytes} bytes; {length} bytes from {offset} are not all within")]
    OutOfRange {
        /// The image.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// The disk's size in bytes.
        size_bytes: u64,
    },
}
