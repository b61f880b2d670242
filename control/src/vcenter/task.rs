//! Waits for a task to end: by updates, or by looking at it where those are not to be had.
//!
//! In: a task's reference, limits, a progress callback and a sign to cancel. Out: [`TaskEnd`], or
//! the task's fault. A task that does not end in time is not given up silently: the error says that
//! its outcome is unknown.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::error::{ErrorKind, VimError};
use super::fault::Fault;
use super::moref::MoRef;
use super::property::{ObjectContent, Properties, Start};
use super::retry::Repeat;
use super::session::VCenter;
use super::updates::{ChangeOp, Watch};
use super::xml::Element;
use crate::limits;

const PATHS: [&str; 4] = ["info.state", "info.progress", "info.result", "info.error"];

/// How to wait.
pub struct TaskWait<'a> {
    /// The method that began it, for errors.
    pub method: &'static str,
    /// The object it works on, for errors.
    pub object: &'a str,
    /// How long at most.
    pub timeout: Duration,
    /// Hears the percentage whenever it changes.
    pub progress: Option<&'a mut (dyn FnMut(u8) + Send)>,
    /// Once true, the task is asked to end.
    pub cancel: Option<watch::Receiver<bool>>,
}

impl<'a> TaskWait<'a> {
    /// Waits for so long, without progress or cancelling.
    pub fn new(method: &'static str, object: &'a str, timeout: Duration) -> TaskWait<'a> {
        TaskWait { method, object, timeout, progress: None, cancel: None }
    }
}

/// A task that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskEnd {
    /// Its result, such as the new snapshot; many have none.
    pub result: Option<Element>,
}

/// What is known of a task.
#[derive(Debug, Default)]
struct Facts {
    state: String,
    progress: Option<u8>,
    result: Option<Element>,
    error: Option<Fault>,
}

impl Facts {
    fn set(&mut self, path: &str, value: Option<&Element>) {
        match path {
            "info.state" => {
                self.state = value.map(|value| value.text.to_string()).unwrap_or_default();
            }
            "info.progress" => {
                let percent = value.and_then(|value| value.text.trim().parse::<u8>().ok());
                self.progress = percent.map(|percent| percent.min(100));
            }
            "info.result" => self.result = value.cloned(),
            "info.error" => self.error = value.map(Fault::parse_localized),
            _ => {}
        }
    }

    fn of(content: &ObjectContent) -> Facts {
        let mut facts = Facts::default();
        for property in &content.properties {
            facts.set(&property.path, Some(&property.value));
        }
        facts
    }

    fn end(&self) -> Option<Result<TaskEnd, Fault>> {
        match self.state.as_str() {
            "success" => Some(Ok(TaskEnd { result: self.result.clone() })),
            "error" => Some(Err(self.error.clone().unwrap_or_else(|| Fault {
                kind: super::fault::FaultKind::Other { fault: "unknown".into() },
                message: "the task failed without a reason".into(),
            }))),
            _ => None,
        }
    }
}

/// How the next news of a task come.
enum Source {
    Updates { watch: Watch, version: Option<String> },
    Polling,
}

