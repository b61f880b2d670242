//! One connection of a mover: reports in, commands out.
//!
//! In: an authenticated connection. Out: reports for the state, its commands for the mover.
//! Invariants: a mover that takes no commands blocks nobody (its queue is bounded, then the
//! connection ends); a connection that the state has given up is closed with the reason, and read no
//! further.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gantry_common::control::{Command, Report};
use gantry_transport::{CloseReason, ControlConnection, ControlReceiver, ControlSender};
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use crate::fleet::state::LinkId;
use crate::limits;

/// The commands that wait for a connection.
pub(super) struct Outbox {
    commands: mpsc::Sender<Command>,
    closing: oneshot::Sender<CloseReason>,
}

impl Outbox {
    /// Whether there was room.
    pub(super) fn send(&self, command: Command) -> bool {
        self.commands.try_send(command).is_ok()
    }

    pub(super) fn close(self, reason: CloseReason) {
        // Nobody listens if the connection has ended already.
        let _ = self.closing.send(reason);
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(shared: Arc<Shared>, connection: ControlConnection) {
    let ControlConnection { peer, sender, receiver } = connection;
    let found = tokio::time::timeout(
        Duration::from_millis(limits::HELLO_MS_MAX),
        shared.registry.enrolled(peer.pin),
    );
    let enrolled = match found.await {
        Ok(Ok(Some(enrolled))) => enrolled,
        Ok(Ok(None)) => {
            tracing::warn!(pin = %peer.pin, address = %peer.address, "a mover was not let in: it is not enrolled, or was revoked");
            let text = "this mover is not enrolled here, or was revoked: enrol it again";
            return sender.close(&CloseReason::Refused(text.into()));
        }
        Ok(Err(_)) | Err(_) => {
            tracing::warn!(pin = %peer.pin, address = %peer.address, "the list of movers cannot be read");
            return sender.close(&CloseReason::Failed("try again later".into()));
        }
    };
    let mover = enrolled.name.clone();
    tracing::info!(mover, address = %peer.address, "a mover has connected");
    let (commands, waiting) = mpsc::channel(limits::MOVER_COMMANDS_QUEUED_MAX);
    let (closing, closed) = oneshot::channel();
    let link = {
        let mut core = shared.core();
        core.last_link += 1;
        let link = LinkId(core.last_link);
        if let Ok(address) = peer.address.parse::<SocketAddr>() {
            core.addresses.insert(peer.pin, address.ip().to_canonical());
        }
        core.outboxes.insert(link, Outbox { commands, closing });
        core.state.connected(link, enrolled, shared.now_ms());
        shared.act(&mut core);
        link
    };
    // Whichever ends first ends the other: a closed connection yields no more reports.
    let why = tokio::select! {
        why = write(sender, waiting, closed) => why,
        why = read(&shared, link, receiver) => why,
    };
    tracing::info!(mover, "the connection to a mover has ended: {why}");
    let mut core = shared.core();
    core.outboxes.remove(&link);
    core.state.link_lost(link);
    shared.act(&mut core);
}

/// Sends what waits, until the connection is to be closed or breaks; why it ended.
async fn write(
    mut sender: ControlSender,
    mut waiting: mpsc::Receiver<Command>,
    mut closed: oneshot::Receiver<CloseReason>,
) -> String {
    let send_all = async {
        while let Some(command) = waiting.recv().await {
            if let Err(error) = sender.send(&command).await {
                return error.to_string();
            }
        }
        // The outbox goes only together with a reason.
        std::future::pending().await
    };
    let reason = tokio::select! {
        biased;
        reason = &mut closed => reason,
        why = send_all => return why,
    };
    let reason = reason.unwrap_or(CloseReason::Failed("gantryd has let the connection go".into()));
    sender.close(&reason);
    format!("closed here: {reason:?}")
}

/// Takes reports to the state; why they ended.
async fn read(shared: &Shared, link: LinkId, mut receiver: ControlReceiver) -> String {
    loop {
        match receiver.receive::<Report>().await {
            Ok(Some(report)) => {
                let is_quiet = matches!(report, Report::Progress { .. } | Report::Answer { .. });
                let mut core = shared.core();
                core.state.received(link, report, shared.now_ms());
                if is_quiet {
                    shared.act_quietly(&mut core);
                } else {
                    shared.act(&mut core);
                }
            }
            Ok(None) => return "the mover has gone".into(),
            Err(error) => return error.to_string(),
        }
    }
}
