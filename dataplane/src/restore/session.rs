//! One connection of a restore: the greeting, then requests, credits and blocks until all is there.
//!
//! In: frames of a repository that need not be honest. Out: what was asked for, to the workers.
//! Invariant: credit never exceeds free buffers; nothing is accepted unasked. Must not: touch the
//! destination.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{IdKey, RepositoryId, SessionId};
use gantry_common::limits;
use gantry_common::wire::{
    FrameError, Intent, PROTOCOL, PointSummary, RestoreOffer, TicketBytes, ToSource, ToTarget,
};
use tokio::sync::Notify;

use super::requests::Requests;
use super::run::RestoreRun;
use super::workers::Job;
use crate::payload::PayloadPool;
use crate::transport::{Connection, FrameReceiver, FrameSender, InFrame, OutFrame, TransportError};

/// How often to look after time while nothing comes.
const TICK: Duration = Duration::from_millis(500);
/// Longest wait for the answer to the greeting.
const GREETING_MAX: Duration = Duration::from_secs(60);
/// Longest time without any progress before a connection counts as lost.
const STALL_MAX: Duration = Duration::from_secs(120);

/// How a connection ended before its work was done.
#[derive(Debug)]
pub(super) enum Ended {
    /// It was lost; another may go on.
    Lost(Failure),
    /// The restore cannot go on.
    Fatal(Failure),
}

impl From<TransportError> for Ended {
    fn from(error: TransportError) -> Ended {
        let failure = Failure::from(error);
        match failure.kind.is_retryable() {
            true => Ended::Lost(failure),
            false => Ended::Fatal(failure),
        }
    }
}

fn violation(what: impl std::fmt::Display) -> Ended {
    let text = format!("the repository breaks the protocol: {what}");
    Ended::Fatal(Failure::new(FailureKind::Refused, text))
}

impl From<FrameError> for Ended {
    fn from(error: FrameError) -> Ended {
        violation(error)
    }
}

/// A failure as the repository told it, with a bounded text. Never tried again.
fn told(mut failure: Failure) -> Failure {
    while failure.message.len() > limits::TEXT_BYTES_MAX {
        failure.message.pop();
    }
    failure
}

/// What the greeting brought.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    /// The repository.
    pub(super) repository: RepositoryId,
    /// Its key.
    pub(super) id_key: IdKey,
    /// The point.
    pub(super) point: PointSummary,
    /// For a reconnection.
    pub(super) ticket: Option<TicketBytes>,
}

/// A connection that was greeted.
#[derive(Debug)]
pub(super) struct RestoreSession {
    sender: FrameSender,
    receiver: FrameReceiver,
    requests: Requests,
    returned: Arc<Returned>,
    slots: u64,
    credit: u64,
    refused: Option<Failure>,
}

#[derive(Debug, Default)]
struct Returned {
    count: AtomicU64,
    notify: Notify,
}

/// Greets the repository and opens the point.
pub(super) async fn greet(
    connection: &mut Connection,
    session: SessionId,
    offer: &RestoreOffer,
    ticket: Option<TicketBytes>,
) -> Result<Opened, Ended> {
    let hello = ToTarget::Hello {
        protocol: PROTOCOL,
        software: concat!("gantry-mover ", env!("CARGO_PKG_VERSION")).to_owned(),
        session,
        intent: Intent::Restore(offer.clone()),
        ticket,
    };
    connection.sender.send_control(OutFrame::message(&hello)).await?;
    let answer = tokio::time::timeout(GREETING_MAX, read_greeting(&mut connection.receiver)).await;
    answer.unwrap_or_else(|_| {
        let text = format!("{} does not answer", connection.peer.address);
        Err(Ended::Lost(Failure::new(FailureKind::Network, text)))
    })
}

async fn read_greeting(receiver: &mut FrameReceiver) -> Result<Opened, Ended> {
    let mut welcome = None;
    loop {
        let frame = receiver.recv().await?.ok_or_else(ended_early)?;
        match (frame.decode::<ToSource>()?, &welcome) {
            (ToSource::Welcome { repository, id_key, ticket, .. }, None) => {
                welcome = Some((repository, id_key, ticket));
            }
            (ToSource::PointOpened { point }, Some((repository, id_key, ticket))) => {
                let (repository, id_key, ticket) = (*repository, *id_key, ticket.clone());
                return Ok(Opened { repository, id_key, point, ticket });
            }
            (ToSource::Failed { failure, .. } | ToSource::Refused { failure }, _) => {
                return Err(Ended::Fatal(told(failure)));
            }
            _ => return Err(violation("a message that does not belong to the greeting")),
        }
    }
}

fn ended_early() -> Ended {
    let text = "the repository ended the connection before everything had come";
    Ended::Lost(Failure::new(FailureKind::Network, text))
}

impl RestoreSession {
    /// Prepares to bring what `run` lacks, with `slots` buffers for blocks on their way.
    pub(super) fn new(
        connection: Connection,
        run: &RestoreRun,
        slots: usize,
    ) -> Result<RestoreSession, Ended> {
        let Connection { sender, mut receiver, .. } = connection;
        let returned = Arc::new(Returned::default());
        let hook = Arc::clone(&returned);
        let on_return = Arc::new(move || {
            hook.count.fetch_add(1, Ordering::Relaxed);
            hook.notify.notify_one();
        });
        let block_bytes = run.shape.block_size.bytes() as usize;
        let pool = PayloadPool::with_notify(slots, block_bytes, on_return).map_err(|error| {
            let text = format!("no memory for {slots} blocks: {error}");
            Ended::Fatal(Failure::new(FailureKind::Internal, text))
        })?;
        receiver.accept_lanes(pool);
        let requests = Requests::new(run.accepted.gaps(run.shape.blocks()), run.ahead);
        let (slots, credit, refused) = (slots as u64, 0, None);
        Ok(RestoreSession { sender, receiver, requests, returned, slots, credit, refused })
    }

