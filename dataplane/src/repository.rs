//! Joins the target side: connections of movers in, sessions, restores and lists out.
//!
//! In: authenticated connections. Out: each one's work, on the calling tokio runtime. Invariant:
//! nothing is read or written for a peer before its `Hello` was checked: protocol, ticket, scope.
//! A session that is known here is continued only by who shows its ticket.

pub(crate) mod copies;
mod manage;
mod successor;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{IdKey, RepositoryId, SessionId};
use gantry_common::limits;
use gantry_common::session::receiver::Admission;
use gantry_common::wire::{
    self, DiskOffer, Intent, Message, PROTOCOL, SessionKind, SessionOffer, TicketBytes, ToSource,
    ToTarget,
};
use tokio::sync::mpsc;

use crate::host::now_ms;
use crate::payload::{Payload, PayloadPool};
use crate::receive::{Admitted, SessionDriver};
use crate::restore::{self, PackFiles, ServeOptions};
use crate::store::admin;
use crate::store::reader::StoreReader;
use crate::store::service::StoreHandle;
use crate::transport::{
    Claim, CloseReason, Connection, FrameSender, OutFrame, PeerInfo, Revoked, Rights, Ticket,
    TicketKey, Trust,
};

/// How long a peer may take to say `Hello`.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Validity of a ticket that this mover issues; each connection renews it.
const TICKET_VALID_MS: u64 = 24 * 3600 * 1000;
/// Points in one page of a list.
const POINTS_A_PAGE: usize = 64;

/// The repository mover's service on one runtime (tokio `LocalSet`).
pub struct Repository {
    /// Nothing where the repository is open for reading only.
    store: Option<StoreHandle>,
    reader: StoreReader,
    files: PackFiles,
    tickets: RefCell<TicketKey>,
    tickets_required: Cell<bool>,
    sessions: RefCell<HashMap<SessionId, Running>>,
    maintenance: RefCell<Option<manage::Maintenance>>,
    /// Who may look after the repository; nothing: every peer that is let in.
    managers: RefCell<Option<Trust>>,
}

/// A session that has a driver: the way to it, and its buffers, which outlive a connection.
#[derive(Clone)]
struct Running {
    connections: mpsc::Sender<Admitted>,
    pool: PayloadPool,
    name: String,
    kind: SessionKind,
    disks: Rc<[DiskOffer]>,
    /// Of its present connection.
    frames: FrameSender,
}

impl Repository {
    /// A service over this store. With `tickets_required` (under gantryd) no peer starts anything
    /// without a ticket; otherwise the pinned peers may start sessions and are issued one.
    pub fn new(
        store: StoreHandle,
        files: PackFiles,
        tickets: TicketKey,
        tickets_required: bool,
    ) -> Rc<Repository> {
        let reader = store.reader().clone();
        let (store, sessions, maintenance) = (Some(store), RefCell::default(), RefCell::default());
        Rc::new(Repository {
            store,
            reader,
            files,
            tickets: RefCell::new(tickets),
            tickets_required: Cell::new(tickets_required),
            sessions,
            maintenance,
            managers: RefCell::default(),
        })
    }

    /// A service that restores and lists only.
    pub fn read_only(reader: StoreReader, files: PackFiles, tickets: TicketKey) -> Rc<Repository> {
        let (sessions, maintenance) = (RefCell::default(), RefCell::default());
        Rc::new(Repository {
            store: None,
            reader,
            files,
            tickets: RefCell::new(tickets),
            tickets_required: Cell::new(false),
            sessions,
            maintenance,
            managers: RefCell::default(),
        })
    }

    /// From now on only peers whose pins are named here may look after the repository; without a
    /// list every peer that is let in may.
    pub fn set_managers(&self, managers: Option<Trust>) {
        *self.managers.borrow_mut() = managers;
    }

    /// From now on nobody starts anything without a ticket that was made with this key. Sessions that
    /// run go on; those that resume need a ticket of it, too.
    pub fn require_tickets(&self, tickets: TicketKey) {
        *self.tickets.borrow_mut() = tickets;
        self.tickets_required.set(true);
    }

    /// What reads the store.
    pub fn reader(&self) -> &StoreReader {
        &self.reader
    }

    /// Ends every session's connection with this reason; what they brought stays durable, and
    /// they resume.
    pub fn stop(&self, why: &str) {
        for running in self.sessions.borrow().values() {
            running.frames.close(CloseReason::Failed(why.to_owned()));
        }
        if let Some(running) = &*self.maintenance.borrow() {
            running.stop(why);
        }
    }

    /// Sessions with a connection, or whose work is not over.
    pub fn sessions_running(&self) -> usize {
        self.sessions.borrow().len()
    }

    /// Works for one connection until it ends.
    pub async fn serve(self: Rc<Self>, mut connection: Connection) {
        let peer = connection.peer.address.clone();
        let hello = tokio::time::timeout(HELLO_WITHIN, first_frame(&mut connection)).await;
        let refusal = match hello {
            Err(_) => Failure::new(FailureKind::Network, "no Hello came in time"),
            Ok(Err(failure)) => failure,
            Ok(Ok(hello)) => match self.admit(connection, hello).await {
                Ok(()) => return,
                Err((connection, failure)) => {
                    tracing::warn!(%peer, "refused: {failure}");
                    return refuse(*connection, failure).await;
                }
            },
        };
        tracing::warn!(%peer, "refused: {refusal}");
    }

