//! The bytes of a file in memory: sparse pages, shared between what is and what is durable.
//!
//! In: offsets, bytes. Out: bytes; zeros where nothing was written.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;

#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub(super) len: u64,
    pages: BTreeMap<u64, Arc<Vec<u8>>>,
}

impl Content {
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> usize {
        let count = (self.len.saturating_sub(offset)).min(bytes.len() as u64) as usize;
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE as u64, at as usize % PAGE);
            let take = (PAGE - within).min(count - done);
            match self.pages.get(&page) {
                Some(page) => {
                    bytes[done..done + take].copy_from_slice(&page[within..within + take])
                }
                None => bytes[done..done + take].fill(0),
            }
            done += take;
        }
        count
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE as u64, at as usize % PAGE);
            let take = (PAGE - within).min(bytes.len() - done);
            let page = self.pages.entry(page).or_insert_with(|| Arc::new(vec![0; PAGE]));
            Arc::make_mut(page)[within..within + take].copy_from_slice(&bytes[done..done + take]);
            done += take;
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let keep = len.div_ceil(PAGE as u64);
            self.pages.split_off(&keep);
            let within = len as usize % PAGE;
            if within > 0
                && let Some(page) = self.pages.get_mut(&(len / PAGE as u64))
            {
                Arc::make_mut(page)[within..].fill(0);
            }
        }
        self.len = len;
    }

    /// Zeros whole pages; the parts of pages at both ends too.
    pub(super) fn punch(&mut self, offset: u64, bytes: u64) {
        let end = (offset + bytes).min(self.len);
        let page_bytes = PAGE as u64;
        let mut at = offset;
        while at < end {
            let (page, within) = (at / page_bytes, at as usize % PAGE);
            let take = (page_bytes - within as u64).min(end - at);
            if take == page_bytes {
                self.pages.remove(&page);
            } else if let Some(page) = self.pages.get_mut(&page) {
                Arc::make_mut(page)[within..within + take as usize].fill(0);
            }
            at += take;
        }
    }

    /// Pages of this range that nothing was written to yet.
    pub(super) fn absent_pages(&self, offset: u64, bytes: u64) -> u64 {
        let pages = offset / PAGE as u64..(offset + bytes).div_ceil(PAGE as u64);
        let there = self.pages.range(pages.clone()).count() as u64;
        pages.end - pages.start - there
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }
}
