//! A task of a mover, for its owner.
//!
//! In: what the fleet hears of the task. Out: [`TaskEvent`]s in a sensible order, the newest
//! progress only, so that a slow owner costs no memory. Dropping a handle leaves the task as it is,
//! to be adopted again; [`TaskHandle::forget`] is the other way to end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_common::control::TaskOutcome;
use gantry_common::failure::Failure;
use gantry_common::ids::{PeerId, TaskId};
use gantry_common::secret::Secret;
use gantry_common::work::DiskProgress;
use tokio::sync::Notify;

use super::service::Fleet;
use super::view::TaskEvent;

/// A task. Its owner writes the end down, durably, and then calls [`TaskHandle::forget`].
pub struct TaskHandle {
    fleet: Fleet,
    mover: PeerId,
    task: TaskId,
    mailbox: Arc<Mailbox>,
}

impl TaskHandle {
    pub(super) fn new(
        fleet: Fleet,
        mover: PeerId,
        task: TaskId,
        mailbox: Arc<Mailbox>,
    ) -> TaskHandle {
        TaskHandle { fleet, mover, task, mailbox }
    }

    /// Its name.
    pub fn task(&self) -> TaskId {
        self.task
    }

    /// Who carries it out.
    pub fn mover(&self) -> PeerId {
        self.mover
    }

    /// What comes next. [`TaskEvent::Ended`] comes once, and after it nothing more, ever. May be
    /// dropped and called again without loss.
    pub async fn next(&mut self) -> TaskEvent {
        loop {
            // A permit that is older than the letter costs one more round, none is lost.
            if let Some(event) = self.mailbox.take() {
                return event;
            }
            self.mailbox.arrived.notified().await;
        }
    }

    /// Ends it; its end comes as usual.
    pub fn stop(&self) {
        self.fleet.stop(self.task);
    }

    /// Limits its rate on the wire (bytes a second), or no longer.
    pub fn set_rate(&self, bytes_per_second: Option<u64>) {
        self.fleet.set_rate(self.task, bytes_per_second);
    }

    /// Gives it a credential, or another content of it.
    ///
    /// # Errors
    /// See [`Fleet::set_credential`].
    pub fn set_credential(&self, name: &str, content: Secret) -> Result<(), Failure> {
        self.fleet.set_credential(self.task, name, content)
    }

    /// Its end is written down: the mover forgets it. A task that still runs is stopped, and
    /// nobody hears of it again.
    pub fn forget(self) {
        self.fleet.forget(self.mover, self.task);
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        self.fleet.let_go(self.task, &self.mailbox);
    }
}

/// What waits for a task's owner: of each kind the newest.
#[derive(Default)]
pub(super) struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

#[derive(Default)]
struct Mail {
    progress: Option<Vec<DiskProgress>>,
    lost_since_ms: Option<u64>,
    told_lost: bool,
    ended: Option<TaskOutcome>,
}

impl Mailbox {
    pub(super) fn put(&self, event: TaskEvent) {
        let mut mail = self.mail();
        match event {
            TaskEvent::Progress(disks) => mail.progress = Some(disks),
            TaskEvent::MoverLost { since_ms } => mail.lost_since_ms = Some(since_ms),
            TaskEvent::MoverBack => mail.lost_since_ms = None,
            TaskEvent::Ended(outcome) => mail.ended = Some(outcome),
        }
        drop(mail);
        self.arrived.notify_one();
    }

    fn take(&self) -> Option<TaskEvent> {
        let mut mail = self.mail();
        if mail.lost_since_ms.is_some() != mail.told_lost {
            mail.told_lost = !mail.told_lost;
            let lost = mail.lost_since_ms.map(|since_ms| TaskEvent::MoverLost { since_ms });
            return Some(lost.unwrap_or(TaskEvent::MoverBack));
        }
        let progress = mail.progress.take().map(TaskEvent::Progress);
        progress.or_else(|| mail.ended.take().map(TaskEvent::Ended))
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_owner_gets_the_newest_and_the_end_last() {
        let mailbox = Mailbox::default();
        let disk = |done_bytes| vec![DiskProgress { done_bytes, ..DiskProgress::default() }];
        mailbox.put(TaskEvent::MoverLost { since_ms: 1 });
        mailbox.put(TaskEvent::MoverBack);
        mailbox.put(TaskEvent::Progress(disk(1)));
        mailbox.put(TaskEvent::Ended(TaskOutcome::Stopped));
        mailbox.put(TaskEvent::Progress(disk(2)));
        assert_eq!(mailbox.take(), Some(TaskEvent::Progress(disk(2))));
        assert_eq!(mailbox.take(), Some(TaskEvent::Ended(TaskOutcome::Stopped)));
        assert_eq!(mailbox.take(), None);
        mailbox.put(TaskEvent::MoverLost { since_ms: 7 });
        assert_eq!(mailbox.take(), Some(TaskEvent::MoverLost { since_ms: 7 }));
        mailbox.put(TaskEvent::MoverBack);
        assert_eq!(mailbox.take(), Some(TaskEvent::MoverBack));
    }
}
