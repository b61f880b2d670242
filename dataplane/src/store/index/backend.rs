//! What redb stands on: a file of the repository's storage, or one that is only read.
//!
//! In: redb's page reads and writes. Out: the same on a [`StorageFile`]. Must not: change a file
//! that was opened to be read; what is written over it stays in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use redb::StorageBackend;

use crate::store::layout::ALIGN;
use crate::store::storage::StorageFile;

/// A file of the repository's storage.
#[derive(Debug)]
pub(super) struct FileBackend<F> {
    pub(super) file: F,
}

impl<F: StorageFile> StorageBackend for FileBackend<F> {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, data)
    }
}

/// A file that is only read; what is written over it stays in memory.
#[derive(Debug)]
pub(super) struct OverlayBackend<F> {
    file: Option<F>,
    over: Mutex<Overlay>,
}

#[derive(Debug, Default)]
struct Overlay {
    len: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl<F: StorageFile> OverlayBackend<F> {
    pub(super) fn new(file: Option<F>) -> OverlayBackend<F> {
        let len = file.as_ref().and_then(|file| file.len().ok()).unwrap_or(0);
        OverlayBackend { file, over: Mutex::new(Overlay { len, pages: BTreeMap::new() }) }
    }

    fn below(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let read = match &self.file {
            Some(file) => file.read_at(offset, out)?,
            None => 0,
        };
        out[read..].fill(0);
        Ok(())
    }
}

impl<F: StorageFile> StorageBackend for OverlayBackend<F> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.over.lock().unwrap_or_else(PoisonError::into_inner).len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        if offset + out.len() as u64 > over.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.below(offset, out)?;
        let first = offset / ALIGN;
        for (page, bytes) in over.pages.range(first..(offset + out.len() as u64).div_ceil(ALIGN)) {
            let start = (page * ALIGN).max(offset);
            let end = ((page + 1) * ALIGN).min(offset + out.len() as u64);
            out[(start - offset) as usize..(end - offset) as usize].copy_from_slice(
                &bytes[(start - page * ALIGN) as usize..(end - page * ALIGN) as usize],
            );
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        over.pages.split_off(&len.div_ceil(ALIGN));
        over.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (page, within) = (at / ALIGN, (at % ALIGN) as usize);
            let take = (ALIGN as usize - within).min(data.len() - done);
            let bytes = match over.pages.entry(page) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let mut bytes = vec![0; ALIGN as usize];
                    self.below(page * ALIGN, &mut bytes)?;
                    entry.insert(bytes)
                }
            };
            bytes[within..within + take].copy_from_slice(&data[done..done + take]);
            done += take;
        }
        over.len = over.len.max(offset + data.len() as u64);
        Ok(())
    }
}
