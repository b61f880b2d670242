//! A connection, whatever carries it: one sender that can be cloned, one receiver.
//!
//! In: frames from the session, frames from QUIC, TCP or memory. Out: the other. Invariants: one
//! lane carries one frame at a time; a frame that was begun is finished or its stream is torn and
//! never used again; every queue is bounded. Must not: interpret a frame.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use gantry_common::ids::PeerId;
use gantry_common::limits;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::error::{CloseReason, Ends, TransportError};
use super::frame_io::{Channel, InFrame, OutFrame};
use super::memory::{MemoryInlet, Travelling};
use super::options::TransportKind;
use super::pacer::Pacer;
use super::queue::Outlet;
use super::quic::{self, QuicLink};
use super::tcp::{self, Segment};
use crate::payload::PayloadPool;

/// Control frames that wait between a reader and the session.
pub(super) const CONTROL_QUEUE_FRAMES: usize = 32;
/// Blocks that wait between the readers and the session.
pub(super) const LANE_QUEUE_FRAMES: usize = 4;
/// How long a good end waits for the peer to take the last bytes.
pub(super) const FINISH_MAX: Duration = Duration::from_secs(10);

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The key it proved to hold.
    pub pin: PeerId,
    /// Its address, or "memory".
    pub address: String,
}

/// An authenticated connection.
#[derive(Debug)]
pub struct Connection {
    /// The other end.
    pub peer: PeerInfo,
    /// What carries it.
    pub kind: TransportKind,
    /// What a person should know about how it was made (say, why it is not QUIC).
    pub note: Option<String>,
    /// Out.
    pub sender: FrameSender,
    /// In.
    pub receiver: FrameReceiver,
}

/// What a connection did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Largest UDP payload of the path now; 0 where it means nothing.
    pub mtu_bytes: u16,
    /// Round trip in microseconds.
    pub rtt_us: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets lost.
    pub packets_lost: u64,
    /// Packets that came, keep-alives included; nothing where the transport does not count them.
    pub packets_received: Option<u64>,
    /// Bytes sent as the network sees them: with the headers of UDP and IP, lost ones included.
    pub wire_bytes_sent: u64,
    /// Times that the path stopped taking packets of the MTU found earlier.
    pub black_holes: u64,
}

/// The sending half. Cloning shares it. Connections live on one tokio runtime.
#[derive(Debug, Clone)]
pub struct FrameSender {
    shared: Arc<SenderShared>,
}

#[derive(Debug)]
struct SenderShared {
    link: Link,
    ends: Ends,
    control: Mutex<Lane>,
    lanes: OnceLock<Box<[Mutex<Lane>]>>,
}

/// What opens further lanes, closes and counts.
#[derive(Debug)]
pub(super) enum Link {
    Quic(QuicLink),
    Tcp(Outlet<Segment>),
    Memory(Outlet<Travelling>),
}

/// One outgoing stream.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) stream: LaneStream,
    /// A frame was begun and not finished.
    pub(super) torn: bool,
}

#[derive(Debug)]
pub(super) enum LaneStream {
    Quic(quinn::SendStream),
    Tcp(Channel, Outlet<Segment>),
    Memory(Channel, Outlet<Travelling>),
    Finished,
}

impl FrameSender {
    pub(super) fn new(link: Link, ends: Ends, control: LaneStream) -> FrameSender {
        let control = Mutex::new(Lane { stream: control, torn: false });
        let lanes = OnceLock::new();
        FrameSender { shared: Arc::new(SenderShared { link, ends, control, lanes }) }
    }

