//! Tokens, enrolments, movers.
//!
//! An enrolment is spent by whoever comes first, and together with the mover's record.

use sqlx::SqliteConnection;

use super::rows::{number, parsed, taken, unsigned, unword, word};
use super::{Database, Page};
use crate::error::DatabaseError;
use crate::model::{EnrolmentRecord, Id, MoverRecord, Role, TokenRecord};

type TokenRow = (String, String, String, String, i64, Option<i64>, Option<i64>);
type MoverRow = (String, String, String, i64, Option<i64>, i64);
type EnrolmentRow = (String, String, String, i64, i64, Option<i64>);

const TOKEN: &str = "SELECT id, name, role, hash, created_ms, expires_ms, last_used_ms FROM tokens";
const MOVER: &str =
    "SELECT pin, name, role, enrolled_ms, revoked_ms, certificate_expires_ms FROM movers";

fn token(row: TokenRow) -> Result<TokenRecord, DatabaseError> {
    let (id, name, role, hash, created, expires, used) = row;
    Ok(TokenRecord {
        id: parsed(&id)?,
        name,
        role: unword(role)?,
        hash,
        created_ms: unsigned(created),
        expires_ms: expires.map(unsigned),
        last_used_ms: used.map(unsigned),
    })
}

fn mover(row: MoverRow) -> Result<MoverRecord, DatabaseError> {
    let (pin, name, role, enrolled, revoked, expires) = row;
    Ok(MoverRecord {
        pin: parsed(&pin)?,
        name,
        role: unword(role)?,
        enrolled_ms: unsigned(enrolled),
        revoked_ms: revoked.map(unsigned),
        certificate_expires_ms: unsigned(expires),
    })
}

fn enrolment(row: EnrolmentRow) -> Result<EnrolmentRecord, DatabaseError> {
    let (hash, mover, role, created, expires, used) = row;
    Ok(EnrolmentRecord {
        hash,
        mover,
        role: unword(role)?,
        created_ms: unsigned(created),
        expires_ms: unsigned(expires),
        used_ms: used.map(unsigned),
    })
}

fn missing(what: &'static str, key: impl ToString) -> DatabaseError {
    // Of a hash only the beginning: enough to find it, and no use to who reads a log.
    DatabaseError::NotFound { what, key: key.to_string().chars().take(32).collect() }
}

