//! Stage 5 of 7: blocks and marks in, frames out. Drives the sender machine over a connection.
//!
//! In: reports of the pipeline, frames of the target. Out: frames on control stream and lanes,
//! commands to the pipeline, fates for the totals. One thread, one connection at a time; a lost
//! connection is made anew until the time for it is over. It never reads a disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gantry_common::extents::Run;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::PointId;
use gantry_common::session::sender::{Channel, Sender, Transmit};
use gantry_common::session::source_port::{SourceCommand, SourceReport};
use gantry_common::wire::{self, MarkKind, TaskNumber, ToSource, ToTarget};
use tokio::sync::mpsc;

use crate::connect::Connector;
use crate::pipeline::{Pipeline, PipelineEnds, PlannerInput};
use crate::stats::{DownstreamState, Part, StageStats};
use crate::transport::{CloseReason, Connection, FrameSender, OutFrame, Pacer, TransportError};

pub mod disks;
pub mod fates;

use disks::SessionDisks;

/// Blocks with the transport that are a queue, not just on their way.
const QUEUED_BLOCKS: u64 = 8;
/// Reports taken from the pipeline before frames are looked at again.
const REPORTS_A_TURN: usize = 64;

/// What the network thread measured.
#[derive(Debug, Default)]
pub struct SendStats {
    /// From hand-over of a block until the transport had taken all of it.
    pub send: StageStats,
    /// From hand-over of a block until the target said it is durable (first block of each run).
    pub durable: StageStats,
    /// Connections made.
    pub connections: u32,
    /// What is worth telling: reconnections, fallbacks, plans.
    pub log: Vec<String>,
}

/// The sending side of one session.
pub struct SendDriver {
    sender: Sender<Bytes>,
    pipeline: Pipeline,
    ends: PipelineEnds,
    disks: SessionDisks,
    pacer: Pacer,
    /// Which worker holds a block that waits for the target's answer.
    holders: std::collections::HashMap<(TaskNumber, u64), usize>,
    handed: std::collections::BTreeMap<(TaskNumber, u64), (Instant, u32)>,
    /// Blocks that the target takes at once, as its `Welcome` said.
    credit_first: u64,
    stats: SendStats,
}

/// How a session's network side ended.
pub struct Sent {
    /// The point (nothing for a part, which is kept), or the failure.
    pub result: Result<Option<PointId>, Failure>,
    /// Back to its owner, to be stopped.
    pub pipeline: Pipeline,
    /// The disks, with their totals.
    pub disks: SessionDisks,
    /// Numbers and log.
    pub stats: SendStats,
}

enum Driven {
    Over,
    Lost(TransportError),
}

impl SendDriver {
    /// A driver for a session that has not connected.
    pub fn new(
        sender: Sender<Bytes>,
        pipeline: Pipeline,
        ends: PipelineEnds,
        disks: SessionDisks,
        pacer: Pacer,
    ) -> SendDriver {
        SendDriver {
            sender,
            pipeline,
            ends,
            disks,
            pacer,
            holders: Default::default(),
            handed: Default::default(),
            credit_first: 0,
            stats: SendStats::default(),
        }
    }

    /// Runs the session to its end over as many connections as it takes.
    pub async fn run(mut self, connector: &Connector, reconnect_for: Duration) -> Sent {
        let result = self.connect_and_drive(connector, reconnect_for).await;
        // Workers may be blocked on a full channel: from here on reports go nowhere.
        let SendDriver { pipeline, ends, disks, stats, .. } = self;
        drop(ends);
        Sent { result, pipeline, disks, stats }
    }

