//! Random reads of an open disk, whatever it is read by: for those who look into its file systems.
//!
//! In: offsets and lengths in bytes. Out: exactly those bytes, or an error that names the disk. One read at
//! a time, into one buffer of [`CHUNK_BYTES`]. Must not: be used to copy.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crossbeam_channel::Receiver;
use gantry_common::failure::{Failure, FailureKind};
use gantry_uring::buffer::{BufferPool, PooledBuf};
use gantry_uring::ring::{Ring, RingConfig};

use super::Disk;
use super::remote::{ReadRequest, RemoteDone, RemoteSource, ReturnPath};

/// Bytes of the buffer, and of one read.
const CHUNK_BYTES: usize = 256 << 10;

/// A disk, readable at random.
pub struct RandomReads<'a> {
    disk: &'a Disk,
    files: RefCell<HashMap<u32, File>>,
    pool: BufferPool,
    answers: Receiver<RemoteDone>,
    back: ReturnPath,
    // The waker of `back` is of this ring.
    _ring: Ring,
}

impl<'a> RandomReads<'a> {
    /// Of this disk.
    ///
    /// # Errors
    /// `Usage`: it is a stream, which is read once from front to back, or is not readable at all.
    /// `Internal`: no memory, no ring.
    pub fn new(disk: &'a Disk) -> Result<RandomReads<'a>, Failure> {
        if disk.is_stream() || disk.is_unreadable() {
            let text = format!("{}: it cannot be read at random", disk.label());
            return Err(Failure::new(FailureKind::Usage, text));
        }
        let internal = |what: &dyn std::fmt::Display| {
            Failure::new(FailureKind::Internal, format!("reading {}: {what}", disk.label()))
        };
        let pool = BufferPool::new(1, CHUNK_BYTES).map_err(|error| internal(&error))?;
        let mut ring = Ring::new(&RingConfig::new(2)).map_err(|error| internal(&error))?;
        let (done, answers) = crossbeam_channel::unbounded();
        let waker = ring.waker().map_err(|error| internal(&error))?;
        let back = ReturnPath { done, waker };
        Ok(RandomReads { disk, files: RefCell::default(), pool, answers, back, _ring: ring })
    }

    fn buffer(&self) -> io::Result<PooledBuf> {
        self.pool.try_take().ok_or_else(|| io::Error::other("its buffer is in use"))
    }

    /// Some bytes from `offset`, at most a chunk; how many.
    fn read_some(&self, offset: u64, wanted: &mut [u8]) -> io::Result<usize> {
        match self.disk.remote() {
            Some(source) => self.request(source, offset, wanted),
            None => self.read_file(offset, wanted),
        }
    }

    fn request(
        &self,
        source: &dyn RemoteSource,
        offset: u64,
        wanted: &mut [u8],
    ) -> io::Result<usize> {
        let length = wanted.len().min(CHUNK_BYTES);
        let request = ReadRequest::new(offset, length, self.buffer()?, 0, self.back.clone());
        source.submit(request);
        // Every request comes back, whatever becomes of its source.
        let RemoteDone { buf, result, .. } = self.answers.recv().map_err(io::Error::other)?;
        result.map_err(io::Error::other)?;
        wanted[..length].copy_from_slice(&buf[..length]);
        Ok(length)
    }

    fn read_file(&self, offset: u64, wanted: &mut [u8]) -> io::Result<usize> {
        let align = self.disk.offset_align() as u64;
        let start = offset - offset % align;
        let place = self.disk.place(start);
        let skipped = (offset - start) as usize;
        let most = u64::try_from(CHUNK_BYTES).unwrap_or(u64::MAX).min(place.len);
        let length = ((skipped + wanted.len()) as u64).next_multiple_of(align).min(most) as usize;
        let mut buffer = self.buffer()?;
        let mut files = self.files.borrow_mut();
        if let std::collections::hash_map::Entry::Vacant(vacant) = files.entry(place.file) {
            let opened = self.disk.descriptor(place.file).map_err(io::Error::other)?;
            let opened = opened.ok_or_else(|| io::Error::other("it has no such file"))?;
            vacant.insert(File::from(opened));
        }
        let file = &files[&place.file];
        // Past the end of a file of odd length the kernel gives less.
        let mut got = 0;
        while got < length {
            match file.read_at(&mut buffer[got..length], place.offset + got as u64) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if !(got as u64).is_multiple_of(align) {
                break;
            }
        }
        let useful = got.saturating_sub(skipped).min(wanted.len());
        if useful == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        wanted[..useful].copy_from_slice(&buffer[skipped..skipped + useful]);
        Ok(useful)
    }
}

impl gantry_guest::Disk for RandomReads<'_> {
    fn length(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the disk");
        let end = offset.checked_add(buffer.len() as u64).ok_or_else(outside)?;
        if end > self.length() {
            return Err(outside());
        }
        let mut done = 0;
        while done < buffer.len() {
            let named = |error: io::Error| {
                let at = offset + done as u64;
                io::Error::new(error.kind(), format!("{}, byte {at}: {error}", self.disk.label()))
            };
            done += self.read_some(offset + done as u64, &mut buffer[done..]).map_err(named)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use gantry_guest::Disk as _;

    use super::*;

    #[test]
    fn any_range_of_a_file_comes_as_it_is_and_none_beyond_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let mut random = fastrand::Rng::with_seed(7);
        let mut content = vec![0; (2 * CHUNK_BYTES) + 3 * 512];
        random.fill(&mut content);
        std::fs::write(&path, &content).unwrap();
        for direct in [false, true] {
            let disk = Disk::open(&path, direct).unwrap();
            let reads = RandomReads::new(&disk).unwrap();
            assert_eq!(reads.length(), content.len() as u64);
            for _ in 0..200 {
                let start = random.usize(..content.len());
                let length = random.usize(..=content.len() - start);
                let mut got = vec![0xAA; length];
                reads.read_at(start as u64, &mut got).unwrap();
                assert!(got == content[start..start + length], "{start} {length}");
            }
            let mut one = [0];
            assert!(reads.read_at(content.len() as u64, &mut one).is_err());
            assert!(reads.read_at(u64::MAX, &mut one).is_err());
        }
    }
}
