//! A model of the source pipeline: stages that take blocks in ascending order, several at once,
//! and finish them in any order.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use gantry_common::extents::Run;
use gantry_common::ids::BlockId;
use gantry_common::limits::NODE_CHILDREN;
use gantry_common::session::source_port::{SourceCommand, SourceReport};
use gantry_common::wire::{BaseAnswer, Mark, MarkKind, TaskNumber, TaskTotals};

use crate::images::{Content, Image, Payload, blocks_of};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Read,
    AwaitAnswer,
    Compress,
}

struct Task {
    image: Image,
    is_started: bool,
    has_base: bool,
    leaves: BTreeMap<u64, Vec<BlockId>>,
    leaves_asked: BTreeSet<u64>,
    todo: BTreeSet<u64>,
    working: Vec<(u64, Stage)>,
    totals_due: bool,
    /// Reports and redone blocks so far: tells old totals from new ones.
    worked: u64,
}

/// The pipeline of one source mover.
pub struct Pipeline {
    tasks: Vec<Task>,
    window: usize,
    in_use: Rc<Cell<u64>>,
    /// Blocks that were done again.
    pub redone: u64,
    /// Blocks that the target knew.
    pub known: u64,
    /// Blocks marked as unchanged.
    pub unchanged: u64,
}

impl Pipeline {
    /// A pipeline over these disks with `window` blocks in work at once.
    pub fn new(images: &[Image], window: usize) -> Pipeline {
        let task = |image: &Image| Task {
            image: image.clone(),
            is_started: false,
            has_base: false,
            leaves: BTreeMap::new(),
            leaves_asked: BTreeSet::new(),
            todo: BTreeSet::new(),
            working: Vec::new(),
            totals_due: false,
            worked: 0,
        };
        let tasks = images.iter().map(task).collect();
        Pipeline { tasks, window, in_use: Rc::default(), redone: 0, known: 0, unchanged: 0 }
    }

    /// A command of the sender. `Sealed`, `Finished` and `Failed` are the world's to see.
    pub fn handle(&mut self, command: SourceCommand) -> Result<(), String> {
        match command {
            SourceCommand::Start { task, base, durable, .. } => {
                let task = &mut self.tasks[usize::from(task)];
                if task.is_started {
                    return Err("a second Start of one disk".into());
                }
                task.is_started = true;
                task.totals_due = true;
                task.has_base = matches!(base, BaseAnswer::Usable { .. });
                task.todo = (0..task.image.blocks.len() as u64).collect();
                for block in blocks_of(&durable) {
                    task.todo.remove(&block);
                }
            }
            SourceCommand::Base { task, leaf, ids } => {
                let task = &mut self.tasks[usize::from(task)];
                if !task.leaves_asked.remove(&leaf) {
                    return Err(format!("leaf {leaf} came without being asked for"));
                }
                task.leaves.insert(leaf, ids);
            }
            SourceCommand::Known { task, block } => {
                self.tasks[usize::from(task)].answered(block, None)?;
                self.known += 1;
            }
            SourceCommand::Wanted { task, block } => {
                self.tasks[usize::from(task)].answered(block, Some(Stage::Compress))?;
            }
            SourceCommand::Redo { task, runs } => {
                let task = &mut self.tasks[usize::from(task)];
                for block in blocks_of(&runs) {
                    let is_inside = task.working.iter().any(|&(working, _)| working == block);
                    if is_inside || !task.todo.insert(block) {
                        return Err(format!("Redo of block {block}, which is in the pipeline"));
                    }
                    self.redone += 1;
                    task.worked += 1;
                }
                task.totals_due = true;
            }
            SourceCommand::Sealed { .. }
            | SourceCommand::Finished { .. }
            | SourceCommand::Held
            | SourceCommand::Failed { .. } => {}
        }
        Ok(())
    }

    /// A block in a buffer of the pipeline's pool.
    pub fn buffer(&self, content: Content) -> Payload {
        Payload::new(content, &self.in_use)
    }

    /// What the totals of a disk are now.
    pub fn newest_totals(&self, task: TaskNumber) -> TaskTotals {
        self.tasks[usize::from(task)].newest_totals()
    }