    /// Runs until everything has come and is at the destination.
    pub(super) async fn run(&mut self, run: &mut RestoreRun) -> Result<(), Ended> {
        loop {
            self.ask(run).await?;
            self.grant().await?;
            run.checkpoint_if_due();
            if self.requests.is_done() {
                break;
            }
            self.event(run).await?;
        }
        run.settle_rest().await.map_err(Ended::Fatal)?;
        match self.refused.take() {
            Some(failure) => Err(Ended::Fatal(failure)),
            None => Ok(()),
        }
    }

    /// Says goodbye; whether the peer hears it does not matter any more.
    pub(super) async fn leave(mut self) {
        let goodbye = async {
            self.sender.send_control(OutFrame::message(&ToTarget::Bye)).await?;
            while self.receiver.recv().await?.is_some() {}
            Ok::<(), TransportError>(())
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), goodbye).await;
        self.sender.close(crate::transport::CloseReason::Done);
    }

    async fn ask(&mut self, run: &RestoreRun) -> Result<(), Ended> {
        while let Some((batch, blocks)) = self.requests.next(run.request_limit()) {
            let read = ToTarget::Read { batch, run: blocks };
            self.sender.send_control(OutFrame::message(&read)).await?;
        }
        Ok(())
    }

    /// Grants what has become free, in portions.
    async fn grant(&mut self) -> Result<(), Ended> {
        let total = self.slots + self.returned.count.load(Ordering::Relaxed);
        let portion = (self.slots / 8).max(1);
        if self.credit == 0 || total >= self.credit + portion {
            self.credit = total;
            self.sender.send_control(OutFrame::message(&ToTarget::Credit { total })).await?;
        }
        Ok(())
    }

    async fn event(&mut self, run: &mut RestoreRun) -> Result<(), Ended> {
        let returned = Arc::clone(&self.returned);
        let keeper = async {
            match &mut run.keeper {
                Some(keeper) => keeper.answer().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            frame = self.receiver.recv() => self.frame(frame, run)?,
            done = run.done.recv() => {
                if let Some(done) = done {
                    run.settle(done).map_err(Ended::Fatal)?;
                }
                run.settle_all().map_err(Ended::Fatal)?;
            }
            () = returned.notify.notified() => {}
            note = keeper => run.notes.extend(note.map_err(Ended::Fatal)?),
            () = tokio::time::sleep(TICK) => self.look_for_stall(run)?,
        }
        Ok(())
    }

    fn look_for_stall(&self, run: &RestoreRun) -> Result<(), Ended> {
        if run.last_progress.elapsed() < STALL_MAX || !run.is_settled() {
            return Ok(());
        }
        let first = self.requests.oldest().map_or(0, |run| run.first);
        let text = format!(
            "the repository has sent nothing for {} s; block {first} was asked for first",
            STALL_MAX.as_secs()
        );
        Err(Ended::Lost(Failure::new(FailureKind::Network, text)))
    }

    fn frame(
        &mut self,
        frame: Result<Option<InFrame>, TransportError>,
        run: &mut RestoreRun,
    ) -> Result<(), Ended> {
        let frame = match (frame, self.refused.take()) {
            (Ok(Some(frame)), refused) => {
                self.refused = refused;
                frame
            }
            // What the repository said before it went tells more than that it went.
            (_, Some(failure)) => return Err(Ended::Fatal(failure)),
            (Ok(None), None) => return Err(ended_early()),
            (Err(error), None) => return Err(error.into()),
        };
        match frame.decode::<ToSource>()? {
            ToSource::Block { block, head } => {
                self.requests.block(block).map_err(violation)?;
                let stored_bytes = u64::from(frame.payload_len());
                let payload = frame.payload.ok_or_else(|| violation("a block without bytes"))?;
                run.block(Job::Block { block, head, payload }, block, stored_bytes);
            }
            ToSource::Zeros { runs } => {
                for zeros in runs {
                    self.requests.zeros(zeros).map_err(violation)?;
                    run.zeros(zeros);
                }
            }
            ToSource::ReadDone { batch, blocks, reading_us, sending_us } => {
                self.requests.answered(batch, blocks).map_err(violation)?;
                run.totals.reading_us = run.totals.reading_us.saturating_add(reading_us);
                run.totals.sending_us = run.totals.sending_us.saturating_add(sending_us);
            }
            // A block that the repository cannot give: what else was asked for still comes.
            ToSource::Failed { failure, .. } => {
                self.requests.stop();
                self.refused.get_or_insert(told(failure));
            }
            ToSource::Refused { failure } => return Err(Ended::Fatal(told(failure))),
            _ => return Err(violation("a message that does not belong to a restore")),
        }
        Ok(())
    }
}

/// Waits before the `attempt`th reconnection.
pub(super) fn pause(attempt: u32) -> impl Future<Output = ()> {
    tokio::time::sleep(Duration::from_millis(100 << attempt.min(6)))
}
