//! Stage 6 of 7: frames in, blocks for the store out. Drives the receiver machine of one session.
//!
//! In: the session's connections (a later one replaces an earlier one), frames, reports of the
//! store. Out: commands for the store, frames for the source. One tokio task a session. It never
//! touches a file: the store does, on a thread of its own.

use std::time::Duration;

use gantry_common::session::receiver::{Admission, Receiver};
use gantry_common::session::store_port::StoreReport;
use gantry_common::wire::{ToSource, ToTarget};
use tokio::sync::mpsc;

use crate::payload::Payload;
use crate::store::service::StoreHandle;
use crate::transport::{
    CloseReason, Connection, FrameReceiver, FrameSender, InFrame, OutFrame, TransportError,
};

/// How long a source may take to close a connection whose work is over.
const CLOSE_AFTER: Duration = Duration::from_secs(5);

/// A connection whose `Hello` was admitted.
pub struct Admitted {
    /// The connection.
    pub connection: Connection,
    /// What was checked.
    pub admission: Admission,
}

/// The present connection of a session.
struct Link {
    frames: FrameSender,
    receiver: FrameReceiver,
    control: mpsc::UnboundedSender<OutFrame>,
    writer: tokio::task::JoinHandle<Result<(), TransportError>>,
    peer: String,
}

impl Link {
    fn new(connection: Connection) -> Link {
        let Connection { sender: frames, receiver, peer, .. } = connection;
        // The queue needs no bound of its own: the machine merges and bounds what it says.
        let (control, mut queue) = mpsc::unbounded_channel::<OutFrame>();
        let out = frames.clone();
        let writer = tokio::spawn(async move {
            while let Some(frame) = queue.recv().await {
                out.send_control(frame).await?;
            }
            Ok(())
        });
        Link { frames, receiver, control, writer, peer: peer.address }
    }

    fn send(&self, message: &ToSource) {
        // A writer that ended makes the receiver end too, which is where loss is seen.
        let _ = self.control.send(OutFrame::message(message));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

/// Runs one session until it has no connection and the store owes it nothing.
pub struct SessionDriver {
    machine: Receiver<Payload>,
    store: StoreHandle,
    link: Option<Link>,
}

enum Event {
    Connection(Option<Box<Admitted>>),
    Report(Option<StoreReport>),
    Frame(Result<Option<InFrame>, TransportError>),
    Overdue,
}

impl SessionDriver {
    /// A session that may have so many blocks in buffers.
    pub fn new(store: StoreHandle, first_credit: u64) -> SessionDriver {
        SessionDriver { machine: Receiver::new(first_credit), store, link: None }
    }

    /// Works until the session is idle.
    pub async fn run(
        mut self,
        mut connections: mpsc::Receiver<Admitted>,
        mut reports: mpsc::UnboundedReceiver<StoreReport>,
    ) {
        loop {
            self.pump();
            if self.machine.is_idle() && self.link.is_none() {
                // Whoever connects while this ends gets a new driver.
                connections.close();
                match connections.recv().await {
                    Some(admitted) => self.connect(admitted),
                    None => return,
                }
                continue;
            }
            let over = self.machine.is_over();
            let event = tokio::select! {
                biased;
                report = reports.recv() => Event::Report(report),
                admitted = connections.recv(), if !connections.is_closed() => {
                    Event::Connection(admitted.map(Box::new))
                }
                frame = next_frame(&mut self.link), if self.machine.accepts_frames() => {
                    Event::Frame(frame)
                }
                () = tokio::time::sleep(CLOSE_AFTER), if over => Event::Overdue,
            };
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Report(Some(report)) => self.machine.handle_report(report),
            // The store is gone: nothing can be acknowledged any more.
            Event::Report(None) => self.disconnect("the store has stopped"),
            Event::Connection(Some(admitted)) => self.connect(*admitted),
            Event::Connection(None) => {}
            Event::Frame(Ok(Some(frame))) => self.take_frame(frame),
            Event::Frame(Ok(None)) => self.disconnect("closed by the source"),
            Event::Frame(Err(error)) => self.disconnect(&error.to_string()),
            Event::Overdue => self.close(CloseReason::Done),
        }
    }

    fn connect(&mut self, admitted: Admitted) {
        if let Some(old) = self.link.take() {
            old.frames.close(CloseReason::Failed("replaced by a newer connection".into()));
        }
        self.machine.handle_connected();
        let link = Link::new(admitted.connection);
        tracing::info!(session = %admitted.admission.session, peer = %link.peer, "session connected");
        self.link = Some(link);
        if let Err(violation) = self.machine.handle_hello(admitted.admission) {
            self.violated(&violation.to_string());
        }
    }

    fn disconnect(&mut self, why: &str) {
        self.close(CloseReason::Failed(why.to_owned()));
    }

    fn close(&mut self, reason: CloseReason) {
        if let Some(link) = self.link.take() {
            tracing::info!(peer = %link.peer, "session disconnected: {reason:?}");
            link.frames.close(reason);
        }
        self.machine.handle_disconnected();
    }

    fn take_frame(&mut self, frame: InFrame) {
        let message = match frame.decode::<ToTarget>() {
            Ok(message) => message,
            Err(error) => return self.violated(&error.to_string()),
        };
        if let Err(violation) = self.machine.handle_frame(message, frame.payload) {
            self.violated(&violation.to_string());
        }
    }

    /// The machine has given the connection up itself.
    fn violated(&mut self, what: &str) {
        tracing::warn!("the source broke the protocol: {what}");
        self.close(CloseReason::Violation(what.to_owned()));
    }

    fn pump(&mut self) {
        while let Some(command) = self.machine.poll_store() {
            // A store that is gone ends the reports too, which is where it is seen.
            let _ = self.store.submit(command);
        }
        while let Some(message) = self.machine.poll_transmit() {
            if let Some(link) = &self.link {
                link.send(&message);
            }
        }
    }
}

async fn next_frame(link: &mut Option<Link>) -> Result<Option<InFrame>, TransportError> {
    match link {
        Some(link) => link.receiver.recv().await,
        None => std::future::pending().await,
    }
}
