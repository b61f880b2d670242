//! Restore, server side: from asked blocks to reads. One thread a restore, since maps and the index
//! are read with blocking calls.
//!
//! In: an offer, then requests. Out: [`Found`]s. Invariant: each block of a request is answered
//! once: as zero, with its record, or with a fault that names pack, offset, disk and block. A subtree
//! of zeros costs one look. Must not: hold more than the restore's read buffers.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use gantry_common::extents::Run;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::limits::{self, NODE_CHILDREN};
use gantry_common::wire::{BlockHead, PointSummary, RestoreOffer};
use tokio::sync::mpsc::UnboundedSender;

use super::pack_files::{PackFiles, ReadBuf, ReadOrder, ReadPool};
use super::plan::{GroupRead, READ_BYTES_MAX, Wanted, ZeroRuns, group_reads};
use crate::store::error::REMEDY_VERIFY;
use crate::store::manifest::{DiskRecord, Manifest};
use crate::store::reader::StoreReader;
use crate::store::record::{RECORD_HEAD_BYTES, RecordHead, RecordKind, open_record};
use crate::store::repo::ReadPin;
use crate::store::storage::kernel::KernelStorage;

/// Blocks that are sorted into pack order together.
const PLAN_BLOCKS: u64 = 4 * NODE_CHILDREN;
/// Names or points that a refusal lists.
const LISTED_MAX: usize = 20;

/// A request of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) batch: u64,
    pub(super) run: Run,
}

/// A block whose record was read and found intact.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) block: u64,
    pub(super) head: BlockHead,
    /// The record's stored bytes, within a read buffer.
    pub(super) stored: Bytes,
}

/// An answer, or a part of one.
#[derive(Debug)]
pub(super) enum Found {
    /// The point is open; or not, and why.
    Opened(Result<PointSummary, Failure>),
    /// Runs that read as zeros.
    Zeros(Vec<Run>),
    /// Blocks, as they come from the disk.
    Blocks { batch: u64, ready: Vec<Ready>, faults: Vec<Failure> },
    /// How many blocks of a request come as `Blocks`, faults included.
    Planned { batch: u64, blocks: u64 },
}

/// What every read needs to say whose it is.
#[derive(Debug)]
struct Disk {
    store: StoreReader,
    record: DiskRecord,
    /// For messages.
    label: String,
    /// Held for as long as reads are under way.
    _pin: ReadPin<KernelStorage>,
}

/// The thread's whole life: opens the point, then answers requests until there are no more.
pub(super) fn look_up(
    offer: RestoreOffer,
    store: StoreReader,
    files: PackFiles,
    requests: Receiver<Request>,
    found: UnboundedSender<Found>,
) {
    let (manifest, pin) = match open_point(&store, &offer) {
        Ok(opened) => opened,
        Err(failure) => return drop(found.send(Found::Opened(Err(failure)))),
    };
    let record = manifest.disks[usize::from(offer.disk)].clone();
    let label = format!(
        "disk {} ({}) of {}, point {}",
        offer.disk, record.label, manifest.name, manifest.point
    );
    let disk = Arc::new(Disk { store, record, label, _pin: pin });
    let buffers = limits::RESTORE_POOL_BYTES / READ_BYTES_MAX;
    let pool = ReadPool::new(buffers, READ_BYTES_MAX)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("no memory: {error}")));
    let (opened, pool) = match pool {
        Ok(pool) => (Ok(manifest.summary()), Some(pool)),
        Err(failure) => (Err(failure), None),
    };
    let _ = found.send(Found::Opened(opened));
    let Some(pool) = pool else { return };
    let lookup = Lookup { disk, files, pool, found };
    for request in requests {
        // Gone with the connection.
        if lookup.answer(request).is_none() {
            return;
        }
    }
}

/// The manifest, if it has the disk; else what there is instead.
fn open_point(
    store: &StoreReader,
    offer: &RestoreOffer,
) -> Result<(Manifest, ReadPin<KernelStorage>), Failure> {
    let RestoreOffer { name, point, disk } = offer;
    let points = store.points(name)?;
    if let Some(point) = point
        && store.is_deleted(name, *point)?
    {
        // Its own error says what to do.
        store.manifest(name, Some(*point))?;
    }
    let usage = |text: String| Failure::new(FailureKind::Usage, text);
    if points.is_empty() {
        let names = store.names()?;
        return Err(usage(format!("there is no '{name}' here; there is {}", listed(&names))));
    }
    if point.is_some_and(|point| points.iter().all(|listed| listed.point != point)) {
        let newest: Vec<String> = points.iter().rev().map(|at| at.point.to_string()).collect();
        let point = point.map(|point| point.to_string()).unwrap_or_default();
        return Err(usage(format!(
            "'{name}' has no point {point}; it has, newest first, {}",
            listed(&newest)
        )));
    }
    let (manifest, pin) = store.open_point(name, *point)?;
    if usize::from(*disk) < manifest.disks.len() {
        return Ok((manifest, pin));
    }
    let numbered = manifest.disks.iter().enumerate();
    let disks: Vec<String> =
        numbered.map(|(number, disk)| format!("{number} ({})", disk.label)).collect();
    let point = manifest.point;
    Err(usage(format!("point {point} of '{name}' has no disk {disk}; it has {}", listed(&disks))))
}

