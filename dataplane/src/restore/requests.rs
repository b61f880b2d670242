//! Which blocks are asked for, which came, which are still to come: the client's book, without I/O.
//!
//! In: what is already there, answers of the repository. Out: the next runs to ask for, in disk
//! order. Invariant: a block is asked for once a connection and accepted once; nothing is accepted
//! that was not asked for; a request ends only when every block of it was answered.
//!
//! Requests grow while they answer with zeros only, so that a sparse disk costs few round trips,
//! and shrink as soon as bytes come.

use std::collections::VecDeque;

use gantry_common::extents::{Run, RunSet};
use gantry_common::limits::NODE_CHILDREN;

/// Blocks of one request at the most; also what the server accepts.
pub(super) const READ_BLOCKS_MAX: u64 = 64 * NODE_CHILDREN;
/// Blocks of one request where bytes come.
const READ_BLOCKS_DENSE: u64 = NODE_CHILDREN;
/// Requests in flight.
const READS_MAX: usize = 4;

/// An answer that no honest repository gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum AnswerError {
    /// A block that is not asked for, or that came before.
    #[error("block {0} came unasked")]
    Unasked(u64),
    /// An end of a request that is not under way.
    #[error("answer to request {0}, which is not under way")]
    UnknownRequest(u64),
    /// An end of a request, with blocks that were never sent.
    #[error("request {request} ended with {missing} blocks unanswered")]
    Incomplete {
        /// Which.
        request: u64,
        /// How many.
        missing: u64,
    },
}

/// How far to ask ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Blocks of one request where bytes come.
    dense: u64,
    /// Blocks of one request at the most.
    max: u64,
}

impl Ahead {
    /// For destinations that take blocks in any order.
    pub(super) fn any_order() -> Ahead {
        Ahead { dense: READ_BLOCKS_DENSE, max: READ_BLOCKS_MAX }
    }

    /// For a destination that takes them in order, with room for `window` blocks.
    pub(super) fn in_order(window: u64) -> Ahead {
        let run = (window / 4).clamp(1, READ_BLOCKS_MAX);
        Ahead { dense: run, max: run }
    }
}

#[derive(Debug)]
struct Batch {
    number: u64,
    run: Run,
    missing: RunSet,
    arrived: u64,
    announced: Option<u64>,
}

/// The book of one connection.
#[derive(Debug)]
pub(super) struct Requests {
    gaps: VecDeque<Run>,
    batches: Vec<Batch>,
    next_number: u64,
    ahead: Ahead,
    run_blocks: u64,
    stopped: bool,
}

impl Requests {
    /// For a connection that is to bring `gaps`, in order.
    pub(super) fn new(gaps: Vec<Run>, ahead: Ahead) -> Requests {
        Requests {
            gaps: gaps.into(),
            batches: Vec::with_capacity(READS_MAX),
            next_number: 0,
            ahead,
            run_blocks: ahead.dense,
            stopped: false,
        }
    }

    /// The next request, if one may be sent: its number and blocks, none at or beyond `limit`.
    pub(super) fn next(&mut self, limit: u64) -> Option<(u64, Run)> {
        if self.stopped || self.batches.len() >= READS_MAX {
            return None;
        }
        let gap = self.gaps.front_mut()?;
        // Up to the next multiple, so that requests fall together with map leaves.
        let aligned = self.run_blocks - gap.first % self.run_blocks;
        let count = aligned.min(gap.count).min(limit.saturating_sub(gap.first));
        if count == 0 {
            return None;
        }
        let run = Run { first: gap.first, count };
        gap.first += count;
        gap.count -= count;
        if gap.count == 0 {
            self.gaps.pop_front();
        }
        let number = self.next_number;
        self.next_number += 1;
        let missing = RunSet::from_iter([run]);
        self.batches.push(Batch { number, run, missing, arrived: 0, announced: None });
        Some((number, run))
    }

    /// Asks for nothing more: what is under way still comes.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether nothing is under way and nothing will be asked for.
    pub(super) fn is_done(&self) -> bool {
        self.batches.is_empty() && (self.stopped || self.gaps.is_empty())
    }

    /// A block came with bytes.
    pub(super) fn block(&mut self, block: u64) -> Result<(), AnswerError> {
        let batch = self.batch_of(block)?;
        batch.missing.remove(Run { first: block, count: 1 });
        batch.arrived += 1;
        self.retire();
        Ok(())
    }

    /// A run came that reads as zeros.
    pub(super) fn zeros(&mut self, run: Run) -> Result<(), AnswerError> {
        let batch = self.batch_of(run.first)?;
        let asked = batch.missing.run_at(run.first).and_then(|asked| asked.end());
        match (asked, run.end()) {
            (Some(asked_end), Some(end)) if end <= asked_end => batch.missing.remove(run),
            (asked_end, _) => return Err(AnswerError::Unasked(asked_end.unwrap_or(run.first))),
        };
        Ok(())
    }

