//! What the sender knows of one connection: its lanes, its credit, its numbering of queries.
//!
//! In: the target's credit, blocks that are sent. Out: the lane of each block. Gone with the
//! connection.

use crate::limits;
use crate::session::violation::ProtocolViolation;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Link {
    lanes: usize,
    next_lane: usize,
    is_welcomed: bool,
    credit_total: u64,
    blocks_sent: u64,
    next_batch: u64,
}

impl Link {
    pub(super) fn new(lanes: usize) -> Link {
        assert!((1..=limits::LANES_MAX).contains(&lanes), "{lanes} lanes");
        Link {
            lanes,
            next_lane: 0,
            is_welcomed: false,
            credit_total: 0,
            blocks_sent: 0,
            next_batch: 0,
        }
    }

    /// `Welcome` came, with the first credit.
    pub(super) fn welcome(&mut self, credit: u64) {
        (self.is_welcomed, self.credit_total) = (true, credit);
    }

    pub(super) fn is_welcomed(&self) -> bool {
        self.is_welcomed
    }

    /// A new credit total, which may not be lower than the last.
    pub(super) fn raise_credit(&mut self, total: u64) -> Result<(), ProtocolViolation> {
        if total < self.credit_total {
            return Err(ProtocolViolation::CreditFell { from: self.credit_total, to: total });
        }
        self.credit_total = total;
        Ok(())
    }

    /// Blocks that may be sent now.
    pub(super) fn credit_left(&self) -> u64 {
        self.credit_total.saturating_sub(self.blocks_sent)
    }

    /// Uses a credit and chooses the block's lane: a disk keeps to its own, but one that is alone
    /// uses them all in turn.
    pub(super) fn send_block(&mut self, disk: usize, is_alone: bool) -> usize {
        self.blocks_sent += 1;
        if !is_alone {
            return disk % self.lanes;
        }
        self.next_lane = (self.next_lane + 1) % self.lanes;
        self.next_lane
    }

    /// The number of the next query; whoever uses it counts it up.
    pub(super) fn next_batch(&mut self) -> &mut u64 {
        &mut self.next_batch
    }
}
