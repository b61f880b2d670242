//! Looking after a repository, as a session: verifying and collecting may take hours.
//!
//! In: a repository's record, what is to be done. Out: a session with the mover's report in its totals.
//! A session that gantryd was interrupted in ends as failed at the next start: the mover goes on by
//! itself, but nobody hears its answer.

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::manage::{ManageReport, ManageRequest};
use gantry_database::model::{
    Id, Repository, SessionKind, SessionRecord, SessionResult, SessionState, SessionTotals,
    Severity, Trigger,
};

use super::Parts;
use crate::run::{failed, now_ms};

/// Begins, and gives the session that was begun.
///
/// # Errors
/// Of the database.
pub async fn begin(
    parts: &Parts,
    repository: &Repository,
    request: ManageRequest,
    by: &str,
) -> Result<SessionRecord, Failure> {
    let what = match &request {
        ManageRequest::Verify(_) => "verify",
        ManageRequest::Collect(_) => "collect",
        _ => "look after",
    };
    let now = now_ms();
    let document = serde_json::json!({ "repository": repository.id, "request": told(&request)? });
    let record = SessionRecord {
        id: Id::draw(now),
        kind: SessionKind::Maintenance,
        job: None,
        name: format!("{what} {}", repository.name),
        trigger: Trigger::Manual,
        requested_by: Some(by.to_owned()),
        state: SessionState::Running,
        result: None,
        reason: None,
        created_ms: now,
        started_ms: Some(now),
        ended_ms: None,
        totals: SessionTotals::default(),
        document,
    };
    parts.database.create_session(&record, &[]).await?;
    let (parts, mover, begun) = (parts.clone(), repository.mover, record.clone());
    tokio::spawn(async move {
        let answer = parts.fleet.manage(mover, request).await;
        parts.finish(ended(&parts, begun, answer)).await;
    });
    Ok(record)
}

/// A session that an earlier gantryd had begun.
pub(super) fn interrupted(mut record: SessionRecord) -> SessionRecord {
    record.result = Some(SessionResult::Failed);
    let text = "gantryd was stopped in the middle of it; its mover may have gone on: run it again";
    record.reason = Some(text.to_owned());
    record
}

fn ended(
    parts: &Parts,
    mut record: SessionRecord,
    answer: Result<ManageReport, Failure>,
) -> SessionRecord {
    let (result, reason) = match &answer {
        Ok(ManageReport::Verify(report)) if !report.is_clean() => {
            (SessionResult::Failed, Some("damage was found: see the report".to_owned()))
        }
        Ok(_) => (SessionResult::Success, None),
        Err(failure) => (SessionResult::Failed, Some(failure.to_string())),
    };
    if let Some(why) = &reason {
        parts.say(record.id, Severity::Error, why);
    }
    if let Ok(report) = answer.and_then(|report| told(&report)) {
        parts.say(record.id, Severity::Info, &report.to_string());
        record.totals.more = report;
    }
    (record.result, record.reason) = (Some(result), reason);
    record
}

fn told(value: &impl serde::Serialize) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(value).map_err(|error| failed(FailureKind::Internal, error))
}
