//! A copy of what a new gantryd needs: configuration, access, secrets as they are sealed, sessions that
//! are not over. What has been run is not in it: the points in the repositories are.
//!
//! In: a database. Out: versioned, bounded JSON of one instant, and back into an empty folder. Secrets
//! are usable only with the key file, which is never part of it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, TypeInfo, ValueRef, sqlite::SqliteRow};

use super::entity::Entity;
use super::{Database, Page, key_file, migrate};
use crate::error::DatabaseError;
use crate::model::{CredentialRecord, Job, Proxy, Repository, TrafficRule, VCenter};

const FORMAT: &str = "gantry-database-export-1";
const EXPORT_BYTES_MAX: usize = 256 << 20;

/// A table, its columns, and which of its rows.
type Table = (&'static str, &'static [&'static str], &'static str);

/// In an order in which references lead back. Configuration may refer to itself, so its uses follow.
const TABLES: [Table; 10] = [
    (
        "configuration",
        &["id", "kind", "name", "version", "created_ms", "changed_ms", "document"],
        "",
    ),
    ("configuration_uses", &["user_id", "field", "used_id"], ""),
    ("settings", &["name", "value"], ""),
    ("secrets", &["owner_kind", "owner_id", "field", "key_id", "sealed"], ""),
    ("tokens", &["id", "name", "role", "hash", "created_ms", "expires_ms", "last_used_ms"], ""),
    ("enrolments", &["hash", "mover", "role", "created_ms", "expires_ms", "used_ms"], ""),
    ("movers", &["pin", "name", "role", "enrolled_ms", "revoked_ms", "certificate_expires_ms"], ""),
    (
        "sessions",
        &[
            "id",
            "kind",
            "job",
            "name",
            "begun_by",
            "requested_by",
            "state",
            "result",
            "reason",
            "created_ms",
            "started_ms",
            "ended_ms",
            "totals",
            "document",
        ],
        "WHERE result IS NULL",
    ),
    (
        "vm_runs",
        &[
            "id",
            "session",
            "vm",
            "vm_uuid",
            "attempt",
            "state",
            "document",
            "result",
            "reason",
            "point",
            "created_ms",
            "started_ms",
            "ended_ms",
        ],
        "WHERE session IN (SELECT id FROM sessions WHERE result IS NULL)",
    ),
    (
        "tasks",
        &["id", "vm_run", "disk", "proxy", "repository", "mode", "state", "numbers", "reasons"],
        "WHERE vm_run IN (SELECT id FROM vm_runs WHERE session IN \
         (SELECT id FROM sessions WHERE result IS NULL))",
    ),
];

/// The copy's form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Says what it is.
    pub format: String,
    /// The schema's version.
    pub schema: i64,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// Each table's rows, in the order of the format.
    tables: Vec<Vec<Vec<Value>>>,
}

/// What became of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// When the copy was made.
    pub created_ms: u64,
    /// Secrets that must be set again, because the key file was not there: `password of vcenter ID`.
    pub secrets_lost: Vec<String>,
}

impl Database {
    /// A copy of one instant.
    ///
    /// # Errors
    /// It would be larger than 256 MiB.
    pub async fn export(&self, now_ms: u64) -> Result<Vec<u8>, DatabaseError> {
        let mut transaction = self.inner.readers.begin().await?;
        let mut tables = Vec::with_capacity(TABLES.len());
        for (name, columns, which) in TABLES {
            let sql = format!("SELECT {} FROM {name} {which}", columns.join(", "));
            let rows = sqlx::query(&sql).fetch_all(&mut *transaction).await?;
            let rows: Result<Vec<_>, _> = rows.iter().map(values).collect();
            tables.push(rows?);
        }
        let (format, schema) = (FORMAT.to_owned(), migrate::NEWEST);
        let export = Export { format, schema, created_ms: now_ms, tables };
        let bytes = serde_json::to_vec(&export)
            .map_err(|error| DatabaseError::BadExport(error.to_string()))?;
        bounded(bytes.len())?;
        Ok(bytes)
    }

