//! A flat disk file behind a host's datastore access (`/folder/...-flat.vmdk`), read by ranges.
//!
//! In: an [`HttpsSource`] and its credentials. Out: a [`RemoteSource`]. Several connections, one
//! request on each at a time (HTTP/1.1). A block that was cut goes on where it stopped. No holes are
//! known here: what is allocated or has changed is the caller's knowledge. Invariant: a byte is taken
//! only from an answer whose range, total and file are those of the request. Behaviour of hosts as
//! virt-v2v, Xen Orchestra and Proxmox's importer met it (see the project's notes on vSphere).

pub(super) mod client;
pub(super) mod error;

use std::rc::Rc;
use std::time::{Duration, Instant};

use gantry_common::limits;
use gantry_common::source::HttpsSource;
use gantry_http::{Response, StatusCode};

use self::client::Resource;
use self::error::HttpsError;
use super::credentials::CredentialSource;
use super::remote::{ReadRequest, RemoteError, RemoteSource, fingerprint_of_nothing, identity};
use super::work::{Held, Patience, Ready, Shared, SourceThread};

/// Connections where the source says nothing else: one serves 445 Mbit/s of a host's, eight 1 GbE.
const CONNECTIONS: u16 = 8;
/// Bytes a second below which an answer counts as too slow.
const RATE_MIN: u64 = 32 << 10;
/// Bytes that must have come for an attempt to count as progress.
const PROGRESS_BYTES_MIN: usize = 64 << 10;

/// An open file.
#[derive(Debug)]
pub(super) struct HttpsDisk {
    label: String,
    identity: String,
    fingerprint: String,
    size_bytes: u64,
    connections: u16,
    thread: SourceThread,
}

impl HttpsDisk {
    /// Asks for the first byte, and so learns whether all is well.
    ///
    /// # Errors
    /// What the server or the network said, with what to do.
    pub(super) fn open(
        source: &HttpsSource,
        label: String,
        credentials: CredentialSource,
        patience: Duration,
    ) -> Result<HttpsDisk, RemoteError> {
        let asked = match source.in_flight {
            0 => source.connections,
            in_flight => source.connections.min(in_flight),
        };
        let connections = if asked == 0 { CONNECTIONS } else { asked };
        let HttpsSource { host, port, trust, path_and_query, size_bytes, .. } = source.clone();
        let place = format!("https:{host}:{port}{path_and_query}");
        let name = (host, trust, path_and_query);
        let (thread, ()) = SourceThread::start("https", patience, move |shared, ready| {
            let (host, trust, path) = name;
            let stall = Duration::from_millis(limits::SOURCE_STALL_MS_MAX);
            let place = (host.as_str(), port);
            let resource = Resource::new(place, &trust, &path, connections, stall, credentials);
            Box::pin(run(resource, size_bytes, connections, patience, shared, ready))
        })?;
        let (identity, fingerprint) =
            (identity(place), fingerprint_of_nothing("https", size_bytes)?);
        Ok(HttpsDisk { label, identity, fingerprint, size_bytes, connections, thread })
    }
}

impl RemoteSource for HttpsDisk {
    fn label(&self) -> &str {
        &self.label
    }

    fn notes(&self) -> Vec<String> {
        vec![format!("HTTPS, up to {} connections", self.connections)]
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn sector_bytes(&self) -> u32 {
        512
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, RemoteError> {
        Ok((offset < self.size_bytes).then_some((offset, self.size_bytes)))
    }

    fn submit(&self, request: ReadRequest) {
        self.thread.read(request);
    }

    fn changed_since_open(&self) -> Result<Option<String>, RemoteError> {
        // Every answer is compared with the first: a change has failed the disk already.
        Ok(None)
    }
}

/// What must stay the same from answer to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    size_bytes: u64,
    tag: Option<String>,
    modified: Option<String>,
}

/// The thread's work.
async fn run(
    resource: Result<Resource, HttpsError>,
    size_bytes: u64,
    connections: u16,
    patience: Duration,
    shared: Rc<Shared>,
    ready: Ready<()>,
) {
    let opened = async {
        let resource = resource?;
        let file = first_look(&resource, size_bytes, patience).await?;
        Ok::<_, HttpsError>(Fetcher { resource, file, patience, shared: Rc::clone(&shared) })
    };
    let fetcher = match opened.await {
        Ok(fetcher) => Rc::new(fetcher),
        Err(error) => return ready.tell(Err(error.into())),
    };
    ready.tell(Ok(()));
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..connections {
        running.spawn_local(Rc::clone(&fetcher).work());
    }
    let working = async {
        while shared.failure().is_none() && running.join_next().await.is_some() {}
        running.shutdown().await;
        shared.refuse_all().await;
    };
    tokio::select! {
        () = working => {}
        () = fetcher.resource.credentials.keep_fresh() => {}
        () = shared.stopped() => {}
    }
}

/// The file's size and marks, from an answer to a request for its first byte.
async fn first_look(
    resource: &Resource,
    size_bytes: u64,
    limit: Duration,
) -> Result<File, HttpsError> {
    let mut patience = Patience::new(limit);
    loop {
        let error = match resource.get(Some((0, 1))).await {
            Ok(mut response) => {
                let file = File { tag: None, modified: None, size_bytes };
                let found = check(&response, (0, 1), &file)?;
                let mut byte = [0];
                match response.read_exact_into(&mut byte).await {
                    Ok(()) => return Ok(found),
                    Err(error) => error.into(),
                }
            }
            Err(error) => error,
        };
        match patience.failure(Instant::now()).filter(|_| error.may_pass()) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(error),
        }
    }
}

