//! The receiver: the target mover's half of a backup session, as a machine without I/O.
//!
//! In: the connection coming and going, admitted `Hello`s, the source's frames, the store's
//! reports. Out: frames for the source (all on control), commands for the store. One receiver
//! serves one session over any number of connections; what is durable it learns from the store.
//!
//! ```text
//!        handle_connected          handle_hello            SessionOpened
//!   Down ---------------> Silent -------------> Opening ------------------> Open
//!    ^                      |                      | committed or Failed     | Committed, Failed,
//!    |                      |                      v                         v GiveUp, Bye
//!    +------ handle_disconnected (Detach) --------Over <---------------------+
//!
//!   each task, on each connection:   Closed --OpenTask--> Opening --TaskOpened--> Open
//!                                      --Seal, held until all is accounted for--> Sealing
//! ```
//!
//! Invariant: blocks of which the store holds a buffer, plus credit that the source has not used,
//! are `first_credit` at the most, also across connections. Reports that come between `Detach` and
//! `Detached` belong to a lost connection and only give buffers back.
//!
//! Bounds: answers waiting to be sent are bounded by what may be asked at once (`limits`), durable
//! runs merge. Marks for the store are not bounded by credit: the driver stops reading frames
//! while [`Receiver::accepts_frames`] is false.

mod credit;
mod task;

use std::collections::VecDeque;

use self::credit::Credit;
use self::task::Task;
use super::bounded;
use super::store_port::{StoreCommand, StoreReport, TaskKey};
use super::violation::{ProtocolViolation, out_of_turn};
use crate::failure::Failure;
use crate::ids::{IdKey, PointId, RepositoryId, SessionId};
use crate::limits;
use crate::wire::{
    BlockHead, SessionKind, SessionOffer, TaskNumber, TicketBytes, ToSource, ToTarget,
};

/// A `Hello` that the driver has checked (protocol, certificate, ticket), and what to answer it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The session.
    pub session: SessionId,
    /// What it brings.
    pub offer: SessionOffer,
    /// What it is for.
    pub kind: SessionKind,
    /// Our repository.
    pub repository: RepositoryId,
    /// Its id key.
    pub id_key: IdKey,
    /// A ticket for the next connection, if one is issued.
    pub ticket: Option<TicketBytes>,
}

/// Where the present connection stands.
#[derive(Debug)]
enum Phase {
    Silent,
    Opening(Box<Admission>),
    Open,
    Over,
}

/// The receiver of one session; see the module's text. `P` is the payload type.
#[derive(Debug)]
pub struct Receiver<P> {
    credit: Credit,
    session: Option<(SessionId, SessionOffer)>,
    kind: SessionKind,
    tasks: Vec<Task>,
    /// The connection, if one stands.
    link: Option<Phase>,
    /// `OpenSession` was given since the last `Detach`.
    is_attached: bool,
    /// `Detach`es that are not answered yet.
    detaching: u32,
    transmits: VecDeque<ToSource>,
    commands: VecDeque<StoreCommand<P>>,
}

impl<P> Receiver<P> {
    /// A receiver that lets `first_credit` blocks be in flight or in the store's buffers at once.
    ///
    /// # Panics
    /// If `first_credit` is 0: no block could ever come.
    pub fn new(first_credit: u64) -> Receiver<P> {
        Receiver {
            credit: Credit::new(first_credit),
            session: None,
            kind: SessionKind::Backup,
            tasks: Vec::new(),
            link: None,
            is_attached: false,
            detaching: 0,
            transmits: VecDeque::new(),
            commands: VecDeque::new(),
        }
    }

    /// A connection stands; its `Hello` is to come. One that is still thought to stand is given up
    /// first.
    pub fn handle_connected(&mut self) {
        self.handle_disconnected();
        self.credit.restart();
        self.link = Some(Phase::Silent);
    }

