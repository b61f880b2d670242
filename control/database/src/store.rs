//! The database itself: one SQLite file in a folder, with the key of its secrets beside it.
//!
//! In: a folder (mode 0700; files 0600). Out: [`Database`], whose calls are durable when they return.
//! One connection writes, a few read. Invariant: one process at a time holds the folder's lock.
//! The SQL is portable; what only SQLite knows stands in `open.rs`.

mod open;
mod migrate;
mod key_file;
mod sealed;
mod rows;
mod entity;
mod configuration;
mod access;
mod clocks;
mod sessions;
mod vm_runs;
mod events;
mod export;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqlitePool;

use key_file::Keys;

pub use entity::Entity;
pub use export::{Export, Imported};
pub use sessions::SessionFilter;
pub use vm_runs::{Ending, Transition};

/// Rows of a page, at the most.
const PAGE_ROWS_MAX: u32 = 1000;

/// A record as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Stored<T> {
    /// Counts its changes; an update names the version that it was made from.
    pub version: u64,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// When it was last changed.
    pub changed_ms: u64,
    /// The record.
    pub value: T,
}

/// A part of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Begins after this name (or, in lists by time, after this id).
    pub after: Option<String>,
    /// Entries at the most; 1 to 1000.
    pub limit: u32,
}

impl Page {
    /// The first entries.
    pub fn first(limit: u32) -> Page {
        Page { after: None, limit }
    }

    fn rows(&self) -> i64 {
        self.limit.clamp(1, PAGE_ROWS_MAX).into()
    }
}

/// The configuration database. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    writer: SqlitePool,
    readers: SqlitePool,
    keys: RwLock<Keys>,
    /// Counts changes of what a copy holds for good.
    changes: AtomicU64,
    // Held until the last clone goes.
    _lock: File,
}

impl Database {
    /// A number that grows with every change of configuration, access and secrets in this process:
    /// what a copy ([`Database::export`]) was made of has not changed while it stays.
    pub fn changes(&self) -> u64 {
        self.inner.changes.load(Ordering::Acquire)
    }

    /// Something of that was changed, durably.
    fn changed(&self) {
        self.inner.changes.fetch_add(1, Ordering::AcqRel);
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({})", self.inner.folder.display())
    }
}

#[cfg(test)]
mod tests;
