//! The schema's versions: embedded, applied in order, each in a transaction.
//!
//! A migration never changes once it is released: its checksum is compared at every start.

use std::path::Path;
use std::pin::Pin;

use sqlx::error::BoxDynError;
use sqlx::migrate::{MigrateError, Migration, MigrationSource, MigrationType, Migrator};
use sqlx::sqlite::SqlitePool;

use super::open::damaged;
use crate::error::DatabaseError;

/// Number, what it does, SQL.
const ALL: [(i64, &str, &str); 2] = [
    (1, "first", include_str!("../../migrations/0001_first.sql")),
    (2, "job clocks", include_str!("../../migrations/0002_job_clocks.sql")),
];

/// The newest version that this program knows.
pub(super) const NEWEST: i64 = ALL[ALL.len() - 1].0;

#[derive(Debug)]
struct Embedded;

impl<'s> MigrationSource<'s> for Embedded {
    fn resolve(
        self,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Migration>, BoxDynError>> + Send + 's>> {
        let one = |(number, what, sql): (i64, &'static str, &'static str)| {
            Migration::new(number, what.into(), MigrationType::Simple, sql.into(), false)
        };
        Box::pin(std::future::ready(Ok(ALL.into_iter().map(one).collect())))
    }
}

/// Brings the schema up to date.
pub(super) async fn run(pool: &SqlitePool, path: &Path) -> Result<(), DatabaseError> {
    let fail = |error: MigrateError| match error {
        MigrateError::VersionMissing(found) => DatabaseError::Newer { found, known: NEWEST },
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            damaged(path, &error)
        }
        other => DatabaseError::Damaged { path: path.to_owned(), what: format!("schema: {other}") },
    };
    let migrator = Migrator::new(Embedded).await.map_err(fail)?;
    migrator.run(pool).await.map_err(fail)
}
