//! Starts jobs when their time has come.
//!
//! In: enabled jobs, their clocks (up to where each schedule was looked after), the instant. Out:
//! sessions; what cannot begin is passed over, and the log says why. Jobs are looked at when the next
//! one is due, when a session ends, and every few seconds for what changed.
//!
//! Invariants: a run begins once, also over restarts: its session is written down before the job's
//! clock moves, and a job has one session at a time. Runs that came while gantryd was away are made
//! good by one, at once if the window is open. Must not: run anything itself.

use std::collections::BTreeMap;

use gantry_common::failure::Failure;
use gantry_database::model::{
    Id, Job, SessionRecord, SessionResult, SessionState, Severity, Trigger,
};
use gantry_database::{Page, SessionFilter, Stored};
use gantry_scheduler::schedule::{Calendar, When, Windows, Zone};
use jiff::{SignedDuration, Timestamp};

use super::clock::{milliseconds, timestamp};
use super::{Parts, times};

/// Between two looks for jobs that changed.
const LOOK_EVERY: SignedDuration = SignedDuration::from_secs(5);
/// Jobs that are read at once.
const PAGE: u32 = 500;

/// A job's times, as they were read from one version of it.
struct Plan {
    version: u64,
    /// Nothing: it cannot be understood, which was told.
    times: Option<(Calendar, Windows)>,
}

/// What is to be done about a job.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// A session begins.
    Begin { trigger: Trigger, why: String, is_late: bool },
    /// It would begin now, but must not.
    PassOver(String),
}

/// A look at one job.
#[derive(Debug, PartialEq, Eq)]
struct Looked {
    due: Option<Due>,
    /// The job's clock, if it moves.
    handled_ms: Option<u64>,
    /// When it is due next, as far as the clock decides.
    next: Option<Timestamp>,
}

/// Keeps the calendar for as long as gantryd runs.
pub(super) async fn keep(parts: Parts) {
    let mut plans = BTreeMap::new();
    loop {
        let nudged = parts.calendar.notified();
        let now = parts.clock.now();
        let latest = now.checked_add(LOOK_EVERY).unwrap_or(now);
        let next = match look_at_all(&parts, &mut plans, now).await {
            Ok(next) => next.map_or(latest, |next| next.min(latest)),
            Err(failure) => {
                tracing::error!("schedules could not be looked at: {failure}");
                latest
            }
        };
        tokio::select! {
            () = parts.clock.wait_until(next) => {}
            () = nudged => {}
        }
    }
}

/// Begins what is due; when the next job is.
async fn look_at_all(
    parts: &Parts,
    plans: &mut BTreeMap<Id, Plan>,
    now: Timestamp,
) -> Result<Option<Timestamp>, Failure> {
    let clocks = parts.database.job_clocks().await?;
    let (mut next, mut page) = (None::<Timestamp>, Page::first(PAGE));
    loop {
        let jobs = parts.database.list::<Job>(&page).await?;
        for job in jobs.iter().filter(|job| job.value.enabled) {
            let plan = plan(plans, job);
            let Some((calendar, windows)) = &plan.times else { continue };
            // What was due before the job was made, enabled or changed was another job's.
            let clock_ms = clocks.get(&job.value.id).copied().unwrap_or(0).max(job.changed_ms);
            let looked = match &calendar.when {
                When::Manual => continue,
                When::After { job: first, .. } => {
                    let Ok(first) = first.as_str().parse() else { continue };
                    let ended = newest_end(parts, first).await?;
                    look_after(calendar, windows, (clock_ms, ended.as_ref()), now)
                }
                _ => look(calendar, windows, clock_ms, now),
            };
            next = next.into_iter().chain(looked.next).min();
            take(parts, &job.value, looked).await;
        }
        match jobs.last() {
            Some(last) if jobs.len() == PAGE as usize => {
                page.after = Some(last.value.name.clone());
            }
            _ => return Ok(next),
        }
    }
}

/// The plan of this version of a job.
fn plan<'a>(plans: &'a mut BTreeMap<Id, Plan>, job: &Stored<Job>) -> &'a Plan {
    let id = job.value.id;
    if plans.get(&id).is_none_or(|plan| plan.version != job.version) {
        let calendar = times::calendar(&job.value);
        let windows = times::windows(&job.value.window, &job.value.time_zone);
        let times = calendar.and_then(|calendar| Ok((calendar, windows?)));
        if let Err(failure) = &times {
            tracing::error!("job {} never begins by itself: {failure}", job.value.name);
        }
        plans.insert(id, Plan { version: job.version, times: times.ok() });
    }
    &plans[&id]
}

