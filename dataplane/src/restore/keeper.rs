//! Makes a restore durable, and writes down how far it is: syncs block, so they have a thread.
//!
//! In: coverages. Out: one answer each. Invariant: data are synced before a sidecar names them; a
//! failed sync is never tried again. Must not: run on the network's thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use gantry_common::extents::RunSet;
use gantry_common::failure::{Failure, FailureKind};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::resume::{Sidecar, What};
use super::target::{Target, sync_directory};

#[derive(Debug)]
enum Order {
    Checkpoint(RunSet),
    Finish,
}

/// The thread's face. One order may be under way.
#[derive(Debug)]
pub(super) struct Keeper {
    orders: Sender<Order>,
    answers: UnboundedReceiver<Result<Option<String>, Failure>>,
    busy: bool,
    thread: Option<JoinHandle<()>>,
}

struct Desk {
    target: Arc<Target>,
    what: What,
    sidecar: PathBuf,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Internal`: no thread.
    pub(super) fn start(
        target: Arc<Target>,
        what: What,
        sidecar: PathBuf,
    ) -> Result<Keeper, Failure> {
        let (orders, order_receiver) = crossbeam_channel::bounded(1);
        let (answer_sender, answers) = unbounded_channel();
        let desk = Desk { target, what, sidecar };
        let thread = std::thread::Builder::new()
            .name("restore-keeper".to_owned())
            .spawn(move || desk.run(order_receiver, &answer_sender))
            .map_err(|error| {
                Failure::new(FailureKind::Internal, format!("cannot start a thread: {error}"))
            })?;
        Ok(Keeper { orders, answers, busy: false, thread: Some(thread) })
    }

    /// Whether an order is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Orders a checkpoint, unless an order is under way.
    pub(super) fn checkpoint(&mut self, covered: &RunSet) {
        if !self.busy {
            self.busy = self.orders.try_send(Order::Checkpoint(covered.clone())).is_ok();
        }
    }

    /// The answer to the order under way: a note for a person, if there is something to say. Waits
    /// forever while there is none.
    pub(super) async fn answer(&mut self) -> Result<Option<String>, Failure> {
        if !self.busy {
            return std::future::pending().await;
        }
        let answer = self.answers.recv().await;
        self.busy = false;
        answer.unwrap_or_else(|| {
            Err(Failure::new(FailureKind::Internal, "the thread that syncs has ended"))
        })
    }

    /// Makes everything durable and removes the sidecar.
    ///
    /// # Errors
    /// `Source`: a sync failed.
    pub(super) async fn finish(&mut self) -> Result<(), Failure> {
        if self.busy {
            self.answer().await?;
        }
        self.busy = self.orders.try_send(Order::Finish).is_ok();
        self.answer().await.map(|_| ())
    }

    /// A last checkpoint of a restore that failed, so that the next run goes on from there.
    pub(super) async fn leave(&mut self, covered: &RunSet) {
        if self.busy && self.answer().await.is_err() {
            return;
        }
        self.checkpoint(covered);
        if self.busy {
            // The restore has failed already, with its own reason.
            let _ = self.answer().await;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let (closed, _) = crossbeam_channel::bounded(0);
        self.orders = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Desk {
    fn run(
        self,
        orders: Receiver<Order>,
        answers: &UnboundedSender<Result<Option<String>, Failure>>,
    ) {
        for order in orders {
            let answer = match order {
                Order::Checkpoint(covered) => self.checkpoint(&covered),
                Order::Finish => self.finish().map(|()| None),
            };
            let failed = answer.is_err();
            if answers.send(answer).is_err() || failed {
                return;
            }
        }
    }

    fn sync(&self) -> Result<(), Failure> {
        let synced = self.target.owned.sync_data();
        synced.map_err(|error| self.target.write_failure("make the restored data durable", &error))
    }

    fn checkpoint(&self, covered: &RunSet) -> Result<Option<String>, Failure> {
        self.sync()?;
        let saved = self
            .target
            .id()
            .and_then(|id| Sidecar::new(self.what.clone(), Some(id), covered).save(&self.sidecar));
        Ok(saved.err().map(|error| {
            format!("{}: {error}; this restore cannot be resumed", self.sidecar.display())
        }))
    }

    fn finish(&self) -> Result<(), Failure> {
        self.sync()?;
        let remove = || {
            if !self.target.is_device {
                sync_directory(&self.target.path)?;
            }
            std::fs::remove_file(&self.sidecar)?;
            sync_directory(&self.sidecar)
        };
        remove().map_err(|error| self.target.write_failure("finish the restore", &error))
    }
}
