//! What of one disk's task waits in the sender: for an answer, for credit, or for its turn.
//!
//! In: the pipeline's reports. Out: control messages, blocks. What is asked and not answered when
//! a connection is lost is asked again on the next, before anything newer.
//!
//! Invariant: a hashed block is in `hashed` or in one query; zero and unchanged marks are disjoint.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::extents::{Run, RunSet};
use crate::ids::BlockId;
use crate::limits;
use crate::session::violation::ProtocolViolation;
use crate::wire::{BlockHead, Mark, MarkKind, TaskNumber, ToTarget};

/// Unanswered queries below which even a single id is asked for at once; with more in flight, ids
/// are collected until a query is full.
const QUERIES_EAGER: usize = 4;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Queues<P> {
    task: TaskNumber,
    zeros: RunSet,
    unchanged: RunSet,
    leaves_wanted: VecDeque<u64>,
    leaves_asked: BTreeSet<u64>,
    hashed: VecDeque<(u64, BlockId)>,
    queries: BTreeMap<u64, Vec<(u64, BlockId)>>,
    ready: VecDeque<(u64, BlockHead, P)>,
}

impl<P> Queues<P> {
    pub(super) fn new(task: TaskNumber) -> Queues<P> {
        Queues {
            task,
            zeros: RunSet::new(),
            unchanged: RunSet::new(),
            leaves_wanted: VecDeque::new(),
            leaves_asked: BTreeSet::new(),
            hashed: VecDeque::new(),
            queries: BTreeMap::new(),
            ready: VecDeque::new(),
        }
    }

    pub(super) fn handle_disconnected(&mut self) {
        let asked = std::mem::take(&mut self.queries).into_values().flatten();
        self.hashed = asked.chain(self.hashed.drain(..)).collect();
        let asked = std::mem::take(&mut self.leaves_asked).into_iter();
        self.leaves_wanted = asked.chain(self.leaves_wanted.drain(..)).collect();
    }

    pub(super) fn push_mark(&mut self, Mark { run, kind }: Mark) {
        let (mine, other) = match kind {
            MarkKind::Zero => (&mut self.zeros, &mut self.unchanged),
            MarkKind::Unchanged => (&mut self.unchanged, &mut self.zeros),
        };
        mine.insert(run);
        other.remove(run);
    }

    pub(super) fn push_leaf(&mut self, leaf: u64) {
        if !self.leaves_wanted.contains(&leaf) && !self.leaves_asked.contains(&leaf) {
            self.leaves_wanted.push_back(leaf);
        }
    }

    pub(super) fn push_hashed(&mut self, block: u64, id: BlockId) {
        self.hashed.push_back((block, id));
    }

    pub(super) fn push_ready(&mut self, block: u64, head: BlockHead, payload: P) {
        self.ready.push_back((block, head, payload));
    }

    /// The base's leaf was answered; refuses one that was not asked for.
    pub(super) fn answer_leaf(&mut self, leaf: u64) -> Result<(), ProtocolViolation> {
        let (message, task) = ("BaseIds", self.task);
        let not_asked = ProtocolViolation::NotAsked { message, task, number: leaf };
        if self.leaves_asked.remove(&leaf) { Ok(()) } else { Err(not_asked) }
    }

    /// A query was answered with this many entries: its block numbers.
    pub(super) fn answer_query(
        &mut self,
        batch: u64,
        entries: usize,
    ) -> Result<impl Iterator<Item = u64> + use<P>, ProtocolViolation> {
        let (message, task) = ("Known", self.task);
        let not_asked = ProtocolViolation::NotAsked { message, task, number: batch };
        let expected = self.queries.get(&batch).ok_or(not_asked)?.len() as u64;
        if expected != entries as u64 {
            let found = entries as u64;
            return Err(ProtocolViolation::WrongCount { message, expected, found });
        }
        let asked = self.queries.remove(&batch).unwrap_or_default();
        Ok(asked.into_iter().map(|(block, _)| block))
    }

    /// The next request for a leaf of the base.
    pub(super) fn poll_need_base(&mut self) -> Option<ToTarget> {
        if self.leaves_asked.len() >= limits::BASE_LEAVES_IN_FLIGHT_MAX {
            return None;
        }
        let leaf = self.leaves_wanted.pop_front()?;
        self.leaves_asked.insert(leaf);
        Some(ToTarget::NeedBase { task: self.task, leaf })
    }