    /// The repository has answered a request, with `blocks` blocks; some may still be on their way.
    /// Once [`Requests::stop`] was called, blocks may be lacking.
    pub(super) fn answered(&mut self, number: u64, blocks: u64) -> Result<(), AnswerError> {
        let unknown = AnswerError::UnknownRequest(number);
        let under_way = |batch: &&mut Batch| batch.number == number && batch.announced.is_none();
        let batch = self.batches.iter_mut().find(under_way).ok_or(unknown)?;
        let to_come = blocks.checked_sub(batch.arrived).ok_or(unknown)?;
        let missing = batch.missing.blocks();
        if to_come > missing || (to_come < missing && !self.stopped) {
            let missing = missing.saturating_sub(to_come);
            return Err(AnswerError::Incomplete { request: number, missing });
        }
        batch.announced = Some(blocks);
        self.run_blocks = match blocks {
            0 => (self.run_blocks * 2).min(self.ahead.max),
            _ => self.ahead.dense,
        };
        self.retire();
        Ok(())
    }

    fn batch_of(&mut self, block: u64) -> Result<&mut Batch, AnswerError> {
        let holds = |batch: &&mut Batch| batch.missing.contains(block);
        self.batches.iter_mut().find(holds).ok_or(AnswerError::Unasked(block))
    }

    fn retire(&mut self) {
        self.batches.retain(|batch| batch.announced != Some(batch.arrived));
    }

    /// First block that is asked for and has not come, for messages.
    pub(super) fn oldest(&self) -> Option<Run> {
        self.batches.first().map(|batch| batch.run)
    }
}

#[cfg(test)]
mod tests {
    use super::{Ahead, AnswerError, READ_BLOCKS_DENSE, READ_BLOCKS_MAX, Requests};
    use gantry_common::extents::Run;

    fn run(first: u64, count: u64) -> Run {
        Run { first, count }
    }

    #[test]
    fn requests_follow_the_gaps_and_grow_on_zeros() {
        const LEAF: u64 = READ_BLOCKS_DENSE;
        let gaps = vec![run(10, 5), run(100, 100 * READ_BLOCKS_MAX)];
        let mut requests = Requests::new(gaps, Ahead::any_order());
        assert_eq!(requests.next(u64::MAX), Some((0, run(10, 5))));
        assert_eq!(requests.next(u64::MAX), Some((1, run(100, LEAF - 100))));
        requests.zeros(run(10, 5)).unwrap();
        requests.answered(0, 0).unwrap();
        assert_eq!(requests.next(u64::MAX), Some((2, run(LEAF, LEAF))));
        for _ in 0..10 {
            let (number, run) = requests.next(u64::MAX).unwrap();
            assert!(run.count <= READ_BLOCKS_MAX && run.end().unwrap().is_multiple_of(LEAF));
            requests.zeros(run).unwrap();
            requests.answered(number, 0).unwrap();
        }
        assert_eq!(requests.next(u64::MAX).unwrap().1.count, READ_BLOCKS_MAX);
        assert_eq!(requests.oldest(), Some(run(100, LEAF - 100)));
        assert!(requests.next(u64::MAX).is_some());
        assert_eq!(requests.next(u64::MAX), None, "enough is under way");
    }

    #[test]
    fn lanes_may_lag_behind_the_answer_and_run_ahead_of_it() {
        let mut requests = Requests::new(vec![run(0, 3)], Ahead::any_order());
        let (number, _) = requests.next(u64::MAX).unwrap();
        requests.block(2).unwrap();
        requests.zeros(run(0, 1)).unwrap();
        requests.answered(number, 2).unwrap();
        assert!(!requests.is_done());
        requests.block(1).unwrap();
        assert!(requests.is_done());
    }

    #[test]
    fn hostile_answers_are_refused() {
        let fresh = || {
            let mut requests = Requests::new(vec![run(0, 4)], Ahead::any_order());
            requests.next(u64::MAX).unwrap();
            requests
        };
        assert_eq!(fresh().block(4), Err(AnswerError::Unasked(4)));
        assert_eq!(fresh().zeros(run(2, 3)), Err(AnswerError::Unasked(4)));
        assert_eq!(fresh().zeros(run(3, u64::MAX)), Err(AnswerError::Unasked(4)));
        assert_eq!(fresh().answered(1, 0), Err(AnswerError::UnknownRequest(1)));
        let missing = AnswerError::Incomplete { request: 0, missing: 3 };
        assert_eq!(fresh().answered(0, 1), Err(missing));
        assert!(fresh().answered(0, 5).is_err());
        let mut twice = fresh();
        twice.block(1).unwrap();
        assert_eq!(twice.block(1), Err(AnswerError::Unasked(1)));
        assert!(twice.answered(0, 0).is_err());
        twice.answered(0, 4).unwrap();
        assert_eq!(twice.answered(0, 4), Err(AnswerError::UnknownRequest(0)));
    }

    #[test]
    fn a_window_bounds_what_is_asked_and_a_stop_ends_it() {
        let mut requests = Requests::new(vec![run(0, 100)], Ahead::in_order(32));
        let asked: Vec<Run> =
            std::iter::from_fn(|| requests.next(20)).map(|(_, run)| run).collect();
        assert_eq!(asked, [run(0, 8), run(8, 8), run(16, 4)]);
        requests.stop();
        assert_eq!(requests.next(100), None);
        requests.block(3).unwrap();
        requests.answered(0, 1).unwrap();
        for number in [1, 2] {
            requests.answered(number, 0).unwrap();
        }
        assert!(requests.is_done(), "after a stop blocks may be lacking");
    }
}