fn listed(things: &[String]) -> String {
    match things.len() {
        0 => "nothing".to_owned(),
        more if more > LISTED_MAX => {
            format!("{} and {} more", things[..LISTED_MAX].join(", "), more - LISTED_MAX)
        }
        _ => things.join(", "),
    }
}

struct Lookup {
    disk: Arc<Disk>,
    files: PackFiles,
    pool: ReadPool,
    found: UnboundedSender<Found>,
}

impl Lookup {
    /// Nothing if nobody waits for the answer any more.
    fn answer(&self, request: Request) -> Option<()> {
        let Request { batch, run } = request;
        let (mut at, end) = (run.first, run.end()?);
        let mut zeros = ZeroRuns::default();
        let mut blocks = 0;
        while at < end {
            let next = (at + PLAN_BLOCKS - at % PLAN_BLOCKS).min(end);
            let (wanted, faults) = match self.disk.zeros_from(at) {
                Ok(Some(zero_end)) => {
                    let zero_end = zero_end.min(end);
                    zeros.push(Run { first: at, count: zero_end - at });
                    at = zero_end;
                    continue;
                }
                Ok(None) => self.disk.places(at, next, &mut zeros),
                Err(failure) => (Vec::new(), vec![failure; (next - at) as usize]),
            };
            at = next;
            blocks += (wanted.len() + faults.len()) as u64;
            if !faults.is_empty() {
                self.found.send(Found::Blocks { batch, ready: Vec::new(), faults }).ok()?;
            }
            for read in group_reads(wanted) {
                self.order(batch, read)?;
            }
        }
        for runs in zeros.take() {
            self.found.send(Found::Zeros(runs)).ok()?;
        }
        self.found.send(Found::Planned { batch, blocks }).ok()
    }

    fn order(&self, batch: u64, read: GroupRead) -> Option<()> {
        // Waits here while all buffers are on their way: that is the back-pressure.
        let buf = self.pool.take()?;
        let (disk, found) = (Arc::clone(&self.disk), self.found.clone());
        let path = Arc::from(self.disk.store.pack_place(read.pack));
        let (offset, len) = (read.offset, read.len);
        let callback = Box::new(move |buf: ReadBuf, result| {
            let (ready, faults) = disk.check(&read, buf, result);
            let _ = found.send(Found::Blocks { batch, ready, faults });
        });
        self.files.read(ReadOrder { path, offset, len, buf, callback });
        (!self.found.is_closed()).then_some(())
    }
}

impl Disk {
    /// Where the map's zeros that begin at or before `block` end; nothing if it must be looked at
    /// block by block.
    fn zeros_from(&self, block: u64) -> Result<Option<u64>, Failure> {
        let zeros = self.store.zero_subtree(&self.record, block);
        zeros.map(|run| run.and_then(|run| run.end())).map_err(|error| self.map_fault(block, error))
    }

    fn map_fault(&self, block: u64, error: impl std::fmt::Display) -> Failure {
        let text = format!("the map of {} cannot be read at block {block}: {error}", self.label);
        Failure::new(FailureKind::Target, text)
    }

    /// Where the blocks of `first..end` stand; zeros are added to `zeros`.
    fn places(&self, first: u64, end: u64, zeros: &mut ZeroRuns) -> (Vec<Wanted>, Vec<Failure>) {
        let (mut wanted, mut faults) = (Vec::new(), Vec::new());
        let mut at = first;
        while at < end {
            let leaf = at / NODE_CHILDREN;
            let leaf_end = ((leaf + 1) * NODE_CHILDREN).min(end);
            match self.leaf_places(leaf, at, leaf_end, zeros) {
                Ok((found, lost)) => {
                    wanted.extend(found);
                    faults.extend(lost);
                }
                Err(failure) => faults.extend(vec![failure; (leaf_end - at) as usize]),
            }
            at = leaf_end;
        }
        (wanted, faults)
    }