    async fn connect_and_drive(
        &mut self,
        connector: &Connector,
        reconnect_for: Duration,
    ) -> Result<Option<PointId>, Failure> {
        let mut lost_at: Option<Instant> = None;
        loop {
            let error = match connector.connect().await {
                Ok((connection, notes)) => {
                    self.stats.connections += 1;
                    self.stats.log.extend(notes);
                    let connected_at = Instant::now();
                    match self.drive(connection).await {
                        Driven::Over => break,
                        Driven::Lost(error) => {
                            self.sender.handle_disconnected();
                            self.stats.log.push(format!("connection lost: {error}"));
                            tracing::warn!("connection lost: {error}");
                            if connected_at.elapsed() > Duration::from_secs(30) {
                                lost_at = None;
                            }
                            error
                        }
                    }
                }
                Err(error) => error,
            };
            let since = *lost_at.get_or_insert_with(Instant::now);
            let first = self.stats.connections == 0;
            if first || !error.failure_kind().is_retryable() || since.elapsed() >= reconnect_for {
                return Err(error.into());
            }
            self.wait_while_lost(Duration::from_secs(1)).await;
            if self.sender.is_finished() {
                // The source failed meanwhile: that is what is to be told, not the connection.
                break;
            }
        }
        self.disks.outcome()
    }

    /// Goes on taking reports while there is no connection, so that workers finish what they hold.
    async fn wait_while_lost(&mut self, how_long: Duration) {
        let until = tokio::time::Instant::now() + how_long;
        loop {
            self.take_reports();
            self.obey();
            let notify = Arc::clone(&self.ends.notify);
            if tokio::time::timeout_at(until, notify.notified()).await.is_err() {
                return;
            }
        }
    }

