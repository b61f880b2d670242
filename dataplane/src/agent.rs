//! The mover under gantryd: carries out tasks, tells how they go on and end, answers questions.
//!
//! In: [`Command`]s over a control link that this side dials, again and again. Out: [`Report`]s.
//! Each task is a process of its own (`agent/child.rs`); its standing is on disk
//! (`agent/standing.rs`), its credentials are files (`agent/credentials.rs`).
//!
//! Invariants: a task that is known is never started again; its end is kept, and told at every `Hello`,
//! until gantryd forgets it; tasks go on while gantryd is away. What waits for the link is bounded: the
//! newest progress of each task, each end once, a few answers. Must not: decide what is backed up.

mod answers;
mod child;
mod credentials;
mod facts;
mod link;
mod outbox;
mod pause;
mod renewal;
mod standing;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use gantry_common::control::{Command, TaskOutcome, TaskStanding};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{RepositoryId, TaskId};
use gantry_common::secret::Secret;
use serde::Deserialize;
use tokio::sync::watch;

use self::child::{End, Orders};
use self::credentials::CredentialFiles;
use self::outbox::Outbox;
use self::standing::Standings;
use crate::host::now_ms;
use crate::repository::Repository;
use crate::transport::{Identity, TicketKey, Trust};

/// Tasks that are known, running or ended and not yet forgotten.
const TASKS_KNOWN_MAX: usize = 256;
/// A clock that is further off than this is worth a word.
const CLOCK_OFF_MAX_MS: u64 = 60_000;

/// The table `[control]` of a mover's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlConfig {
    /// Where gantryd listens for movers, `HOST:PORT`.
    pub address: String,
    /// The name in gantryd's certificate.
    pub name: String,
    /// The certificate of the installation's authority (PEM).
    pub authority: PathBuf,
    /// gantryd's REST API, `https://HOST:PORT`, where certificates are renewed.
    pub api: Option<String>,
    /// This mover's folder for what must outlive it.
    #[serde(default = "state_default")]
    pub state: PathBuf,
    /// Tasks at a time, whatever gantryd asks for.
    #[serde(default = "tasks_default")]
    pub tasks: usize,
}

fn state_default() -> PathBuf {
    "/var/lib/gantry-mover".into()
}

fn tasks_default() -> usize {
    64
}

/// The table `[proxy]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// Datastores that are mounted on this host: name in vCenter → folder.
    #[serde(default)]
    pub mounts: BTreeMap<String, String>,
}

/// A repository that this mover serves besides.
pub struct ServedRepository {
    /// Its service.
    pub service: Rc<Repository>,
    /// Which.
    pub id: RepositoryId,
    /// Port on which other movers reach it.
    pub port: u16,
    /// Its folder.
    pub path: PathBuf,
}

/// A task as this mover knows it.
enum Task {
    Running(watch::Sender<Orders>),
    Ended(TaskOutcome),
}

/// The mover's side of the control protocol, on one tokio `LocalSet`.
pub struct Agent {
    config: ControlConfig,
    trust: Trust,
    identity: RefCell<Identity>,
    /// The program whose command `work` carries tasks out, and the file of this mover's identity.
    program: (PathBuf, PathBuf),
    facts: facts::Standing,
    repository: Option<Rc<Repository>>,
    standings: Standings,
    credentials: Arc<CredentialFiles>,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
    outbox: Outbox,
    questions_running: Cell<usize>,
    is_stopping: Cell<bool>,
}

impl Agent {
    /// Reads what an earlier run left; removes its credentials.
    ///
    /// # Errors
    /// `Usage`: the authority's file, or the state folder.
    pub fn open(
        config: ControlConfig,
        proxy: &ProxyConfig,
        identity: Identity,
        repository: Option<ServedRepository>,
        program: (PathBuf, PathBuf),
    ) -> Result<Rc<Agent>, Failure> {
        let trust = Trust::load(&config.authority)?.expect_name(&config.name)?;
        let usage = |error: std::io::Error| {
            let text = format!("state folder {}: {error}", config.state.display());
            Failure::new(FailureKind::Usage, text)
        };
        let (standings, known) = Standings::open(&config.state.join("tasks")).map_err(usage)?;
        let private_folder = config.state.join("private");
        let credentials = CredentialFiles::open(&private_folder).map_err(usage)?;
        let tasks = known.into_iter().map(|(task, outcome)| (task, Task::Ended(outcome)));
        let served = repository.as_ref().map(|repository| facts::Served {
            id: repository.id,
            port: repository.port,
            path: repository.path.clone(),
        });
        let mounts = proxy.mounts.clone();
        Ok(Rc::new(Agent {
            trust,
            identity: RefCell::new(identity),
            program,
            facts: facts::Standing { mounts, private_folder, repository: served },
            repository: repository.map(|repository| repository.service),
            standings,
            credentials: Arc::new(credentials),
            tasks: RefCell::new(tasks.collect()),
            outbox: Outbox::default(),
            questions_running: Cell::new(0),
            is_stopping: Cell::new(false),
            config,
        }))
    }

