//! Up to which instant each job's schedule was looked after.
//!
//! In: an instant, once what was due then has begun or was passed over. Out: the same after a restart,
//! so that no run comes twice and what was missed is known. A job's clock goes with the job.

use std::collections::BTreeMap;

use super::Database;
use super::rows::{number, parsed, unsigned};
use crate::error::DatabaseError;
use crate::model::Id;

impl Database {
    /// Every job's clock, in milliseconds since 1970; a job that never came due has none.
    ///
    /// # Errors
    /// The engine's.
    pub async fn job_clocks(&self) -> Result<BTreeMap<Id, u64>, DatabaseError> {
        let rows: Vec<(String, i64)> = sqlx::query_as("SELECT job, handled_ms FROM job_clocks")
            .fetch_all(&self.inner.readers)
            .await?;
        rows.into_iter().map(|(job, ms)| Ok((parsed(&job)?, unsigned(ms)))).collect()
    }

    /// Sets a job's clock; that of a job that is gone is nobody's.
    ///
    /// # Errors
    /// The engine's.
    pub async fn set_job_clock(&self, job: Id, handled_ms: u64) -> Result<(), DatabaseError> {
        sqlx::query(
            "INSERT INTO job_clocks (job, handled_ms) \
             SELECT id, $2 FROM configuration WHERE id = $1 \
             ON CONFLICT (job) DO UPDATE SET handled_ms = excluded.handled_ms",
        )
        .bind(job.to_string())
        .bind(number(handled_ms))
        .execute(&self.inner.writer)
        .await?;
        Ok(())
    }
}