    /// Sends a frame without a payload. Dropping this future before it is done ends the
    /// connection's control stream.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send_control(&self, frame: OutFrame) -> Result<(), TransportError> {
        debug_assert!(frame.payload.is_empty(), "blocks travel on lanes");
        self.send(&self.shared.control, frame, &Pacer::unlimited()).await
    }

    /// Opens the lanes, once, on the side that sends blocks.
    ///
    /// # Errors
    /// The connection is gone.
    ///
    /// # Panics
    /// If `count` is 0 or beyond `limits::LANES_MAX`, or lanes are open.
    pub async fn open_lanes(&self, count: usize) -> Result<(), TransportError> {
        assert!((1..=limits::LANES_MAX).contains(&count), "{count} lanes");
        let mut lanes = Vec::with_capacity(count);
        for lane in 0..count {
            let channel = Channel::Lane(lane as u8);
            let stream = match &self.shared.link {
                Link::Quic(link) => LaneStream::Quic(link.open_lane(&self.shared.ends).await?),
                Link::Tcp(outlet) => LaneStream::Tcp(channel, outlet.clone()),
                Link::Memory(outlet) => LaneStream::Memory(channel, outlet.clone()),
            };
            lanes.push(Mutex::new(Lane { stream, torn: false }));
        }
        assert!(self.shared.lanes.set(lanes.into()).is_ok(), "lanes are opened once");
        Ok(())
    }

    /// Lanes that are open.
    pub fn lanes(&self) -> usize {
        self.shared.lanes.get().map_or(0, |lanes| lanes.len())
    }

    /// Sends a block on a lane, at the pacer's rate. Waits for its turn if the lane is busy, and
    /// while the peer is slow. Dropping this future before it is done tears the lane.
    ///
    /// # Errors
    /// The connection is gone.
    ///
    /// # Panics
    /// If there is no such lane.
    pub async fn send_lane(
        &self,
        lane: usize,
        frame: OutFrame,
        pacer: &Pacer,
    ) -> Result<(), TransportError> {
        let lanes = self.shared.lanes.get().map_or(&[][..], |lanes| lanes);
        self.send(&lanes[lane], frame, pacer).await
    }

    async fn send(
        &self,
        lane: &Mutex<Lane>,
        frame: OutFrame,
        pacer: &Pacer,
    ) -> Result<(), TransportError> {
        let SenderShared { link, ends, .. } = &*self.shared;
        let mut lane = lane.lock().await;
        if lane.torn {
            return Err(ends.lost("a frame was not finished"));
        }
        lane.torn = true;
        match &mut lane.stream {
            LaneStream::Quic(stream) => {
                for mut slice in Slices::of(frame, pacer) {
                    pace(pacer, link, slice.iter().map(Bytes::len).sum()).await;
                    let written = stream.write_all_chunks(&mut slice).await;
                    written.map_err(|error| quic::write_error(ends, &error))?;
                }
            }
            LaneStream::Tcp(channel, outlet) => {
                for slice in Slices::of(frame, pacer) {
                    pace(pacer, link, slice.iter().map(Bytes::len).sum()).await;
                    tcp::send(outlet, *channel, slice, ends).await?;
                }
            }
            LaneStream::Memory(channel, outlet) => {
                for slice in Slices::of(frame.clone(), pacer) {
                    pace(pacer, link, slice.iter().map(Bytes::len).sum()).await;
                }
                outlet.send(*channel, (*channel, frame), ends).await?;
            }
            LaneStream::Finished => return Err(ends.closed_here()),
        }
        lane.torn = false;
        Ok(())
    }

    /// Ends the connection well: whatever was sent is delivered first, then the peer's receiver
    /// gives its end. Only for the side that has nothing more to receive.
    ///
    /// # Errors
    /// The peer did not take the rest in time, or was lost.
    pub async fn finish(&self) -> Result<(), TransportError> {
        let SenderShared { link, ends, control, lanes } = &*self.shared;
        let mut streams = Vec::new();
        let lanes = lanes.get().map_or(&[][..], |lanes| lanes);
        for lane in lanes.iter().chain([control]) {
            let mut lane = lane.lock().await;
            streams.push(std::mem::replace(&mut lane.stream, LaneStream::Finished));
        }
        match link {
            Link::Quic(link) => link.finish(ends, streams).await,
            Link::Tcp(outlet) => {
                let finished = tokio::time::timeout(FINISH_MAX, outlet.finish()).await;
                // Closing a socket with unread bytes would take the last frames from the peer.
                let _ = tokio::time::timeout(FINISH_MAX / 10, outlet.ended()).await;
                finished.map_err(|_| ends.lost("the peer did not take the last frames"))
            }
            Link::Memory(outlet) => {
                let finished = tokio::time::timeout(FINISH_MAX, outlet.finish_queued()).await;
                finished.map_err(|_| ends.lost("the peer did not take the last frames"))
            }
        }
    }

    /// Ends the connection at once; what is not delivered is lost.
    pub fn close(&self, reason: CloseReason) {
        match &self.shared.link {
            Link::Quic(link) => link.close(&reason),
            Link::Tcp(outlet) => outlet.close(reason),
            Link::Memory(outlet) => outlet.close(reason),
        }
    }

    /// What the connection did so far.
    pub fn stats(&self) -> LinkStats {
        match &self.shared.link {
            Link::Quic(link) => link.stats(),
            Link::Tcp(_) | Link::Memory(_) => LinkStats::default(),
        }
    }
}

