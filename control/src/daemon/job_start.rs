//! How a session of a job begins, whoever asks: the calendar, a person, the end of another job.
//!
//! In: a job and why it runs. Out: its session, written down and at work. Invariants: a job has one
//! session at a time; what an active full says is decided here, once.

use gantry_common::failure::{Failure, FailureKind};
use gantry_database::SessionFilter;
use gantry_database::model::{Id, Job, SessionResult, Severity, Trigger};

use super::clock::{milliseconds, timestamp};
use super::{Parts, sessions, times};
use crate::run::failed;

/// Sessions that are looked at in one go.
const PAGE: u32 = 100;

impl Parts {
    /// Begins a session of a job; `full`: everything is read, whatever its settings say. `by` is who
    /// asked, `why` the first line of the log.
    ///
    /// # Errors
    /// `Usage`: a session of the job still runs, or its time zone is none. Of the database.
    pub async fn start_job(
        &self,
        job: &Job,
        (trigger, full, by): (Trigger, bool, Option<&str>),
        why: &str,
    ) -> Result<Id, Failure> {
        self.start_job_on(job, &[], (trigger, full, by), why).await
    }

    /// The same, with only those of the job's machines that bear these instance UUIDs; none: all.
    ///
    /// # Errors
    /// As [`Parts::start_job`].
    pub async fn start_job_on(
        &self,
        job: &Job,
        only: &[String],
        (trigger, full, by): (Trigger, bool, Option<&str>),
        why: &str,
    ) -> Result<Id, Failure> {
        let _one = self.starting.lock().await;
        if let Some(running) = self.session_of(job.id).await? {
            let text = format!("session {running} of job {} still runs", job.name);
            return Err(failed(FailureKind::Usage, text));
        }
        let full_why = match full {
            true => None,
            false => self.full_due(job).await?,
        };
        let full = full || full_why.is_some();
        let mut record = sessions::new_session(job, trigger, full, by);
        let now_ms = self.clock.now_ms();
        record.id = Id::draw(now_ms);
        record.document["only"] = only.into();
        (record.created_ms, record.started_ms) = (now_ms, Some(now_ms));
        self.database.create_session(&record, &[]).await?;
        let id = record.id;
        self.say(id, Severity::Info, why);
        full_why.iter().for_each(|why| self.say(id, Severity::Info, why));
        self.begin(record);
        Ok(id)
    }

    /// The job's session that is not over.
    ///
    /// # Errors
    /// Of the database.
    pub async fn session_of(&self, job: Id) -> Result<Option<Id>, Failure> {
        let unfinished = self.database.unfinished_sessions().await?;
        Ok(unfinished.iter().find(|session| session.job == Some(job)).map(|session| session.id))
    }

    /// Why everything is to be read now, if the job's active full is due.
    async fn full_due(&self, job: &Job) -> Result<Option<String>, Failure> {
        let (zone, now) = (times::zone(&job.time_zone)?, self.clock.now());
        let Some(since) = times::full_due_since(&job.active_full, &zone, now) else {
            return Ok(None);
        };
        let (since_ms, mut before) = (milliseconds(since), None);
        loop {
            let filter = SessionFilter {
                job: Some(job.id),
                before,
                limit: PAGE,
                ..SessionFilter::default()
            };
            let page = self.database.sessions(&filter).await?;
            let is_full = |one: &&gantry_database::model::SessionRecord| {
                one.document["full"].as_bool() == Some(true)
                    && one.result.is_some_and(|result| result != SessionResult::Failed)
            };
            let mut recent = page.iter().take_while(|one| one.created_ms >= since_ms);
            if recent.clone().any(|one| is_full(&one)) {
                return Ok(None);
            }
            match recent.nth(PAGE as usize - 1) {
                Some(last) => before = Some(last.id),
                None => break,
            }
        }
        let day = zone.clock(timestamp(since_ms)).date();
        Ok(Some(format!("active full: there was none yet since {day}")))
    }
}
