//! The sender: the source mover's half of a backup session, as a machine without I/O.
//!
//! In: the connection coming and going, the target's frames, the pipeline's reports. Out: frames
//! for the target (control or a lane), commands for the pipeline. One sender lives as long as its
//! session, over any number of connections.
//!
//! ```text
//!           handle_connected            Welcome
//!   Down ------------------> Greeting ----------> Open        each task, on each connection:
//!    ^                          |                  |            Closed --OpenTask--> Opening
//!    +---- handle_disconnected -+------------------+            --last TaskOpened--> Open
//!                                                               --all accounted: Seal--> Sealed
//!   Committed, Refused, Failed, or the pipeline's own failure end the session in any state.
//! ```
//!
//! Invariant: a block of a started task is always in exactly one place: inside the pipeline, in
//! one of the task's queues, or accounted for. What was accounted for and is not durable after a
//! reconnection goes back into the pipeline as `Redo`, so no block is ever forgotten.
//!
//! Bounds: blocks that wait for an answer or for credit hold buffers of the pipeline's pools, which
//! bound them (`limits::READ_POOL_BYTES`, `SEND_POOL_BYTES`). Marks hold no buffer: the driver
//! stops taking reports while [`Sender::accepts_reports`] is false.

mod link;
mod queues;
mod task;

use std::collections::VecDeque;

use self::link::Link;
use self::task::Task;
use super::bounded;
use super::source_port::{SourceCommand, SourceReport};
use super::violation::{ProtocolViolation, out_of_turn};
use crate::failure::Failure;
use crate::ids::{IdKey, PointId, RepositoryId, SessionId};
use crate::limits;
use crate::wire::{
    Intent, PROTOCOL, SessionKind, SessionOffer, TaskNumber, TicketBytes, ToSource, ToTarget,
};

/// Which stream of the connection a frame travels on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The control stream.
    Control,
    /// The data lane of this number, `0..lanes`.
    Lane(usize),
}

/// A frame to be put on the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct Transmit<M, P> {
    /// Where.
    pub channel: Channel,
    /// The message.
    pub message: M,
    /// Its payload; only blocks have one.
    pub payload: Option<P>,
}

/// How far one disk is, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskProgress {
    /// Blocks of the disk.
    pub blocks: u64,
    /// Those whose fate is on the wire or durable.
    pub accounted: u64,
    /// Those that survive any crash of the target.
    pub durable: u64,
    /// Those that wait for an answer whether the target knows them.
    pub awaiting_answer: u64,
    /// Those that wait for credit.
    pub awaiting_credit: u64,
    /// Whether the target has said that the disk is complete.
    pub sealed: bool,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Committed,
    Held,
    Failed,
}

/// The sender of one session; see the module's text. `P` is the payload type.
#[derive(Debug)]
pub struct Sender<P> {
    session: SessionId,
    offer: SessionOffer,
    kind: SessionKind,
    software: String,
    ticket: Option<TicketBytes>,
    repository: Option<(RepositoryId, IdKey)>,
    tasks: Vec<Task<P>>,
    link: Option<Link>,
    outbox: VecDeque<ToTarget>,
    commands: VecDeque<SourceCommand>,
    outcome: Option<Outcome>,
    next_task: usize,
}

impl<P> Sender<P> {
    /// A session that has not connected yet. `ticket`, if any, is shown at the first connection;
    /// the newest one that the target issues replaces it.
    ///
    /// # Panics
    /// If the offer has more disks than `limits::SESSION_DISKS_MAX`: a bug of the caller.
    pub fn new(
        session: SessionId,
        offer: SessionOffer,
        ticket: Option<TicketBytes>,
        software: String,
    ) -> Sender<P> {
        assert!(offer.disks.len() <= limits::SESSION_DISKS_MAX, "{} disks", offer.disks.len());
        let tasks = offer.disks.iter().enumerate();
        let tasks = tasks.map(|(number, disk)| Task::new(number as TaskNumber, disk)).collect();
        Sender {
            session,
            offer,
            kind: SessionKind::Backup,
            software,
            ticket,
            repository: None,
            tasks,
            link: None,
            outbox: VecDeque::new(),
            commands: VecDeque::new(),
            outcome: None,
            next_task: 0,
        }
    }

    /// Makes it a session of this kind.
    pub fn of_kind(self, kind: SessionKind) -> Sender<P> {
        Sender { kind, ..self }
    }

    /// A connection to the target stands, with this many data lanes. One that is still thought to
    /// stand is given up first.
    ///
    /// # Panics
    /// If `lanes` is 0 or more than `limits::LANES_MAX`: a bug of the caller.
    pub fn handle_connected(&mut self, lanes: usize) {
        self.handle_disconnected();
        if self.outcome.is_some() {
            return;
        }
        self.link = Some(Link::new(lanes));
        self.outbox.push_back(ToTarget::Hello {
            protocol: PROTOCOL,
            software: self.software.clone(),
            session: self.session,
            intent: Intent::of_session(self.kind, self.offer.clone()),
            ticket: self.ticket.clone(),
        });
    }