    /// Tasks whose processes run.
    pub fn tasks_running(&self) -> usize {
        let tasks = self.tasks.borrow();
        tasks.values().filter(|task| matches!(task, Task::Running(_))).count()
    }

    /// From now on no task is begun.
    pub fn drain(&self) {
        self.is_stopping.set(true);
    }

    /// Ends every task; what is durable stays, and gantryd may go on with it elsewhere.
    pub fn stop(&self) {
        self.drain();
        for task in self.tasks.borrow().values() {
            if let Task::Running(orders) = task {
                orders.send_modify(|orders| orders.end = orders.end.or(Some(End::MoverStops)));
            }
        }
    }

    /// Whether gantryd has been told all that there is, as far as this side knows.
    pub fn has_told_all(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Every task, for `Hello`; what is too much for one message is called running, and told after it.
    fn standings(&self) -> Vec<TaskStanding> {
        self.outbox.begin();
        let mut room = link::HELLO_ENDS_BYTES_MAX;
        let tasks = self.tasks.borrow();
        let standing = |(task, known): (&TaskId, &Task)| {
            let ended = match known {
                Task::Running(_) => None,
                Task::Ended(outcome) => match room.checked_sub(bytes_of(outcome)) {
                    Some(left) => {
                        room = left;
                        Some(outcome.clone())
                    }
                    None => {
                        self.outbox.end(*task);
                        None
                    }
                },
            };
            TaskStanding { task: *task, ended }
        };
        tasks.iter().map(standing).collect()
    }

    /// The end of a task, if it has ended.
    fn outcome(&self, task: TaskId) -> Option<TaskOutcome> {
        match self.tasks.borrow().get(&task) {
            Some(Task::Ended(outcome)) => Some(outcome.clone()),
            _ => None,
        }
    }

    /// Carries a command out, or begins to; questions excepted.
    async fn obey(self: &Rc<Self>, command: Command) -> Result<(), Failure> {
        match command {
            Command::Welcome { software, now_ms: theirs, ticket_key } => {
                tracing::info!("under {software}");
                let off_ms = now_ms().abs_diff(theirs);
                if off_ms > CLOCK_OFF_MAX_MS {
                    tracing::warn!("this host's clock is {} s off gantryd's", off_ms / 1000);
                }
                self.take_ticket_key(ticket_key)?;
            }
            Command::Start { task, work } => self.start(task, work)?,
            Command::Stop { task } => self.stop_task(task),
            Command::Forget { task } => self.forget(task),
            Command::SetRate { task, bytes_per_second } => {
                if let Some(Task::Running(orders)) = self.tasks.borrow().get(&task) {
                    orders.send_modify(|orders| orders.rate = Some(bytes_per_second));
                }
            }
            Command::SetCredential { task, name, content } => {
                self.set_credential(task, name, content).await;
            }
            Command::Ask { .. } | Command::Idle => {}
        }
        Ok(())
    }

    fn take_ticket_key(&self, text: Option<Secret>) -> Result<(), Failure> {
        let (Some(text), Some(repository)) = (text, &self.repository) else { return Ok(()) };
        let Some(key) = TicketKey::from_text(&text) else {
            let text = "gantryd told a ticket key that is none: is it of another version?";
            return Err(Failure::new(FailureKind::Refused, text));
        };
        key.replace(&ticket_key_file(&self.config))?;
        repository.require_tickets(key);
        Ok(())
    }

    fn start(self: &Rc<Self>, task: TaskId, work: Vec<u8>) -> Result<(), Failure> {
        let running = self.tasks_running();
        let mut tasks = self.tasks.borrow_mut();
        match tasks.get(&task) {
            Some(Task::Running(_)) => return Ok(()),
            Some(Task::Ended(_)) => {
                self.outbox.end(task);
                return Ok(());
            }
            None => {}
        }
        if tasks.len() >= TASKS_KNOWN_MAX {
            let text = format!("gantryd forgets no task: {TASKS_KNOWN_MAX} are known here already");
            return Err(Failure::new(FailureKind::Refused, text));
        }
        let refusal = if self.is_stopping.get() {
            Some("this mover is stopping".to_owned())
        } else if running >= self.config.tasks {
            Some(format!(
                "this mover runs {running} tasks, and no more are allowed ([control] tasks)"
            ))
        } else {
            None
        };
        if let Some(text) = refusal {
            let failure = Failure::new(FailureKind::Network, text);
            tasks.insert(task, Task::Ended(TaskOutcome::Failed(failure)));
            self.outbox.end(task);
            return Ok(());
        }
        let (orders, ordered) = watch::channel(Orders::default());
        tasks.insert(task, Task::Running(orders));
        tokio::task::spawn_local(Rc::clone(self).carry_out(task, work, ordered));
        Ok(())
    }

    async fn carry_out(
        self: Rc<Self>,
        task: TaskId,
        work: Vec<u8>,
        orders: watch::Receiver<Orders>,
    ) {
        tracing::info!(%task, "begins");
        let standings = self.standings.clone();
        let began = off_thread(move || standings.began(task)).await;
        let outcome = match began {
            Ok(()) => {
                let on_progress = |disks| self.outbox.progress(task, disks);
                child::run(self.program.clone(), work, orders, on_progress).await
            }
            Err(error) => TaskOutcome::Died(format!("the mover's state folder: {error}")),
        };
        let (standings, kept) = (self.standings.clone(), outcome.clone());
        if let Err(error) = off_thread(move || standings.ended(task, &kept)).await {
            // It is told all the same; after a crash it would be told as died.
            tracing::error!(%task, "its end cannot be written down: {error}");
        }
        match &outcome {
            TaskOutcome::Done(_) => tracing::info!(%task, "done"),
            TaskOutcome::Failed(failure) => tracing::warn!(%task, "failed: {failure}"),
            TaskOutcome::Stopped => tracing::info!(%task, "stopped"),
            TaskOutcome::Died(text) => tracing::warn!(%task, "died: {text}"),
        }
        self.tasks.borrow_mut().insert(task, Task::Ended(outcome));
        self.outbox.end(task);
    }

    fn stop_task(&self, task: TaskId) {
        let mut tasks = self.tasks.borrow_mut();
        match tasks.get(&task) {
            Some(Task::Running(orders)) => {
                orders.send_modify(|orders| orders.end = Some(End::Stopped));
            }
            Some(Task::Ended(_)) => self.outbox.end(task),
            // Its start was lost: so that gantryd hears of an end.
            None if tasks.len() < TASKS_KNOWN_MAX => {
                tasks.insert(task, Task::Ended(TaskOutcome::Stopped));
                self.outbox.end(task);
            }
            None => {}
        }
    }

    fn forget(&self, task: TaskId) {
        let mut tasks = self.tasks.borrow_mut();
        if matches!(tasks.get(&task), Some(Task::Running(_))) {
            tracing::warn!(%task, "gantryd wants it forgotten, but it runs: ignored");
            return;
        }
        tasks.remove(&task);
        self.outbox.forget(task);
        self.standings.forget(task);
        self.credentials.forget(task);
    }

    /// Awaited before the next command: a task finds what came before its start.
    async fn set_credential(&self, task: TaskId, name: String, content: Secret) {
        let files = Arc::clone(&self.credentials);
        let written = off_thread(move || Ok(files.set(task, &name, &content)));
        if let Ok(Err(text)) = written.await {
            tracing::error!(%task, "a credential was not taken: {text}");
        }
    }
}

/// Where the key of a repository's tickets is kept.
pub fn ticket_key_file(config: &ControlConfig) -> PathBuf {
    config.state.join("ticket.key")
}

fn bytes_of(outcome: &TaskOutcome) -> usize {
    let text = match outcome {
        TaskOutcome::Done(report) => report.len(),
        TaskOutcome::Failed(failure) => failure.message.len(),
        TaskOutcome::Stopped => 0,
        TaskOutcome::Died(text) => text.len(),
    };
    text + 64
}

/// File work that waits for the disk, away from the network's thread.
async fn off_thread<T: Send + 'static>(
    act: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(act).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

#[cfg(test)]
mod tests;
