//! The mover as a service: a repository for other movers, a hand of gantryd, or both; signals.
//!
//! In: a configuration. Out: a running mover until SIGTERM, which drains: nothing new is begun, running
//! sessions and tasks go on for a while, then are ended (they resume). SIGHUP reads trust again.

mod config;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

pub use self::config::{Drain, FileOf, Listen, RepositoryConfig, ServeConfig, TrustConfig, load};

use crate::agent::{self, Agent, ServedRepository};
use crate::host::now_ms;
use crate::repository::Repository;
use crate::restore::PackFiles;
use crate::store::admin;
use crate::store::service::StoreService;
use crate::transport::{
    CloseReason, Connection, Identity, Listener, Options, TicketKey, TransportError, Trust,
};

/// What peers are told at the end.
const STOPPING: &str = "this mover is stopping; run the backup again later: it resumes";
/// How long the end may take once sessions were told.
const LAST_WORDS: Duration = Duration::from_secs(5);

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Usage, error.to_string())
}

/// Serves until told to stop. `ready` is told where it listens once connections are accepted, or
/// nothing if the mover listens nowhere.
///
/// # Errors
/// What keeps the mover from starting: configuration, identity, address in use, repository.
pub fn run(config: ServeConfig, ready: impl FnOnce(Option<SocketAddr>)) -> Result<(), Failure> {
    let identity = Identity::load(&config.identity.file).map_err(usage)?;
    let opened = config.repository.as_ref().map(|repository| open(repository, &config));
    let opened = opened.transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::new(FailureKind::Internal, format!("starting tokio failed: {error}"))
    })?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, async {
        let served = match &opened {
            Some(opened) => Some(opened.listen(&config, &identity).await?),
            None => None,
        };
        let agent = agent(&config, &identity, served.as_ref())?;
        ready(served.as_ref().map(|served| served.listener.address()));
        let running = agent.clone().map(|agent| tokio::task::spawn_local(agent.run()));
        let mover = Mover { config: &config, identity: &identity, served, agent };
        let ended = mover.serve().await;
        if let Some(running) = running {
            running.abort();
        }
        ended
    });
    drop(local);
    if let Some(opened) = opened {
        opened.service.shut_down();
    }
    result
}

/// A repository whose store runs.
struct Opened {
    service: StoreService,
    files: PackFiles,
    tickets: Option<TicketKey>,
}

fn open(repository: &RepositoryConfig, config: &ServeConfig) -> Result<Opened, Failure> {
    if repository.create && !repository.path.join("superblock").exists() {
        admin::init(&repository.path, now_ms()).map_err(Failure::from)?;
    }
    // What gantryd told last stands until it tells anew.
    let told = config.control.as_ref().map(agent::ticket_key_file).filter(|file| file.exists());
    let file = repository.ticket_key.clone().or(told);
    let tickets = file.map(|file| TicketKey::load(&file)).transpose().map_err(usage)?;
    let service = StoreService::spawn(&repository.path, Vec::new()).map_err(Failure::from)?;
    let files = PackFiles::start()?;
    Ok(Opened { service, files, tickets })
}

impl Opened {
    async fn listen(&self, config: &ServeConfig, identity: &Identity) -> Result<Served, Failure> {
        let missing = || usage("a [repository] needs [listen] and [trust]");
        let address = config.listen.as_ref().ok_or_else(missing)?.address;
        let trust = Trust::load(&config.trust.as_ref().ok_or_else(missing)?.file)?;
        let managers = load_managers(config)?;
        let listener = Listener::bind(address, identity, &trust, &Options::default()).await;
        let listener =
            listener.map_err(|error| usage(format!("listening on {address} failed: {error}")))?;
        // Under gantryd nobody is let in before its key of tickets is known.
        let required = self.tickets.is_some() || config.control.is_some();
        let tickets = match &self.tickets {
            Some(tickets) => tickets.clone(),
            None => TicketKey::random()?,
        };
        let handle = self.service.handle();
        let repository = Repository::new(handle, self.files.clone(), tickets, required);
        repository.set_managers(managers);
        Ok(Served { listener, repository })
    }
}

/// A repository that is listened for.
struct Served {
    listener: Listener,
    repository: Rc<Repository>,
}

