//! What stays the same over all connections of a restore: the disk, the destination, the options.
//!
//! In: the request, what an earlier run left. Out: an open destination with its threads, and every
//! block brought to it. Invariant: the sidecar stands before the file does. Must not: go on with
//! another point than it began with.

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_common::extents::RunSet;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;
use gantry_common::limits;
use gantry_common::wire::{PointSummary, RestoreOffer};
use gantry_uring::buffer::BufferPool;
use tokio::sync::mpsc::unbounded_channel;

use super::client::{RestoreOptions, RestoreRequest};
use super::keeper::Keeper;
use super::report::Progress;
use super::requests::Ahead;
use super::resume::{Sidecar, What, sidecar_path};
use super::run::{RestoreRun, RunParts, Shape};
use super::session::{Ended, Opened, RestoreSession, greet, pause};
use super::stream::{StreamPlan, decode_blocks, write_in_order};
use super::target::{Destination, Target, check_before, source_failure};
use super::workers::Workers;
use super::writer::{Plan, write_blocks};
use crate::transport::Connection;

/// What stays the same over all connections.
pub(super) struct Road {
    offer: RestoreOffer,
    destination: Destination,
    options: RestoreOptions,
    session: SessionId,
    sidecar: Option<Sidecar>,
}

impl Road {
    /// Looks at the destination before anything else.
    pub(super) fn prepare(
        request: RestoreRequest,
        options: RestoreOptions,
    ) -> Result<Road, Failure> {
        let RestoreRequest { mut offer, destination } = request;
        let mut sidecar = match path_of(&destination) {
            // Without its file a sidecar says nothing.
            Some(path) if path.exists() => Sidecar::load(&sidecar_path(path))?,
            _ => None,
        };
        check_before(&destination, sidecar.as_ref(), options.force)?;
        let continued = sidecar.as_ref().filter(|sidecar| sidecar.is_of(&offer.name, offer.disk));
        match continued {
            Some(sidecar) => offer.point = offer.point.or_else(|| sidecar.point()),
            None if options.force => sidecar = None,
            None => {}
        }
        let mut session = [0; SessionId::BYTES];
        getrandom::fill(&mut session).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("no random numbers: {error}"))
        })?;
        let session = options.session.unwrap_or(SessionId(session));
        Ok(Road { offer, destination, options, session, sidecar })
    }

    pub(super) async fn open(&mut self, connection: &mut Connection) -> Result<Opened, Ended> {
        let ticket = self.options.ticket.clone();
        let opened = greet(connection, self.session, &self.offer, ticket).await?;
        if opened.ticket.is_some() {
            self.options.ticket = opened.ticket.clone();
        }
        // Whatever becomes the newest meanwhile: this restore stays with its point.
        self.offer.point = Some(opened.point.point);
        Ok(opened)
    }

    pub(super) fn shape(&self, point: &PointSummary) -> Result<Shape, Failure> {
        let refuse = |what: String| Err(Failure::new(FailureKind::Refused, what));
        let Some(disk) = point.disks.get(usize::from(self.offer.disk)) else {
            let (disk, disks) = (self.offer.disk, point.disks.len());
            return refuse(format!("the point has {disks} disks; there is no disk {disk}"));
        };
        if let Some(wanted) = &self.options.identity
            && *wanted != disk.identity
        {
            let (at, found) = (self.offer.disk, &disk.identity);
            return refuse(format!("disk {at} of the point is '{found}' and not '{wanted}'"));
        }
        let (size_bytes, block_size) = (disk.size_bytes, disk.block_size);
        match size_bytes {
            1..=limits::DISK_BYTES_MAX => Ok(Shape { size_bytes, block_size }),
            _ => refuse(format!("the repository names a disk of {size_bytes} bytes")),
        }
    }

    pub(super) fn what(&self, opened: &Opened) -> Result<What, Failure> {
        let Shape { size_bytes, block_size } = self.shape(&opened.point)?;
        let RestoreOffer { name, disk, .. } = &self.offer;
        let point = opened.point.point;
        Ok(What::new(opened.repository, name, point, *disk, size_bytes, block_size))
    }

    /// Opens the destination and starts the threads.
    pub(super) fn start(
        &mut self,
        opened: &Opened,
        what: &What,
        shape: Shape,
        progress: Arc<Progress>,
        output: impl FnOnce() -> Box<dyn Write + Send>,
    ) -> Result<RestoreRun, Failure> {
        let RestoreOffer { name, disk, .. } = &self.offer;
        let label: Arc<str> = format!("{name}, point {}, disk {disk}", opened.point.point).into();
        match path_of(&self.destination).map(Path::to_owned) {
            Some(path) => self.start_writers(&path, opened, what, shape, label, progress),
            None => self.start_stream(opened, shape, label, progress, output()),
        }
    }

    fn start_writers(
        &mut self,
        path: &Path,
        opened: &Opened,
        what: &What,
        shape: Shape,
        label: Arc<str>,
        progress: Arc<Progress>,
    ) -> Result<RestoreRun, Failure> {
        let (target, covered, sidecar) = self.open_target(path, what, shape)?;
        let target = Arc::new(target);
        let cores = self.options.cores();
        let depth = (write_slots(shape) / cores.len()).max(2);
        let plan = Plan {
            target: Arc::clone(&target),
            block_size: shape.block_size,
            id_key: opened.id_key,
            label,
            depth,
        };
        let (done_sender, done) = unbounded_channel();
        let jobs_max = receive_slots(shape) + 64;
        let workers = Workers::start(&cores, jobs_max, &done_sender, move |post| {
            write_blocks(plan.clone(), post)
        })?;
        let zeros_are_there = target.is_fresh;
        let note = target.note.clone();
        let keeper = Some(Keeper::start(target, what.clone(), sidecar)?);
        let ahead = Ahead::any_order();
        let window = None;
        let mut run = RestoreRun::new(RunParts {
            shape,
            ahead,
            window,
            covered,
            zeros_are_there,
            workers,
            done,
            keeper,
            progress,
        });
        run.notes.extend(note.map(|note| format!("{}: {note}", path.display())));
        Ok(run)
    }

    fn open_target(
        &mut self,
        path: &Path,
        what: &What,
        shape: Shape,
    ) -> Result<(Target, RunSet, PathBuf), Failure> {
        let is_device = matches!(self.destination, Destination::BlockDevice(_));
        let sidecar = sidecar_path(path);
        let force = self.options.force;
        // With --force another restore's record is no reason to stop, but no help either.
        let left = self.sidecar.take().filter(|left| !force || left.check(what).is_ok());
        match &left {
            Some(left) => left.check(what)?,
            // Before the file, so that whatever exists can be gone on with.
            None => Sidecar::new(what.clone(), None, &RunSet::new())
                .save(&sidecar)
                .map_err(|error| source_failure(&sidecar, format!("cannot be written: {error}")))?,
        }
        let target = match is_device {
            true => Target::open_device(path, shape.size_bytes, self.options.reads_zeros),
            false => Target::open_file(path, shape.size_bytes, left.is_some(), force),
        };
        let target = target.inspect_err(|_| {
            if left.is_none() {
                let _ = std::fs::remove_file(&sidecar);
            }
        })?;
        let id = target.id().map_err(|error| source_failure(path, error))?;
        let covered = match left {
            Some(left) => left.covered(&id, shape.blocks())?,
            None => RunSet::new(),
        };
        Ok((target, covered, sidecar))
    }

    fn start_stream(
        &mut self,
        opened: &Opened,
        shape: Shape,
        label: Arc<str>,
        progress: Arc<Progress>,
        output: Box<dyn Write + Send>,
    ) -> Result<RestoreRun, Failure> {
        let window = write_slots(shape).min(receive_slots(shape));
        let pool = BufferPool::new(window, shape.block_size.bytes() as usize).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("no memory for {window} blocks: {error}"))
        })?;
        let Shape { size_bytes, block_size } = shape;
        let plan = StreamPlan { block_size, size_bytes, id_key: opened.id_key, label, pool };
        let (done_sender, done) = unbounded_channel();
        let (piece_sender, pieces) = crossbeam_channel::bounded(window);
        let decoders = plan.clone();
        let mut workers =
            Workers::start(&self.options.cores(), window, &done_sender, move |post| {
                decode_blocks(decoders.clone(), post, piece_sender.clone())
            })?;
        workers.spawn("restore-stdout".to_owned(), move || {
            write_in_order(plan, pieces, done_sender, output)
        })?;
        let ahead = Ahead::in_order(window as u64);
        Ok(RestoreRun::new(RunParts {
            shape,
            ahead,
            window: Some(window as u64),
            covered: RunSet::new(),
            zeros_are_there: false,
            workers,
            done,
            keeper: None,
            progress,
        }))
    }

    /// Brings every block, over as many connections as it takes.
    pub(super) async fn bring<C, F>(
        &mut self,
        run: &mut RestoreRun,
        first: Connection,
        what: &What,
        connect: &mut C,
    ) -> Result<(), Failure>
    where
        C: FnMut() -> F,
        F: Future<Output = Result<Connection, Failure>>,
    {
        let mut connection = Some(first);
        let mut attempt = 0;
        loop {
            let before = run.accepted.blocks();
            let ended = match connection.take() {
                Some(connection) => self.bring_some(run, connection).await,
                None => match self.reconnect(what, connect).await {
                    Ok(connection) => self.bring_some(run, connection).await,
                    Err(ended) => Err(ended),
                },
            };
            let lost = match ended {
                Ok(()) => return Ok(()),
                Err(Ended::Fatal(failure)) => return Err(failure),
                Err(Ended::Lost(failure)) => failure,
            };
            if run.accepted.blocks() > before {
                attempt = 0;
            }
            if run.last_progress.elapsed() >= self.options.reconnect_for {
                return Err(lost);
            }
            tracing::warn!(%lost, "the connection was lost, trying again");
            run.totals.reconnections += 1;
            pause(attempt).await;
            attempt += 1;
        }
    }

    async fn bring_some(&self, run: &mut RestoreRun, connection: Connection) -> Result<(), Ended> {
        let mut session = RestoreSession::new(connection, run, receive_slots(run.shape))?;
        session.run(run).await?;
        session.leave().await;
        Ok(())
    }

    async fn reconnect<C, F>(&mut self, what: &What, connect: &mut C) -> Result<Connection, Ended>
    where
        C: FnMut() -> F,
        F: Future<Output = Result<Connection, Failure>>,
    {
        let mut connection =
            connect().await.map_err(|failure| match failure.kind.is_retryable() {
                true => Ended::Lost(failure),
                false => Ended::Fatal(failure),
            })?;
        let opened = self.open(&mut connection).await?;
        match self.what(&opened).map_err(Ended::Fatal)? == *what {
            true => Ok(connection),
            false => Err(Ended::Fatal(Failure::new(
                FailureKind::Refused,
                "the repository or the point changed while it was being restored",
            ))),
        }
    }
}

fn path_of(destination: &Destination) -> Option<&Path> {
    match destination {
        Destination::SparseFile(path) | Destination::BlockDevice(path) => Some(path),
        Destination::Stdout => None,
    }
}

/// Blocks on their way from the network to a worker: half of the restore's memory.
fn receive_slots(shape: Shape) -> usize {
    (limits::RESTORE_POOL_BYTES / 2 / shape.block_size.bytes() as usize).max(4)
}

/// Blocks on their way from a worker to the destination: the other half.
fn write_slots(shape: Shape) -> usize {
    (limits::RESTORE_POOL_BYTES / 2 / shape.block_size.bytes() as usize).max(4)
}
