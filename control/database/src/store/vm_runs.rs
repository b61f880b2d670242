//! Machines in sessions, and their disks: each step is written down before it is taken, and only from
//! the state that was expected.

use gantry_common::ids::PointId;
use serde_json::Value;
use sqlx::{FromRow, QueryBuilder, Row, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::Database;
use super::rows::{dangling, document, number, parsed, undocument, unsigned, unword, word};
use crate::error::DatabaseError;
use crate::model::{Id, SessionResult, TaskRecord, VmRunRecord};

const COLUMNS: &str = "id, session, vm, vm_uuid, attempt, state, document, result, reason, point, \
                       created_ms, started_ms, ended_ms";
/// Rows of one statement: the engines bound the values in it.
const ROWS: usize = 100;

/// A step of a machine's run.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The run.
    pub vm_run: Id,
    /// The state that it must be in.
    pub expected: String,
    /// The state that it comes to.
    pub new: String,
    /// The engine's state then.
    pub document: Value,
    /// How it ends, if it does.
    pub ending: Option<Ending>,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// How a machine's run ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Its result.
    pub result: SessionResult,
    /// For a person.
    pub reason: Option<String>,
    /// The restore point that came of it.
    pub point: Option<PointId>,
}

struct RunRow(Result<VmRunRecord, DatabaseError>);

impl FromRow<'_, SqliteRow> for RunRow {
    fn from_row(row: &SqliteRow) -> Result<RunRow, sqlx::Error> {
        let read = || -> Result<VmRunRecord, DatabaseError> {
            let time = |name: &str| -> Result<Option<u64>, DatabaseError> {
                Ok(row.try_get::<Option<i64>, _>(name)?.map(unsigned))
            };
            let result: Option<String> = row.try_get("result")?;
            let point: Option<String> = row.try_get("point")?;
            Ok(VmRunRecord {
                id: parsed(row.try_get("id")?)?,
                session: parsed(row.try_get("session")?)?,
                vm: row.try_get("vm")?,
                vm_uuid: row.try_get("vm_uuid")?,
                attempt: u32::try_from(row.try_get::<i64, _>("attempt")?).unwrap_or(u32::MAX),
                state: row.try_get("state")?,
                document: undocument(row.try_get("document")?)?,
                result: result.map(unword).transpose()?,
                reason: row.try_get("reason")?,
                point: point.as_deref().map(parsed).transpose()?,
                created_ms: unsigned(row.try_get("created_ms")?),
                started_ms: time("started_ms")?,
                ended_ms: time("ended_ms")?,
            })
        };
        Ok(RunRow(read()))
    }
}

impl Database {
    /// Adds machines, or further attempts at them, to a session that is not over.
    ///
    /// # Errors
    /// The session is not there or over, or an attempt is there already.
    pub async fn add_vm_runs(
        &self,
        session: Id,
        runs: &[VmRunRecord],
    ) -> Result<(), DatabaseError> {
        let key = session.to_string();
        let mut transaction = self.inner.writer.begin().await?;
        let open: Option<(String,)> =
            sqlx::query_as("SELECT state FROM sessions WHERE id = $1 AND result IS NULL")
                .bind(&key)
                .fetch_optional(&mut *transaction)
                .await?;
        if open.is_none() || runs.iter().any(|run| run.session != session) {
            return Err(DatabaseError::NotFound { what: "unfinished session", key });
        }
        insert_runs(&mut transaction, runs)
            .await?
            .map_err(|error| dangling(error, "session", &key))?;
        Ok(transaction.commit().await?)
    }

    /// Takes a step, if the run is in the expected state and not over; durable when this returns.
    ///
    /// # Errors
    /// [`DatabaseError::StateMoved`]: somebody else has moved it; nothing was changed.
    pub async fn transition(&self, step: &Transition) -> Result<(), DatabaseError> {
        let ending = step.ending.as_ref();
        let done = sqlx::query(
            "UPDATE vm_runs SET state = $1, document = $2, started_ms = COALESCE(started_ms, $3), \
             result = $4, reason = $5, point = $6, ended_ms = $7 \
             WHERE id = $8 AND state = $9 AND result IS NULL",
        )
        .bind(&step.new)
        .bind(document(&step.document)?)
        .bind(number(step.now_ms))
        .bind(ending.map(|ending| word(&ending.result)).transpose()?)
        .bind(ending.and_then(|ending| ending.reason.as_deref()))
        .bind(ending.and_then(|ending| ending.point).map(|point| point.to_string()))
        .bind(ending.map(|_| number(step.now_ms)))
        .bind(step.vm_run.to_string())
        .bind(&step.expected)
        .execute(&self.inner.writer)
        .await?;
        if done.rows_affected() > 0 {
            return Ok(());
        }
        let run = self.vm_run(step.vm_run).await?;
        let over = if run.is_finished() { " (over)" } else { "" };
        Err(DatabaseError::StateMoved {
            what: "VM run",
            key: step.vm_run.to_string(),
            expected: step.expected.clone(),
            found: format!("{}{over}", run.state),
        })
    }

