//! Configured records: make, look up, list, change with the version that was read, delete unless used.
//!
//! One table for all kinds, a document each; what a record refers to stands in a table of its own, with
//! foreign keys. A record's secrets are made and go with it.

use gantry_common::secret::Secret;
use sqlx::SqliteConnection;

use super::entity::{Entity, FOLLOWS};
use super::rows::{document, number, taken, undocument, unsigned};
use super::{Database, Page, Stored, sealed};
use crate::error::DatabaseError;
use crate::model::{Id, Invalid, SecretSlot, Setting};

/// Jobs that follow each other.
const CHAIN_MAX: usize = 1000;
const COLUMNS: &str = "version, created_ms, changed_ms, document";

type Row = (i64, i64, i64, String);

fn stored<T: Entity>((version, created, changed, text): Row) -> Result<Stored<T>, DatabaseError> {
    let (version, created_ms) = (unsigned(version), unsigned(created));
    Ok(Stored { version, created_ms, changed_ms: unsigned(changed), value: undocument(&text)? })
}

fn missing<T: Entity>(key: impl ToString) -> DatabaseError {
    DatabaseError::NotFound { what: T::KIND, key: key.to_string() }
}

impl Database {
    /// Keeps a new record, with its secrets, or nothing of both.
    ///
    /// # Errors
    /// It is wrong, its name is taken, or it refers to something that is not there.
    pub async fn create<T: Entity>(
        &self,
        value: &T,
        secrets: &[(SecretSlot, Secret)],
        now_ms: u64,
    ) -> Result<(), DatabaseError> {
        value.check()?;
        let keys = self.keys();
        let mut transaction = self.inner.writer.begin().await?;
        sqlx::query(
            "INSERT INTO configuration (id, kind, name, version, created_ms, changed_ms, document) \
             VALUES ($1, $2, $3, 1, $4, $4, $5)",
        )
        .bind(value.id().to_string())
        .bind(T::KIND)
        .bind(value.name())
        .bind(number(now_ms))
        .bind(document(value)?)
        .execute(&mut *transaction)
        .await
        .map_err(|error| taken(error, T::KIND, value.name()))?;
        link(&mut transaction, value).await?;
        for (slot, secret) in secrets {
            sealed::put(&mut transaction, &keys.current, slot, secret).await?;
        }
        transaction.commit().await?;
        self.changed();
        Ok(())
    }

    /// The record with this id.
    ///
    /// # Errors
    /// [`DatabaseError::NotFound`].
    pub async fn get<T: Entity>(&self, id: Id) -> Result<Stored<T>, DatabaseError> {
        let sql = format!("SELECT {COLUMNS} FROM configuration WHERE id = $1 AND kind = $2");
        let query = sqlx::query_as::<_, Row>(&sql).bind(id.to_string()).bind(T::KIND);
        let row = query.fetch_optional(&self.inner.readers).await?;
        stored(row.ok_or_else(|| missing::<T>(id))?)
    }

    /// The record with this name.
    ///
    /// # Errors
    /// [`DatabaseError::NotFound`].
    pub async fn by_name<T: Entity>(&self, name: &str) -> Result<Stored<T>, DatabaseError> {
        let sql = format!("SELECT {COLUMNS} FROM configuration WHERE kind = $1 AND name = $2");
        let query = sqlx::query_as::<_, Row>(&sql).bind(T::KIND).bind(name);
        let row = query.fetch_optional(&self.inner.readers).await?;
        stored(row.ok_or_else(|| missing::<T>(name))?)
    }