    async fn admit(
        self: &Rc<Self>,
        connection: Connection,
        hello: Hello,
    ) -> Result<(), (Box<Connection>, Failure)> {
        let ticket = match self.check(&connection.peer, &hello) {
            Ok(ticket) => ticket,
            Err(failure) => return Err((Box::new(connection), failure)),
        };
        let (repository, id_key) = (self.reader.repository(), self.reader.id_key());
        match hello.intent {
            Intent::Backup(offer) => {
                let kind = SessionKind::Backup;
                self.bring(connection, (hello.session, kind, offer), ticket).await;
            }
            Intent::Part(offer) => {
                let kind = SessionKind::Part;
                self.bring(connection, (hello.session, kind, offer), ticket).await;
            }
            Intent::Commit(offer) => {
                let kind = SessionKind::Commit;
                self.bring(connection, (hello.session, kind, offer), ticket).await;
            }
            Intent::Restore(offer) => {
                let Connection { sender, receiver, .. } = connection;
                let reader = self.reader.clone();
                let options = ServeOptions { ticket, ..ServeOptions::default() };
                let files = self.files.clone();
                let served = restore::serve(offer, reader, sender, receiver, files, options);
                if let Err(failure) = served.await {
                    tracing::warn!("restore ended: {failure}");
                }
            }
            Intent::List { name, deleted } => {
                self.list(connection, name, deleted, repository, id_key).await;
            }
            Intent::Manage(request) => {
                let welcome = ToSource::Welcome { repository, id_key, ticket, credit: 0 };
                self.manage(connection, request, &welcome).await;
            }
        }
        Ok(())
    }

    /// A session that brings disks in, once nobody silent is in its way.
    async fn bring(
        self: &Rc<Self>,
        connection: Connection,
        (session, kind, offer): (SessionId, SessionKind, SessionOffer),
        ticket: Option<TicketBytes>,
    ) {
        let (repository, id_key) = (self.reader.repository(), self.reader.id_key());
        let admission = Admission { session, offer, kind, repository, id_key, ticket };
        self.make_way(&admission).await;
        self.attach(connection, admission).await;
    }

    /// Protocol, ticket and scope; returns the ticket for the next connection.
    fn check(&self, peer: &PeerInfo, hello: &Hello) -> Result<Option<TicketBytes>, Failure> {
        let refused = |text: String| Failure::new(FailureKind::Refused, text);
        if hello.protocol != PROTOCOL {
            return Err(refused(format!(
                "the peer speaks protocol {}, this mover speaks {PROTOCOL}: update the older of the two",
                hello.protocol
            )));
        }
        let (name, rights) = match &hello.intent {
            Intent::Backup(offer) | Intent::Part(offer) | Intent::Commit(offer) => {
                (offer.name.clone(), Rights::BACKUP)
            }
            Intent::Restore(offer) => (offer.name.clone(), Rights::RESTORE),
            Intent::List { name, .. } => (name.clone(), Rights::RESTORE),
            Intent::Manage(request) => {
                (request.name().unwrap_or_default().to_owned(), Rights::MANAGE)
            }
        };
        if rights.manage {
            self.check_manager(peer)?;
        }
        let now_ms = now_ms();
        let known = self.sessions.borrow().contains_key(&hello.session);
        match &hello.ticket {
            Some(bytes) => {
                let claim = Claim {
                    session: hello.session,
                    repository: self.reader.repository(),
                    peer: peer.pin,
                    name: &name,
                    rights,
                };
                let verified =
                    self.tickets.borrow().verify(bytes, &claim, now_ms, &Revoked::default());
                // A ticket of an earlier run of this process: where none is needed, start anew.
                if let Err(error) = verified
                    && (known || self.tickets_required.get())
                {
                    return Err(error.into());
                }
            }
            None if known || self.tickets_required.get() => {
                return Err(refused(format!("session {} needs its ticket", hello.session)));
            }
            None => {}
        }
        let ticket = Ticket {
            session: hello.session,
            repository: self.reader.repository(),
            peer: peer.pin,
            name,
            rights,
            expires_ms: now_ms.saturating_add(TICKET_VALID_MS),
        };
        Ok(Some(self.tickets.borrow().issue(&ticket)))
    }

