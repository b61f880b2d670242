//! Restore, server side: the thread that reads packs. tokio-uring runs here and nowhere else.
//!
//! In: [`ReadOrder`]s from any thread, each with its own buffer. Out: the buffer, filled as far as
//! it went, to the order's callback, on this thread. Invariant: as many reads are in flight as there
//! are buffers; a buffer is the kernel's from submission to completion. Must not: host a network
//! (docs/decisions/0003-restore-reads.md).

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use gantry_common::failure::{Failure, FailureKind};
use gantry_uring::buffer::{BufferPool, PooledBuf};
use gantry_uring::direct::open_read_only;
use gantry_uring::ring::{Ring, RingConfig};
use tokio::sync::mpsc;
use tokio_uring::buf::BoundedBuf;

/// Alignment of records, and of what is read into.
const ALIGN: usize = 4096;
/// Packs kept open.
const FILES_MAX: usize = 32;
/// After so long without a read they are closed: a collection gets space back only of packs that
/// nobody has open.
const IDLE: Duration = Duration::from_secs(5);

/// What is called with the buffer and how far it was filled.
type Callback = Box<dyn FnOnce(ReadBuf, io::Result<usize>) + Send>;

/// One read.
pub(super) struct ReadOrder {
    /// File.
    pub(super) path: Arc<str>,
    /// First byte, aligned.
    pub(super) offset: u64,
    /// Bytes, aligned, within the buffer.
    pub(super) len: usize,
    /// Where to.
    pub(super) buf: ReadBuf,
    /// Called when it is over, on the reading thread: must not block.
    pub(super) callback: Callback,
}

/// The reading thread; clones share it. It ends with the last clone.
#[derive(Debug, Clone)]
pub struct PackFiles {
    orders: mpsc::UnboundedSender<ReadOrder>,
}

impl PackFiles {
    /// Starts the thread. Without io_uring it reads one after the other.
    ///
    /// # Errors
    /// `Internal`: no thread.
    pub fn start() -> Result<PackFiles, Failure> {
        let (orders, inbox) = mpsc::unbounded_channel();
        let run = move || match Ring::new(&RingConfig::new(1)) {
            Ok(ring) => {
                drop(ring);
                tokio_uring::start(read_all(inbox));
            }
            Err(error) => {
                tracing::warn!("restores read packs without io_uring, slower: {error}");
                read_blocking(inbox);
            }
        };
        std::thread::Builder::new().name("pack-files".to_owned()).spawn(run).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("cannot start a thread: {error}"))
        })?;
        Ok(PackFiles { orders })
    }

    /// Hands a read over. Orders are bounded by their buffers.
    pub(super) fn read(&self, order: ReadOrder) {
        if let Err(mpsc::error::SendError(order)) = self.orders.send(order) {
            let gone = io::Error::other("the thread that reads packs has ended");
            (order.callback)(order.buf, Err(gone));
        }
    }
}

/// Open files, the last used at the end.
struct OpenFiles<F> {
    files: VecDeque<(Arc<str>, F)>,
}

impl<F: Clone> OpenFiles<F> {
    fn new() -> OpenFiles<F> {
        OpenFiles { files: VecDeque::with_capacity(FILES_MAX) }
    }

    fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Closes all of them.
    fn clear(&mut self) {
        self.files.clear();
    }

    fn get(&mut self, path: &Arc<str>, wrap: impl FnOnce(std::fs::File) -> F) -> io::Result<F> {
        let known = self.files.iter().position(|(open, _)| open == path);
        let entry = match known.and_then(|at| self.files.remove(at)) {
            Some(entry) => entry,
            None => {
                let (file, _) = open_read_only(Path::new(&**path), true)?;
                (Arc::clone(path), wrap(file))
            }
        };
        let file = entry.1.clone();
        if self.files.len() >= FILES_MAX {
            self.files.pop_front();
        }
        self.files.push_back(entry);
        Ok(file)
    }
}

async fn read_all(mut inbox: mpsc::UnboundedReceiver<ReadOrder>) {
    let mut files = OpenFiles::new();
    let mut tasks: VecDeque<tokio::task::JoinHandle<()>> = VecDeque::new();
    loop {
        let next = match files.is_empty() {
            true => inbox.recv().await,
            false => match tokio::time::timeout(IDLE, inbox.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    files.clear();
                    continue;
                }
            },
        };
        let Some(order) = next else { break };
        let ReadOrder { path, offset, len, buf, callback } = order;
        match files.get(&path, |file| Rc::new(tokio_uring::fs::File::from_std(file))) {
            Err(error) => callback(buf, Err(error)),
            Ok(file) => tasks.push_back(tokio_uring::spawn(async move {
                let (buf, result) = read_one(&file, offset, len, buf).await;
                callback(buf, result);
            })),
        }
        while tasks.front().is_some_and(tokio::task::JoinHandle::is_finished) {
            tasks.pop_front();
        }
    }
    // The runtime must not end under a read.
    for task in tasks {
        let _ = task.await;
    }
}