    /// Makes a database in `folder`, which must have none, from a copy. With the key file of old in
    /// the folder the secrets come back; without it everything but them.
    ///
    /// # Errors
    /// There is a database already, or the bytes are no copy that this version reads; then the
    /// database is empty.
    pub async fn import(
        folder: &Path,
        bytes: &[u8],
    ) -> Result<(Database, Imported), DatabaseError> {
        bounded(bytes.len())?;
        let bad = |error: serde_json::Error| DatabaseError::BadExport(error.to_string());
        let export: Export = serde_json::from_slice(bytes).map_err(bad)?;
        if export.format != FORMAT || export.tables.len() != TABLES.len() {
            return Err(DatabaseError::BadExport("not of this format".to_owned()));
        }
        if export.schema != migrate::NEWEST {
            let (found, known) = (export.schema, migrate::NEWEST);
            return Err(DatabaseError::Newer { found, known });
        }
        let known = key_file::read(folder)?;
        let database = Database::open(folder).await?;
        let mut transaction = database.inner.writer.begin().await?;
        let there: (i64,) = sqlx::query_as(
            "SELECT (SELECT COUNT(*) FROM configuration) + (SELECT COUNT(*) FROM sessions) \
             + (SELECT COUNT(*) FROM movers) + (SELECT COUNT(*) FROM tokens)",
        )
        .fetch_one(&mut *transaction)
        .await?;
        if there.0 > 0 {
            let key = folder.display().to_string();
            return Err(DatabaseError::Taken { what: "database with content in", key });
        }
        let mut secrets_lost = Vec::new();
        for ((name, columns, _), mut rows) in TABLES.into_iter().zip(export.tables) {
            if name == "secrets" {
                rows.retain(|row| {
                    let text = |at: usize| row.get(at).and_then(Value::as_str).unwrap_or("?");
                    let usable = known.as_ref().is_some_and(|keys| keys.of(text(3)).is_some());
                    if !usable {
                        let (kind, owner, field) = (text(0), text(1), text(2));
                        secrets_lost.push(format!("{field} of {kind} {owner}"));
                    }
                    usable
                });
            }
            insert(&mut transaction, name, columns, rows).await?;
        }
        transaction.commit().await?;
        database.read_everything().await?;
        Ok((database, Imported { created_ms: export.created_ms, secrets_lost }))
    }

    /// Reads and checks what came from outside.
    async fn read_everything(&self) -> Result<(), DatabaseError> {
        self.check_all::<VCenter>().await?;
        self.check_all::<Proxy>().await?;
        self.check_all::<Repository>().await?;
        self.check_all::<CredentialRecord>().await?;
        self.check_all::<TrafficRule>().await?;
        self.check_all::<Job>().await?;
        self.movers().await?;
        self.unfinished_sessions().await?;
        self.unfinished_vm_runs().await.map(drop)
    }

    async fn check_all<T: Entity>(&self) -> Result<(), DatabaseError> {
        let mut page = Page::first(1000);
        loop {
            let some = self.list::<T>(&page).await?;
            for each in &some {
                each.value.check()?;
            }
            match some.last() {
                Some(last) => page.after = Some(last.value.name().to_owned()),
                None => return Ok(()),
            }
        }
    }
}

fn bounded(found: usize) -> Result<(), DatabaseError> {
    match found {
        ..=EXPORT_BYTES_MAX => Ok(()),
        _ => {
            let what = "a copy of the database";
            Err(DatabaseError::TooLarge { what, found, max: EXPORT_BYTES_MAX })
        }
    }
}

/// A row's columns: text, integer or nothing.
fn values(row: &SqliteRow) -> Result<Vec<Value>, DatabaseError> {
    let one = |at: usize| -> Result<Value, sqlx::Error> {
        let raw = row.try_get_raw(at)?;
        if raw.is_null() {
            return Ok(Value::Null);
        }
        match raw.type_info().name() {
            "INTEGER" => Ok(Value::from(row.try_get_unchecked::<i64, _>(at)?)),
            _ => Ok(Value::from(row.try_get_unchecked::<String, _>(at)?)),
        }
    };
    Ok((0..row.len()).map(one).collect::<Result<_, _>>()?)
}

async fn insert(
    connection: &mut SqliteConnection,
    name: &str,
    columns: &[&str],
    rows: Vec<Vec<Value>>,
) -> Result<(), DatabaseError> {
    let bad = |what: &str| DatabaseError::BadExport(format!("table {name}: {what}"));
    for row in rows {
        if row.len() != columns.len() {
            return Err(bad("a row of another length"));
        }
        let mut query = QueryBuilder::<Sqlite>::new(format!(
            "INSERT INTO {name} ({}) VALUES (",
            columns.join(", ")
        ));
        let mut joint = "";
        for value in row {
            query.push(std::mem::replace(&mut joint, ", "));
            match value {
                Value::Null => query.push_bind(None::<String>),
                Value::String(text) => query.push_bind(text),
                Value::Number(number) => {
                    query.push_bind(number.as_i64().ok_or_else(|| bad("a number out of range"))?)
                }
                _ => return Err(bad("a value that is neither text nor integer")),
            };
        }
        let inserted = query.push(")").build().execute(&mut *connection).await;
        inserted.map_err(|error| bad(&error.to_string()))?;
    }
    Ok(())
}
