//! The database's handle, which never takes the process with it.
//!
//! In: an open database. Out: the same, until dropped. redb writes when a database is closed, and
//! asserts then too on pages that are damaged; here that costs what a crash costs.

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::Database;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Handle(Option<Database>);

impl Handle {
    pub(super) fn new(db: Database) -> Handle {
        Handle(Some(db))
    }
}

impl Deref for Handle {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let db = self.0.take();
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::warn!("the index could not be closed: it is damaged, run repo rebuild-index");
        }
    }
}