    fn leaf_places(
        &self,
        leaf: u64,
        first: u64,
        end: u64,
        zeros: &mut ZeroRuns,
    ) -> Result<(Vec<Wanted>, Vec<Failure>), Failure> {
        let ids =
            self.store.leaf(&self.record, leaf).map_err(|error| self.map_fault(first, error))?;
        let skip = (first - leaf * NODE_CHILDREN) as usize;
        let ids = ids.get(skip..skip + (end - first) as usize).ok_or_else(|| {
            self.map_fault(first, format!("leaf {leaf} has only {} blocks", ids.len()))
        })?;
        let mut asked = Vec::new();
        for (block, id) in (first..).zip(ids) {
            match id.is_zero() {
                true => zeros.push(Run { first: block, count: 1 }),
                false => asked.push((block, *id)),
            }
        }
        let ids: Vec<_> = asked.iter().map(|(_, id)| *id).collect();
        let places = self.store.locate(&ids).map_err(|error| self.map_fault(first, error))?;
        let (mut wanted, mut faults) = (Vec::new(), Vec::new());
        for ((block, id), place) in asked.into_iter().zip(places) {
            match place.filter(|at| at.kind == RecordKind::Block) {
                Some(at) => wanted.push(Wanted { block, id, at }),
                None => faults.push(Failure::new(
                    FailureKind::Target,
                    format!(
                        "block {block} of {} cannot be restored: {id} is in no pack, or known to \
                         be damaged; {REMEDY_VERIFY}",
                        self.label
                    ),
                )),
            }
        }
        Ok((wanted, faults))
    }

    /// Checks every record of a read.
    fn check(
        &self,
        read: &GroupRead,
        buf: ReadBuf,
        result: std::io::Result<usize>,
    ) -> (Vec<Ready>, Vec<Failure>) {
        let (mut ready, mut faults) = (Vec::new(), Vec::new());
        let bytes = Bytes::from_owner(buf);
        let filled = result.as_ref().map_or(0, |filled| *filled);
        for wanted in &read.wanted {
            let begin = (wanted.at.offset - read.offset) as usize;
            let outcome = match &result {
                // One bad sector must not take its neighbours with it.
                Err(_) if read.wanted.len() > 1 => self.read_alone(wanted),
                Err(error) => Err(error.to_string()),
                Ok(_) => self.record(wanted, bytes.slice(begin.min(filled)..filled)),
            };
            match outcome {
                Ok((head, stored)) => ready.push(Ready { block: wanted.block, head, stored }),
                Err(what) => faults.push(self.fault(wanted, &what)),
            }
        }
        (ready, faults)
    }

    fn record(&self, wanted: &Wanted, bytes: Bytes) -> Result<(BlockHead, Bytes), String> {
        let (head, stored) = open_record(&bytes, self.store.repository(), &wanted.id)
            .inspect_err(|_| self.store.doubt(&wanted.id, &wanted.at))
            .map_err(|fault| fault.to_string())?;
        let head = self.fits(wanted, &head)?;
        let len = stored.len();
        Ok((head, bytes.slice(RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + len)))
    }

    fn read_alone(&self, wanted: &Wanted) -> Result<(BlockHead, Bytes), String> {
        let read = self.store.read_record(&wanted.id, &wanted.at);
        let (head, stored) = read.map_err(|error| error.to_string())?;
        Ok((self.fits(wanted, &head)?, stored.into()))
    }

    fn fits(&self, wanted: &Wanted, head: &RecordHead) -> Result<BlockHead, String> {
        let len = self.record.block_size.block_len(wanted.block, self.record.size_bytes);
        match head.raw_len == len && head.kind == RecordKind::Block {
            true => Ok(head.block_head()),
            false => Err(format!("its record has {} bytes, the block {len}", head.raw_len)),
        }
    }

    fn fault(&self, wanted: &Wanted, what: &str) -> Failure {
        let pack = self.store.pack_place(wanted.at.pack);
        let (block, offset, label) = (wanted.block, wanted.at.offset, &self.label);
        let text = format!(
            "{pack} is damaged at byte {offset}: block {block} of {label} cannot be restored \
             ({what}); {REMEDY_VERIFY}"
        );
        Failure::new(FailureKind::Target, text)
    }
}

/// Starts the thread.
///
/// # Errors
/// `Internal`: no thread.
pub(super) fn start(
    offer: RestoreOffer,
    store: StoreReader,
    files: PackFiles,
    found: UnboundedSender<Found>,
) -> Result<Sender<Request>, Failure> {
    let (sender, requests) = crossbeam_channel::unbounded();
    std::thread::Builder::new()
        .name("restore-lookup".to_owned())
        .spawn(move || look_up(offer, store, files, requests, found))
        .map_err(|error| {
            Failure::new(FailureKind::Internal, format!("cannot start a thread: {error}"))
        })?;
    Ok(sender)
}
