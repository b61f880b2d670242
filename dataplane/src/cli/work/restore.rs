//! A restore as a control plane describes it: disks of one point to new files of this host, or to new
//! disks that are attached to it.
//!
//! In: a [`RestoreWork`]. Out: whole files and disks, and a [`RestoreDone`]; nothing is left of a file
//! that failed or was given up. Must not: overwrite anything.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{PointId, SessionId};
use gantry_common::wire::{RestoreOffer, TicketBytes, is_name};
use gantry_common::work::{
    DiskProgress, DiskRestore, DiskRestored, RestoreDone, RestoreTo, RestoreWork, unfinished_name,
};

use super::super::arguments::WorkArguments;
use super::super::{Use, runtime, usage};
use super::{Ticker, heed_input, reach, ticket};
use crate::connect::Connector;
use crate::disk::attached_device;
use crate::restore::{
    NewFile, Progress, RestoreOptions, RestoreReport, restore_to_file, restore_to_new_device,
};
use crate::transport::Pacer;

/// The numbers of each disk that has begun.
type Numbers = Arc<Mutex<Vec<(String, Arc<Progress>)>>>;

/// What is the same for all disks of a work.
struct Restoring {
    name: String,
    point: PointId,
    session: SessionId,
    ticket: Option<TicketBytes>,
    reconnect_for: Duration,
    connector: Connector,
    numbers: Numbers,
}

pub(super) fn run(work: RestoreWork, arguments: &WorkArguments) -> Result<RestoreDone, Failure> {
    let RestoreWork { name, point, repository, session, disks, reconnect_seconds } = work;
    if let Some(text) = [&name]
        .into_iter()
        .chain(disks.iter().map(|disk| &disk.identity))
        .find(|text| !is_name(text))
    {
        return Err(usage(format!("'{text}' is no name of a VM or disk")));
    }
    let restoring = Restoring {
        point: point.parse().map_err(|error| usage(format!("point: {error}")))?,
        session: session.parse().map_err(|error| usage(format!("session: {error}")))?,
        ticket: repository.ticket.as_deref().map(ticket).transpose()?,
        reconnect_for: Duration::from_secs(reconnect_seconds),
        connector: reach(&repository, arguments, Use::Read)?,
        numbers: Numbers::default(),
        name,
    };
    let shown = Arc::clone(&restoring.numbers);
    let ticker = Ticker::start(move || {
        shown.lock().unwrap_or_else(PoisonError::into_inner).iter().map(progress).collect()
    });
    // Its rate is the repository's to keep: this side sends next to nothing.
    let abandoned = heed_input(Pacer::unlimited())?;
    let done = runtime()?.block_on(async {
        tokio::select! {
            done = restoring.all(&disks) => done,
            _ = abandoned => Err(Failure::new(
                FailureKind::Source,
                "the restore was given up: what was not whole is removed",
            )),
        }
    });
    drop(ticker);
    done
}

impl Restoring {
    async fn all(&self, disks: &[DiskRestore]) -> Result<RestoreDone, Failure> {
        let mut done = RestoreDone::default();
        for disk in disks {
            let report = self.one(disk).await.map_err(|failure| Failure {
                message: format!("disk {}: {}", disk.label, failure.message),
                ..failure
            })?;
            done.disks.push(restored(disk, report));
        }
        Ok(done)
    }

    async fn one(&self, disk: &DiskRestore) -> Result<RestoreReport, Failure> {
        let progress = Arc::new(Progress::default());
        let numbers = (disk.label.clone(), Arc::clone(&progress));
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).push(numbers);
        let (name, point) = (self.name.clone(), Some(self.point));
        let offer = RestoreOffer { name, point, disk: disk.disk };
        let options = RestoreOptions {
            reconnect_for: self.reconnect_for,
            ticket: self.ticket.clone(),
            session: Some(self.session),
            identity: Some(disk.identity.clone()),
            ..RestoreOptions::default()
        };
        let connect = || async {
            let (connection, notes) = self.connector.connect().await.map_err(Failure::from)?;
            notes.iter().for_each(|note| tracing::info!("{note}"));
            Ok(connection)
        };
        match &disk.to {
            RestoreTo::File(file) => {
                let unfinished = unfinished_name(file, &self.session.to_string());
                let to = NewFile { file: file.clone(), unfinished };
                restore_to_file(connect, offer, &to, options, progress).await
            }
            RestoreTo::NewDevice { uuid, folder } => {
                let (uuid, folder) = (uuid.clone(), folder.clone());
                let found = move || attached_device(&uuid, folder.as_deref());
                let found = tokio::task::spawn_blocking(found).await;
                let found = found
                    .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
                let device =
                    found.map_err(|error| Failure::new(FailureKind::Source, error.to_string()))?;
                restore_to_new_device(connect, offer, &device, options, progress).await
            }
        }
    }
}

fn restored(disk: &DiskRestore, report: RestoreReport) -> DiskRestored {
    DiskRestored {
        label: disk.label.clone(),
        to: disk.to.clone(),
        size_bytes: report.bytes_virtual,
        written_bytes: report.bytes_written,
        zero_bytes: report.bytes_zero,
        transferred_bytes: report.bytes_transferred,
        verified_blocks: report.blocks,
        seconds: report.wall_seconds,
        bottleneck: report.bottleneck.name().to_owned(),
        stages: report.stages,
        notes: report.notes,
    }
}

fn progress((label, numbers): &(String, Arc<Progress>)) -> DiskProgress {
    DiskProgress {
        label: label.clone(),
        done_bytes: Progress::get(&numbers.done_bytes),
        todo_bytes: Progress::get(&numbers.todo_bytes),
        read_bytes: Progress::get(&numbers.received_bytes),
        sent_bytes: 0,
        ..DiskProgress::default()
    }
}