    /// The connection is gone, with everything in flight on it. Frames of it that come later must
    /// not be handed in. Harmless if there was none.
    pub fn handle_disconnected(&mut self) {
        self.link = None;
        self.transmits.clear();
        self.tasks.iter_mut().for_each(Task::handle_disconnected);
        if std::mem::take(&mut self.is_attached)
            && let Some((session, _)) = &self.session
        {
            self.detaching += 1;
            self.commands.push_back(StoreCommand::Detach { session: *session });
        }
    }

    /// The driver admits the peer that said `Hello` on this connection.
    ///
    /// # Errors
    /// [`ProtocolViolation`] if it is a second `Hello`, or another session or offer than before.
    pub fn handle_hello(&mut self, admission: Admission) -> Result<(), ProtocolViolation> {
        let admitted = self.admit(admission);
        self.lose_after(admitted)
    }

    fn admit(&mut self, admission: Admission) -> Result<(), ProtocolViolation> {
        let Some(phase) = &mut self.link else {
            return out_of_turn("Hello", "without connection");
        };
        if !matches!(phase, Phase::Silent) {
            return out_of_turn("Hello", "twice");
        }
        let (session, offer) = (admission.session, admission.offer.clone());
        let kind = admission.kind;
        match &self.session {
            Some((first, _)) if *first != session => return changed("session"),
            Some((_, first)) if *first != offer || self.kind != kind => return changed("offer"),
            Some(_) => {}
            None => {
                let keys =
                    (0..offer.disks.len()).map(|n| TaskKey { session, task: n as TaskNumber });
                self.tasks =
                    keys.zip(&offer.disks).map(|(key, disk)| Task::new(key, disk)).collect();
                self.session = Some((session, offer.clone()));
                self.kind = kind;
            }
        }
        *phase = Phase::Opening(Box::new(admission));
        self.is_attached = true;
        self.commands.push_back(StoreCommand::OpenSession { session, offer, kind });
        Ok(())
    }

    /// A frame of the source came, from whichever stream. `Hello` does not come this way: the
    /// driver checks it and calls [`Receiver::handle_hello`].
    ///
    /// # Errors
    /// [`ProtocolViolation`]: the driver closes the connection. For the machine it is lost already,
    /// as by [`Receiver::handle_disconnected`].
    pub fn handle_frame(
        &mut self,
        frame: ToTarget,
        payload: Option<P>,
    ) -> Result<(), ProtocolViolation> {
        let taken = self.take_frame(frame, payload);
        self.lose_after(taken)
    }

    fn lose_after(
        &mut self,
        result: Result<(), ProtocolViolation>,
    ) -> Result<(), ProtocolViolation> {
        if result.is_err() {
            self.handle_disconnected();
        }
        result
    }

    fn take_frame(&mut self, frame: ToTarget, payload: Option<P>) -> Result<(), ProtocolViolation> {
        let Some(phase) = &self.link else {
            return out_of_turn("a frame", "without connection");
        };
        if matches!(frame, ToTarget::Hello { .. }) {
            return out_of_turn("Hello", "after the connection's first frame");
        }
        match phase {
            Phase::Silent => return out_of_turn("a frame", "before Hello"),
            Phase::Opening(_) => return out_of_turn("a frame", "before Welcome"),
            Phase::Over => return Ok(()),
            Phase::Open => {}
        }
        match (frame, payload) {
            (ToTarget::Block { task, block, head }, Some(payload)) => {
                self.handle_block(task, block, head, payload)
            }
            (ToTarget::Block { .. }, None) => Err(ProtocolViolation::Payload { message: "Block" }),
            (_, Some(_)) => Err(ProtocolViolation::Payload { message: "a frame but Block" }),
            (frame, None) => self.handle_control(frame),
        }
    }

    fn handle_block(
        &mut self,
        task: TaskNumber,
        block: u64,
        head: BlockHead,
        payload: P,
    ) -> Result<(), ProtocolViolation> {
        self.credit.receive()?;
        let task = open_task(&mut self.tasks, "Block", task)?;
        let is_new = task.handle_block(block, &head)?;
        if is_new {
            self.credit.lend();
            self.commands.push_back(StoreCommand::Append { key: task.key(), block, head, payload });
        }
        self.commands.extend(task.poll_seal());
        Ok(())
    }