    async fn drive(&mut self, connection: Connection) -> Driven {
        let Connection { sender: frames, mut receiver, peer, .. } = connection;
        let frames_peer = peer.address;
        let (error_tx, mut error_rx) = mpsc::unbounded_channel();
        let writers = match Writers::start(&frames, &self.pacer, error_tx).await {
            Ok(writers) => writers,
            Err(error) => return Driven::Lost(error),
        };
        self.sender.handle_connected(writers.lanes.len());
        let notify = Arc::clone(&self.ends.notify);
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            self.obey();
            while let Some(transmit) = self.sender.poll_transmit() {
                writers.write(transmit);
            }
            self.obey();
            if self.sender.is_finished() {
                writers.finish(&frames).await;
                return Driven::Over;
            }
            self.publish_downstream();
            tokio::select! {
                biased;
                Some(error) = error_rx.recv() => return Driven::Lost(error),
                frame = receiver.recv() => match frame {
                    Ok(Some(frame)) => {
                        if let Err(failure) = self.take_frame(frame.decode::<ToSource>()) {
                            self.disks.fail(None, failure);
                            frames.close(CloseReason::Violation("see the log of the source mover".into()));
                            return Driven::Over;
                        }
                    }
                    Ok(None) => return Driven::Lost(ended(&frames_peer)),
                    Err(error) => return Driven::Lost(error),
                },
                () = notify.notified() => self.take_reports(),
                sent = writers.next_sent() => self.stats.send.record(u64::from(sent.1), sent.0),
                _ = tick.tick() => self.take_reports(),
            }
        }
    }

    fn take_frame(&mut self, frame: Result<ToSource, wire::FrameError>) -> Result<(), Failure> {
        let hostile = |text: String| {
            Failure::new(
                FailureKind::Refused,
                format!("the repository mover broke the protocol: {text}"),
            )
        };
        let frame = frame.map_err(|error| hostile(error.to_string()))?;
        match &frame {
            ToSource::Durable { task, runs } => self.settle(*task, runs),
            ToSource::TaskOpened { task, durable, .. } => self.settle(*task, durable),
            ToSource::Welcome { credit, .. } => self.credit_first = *credit,
            _ => {}
        }
        self.sender.handle_frame(frame).map_err(|violation| hostile(violation.to_string()))
    }

    fn settle(&mut self, task: TaskNumber, runs: &[Run]) {
        for run in runs {
            self.disks.settle(task, *run);
            let end = run.first.saturating_add(run.count);
            while let Some((&key, &(at, bytes))) =
                self.handed.range((task, run.first)..(task, end)).next()
            {
                self.stats.durable.record(u64::from(bytes), at.elapsed());
                self.handed.remove(&key);
            }
        }
    }

    fn take_reports(&mut self) {
        for _ in 0..REPORTS_A_TURN {
            if !self.sender.accepts_reports() {
                return;
            }
            let Ok((worker, report)) = self.ends.reports.try_recv() else { return };
            let task = self.note_report(worker, &report);
            self.sender.handle_report(report);
            if let Some(report) = self.disks.totals_if_complete(task) {
                self.sender.handle_report(report);
            }
        }
        // More may be waiting: come again soon, after the frames.
        self.ends.notify.notify_one();
    }

    fn note_report(&mut self, worker: usize, report: &SourceReport<Bytes>) -> TaskNumber {
        match report {
            SourceReport::Marked { task, mark } => {
                let fate = match mark.kind {
                    MarkKind::Zero => fates::Fate::Zero,
                    MarkKind::Unchanged => fates::Fate::Unchanged,
                };
                self.disks.decide(*task, mark.run, fate);
                *task
            }
            SourceReport::Hashed { task, block, .. } => {
                self.holders.insert((*task, *block), worker);
                *task
            }
            SourceReport::Ready { task, block, payload, .. } => {
                let stored = payload.len() as u32;
                let run = Run { first: *block, count: 1 };
                self.disks.decide(*task, run, fates::Fate::Sent { stored });
                self.handed.insert((*task, *block), (Instant::now(), stored));
                *task
            }
            SourceReport::NeedBase { task, .. }
            | SourceReport::Totals { task, .. }
            | SourceReport::Failed { task, .. } => *task,
        }
    }

    /// Carries out what the sender machine wants of the pipeline.
    fn obey(&mut self) {
        while let Some(command) = self.sender.poll_command() {
            match command {
                SourceCommand::Start { task, id_key, base, durable } => {
                    self.disks.open(task, id_key, base, durable);
                }
                SourceCommand::Base { task, leaf, ids } => {
                    self.pipeline.tell_planner(task, PlannerInput::Base(leaf, ids));
                }
                SourceCommand::Known { task, block } => {
                    self.disks.decide(task, Run { first: block, count: 1 }, fates::Fate::Duplicate);
                    self.answer(task, block, true);
                    if let Some(report) = self.disks.totals_if_complete(task) {
                        self.sender.handle_report(report);
                    }
                }
                SourceCommand::Wanted { task, block } => self.answer(task, block, false),
                SourceCommand::Redo { task, runs } => {
                    runs.iter().for_each(|run| self.disks.forget(task, *run));
                    self.pipeline.tell_planner(task, PlannerInput::Redo(runs));
                }
                SourceCommand::Sealed { task, bytes_stored } => {
                    self.disks.sealed(task, bytes_stored);
                }
                SourceCommand::Finished { point, deleted } => {
                    let retired = |point| format!("retention deleted point {point}");
                    self.stats.log.extend(deleted.iter().map(retired));
                    self.disks.complete(Some(point));
                }
                SourceCommand::Held => self.disks.complete(None),
                SourceCommand::Failed { task, failure } => self.disks.fail(task, failure),
            }
        }
        for report in self.disks.begin_waiting(&mut self.pipeline, &mut self.stats.log) {
            self.sender.handle_report(report);
        }
    }

    fn answer(&mut self, task: TaskNumber, block: u64, known: bool) {
        if let Some(worker) = self.holders.remove(&(task, block)) {
            self.pipeline.answer(worker, task, block, known);
        }
    }

    /// Says what holds blocks up after the workers. Without credit it is the target, unless most
    /// of the blocks that the credit was spent on are still with the transport: a slot of the pool
    /// is in use until QUIC has acknowledged its bytes.
    fn publish_downstream(&self) {
        let waiting = self.sender.blocks_waiting();
        let pool = &self.ends.send_pool;
        let in_transport = ((pool.slots() - pool.free()) as u64).saturating_sub(waiting);
        let without_credit = self.sender.credit_left() == 0 && waiting > 0;
        let queued = (pool.slots() as u64 / 4).clamp(2, QUEUED_BLOCKS);
        let backlog = if without_credit && in_transport * 2 < self.credit_first {
            Some(Part::Target)
        } else if without_credit || in_transport >= queued {
            Some(Part::Network)
        } else {
            None
        };
        let unsettled = !self.handed.is_empty();
        self.ends.downstream.set(DownstreamState { backlog, unsettled });
    }
}

