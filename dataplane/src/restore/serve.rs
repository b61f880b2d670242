//! Restore, server side: one connection that reads one disk of one point.
//!
//! In: `Read`, `Credit`, `Bye`. Out: `Welcome`, `PointOpened`, then `Zeros`, blocks on four lanes
//! within the client's credit, `ReadDone`. Invariant: a damaged block is a `Failed` that names it,
//! and everything else that was asked for still comes. Must not: read disks on this thread.
//!
//! ```text
//!  Read -> lookup thread (map, index, plan) -> pack files thread -> queue -> lanes, with credit
//!            | waits for a free buffer  <-------- returned when the network has the bytes
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use gantry_common::extents::Run;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::limits;
use gantry_common::wire::{PointSummary, RestoreOffer, TicketBytes, ToSource, ToTarget};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::lookup::{self, Found, Ready, Request};
use super::pack_files::PackFiles;
use super::requests::READ_BLOCKS_MAX;
use crate::store::reader::StoreReader;
use crate::transport::{FrameReceiver, FrameSender, InFrame, OutFrame, Pacer, TransportError};

/// Requests that a client may have under way.
const READS_MAX: usize = 64;
/// Faults that are told one by one.
const FAULTS_TOLD_MAX: u64 = 16;

/// How a restore is served.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// Ticket that the client presents at a reconnection.
    pub ticket: Option<TicketBytes>,
    /// The throttle of what is sent.
    pub pacer: Pacer,
}

/// Serves a restore on a connection whose `Hello` has been read. Ends when the client has said
/// goodbye. Dropping the future ends it at once.
///
/// # Errors
/// What the client was told it may not have (`Usage`), or what cannot be read (`Target`); a lost
/// connection; a client that breaks the protocol (`Refused`).
pub async fn serve(
    offer: RestoreOffer,
    store: StoreReader,
    frames: FrameSender,
    receiver: FrameReceiver,
    files: PackFiles,
    options: ServeOptions,
) -> Result<(), Failure> {
    let ServeOptions { ticket, pacer } = options;
    let welcome = ToSource::Welcome {
        repository: store.repository(),
        id_key: store.id_key(),
        ticket,
        credit: 0,
    };
    frames.send_control(OutFrame::message(&welcome)).await?;
    let (found_sender, mut found) = mpsc::unbounded_channel();
    let requests = lookup::start(offer.clone(), store, files, found_sender)?;
    let opened = match found.recv().await {
        Some(Found::Opened(opened)) => opened,
        _ => Err(Failure::new(FailureKind::Internal, "the thread that looks up blocks has ended")),
    };
    let point = match opened {
        Ok(point) => point,
        Err(failure) => {
            let message = ToSource::Failed { task: None, failure: failure.clone() };
            frames.send_control(OutFrame::message(&message)).await?;
            frames.finish().await?;
            return Err(failure);
        }
    };
    let blocks = blocks_of(&point, offer.disk);
    let message = ToSource::PointOpened { point };
    frames.send_control(OutFrame::message(&message)).await?;
    frames.open_lanes(limits::LANES_MAX).await?;
    let (lanes, sending) = start_lanes(&frames, &pacer);
    let client = Client {
        frames,
        requests,
        blocks,
        batches: BTreeMap::new(),
        queue: VecDeque::new(),
        credit: 0,
        sent: 0,
        faults: 0,
        fault: None,
        reading: Duration::ZERO,
        sending: Duration::ZERO,
    };
    client.run(receiver, found, lanes, sending).await
}

fn blocks_of(point: &PointSummary, disk: u16) -> u64 {
    let disk = point.disks.get(usize::from(disk));
    disk.map_or(0, |disk| disk.block_size.block_count(disk.size_bytes))
}

type LaneQueue = mpsc::Sender<OutFrame>;

/// One task a lane; each takes the next block when it has sent its last.
fn start_lanes(
    frames: &FrameSender,
    pacer: &Pacer,
) -> (LaneQueue, JoinSet<Result<(), TransportError>>) {
    let (queue, blocks) = mpsc::channel::<OutFrame>(1);
    let blocks = Arc::new(Mutex::new(blocks));
    let mut tasks = JoinSet::new();
    for lane in 0..frames.lanes() {
        let (frames, pacer, blocks) = (frames.clone(), pacer.clone(), Arc::clone(&blocks));
        tasks.spawn(async move {
            loop {
                let next = blocks.lock().await.recv().await;
                let Some(frame) = next else { return Ok(()) };
                frames.send_lane(lane, frame, &pacer).await?;
            }
        });
    }
    (queue, tasks)
}

/// A request under way.
#[derive(Debug, Default)]
struct Batch {
    /// Blocks that will come from the disk, once that is known.
    planned: Option<u64>,
    /// Of these, sent or faulty.
    handled: u64,
    /// Of these, sent.
    sent: u64,
}

/// The client as this connection knows it.
struct Client {
    frames: FrameSender,
    requests: Sender<Request>,
    blocks: u64,
    batches: BTreeMap<u64, Batch>,
    queue: VecDeque<(u64, Ready)>,
    credit: u64,
    sent: u64,
    faults: u64,
    fault: Option<Failure>,
    /// Waits since the last `ReadDone`.
    reading: Duration,
    sending: Duration,
}

