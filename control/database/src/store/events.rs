//! What was told of sessions: appended in batches, read in order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use sqlx::{QueryBuilder, Sqlite};

use super::Database;
use super::rows::{dangling, number, unsigned, unword, word};
use crate::error::DatabaseError;
use crate::model::{EventRecord, Id};

/// Rows of one statement.
const ROWS: usize = 100;
/// Bytes of one event's text; longer ones are cut.
const TEXT_BYTES_MAX: usize = gantry_common::limits::TEXT_BYTES_MAX;

type Row = (i64, i64, String, Option<String>, Option<String>, String);

impl Database {
    /// Appends events, all or none, numbered within their session in the order given.
    ///
    /// # Errors
    /// A session is not there.
    pub async fn append_events(&self, events: &[EventRecord]) -> Result<(), DatabaseError> {
        let mut transaction = self.inner.writer.begin().await?;
        let mut last: BTreeMap<Id, i64> = BTreeMap::new();
        for some in events.chunks(ROWS) {
            let mut rows = Vec::with_capacity(some.len());
            for event in some {
                let key = event.session.to_string();
                let at = match last.entry(event.session) {
                    Entry::Occupied(at) => at.into_mut(),
                    Entry::Vacant(first) => {
                        let highest: (Option<i64>,) =
                            sqlx::query_as("SELECT MAX(number) FROM events WHERE session = $1")
                                .bind(&key)
                                .fetch_one(&mut *transaction)
                                .await?;
                        first.insert(highest.0.unwrap_or(0))
                    }
                };
                *at += 1;
                rows.push((key, *at, word(&event.severity)?, event));
            }
            let mut query = QueryBuilder::<Sqlite>::new(
                "INSERT INTO events (session, number, time_ms, severity, vm, disk, text) ",
            );
            query.push_values(rows, |mut row, (session, at, severity, event)| {
                row.push_bind(session)
                    .push_bind(at)
                    .push_bind(number(event.time_ms))
                    .push_bind(severity)
                    .push_bind(&event.vm)
                    .push_bind(&event.disk)
                    .push_bind(cut(&event.text));
            });
            query
                .build()
                .execute(&mut *transaction)
                .await
                .map_err(|error| dangling(error, "session", "that an event is of"))?;
        }
        Ok(transaction.commit().await?)
    }

    /// A session's events after number `after` (0: from the first), oldest first, with their numbers.
    ///
    /// # Errors
    /// The engine's.
    pub async fn events(
        &self,
        session: Id,
        after: u64,
        limit: u32,
    ) -> Result<Vec<(u64, EventRecord)>, DatabaseError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT number, time_ms, severity, vm, disk, text FROM events \
             WHERE session = $1 AND number > $2 ORDER BY number LIMIT $3",
        )
        .bind(session.to_string())
        .bind(number(after))
        .bind(i64::from(limit.clamp(1, super::PAGE_ROWS_MAX)))
        .fetch_all(&self.inner.readers)
        .await?;
        let event = |(at, time, severity, vm, disk, text): Row| {
            let (time_ms, severity) = (unsigned(time), unword(severity)?);
            Ok((unsigned(at), EventRecord { session, vm, disk, time_ms, severity, text }))
        };
        rows.into_iter().map(event).collect()
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