    /// The next query, numbered from `next_batch`: at once while few are in flight, else when full.
    pub(super) fn poll_query(&mut self, next_batch: &mut u64) -> Option<ToTarget> {
        let is_full = self.hashed.len() >= limits::QUERY_IDS_MAX;
        let in_flight_max = if is_full { limits::QUERIES_IN_FLIGHT_MAX } else { QUERIES_EAGER };
        if self.hashed.is_empty() || self.queries.len() >= in_flight_max {
            return None;
        }
        let count = self.hashed.len().min(limits::QUERY_IDS_MAX);
        let blocks: Vec<_> = self.hashed.drain(..count).collect();
        let batch = *next_batch;
        *next_batch += 1;
        self.queries.insert(batch, blocks.clone());
        Some(ToTarget::Query { task: self.task, batch, blocks })
    }

    /// The next page of marks; empty if there is none.
    pub(super) fn take_marks(&mut self) -> Vec<Mark> {
        let zeros = self.zeros.iter().map(|run| Mark { run, kind: MarkKind::Zero });
        let unchanged = self.unchanged.iter().map(|run| Mark { run, kind: MarkKind::Unchanged });
        let marks: Vec<Mark> = zeros.chain(unchanged).take(limits::RUNS_MAX).collect();
        for &Mark { run, kind } in &marks {
            match kind {
                MarkKind::Zero => self.zeros.remove(run),
                MarkKind::Unchanged => self.unchanged.remove(run),
            }
        }
        marks
    }

    /// The next block that waits for credit.
    pub(super) fn pop_ready(&mut self) -> Option<(u64, BlockHead, P)> {
        self.ready.pop_front()
    }

    /// Whether nothing waits, for an answer or to be sent.
    pub(super) fn is_quiet(&self) -> bool {
        self.marks_waiting() == 0
            && self.leaves_wanted.is_empty()
            && self.leaves_asked.is_empty()
            && self.awaiting_answer() == 0
            && self.ready.is_empty()
    }

    /// Separate runs of marks.
    pub(super) fn marks_waiting(&self) -> usize {
        self.zeros.run_count() + self.unchanged.run_count()
    }

    /// Hashed blocks, asked about or not yet.
    pub(super) fn awaiting_answer(&self) -> usize {
        self.hashed.len() + self.queries.values().map(Vec::len).sum::<usize>()
    }

    /// Blocks that wait for credit or a connection.
    pub(super) fn awaiting_credit(&self) -> usize {
        self.ready.len()
    }
}

/// The blocks of `run` that are in `set`, as runs.
pub(super) fn overlap(set: &RunSet, run: Run) -> Vec<Run> {
    let end = run.first + run.count;
    let mut parts = Vec::new();
    let mut at = run.first;
    while at < end {
        let Some(found) = set.run_at(at).or_else(|| set.next_run(at)) else { break };
        let (first, found_end) = (found.first.max(at), found.first + found.count);
        if first < end {
            parts.push(Run { first, count: found_end.min(end) - first });
        }
        at = found_end;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_the_intersection() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut run = || Run { first: random.u64(0..60), count: random.u64(1..9) };
            let set: RunSet = (0..8).map(|_| run()).collect();
            let asked = run();
            let found: RunSet = overlap(&set, asked).into_iter().collect();
            let is_asked = |block| block >= asked.first && block < asked.first + asked.count;
            for block in 0..80 {
                let expected = set.contains(block) && is_asked(block);
                assert_eq!(found.contains(block), expected, "seed {seed}, block {block}");
            }
        }
    }

    #[test]
    fn queries_flow_without_waiting_for_full_ones() {
        let mut queues: Queues<()> = Queues::new(0);
        let mut batch = 0;
        for block in 0..10 {
            queues.push_hashed(block, BlockId([1; 32]));
            let is_sent = queues.poll_query(&mut batch).is_some();
            assert_eq!(is_sent, block < QUERIES_EAGER as u64, "block {block}");
        }
        assert_eq!(queues.answer_query(0, 1).unwrap().collect::<Vec<_>>(), [0]);
        assert!(matches!(
            queues.poll_query(&mut batch),
            Some(ToTarget::Query { blocks, .. }) if blocks.len() == 6
        ));
        for block in 0..limits::QUERY_IDS_MAX as u64 {
            queues.push_hashed(block, BlockId([1; 32]));
        }
        assert!(queues.poll_query(&mut batch).is_some(), "a full query does not wait");
    }
}
