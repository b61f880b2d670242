//! Sessions: written down before anything is done, changed from the state that was expected, listed
//! newest first, forgotten after some time.

use sqlx::{FromRow, QueryBuilder, Row, Sqlite, sqlite::SqliteRow};

use super::Database;
use super::rows::{dangling, document, number, parsed, taken, undocument, unsigned, unword, word};
use super::vm_runs::insert_runs;
use crate::error::DatabaseError;
use crate::model::{
    Id, SessionRecord, SessionResult, SessionState, SessionTotals, Setting, VmRunRecord,
};

/// Days that finished sessions stay, unless the setting says otherwise.
const SESSION_DAYS: u64 = 90;
/// Sessions that one step of pruning takes.
const PRUNED_MAX: i64 = 200;
const COLUMNS: &str = "id, kind, job, name, begun_by, requested_by, state, result, reason, \
                       created_ms, started_ms, ended_ms, totals, document";

/// Which sessions to list, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// Only of this job.
    pub job: Option<Id>,
    /// Only in this state.
    pub state: Option<SessionState>,
    /// Only with this result.
    pub result: Option<SessionResult>,
    /// Only those older than this one: the last of the page before.
    pub before: Option<Id>,
    /// At the most; 1 to 1000.
    pub limit: u32,
}

struct SessionRow(Result<SessionRecord, DatabaseError>);

impl FromRow<'_, SqliteRow> for SessionRow {
    fn from_row(row: &SqliteRow) -> Result<SessionRow, sqlx::Error> {
        let read = || -> Result<SessionRecord, DatabaseError> {
            let time = |name: &str| -> Result<Option<u64>, DatabaseError> {
                Ok(row.try_get::<Option<i64>, _>(name)?.map(unsigned))
            };
            let job: Option<String> = row.try_get("job")?;
            let result: Option<String> = row.try_get("result")?;
            Ok(SessionRecord {
                id: parsed(row.try_get("id")?)?,
                kind: unword(row.try_get("kind")?)?,
                job: job.as_deref().map(parsed).transpose()?,
                name: row.try_get("name")?,
                trigger: unword(row.try_get("begun_by")?)?,
                requested_by: row.try_get("requested_by")?,
                state: unword(row.try_get("state")?)?,
                result: result.map(unword).transpose()?,
                reason: row.try_get("reason")?,
                created_ms: unsigned(row.try_get("created_ms")?),
                started_ms: time("started_ms")?,
                ended_ms: time("ended_ms")?,
                totals: undocument(row.try_get("totals")?)?,
                document: undocument(row.try_get("document")?)?,
            })
        };
        Ok(SessionRow(read()))
    }
}

impl Database {
    /// Writes down a session and the machines that are known to be in it, all or nothing.
    ///
    /// # Errors
    /// An id is taken, or a run is of another session.
    pub async fn create_session(
        &self,
        record: &SessionRecord,
        runs: &[VmRunRecord],
    ) -> Result<(), DatabaseError> {
        let mut transaction = self.inner.writer.begin().await?;
        let id = record.id.to_string();
        let sql = format!(
            "INSERT INTO sessions ({COLUMNS}) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
        );
        sqlx::query(&sql)
            .bind(&id)
            .bind(word(&record.kind)?)
            .bind(record.job.map(|job| job.to_string()))
            .bind(&record.name)
            .bind(word(&record.trigger)?)
            .bind(&record.requested_by)
            .bind(word(&record.state)?)
            .bind(record.result.as_ref().map(word).transpose()?)
            .bind(&record.reason)
            .bind(number(record.created_ms))
            .bind(record.started_ms.map(number))
            .bind(record.ended_ms.map(number))
            .bind(document(&record.totals)?)
            .bind(document(&record.document)?)
            .execute(&mut *transaction)
            .await
            .map_err(|error| taken(error, "session", &id))?;
        insert_runs(&mut transaction, runs)
            .await?
            .map_err(|error| dangling(error, "session", &id))?;
        Ok(transaction.commit().await?)
    }

    /// A session.
    ///
    /// # Errors
    /// [`DatabaseError::NotFound`].
    pub async fn session(&self, id: Id) -> Result<SessionRecord, DatabaseError> {
        let sql = format!("SELECT {COLUMNS} FROM sessions WHERE id = $1");
        let query = sqlx::query_as::<_, SessionRow>(&sql).bind(id.to_string());
        match query.fetch_optional(&self.inner.readers).await? {
            Some(SessionRow(record)) => record,
            None => Err(DatabaseError::NotFound { what: "session", key: id.to_string() }),
        }
    }

    /// Sessions, newest first.
    ///
    /// # Errors
    /// The engine's.
    pub async fn sessions(
        &self,
        filter: &SessionFilter,
    ) -> Result<Vec<SessionRecord>, DatabaseError> {
        let mut query = QueryBuilder::<Sqlite>::new(format!("SELECT {COLUMNS} FROM sessions"));
        let mut joint = " WHERE ";
        let words = [
            ("job = ", filter.job.map(|job| job.to_string())),
            ("state = ", filter.state.as_ref().map(word).transpose()?),
            ("result = ", filter.result.as_ref().map(word).transpose()?),
            ("id < ", filter.before.map(|id| id.to_string())),
        ];
        for (column, value) in words {
            if let Some(value) = value {
                query.push(std::mem::replace(&mut joint, " AND ")).push(column).push_bind(value);
            }
        }
        let limit = i64::from(filter.limit.clamp(1, super::PAGE_ROWS_MAX));
        query.push(" ORDER BY id DESC LIMIT ").push_bind(limit);
        let rows: Vec<SessionRow> = query.build_query_as().fetch_all(&self.inner.readers).await?;
        rows.into_iter().map(|SessionRow(record)| record).collect()
    }

