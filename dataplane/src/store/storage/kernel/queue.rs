//! The pack writes of a store on a real file system: io_uring, or blocking where there is none.
//!
//! In: pooled buffers, files. Out: completions. Invariant: a buffer is returned to its pool only
//! when the kernel has its bytes; what the ring has no place for waits here, in order.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use gantry_uring::buffer::{BufferPool, PooledBuf};
use gantry_uring::files::FileSlot;
use gantry_uring::ring::{PushRefusal, Ring, RingConfig};

use super::super::{Completion, Wake, WriteQueue};
use super::KernelFile;

const ENTRIES: u32 = 128;
const FILE_SLOTS: u32 = 64;

#[derive(Debug)]
enum Work {
    Write { offset: u64, buffer: PooledBuf, done: usize, len: usize },
    Sync,
}

#[derive(Debug)]
struct Operation {
    tag: u64,
    file: KernelFile,
    slot: u32,
    offset: u64,
    done: usize,
    len: usize,
    is_write: bool,
}

#[derive(Debug)]
struct Slot {
    file: KernelFile,
    in_flight: u32,
}

/// See the module's text. Must stay on the thread that made it.
pub struct KernelQueue {
    ring: Option<Ring>,
    slots: Vec<Option<Slot>>,
    operations: HashMap<u64, Operation>,
    next_user: u64,
    backlog: VecDeque<(u64, KernelFile, Work)>,
    /// Blocking mode: what is done and not collected.
    done: VecDeque<Completion>,
    woken: Arc<(Mutex<bool>, Condvar)>,
}

impl std::fmt::Debug for KernelQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KernelQueue({} in flight)", self.in_flight())
    }
}

impl KernelQueue {
    /// A queue whose buffers come from these pools (others work too, a little slower).
    pub(super) fn new(pools: &[BufferPool]) -> KernelQueue {
        let ring = match ring(pools) {
            Ok(ring) => Some(ring),
            Err(error) => {
                tracing::warn!("no io_uring for pack writes, they block: {error}");
                None
            }
        };
        KernelQueue {
            ring,
            slots: (0..FILE_SLOTS).map(|_| None).collect(),
            operations: HashMap::new(),
            next_user: 0,
            backlog: VecDeque::new(),
            done: VecDeque::new(),
            woken: Arc::default(),
        }
    }

    fn submit(&mut self, tag: u64, file: &KernelFile, work: Work) {
        if self.ring.is_some() {
            self.backlog.push_back((tag, file.clone(), work));
            self.pump();
            return;
        }
        let result = match work {
            Work::Write { offset, buffer, len, .. } => {
                super::StorageFile::write_at(file, offset, &buffer[..len])
            }
            Work::Sync => super::StorageFile::sync_data(file),
        };
        self.done.push_back(Completion { tag, result });
    }

    /// The slot that holds the file, or one that can take it.
    fn slot_of(&mut self, file: &KernelFile) -> io::Result<Option<u32>> {
        let same = |slot: &Option<Slot>| {
            slot.as_ref().is_some_and(|slot| Arc::ptr_eq(slot.file.file(), file.file()))
        };
        if let Some(at) = self.slots.iter().position(same) {
            return Ok(Some(at as u32));
        }
        let idle = |slot: &Option<Slot>| slot.as_ref().is_none_or(|slot| slot.in_flight == 0);
        let free = self.slots.iter().position(Option::is_none);
        let Some(at) = free.or_else(|| self.slots.iter().position(idle)) else { return Ok(None) };
        if let Some(ring) = &mut self.ring {
            drop(ring.set_file(FileSlot(at as u32), file.file().try_clone()?)?);
        }
        self.slots[at] = Some(Slot { file: file.clone(), in_flight: 0 });
        Ok(Some(at as u32))
    }

    /// Pushes what the ring has places for.
    fn pump(&mut self) {
        while let Some((tag, file, work)) = self.backlog.pop_front() {
            let slot = match self.slot_of(&file) {
                Ok(Some(slot)) => slot,
                Ok(None) => return self.backlog.push_front((tag, file, work)),
                Err(error) => {
                    self.done.push_back(Completion { tag, result: Err(error) });
                    continue;
                }
            };
            if let Err(back) = self.push(tag, &file, slot, work) {
                return self.backlog.push_front((tag, file, back));
            }
        }
        if let Some(ring) = &mut self.ring
            && let Err(error) = ring.submit()
        {
            tracing::debug!("io_uring submit: {error}");
        }
    }