/// Reads until `len` bytes are there or the file ends.
async fn read_one(
    file: &tokio_uring::fs::File,
    offset: u64,
    len: usize,
    mut buf: ReadBuf,
) -> (ReadBuf, io::Result<usize>) {
    let mut filled = 0;
    while filled < len {
        // A read that stopped at an odd place goes on from the last aligned one.
        let from = filled - filled % ALIGN;
        let Some(bytes) = buf.buf.take() else { break };
        let (result, slice) = file.read_at(bytes.slice(from..len), offset + from as u64).await;
        buf.buf = Some(slice.into_inner());
        match result {
            Ok(read) if from + read <= filled => return (buf, Ok(filled)),
            Ok(read) => filled = from + read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (buf, Err(error)),
        }
    }
    (buf, Ok(filled))
}

fn read_blocking(mut inbox: mpsc::UnboundedReceiver<ReadOrder>) {
    let mut files = OpenFiles::new();
    while let Some(order) = inbox.blocking_recv() {
        let ReadOrder { path, offset, len, mut buf, callback } = order;
        let read = files.get(&path, Rc::new).and_then(|file| {
            let space = buf.buf.as_deref_mut().and_then(|bytes| bytes.get_mut(..len));
            file.read_exact_at(space.unwrap_or_default(), offset).map(|()| len)
        });
        callback(buf, read);
    }
}

/// The read buffers of one restore; memory that is not used yet costs nothing.
#[derive(Debug)]
pub(super) struct ReadPool {
    home: Sender<PooledBuf>,
    free: Receiver<PooledBuf>,
}

impl ReadPool {
    /// `buffers` buffers of `bytes` bytes.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(buffers: usize, bytes: usize) -> io::Result<ReadPool> {
        let pool = BufferPool::new(buffers, bytes)?;
        let (home, free) = crossbeam_channel::bounded(buffers);
        while let Some(buf) = pool.try_take() {
            // There is room for every buffer.
            let _ = home.try_send(buf);
        }
        Ok(ReadPool { home, free })
    }

    /// A buffer, as soon as one is free.
    pub(super) fn take(&self) -> Option<ReadBuf> {
        let buf = self.free.recv().ok()?;
        Some(ReadBuf { buf: Some(buf), home: self.home.clone() })
    }
}

/// A buffer of a [`ReadPool`]; its drop returns it.
#[derive(Debug)]
pub(super) struct ReadBuf {
    /// Nothing while the kernel has it.
    buf: Option<PooledBuf>,
    home: Sender<PooledBuf>,
}

impl AsRef<[u8]> for ReadBuf {
    fn as_ref(&self) -> &[u8] {
        self.buf.as_deref().unwrap_or_default()
    }
}

impl Drop for ReadBuf {
    fn drop(&mut self) {
        if let Some(buf) = self.buf.take() {
            // There is room for every buffer; a pool that is gone needs none back.
            let _ = self.home.try_send(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PackFiles, ReadOrder, ReadPool, read_blocking};
    use std::sync::Arc;
    use tokio::sync::mpsc;

    #[test]
    fn reads_end_at_the_files_end_and_errors_come_back_with_their_buffer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pack");
        let content: Vec<u8> = (0..40_000u32).map(|at| (at / 7) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let pool = ReadPool::new(2, 64 << 10).unwrap();
        let files = PackFiles::start().unwrap();
        for blocking in [false, true] {
            for (name, offset, len) in
                [("pack", 0, 8192), ("pack", 32_768, 16_384), ("pack", 1 << 30, 4096), ("no", 0, 1)]
            {
                let (sender, receiver) = crossbeam_channel::bounded(1);
                let order = ReadOrder {
                    path: Arc::from(dir.path().join(name).to_str().unwrap()),
                    offset,
                    len,
                    buf: pool.take().unwrap(),
                    callback: Box::new(move |buf, result| sender.send((buf, result)).unwrap()),
                };
                if blocking {
                    let (orders, inbox) = mpsc::unbounded_channel();
                    assert!(orders.send(order).is_ok());
                    drop(orders);
                    read_blocking(inbox);
                } else {
                    files.read(order);
                }
                let (buf, result) = receiver.recv().unwrap();
                let there = content.len().saturating_sub(offset as usize).min(len);
                match result {
                    Err(_) => assert!(name == "no" || (blocking && there < len)),
                    Ok(filled) => {
                        let start = (offset as usize).min(content.len());
                        assert_eq!((filled, name), (there, "pack"));
                        assert!(buf.as_ref()[..filled] == content[start..start + there]);
                    }
                }
            }
        }
    }
}