impl Drop for SenderShared {
    /// A sender that is dropped without [`FrameSender::finish`] has not ended well, and the peer is
    /// to see that: quinn would finish the stream.
    fn drop(&mut self) {
        if let LaneStream::Quic(stream) = &mut self.control.get_mut().stream {
            // Closed before: the peer knows.
            let _ = stream.reset(0u8.into());
        }
        if let Link::Tcp(outlet) = &self.link {
            outlet.close(CloseReason::Failed("it dropped the connection".into()));
        }
    }
}

async fn pace(pacer: &Pacer, link: &Link, bytes: usize) {
    if pacer.rate().is_some() {
        let wire_bytes = match link {
            Link::Quic(link) => link.wire_bytes(bytes),
            Link::Tcp(_) => tcp::wire_bytes(bytes),
            Link::Memory(_) => bytes,
        };
        pacer.permit(wire_bytes).await;
    }
}

/// A frame cut into what the throttle lets out at once; whole while there is no rate.
struct Slices<'a> {
    head: Bytes,
    rest: Bytes,
    pacer: &'a Pacer,
}

impl<'a> Slices<'a> {
    fn of(frame: OutFrame, pacer: &'a Pacer) -> Slices<'a> {
        Slices { head: frame.head, rest: frame.payload, pacer }
    }
}

impl Iterator for Slices<'_> {
    type Item = [Bytes; 2];

    fn next(&mut self) -> Option<[Bytes; 2]> {
        if self.head.is_empty() && self.rest.is_empty() {
            return None;
        }
        let whole = self.pacer.rate().is_none();
        let len_max = if whole { usize::MAX } else { limits::PACE_SLICE_BYTES_MAX };
        let slice = self.rest.split_to(self.rest.len().min(len_max));
        Some([std::mem::take(&mut self.head), slice])
    }
}

/// What readers hand to the receiver.
pub(super) type Delivery = Result<InFrame, TransportError>;

/// The receiving half.
#[derive(Debug)]
pub struct FrameReceiver {
    inlet: Inlet,
}

#[derive(Debug)]
pub(super) enum Inlet {
    Streams(StreamInlet),
    Memory(MemoryInlet),
}

impl FrameReceiver {
    pub(super) fn new(inlet: Inlet) -> FrameReceiver {
        FrameReceiver { inlet }
    }

    /// Admits blocks, into this pool. Before, a peer that sends one waits (QUIC) or is cut off.
    /// Grant no more credit than the pool has slots: a block that finds no slot is a violation.
    /// Called once.
    pub fn accept_lanes(&mut self, pool: PayloadPool) {
        match &mut self.inlet {
            Inlet::Streams(inlet) => inlet.accept_lanes(pool),
            Inlet::Memory(inlet) => inlet.accept_lanes(pool),
        }
    }

    /// The next frame, control frames first; nothing once the peer has ended well and everything
    /// was given out. May be dropped and called again without loss.
    ///
    /// # Errors
    /// The peer was lost, closed early, or broke the protocol.
    pub async fn recv(&mut self) -> Result<Option<InFrame>, TransportError> {
        match &mut self.inlet {
            Inlet::Streams(inlet) => inlet.recv().await,
            Inlet::Memory(inlet) => inlet.recv().await,
        }
    }
}

/// Frames of byte streams, put together by tasks that end with this.
pub(super) struct StreamInlet {
    pub(super) control: mpsc::Receiver<Delivery>,
    pub(super) lanes: mpsc::Receiver<Delivery>,
    /// Readers; aborted when the receiver is dropped.
    pub(super) tasks: JoinSet<()>,
    /// How lanes are admitted, until they are.
    pub(super) admission: Option<Admission>,
}

/// What [`FrameReceiver::accept_lanes`] sets going.
pub(super) type Admission = Box<dyn FnOnce(PayloadPool, &mut JoinSet<()>) + Send>;

impl std::fmt::Debug for StreamInlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamInlet").field("admitted", &self.admission.is_none()).finish()
    }
}

impl StreamInlet {
    fn accept_lanes(&mut self, pool: PayloadPool) {
        if let Some(admission) = self.admission.take() {
            admission(pool, &mut self.tasks);
        }
    }

    async fn recv(&mut self) -> Result<Option<InFrame>, TransportError> {
        // Control first: credits and answers must not queue behind blocks.
        let delivery = tokio::select! {
            biased;
            Some(delivery) = self.control.recv() => Some(delivery),
            Some(delivery) = self.lanes.recv(), if self.admission.is_none() => Some(delivery),
            else => None,
        };
        delivery.transpose()
    }
}
