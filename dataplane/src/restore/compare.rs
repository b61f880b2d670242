//! Compares a restored disk with its source, byte for byte, without reading what is a hole on both.
//!
//! In: two files or block devices. Out: the number of bytes compared, or the first difference.
//! Invariant: every byte of the source's length is either compared or a hole on both sides. Must
//! not: write, or trust lengths alone.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use gantry_common::failure::{Failure, FailureKind};
use gantry_uring::buffer::{BufferPool, PooledBuf};
use gantry_uring::direct::open_read_only;
use rustix::io::Errno;

use super::report::Progress;

/// Bytes compared at once.
const CHUNK_BYTES: u64 = 2 << 20;
/// Chunks that wait.
const CHUNKS_MAX: usize = 8;

struct Side {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    is_device: bool,
    /// Clears once the file system has said that it knows no holes.
    knows_holes: bool,
}

/// A stretch to be compared.
struct Chunk {
    start: u64,
    len: usize,
}

/// Compares `restored` with `source`; a restored device may be larger. Returns the bytes compared
/// (holes of both sides are not among them). `progress` counts all bytes.
///
/// # Errors
/// `Source`: they differ (the text names the first byte), or one cannot be read.
pub fn verify_against(restored: &Path, source: &Path, progress: &Progress) -> Result<u64, Failure> {
    let (restored, source) = (Side::open(restored)?, Side::open(source)?);
    let sizes_fit = restored.size_bytes == source.size_bytes
        || (restored.is_device && restored.size_bytes > source.size_bytes);
    if !sizes_fit {
        return Err(fail(
            &restored.path,
            format!(
                "has {} bytes, {} has {}",
                restored.size_bytes,
                source.path.display(),
                source.size_bytes
            ),
        ));
    }
    Progress::add(&progress.todo_bytes, source.size_bytes);
    let size_bytes = source.size_bytes;
    let (compared, first) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let (chunks, todo) = crossbeam_channel::bounded::<Chunk>(CHUNKS_MAX);
    let cores = gantry_uring::thread::available_cores().len().clamp(1, 8);
    let work = || -> Result<(), Failure> {
        let mut buffers = Buffers::new().map_err(|error| fail(&source.path, error))?;
        for chunk in &todo {
            if let Some(at) = buffers.difference(&restored, &source, &chunk)? {
                first.fetch_min(chunk.start + at as u64, Ordering::Relaxed);
            }
            compared.fetch_add(chunk.len as u64, Ordering::Relaxed);
            Progress::add(&progress.done_bytes, chunk.len as u64);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let planned = plan([&restored, &source], size_bytes, &first, progress, &chunks);
        drop(chunks);
        for worker in workers {
            worker.join().map_err(|_| {
                Failure::new(FailureKind::Internal, "a thread that compares has panicked")
            })??;
        }
        planned
    })?;
    match first.into_inner() {
        u64::MAX => Ok(compared.into_inner()),
        at => Err(fail(
            &restored.path,
            format!("differs from {} at byte {at} (of {size_bytes})", source.path.display()),
        )),
    }
}

fn fail(path: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Source, format!("{}: {what}", path.display()))
}

/// Hands out every stretch that is not a hole on both sides, in order.
fn plan(
    [a, b]: [&Side; 2],
    size_bytes: u64,
    first: &AtomicU64,
    progress: &Progress,
    chunks: &crossbeam_channel::Sender<Chunk>,
) -> Result<(), Failure> {
    let mut at = 0;
    let mut data = [0, 0];
    while at < size_bytes && at < first.load(Ordering::Relaxed) {
        for (next, side) in data.iter_mut().zip([a, b]) {
            if *next <= at {
                *next = side.next_data(at).map_err(|error| fail(&side.path, error))?;
            }
        }
        let start = data[0].min(data[1]).max(at).min(size_bytes);
        // Whole chunks, so that direct reads stay aligned.
        let start = (start - start % CHUNK_BYTES).max(at);
        Progress::add(&progress.done_bytes, start - at);
        let len = CHUNK_BYTES.min(size_bytes - start);
        at = start + len;
        if len > 0 && chunks.send(Chunk { start, len: len as usize }).is_err() {
            // Every worker has failed, and says why.
            return Ok(());
        }
    }
    Ok(())
}

