//! A connection: a control stream each way and lanes, each in order, with no order between them.

use std::collections::VecDeque;

use gantry_common::session::sender::{Channel, Transmit};
use gantry_common::wire::{self, FRAME_PREFIX_BYTES, Message, ToSource, ToTarget};

use crate::images::{Content, Payload};

/// A frame on its way to the target.
pub type Frame = (ToTarget, Option<Content>);

/// What is in flight on one connection.
pub struct Connection {
    /// `streams[0]` is control, the lanes follow.
    streams: Vec<VecDeque<Frame>>,
    back: VecDeque<ToSource>,
    /// Whether the target has taken the `Hello`.
    pub is_accepted: bool,
    /// Whether the target has crashed and the source has not noticed: frames go nowhere.
    pub is_void: bool,
    encodes: bool,
    last_marks: Option<Frame>,
}

impl Connection {
    /// A fresh connection.
    pub fn new(lanes: usize, encodes: bool) -> Connection {
        let streams = (0..=lanes).map(|_| VecDeque::new()).collect();
        Connection {
            streams,
            back: VecDeque::new(),
            is_accepted: false,
            is_void: false,
            encodes,
            last_marks: None,
        }
    }

    /// Puts a frame on its stream; the source's buffer is free then.
    pub fn send(&mut self, transmit: Transmit<ToTarget, Payload>) {
        let Transmit { channel, message, payload } = transmit;
        let message = self.through_wire(message, payload.is_some());
        let stream = match channel {
            Channel::Control => 0,
            Channel::Lane(lane) => lane + 1,
        };
        if matches!(message, ToTarget::Marks { .. }) {
            self.last_marks = Some((message.clone(), None));
        }
        let is_block = matches!(message, ToTarget::Block { .. });
        assert_eq!(is_block, payload.is_some(), "only blocks have payloads");
        assert_eq!(is_block, stream > 0, "only blocks travel on lanes");
        self.streams[stream].push_back((message, payload.as_ref().map(|payload| payload.content)));
    }

    /// Delivers the newest marks a second time, if there are any.
    pub fn repeat_marks(&mut self) -> bool {
        self.streams[0].extend(self.last_marks.clone());
        self.last_marks.is_some()
    }

    /// Loses the newest control frame.
    pub fn lose_last_control(&mut self) {
        self.streams[0].pop_back();
    }

    /// Puts a frame of the target on its stream.
    pub fn send_back(&mut self, message: ToSource) {
        let message = self.through_wire(message, false);
        self.back.push_back(message);
    }

    fn through_wire<M: Message>(&self, message: M, has_payload: bool) -> M {
        let payload_len = u32::from(has_payload);
        assert_eq!(
            message.check(payload_len),
            Ok(()),
            "a machine made a message that breaks a rule"
        );
        if !self.encodes {
            return message;
        }
        let frame = wire::encode(&message, payload_len as usize);
        wire::decode(&frame[FRAME_PREFIX_BYTES..], payload_len).expect("our own frames decode")
    }

    /// The next frame of a random stream.
    pub fn deliver(&mut self, random: &mut fastrand::Rng) -> Option<Frame> {
        let filled: Vec<usize> =
            (0..self.streams.len()).filter(|&stream| !self.streams[stream].is_empty()).collect();
        self.streams[random.choice(filled)?].pop_front()
    }

    /// Whether nothing is in flight to the target.
    pub fn is_empty(&self) -> bool {
        self.streams.iter().all(VecDeque::is_empty)
    }

    /// The next frame for the source.
    pub fn deliver_back(&mut self) -> Option<ToSource> {
        self.back.pop_front()
    }

    /// The connection breaks: everything to the source is lost, and what is in flight to the target
    /// from some point on, in each stream on its own.
    pub fn break_off(&mut self, random: &mut fastrand::Rng) {
        self.back.clear();
        let all = random.bool();
        for stream in &mut self.streams {
            stream.truncate(if all { 0 } else { random.usize(0..=stream.len()) });
        }
    }
}