    /// The connection is gone, with everything in flight on it. Harmless if there was none.
    pub fn handle_disconnected(&mut self) {
        self.link = None;
        self.outbox.clear();
        self.tasks.iter_mut().for_each(Task::handle_disconnected);
    }

    /// A frame of the target came.
    ///
    /// # Errors
    /// [`ProtocolViolation`]: the driver closes the connection. For the machine it is lost already,
    /// as by [`Sender::handle_disconnected`].
    pub fn handle_frame(&mut self, frame: ToSource) -> Result<(), ProtocolViolation> {
        let result = self.take_frame(frame);
        if result.is_err() {
            self.handle_disconnected();
        }
        result
    }

    fn take_frame(&mut self, frame: ToSource) -> Result<(), ProtocolViolation> {
        let Some(link) = &mut self.link else {
            return out_of_turn("a frame", "without connection");
        };
        if self.outcome.is_some() {
            return Ok(());
        }
        if link.is_welcomed() {
            self.handle_session_frame(frame)
        } else {
            self.handle_greeting(frame)
        }
    }

    fn handle_greeting(&mut self, frame: ToSource) -> Result<(), ProtocolViolation> {
        match frame {
            ToSource::Welcome { repository, id_key, ticket, credit } => {
                if self.repository.is_some_and(|first| first != (repository, id_key)) {
                    return Err(ProtocolViolation::Changed { what: "repository" });
                }
                self.repository = Some((repository, id_key));
                self.ticket = ticket.or(self.ticket.take());
                let link = self.link.as_mut().expect("take_frame saw the connection");
                link.welcome(credit);
                self.outbox.extend(self.tasks.iter_mut().map(Task::open));
                Ok(())
            }
            ToSource::Committed { point, deleted } => self.finish(point, deleted),
            ToSource::Refused { failure } | ToSource::Failed { task: None, failure } => {
                self.fail(None, failure);
                Ok(())
            }
            _ => out_of_turn("a frame of an open session", "before Welcome"),
        }
    }

    fn handle_session_frame(&mut self, frame: ToSource) -> Result<(), ProtocolViolation> {
        match frame {
            ToSource::TaskOpened { task, base, durable, more } => {
                let (_, id_key) = self.repository.expect("set by Welcome");
                let open = task_of(&mut self.tasks, "TaskOpened", task)?;
                let failure =
                    open.handle_opened(id_key, base, durable, more, &mut self.commands)?;
                if let Some(failure) = failure {
                    self.give_up(task, failure);
                }
                Ok(())
            }
            ToSource::BaseIds { task, leaf, ids } => {
                let task = task_of(&mut self.tasks, "BaseIds", task)?;
                task.handle_base_ids(leaf, ids, &mut self.commands)
            }
            ToSource::Known { task, batch, known } => {
                let task = task_of(&mut self.tasks, "Known", task)?;
                task.handle_known(batch, &known, &mut self.commands)
            }
            ToSource::Credit { total } => {
                self.link.as_mut().expect("take_frame saw the connection").raise_credit(total)
            }
            ToSource::Durable { task, runs } => {
                task_of(&mut self.tasks, "Durable", task)?.handle_durable(&runs)
            }
            ToSource::Sealed { task, bytes_stored } => {
                let task = task_of(&mut self.tasks, "Sealed", task)?;
                task.handle_sealed(bytes_stored, &mut self.commands)?;
                if self.kind == SessionKind::Part && self.tasks.iter().all(Task::is_sealed) {
                    self.commands.push_back(SourceCommand::Held);
                    self.end(Outcome::Held);
                }
                Ok(())
            }
            ToSource::Committed { point, deleted } => {
                if !self.tasks.iter().all(Task::was_seal_sent) {
                    return out_of_turn("Committed", "before every disk was sealed");
                }
                self.finish(point, deleted)
            }
            ToSource::Failed { task, failure } => {
                if let Some(task) = task {
                    task_of(&mut self.tasks, "Failed", task)?;
                }
                self.fail(task, failure);
                Ok(())
            }
            ToSource::Welcome { .. } => out_of_turn("Welcome", "twice"),
            ToSource::Refused { .. } => out_of_turn("Refused", "after Welcome"),
            ToSource::PointOpened { .. }
            | ToSource::Block { .. }
            | ToSource::Zeros { .. }
            | ToSource::ReadDone { .. }
            | ToSource::Progress { .. }
            | ToSource::Report { .. }
            | ToSource::Points { .. } => out_of_turn("a frame of a restore", "in a backup"),
        }
    }

    /// The pipeline did a piece of work. Reports of a session that is over are dropped.
    ///
    /// # Panics
    /// If the report names a disk or block that is not there, or comes before the task's `Start`:
    /// a bug of the pipeline.
    pub fn handle_report(&mut self, report: SourceReport<P>) {
        if self.outcome.is_some() {
            return;
        }
        let task = match &report {
            SourceReport::Marked { task, .. }
            | SourceReport::NeedBase { task, .. }
            | SourceReport::Hashed { task, .. }
            | SourceReport::Ready { task, .. }
            | SourceReport::Totals { task, .. } => *task,
            SourceReport::Failed { task, failure } => {
                return self.give_up(*task, failure.clone());
            }
        };
        let disks = self.tasks.len();
        let found = self.tasks.get_mut(usize::from(task));
        let found = found.unwrap_or_else(|| panic!("report of disk {task} of {disks}"));
        found.handle_report(report, &mut self.commands);
    }