impl Client {
    async fn run(
        mut self,
        mut receiver: FrameReceiver,
        mut found: mpsc::UnboundedReceiver<Found>,
        lanes: LaneQueue,
        mut sending: JoinSet<Result<(), TransportError>>,
    ) -> Result<(), Failure> {
        loop {
            let may_send = !self.queue.is_empty() && self.sent < self.credit;
            let reads = self.queue.is_empty() && !self.batches.is_empty();
            let begun = Instant::now();
            tokio::select! {
                frame = receiver.recv() => {
                    self.waited(begun, reads, may_send);
                    if !self.frame(frame?)? {
                        break;
                    }
                }
                lane = lanes.reserve(), if may_send => {
                    self.waited(begun, reads, may_send);
                    if let (Ok(lane), Some((batch, ready))) = (lane, self.queue.pop_front()) {
                        let Ready { block, head, stored } = ready;
                        lane.send(OutFrame::block(&ToSource::Block { block, head }, stored));
                        self.sent += 1;
                        self.handled(batch, 1, 1).await?;
                    }
                }
                Some(found) = found.recv() => {
                    self.waited(begun, reads, may_send);
                    self.found(found).await?;
                }
                Some(lane) = sending.join_next() => match lane {
                    Ok(Err(error)) => return Err(error.into()),
                    // The queue is still open, so a lane ends only with an error.
                    _ => return Err(Failure::new(FailureKind::Internal, "a lane has ended")),
                },
            }
        }
        drop(lanes);
        while let Some(lane) = sending.join_next().await {
            if let Ok(result) = lane {
                result?;
            }
        }
        self.frames.finish().await?;
        self.fault.map_or(Ok(()), Err)
    }

    fn waited(&mut self, begun: Instant, reads: bool, may_send: bool) {
        if reads {
            self.reading += begun.elapsed();
        } else if may_send {
            self.sending += begun.elapsed();
        }
    }

    /// False: the client has left.
    fn frame(&mut self, frame: Option<InFrame>) -> Result<bool, Failure> {
        let refuse = |what: String| {
            let text = format!("the restoring client breaks the protocol: {what}");
            Failure::new(FailureKind::Refused, text)
        };
        let Some(frame) = frame else { return Ok(false) };
        let message = frame.decode::<ToTarget>().map_err(|error| refuse(error.to_string()))?;
        match message {
            ToTarget::Read { batch, run } => {
                self.check(batch, run).map_err(|what| refuse(what.to_owned()))?;
                self.batches.insert(batch, Batch::default());
                self.requests.send(Request { batch, run }).map_err(|_| {
                    Failure::new(FailureKind::Internal, "the thread that looks up blocks has ended")
                })?;
            }
            ToTarget::Credit { total } => self.credit = self.credit.max(total),
            ToTarget::Bye => return Ok(false),
            _ => return Err(refuse("a message that does not belong to a restore".to_owned())),
        }
        Ok(true)
    }

    fn check(&self, batch: u64, run: Run) -> Result<(), &'static str> {
        let fits = run.count > 0 && run.end().is_some_and(|end| end <= self.blocks);
        match () {
            () if !fits => Err("blocks beyond the disk"),
            () if run.count > READ_BLOCKS_MAX => Err("too many blocks in one request"),
            () if self.batches.len() >= READS_MAX => Err("too many requests under way"),
            () if self.batches.contains_key(&batch) => Err("a request's number comes twice"),
            () => Ok(()),
        }
    }

    async fn found(&mut self, found: Found) -> Result<(), Failure> {
        match found {
            Found::Opened(_) => {}
            Found::Zeros(runs) => self.control(ToSource::Zeros { runs }).await?,
            Found::Blocks { batch, ready, faults } => {
                let faulty = faults.len() as u64;
                self.queue.extend(ready.into_iter().map(|ready| (batch, ready)));
                for failure in faults {
                    self.tell(failure).await?;
                }
                self.handled(batch, faulty, 0).await?;
            }
            Found::Planned { batch, blocks } => {
                if let Some(entry) = self.batches.get_mut(&batch) {
                    entry.planned = Some(blocks);
                }
                self.handled(batch, 0, 0).await?;
            }
        }
        Ok(())
    }

    async fn tell(&mut self, failure: Failure) -> Result<(), Failure> {
        self.faults += 1;
        if self.faults > FAULTS_TOLD_MAX {
            return Ok(());
        }
        tracing::error!(%failure, "a block cannot be restored");
        self.fault.get_or_insert_with(|| failure.clone());
        self.control(ToSource::Failed { task: None, failure }).await
    }

    /// Counts blocks of a request, and ends it with the last.
    async fn handled(&mut self, batch: u64, handled: u64, sent: u64) -> Result<(), Failure> {
        let Some(entry) = self.batches.get_mut(&batch) else { return Ok(()) };
        entry.handled += handled;
        entry.sent += sent;
        if entry.planned != Some(entry.handled) {
            return Ok(());
        }
        let blocks = entry.sent;
        self.batches.remove(&batch);
        let micros = |time: Duration| time.as_micros() as u64;
        let (reading_us, sending_us) = (micros(self.reading), micros(self.sending));
        (self.reading, self.sending) = (Duration::ZERO, Duration::ZERO);
        self.control(ToSource::ReadDone { batch, blocks, reading_us, sending_us }).await
    }

    async fn control(&self, message: ToSource) -> Result<(), Failure> {
        Ok(self.frames.send_control(OutFrame::message(&message)).await?)
    }
}