    fn handle_control(&mut self, frame: ToTarget) -> Result<(), ProtocolViolation> {
        match frame {
            ToTarget::OpenTask { task } => {
                let command = find_task(&mut self.tasks, "OpenTask", task)?.handle_open()?;
                self.commands.push_back(command);
            }
            ToTarget::NeedBase { task, leaf } => {
                let task = open_task(&mut self.tasks, "NeedBase", task)?;
                self.commands.push_back(task.handle_need_base(leaf)?);
            }
            ToTarget::Marks { task, marks } => {
                let task = open_task(&mut self.tasks, "Marks", task)?;
                self.commands.extend(task.handle_marks(marks)?);
                self.commands.extend(task.poll_seal());
            }
            ToTarget::Query { task, batch, blocks } => {
                let task = open_task(&mut self.tasks, "Query", task)?;
                self.commands.push_back(task.handle_query(batch, blocks)?);
            }
            ToTarget::Seal { task, totals, mask } => {
                let task = open_task(&mut self.tasks, "Seal", task)?;
                task.handle_seal(totals, mask)?;
                self.commands.extend(task.poll_seal());
            }
            ToTarget::GiveUp { task, .. } => {
                find_task(&mut self.tasks, "GiveUp", task)?;
                self.end(None);
            }
            ToTarget::Bye => self.end(None),
            ToTarget::Read { .. } | ToTarget::Credit { .. } => {
                return out_of_turn("a frame of a restore", "in a backup");
            }
            ToTarget::Hello { .. } | ToTarget::Block { .. } => unreachable!("handled before"),
        }
        Ok(())
    }

    /// The store did a piece of work for this session.
    ///
    /// # Panics
    /// If the report names another session or disk, or gives back more buffers than it got: a bug
    /// of the store or the driver.
    pub fn handle_report(&mut self, report: StoreReport) {
        match report {
            StoreReport::Appended { key, .. } => {
                self.assert_ours(key.session);
                self.credit.give_back();
            }
            StoreReport::Detached { session } => {
                self.assert_ours(session);
                assert!(self.detaching > 0, "{session} detached without command");
                self.detaching -= 1;
            }
            _ if self.detaching > 0 => {}
            StoreReport::SessionOpened { session, committed } => {
                self.assert_ours(session);
                self.handle_session_opened(committed);
            }
            StoreReport::Committed { session, point, deleted } => {
                self.assert_ours(session);
                self.end(Some(ToSource::Committed { point, deleted }));
            }
            StoreReport::Failed { session, task, failure } => {
                self.assert_ours(session);
                self.handle_failed(task, failure);
            }
            StoreReport::TaskOpened { key, base, durable } => {
                self.with_task(key, |task, out| task.handle_opened(base, &durable, out));
            }
            StoreReport::BaseIds { key, leaf, ids } => {
                self.with_task(key, |task, out| task.handle_base_ids(leaf, ids, out));
            }
            StoreReport::Answered { key, batch, known } => {
                self.with_task(key, |task, out| task.handle_answered(batch, known, out));
            }
            StoreReport::Durable { key, runs } => {
                self.with_task(key, |task, _| task.handle_durable(&runs));
            }
            StoreReport::Sealed { key, bytes_stored } => {
                self.with_task(key, |task, out| task.handle_sealed(bytes_stored, out));
            }
        }
    }

    fn assert_ours(&self, session: SessionId) {
        let ours = self.session.as_ref().map(|(session, _)| *session);
        assert_eq!(ours, Some(session), "a report for another session");
    }

    /// Hands a report to an open connection's task, then passes on a seal that it completed.
    fn with_task(&mut self, key: TaskKey, handle: impl FnOnce(&mut Task, &mut VecDeque<ToSource>)) {
        self.assert_ours(key.session);
        if matches!(self.link, Some(Phase::Open)) {
            let task = &mut self.tasks[usize::from(key.task)];
            handle(task, &mut self.transmits);
            self.commands.extend(task.poll_seal());
        }
    }

