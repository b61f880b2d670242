//! Starts gantryd's parts and goes on with what an interrupted gantryd left.
//!
//! In: [`StartOptions`]. Out: [`Parts`] at work: movers are listened to, unfinished sessions go on,
//! what nobody goes on with is undone as soon as its vCenter is reached. Invariant: one gantryd at a
//! time works on a state folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::TaskId;
use gantry_database::Database;
use gantry_database::model::SessionKind;

use super::clock::Clock;
use super::dispatcher::Dispatcher;
use super::journal::EventWriter;
use super::live::Live;
use super::registry::DatabaseRegistry;
use super::traffic::Traffic;
use super::vcenters::VCenters;
use super::{Parts, calendar, copies, maintenance, restore, traffic};
use crate::authority::Authority;
use crate::fleet::Fleet;
use crate::fleet::enrolment::{Addresses, Enrolment};
use crate::ledger::Ledger;
use crate::run::document::{RunDocument, TaskState};
use crate::run::{failed, now_ms};

/// What movers are told gantryd is.
const SOFTWARE: &str = concat!("gantryd ", env!("CARGO_PKG_VERSION"));
/// Between two looks at movers' load and repositories' free space.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two tries to undo what was left.
const CLEAN_EVERY: Duration = Duration::from_secs(600);

/// How long movers may take to come back before interrupted sessions go on without them.
const MOVERS_WITHIN: Duration = Duration::from_secs(45);

/// How gantryd is started.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// Folder of its state.
    pub state: PathBuf,
    /// Where movers connect.
    pub control: SocketAddr,
    /// Names and addresses by which it is reached; the first is the one that movers demand.
    pub names: Vec<String>,
    /// How its REST API is reached: `https://HOST:PORT`.
    pub url: String,
    /// How long a restore waits for a proxy that is gone: [`restore::PROXY_BACK_WITHIN`].
    pub proxy_back_within: Duration,
}

/// gantryd at work. Clones are the same.
#[derive(Clone)]
pub struct Started {
    /// Its parts.
    pub parts: Parts,
    /// Its certificates.
    pub authority: Arc<Authority>,
    /// Lets movers in.
    pub enrolment: Arc<Enrolment>,
}

/// Starts.
///
/// # Errors
/// The state folder is in use or damaged, an address is taken.
pub async fn start(options: &StartOptions) -> Result<Started, Failure> {
    let state = &options.state;
    private_folder(state)?;
    let ledger = Arc::new(Ledger::open(&state.join("ledger"))?);
    let database = Database::open(&state.join("database")).await?;
    let authority = Arc::new(Authority::open(&state.join("authority"), &options.names, now_ms())?);
    let trust = authority.trust().map_err(|error| failed(FailureKind::Internal, error))?;
    let registry = Arc::new(DatabaseRegistry(database.clone()));
    let listening = Arc::clone(&registry);
    let fleet = Fleet::start(options.control, SOFTWARE, &authority.identity(), &trust, listening);
    let fleet = fleet.map_err(|error| failed(FailureKind::Usage, error))?;
    let host = options.names.first().map_or("localhost", String::as_str);
    let control = format!("{host}:{}", fleet.address().port());
    let addresses = Addresses { url: options.url.clone(), control };
    let store = Arc::clone(&registry);
    let enrolment = Enrolment::new(Arc::clone(&authority), store, registry, addresses);
    let live = Live::default();
    let clock = Clock::default();
    let parts = Parts {
        traffic: Traffic::new(fleet.clone(), clock.clone()),
        database: database.clone(),
        fleet,
        dispatcher: Dispatcher::new(),
        ledger: Arc::clone(&ledger),
        events: EventWriter::start(database.clone(), live.clone()),
        live,
        vcenters: VCenters::new(database, ledger, state.clone()),
        clock,
        calendar: Arc::default(),
        proxy_back_within: options.proxy_back_within,
        starting: Arc::default(),
        known: Arc::default(),
        running: Arc::default(),
        counts: Arc::default(),
    };
    parts.refresh().await?;
    // Before anything is sent: the rules hold from the first byte.
    parts.traffic.refresh(&parts.database).await?;
    tokio::spawn(traffic::keep(parts.clone()));
    copies::seal_authority(&parts.database, state).await?;
    tokio::spawn(copies::keep(parts.clone()));
    go_on(&parts).await?;
    tokio::spawn(look_after(parts.clone()));
    Ok(Started { parts, authority, enrolment: Arc::new(enrolment) })
}

pub(super) fn private_folder(folder: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| failed(FailureKind::Usage, format!("{}: {error}", folder.display())))
}

/// Takes up the sessions that an interrupted gantryd left, then keeps the calendar.
async fn go_on(parts: &Parts) -> Result<(), Failure> {
    let left = parts.database.unfinished_sessions().await?;
    let (left, others): (Vec<_>, Vec<_>) =
        left.into_iter().partition(|record| record.kind == SessionKind::Backup);
    let (restores, others): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|record| record.kind == SessionKind::Restore);
    for record in others {
        parts.finish(maintenance::interrupted(record)).await;
    }
    let parts = parts.clone();
    tokio::spawn(async move {
        // Movers have gone on meanwhile: without them nothing could be known of their tasks.
        let until = tokio::time::Instant::now() + MOVERS_WITHIN;
        while !parts.is_complete() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        parts.tell_scheduler();
        for record in left {
            tracing::warn!("session {} of {} goes on", record.id, record.name);
            parts.begin(record);
        }
        for record in restores {
            tracing::warn!("session {} ({}) goes on", record.id, record.name);
            restore::go_on(&parts, record);
        }
        calendar::keep(parts).await;
    });
    Ok(())
}

/// Keeps the scheduler's facts current, forgets tasks that nobody owns, undoes what was left.
async fn look_after(parts: Parts) {
    let mut changes = parts.fleet.changes();
    let mut cleaned = tokio::time::Instant::now();
    loop {
        let pause = tokio::time::sleep(LOOK_EVERY);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = pause => {}
        }
        parts.tell_scheduler();
        if let Err(failure) = forget_orphans(&parts).await {
            tracing::warn!("{failure}");
        }
        if cleaned.elapsed() > CLEAN_EVERY {
            cleaned = tokio::time::Instant::now();
            parts.vcenters.clean_all().await;
        }
    }
}

/// Tasks of an earlier life of gantryd that no unfinished run goes on with.
async fn forget_orphans(parts: &Parts) -> Result<(), Failure> {
    let movers = parts.fleet.movers();
    if movers.iter().all(|mover| mover.orphans.is_empty()) {
        return Ok(());
    }
    let runs = parts.database.unfinished_vm_runs().await?;
    let documents =
        runs.into_iter().filter_map(|run| serde_json::from_value::<RunDocument>(run.document).ok());
    let sessions = parts.database.unfinished_sessions().await?;
    let restores = sessions.iter().flat_map(restore::tasks_of);
    let wanted: Vec<TaskId> = documents
        .flat_map(|document| document.frozen.map(|frozen| frozen.disks).unwrap_or_default())
        .filter_map(|disk| match disk.state {
            TaskState::Running { task, .. } => Some(task),
            _ => None,
        })
        .chain(restores)
        .collect();
    for mover in movers {
        for task in mover.orphans.iter().filter(|task| !wanted.contains(task)) {
            parts.fleet.stop(*task);
            parts.fleet.forget(mover.pin, *task);
        }
    }
    Ok(())
}