    /// The records of a kind by name; the page's `after` is a name.
    ///
    /// # Errors
    /// The engine's.
    pub async fn list<T: Entity>(&self, page: &Page) -> Result<Vec<Stored<T>>, DatabaseError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM configuration WHERE kind = $1 AND name > $2 \
             ORDER BY name LIMIT $3"
        );
        let query = sqlx::query_as::<_, Row>(&sql)
            .bind(T::KIND)
            .bind(page.after.as_deref().unwrap_or_default())
            .bind(page.rows());
        query.fetch_all(&self.inner.readers).await?.into_iter().map(stored).collect()
    }

    /// Replaces a record that was read in version `expected`; gives the new version.
    ///
    /// # Errors
    /// As [`Database::create`], or [`DatabaseError::Stale`].
    pub async fn update<T: Entity>(
        &self,
        value: &T,
        expected: u64,
        now_ms: u64,
    ) -> Result<u64, DatabaseError> {
        value.check()?;
        let id = value.id().to_string();
        let mut transaction = self.inner.writer.begin().await?;
        let done = sqlx::query(
            "UPDATE configuration SET name = $1, version = version + 1, changed_ms = $2, \
             document = $3 WHERE id = $4 AND kind = $5 AND version = $6",
        )
        .bind(value.name())
        .bind(number(now_ms))
        .bind(document(value)?)
        .bind(&id)
        .bind(T::KIND)
        .bind(number(expected))
        .execute(&mut *transaction)
        .await
        .map_err(|error| taken(error, T::KIND, value.name()))?;
        if done.rows_affected() == 0 {
            drop(transaction);
            let found = self.get::<T>(value.id()).await?.version;
            return Err(DatabaseError::Stale { what: T::KIND, key: id, expected, found });
        }
        sqlx::query("DELETE FROM configuration_uses WHERE user_id = $1")
            .bind(&id)
            .execute(&mut *transaction)
            .await?;
        link(&mut transaction, value).await?;
        transaction.commit().await?;
        self.changed();
        Ok(expected + 1)
    }

    /// Deletes a record and its secrets.
    ///
    /// # Errors
    /// [`DatabaseError::NotFound`], or [`DatabaseError::InUse`] with the users' names.
    pub async fn delete<T: Entity>(&self, id: Id) -> Result<(), DatabaseError> {
        let name = self.get::<T>(id).await?.value.name().to_owned();
        let id = id.to_string();
        let mut transaction = self.inner.writer.begin().await?;
        let users: Vec<(String, String)> = sqlx::query_as(
            "SELECT DISTINCT c.kind, c.name FROM configuration_uses u \
             JOIN configuration c ON c.id = u.user_id WHERE u.used_id = $1 \
             ORDER BY c.kind, c.name LIMIT 10",
        )
        .bind(&id)
        .fetch_all(&mut *transaction)
        .await?;
        if !users.is_empty() {
            let users: Vec<String> =
                users.into_iter().map(|(kind, name)| format!("{kind} {name}")).collect();
            return Err(DatabaseError::InUse { what: T::KIND, name, users: users.join(", ") });
        }
        for sql in [
            "DELETE FROM configuration WHERE kind = $1 AND id = $2",
            "DELETE FROM secrets WHERE owner_kind = $1 AND owner_id = $2",
        ] {
            sqlx::query(sql).bind(T::KIND).bind(&id).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        self.changed();
        Ok(())
    }

    /// Keeps a setting, or replaces it.
    ///
    /// # Errors
    /// It is wrong.
    pub async fn set_setting(&self, setting: &Setting) -> Result<(), DatabaseError> {
        setting.validate()?;
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(&setting.name)
        .bind(document(&setting.value)?)
        .execute(&self.inner.writer)
        .await?;
        self.changed();
        Ok(())
    }

    /// A setting; nothing if it was not set.
    ///
    /// # Errors
    /// The engine's.
    pub async fn setting(&self, name: &str) -> Result<Option<Setting>, DatabaseError> {
        let row: Option<(String,)> = sqlx::query_as("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.inner.readers)
            .await?;
        let setting =
            |(text,): (String,)| Ok(Setting { name: name.to_owned(), value: undocument(&text)? });
        row.map(setting).transpose()
    }

    /// All settings by name.
    ///
    /// # Errors
    /// The engine's.
    pub async fn settings(&self) -> Result<Vec<Setting>, DatabaseError> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT name, value FROM settings ORDER BY name LIMIT 1000")
                .fetch_all(&self.inner.readers)
                .await?;
        rows.into_iter()
            .map(|(name, text)| Ok(Setting { name, value: undocument(&text)? }))
            .collect()
    }
}

/// Notes what the record refers to, all of which must be there.
async fn link<T: Entity>(
    connection: &mut SqliteConnection,
    value: &T,
) -> Result<(), DatabaseError> {
    let own = value.id().to_string();
    for (field, what, used) in value.uses() {
        let key = used.to_string();
        let there: Option<(String,)> =
            sqlx::query_as("SELECT name FROM configuration WHERE id = $1 AND kind = $2")
                .bind(&key)
                .bind(what)
                .fetch_optional(&mut *connection)
                .await?;
        if there.is_none() {
            return Err(DatabaseError::Reference { field: field.to_owned(), what, key });
        }
        sqlx::query("INSERT INTO configuration_uses (user_id, field, used_id) VALUES ($1, $2, $3)")
            .bind(&own)
            .bind(field)
            .bind(&key)
            .execute(&mut *connection)
            .await?;
        if field == FOLLOWS {
            refuse_circle(connection, &own, key).await?;
        }
    }
    Ok(())
}

/// Follows the chain of jobs that begin after each other.
async fn refuse_circle(
    connection: &mut SqliteConnection,
    own: &str,
    first: String,
) -> Result<(), DatabaseError> {
    let mut at = Some(first);
    for _ in 0..CHAIN_MAX {
        let Some(id) = at else { return Ok(()) };
        if id == own {
            break;
        }
        let next: Option<(String,)> = sqlx::query_as(
            "SELECT used_id FROM configuration_uses WHERE user_id = $1 AND field = $2",
        )
        .bind(id)
        .bind(FOLLOWS)
        .fetch_optional(&mut *connection)
        .await?;
        at = next.map(|(id,)| id);
    }
    let what = "leads back to this job: none of them would ever begin; break the circle";
    Err(Invalid { field: FOLLOWS.to_owned(), what: what.to_owned() }.into())
}
