//! Frames in and out of byte streams; knows no socket.
//!
//! In: bytes as they come, in any pieces. Out: whole [`InFrame`]s; a payload goes straight from
//! the transport's buffer into a pooled [`Payload`]. Invariant: nothing is allocated for a length
//! that `limits` or the pool forbids. Must not: panic, whatever the bytes.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use gantry_common::wire::{self, FRAME_PREFIX_BYTES, FrameError, FramePrefix, Message};

use crate::payload::{Payload, PayloadPool};

/// Which ordered stream of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Everything but blocks; both ways.
    Control,
    /// Blocks, on one of up to `limits::LANES_MAX` lanes.
    Lane(u8),
}

/// A frame to send.
#[derive(Debug, Clone)]
pub struct OutFrame {
    /// Prefix and header, as [`wire::encode`] gives them.
    pub head: Bytes,
    /// The payload, which is not copied; its owner gets it back when the peer has it.
    pub payload: Bytes,
}

impl OutFrame {
    /// A message without a payload.
    pub fn message<M: Message>(message: &M) -> OutFrame {
        OutFrame { head: wire::encode(message, 0).into(), payload: Bytes::new() }
    }

    /// A block message and its payload (`Bytes::from_owner` for a pooled buffer).
    pub fn block<M: Message>(message: &M, payload: Bytes) -> OutFrame {
        OutFrame { head: wire::encode(message, payload.len()).into(), payload }
    }

    /// Bytes of the frame.
    pub fn bytes(&self) -> usize {
        self.head.len() + self.payload.len()
    }
}

/// A frame that came.
#[derive(Debug)]
pub struct InFrame {
    /// On which stream.
    pub channel: Channel,
    /// The postcard header.
    pub header: Vec<u8>,
    /// The payload, if the frame has one.
    pub payload: Option<Payload>,
}

impl InFrame {
    /// Decodes the header and checks it against the payload's length.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode<M: Message>(&self) -> Result<M, FrameError> {
        wire::decode(&self.header, self.payload_len())
    }

    /// Bytes of the payload.
    pub fn payload_len(&self) -> u32 {
        self.payload.as_ref().map_or(0, |payload| payload.stored().len() as u32)
    }
}

/// Where payloads of a connection go; empty until the session is admitted.
pub(super) type PoolSlot = Arc<OnceLock<PayloadPool>>;

/// Puts the frames of one stream together.
pub(super) struct Assembler {
    channel: Channel,
    pool: PoolSlot,
    part: Part,
    /// Bytes of the part that are there.
    filled: usize,
}

enum Part {
    Prefix([u8; FRAME_PREFIX_BYTES]),
    Header { header: Vec<u8>, payload: Option<Payload> },
    Payload { header: Vec<u8>, payload: Payload },
}

impl Assembler {
    pub(super) fn new(channel: Channel, pool: PoolSlot) -> Assembler {
        Assembler { channel, pool, part: Part::Prefix([0; FRAME_PREFIX_BYTES]), filled: 0 }
    }

    /// Where the next bytes of the stream go; never empty.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        let filled = self.filled;
        let whole = match &mut self.part {
            Part::Prefix(prefix) => &mut prefix[..],
            Part::Header { header, .. } => header,
            Part::Payload { payload, .. } => payload.stored_mut(),
        };
        &mut whole[filled..]
    }

    /// Takes note that the first `count` bytes of [`Assembler::spare`] are filled; gives the frame
    /// that they complete.
    pub(super) fn advance(&mut self, count: usize) -> Result<Option<InFrame>, FrameError> {
        let rest = self.spare().len();
        assert!(count <= rest, "{count} bytes in a space of {rest}");
        self.filled += count;
        if count < rest {
            return Ok(None);
        }
        self.filled = 0;
        let start = Part::Prefix([0; FRAME_PREFIX_BYTES]);
        let (header, payload) = match std::mem::replace(&mut self.part, start) {
            Part::Prefix(prefix) => {
                self.part = self.after_prefix(prefix)?;
                return Ok(None);
            }
            Part::Header { header, payload: Some(payload) } => {
                self.part = Part::Payload { header, payload };
                return Ok(None);
            }
            Part::Header { header, payload: None } => (header, None),
            Part::Payload { header, payload } => (header, Some(payload)),
        };
        Ok(Some(InFrame { channel: self.channel, header, payload }))
    }

    fn after_prefix(&self, prefix: [u8; FRAME_PREFIX_BYTES]) -> Result<Part, FrameError> {
        let FramePrefix { header_len, payload_len } = FramePrefix::decode(prefix)?;
        if header_len == 0 {
            return Err(FrameError::Garbled { len: 0 });
        }
        let payload = match payload_len {
            0 => None,
            len => Some(take_payload(self.channel, &self.pool, len as usize)?),
        };
        Ok(Part::Header { header: vec![0; header_len as usize], payload })
    }

    /// Whether the stream may end here.
    pub(super) fn is_between_frames(&self) -> bool {
        self.filled == 0 && matches!(self.part, Part::Prefix(_))
    }
}