impl Side {
    fn open(path: &Path) -> Result<Side, Failure> {
        let (mut file, _) = open_read_only(path, true).map_err(|error| fail(path, error))?;
        let kind = file.metadata().map_err(|error| fail(path, error))?.file_type();
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(|error| fail(path, error))?;
        let is_device = !kind.is_file();
        Ok(Side { path: path.to_owned(), file, size_bytes, is_device, knows_holes: kind.is_file() })
    }

    /// Where data begin at or after `at`; the end if there are none.
    fn next_data(&self, at: u64) -> io::Result<u64> {
        if !self.knows_holes {
            return Ok(at);
        }
        match rustix::fs::seek(self.file.as_fd(), rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => Ok(data),
            Err(Errno::NXIO) => Ok(self.size_bytes),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(at),
            Err(error) => Err(error.into()),
        }
    }
}

struct Buffers([PooledBuf; 2]);

impl Buffers {
    fn new() -> io::Result<Buffers> {
        let pool = BufferPool::new(2, CHUNK_BYTES as usize)?;
        let none = || io::Error::other("a new pool has no free buffer");
        Ok(Buffers([pool.try_take().ok_or_else(none)?, pool.try_take().ok_or_else(none)?]))
    }

    /// Position in the chunk of the first byte that differs.
    fn difference(&mut self, a: &Side, b: &Side, chunk: &Chunk) -> Result<Option<usize>, Failure> {
        for (side, buf) in [a, b].into_iter().zip(&mut self.0) {
            fill(side, &mut buf[..], chunk).map_err(|error| {
                fail(&side.path, format!("cannot be read at byte {}: {error}", chunk.start))
            })?;
        }
        let [a, b] = &self.0;
        let (a, b) = (&a[..chunk.len], &b[..chunk.len]);
        if a == b {
            return Ok(None);
        }
        Ok(a.iter().zip(b).position(|(a, b)| a != b))
    }
}

/// Reads a chunk. At a file's odd end a direct read must ask for more than there is, but not for
/// what no file can have.
fn fill(side: &Side, buf: &mut [u8], chunk: &Chunk) -> io::Result<()> {
    let buf = &mut buf[..chunk.len.next_multiple_of(4096)];
    let mut filled = 0;
    while filled < chunk.len {
        let aligned = filled - filled % 4096;
        match rustix::io::pread(&side.file, &mut buf[aligned..], chunk.start + aligned as u64) {
            Ok(bytes) if aligned + bytes <= filled => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(bytes) => filled = aligned + bytes,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::verify_against;
    use crate::restore::report::Progress;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn the_first_difference_is_named_and_holes_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        let size = (1u64 << 40) + 12_345;
        let files = [&left, &right].map(|path| File::create(path).unwrap());
        for file in &files {
            file.set_len(size).unwrap();
            file.write_all_at(&[5; 100_000], 7 << 30).unwrap();
            file.write_all_at(&[6; 45], size - 45).unwrap();
        }
        let progress = Progress::default();
        let compared = verify_against(&left, &right, &progress).unwrap();
        assert!(compared < 16 << 20, "{compared}");
        assert_eq!(Progress::get(&progress.done_bytes), size);
        // Zeros written on one side only are no difference.
        files[0].write_all_at(&[0; 100_000], 3 << 30).unwrap();
        verify_against(&left, &right, &progress).unwrap();
        files[1].write_all_at(&[1], size - 1).unwrap();
        files[1].write_all_at(&[1], (9 << 30) + 77).unwrap();
        let text = verify_against(&left, &right, &progress).unwrap_err().to_string();
        assert!(text.contains(&format!("at byte {} ", (9u64 << 30) + 77)), "{text}");
        files[1].set_len(size + 1).unwrap();
        assert!(verify_against(&left, &right, &progress).is_err());
    }
}