/// Whether an answer is one to this request, of this file; nothing is taken from it otherwise.
fn check(response: &Response, asked: (u64, u64), file: &File) -> Result<File, HttpsError> {
    let (start, len) = asked;
    let whole = response.status() == StatusCode::OK;
    let (from, to, size_bytes) = match response.header("content-range").map(parse_range) {
        Some(Some(range)) if !whole => range,
        None if whole => {
            let size_bytes = response.content_length().unwrap_or(0);
            (0, size_bytes.saturating_sub(1), size_bytes)
        }
        _ => return Err(HttpsError::Range("its Content-Range makes no sense".into())),
    };
    if size_bytes != file.size_bytes {
        return Err(HttpsError::Changed(format!(
            "it has {size_bytes} bytes, {} were expected",
            file.size_bytes
        )));
    }
    if (from, to) != (start, start + len - 1) {
        // A server that knows no ranges would send the whole disk for every block.
        let what = format!("bytes {from} to {to}, asked were {start} to {}", start + len - 1);
        return Err(HttpsError::Range(what));
    }
    if response.content_length().is_some_and(|length| length != len)
        || response.header("content-encoding").is_some_and(|coding| coding != "identity")
    {
        return Err(HttpsError::Range("its length or encoding is another".into()));
    }
    let mark = |name: &str| response.header(name).map(str::to_owned);
    let found = File { size_bytes, tag: mark("etag"), modified: mark("last-modified") };
    for (what, before, now) in
        [("ETag", &file.tag, &found.tag), ("Last-Modified", &file.modified, &found.modified)]
    {
        if before.is_some() && before != now {
            return Err(HttpsError::Changed(format!("its {what} is another")));
        }
    }
    Ok(found)
}

/// `bytes FIRST-LAST/TOTAL`.
fn parse_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some((first, last, total.trim().parse().ok()?))
}

/// What reads blocks, one at a time for each connection.
struct Fetcher {
    resource: Resource,
    file: File,
    patience: Duration,
    shared: Rc<Shared>,
}

impl Fetcher {
    async fn work(self: Rc<Self>) {
        while let Some(job) = self.shared.next_job().await {
            let mut held = self.shared.hold(job);
            match self.fetch(&mut held).await {
                Ok(()) => held.complete(Ok(())),
                Err(error) => {
                    let is_final = !error.may_pass();
                    let error = RemoteError::from(error);
                    held.complete(Err(error.clone()));
                    if is_final {
                        return self.shared.give_up(error);
                    }
                }
            }
        }
    }

    /// Reads a block, going on after what came whenever an attempt fails in a way that may pass.
    async fn fetch(&self, held: &mut Held) -> Result<(), HttpsError> {
        let Some(request) = held.request() else { return Ok(()) };
        let (offset, len) = (request.offset(), request.len());
        let mut got = 0;
        let mut patience = Patience::new(self.patience);
        while got < len {
            let before = got;
            let attempt = self.attempt(offset, &mut request.bytes_mut()[..len], &mut got);
            let within = Duration::from_millis(limits::SOURCE_STALL_MS_MAX)
                + Duration::from_secs((len - before) as u64 / RATE_MIN);
            let late = Err(HttpsError::Slow);
            let Err(error) = tokio::time::timeout(within, attempt).await.unwrap_or(late) else {
                continue;
            };
            if matches!(error, HttpsError::Range(_)) {
                // An answer that contradicts itself is not believed at all.
                got = before;
            }
            if got - before >= PROGRESS_BYTES_MIN {
                patience.success();
            }
            let wait = patience.failure(Instant::now()).filter(|_| error.may_pass());
            let Some(wait) = wait else { return Err(error) };
            tracing::debug!("bytes {offset}+{got}: {error}; trying again");
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// One request for what is left of a block; `got` counts what came, whatever happens.
    async fn attempt(
        &self,
        offset: u64,
        bytes: &mut [u8],
        got: &mut usize,
    ) -> Result<(), HttpsError> {
        let asked = (offset + *got as u64, (bytes.len() - *got) as u64);
        let mut response = self.resource.get(Some(asked)).await?;
        check(&response, asked, &self.file)?;
        while let Some(chunk) = response.next_chunk().await? {
            let place = bytes.get_mut(*got..*got + chunk.len());
            let place = place.ok_or_else(|| HttpsError::Range("more bytes than asked".into()))?;
            place.copy_from_slice(&chunk);
            *got += chunk.len();
        }
        if *got < bytes.len() {
            return Err(HttpsError::Range(format!("{} bytes less than asked", bytes.len() - *got)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