    /// Gives the connection to its session's driver, starting one if there is none.
    async fn attach(self: &Rc<Self>, mut connection: Connection, admission: Admission) {
        let session = admission.session;
        let Some(store) = self.store.clone() else {
            let text = "the repository is open for reading only";
            return refuse(connection, Failure::new(FailureKind::Target, text)).await;
        };
        let running = self.sessions.borrow().get(&session).cloned();
        let pool = match running.as_ref().map(|running| running.pool.clone()) {
            Some(pool) => Ok(pool),
            None => receive_pool(&admission.offer),
        };
        let pool = match pool {
            Ok(pool) => pool,
            Err(failure) => return refuse(connection, failure).await,
        };
        connection.receiver.accept_lanes(pool.clone());
        if let Some(running) = self.sessions.borrow_mut().get_mut(&session) {
            running.frames = connection.sender.clone();
        }
        let (name, frames) = (admission.offer.name.clone(), connection.sender.clone());
        let (kind, disks) = (admission.kind, Rc::from(admission.offer.disks.as_slice()));
        let admitted = Admitted { connection, admission };
        let admitted = match running {
            Some(running) => match running.connections.send(admitted).await {
                Ok(()) => return,
                // It ended this moment.
                Err(mpsc::error::SendError(admitted)) => admitted,
            },
            None => admitted,
        };
        let credit = pool.slots() as u64;
        let (connections_tx, connections) = mpsc::channel(1);
        let (reports_tx, reports) = mpsc::unbounded_channel();
        // A store that is gone answers nothing; the driver then sees the reports end.
        let on_report = Box::new(move |report| drop(reports_tx.send(report)));
        let _ = store.subscribe(session, on_report);
        let connections_in = connections_tx.clone();
        let running = Running { connections: connections_in, pool, name, kind, disks, frames };
        self.sessions.borrow_mut().insert(session, running);
        let _ = connections_tx.send(admitted).await;
        drop(connections_tx);
        let driver = SessionDriver::new(store.clone(), credit);
        driver.run(connections, reports).await;
        let _ = store.unsubscribe(session);
        self.sessions.borrow_mut().remove(&session);
    }

    async fn list(
        &self,
        connection: Connection,
        name: String,
        deleted: bool,
        repository: RepositoryId,
        id_key: IdKey,
    ) {
        let welcome = ToSource::Welcome { repository, id_key, ticket: None, credit: 0 };
        let mut messages = vec![welcome];
        let reader = self.reader.clone();
        let listed = off_this_thread(move || {
            let filter = (!name.is_empty()).then_some(name.as_str());
            let lines = if deleted {
                admin::list_deleted(&reader, filter)
            } else {
                admin::list(&reader, filter)
            };
            lines.map_err(Failure::from)
        });
        match listed.await {
            Err(failure) => messages.push(ToSource::Failed { task: None, failure }),
            Ok(lines) => {
                let points: Vec<_> = lines.into_iter().filter_map(|line| line.summary).collect();
                let mut pages = points.chunks(POINTS_A_PAGE).peekable();
                if points.is_empty() {
                    messages.push(ToSource::Points { points: Vec::new(), more: false });
                }
                while let Some(page) = pages.next() {
                    let more = pages.peek().is_some();
                    messages.push(ToSource::Points { points: page.to_vec(), more });
                }
            }
        }
        for message in messages {
            if connection.sender.send_control(OutFrame::message(&message)).await.is_err() {
                return;
            }
        }
        let _ = connection.sender.finish().await;
    }
}

/// Runs what reads files on a thread of its own, so that other connections go on.
pub(crate) async fn off_this_thread<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(act).await.unwrap_or_else(|error| {
        let text =
            format!("the repository's work ended by an internal error: {error}; see its log");
        Err(Failure::new(FailureKind::Internal, text))
    })
}

struct Hello {
    protocol: u16,
    session: SessionId,
    intent: Intent,
    ticket: Option<TicketBytes>,
}

async fn first_frame(connection: &mut Connection) -> Result<Hello, Failure> {
    let refused = |text: String| Failure::new(FailureKind::Refused, text);
    let frame = connection.receiver.recv().await.map_err(|error| refused(error.to_string()))?;
    let frame = frame.ok_or_else(|| refused("closed without a Hello".into()))?;
    match frame.decode::<ToTarget>().map_err(|error| refused(error.to_string()))? {
        ToTarget::Hello { protocol, software, session, intent, ticket } => {
            tracing::info!(%session, peer = %connection.peer.address, software, "hello");
            Ok(Hello { protocol, session, intent, ticket })
        }
        _ => Err(refused("the first message is no Hello".into())),
    }
}

async fn refuse(connection: Connection, failure: Failure) {
    let message = ToSource::Refused { failure };
    if message.check(0).is_ok() {
        let _ = connection.sender.send_control(OutFrame::message(&message)).await;
        let _ = connection.sender.finish().await;
    }
    connection.sender.close(CloseReason::Refused("see the last message".into()));
}

/// Buffers for one session's blocks.
fn receive_pool(offer: &SessionOffer) -> Result<PayloadPool, Failure> {
    let largest =
        offer.disks.iter().map(|disk| disk.block_size.bytes()).max().unwrap_or(0) as usize;
    let slot = largest + Payload::HEAD_ROOM;
    let slots = (limits::RECEIVE_POOL_BYTES / slot.max(1)).max(4);
    PayloadPool::new(slots, largest).map_err(|error| {
        Failure::new(FailureKind::Target, format!("no memory for receive buffers: {error}"))
    })
}

const _: () = assert!(wire::PROTOCOL == 1, "check() names the only protocol there is");
