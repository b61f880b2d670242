//! The transport within one process: two connections back to back over bounded queues.
//!
//! In and out: frames. A payload is copied once, into the receiver's pool. Works between two
//! threads with a runtime each. Must not: accept what the network would refuse: the bounds of
//! frames and pools are the same.

use std::sync::Arc;

use gantry_common::ids::PeerId;
use gantry_common::wire::{FRAME_PREFIX_BYTES, FrameError, FramePrefix};
use tokio::sync::watch;

use super::error::{Ends, TransportError};
use super::frame_io::{Channel, InFrame, OutFrame, PoolSlot, take_payload};
use super::link::{Connection, FrameReceiver, FrameSender, Inlet, LaneStream, Link, PeerInfo};
use super::options::TransportKind;
use super::queue::{Ended, Next, Outlet, Source, queues};
use crate::payload::PayloadPool;

/// Pin of a peer in the same process.
pub const MEMORY_PIN: PeerId = PeerId([0; 32]);

/// A frame and its stream.
pub(super) type Travelling = (Channel, OutFrame);

/// Two connected ends.
pub fn pair() -> (Connection, Connection) {
    // Each inlet tells the outlet beside it when the other side has ended.
    let (left_ended_in, left_ended) = watch::channel(None);
    let (right_ended_in, right_ended) = watch::channel(None);
    let (left_out, right_source) = queues(left_ended);
    let (right_out, left_source) = queues(right_ended);
    (
        connection(left_out, MemoryInlet::new(left_source, left_ended_in)),
        connection(right_out, MemoryInlet::new(right_source, right_ended_in)),
    )
}

fn ends() -> Ends {
    Ends { address: "memory".into(), own_pin: MEMORY_PIN }
}

fn connection(outlet: Outlet<Travelling>, inlet: MemoryInlet) -> Connection {
    let control = LaneStream::Memory(Channel::Control, outlet.clone());
    Connection {
        peer: PeerInfo { pin: MEMORY_PIN, address: ends().address },
        kind: TransportKind::Memory,
        note: None,
        sender: FrameSender::new(Link::Memory(outlet), ends(), control),
        receiver: FrameReceiver::new(Inlet::Memory(inlet)),
    }
}

/// Where frames come from.
#[derive(Debug)]
pub(super) struct MemoryInlet {
    source: Source<Travelling>,
    ended: Arc<watch::Sender<Ended>>,
    pool: PoolSlot,
    ends: Ends,
}

impl MemoryInlet {
    fn new(source: Source<Travelling>, ended: watch::Sender<Ended>) -> MemoryInlet {
        let pool = PoolSlot::default();
        MemoryInlet { source, ended: Arc::new(ended), pool, ends: ends() }
    }

    pub(super) fn accept_lanes(&mut self, pool: PayloadPool) {
        // A second pool is ignored, as over the network.
        let _ = self.pool.set(pool);
    }

    pub(super) async fn recv(&mut self) -> Result<Option<InFrame>, TransportError> {
        let end = match self.source.next(self.pool.get().is_some()).await {
            Next::Item((channel, frame)) => {
                let frame = received(channel, &frame, &self.pool);
                return frame.map(Some).map_err(|error| self.ends.violation(error));
            }
            Next::End => Ok(()),
            Next::Closed(None) => Err(self.ends.lost("the peer dropped it")),
            Next::Closed(Some(reason)) => {
                let told = self.ends.closed_by_peer(reason.code().into(), reason.text().as_bytes());
                told.map_or(Ok(()), Err)
            }
        };
        self.ended.send_replace(Some(end.clone()));
        end.map(|()| None)
    }
}

/// The frame as the network would deliver it.
fn received(channel: Channel, frame: &OutFrame, pool: &PoolSlot) -> Result<InFrame, FrameError> {
    let garbled = FrameError::Garbled { len: frame.head.len() };
    let (prefix, header) =
        frame.head.split_first_chunk::<FRAME_PREFIX_BYTES>().ok_or_else(|| garbled.clone())?;
    let prefix = FramePrefix::decode(*prefix)?;
    let lengths = (prefix.header_len as usize, prefix.payload_len as usize);
    if header.is_empty() || lengths != (header.len(), frame.payload.len()) {
        return Err(garbled);
    }
    let payload = match frame.payload.len() {
        0 => None,
        len => {
            let mut payload = take_payload(channel, pool, len)?;
            payload.stored_mut().copy_from_slice(&frame.payload);
            Some(payload)
        }
    };
    Ok(InFrame { channel, header: header.to_vec(), payload })
}
