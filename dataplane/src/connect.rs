//! Ways to a repository: a mover elsewhere, or a folder served by this very process.
//!
//! In: `--repo`, identity and trust. Out: connections, one after another. A folder is served by
//! the same repository code on a thread of its own, over the in-memory transport.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;
use gantry_common::limits;
use gantry_common::wire::{Intent, PROTOCOL, PointSummary, ToSource, ToTarget};
use tokio::sync::mpsc;

use crate::host::random;
use crate::repository::Repository;
use crate::restore::PackFiles;
use crate::store::error::StoreError;
use crate::store::reader::StoreReader;
use crate::store::service::StoreService;
use crate::store::storage::kernel::KernelStorage;
use crate::transport::{
    self, Connection, Identity, Options, OutFrame, TicketKey, TransportError, TransportKind, Trust,
};

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepositoryAddress {
    /// A folder of this host.
    Folder(PathBuf),
    /// HOST:PORT of a repository mover.
    Remote(String),
}

impl std::str::FromStr for RepositoryAddress {
    type Err = Failure;
    fn from_str(text: &str) -> Result<Self, Failure> {
        let usage = |text: String| Failure::new(FailureKind::Usage, text);
        match text.strip_prefix("gantry://") {
            None if text.contains("://") => {
                Err(usage(format!("'{text}': a repository is a folder or gantry://HOST:PORT")))
            }
            None => Ok(RepositoryAddress::Folder(text.into())),
            Some(address) => {
                let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
                port.ok_or_else(|| {
                    usage(format!("'{text}' has no port: write gantry://HOST:PORT"))
                })?;
                Ok(RepositoryAddress::Remote(address.trim_end_matches('/').to_owned()))
            }
        }
    }
}

/// How to be let in to a repository mover.
pub struct Credentials {
    /// This mover's identity.
    pub identity: Identity,
    /// Whom it trusts.
    pub trust: Trust,
}

/// Makes connections to one repository.
pub enum Connector {
    /// To another mover.
    Remote {
        /// HOST:PORT.
        address: String,
        /// Identity and trust.
        credentials: Box<Credentials>,
        /// QUIC, TCP or either.
        kind: TransportKind,
    },
    /// To the store of this process.
    Local(LocalRepository),
}

impl Connector {
    /// A connection, and what is worth logging about it.
    ///
    /// # Errors
    /// [`TransportError`], whose kind tells whether trying again may help.
    pub async fn connect(&self) -> Result<(Connection, Vec<String>), TransportError> {
        match self {
            Connector::Local(local) => Ok((local.connect()?, Vec::new())),
            Connector::Remote { address, credentials, kind } => {
                let options = Options { kind: *kind, ..Options::default() };
                let Credentials { identity, trust } = &**credentials;
                let connection = transport::connect(address, identity, trust, &options).await?;
                let how =
                    format!("connected to {} by {:?}", connection.peer.address, connection.kind);
                let log = std::iter::once(how).chain(connection.note.clone()).collect();
                Ok((connection, log))
            }
        }
    }

    /// The points of `name`, or of every VM if it is empty; the `deleted` ones, or the others.
    ///
    /// # Errors
    /// Connection, refusal or repository.
    pub async fn list(&self, name: &str, deleted: bool) -> Result<Vec<PointSummary>, Failure> {
        let (mut connection, _) = self.connect().await.map_err(Failure::from)?;
        let hello = ToTarget::Hello {
            protocol: PROTOCOL,
            software: concat!("gantry-mover ", env!("CARGO_PKG_VERSION")).to_owned(),
            session: SessionId(random()?),
            intent: Intent::List { name: name.to_owned(), deleted },
            ticket: None,
        };
        let sent = connection.sender.send_control(OutFrame::message(&hello)).await;
        sent.map_err(Failure::from)?;
        let broken = |text: String| Failure::new(FailureKind::Network, text);
        let mut all = Vec::new();
        loop {
            let frame = connection.receiver.recv().await.map_err(Failure::from)?;
            let frame = frame.ok_or_else(|| broken("closed before the list was whole".into()))?;
            match frame.decode::<ToSource>().map_err(|error| broken(error.to_string()))? {
                ToSource::Welcome { .. } => {}
                ToSource::Points { points, more } => {
                    all.extend(points);
                    if all.len() > limits::LISTED_POINTS_MAX {
                        return Err(broken("a list beyond its limit: ask for one --name".into()));
                    }
                    if !more {
                        return Ok(all);
                    }
                }
                ToSource::Refused { failure } | ToSource::Failed { failure, .. } => {
                    return Err(failure);
                }
                _ => return Err(broken("an answer that belongs to no list".into())),
            }
        }
    }
}

