//! `gantry-mover work`: a backup or a restore as a control plane describes it.
//!
//! In: one [`Work`] as a line of JSON on standard input, which then stays open: its end stops the
//! work, so that no mover outlives who started it. Out: [`WorkReport`]s as JSON lines on standard
//! output; the exit code is that of the failure. Must not: show a secret.

use std::io::{BufRead, Read};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::hex;
use gantry_common::ids::PeerId;
use gantry_common::limits;
use gantry_common::source::SourceSpec;
use gantry_common::wire::{SessionKind, TicketBytes, is_name};
use gantry_common::work::{
    BackupWork, DiskProgress, ORDER_BYTES_MAX, RepositoryAccess, WORK_BYTES_MAX, Work, WorkOrder,
    WorkReport,
};
use serde::Serialize;

use super::arguments::{AccessArguments, TransportChoice, WorkArguments};
use super::{Use, connector, identity_of, runtime, say, usage};
use crate::backup::{self, BackupOptions, BackupReport, BackupSource};
use crate::connect::{Connector, Credentials, RepositoryAddress};
use crate::filters::Filters;
use crate::host;
use crate::stats::Progress;
use crate::transport::{Pacer, TransportKind, Trust};

mod restore;

/// Reads in flight for each worker.
const QUEUE_DEPTH: usize = 4;
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

pub(super) fn run(arguments: &WorkArguments) -> Result<(), Failure> {
    match read() {
        Ok(Work::Backup(work)) => tell_end(back_up(*work, arguments)),
        Ok(Work::Restore(work)) => tell_end(restore::run(*work, arguments)),
        Err(failure) => tell_end::<()>(Err(failure)),
    }
}

fn tell_end<R: Serialize>(result: Result<R, Failure>) -> Result<(), Failure> {
    match &result {
        Ok(report) => tell(&WorkReport::Done { report }),
        Err(failure) => {
            tell(&WorkReport::<()>::Failed { failure: failure.clone() });
        }
    }
    result.map(drop)
}

fn back_up(work: BackupWork, arguments: &WorkArguments) -> Result<BackupReport, Failure> {
    let connector = reach(&work.repository, arguments, Use::Write)?;
    let pacer = Pacer::unlimited();
    pacer.set_rate(work.rate.and_then(NonZeroU64::new));
    let options = options(work)?;
    let mut ticker = None;
    let paced = pacer.clone();
    let watch = |disks: Vec<(String, Arc<Progress>)>| {
        let numbers = move || disks.iter().map(|disk| progress(disk, &paced)).collect();
        ticker = Some(Ticker::start(numbers));
    };
    let abandoned = heed_input(pacer.clone())?;
    let report = runtime()?.block_on(async {
        tokio::select! {
            report = backup::run(options, &connector, pacer, watch) => report,
            _ = abandoned => Err(Failure::new(
                FailureKind::Source,
                "the control plane has gone: what is durable stays, and the next run resumes",
            )),
        }
    });
    drop(ticker);
    report
}

/// The way to the repository.
fn reach(
    repository: &RepositoryAccess,
    arguments: &WorkArguments,
    use_: Use,
) -> Result<Connector, Failure> {
    let identity = repository.identity.clone().or(arguments.identity.clone());
    let (peer, transport) = (repository.peer.clone(), TransportChoice::Auto);
    let access = AccessArguments { identity, peer, transport };
    let Some(pin) = &repository.pin else {
        return connector(&repository.address, &access, use_);
    };
    let RepositoryAddress::Remote(address) = repository.address.parse()? else {
        return Err(usage("a repository in a folder has no pin"));
    };
    let pin: PeerId = pin.parse().map_err(|error| usage(format!("pin: {error}")))?;
    let identity = identity_of(&access)?;
    let credentials = Box::new(Credentials { identity, trust: Trust::of_pins([pin]) });
    Ok(Connector::Remote { address, credentials, kind: TransportKind::Auto })
}

fn read() -> Result<Work, Failure> {
    let mut text = Vec::new();
    let input = std::io::stdin().lock();
    let read = input.take(WORK_BYTES_MAX + 1).read_until(b'\n', &mut text);
    read.map_err(|error| usage(format!("standard input: {error}")))?;
    if text.len() as u64 > WORK_BYTES_MAX {
        return Err(usage(format!("the work on standard input exceeds {WORK_BYTES_MAX} bytes")));
    }
    Work::from_json(&text).map_err(|error| usage(format!("work on standard input: {error}")))
}

