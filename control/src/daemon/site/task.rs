//! A disk's task on a mover of the fleet, as its run hears of it.
//!
//! In: what the fleet says. Out: the same as the run knows it; its numbers go to the throttle too.

use std::time::Duration;

use gantry_common::control::TaskOutcome;
use gantry_common::failure::FailureKind;

use crate::daemon::traffic::FlowHandle;
use crate::fleet::{self, TaskHandle};
use crate::run::failed;
use crate::run::site::{Task, TaskEvent};

/// How long a mover that is lost (silent for 30 s) is waited for before another proxy goes on.
const MOVER_BACK_WITHIN: Duration = Duration::from_secs(5);

/// A task on a mover of the fleet.
pub struct FleetTask {
    pub(super) handle: TaskHandle,
    /// Its share ends with it.
    pub(super) flow: Option<FlowHandle>,
    pub(super) proxy: String,
    /// Its mover is silent.
    pub(super) lost: bool,
}

impl Task for FleetTask {
    async fn next(&mut self) -> TaskEvent {
        loop {
            let event = if self.lost {
                match tokio::time::timeout(MOVER_BACK_WITHIN, self.handle.next()).await {
                    Ok(event) => event,
                    Err(_) => {
                        return TaskEvent::Lost(format!("proxy {} is gone", self.proxy));
                    }
                }
            } else {
                self.handle.next().await
            };
            match event {
                fleet::TaskEvent::Progress(disks) => {
                    self.flow.iter().for_each(|flow| flow.progress(&disks));
                    return TaskEvent::Progress(disks);
                }
                fleet::TaskEvent::MoverLost { .. } => self.lost = true,
                fleet::TaskEvent::MoverBack => self.lost = false,
                fleet::TaskEvent::Ended(outcome) => return ended(outcome, &self.proxy),
            }
        }
    }
}

fn ended(outcome: TaskOutcome, proxy: &str) -> TaskEvent {
    match outcome {
        TaskOutcome::Done(report) => match serde_json::from_slice(&report) {
            Ok(report) => TaskEvent::Done(report),
            Err(error) => TaskEvent::Failed(failed(
                FailureKind::Internal,
                format!("proxy {proxy} reported what is no JSON: {error}"),
            )),
        },
        TaskOutcome::Failed(failure) => TaskEvent::Failed(failure),
        TaskOutcome::Stopped => TaskEvent::Stopped,
        TaskOutcome::Died(why) => TaskEvent::Lost(format!("proxy {proxy}: {why}")),
    }
}