impl Database {
    /// Keeps a new token.
    ///
    /// # Errors
    /// It is wrong, or its name or hash is taken.
    pub async fn create_token(&self, record: &TokenRecord) -> Result<(), DatabaseError> {
        record.validate()?;
        sqlx::query(
            "INSERT INTO tokens (id, name, role, hash, created_ms, expires_ms, last_used_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(record.id.to_string())
        .bind(&record.name)
        .bind(word(&record.role)?)
        .bind(&record.hash)
        .bind(number(record.created_ms))
        .bind(record.expires_ms.map(number))
        .bind(record.last_used_ms.map(number))
        .execute(&self.inner.writer)
        .await
        .map_err(|error| taken(error, "token", &record.name))?;
        self.changed();
        Ok(())
    }

    /// The token with this hash, whether or not it has ended; nothing if there is none.
    ///
    /// # Errors
    /// The engine's.
    pub async fn token_by_hash(&self, hash: &str) -> Result<Option<TokenRecord>, DatabaseError> {
        let sql = format!("{TOKEN} WHERE hash = $1");
        let query = sqlx::query_as(&sql).bind(hash);
        query.fetch_optional(&self.inner.readers).await?.map(token).transpose()
    }

    /// Tokens by name.
    ///
    /// # Errors
    /// The engine's.
    pub async fn tokens(&self, page: &Page) -> Result<Vec<TokenRecord>, DatabaseError> {
        let sql = format!("{TOKEN} WHERE name > $1 ORDER BY name LIMIT $2");
        let query = sqlx::query_as(&sql);
        let query = query.bind(page.after.as_deref().unwrap_or_default()).bind(page.rows());
        query.fetch_all(&self.inner.readers).await?.into_iter().map(token).collect()
    }

    /// Notes that a token was used. To be called now and then, not at each request.
    ///
    /// # Errors
    /// The engine's.
    pub async fn touch_token(&self, id: Id, now_ms: u64) -> Result<(), DatabaseError> {
        sqlx::query("UPDATE tokens SET last_used_ms = $1 WHERE id = $2")
            .bind(number(now_ms))
            .bind(id.to_string())
            .execute(&self.inner.writer)
            .await?;
        Ok(())
    }

    /// When a token was last used, milliseconds since 1970; nothing: never, or there is no such token.
    ///
    /// # Errors
    /// The engine's.
    pub async fn token_last_used(&self, id: Id) -> Result<Option<u64>, DatabaseError> {
        let query = sqlx::query_as("SELECT last_used_ms FROM tokens WHERE id = $1");
        let found: Option<(Option<i64>,)> =
            query.bind(id.to_string()).fetch_optional(&self.inner.readers).await?;
        Ok(found.and_then(|(used,)| used).map(unsigned))
    }

    /// Deletes a token: it lets nobody in from now on. The last administrator's that holds at `now_ms`
    /// stays, also if two are deleted at the same instant: false.
    ///
    /// # Errors
    /// [`DatabaseError::NotFound`].
    pub async fn delete_token(&self, id: Id, now_ms: u64) -> Result<bool, DatabaseError> {
        let done = sqlx::query(
            "DELETE FROM tokens WHERE id = $1 AND (role <> $2 OR EXISTS (SELECT 1 FROM tokens o \
             WHERE o.id <> $1 AND o.role = $2 AND (o.expires_ms IS NULL OR o.expires_ms > $3)))",
        )
        .bind(id.to_string())
        .bind(word(&Role::Admin)?)
        .bind(number(now_ms))
        .execute(&self.inner.writer)
        .await?;
        if done.rows_affected() > 0 {
            self.changed();
            return Ok(true);
        }
        let known: Option<(String,)> = sqlx::query_as("SELECT id FROM tokens WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.inner.writer)
            .await?;
        known.map(|_| false).ok_or_else(|| missing("token", id))
    }

    /// Keeps a new enrolment; those that ended more than a day before `now_ms` go.
    ///
    /// # Errors
    /// It is wrong, or its hash is taken.
    pub async fn create_enrolment(
        &self,
        record: &EnrolmentRecord,
        now_ms: u64,
    ) -> Result<(), DatabaseError> {
        record.validate()?;
        let mut transaction = self.inner.writer.begin().await?;
        sqlx::query("DELETE FROM enrolments WHERE expires_ms < $1")
            .bind(number(now_ms.saturating_sub(24 * 3_600_000)))
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO enrolments (hash, mover, role, created_ms, expires_ms, used_ms) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&record.hash)
        .bind(&record.mover)
        .bind(word(&record.role)?)
        .bind(number(record.created_ms))
        .bind(number(record.expires_ms))
        .bind(record.used_ms.map(number))
        .execute(&mut *transaction)
        .await
        .map_err(|error| taken(error, "enrolment for", &record.mover))?;
        transaction.commit().await?;
        self.changed();
        Ok(())
    }

    /// Enrolments that are kept, used ones too, by mover.
    ///
    /// # Errors
    /// The engine's.
    pub async fn enrolments(&self) -> Result<Vec<EnrolmentRecord>, DatabaseError> {
        let query = sqlx::query_as(
            "SELECT hash, mover, role, created_ms, expires_ms, used_ms FROM enrolments \
             ORDER BY mover, created_ms",
        );
        let rows: Vec<EnrolmentRow> = query.fetch_all(&self.inner.readers).await?;
        rows.into_iter().map(enrolment).collect()
    }

    /// Withdraws a mover's enrolments that were not used.
    ///
    /// # Errors
    /// [`DatabaseError::NotFound`].
    pub async fn delete_enrolments(&self, mover: &str) -> Result<(), DatabaseError> {
        let done = sqlx::query("DELETE FROM enrolments WHERE mover = $1 AND used_ms IS NULL")
            .bind(mover)
            .execute(&self.inner.writer)
            .await?;
        self.changed();
        (done.rows_affected() > 0).then_some(()).ok_or_else(|| missing("enrolment", mover))
    }

    /// Spends an enrolment and keeps the mover that it was for, both or neither. The mover's name and
    /// role are the enrolment's.
    ///
    /// # Errors
    /// [`DatabaseError::NotFound`], [`DatabaseError::Spent`], or the mover's name or pin is taken.
    pub async fn enrol(
        &self,
        hash: &str,
        record: &MoverRecord,
        now_ms: u64,
    ) -> Result<MoverRecord, DatabaseError> {
        let mut transaction = self.inner.writer.begin().await?;
        let done = sqlx::query(
            "UPDATE enrolments SET used_ms = $1 \
             WHERE hash = $2 AND used_ms IS NULL AND expires_ms > $1",
        )
        .bind(number(now_ms))
        .bind(hash)
        .execute(&mut *transaction)
        .await?;
        let found: Option<EnrolmentRow> = sqlx::query_as(
            "SELECT hash, mover, role, created_ms, expires_ms, used_ms FROM enrolments \
             WHERE hash = $1",
        )
        .bind(hash)
        .fetch_optional(&mut *transaction)
        .await?;
        let found = found.ok_or_else(|| missing("enrolment", "for this token"))?;
        let found = enrolment(found)?;
        if done.rows_affected() == 0 {
            let why = if found.used_ms.is_some() { "was used already" } else { "has ended" };
            return Err(DatabaseError::Spent(why));
        }
        let record = MoverRecord { name: found.mover, role: found.role, ..record.clone() };
        insert_mover(&mut transaction, &record).await?;
        transaction.commit().await?;
        self.changed();
        Ok(record)
    }

    /// Keeps a mover that came in another way than by enrolment.
    ///
    /// # Errors
    /// It is wrong, or its pin or name is taken.
    pub async fn create_mover(&self, record: &MoverRecord) -> Result<(), DatabaseError> {
        let mut transaction = self.inner.writer.begin().await?;
        insert_mover(&mut transaction, record).await?;
        transaction.commit().await?;
        self.changed();
        Ok(())
    }

    /// Every mover, revoked ones too, by name.
    ///
    /// # Errors
    /// The engine's.
    pub async fn movers(&self) -> Result<Vec<MoverRecord>, DatabaseError> {
        let sql = format!("{MOVER} ORDER BY name, pin LIMIT 10000");
        let rows = sqlx::query_as(&sql).fetch_all(&self.inner.readers).await?;
        rows.into_iter().map(mover).collect()
    }

    /// The mover with this pin; nothing if there is none.
    ///
    /// # Errors
    /// The engine's.
    pub async fn mover(
        &self,
        pin: gantry_common::ids::PeerId,
    ) -> Result<Option<MoverRecord>, DatabaseError> {
        let sql = format!("{MOVER} WHERE pin = $1");
        let query = sqlx::query_as(&sql).bind(pin.to_string());
        query.fetch_optional(&self.inner.readers).await?.map(mover).transpose()
    }

    /// Replaces what is known of a mover: revoked, or with a new certificate.
    ///
    /// # Errors
    /// It is wrong, not there, or its name is taken.
    pub async fn update_mover(&self, record: &MoverRecord) -> Result<(), DatabaseError> {
        record.validate()?;
        let done = sqlx::query(
            "UPDATE movers SET name = $1, role = $2, enrolled_ms = $3, revoked_ms = $4, \
             certificate_expires_ms = $5 WHERE pin = $6",
        )
        .bind(&record.name)
        .bind(word(&record.role)?)
        .bind(number(record.enrolled_ms))
        .bind(record.revoked_ms.map(number))
        .bind(number(record.certificate_expires_ms))
        .bind(record.pin.to_string())
        .execute(&self.inner.writer)
        .await
        .map_err(|error| taken(error, "mover", &record.name))?;
        self.changed();
        (done.rows_affected() > 0).then_some(()).ok_or_else(|| missing("mover", record.pin))
    }
}

async fn insert_mover(
    connection: &mut SqliteConnection,
    record: &MoverRecord,
) -> Result<(), DatabaseError> {
    record.validate()?;
    sqlx::query(
        "INSERT INTO movers (pin, name, role, enrolled_ms, revoked_ms, certificate_expires_ms) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(record.pin.to_string())
    .bind(&record.name)
    .bind(word(&record.role)?)
    .bind(number(record.enrolled_ms))
    .bind(record.revoked_ms.map(number))
    .bind(number(record.certificate_expires_ms))
    .execute(connection)
    .await
    .map_err(|error| taken(error, "mover", &record.name))?;
    Ok(())
}
