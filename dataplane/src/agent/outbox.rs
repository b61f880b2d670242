//! What waits to be told to gantryd: the newest progress of each task, and each end.
//!
//! In: progress and ends, as they come. Out: one at a time, ends first. Invariants: bounded by the
//! number of tasks, whatever the link does; an end is dropped only when it was forgotten (it is also in
//! the table of tasks, and told again at the next `Hello`).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use gantry_common::ids::TaskId;
use gantry_common::work::DiskProgress;
use tokio::sync::Notify;

/// One thing to tell.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// This task has ended; its end is in the table.
    End(TaskId),
    /// How a task goes on.
    Progress(TaskId, Vec<DiskProgress>),
}

#[derive(Debug, Default)]
struct Waiting {
    ends: BTreeSet<TaskId>,
    progress: BTreeMap<TaskId, Vec<DiskProgress>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: RefCell<Waiting>,
    changed: Notify,
}

impl Outbox {
    /// A new link: `Hello` tells all that ended.
    pub(super) fn begin(&self) {
        self.waiting.borrow_mut().ends.clear();
    }

    pub(super) fn end(&self, task: TaskId) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.progress.remove(&task);
        waiting.ends.insert(task);
        self.changed.notify_one();
    }

    /// Replaces what of this task was not told yet.
    pub(super) fn progress(&self, task: TaskId, disks: Vec<DiskProgress>) {
        self.waiting.borrow_mut().progress.insert(task, disks);
        self.changed.notify_one();
    }

    pub(super) fn forget(&self, task: TaskId) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.progress.remove(&task);
        waiting.ends.remove(&task);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.borrow().ends.is_empty()
    }

    /// The next thing to tell. May be dropped and called again without loss.
    pub(super) async fn next(&self) -> Tell {
        loop {
            {
                let mut waiting = self.waiting.borrow_mut();
                if let Some(task) = waiting.ends.pop_first() {
                    return Tell::End(task);
                }
                if let Some((task, disks)) = waiting.progress.pop_first() {
                    return Tell::Progress(task, disks);
                }
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn progress_coalesces_and_ends_come_first() {
        let outbox = Outbox::default();
        let [one, two] = [1, 2].map(|byte| TaskId([byte; 16]));
        let progress = |done_bytes| vec![DiskProgress { done_bytes, ..DiskProgress::default() }];
        for done in 0..10_000 {
            outbox.progress(one, progress(done));
            outbox.progress(two, progress(done));
        }
        outbox.end(two);
        outbox.end(two);
        assert_eq!(outbox.next().await, Tell::End(two));
        assert_eq!(outbox.next().await, Tell::Progress(one, progress(9_999)));
        assert!(outbox.is_empty());
        let nothing = tokio::time::timeout(std::time::Duration::from_millis(20), outbox.next());
        assert!(nothing.await.is_err());
    }
}
