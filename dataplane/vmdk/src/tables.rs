//! The cache of grain directories and tables: pages of metadata of all of an image's files.
//!
//! In: a file and a place in it. Out: the page that holds it. Invariant: no more bytes than the
//! options say, however large the disk is (the tables of 16 TiB are 1 GiB, or 32 GiB as seSparse).
//! Must not: hold its lock while it reads.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::VmdkError;
use crate::limits::{TABLE_CACHE_BYTES_MIN, TABLE_PAGE_BYTES};
use crate::source_file::SourceFile;

/// Number of a file within an image and of a page within the file.
type Key = (usize, u64);

/// Least recently used goes first. No crate for it: this is all of it, and safe.
#[derive(Debug, Default)]
struct Pages {
    clock: u64,
    pages: HashMap<Key, (u64, Arc<[u8]>)>,
    by_use: BTreeMap<u64, Key>,
}

/// Pages of metadata.
#[derive(Debug)]
pub(crate) struct TableCache {
    pages_max: usize,
    pages: Mutex<Pages>,
}

impl TableCache {
    /// A cache of about `bytes`.
    pub(crate) fn new(bytes: usize) -> TableCache {
        let pages_max = bytes.max(TABLE_CACHE_BYTES_MIN) / TABLE_PAGE_BYTES;
        TableCache { pages_max, pages: Mutex::default() }
    }

    /// The bytes of file `number` from `offset` to the end of their page; at least `wanted`.
    pub(crate) fn with<T>(
        &self,
        number: usize,
        file: &SourceFile,
        offset: u64,
        wanted: usize,
        what: &'static str,
        look: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, VmdkError> {
        let page_bytes = TABLE_PAGE_BYTES as u64;
        let page = self.page((number, offset / page_bytes), file)?;
        match page.get((offset % page_bytes) as usize..) {
            Some(bytes) if bytes.len() >= wanted => Ok(look(bytes)),
            _ => Err(VmdkError::Truncated {
                path: file.path().to_owned(),
                offset,
                size_bytes: file.size_bytes(),
                what,
            }),
        }
    }

    fn page(&self, key: Key, file: &SourceFile) -> Result<Arc<[u8]>, VmdkError> {
        if let Some(page) = self.lock().take(key) {
            return Ok(page);
        }
        let mut bytes = vec![0; TABLE_PAGE_BYTES];
        let count = file.read_up_to(key.1.saturating_mul(TABLE_PAGE_BYTES as u64), &mut bytes)?;
        bytes.truncate(count);
        let page: Arc<[u8]> = bytes.into();
        self.lock().insert(key, Arc::clone(&page), self.pages_max);
        Ok(page)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pages> {
        // What a panicking thread leaves is at worst a page that is not cached.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn take(&mut self, key: Key) -> Option<Arc<[u8]>> {
        self.clock += 1;
        let (used, page) = self.pages.get_mut(&key)?;
        self.by_use.remove(used);
        *used = self.clock;
        self.by_use.insert(self.clock, key);
        Some(Arc::clone(page))
    }

    fn insert(&mut self, key: Key, page: Arc<[u8]>, pages_max: usize) {
        self.clock += 1;
        if let Some((used, _)) = self.pages.insert(key, (self.clock, page)) {
            self.by_use.remove(&used);
        }
        self.by_use.insert(self.clock, key);
        while self.pages.len() > pages_max {
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            self.pages.remove(&oldest);
        }
    }
}
