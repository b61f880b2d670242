//! What a session waits for: its vCenter, a reason to stop, the end of its backup window.
//!
//! In: the session's record and its wish. Out: the same, in time. Must not: hold a slot meanwhile.

use std::sync::Arc;
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_database::model::{Id, Job, SessionRecord, SessionState, Severity};
use jiff::Timestamp;
use tokio::sync::watch;

use super::Parts;
use super::vcenters::OpenVCenter;
use crate::run::failed;
use crate::run::site::Wish;

/// Opens the job's vCenter. One that cannot be reached is tried as often as a machine would be; where
/// runs have begun, until it is there or the session is stopped: something of theirs may stand there.
pub(super) async fn reach_vcenter(
    parts: &Parts,
    (job, record): (&Job, &SessionRecord),
    mut wish: watch::Receiver<Wish>,
) -> Result<Arc<OpenVCenter>, Failure> {
    let has_begun = !parts.runs_of(record.id).await?.is_empty();
    let mut left = job.retries.count;
    loop {
        let failure = match parts.vcenters.open(job.vcenter).await {
            Ok(vcenter) => return Ok(vcenter),
            Err(failure) => failure,
        };
        if failure.kind != FailureKind::Network || (left == 0 && !has_begun) {
            return Err(failure);
        }
        left = left.saturating_sub(1);
        let seconds = job.retries.pause_seconds.max(1);
        let text = format!("vCenter cannot be reached, tried again in {seconds} s: {failure}");
        parts.say(record.id, Severity::Warning, &text);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(u64::from(seconds))) => {}
            why = stopping(&mut wish), if !has_begun => return Err(failed(FailureKind::Source, why)),
        }
    }
}

/// Waits until nothing more is to begin: why.
pub(super) async fn stopping(wish: &mut watch::Receiver<Wish>) -> String {
    let why = match wish.wait_for(|wish| wish.not_to_begin().is_some()).await {
        Ok(wish) => wish.not_to_begin().map(str::to_owned),
        Err(_) => None,
    };
    match why {
        Some(why) => why,
        // Nobody is left who could stop it.
        None => std::future::pending().await,
    }
}

/// Stops a session whose backup window closes: what copies is cut off, what waits does not begin.
pub(super) async fn keep_window(parts: Parts, session: Id, closes: Timestamp, shown: String) {
    parts.clock.wait_until(closes).await;
    let why = format!("the backup window closed at {shown}");
    let text = format!("{why}: the session stops; its next run goes on with what is missing");
    parts.say(session, Severity::Warning, &text);
    let (running, stopping) = (SessionState::Running, SessionState::Stopping);
    let moved = parts.database.move_session(session, running, stopping, parts.clock.now_ms());
    if let Err(error) = moved.await {
        tracing::warn!("session {session}: {error}");
    }
    parts.stop(session, Wish::Stop(why));
}