    /// A machine's run.
    ///
    /// # Errors
    /// [`DatabaseError::NotFound`].
    pub async fn vm_run(&self, id: Id) -> Result<VmRunRecord, DatabaseError> {
        let sql = format!("SELECT {COLUMNS} FROM vm_runs WHERE id = $1");
        let query = sqlx::query_as::<_, RunRow>(&sql).bind(id.to_string());
        match query.fetch_optional(&self.inner.readers).await? {
            Some(RunRow(record)) => record,
            None => Err(DatabaseError::NotFound { what: "VM run", key: id.to_string() }),
        }
    }

    /// The machines of a session, in the order of their ids.
    ///
    /// # Errors
    /// The engine's.
    pub async fn vm_runs(&self, session: Id) -> Result<Vec<VmRunRecord>, DatabaseError> {
        let sql = format!("SELECT {COLUMNS} FROM vm_runs WHERE session = $1 ORDER BY id");
        let query = sqlx::query_as(&sql).bind(session.to_string());
        let rows: Vec<RunRow> = query.fetch_all(&self.inner.readers).await?;
        rows.into_iter().map(|RunRow(record)| record).collect()
    }

    /// Runs that are not over: what a start finds to go on with, or to undo.
    ///
    /// # Errors
    /// The engine's.
    pub async fn unfinished_vm_runs(&self) -> Result<Vec<VmRunRecord>, DatabaseError> {
        let sql = format!("SELECT {COLUMNS} FROM vm_runs WHERE result IS NULL ORDER BY id");
        let rows: Vec<RunRow> = sqlx::query_as(&sql).fetch_all(&self.inner.readers).await?;
        rows.into_iter().map(|RunRow(record)| record).collect()
    }

    /// Keeps disks' records, or replaces those that are there.
    ///
    /// # Errors
    /// A machine's run is not there.
    pub async fn put_tasks(&self, tasks: &[TaskRecord]) -> Result<(), DatabaseError> {
        let mut transaction = self.inner.writer.begin().await?;
        for task in tasks {
            let run = task.vm_run.to_string();
            sqlx::query(
                "INSERT INTO tasks (id, vm_run, disk, proxy, repository, mode, state, numbers, \
                 reasons) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
                 ON CONFLICT (id) DO UPDATE SET proxy = excluded.proxy, \
                 repository = excluded.repository, mode = excluded.mode, state = excluded.state, \
                 numbers = excluded.numbers, reasons = excluded.reasons",
            )
            .bind(task.id.to_string())
            .bind(&run)
            .bind(&task.disk)
            .bind(task.proxy.map(|id| id.to_string()))
            .bind(task.repository.map(|id| id.to_string()))
            .bind(task.mode.as_ref().map(word).transpose()?)
            .bind(&task.state)
            .bind(document(&task.numbers)?)
            .bind(document(&task.reasons)?)
            .execute(&mut *transaction)
            .await
            .map_err(|error| dangling(error, "VM run", &run))?;
        }
        Ok(transaction.commit().await?)
    }

    /// The disks of a machine's run, in the order of their ids.
    ///
    /// # Errors
    /// The engine's.
    pub async fn tasks(&self, vm_run: Id) -> Result<Vec<TaskRecord>, DatabaseError> {
        let rows: Vec<SqliteRow> = sqlx::query(
            "SELECT id, disk, proxy, repository, mode, state, numbers, reasons FROM tasks \
             WHERE vm_run = $1 ORDER BY id",
        )
        .bind(vm_run.to_string())
        .fetch_all(&self.inner.readers)
        .await?;
        rows.iter().map(|row| task(row, vm_run)).collect()
    }
}

fn task(row: &SqliteRow, vm_run: Id) -> Result<TaskRecord, DatabaseError> {
    let text = |name: &str| row.try_get::<Option<String>, _>(name);
    Ok(TaskRecord {
        id: parsed(row.try_get("id")?)?,
        vm_run,
        disk: row.try_get("disk")?,
        proxy: text("proxy")?.as_deref().map(parsed).transpose()?,
        repository: text("repository")?.as_deref().map(parsed).transpose()?,
        mode: text("mode")?.map(unword).transpose()?,
        state: row.try_get("state")?,
        numbers: undocument(row.try_get("numbers")?)?,
        reasons: undocument(row.try_get("reasons")?)?,
    })
}

/// Inserts runs; the inner error is the engine's, which the caller explains.
pub(super) async fn insert_runs(
    connection: &mut SqliteConnection,
    runs: &[VmRunRecord],
) -> Result<Result<(), sqlx::Error>, DatabaseError> {
    for some in runs.chunks(ROWS) {
        let mut rows = Vec::with_capacity(some.len());
        for run in some {
            let result = run.result.as_ref().map(word).transpose()?;
            rows.push((run, document(&run.document)?, result));
        }
        let mut query = QueryBuilder::<Sqlite>::new(format!("INSERT INTO vm_runs ({COLUMNS}) "));
        query.push_values(rows, |mut row, (run, document, result)| {
            row.push_bind(run.id.to_string())
                .push_bind(run.session.to_string())
                .push_bind(&run.vm)
                .push_bind(&run.vm_uuid)
                .push_bind(i64::from(run.attempt))
                .push_bind(&run.state)
                .push_bind(document)
                .push_bind(result)
                .push_bind(&run.reason)
                .push_bind(run.point.map(|point| point.to_string()))
                .push_bind(number(run.created_ms))
                .push_bind(run.started_ms.map(number))
                .push_bind(run.ended_ms.map(number));
        });
        if let Err(error) = query.build().execute(&mut *connection).await {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}