impl VCenter {
    /// Waits for a task.
    ///
    /// # Errors
    /// The task's own fault; [`ErrorKind::TaskTimeout`] when it did not end in time;
    /// [`ErrorKind::Cancelled`] when it was cancelled and has ended; errors of the way there.
    pub async fn wait_for_task(
        &self,
        task: &MoRef,
        mut wait: TaskWait<'_>,
    ) -> Result<TaskEnd, VimError> {
        let deadline = Instant::now() + wait.timeout;
        let mut source = self.task_source(task).await;
        let mut cancelled: Option<Instant> = None;
        let mut told = None;
        let ended = loop {
            let now = Instant::now();
            let limit = cancelled.map_or(deadline, |since| {
                since + Duration::from_secs(limits::TASK_CANCEL_SECONDS_MAX)
            });
            if now >= limit {
                break Err(ErrorKind::TaskTimeout {
                    task: task.to_string(),
                    seconds: wait.timeout.as_secs(),
                });
            }
            let asked = async {
                match &mut wait.cancel {
                    Some(cancel) if cancelled.is_none() => {
                        // An error: whoever could have cancelled is gone.
                        if cancel.wait_for(|asked| *asked).await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    }
                    _ => std::future::pending().await,
                }
            };
            let facts = tokio::select! {
                biased;
                () = asked => {
                    cancelled = Some(Instant::now());
                    self.cancel_task(task, wait.object).await;
                    continue;
                }
                facts = self.next_facts(task, &mut source, limit - now) => facts,
            };
            let facts = match facts {
                Ok(facts) => facts,
                Err(error) => {
                    self.drop_source(source).await;
                    return Err(VimError {
                        method: wait.method,
                        object: wait.object.into(),
                        ..error
                    });
                }
            };
            if let (Some(percent), Some(tell)) = (facts.progress, wait.progress.as_mut())
                && told != Some(percent)
            {
                told = Some(percent);
                tell(percent);
            }
            match facts.end() {
                Some(Err(_)) if cancelled.is_some() => break Err(ErrorKind::Cancelled),
                Some(end) => break end.map_err(ErrorKind::Fault),
                None => {}
            }
        };
        self.drop_source(source).await;
        ended.map_err(|kind| self.error(wait.method, wait.object, kind))
    }

    /// Asks a task to end; that it cannot is no error here, since it is waited for all the same.
    pub async fn cancel_task(&self, task: &MoRef, object: &str) {
        let sent = self.call("CancelTask", task, object, Repeat::Harmless, |_| {}).await;
        if let Err(error) = sent {
            tracing::info!(%error, "a task cannot be cancelled");
        }
    }

    async fn task_source(&self, task: &MoRef) -> Source {
        let objects = [task.clone()];
        let properties = [Properties { kind: "Task", paths: &PATHS }];
        match self.watch(&properties, &Start::Objects(&objects)).await {
            Ok(watch) => Source::Updates { watch, version: None },
            Err(error) => {
                tracing::debug!(%error, "a task is polled, since it cannot be watched");
                Source::Polling
            }
        }
    }

    async fn drop_source(&self, source: Source) {
        if let Source::Updates { watch, .. } = source {
            self.unwatch(watch).await;
        }
    }

    /// News of a task; falls back to polling when updates fail (a lost session takes the filter
    /// with it).
    async fn next_facts(
        &self,
        task: &MoRef,
        source: &mut Source,
        left: Duration,
    ) -> Result<Facts, VimError> {
        if let Source::Updates { watch, version } = source {
            let wait = left.min(Duration::from_secs(limits::UPDATES_WAIT_SECONDS));
            match self.wait_for_updates(watch, version.as_deref(), wait).await {
                Ok(None) => return Ok(Facts::default()),
                Ok(Some(set)) => {
                    let mut ended = false;
                    let mut facts = Facts::default();
                    for change in set.updates.iter().flat_map(|update| &update.changes) {
                        let value = (change.op == ChangeOp::Assign).then_some(&change.value);
                        facts.set(&change.path, value.and_then(Option::as_ref));
                        ended |= facts.end().is_some();
                    }
                    *version = Some(set.version);
                    if !ended {
                        return Ok(facts);
                    }
                    // Its result may have come in an earlier or only in a later update.
                }
                Err(error) => {
                    tracing::debug!(%error, "a task is polled, since its updates ceased");
                    *source = Source::Polling;
                }
            }
        } else {
            tokio::time::sleep(left.min(Duration::from_millis(limits::TASK_POLL_MS))).await;
        }
        let content = self.properties_of(task, "task", &PATHS).await?;
        Ok(Facts::of(&content))
    }
}
