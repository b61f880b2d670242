//! How many blocks the source may send: the target's receive buffers, handed out as credit.
//!
//! In: blocks received and given back by the store. Out: the credit total of a connection.
//!
//! Invariant: credit not yet used on the connection, plus blocks whose buffers the store holds (of
//! whichever connection), are `first` at the most.

use crate::session::violation::ProtocolViolation;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Credit {
    first: u64,
    in_store: u64,
    /// `Block` frames of this connection.
    received: u64,
    /// The total that the source was told on this connection.
    told: u64,
}

impl Credit {
    pub(super) fn new(first: u64) -> Credit {
        assert!(first > 0, "a receiver without buffers");
        Credit { first, in_store: 0, received: 0, told: 0 }
    }

    /// A new connection begins: nothing is received, nothing is told.
    pub(super) fn restart(&mut self) {
        (self.received, self.told) = (0, 0);
    }

    fn total(&self) -> u64 {
        self.received + self.first.saturating_sub(self.in_store)
    }

    /// The first credit of the connection.
    pub(super) fn tell_first(&mut self) -> u64 {
        self.told = self.total();
        self.told
    }

    /// A rise that is worth telling. Small ones wait: while less than the step is held back, the
    /// source has credit left, or the store holds buffers whose return will make the step full.
    pub(super) fn poll(&mut self) -> Option<u64> {
        let (total, step) = (self.total(), (self.first / 8).max(1));
        if total < self.told + step {
            return None;
        }
        self.told = total;
        Some(total)
    }

    /// A block came; refuses one beyond what was told.
    pub(super) fn receive(&mut self) -> Result<(), ProtocolViolation> {
        if self.received >= self.told {
            return Err(ProtocolViolation::OverCredit { total: self.told });
        }
        self.received += 1;
        Ok(())
    }

    /// The block's buffer goes to the store.
    pub(super) fn lend(&mut self) {
        self.in_store += 1;
    }

    /// The store gives a buffer back.
    pub(super) fn give_back(&mut self) {
        assert!(self.in_store > 0, "the store gave back a buffer that it did not have");
        self.in_store -= 1;
    }

    /// Buffers that the store holds.
    pub(super) fn in_store(&self) -> u64 {
        self.in_store
    }
}