/// A look at a job that goes by the clock.
fn look(calendar: &Calendar, windows: &Windows, clock_ms: u64, now: Timestamp) -> Looked {
    let look = calendar.look(timestamp(clock_ms), now);
    let due = look.run.map(|run| {
        let scheduled = shown(&calendar.zone, run.scheduled);
        if !windows.is_open(now) {
            return Due::PassOver(format!(
                "its run of {scheduled} is passed over: the backup window is closed"
            ));
        }
        let why = match run.late {
            false => format!("begun by its schedule, for {scheduled}"),
            true => format!(
                "begun late: it was due at {scheduled}, and gantryd could not begin it then; this \
                 run stands for all that were missed"
            ),
        };
        Due::Begin { trigger: Trigger::Schedule, why, is_late: run.late }
    });
    let handled_ms = due.is_some().then(|| milliseconds(look.handled));
    Looked { due, handled_ms, next: look.next }
}

/// A look at a job that follows another, of which this session ended last.
fn look_after(
    calendar: &Calendar,
    windows: &Windows,
    (clock_ms, ended): (u64, Option<&SessionRecord>),
    now: Timestamp,
) -> Looked {
    let quiet = Looked { due: None, handled_ms: None, next: None };
    let Some(ended) = ended else { return quiet };
    let (Some(ended_ms), Some(first)) = (ended.ended_ms, ended.job) else { return quiet };
    if ended_ms <= clock_ms {
        return quiet;
    }
    let (name, is_failed) = (&ended.name, ended.result == Some(SessionResult::Failed));
    let due = if !calendar.follows(&first.to_string().into(), is_failed) {
        Due::PassOver(format!("it does not follow job {name}, whose session failed"))
    } else if !windows.is_open(now) {
        Due::PassOver(format!("it does not follow job {name}: the backup window is closed"))
    } else {
        let why = format!("begun after job {name}, whose session {} ended", ended.id);
        Due::Begin { trigger: Trigger::AfterJob, why, is_late: false }
    };
    Looked { due: Some(due), handled_ms: Some(ended_ms), next: None }
}

/// An instant as a clock of a zone shows it.
fn shown(zone: &Zone, at: Timestamp) -> String {
    format!("{} ({zone})", zone.clock(at).strftime("%Y-%m-%d %H:%M"))
}

async fn newest_end(parts: &Parts, job: Id) -> Result<Option<SessionRecord>, Failure> {
    let state = Some(SessionState::Finished);
    let filter = SessionFilter { job: Some(job), state, limit: 1, ..SessionFilter::default() };
    Ok(parts.database.sessions(&filter).await?.pop())
}

/// Does what a look came to.
async fn take(parts: &Parts, job: &Job, looked: Looked) {
    match looked.due {
        None => return,
        Some(Due::PassOver(why)) => tracing::warn!("job {}: {why}", job.name),
        Some(Due::Begin { trigger, why, is_late }) => {
            let begun = begin(parts, job, trigger, (&why, is_late)).await;
            if let Err(failure) = begun {
                // Its clock stands: it is tried again.
                tracing::error!("job {} could not begin: {failure}", job.name);
                return;
            }
        }
    }
    if let Some(handled_ms) = looked.handled_ms
        && let Err(error) = parts.database.set_job_clock(job.id, handled_ms).await
    {
        tracing::error!("job {}: its clock could not be kept: {error}", job.name);
    }
}

async fn begin(
    parts: &Parts,
    job: &Job,
    trigger: Trigger,
    (why, is_late): (&str, bool),
) -> Result<(), Failure> {
    if let Some(running) = parts.session_of(job.id).await? {
        let text = "another run of this job came due and is passed over: this one still runs";
        parts.say(running, Severity::Warning, text);
        tracing::warn!("job {}: {text} (session {running})", job.name);
        return Ok(());
    }
    if is_late {
        tracing::warn!("job {}: {why}", job.name);
    }
    parts.start_job(job, (trigger, false, None), why).await.map(|_| ())
}

#[cfg(test)]
mod tests;