    /// Does one piece of work; none if everything waits.
    pub fn work(&mut self, random: &mut fastrand::Rng) -> Option<SourceReport<Payload>> {
        let first = random.usize(0..self.tasks.len());
        for turn in 0..self.tasks.len() {
            let number = (first + turn) % self.tasks.len();
            let working: usize = self.tasks.iter().map(|task| task.working.len()).sum();
            let has_room = working + (self.in_use.get() as usize) < self.window * 2;
            let task = &mut self.tasks[number];
            let number = number as TaskNumber;
            if has_room
                && random.u8(0..4) > 0
                && let Some(report) = task.take(number, random)
            {
                task.worked += 1;
                return Some(report);
            }
            let mut report = task.advance(number, random, &self.in_use);
            if report.is_none() && has_room {
                report = task.take(number, random);
                report = report.or_else(|| task.advance(number, random, &self.in_use));
            }
            if let Some(report) = report {
                task.worked += 1;
                if let SourceReport::Marked { mark, .. } = &report
                    && mark.kind == MarkKind::Unchanged
                {
                    self.unchanged += mark.run.count;
                }
                return Some(report);
            }
            if let Some(totals) = task.totals() {
                return Some(SourceReport::Totals { task: number, totals, mask: Vec::new() });
            }
        }
        None
    }
}

impl Task {
    fn answered(&mut self, block: u64, next: Option<Stage>) -> Result<(), String> {
        let waiting = self.working.iter().position(|&at| at == (block, Stage::AwaitAnswer));
        let at =
            waiting.ok_or_else(|| format!("answer for block {block}, which waits for none"))?;
        match next {
            Some(stage) => self.working[at].1 = stage,
            None => {
                self.working.swap_remove(at);
            }
        }
        Ok(())
    }

    /// Takes the next blocks in hand; holes are reported straight away.
    fn take(
        &mut self,
        task: TaskNumber,
        random: &mut fastrand::Rng,
    ) -> Option<SourceReport<Payload>> {
        let first = *self.todo.first()?;
        let is_zero = |block: u64| self.image.blocks[block as usize] == 0;
        if is_zero(first) && random.bool() {
            let mut count = 0;
            while self.todo.contains(&(first + count)) && is_zero(first + count) {
                self.todo.remove(&(first + count));
                count += 1;
            }
            self.totals_due = true;
            let mark = Mark { run: Run { first, count }, kind: MarkKind::Zero };
            return Some(SourceReport::Marked { task, mark });
        }
        self.todo.remove(&first);
        self.working.push((first, Stage::Read));
        self.ask_for_base(task, first)
    }

    fn ask_for_base(&mut self, task: TaskNumber, block: u64) -> Option<SourceReport<Payload>> {
        let leaf = block / NODE_CHILDREN;
        let is_new = self.has_base && !self.leaves.contains_key(&leaf);
        (is_new && self.leaves_asked.insert(leaf)).then_some(SourceReport::NeedBase { task, leaf })
    }

    /// Finishes a stage of a random block in hand.
    fn advance(
        &mut self,
        task: TaskNumber,
        random: &mut fastrand::Rng,
        in_use: &Rc<Cell<u64>>,
    ) -> Option<SourceReport<Payload>> {
        let can_move = |&at: &usize| match self.working[at] {
            (block, Stage::Read) => {
                !self.has_base || self.leaves.contains_key(&(block / NODE_CHILDREN))
            }
            (_, stage) => stage == Stage::Compress,
        };
        let at = random.choice((0..self.working.len()).filter(can_move).collect::<Vec<_>>())?;
        let (block, stage) = self.working[at];
        self.totals_due = true;
        if stage == Stage::Compress {
            self.working.swap_remove(at);
            let payload = Payload::new(self.image.blocks[block as usize], in_use);
            let head = self.image.head(block);
            return Some(SourceReport::Ready { task, block, head, payload });
        }
        if let Some(kind) = self.mark_of(block) {
            self.working.swap_remove(at);
            let mark = Mark { run: Run { first: block, count: 1 }, kind };
            return Some(SourceReport::Marked { task, mark });
        }
        self.working[at].1 = Stage::AwaitAnswer;
        Some(SourceReport::Hashed { task, block, id: self.image.id(block) })
    }

    fn mark_of(&self, block: u64) -> Option<MarkKind> {
        if self.image.blocks[block as usize] == 0 {
            return Some(MarkKind::Zero);
        }
        let leaf = self.leaves.get(&(block / NODE_CHILDREN))?;
        let base = leaf.get((block % NODE_CHILDREN) as usize)?;
        (*base == self.image.id(block)).then_some(MarkKind::Unchanged)
    }

    fn totals(&mut self) -> Option<TaskTotals> {
        let is_due = self.totals_due && self.todo.is_empty() && self.working.is_empty();
        self.totals_due &= !is_due;
        is_due.then(|| self.newest_totals())
    }

    fn newest_totals(&self) -> TaskTotals {
        let (bytes_read, bytes_sent_raw) = (self.image.size_bytes, self.worked);
        TaskTotals { bytes_read, bytes_sent_raw, ..TaskTotals::default() }
    }
}