    fn push(&mut self, tag: u64, file: &KernelFile, slot: u32, work: Work) -> Result<(), Work> {
        let Some(ring) = &mut self.ring else { return Err(work) };
        self.next_user += 1;
        let user = self.next_user;
        let target = FileSlot(slot);
        let (pushed, offset, done, len, is_write) = match work {
            Work::Write { offset, buffer, done, len } => {
                let at = offset + done as u64;
                let pushed = ring.write_range(target, at, done..len, buffer, user);
                (pushed, offset, done, len, true)
            }
            Work::Sync => (ring.fdatasync(target, user), 0, 0, 0, false),
        };
        match pushed {
            Ok(()) => {
                if let Some(slot) = &mut self.slots[slot as usize] {
                    slot.in_flight += 1;
                }
                let file = file.clone();
                let operation = Operation { tag, file, slot, offset, done, len, is_write };
                self.operations.insert(user, operation);
                Ok(())
            }
            Err(error) if error.refusal == PushRefusal::QueueFull => Err(match error.buf {
                Some(buffer) => Work::Write { offset, buffer, done, len },
                None => Work::Sync,
            }),
            Err(error) => {
                let result = Err(io::Error::other(error.to_string()));
                self.done.push_back(Completion { tag, result });
                Ok(())
            }
        }
    }

    fn reap(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let finished: Vec<_> = ring.completions().collect();
        for completion in finished {
            let Some(operation) = self.operations.remove(&completion.user) else { continue };
            if let Some(slot) = &mut self.slots[operation.slot as usize] {
                slot.in_flight -= 1;
            }
            let Operation { tag, file, offset, done, len, is_write, .. } = operation;
            match (completion.result, completion.buf) {
                (Ok(0), Some(_)) if is_write => {
                    let result = Err(io::ErrorKind::WriteZero.into());
                    self.done.push_back(Completion { tag, result });
                }
                (Ok(bytes), Some(buffer)) if is_write && done + (bytes as usize) < len => {
                    let done = done + bytes as usize;
                    let rest = Work::Write { offset, buffer, done, len };
                    self.backlog.push_front((tag, file, rest));
                }
                (result, _) => {
                    self.done.push_back(Completion { tag, result: result.map(drop) });
                }
            }
        }
        if !self.backlog.is_empty() {
            self.pump();
        }
    }

    fn wait_ring(&mut self, min: usize, timeout: Option<Duration>) {
        if let Some(ring) = &mut self.ring
            && let Err(error) = ring.wait(min, timeout)
        {
            tracing::warn!("io_uring wait: {error}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn ring(pools: &[BufferPool]) -> Result<Ring, Box<dyn std::error::Error>> {
    let mut ring = Ring::new(&RingConfig::new(ENTRIES))?;
    for pool in pools {
        let _ = ring.register_pool(pool);
    }
    let _ = ring.register_files(FILE_SLOTS)?;
    Ok(ring)
}

impl WriteQueue<KernelFile> for KernelQueue {
    fn submit_write(
        &mut self,
        file: &KernelFile,
        offset: u64,
        buffer: PooledBuf,
        len: usize,
        tag: u64,
    ) {
        self.submit(tag, file, Work::Write { offset, buffer, done: 0, len });
    }

    fn submit_sync(&mut self, file: &KernelFile, tag: u64) {
        self.submit(tag, file, Work::Sync);
    }

    fn complete(&mut self, wait: bool, out: &mut Vec<Completion>) {
        self.reap();
        while wait && self.done.is_empty() && !self.operations.is_empty() {
            self.wait_ring(1, None);
            self.reap();
        }
        out.extend(self.done.drain(..));
    }

    fn in_flight(&self) -> usize {
        self.operations.len() + self.backlog.len() + self.done.len()
    }

    fn waker(&mut self) -> io::Result<Wake> {
        if let Some(ring) = &mut self.ring {
            let waker = ring.waker()?;
            return Ok(Arc::new(move || waker.wake()));
        }
        let woken = Arc::clone(&self.woken);
        Ok(Arc::new(move || {
            *woken.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            woken.1.notify_one();
        }))
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        if !self.done.is_empty() {
            return;
        }
        if self.ring.is_some() {
            return self.wait_ring(1, timeout);
        }
        let mut woken = self.woken.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !*woken {
            let timeout = timeout.unwrap_or(Duration::from_secs(60));
            woken = match self.woken.1.wait_timeout(woken, timeout) {
                Ok((woken, _)) => woken,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        *woken = false;
    }
}
