//! The outgoing side of a connection that is not QUIC: two bounded queues and how it ended.
//!
//! In: items of one control stream and of the lanes. Out: the same, to whoever holds the other end
//! of the queues. Invariant: a sender never waits for a connection that is gone.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::error::{CloseReason, Ends, TransportError};
use super::frame_io::Channel;
use super::link::{CONTROL_QUEUE_FRAMES, LANE_QUEUE_FRAMES};

/// An item, or the end of that stream.
pub(super) type Queued<T> = Option<T>;
/// What this side said when it closed.
pub(super) type Closing = Option<CloseReason>;
/// How the connection ended, once it has.
pub(super) type Ended = Option<Result<(), TransportError>>;

/// The end that takes items.
#[derive(Debug)]
pub(super) struct Outlet<T> {
    control: mpsc::Sender<Queued<T>>,
    lanes: mpsc::Sender<Queued<T>>,
    closing: Arc<watch::Sender<Closing>>,
    ended: watch::Receiver<Ended>,
}

impl<T> Clone for Outlet<T> {
    fn clone(&self) -> Outlet<T> {
        let Outlet { control, lanes, closing, ended } = self;
        Outlet {
            control: control.clone(),
            lanes: lanes.clone(),
            closing: closing.clone(),
            ended: ended.clone(),
        }
    }
}

/// The end that gives them.
#[derive(Debug)]
pub(super) struct Source<T> {
    /// Nothing once the stream has ended.
    control: Option<mpsc::Receiver<Queued<T>>>,
    lanes: Option<mpsc::Receiver<Queued<T>>>,
    closing: watch::Receiver<Closing>,
}

/// What a [`Source`] gives next.
#[derive(Debug)]
pub(super) enum Next<T> {
    Item(T),
    /// Both streams have ended.
    End,
    /// The sending side closed, or (nothing) is gone.
    Closed(Option<CloseReason>),
}

/// Both ends; `ended` tells the sender that the connection is gone.
pub(super) fn queues<T>(ended: watch::Receiver<Ended>) -> (Outlet<T>, Source<T>) {
    let (control_in, control) = mpsc::channel(CONTROL_QUEUE_FRAMES);
    let (lanes_in, lanes) = mpsc::channel(LANE_QUEUE_FRAMES);
    let (closing_in, closing) = watch::channel(None);
    let outlet =
        Outlet { control: control_in, lanes: lanes_in, closing: Arc::new(closing_in), ended };
    (outlet, Source { control: Some(control), lanes: Some(lanes), closing })
}

impl<T> Outlet<T> {
    /// Queues an item, waiting for room.
    pub(super) async fn send(
        &self,
        channel: Channel,
        item: T,
        ends: &Ends,
    ) -> Result<(), TransportError> {
        let queue = if channel == Channel::Control { &self.control } else { &self.lanes };
        let mut closing = self.closing.subscribe();
        let mut ended = self.ended.clone();
        let sent = tokio::select! {
            biased;
            _ = closing.wait_for(Option::is_some) => false,
            Ok(_) = ended.wait_for(Option::is_some) => false,
            sent = queue.send(Some(item)) => sent.is_ok(),
        };
        if sent { Ok(()) } else { Err(self.why(ends)) }
    }

    fn why(&self, ends: &Ends) -> TransportError {
        if self.closing.borrow().is_some() {
            return ends.closed_here();
        }
        match &*self.ended.borrow() {
            Some(Err(error)) => error.clone(),
            Some(Ok(())) => ends.lost("the peer is done"),
            None => ends.lost("the peer dropped it"),
        }
    }

    /// Puts the ends behind all items.
    pub(super) async fn finish_queued(&self) {
        // A source that is gone needs no end.
        let _ = self.lanes.send(None).await;
        let _ = self.control.send(None).await;
    }

    /// Puts the ends behind all items, and waits until the source is gone.
    pub(super) async fn finish(&self) {
        self.finish_queued().await;
        self.closing.closed().await;
    }

    /// Waits until the peer has ended too.
    pub(super) async fn ended(&self) {
        let _ = self.ended.clone().wait_for(Option::is_some).await;
    }

    /// Closes at once; the first reason stays.
    pub(super) fn close(&self, reason: CloseReason) {
        close(&self.closing, reason);
    }

    pub(super) fn closing(&self) -> Arc<watch::Sender<Closing>> {
        self.closing.clone()
    }
}

pub(super) fn close(closing: &watch::Sender<Closing>, reason: CloseReason) {
    closing.send_if_modified(|closing| {
        let first = closing.is_none();
        closing.get_or_insert(reason);
        first
    });
}

/// The next of a queue that is there; nothing at once, if it is not.
async fn next<T>(queue: &mut Option<mpsc::Receiver<Queued<T>>>) -> Option<Queued<T>> {
    match queue {
        Some(queue) => queue.recv().await,
        None => None,
    }
}

impl<T> Source<T> {
    pub(super) fn closing(&self) -> watch::Receiver<Closing> {
        self.closing.clone()
    }

    /// The next item, control first; lanes only if `lanes` says so. May be dropped without loss.
    pub(super) async fn next(&mut self, lanes: bool) -> Next<T> {
        loop {
            if self.control.is_none() && (self.lanes.is_none() || !lanes) {
                return Next::End;
            }
            let (item, stream) = tokio::select! {
                biased;
                Some(item) = next(&mut self.control) => (item, &mut self.control),
                Some(item) = next(&mut self.lanes), if lanes => (item, &mut self.lanes),
                closing = self.closing.wait_for(Option::is_some) => {
                    return Next::Closed(closing.ok().and_then(|reason| reason.clone()));
                }
            };
            match item {
                Some(item) => return Next::Item(item),
                None => *stream = None,
            }
        }
    }
}