    fn handle_session_opened(&mut self, committed: Option<PointId>) {
        if let Some(point) = committed {
            return self.end(Some(ToSource::Committed { point, deleted: Vec::new() }));
        }
        match self.link.replace(Phase::Open) {
            Some(Phase::Opening(admission)) => {
                let Admission { repository, id_key, ticket, .. } = *admission;
                let credit = self.credit.tell_first();
                self.transmits.push_back(ToSource::Welcome { repository, id_key, ticket, credit });
            }
            other => self.link = other,
        }
    }

    fn handle_failed(&mut self, task: Option<TaskNumber>, failure: Failure) {
        let failure = bounded(failure);
        match self.link {
            Some(Phase::Opening(_)) => self.end(Some(ToSource::Refused { failure })),
            Some(Phase::Open) => self.end(Some(ToSource::Failed { task, failure })),
            Some(Phase::Silent | Phase::Over) | None => {}
        }
    }

    /// Ends the session's work on this connection, with a last word if there is one.
    fn end(&mut self, last: Option<ToSource>) {
        if matches!(self.link, Some(Phase::Opening(_) | Phase::Open)) {
            self.link = Some(Phase::Over);
            self.transmits.extend(last);
        }
    }

    /// The next frame for the source's control stream, if any.
    pub fn poll_transmit(&mut self) -> Option<ToSource> {
        let frame = self.transmits.pop_front();
        if frame.is_some() {
            return frame;
        }
        if !matches!(self.link, Some(Phase::Open)) {
            return None;
        }
        let durable = self.tasks.iter_mut().find_map(Task::poll_durable);
        durable.or_else(|| self.credit.poll().map(|total| ToSource::Credit { total }))
    }

    /// The next command for the store, if any. Commands of a lost connection are still given.
    pub fn poll_store(&mut self) -> Option<StoreCommand<P>> {
        self.commands.pop_front()
    }

    /// Whether the driver should hand in further frames now: false while many commands wait to be
    /// polled.
    pub fn accepts_frames(&self) -> bool {
        self.commands.len() < limits::STORE_COMMANDS_MAX
    }

    /// Whether the session's work on this connection is over and its last word was polled: the
    /// driver waits for the source to close, for a while, and then closes the connection.
    pub fn is_over(&self) -> bool {
        self.transmits.is_empty() && matches!(self.link, Some(Phase::Over))
    }

    /// Whether there is no connection and the store owes nothing: the driver may drop the receiver,
    /// and make another should the session come back.
    pub fn is_idle(&self) -> bool {
        self.link.is_none() && self.detaching == 0 && self.commands.is_empty()
    }

    /// Blocks whose buffers the store (or a command for it) holds.
    pub fn blocks_in_store(&self) -> u64 {
        self.credit.in_store()
    }

    /// Blocks of each disk that are durable or have been handed to the store on this connection,
    /// in the offer's order.
    pub fn accounted(&self) -> impl Iterator<Item = u64> + '_ {
        self.tasks.iter().map(Task::accounted_blocks)
    }
}

fn changed(what: &'static str) -> Result<(), ProtocolViolation> {
    Err(ProtocolViolation::Changed { what })
}

fn find_task<'a>(
    tasks: &'a mut [Task],
    message: &'static str,
    task: TaskNumber,
) -> Result<&'a mut Task, ProtocolViolation> {
    let disks = tasks.len();
    let found = tasks.get_mut(usize::from(task));
    found.ok_or(ProtocolViolation::UnknownTask { message, task, disks })
}

fn open_task<'a>(
    tasks: &'a mut [Task],
    message: &'static str,
    task: TaskNumber,
) -> Result<&'a mut Task, ProtocolViolation> {
    let found = find_task(tasks, message, task)?;
    if found.is_open() { Ok(found) } else { Err(ProtocolViolation::TaskNotOpen { message, task }) }
}
