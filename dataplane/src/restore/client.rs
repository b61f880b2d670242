//! The restoring side: checks the destination, connects, brings every block, makes it durable.
//!
//! In: which disk, where to, a way to connect. Out: a [`RestoreReport`], or why not. Invariant: a
//! failed restore leaves a sidecar from which the next run goes on. Must not: overwrite what the
//! person did not name.

use std::future::Future;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;
use gantry_common::wire::{RestoreOffer, TicketBytes};

use super::report::{Progress, RestoreReport};
use super::road::Road;
use super::run::RestoreRun;
use super::session::Ended;
use super::target::Destination;
use crate::host::{cpu_seconds, peak_rss_bytes};
use crate::transport::Connection;

/// Workers of one restore at the most.
const WORKERS_MAX: usize = 16;

/// What is to be restored, and where to.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// Which disk of which point. Without a point, an unfinished restore of the same disk goes on
    /// with its own point, else the newest is taken.
    pub offer: RestoreOffer,
    /// Where to.
    pub destination: Destination,
}

/// How to restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Overwrite what exists.
    pub force: bool,
    /// The destination reads as zeros wherever this restore has not written: whoever says so has made
    /// it. Zeros are then not written.
    pub reads_zeros: bool,
    /// Cores of the workers, one worker each. Empty: those that this process may use.
    pub cores: Vec<usize>,
    /// How long to try again after a lost connection without any progress.
    pub reconnect_for: Duration,
    /// Ticket, where one was issued.
    pub ticket: Option<TicketBytes>,
    /// The session for which it was issued; nothing: one is drawn.
    pub session: Option<SessionId>,
    /// Identity that the disk must have.
    pub identity: Option<String>,
}

impl Default for RestoreOptions {
    fn default() -> RestoreOptions {
        let reconnect_for = Duration::from_secs(300);
        RestoreOptions {
            force: false,
            reads_zeros: false,
            cores: Vec::new(),
            reconnect_for,
            ticket: None,
            session: None,
            identity: None,
        }
    }
}

impl RestoreOptions {
    /// Cores of the workers, never none.
    pub(super) fn cores(&self) -> Vec<usize> {
        let mut cores = self.cores.clone();
        if cores.is_empty() {
            cores = gantry_uring::thread::available_cores();
        }
        cores.truncate(WORKERS_MAX);
        cores
    }
}

/// Restores a disk. `connect` is called for each connection, on the current tokio runtime, which
/// must drive time and the network; the first failure to connect ends the restore.
///
/// # Errors
/// `Usage`: the destination may not be used. `Source`: it failed. `Network`, `Refused`: the
/// connection. `Target`: the repository cannot give the disk. In each case everything that came is
/// kept, and the same call goes on from there (but for stdout).
pub async fn restore<C, F>(
    connect: C,
    request: RestoreRequest,
    options: RestoreOptions,
    progress: Arc<Progress>,
) -> Result<RestoreReport, Failure>
where
    C: FnMut() -> F,
    F: Future<Output = Result<Connection, Failure>>,
{
    let stdout = || Box::new(std::io::stdout()) as Box<dyn Write + Send>;
    restore_to(connect, request, options, progress, stdout).await
}

/// As [`restore`], with another stream in the place of stdout.
pub(super) async fn restore_to<C, F>(
    mut connect: C,
    request: RestoreRequest,
    options: RestoreOptions,
    progress: Arc<Progress>,
    output: impl FnOnce() -> Box<dyn Write + Send>,
) -> Result<RestoreReport, Failure>
where
    C: FnMut() -> F,
    F: Future<Output = Result<Connection, Failure>>,
{
    let (begun, cpu_before) = (Instant::now(), cpu_seconds());
    let mut road = Road::prepare(request, options)?;
    let mut connection = connect().await?;
    let opened = road.open(&mut connection).await.map_err(|ended| match ended {
        Ended::Lost(failure) | Ended::Fatal(failure) => failure,
    })?;
    let what = road.what(&opened)?;
    let shape = road.shape(&opened.point)?;
    let mut run = road.start(&opened, &what, shape, progress, output)?;
    let resumed: u64 = run.covered.iter().map(|covered| shape.run_bytes(covered)).sum();
    if resumed > 0 {
        run.notes.push(format!("{resumed} bytes were there from an interrupted restore"));
    }
    let result = road.bring(&mut run, connection, &what, &mut connect).await;
    if let Err(failure) = result {
        run.give_up().await;
        return Err(failure);
    }
    if !run.is_complete() {
        let text = format!("{} blocks are covered of {}", run.covered.blocks(), shape.blocks());
        return Err(Failure::new(FailureKind::Internal, text));
    }
    if let Some(keeper) = &mut run.keeper {
        keeper.finish().await?;
    }
    let repository = run.repository_share();
    let RestoreRun { totals, mut stats, notes, mut workers, .. } = run;
    stats.merge(&workers.finish());
    Ok(RestoreReport {
        bytes_virtual: shape.size_bytes,
        bytes_written: totals.written_bytes,
        bytes_zero: totals.zero_bytes,
        bytes_transferred: totals.transferred_bytes,
        bytes_resumed: resumed,
        blocks: totals.blocks,
        wall_seconds: begun.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds() - cpu_before,
        peak_rss_bytes: peak_rss_bytes(),
        reconnections: totals.reconnections,
        stages: stats.summary(),
        bottleneck: stats.bottleneck(repository),
        point: opened.point.point,
        notes,
    })
}
