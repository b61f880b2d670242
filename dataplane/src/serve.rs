//! The mover as a service: configuration, listener, signals.
//!
//! In: a TOML file. Out: a running mover until SIGTERM, which drains: no new connection, running
//! sessions go on for a while, then are detached (they resume). SIGHUP reads trust again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::host::now_ms;
use crate::repository::Repository;
use crate::restore::PackFiles;
use crate::store::admin;
use crate::store::service::StoreService;
use crate::transport::{CloseReason, Identity, Listener, Options, TicketKey, Trust};

/// What peers are told at the end.
const STOPPING: &str = "this mover is stopping; run the backup again later: it resumes";
/// How long the end may take once sessions were told.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The configuration file of `gantry-mover serve`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeConfig {
    /// Where to listen.
    pub listen: Listen,
    /// This mover's identity.
    pub identity: FileOf,
    /// Whom it lets in.
    pub trust: TrustConfig,
    /// The repository it serves; without one the mover is a proxy only.
    pub repository: Option<RepositoryConfig>,
    /// What happens at SIGTERM.
    #[serde(default)]
    pub drain: Drain,
}

/// Where to listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Address and port, for UDP (QUIC) and TCP (TLS) alike.
    pub address: SocketAddr,
}

/// A file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileOf {
    /// Its path.
    pub file: PathBuf,
}

/// Whom the mover lets in, and what for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustConfig {
    /// Pins and certificates of the peers.
    pub file: PathBuf,
    /// Pins of those peers who may look after the repository (delete points, collect, verify).
    /// Without it every peer may.
    pub managers: Option<PathBuf>,
}

/// The repository.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// Its folder.
    pub path: PathBuf,
    /// Make it if it is not there.
    #[serde(default)]
    pub create: bool,
    /// Key of the tickets that a control plane issues (32 bytes, mode 0600). With it nobody is let
    /// in without a ticket.
    pub ticket_key: Option<PathBuf>,
}

/// What happens at SIGTERM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Seconds that running sessions get.
    pub seconds: u64,
}

impl Default for Drain {
    fn default() -> Drain {
        Drain { seconds: 30 }
    }
}

/// Reads and checks the file.
///
/// # Errors
/// `Usage`, with file and line.
pub fn load(file: &Path) -> Result<ServeConfig, Failure> {
    let usage = |text: String| Failure::new(FailureKind::Usage, text);
    let text = std::fs::read_to_string(file)
        .map_err(|error| usage(format!("configuration {}: {error}", file.display())))?;
    toml::from_str(&text)
        .map_err(|error| usage(format!("configuration {}: {error}", file.display())))
}

/// Serves until told to stop. `ready` is told the address once connections are accepted.
///
/// # Errors
/// What keeps the mover from starting: configuration, identity, address in use, repository.
pub fn run(config: ServeConfig, ready: impl FnOnce(SocketAddr)) -> Result<(), Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::new(FailureKind::Usage, error.to_string());
    let identity = Identity::load(&config.identity.file).map_err(|error| usage(&error))?;
    let trust = Trust::load(&config.trust.file).map_err(|error| usage(&error))?;
    let managers = load_managers(&config)?;
    let Some(repository) = &config.repository else {
        return Err(usage(
            &"a proxy-only mover has nothing to serve before there is a gantryd: \
                           give it a [repository], or run 'gantry-mover backup'",
        ));
    };
    if repository.create && !repository.path.join("superblock").exists() {
        admin::init(&repository.path, now_ms()).map_err(Failure::from)?;
    }
    let (tickets, required) = match &repository.ticket_key {
        Some(file) => (TicketKey::load(file).map_err(|error| usage(&error))?, true),
        None => (TicketKey::random().map_err(Failure::from)?, false),
    };
    let service = StoreService::spawn(&repository.path, Vec::new()).map_err(Failure::from)?;
    let files = PackFiles::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::new(FailureKind::Internal, format!("starting tokio failed: {error}"))
    })?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, async {
        let options = Options::default();
        let listener = Listener::bind(config.listen.address, &identity, &trust, &options).await;
        let listener = listener.map_err(|error| {
            usage(&format!("listening on {} failed: {error}", config.listen.address))
        })?;
        let repository = Repository::new(service.handle(), files, tickets, required);
        repository.set_managers(managers);
        ready(listener.address());
        accept(&config, &identity, listener, repository).await
    });
    drop(local);
    service.shut_down();
    result
}

async fn accept(
    config: &ServeConfig,
    identity: &Identity,
    mut listener: Listener,
    repository: Rc<Repository>,
) -> Result<(), Failure> {
    let handler = |kind: SignalKind| {
        signal(kind).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("signal handler: {error}"))
        })
    };
    let mut terminate = handler(SignalKind::terminate())?;
    let mut interrupt = handler(SignalKind::interrupt())?;
    let mut hangup = handler(SignalKind::hangup())?;
    loop {
        tokio::select! {
            connection = listener.accept() => match connection {
                Ok(connection) => {
                    tokio::task::spawn_local(Rc::clone(&repository).serve(connection));
                }
                Err(error) => tracing::warn!("a connection was not accepted: {error}"),
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload(config, identity, &mut listener, &repository),
        }
    }
    tracing::warn!("draining {} sessions", repository.sessions_running());
    let until = tokio::time::Instant::now() + Duration::from_secs(config.drain.seconds);
    while repository.sessions_running() > 0 && tokio::time::Instant::now() < until {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // Whoever comes now is told at once, not left to wait.
            Ok(connection) = listener.accept() => {
                connection.sender.close(CloseReason::Failed(STOPPING.into()));
            }
        }
    }
    repository.stop(STOPPING);
    // The last words must leave this host, and the sessions become durable.
    let until = tokio::time::Instant::now() + LAST_WORDS;
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if repository.sessions_running() == 0 {
            break;
        }
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(listener);
    Ok(())
}

fn load_managers(config: &ServeConfig) -> Result<Option<Trust>, Failure> {
    let load = |file: &PathBuf| {
        Trust::load(file).map_err(|error| Failure::new(FailureKind::Usage, error.to_string()))
    };
    config.trust.managers.as_ref().map(load).transpose()
}

/// Reads the trust file again; a broken one leaves the old trust in force.
fn reload(
    config: &ServeConfig,
    identity: &Identity,
    listener: &mut Listener,
    repository: &Repository,
) {
    match load_managers(config) {
        Ok(managers) => repository.set_managers(managers),
        Err(error) => tracing::error!("managers not changed: {error}"),
    }
    match Trust::load(&config.trust.file) {
        Ok(trust) => match listener.set_trust(identity, &trust) {
            Ok(()) => tracing::warn!("trust read again from {}", config.trust.file.display()),
            Err(error) => tracing::error!("trust not changed: {error}"),
        },
        Err(error) => tracing::error!("trust not changed: {error}"),
    }
}