fn agent(
    config: &ServeConfig,
    identity: &Identity,
    served: Option<&Served>,
) -> Result<Option<Rc<Agent>>, Failure> {
    let Some(control) = &config.control else { return Ok(None) };
    let repository =
        served.zip(config.repository.as_ref()).map(|(served, repository)| ServedRepository {
            service: Rc::clone(&served.repository),
            id: served.repository.reader().repository(),
            port: served.listener.address().port(),
            path: repository.path.clone(),
        });
    let program = std::env::current_exe()
        .map_err(|error| usage(format!("this program's own file cannot be found: {error}")))?;
    let program = (program, config.identity.file.clone());
    let identity = identity.clone();
    Agent::open(control.clone(), &config.proxy, identity, repository, program).map(Some)
}

/// A running mover.
struct Mover<'a> {
    config: &'a ServeConfig,
    identity: &'a Identity,
    served: Option<Served>,
    agent: Option<Rc<Agent>>,
}

impl Mover<'_> {
    async fn serve(mut self) -> Result<(), Failure> {
        let mut terminate = handler(SignalKind::terminate())?;
        let mut interrupt = handler(SignalKind::interrupt())?;
        let mut hangup = handler(SignalKind::hangup())?;
        loop {
            tokio::select! {
                connection = accept(&mut self.served) => match connection {
                    Ok((repository, connection)) => {
                        tokio::task::spawn_local(repository.serve(connection));
                    }
                    Err(error) => tracing::warn!("a connection was not accepted: {error}"),
                },
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => self.reload(),
            }
        }
        self.drain(&mut terminate).await;
        Ok(())
    }

    /// Sessions of other movers, and tasks of gantryd.
    fn running(&self) -> usize {
        let sessions =
            self.served.as_ref().map_or(0, |served| served.repository.sessions_running());
        sessions + self.agent.as_ref().map_or(0, |agent| agent.tasks_running())
    }

    async fn drain(&mut self, terminate: &mut Signal) {
        tracing::warn!("draining {} sessions and tasks", self.running());
        if let Some(agent) = &self.agent {
            agent.drain();
        }
        let until = Instant::now() + Duration::from_secs(self.config.drain.seconds);
        while self.running() > 0 && Instant::now() < until {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                _ = terminate.recv() => break,
                // Whoever comes now is told at once, not left to wait.
                Ok((_, connection)) = accept(&mut self.served) => {
                    connection.sender.close(CloseReason::Failed(STOPPING.into()));
                }
            }
        }
        if let Some(served) = &self.served {
            served.repository.stop(STOPPING);
        }
        if let Some(agent) = &self.agent {
            agent.stop();
        }
        // The last words must leave this host, and the sessions become durable.
        let until = Instant::now() + LAST_WORDS;
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let has_told_all = self.agent.as_ref().is_none_or(|agent| agent.has_told_all());
            if self.running() == 0 && has_told_all {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// Reads the trust file again; a broken one leaves the old trust in force.
    fn reload(&self) {
        let (Some(served), Some(trust)) = (&self.served, &self.config.trust) else { return };
        match load_managers(self.config) {
            Ok(managers) => served.repository.set_managers(managers),
            Err(error) => tracing::error!("managers not changed: {error}"),
        }
        match Trust::load(&trust.file) {
            Ok(loaded) => match served.listener.set_trust(self.identity, &loaded) {
                Ok(()) => tracing::warn!("trust read again from {}", trust.file.display()),
                Err(error) => tracing::error!("trust not changed: {error}"),
            },
            Err(error) => tracing::error!("trust not changed: {error}"),
        }
    }
}

/// The next connection to the repository; never, if there is none.
async fn accept(
    served: &mut Option<Served>,
) -> Result<(Rc<Repository>, Connection), TransportError> {
    match served {
        Some(served) => {
            let connection = served.listener.accept().await?;
            Ok((Rc::clone(&served.repository), connection))
        }
        None => std::future::pending().await,
    }
}

fn handler(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("signal handler: {error}")))
}

fn load_managers(config: &ServeConfig) -> Result<Option<Trust>, Failure> {
    let load = |file: &PathBuf| Trust::load(file).map_err(usage);
    let file = config.trust.as_ref().and_then(|trust| trust.managers.as_ref());
    file.map(load).transpose()
}