    /// Sessions that are not over, oldest first: what a start finds to go on with.
    ///
    /// # Errors
    /// The engine's.
    pub async fn unfinished_sessions(&self) -> Result<Vec<SessionRecord>, DatabaseError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM sessions WHERE result IS NULL AND state IN ('pending', 'running', 'stopping') ORDER BY id"
        );
        let rows: Vec<SessionRow> = sqlx::query_as(&sql).fetch_all(&self.inner.readers).await?;
        rows.into_iter().map(|SessionRow(record)| record).collect()
    }

    /// Moves a session from one state to another that is not its end.
    ///
    /// # Errors
    /// [`DatabaseError::StateMoved`]: it is in another state.
    pub async fn move_session(
        &self,
        id: Id,
        expected: SessionState,
        new: SessionState,
        now_ms: u64,
    ) -> Result<(), DatabaseError> {
        let done = sqlx::query(
            "UPDATE sessions SET state = $1, \
             started_ms = CASE WHEN $1 = 'running' THEN COALESCE(started_ms, $2) ELSE started_ms END \
             WHERE id = $3 AND state = $4",
        )
        .bind(word(&new)?)
        .bind(number(now_ms))
        .bind(id.to_string())
        .bind(word(&expected)?)
        .execute(&self.inner.writer)
        .await?;
        if done.rows_affected() > 0 {
            return Ok(());
        }
        let found = word(&self.session(id).await?.state)?;
        let (key, expected) = (id.to_string(), word(&expected)?);
        Err(DatabaseError::StateMoved { what: "session", key, expected, found })
    }

    /// Replaces a running session's sums.
    ///
    /// # Errors
    /// The engine's.
    pub async fn set_session_totals(
        &self,
        id: Id,
        totals: &SessionTotals,
    ) -> Result<(), DatabaseError> {
        sqlx::query("UPDATE sessions SET totals = $1 WHERE id = $2 AND result IS NULL")
            .bind(document(totals)?)
            .bind(id.to_string())
            .execute(&self.inner.writer)
            .await?;
        Ok(())
    }

    /// Ends a session whose machines have all ended.
    ///
    /// # Errors
    /// [`DatabaseError::InUse`]: a machine's run goes on. [`DatabaseError::StateMoved`]: it is over.
    pub async fn finish_session(
        &self,
        id: Id,
        result: SessionResult,
        reason: Option<&str>,
        totals: &SessionTotals,
        now_ms: u64,
    ) -> Result<(), DatabaseError> {
        let key = id.to_string();
        let mut transaction = self.inner.writer.begin().await?;
        let open: Vec<(String,)> = sqlx::query_as(
            "SELECT vm FROM vm_runs WHERE session = $1 AND result IS NULL ORDER BY vm LIMIT 10",
        )
        .bind(&key)
        .fetch_all(&mut *transaction)
        .await?;
        if !open.is_empty() {
            let users: Vec<String> = open.into_iter().map(|(vm,)| format!("VM {vm}")).collect();
            let users = users.join(", ");
            return Err(DatabaseError::InUse { what: "session", name: key, users });
        }
        let done = sqlx::query(
            "UPDATE sessions SET state = 'finished', result = $1, reason = $2, totals = $3, \
             ended_ms = $4 WHERE id = $5 AND result IS NULL",
        )
        .bind(word(&result)?)
        .bind(reason)
        .bind(document(totals)?)
        .bind(number(now_ms))
        .bind(&key)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        if done.rows_affected() > 0 {
            return Ok(());
        }
        let found = word(&self.session(id).await?.state)?;
        let expected = "a state that is not its end".to_owned();
        Err(DatabaseError::StateMoved { what: "session", key, expected, found })
    }

    /// Forgets sessions that ended longer ago than [`Setting::SESSION_DAYS`] (90 days), in small
    /// steps; how many.
    ///
    /// # Errors
    /// The engine's.
    pub async fn prune_sessions(&self, now_ms: u64) -> Result<u64, DatabaseError> {
        let setting = self.setting(Setting::SESSION_DAYS).await?;
        let days = setting.and_then(|setting| setting.value.as_u64()).unwrap_or(SESSION_DAYS);
        let oldest = now_ms.saturating_sub(days.saturating_mul(24 * 3_600_000));
        let mut gone = 0;
        loop {
            let done = sqlx::query(
                "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions \
                 WHERE state = 'finished' AND id < $1 AND ended_ms < $2 ORDER BY id LIMIT $3)",
            )
            // Ids sort by creation, which is before the end: the index finds the old ones.
            .bind(Id::new(oldest, [0; 10]).to_string())
            .bind(number(oldest))
            .bind(PRUNED_MAX)
            .execute(&self.inner.writer)
            .await?
            .rows_affected();
            gone += done;
            if done < PRUNED_MAX as u64 {
                return Ok(gone);
            }
        }
    }
}