fn ended(address: &str) -> TransportError {
    let cause = "it ended without a reason".into();
    TransportError::Lost { address: address.to_owned(), cause }
}

/// One task a stream, so that a stream that is held up never holds up another.
///
/// The queues need no bound of their own: credits bound the blocks, the machine the rest.
struct Writers {
    control: mpsc::UnboundedSender<OutFrame>,
    lanes: Vec<mpsc::UnboundedSender<(Instant, OutFrame)>>,
    sent: tokio::sync::Mutex<mpsc::UnboundedReceiver<(Duration, u32)>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    async fn start(
        frames: &FrameSender,
        pacer: &Pacer,
        errors: mpsc::UnboundedSender<TransportError>,
    ) -> Result<Writers, TransportError> {
        frames.open_lanes(gantry_common::limits::LANES_MAX).await?;
        let lane_count = frames.lanes();
        let (sent_tx, sent_rx) = mpsc::unbounded_channel();
        let (control, mut queue) = mpsc::unbounded_channel::<OutFrame>();
        let mut tasks = Vec::with_capacity(lane_count + 1);
        let (control_frames, control_errors) = (frames.clone(), errors.clone());
        tasks.push(tokio::spawn(async move {
            while let Some(frame) = queue.recv().await {
                if let Err(error) = control_frames.send_control(frame).await {
                    let _ = control_errors.send(error);
                    return;
                }
            }
        }));
        let mut lanes = Vec::with_capacity(lane_count);
        for lane in 0..lane_count {
            let (lane_tx, mut queue) = mpsc::unbounded_channel::<(Instant, OutFrame)>();
            lanes.push(lane_tx);
            let (frames, pacer) = (frames.clone(), pacer.clone());
            let (errors, sent) = (errors.clone(), sent_tx.clone());
            tasks.push(tokio::spawn(async move {
                while let Some((from, frame)) = queue.recv().await {
                    let bytes = frame.payload.len() as u32;
                    if let Err(error) = frames.send_lane(lane, frame, &pacer).await {
                        let _ = errors.send(error);
                        return;
                    }
                    let _ = sent.send((from.elapsed(), bytes));
                }
            }));
        }
        Ok(Writers { control, lanes, sent: tokio::sync::Mutex::new(sent_rx), tasks })
    }

    fn write(&self, transmit: Transmit<ToTarget, Bytes>) {
        let payload = transmit.payload.unwrap_or_default();
        let frame = OutFrame::block(&transmit.message, payload);
        // A writer that ended has reported its error.
        match transmit.channel {
            Channel::Control => drop(self.control.send(frame)),
            Channel::Lane(lane) => drop(self.lanes[lane].send((Instant::now(), frame))),
        }
    }

    async fn next_sent(&self) -> (Duration, u32) {
        match self.sent.lock().await.recv().await {
            Some(sent) => sent,
            None => std::future::pending().await,
        }
    }

    /// Lets the control stream deliver its last frames, then closes.
    async fn finish(mut self, frames: &FrameSender) {
        drop(std::mem::replace(&mut self.control, mpsc::unbounded_channel().0));
        let control = self.tasks.swap_remove(0);
        let _ = tokio::time::timeout(Duration::from_secs(2), control).await;
        let _ = tokio::time::timeout(Duration::from_secs(5), frames.finish()).await;
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