    /// Whether the driver should take further reports from the pipeline now. False only while
    /// many marks wait for a connection; they leave with the next [`Sender::poll_transmit`]s.
    pub fn accepts_reports(&self) -> bool {
        self.tasks.iter().map(Task::marks_waiting).sum::<usize>() < limits::COVERAGE_RUNS_MAX / 2
    }

    /// The next frame for the target, if any. What it returns counts as put on the wire.
    pub fn poll_transmit(&mut self) -> Option<Transmit<ToTarget, P>> {
        let link = self.link.as_mut()?;
        let control = |message| Transmit { channel: Channel::Control, message, payload: None };
        if let Some(message) = self.outbox.pop_front() {
            return Some(control(message));
        }
        if self.outcome.is_some() {
            return None;
        }
        let batch = link.next_batch();
        let message = self.tasks.iter_mut().find_map(|task| task.poll_control(batch));
        message.map(control).or_else(|| self.poll_block())
    }

    fn poll_block(&mut self) -> Option<Transmit<ToTarget, P>> {
        let link = self.link.as_mut()?;
        if link.credit_left() == 0 {
            return None;
        }
        let disks = self.tasks.len();
        let turns = (0..disks).map(|turn| (self.next_task + turn) % disks);
        let mut turns = turns.filter(|&number| self.tasks[number].has_block());
        let number = turns.next()?;
        let (message, payload) = self.tasks[number].pop_block()?;
        self.next_task = (number + 1) % disks;
        let is_alone = self.tasks.iter().filter(|task| !task.is_sealed()).count() == 1;
        let lane = link.send_block(number, is_alone);
        Some(Transmit { channel: Channel::Lane(lane), message, payload: Some(payload) })
    }

    /// The next command for the pipeline, if any.
    pub fn poll_command(&mut self) -> Option<SourceCommand> {
        self.commands.pop_front()
    }

    /// Whether the session is over and everything that had to be said has been polled. The driver
    /// then lets the transport deliver it and closes the connection.
    pub fn is_finished(&self) -> bool {
        self.outcome.is_some() && self.outbox.is_empty() && self.commands.is_empty()
    }

    /// Whether the session ended with a committed point.
    pub fn is_committed(&self) -> bool {
        self.outcome == Some(Outcome::Committed)
    }

    /// `Block` frames that may be sent now.
    pub fn credit_left(&self) -> u64 {
        self.link.as_ref().map_or(0, Link::credit_left)
    }

    /// Blocks of all disks that are ready and wait for credit (or for a connection).
    pub fn blocks_waiting(&self) -> u64 {
        self.tasks.iter().map(|task| task.progress().awaiting_credit).sum()
    }

    /// How far each disk is, in the offer's order.
    pub fn progress(&self) -> impl Iterator<Item = TaskProgress> + '_ {
        self.tasks.iter().map(Task::progress)
    }

    fn finish(&mut self, point: PointId, deleted: Vec<PointId>) -> Result<(), ProtocolViolation> {
        if self.kind == SessionKind::Part {
            return out_of_turn("Committed", "in a part, which commits nothing");
        }
        self.commands.push_back(SourceCommand::Finished { point, deleted });
        self.end(Outcome::Committed);
        Ok(())
    }

    fn fail(&mut self, task: Option<TaskNumber>, failure: Failure) {
        self.commands.push_back(SourceCommand::Failed { task, failure });
        self.end(Outcome::Failed);
    }

    /// Our side cannot go on with a disk: tells the target, where it listens, and the pipeline.
    fn give_up(&mut self, task: TaskNumber, failure: Failure) {
        self.fail(Some(task), failure.clone());
        if self.link.as_ref().is_some_and(|link| link.is_welcomed()) {
            self.outbox.push_front(ToTarget::GiveUp { task, failure: bounded(failure) });
        }
    }

    /// Drops what was queued; says good-bye to a target that has welcomed us or said Committed.
    fn end(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
        self.outbox.clear();
        self.tasks.iter_mut().for_each(Task::drop_queues);
        let welcomed = self.link.as_ref().is_some_and(|link| link.is_welcomed());
        if welcomed || (self.link.is_some() && outcome == Outcome::Committed) {
            self.outbox.push_back(ToTarget::Bye);
        }
    }
}

fn task_of<'a, P>(
    tasks: &'a mut [Task<P>],
    message: &'static str,
    task: TaskNumber,
) -> Result<&'a mut Task<P>, ProtocolViolation> {
    let disks = tasks.len();
    let found = tasks.get_mut(usize::from(task));
    found.ok_or(ProtocolViolation::UnknownTask { message, task, disks })
}