/// A repository folder served within this process.
pub struct LocalRepository {
    connections: Option<mpsc::UnboundedSender<Connection>>,
    thread: Option<JoinHandle<()>>,
}

impl LocalRepository {
    /// Opens the folder to bring points in, and serves it on a thread of its own.
    ///
    /// # Errors
    /// `Target`: no repository there, damaged, or in use by another mover.
    pub fn open(dir: &Path) -> Result<LocalRepository, Failure> {
        LocalRepository::serve_store(StoreService::spawn(dir, Vec::new())?)
    }

    fn serve_store(service: StoreService) -> Result<LocalRepository, Failure> {
        let (files, tickets) = (PackFiles::start()?, TicketKey::random().map_err(Failure::from)?);
        let handle = service.handle();
        LocalRepository::serve(
            move || Repository::new(handle, files, tickets, false),
            move || service.shut_down(),
        )
    }

    /// Opens the folder to verify it: as [`LocalRepository::open`] where that is possible, so that
    /// packs which a killed mover left open are sealed and damage is remembered; else only to read.
    ///
    /// # Errors
    /// As [`LocalRepository::open`].
    pub fn open_if_possible(dir: &Path) -> Result<LocalRepository, Failure> {
        match StoreService::spawn(dir, Vec::new()) {
            Ok(service) => LocalRepository::serve_store(service),
            Err(error @ (StoreError::Locked { .. } | StoreError::Usage(_))) => Err(error.into()),
            Err(error) => {
                tracing::warn!("opened for reading only: {error}");
                LocalRepository::open_read_only(dir)
            }
        }
    }

    /// Opens the folder to restore and list; others may do so at the same time, and it may be
    /// write-protected.
    ///
    /// # Errors
    /// As [`LocalRepository::open`].
    pub fn open_read_only(dir: &Path) -> Result<LocalRepository, Failure> {
        let (reader, notes) = StoreReader::open(KernelStorage::new(dir)).map_err(Failure::from)?;
        notes.iter().for_each(|note| tracing::warn!("{note}"));
        let (files, tickets) = (PackFiles::start()?, TicketKey::random().map_err(Failure::from)?);
        LocalRepository::serve(move || Repository::read_only(reader, files, tickets), || ())
    }

    fn serve(
        make: impl FnOnce() -> Rc<Repository> + Send + 'static,
        end: impl FnOnce() + Send + 'static,
    ) -> Result<LocalRepository, Failure> {
        let (connections, mut queue) = mpsc::unbounded_channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            let local = tokio::task::LocalSet::new();
            let repository = make();
            let serving = Rc::clone(&repository);
            local.block_on(&runtime, async move {
                while let Some(connection) = queue.recv().await {
                    tokio::task::spawn_local(Rc::clone(&serving).serve(connection));
                }
            });
            // Sessions end once their connections are gone.
            runtime.block_on(local);
            drop(repository);
            end();
        };
        let thread = std::thread::Builder::new().name("repository".into()).spawn(run);
        let thread = thread.map_err(|error| {
            Failure::new(FailureKind::Internal, format!("starting a thread failed: {error}"))
        })?;
        Ok(LocalRepository { connections: Some(connections), thread: Some(thread) })
    }

    fn connect(&self) -> Result<Connection, TransportError> {
        let (near, far) = transport::pair();
        let queue = self.connections.as_ref();
        let sent = queue.is_some_and(|queue| queue.send(far).is_ok());
        if sent {
            Ok(near)
        } else {
            Err(TransportError::Setup { text: "the repository's thread has ended".into() })
        }
    }
}

impl Drop for LocalRepository {
    fn drop(&mut self) {
        // Ends the accept loop, then waits until the store has closed its files.
        self.connections = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