/// Obeys what comes after the work; fires when standard input ends: whoever started this mover lives as long as that is open, and the
/// snapshot that is read must not outlive its keeper's interest.
fn heed_input(pacer: Pacer) -> Result<tokio::sync::oneshot::Receiver<()>, Failure> {
    let (ended, receiver) = tokio::sync::oneshot::channel();
    let watch = move || {
        // Its end, or an error, says that nobody wants the work any more; so does a line without end.
        let mut input = std::io::stdin().lock();
        let mut line = Vec::new();
        while let Ok(1..) = (&mut input).take(ORDER_BYTES_MAX).read_until(b'\n', &mut line) {
            if line.last() != Some(&b'\n') {
                break;
            }
            obey(&line, &pacer);
            line.clear();
        }
        let _ = ended.send(());
    };
    std::thread::Builder::new().name("lifeline".into()).spawn(watch).map_err(|error| {
        Failure::new(FailureKind::Internal, format!("starting a thread failed: {error}"))
    })?;
    Ok(receiver)
}

/// Carries out an order; what is not understood is noted and otherwise ignored.
fn obey(line: &[u8], pacer: &Pacer) {
    match serde_json::from_slice(line) {
        Ok(WorkOrder::SetRate(rate)) => pacer.set_rate(rate.and_then(NonZeroU64::new)),
        Err(error) => tracing::warn!("an order on standard input is ignored: {error}"),
    }
}

fn options(work: BackupWork) -> Result<BackupOptions, Failure> {
    let names = work.disks.iter().map(|disk| &disk.identity).chain([&work.name]);
    if let Some(name) = names.into_iter().find(|name| !is_name(name)) {
        return Err(usage(format!("'{name}' is no name of a VM or disk")));
    }
    let base = work.base.as_deref().map(str::parse).transpose();
    let base = base.map_err(|error| usage(format!("base: {error}")))?;
    let session = work.session.as_deref().map(str::parse).transpose();
    let session = session.map_err(|error| usage(format!("session: {error}")))?;
    let kind = kind(&work);
    let mut sources = Vec::with_capacity(work.disks.len());
    for disk in work.disks {
        disk.source.check().map_err(usage)?;
        let read_digest = disk.read_digest.as_deref().map(read_digest).transpose()?;
        sources.push(BackupSource {
            spec: disk.source,
            identity: Some(disk.identity),
            changed_extents: disk.changed_extents,
            allocated_extents: disk.allocated_extents,
            change_id: disk.change_id,
            read_digest,
            filters: Filters::OFF,
        });
    }
    Ok(BackupOptions {
        session,
        kind,
        ticket: work.repository.ticket.as_deref().map(ticket).transpose()?,
        created_ms: work.created_ms,
        name: work.name,
        sources,
        base,
        full: work.full,
        audit_per_million: work.audit_per_million,
        vm_config: work.vm_config.into_bytes(),
        retention: work.retention,
        snapshot: Some(work.snapshot),
        block_size: work.block_size,
        compression: work.compression,
        cores: host::worker_cores(work.workers, None).map_err(usage)?,
        queue_depth: QUEUE_DEPTH,
        tasks_max: work.tasks,
        reconnect_for: Duration::from_secs(work.reconnect_seconds),
    })
}

fn kind(work: &BackupWork) -> SessionKind {
    let is_durable = |source: &SourceSpec| matches!(source, SourceSpec::Durable { .. });
    match work.disks.iter().all(|disk| is_durable(&disk.source)) {
        _ if work.hold => SessionKind::Part,
        true => SessionKind::Commit,
        false => SessionKind::Backup,
    }
}

fn read_digest(text: &str) -> Result<[u8; 32], Failure> {
    let bytes = hex::decode(text, 32).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| usage("a read digest has 64 hexadecimal digits"))
}

fn ticket(text: &str) -> Result<TicketBytes, Failure> {
    let bytes = hex::decode(text, limits::FRAME_HEADER_BYTES_MAX as usize / 4);
    bytes.map(TicketBytes).ok_or_else(|| usage("the session ticket is no hexadecimal text"))
}

fn tell<R: Serialize>(report: &WorkReport<R>) {
    match serde_json::to_string(report) {
        Ok(line) => say(&line),
        Err(error) => tracing::error!("a report cannot be written as JSON: {error}"),
    }
}

/// Tells the live numbers every second until dropped.
struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ticker {
    fn start(numbers: impl Fn() -> Vec<DiskProgress> + Send + 'static) -> Ticker {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                std::thread::park_timeout(PROGRESS_EVERY);
                tell(&WorkReport::<()>::Progress { disks: numbers() });
            }
        });
        Ticker { stop, thread: Some(thread) }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The last word is the result.
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn progress((label, numbers): &(String, Arc<Progress>), pacer: &Pacer) -> DiskProgress {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    DiskProgress {
        label: label.clone(),
        done_bytes: of(&numbers.done_bytes),
        todo_bytes: of(&numbers.todo_bytes),
        read_bytes: of(&numbers.read_bytes),
        sent_bytes: of(&numbers.sent_bytes),
        reads: of(&numbers.reads),
        reads_us: of(&numbers.reads_us),
        held_back_ms: pacer.waited_ms(),
    }
}
