//! An export of an NBD server as a disk.
//!
//! In: a [`NbdSource`]. Out: a [`RemoteSource`]. One thread, up to a few connections where the
//! server allows several; lost ones are made anew until patience ends. Own client: no Rust crate
//! does structured replies, block status and TLS without C or unsafe code. Invariant: never sends a
//! WRITE; a server that breaks the protocol fails the disk. The protocol is the NBD project's
//! doc/proto.md.

mod wire;
mod error;
mod handshake;
mod spans;
mod replies;
mod tls;
mod connect;
mod connection;

use std::rc::Rc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use gantry_common::source::{NbdAddress, NbdSource};

use self::connect::{Connected, connect};
use self::connection::serve;
use self::error::NbdError;
use self::handshake::Agreed;
use self::tls::Tls;
use super::remote::{ReadRequest, RemoteError, RemoteSource};
use super::work::{ExtentPage, Ready, Shared, SourceThread};

/// Connections where the source says nothing else.
const CONNECTIONS: u16 = 4;

/// An open export.
#[derive(Debug)]
pub(super) struct NbdDisk {
    label: String,
    identity: String,
    fingerprint: String,
    agreed: Agreed,
    connections: u16,
    page: Mutex<Option<ExtentPage>>,
    thread: SourceThread,
}

impl NbdDisk {
    /// Connects and finds out what the export is.
    ///
    /// # Errors
    /// What the server or the network said, with what to do.
    pub(super) fn open(source: &NbdSource, patience: Duration) -> Result<NbdDisk, RemoteError> {
        let wanted = source.clone();
        let (thread, agreed) = SourceThread::start("nbd", patience, move |shared, ready| {
            Box::pin(run(wanted, shared, ready))
        })?;
        let address = match &source.address {
            NbdAddress::Tcp { host, port } => format!("{host}:{port}"),
            NbdAddress::Unix { path } => path.display().to_string(),
        };
        Ok(NbdDisk {
            label: source.label(),
            identity: super::remote::identity(format!("nbd:{address}/{}", source.export)),
            fingerprint: super::remote::fingerprint_of_nothing("nbd", agreed.size_bytes)?,
            connections: connections(source, &agreed),
            agreed,
            page: Mutex::new(None),
            thread,
        })
    }
}

fn connections(source: &NbdSource, agreed: &Agreed) -> u16 {
    match (agreed.multi_conn, source.connections) {
        (false, _) => 1,
        (true, 0) => CONNECTIONS,
        (true, some) => some,
    }
}

impl RemoteSource for NbdDisk {
    fn label(&self) -> &str {
        &self.label
    }

    fn notes(&self) -> Vec<String> {
        let holes = match self.agreed.context {
            Some(_) => "holes are told and not read",
            None => "the server tells no holes: everything is read",
        };
        vec![format!("NBD, {} connection(s); {holes}", self.connections)]
    }

    fn size_bytes(&self) -> u64 {
        self.agreed.size_bytes
    }

    fn sector_bytes(&self) -> u32 {
        self.agreed.block_min.clamp(512, 4096)
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, RemoteError> {
        let size_bytes = self.agreed.size_bytes;
        if offset >= size_bytes {
            return Ok(None);
        }
        if self.agreed.context.is_none() {
            return Ok(Some((offset, size_bytes)));
        }
        let align = u64::from(self.agreed.block_min);
        let mut page = self.page.lock().unwrap_or_else(|poison| poison.into_inner());
        let mut at = offset / align * align;
        loop {
            let known = match page.take().filter(|page| (page.start..page.end).contains(&at)) {
                Some(known) => known,
                None => self.thread.extents(at)?,
            };
            let next = known.data.partition_point(|(_, end)| *end <= at.max(offset));
            let data = known.data.get(next).map(|(start, end)| (offset.max(*start), *end));
            at = known.end;
            *page = Some(known);
            if data.is_some() || at >= size_bytes {
                return Ok(data);
            }
        }
    }

    fn submit(&self, request: ReadRequest) {
        self.thread.read(request);
    }

    fn changed_since_open(&self) -> Result<Option<String>, RemoteError> {
        Ok(None)
    }
}

/// The thread's work: opens the export, then keeps its connections.
async fn run(source: NbdSource, shared: Rc<Shared>, ready: Ready<Agreed>) {
    let tls = match Tls::of(&source) {
        Ok(tls) => tls,
        Err(error) => return ready.tell(Err(error.into())),
    };
    let first = match connect(&source, tls.as_ref()).await {
        Ok(first) => first,
        Err(error) => return ready.tell(Err(error.into())),
    };
    let keeper =
        Rc::new(Keeper { agreed: first.agreed.clone(), source, tls, shared: Rc::clone(&shared) });
    ready.tell(Ok(keeper.agreed.clone()));
    let mut running = tokio::task::JoinSet::new();
    let mut first = Some(first);
    for _ in 0..connections(&keeper.source, &keeper.agreed) {
        running.spawn_local(Rc::clone(&keeper).keep(first.take()));
    }
    while shared.failure().is_none() && running.join_next().await.is_some() {}
    running.shutdown().await;
    if !shared.is_stopping() {
        tokio::select! {
            () = shared.refuse_all() => {}
            () = shared.stopped() => {}
        }
    }
}

/// What keeps the connections of one export.
struct Keeper {
    source: NbdSource,
    tls: Option<Tls>,
    agreed: Agreed,
    shared: Rc<Shared>,
}

impl Keeper {
    /// Keeps one connection until the source is dropped or given up. The first is open already.
    async fn keep(self: Rc<Self>, first: Option<Connected>) {
        let is_first = first.is_some();
        let mut next = first;
        loop {
            let connected = match next.take() {
                Some(connected) => Ok(connected),
                None => self.connect_again().await,
            };
            let ended = match connected {
                Ok(connected) => serve(connected, &self.shared).await,
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
            if self.shared.is_stopping() {
                return;
            }
            if !is_first && matches!(error, NbdError::Refused { .. }) {
                // The server takes fewer connections than it said: the others do the work.
                return;
            }
            let wait = self.shared.patience.borrow_mut().failure(Instant::now());
            let Some(wait) = wait.filter(|_| error.may_pass()) else {
                return self.shared.give_up(error.into());
            };
            tracing::debug!("{}: {error}; trying again", self.source.label());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shared.stopped() => return,
            }
        }
    }

    async fn connect_again(&self) -> Result<Connected, NbdError> {
        let connected = tokio::select! {
            connected = connect(&self.source, self.tls.as_ref()) => connected?,
            () = self.shared.stopped() => {
                return Err(NbdError::Lost(std::io::ErrorKind::Interrupted.into()));
            }
        };
        if connected.agreed.size_bytes != self.agreed.size_bytes
            || connected.agreed.context.is_some() != self.agreed.context.is_some()
            || connected.agreed.block_min != self.agreed.block_min
        {
            return Err(NbdError::Export(format!(
                "the export changed while it was read: it has {} bytes, had {}",
                connected.agreed.size_bytes, self.agreed.size_bytes
            )));
        }
        Ok(connected)
    }
}

#[cfg(test)]
mod tests;
