//! The target mover's driver: routes connections to receivers, receivers to the store.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use gantry_common::ids::{IdKey, RepositoryId, SessionId};
use gantry_common::session::receiver::{Admission, Receiver};
use gantry_common::session::store_port::{StoreReport, TaskKey};
use gantry_common::wire::{Intent, SessionKind, SessionOffer, TicketBytes, ToSource, ToTarget};

use crate::images::Payload;
use crate::network::{Connection, Frame};
use crate::plan::Plant;
use crate::store::Store;

struct Served {
    receiver: Receiver<Payload>,
    offer: SessionOffer,
    buffers: Rc<Cell<u64>>,
}

/// The target mover; a crash drops it and keeps what the store has persisted.
pub struct Target {
    pub store: Store,
    served: BTreeMap<SessionId, Served>,
    /// Whose connection stands, as far as this side knows.
    current: Option<SessionId>,
    first_credit: u64,
    plant: Plant,
    tickets: u64,
}

impl Target {
    /// A target over this store.
    pub fn new(store: Store, first_credit: u64, plant: Plant) -> Target {
        Target { store, served: BTreeMap::new(), current: None, first_credit, plant, tickets: 0 }
    }

    /// The process dies and starts again.
    pub fn crash(&mut self) {
        self.served.clear();
        self.current = None;
        self.store.crash();
    }

    /// The connection is noticed to be gone.
    pub fn lose(&mut self) {
        if let Some(session) = self.current.take() {
            let served = self.served.get_mut(&session).expect("current sessions are served");
            served.receiver.handle_disconnected();
        }
    }

    /// Whether the receiver of the present connection takes frames now.
    pub fn accepts_frames(&self) -> bool {
        let current = self.current.as_ref().and_then(|session| self.served.get(session));
        current.is_none_or(|served| served.receiver.accepts_frames())
    }

    /// The first frame of a connection.
    pub fn accept(&mut self, frame: Frame) -> Result<(), String> {
        let (ToTarget::Hello { session, intent: Intent::Backup(offer), .. }, None) = frame else {
            return Err("a connection that does not begin with Hello".into());
        };
        self.lose();
        let extra = u64::from(self.plant == Plant::CreditTooHigh);
        let first_credit = self.first_credit + extra;
        let served = self.served.entry(session).or_insert_with(|| Served {
            receiver: Receiver::new(first_credit),
            offer: offer.clone(),
            buffers: Rc::default(),
        });
        self.current = Some(session);
        self.tickets += 1;
        served.receiver.handle_connected();
        let admission = Admission {
            session,
            offer,
            kind: SessionKind::Backup,
            repository: RepositoryId([1; 16]),
            id_key: IdKey([2; 32]),
            ticket: Some(TicketBytes(self.tickets.to_le_bytes().to_vec())),
        };
        served.receiver.handle_hello(admission).map_err(|violation| violation.to_string())
    }

    /// Another frame of the present connection.
    pub fn handle_frame(&mut self, (message, content): Frame) -> Result<(), String> {
        let served = self.current.and_then(|session| self.served.get_mut(&session));
        let served = served.ok_or("a frame without connection")?;
        let payload = content.map(|content| Payload::new(content, &served.buffers));
        if served.buffers.get() > self.first_credit {
            return Err(format!("{} buffers of {}", served.buffers.get(), self.first_credit));
        }
        let name = format!("{message:?}");
        let result = served.receiver.handle_frame(message, payload);
        result.map_err(|violation| format!("receiver: {violation} ({name})"))
    }

    /// The present connection's next frame for the source, checked against the store.
    pub fn poll_transmit(&mut self) -> Result<Option<ToSource>, String> {
        let Some(session) = self.current else { return Ok(None) };
        let served = self.served.get_mut(&session).ok_or("a connection without receiver")?;
        let frame = served.receiver.poll_transmit();
        if let Some(
            ToSource::Durable { task, runs } | ToSource::TaskOpened { task, durable: runs, .. },
        ) = &frame
        {
            let key = TaskKey { session, task: *task };
            if !self.store.holds(&served.offer, key, runs) {
                return Err(format!("{frame:?} claims what is not durable"));
            }
        }
        if let Some(ToSource::Committed { point, .. }) = &frame
            && !self.store.points.iter().any(|found| found.id == *point)
        {
            return Err("a commit without a point".into());
        }
        Ok(frame)
    }

    /// Moves one command of any receiver to the store.
    pub fn command_store(&mut self) -> bool {
        for served in self.served.values_mut() {
            if let Some(command) = served.receiver.poll_store() {
                self.store.commands.push_back(command);
                return true;
            }
        }
        false
    }

    /// Moves one report of the store to its receiver; drops receivers that are idle.
    pub fn report(&mut self, random: &mut fastrand::Rng) -> bool {
        let Some(report) = self.store.reports.pop_front() else { return false };
        let session = session_of(&report);
        if let Some(served) = self.served.get_mut(&session) {
            served.receiver.handle_report(report);
            if served.receiver.is_idle() && random.bool() {
                assert_eq!(served.receiver.blocks_in_store(), 0, "an idle receiver owes buffers");
                self.served.remove(&session);
            }
        }
        true
    }
}

fn session_of(report: &StoreReport) -> SessionId {
    match report {
        StoreReport::SessionOpened { session, .. }
        | StoreReport::Committed { session, .. }
        | StoreReport::Detached { session }
        | StoreReport::Failed { session, .. } => *session,
        StoreReport::TaskOpened { key, .. }
        | StoreReport::BaseIds { key, .. }
        | StoreReport::Answered { key, .. }
        | StoreReport::Appended { key, .. }
        | StoreReport::Durable { key, .. }
        | StoreReport::Sealed { key, .. } => key.session,
    }
}

/// Gives a connection's next frame to the target: `Hello` first.
pub fn deliver(
    target: &mut Target,
    connection: &mut Connection,
    random: &mut fastrand::Rng,
) -> Result<bool, String> {
    if connection.is_void {
        return Ok(connection.deliver(random).is_some());
    }
    if connection.is_accepted && !target.accepts_frames() {
        return Ok(false);
    }
    let Some(frame) = connection.deliver(random) else { return Ok(false) };
    if connection.is_accepted {
        target.handle_frame(frame)?;
    } else {
        target.accept(frame)?;
        connection.is_accepted = true;
    }
    Ok(true)
}