/// A buffer for a payload that is announced. Peers spend a credit for each, so an empty pool means
/// that the peer spent more than it had.
pub(super) fn take_payload(
    channel: Channel,
    pool: &PoolSlot,
    len: usize,
) -> Result<Payload, FrameError> {
    if channel == Channel::Control {
        return Err(FrameError::Rule("payload on the control stream"));
    }
    let pool = pool.get().ok_or(FrameError::Rule("block before the session is admitted"))?;
    if len > pool.payload_bytes_max() {
        return Err(FrameError::Rule("block longer than the session's block size"));
    }
    pool.take(len).ok_or(FrameError::Rule("block beyond its credit"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_common::ids::{BlockId, StoredChecksum};
    use gantry_common::wire::{BlockHead, Codec, ToTarget};

    fn pool(slots: usize) -> PoolSlot {
        let slot = PoolSlot::default();
        slot.set(PayloadPool::new(slots, 1 << 16).unwrap()).unwrap();
        slot
    }

    fn block(payload: &[u8]) -> OutFrame {
        let head = BlockHead {
            id: BlockId([3; 32]),
            codec: Codec::Raw,
            raw_len: payload.len() as u32,
            checksum: StoredChecksum([4; 16]),
        };
        let message = ToTarget::Block { task: 1, block: 7, head };
        OutFrame::block(&message, Bytes::copy_from_slice(payload))
    }

    fn feed(assembler: &mut Assembler, mut bytes: &[u8], step: usize) -> Vec<InFrame> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let spare = assembler.spare();
            let count = spare.len().min(step).min(bytes.len());
            spare[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            frames.extend(assembler.advance(count).unwrap());
        }
        frames
    }

    #[test]
    fn frames_come_together_from_any_pieces() {
        let payload: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let mut stream = Vec::new();
        for frame in [block(&payload), OutFrame::message(&ToTarget::Bye), block(&payload[..1])] {
            stream.extend_from_slice(&frame.head);
            stream.extend_from_slice(&frame.payload);
        }
        for step in [1, 3, 8, 100, 20_000] {
            let mut assembler = Assembler::new(Channel::Lane(2), pool(2));
            let frames = feed(&mut assembler, &stream, step);
            assert!(assembler.is_between_frames());
            assert_eq!(frames.len(), 3, "step {step}");
            assert_eq!(frames[0].payload.as_ref().unwrap().stored(), payload);
            assert_eq!(frames[1].decode::<ToTarget>(), Ok(ToTarget::Bye));
            assert!(frames.iter().all(|frame| frame.channel == Channel::Lane(2)));
        }
    }

    #[test]
    fn payloads_need_a_lane_an_admission_and_a_credit() {
        let frame = block(&[1; 100]);
        let refuse = |channel, pool: PoolSlot| {
            let mut assembler = Assembler::new(channel, pool);
            assembler.spare().copy_from_slice(&frame.head[..8]);
            assembler.advance(8).map(|_| ()).unwrap_err().to_string()
        };
        assert!(refuse(Channel::Control, pool(1)).contains("control"));
        assert!(refuse(Channel::Lane(0), PoolSlot::default()).contains("admitted"));
        let spent = pool(1);
        let _held = spent.get().unwrap().take(1).unwrap();
        assert!(refuse(Channel::Lane(0), spent).contains("credit"));
    }

    #[test]
    fn random_bytes_give_errors_and_never_panic() {
        for seed in 0..5_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut assembler = Assembler::new(Channel::Lane(0), pool(1));
            for _ in 0..64 {
                let spare = assembler.spare();
                let count = random.usize(1..=spare.len());
                // Mostly small numbers, so that lengths are sometimes believable.
                spare[..count].fill_with(|| if random.bool() { 0 } else { random.u8(..4) });
                match assembler.advance(count) {
                    Ok(Some(frame)) => drop(frame.decode::<ToTarget>()),
                    Ok(None) => {}
                    Err(_) => break,
                }
            }
        }
    }
}
