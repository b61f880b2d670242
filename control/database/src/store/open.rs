//! Opening: lock, file modes, connections, a check of the whole file, migrations, the key.
//!
//! What only SQLite knows stands here.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use super::{Database, Inner, key_file, migrate};
use crate::error::DatabaseError;

/// The database in its folder.
const FILE: &str = "gantry.sqlite";
const LOCK: &str = "lock";
const READERS: u32 = 4;
const BUSY: Duration = Duration::from_secs(10);

impl Database {
    /// Opens the database in `folder`, which is made (mode 0700) if it is not there, with its key
    /// file. Checks the whole file and brings an older schema up to date.
    ///
    /// # Errors
    /// Another process has it, the file is damaged or newer, the key is missing or readable by
    /// others.
    pub async fn open(folder: &Path) -> Result<Database, DatabaseError> {
        let io = |error| DatabaseError::Io { path: folder.to_owned(), error };
        std::fs::create_dir_all(folder).map_err(io)?;
        std::fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(io)?;
        let lock = lock(&folder.join(LOCK))?;
        let path = folder.join(FILE);
        private_file(&path)?;
        let writer = connect(&path, 1).await?;
        check(&writer, &path).await?;
        migrate::run(&writer, &path).await?;
        let keys = key_file::open(folder, &writer).await?;
        let readers = connect(&path, READERS).await?;
        let (folder, keys) = (folder.to_owned(), RwLock::new(keys));
        let changes = AtomicU64::new(0);
        let inner = Inner { folder, writer, readers, keys, changes, _lock: lock };
        let database = Database { inner: Arc::new(inner) };
        database.finish_rekey().await?;
        Ok(database)
    }

    /// Closes the connections after what is under way. The lock goes with the last clone.
    pub async fn close(&self) {
        self.inner.readers.close().await;
        self.inner.writer.close().await;
    }
}

fn lock(path: &Path) -> Result<File, DatabaseError> {
    let file = private_file(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(DatabaseError::Locked(path.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(DatabaseError::Io { path: path.to_owned(), error })
        }
    }
}

/// The file, made with mode 0600 if it is not there: SQLite gives its own mode to WAL and index.
fn private_file(path: &Path) -> Result<File, DatabaseError> {
    let io = |error| DatabaseError::Io { path: path.to_owned(), error };
    let mut options = OpenOptions::new();
    let options = options.create(true).truncate(false).read(true).write(true).mode(0o600);
    let file = options.open(path).map_err(io)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(io)?;
    Ok(file)
}

async fn connect(path: &Path, connections: u32) -> Result<SqlitePool, DatabaseError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY)
        .pragma("secure_delete", "ON")
        .pragma("trusted_schema", "OFF");
    let pool = SqlitePoolOptions::new()
        .max_connections(connections)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None);
    pool.connect_with(options).await.map_err(|error| damaged(path, &error))
}

async fn check(pool: &SqlitePool, path: &Path) -> Result<(), DatabaseError> {
    let lines: Vec<(String,)> = sqlx::query_as("PRAGMA integrity_check(10)")
        .fetch_all(pool)
        .await
        .map_err(|error| damaged(path, &error))?;
    match lines.as_slice() {
        [(line,)] if line == "ok" => {}
        _ => {
            let what = lines.into_iter().map(|(line,)| line).collect::<Vec<_>>().join("; ");
            return Err(DatabaseError::Damaged { path: path.to_owned(), what });
        }
    }
    let orphans = sqlx::query("PRAGMA foreign_key_check").fetch_all(pool).await?;
    match orphans.len() {
        0 => Ok(()),
        many => {
            let what = format!("{many} rows refer to others that are not there");
            Err(DatabaseError::Damaged { path: path.to_owned(), what })
        }
    }
}

/// An error while the file is opened or checked: damage, unless it is the system's.
pub(super) fn damaged(path: &Path, error: &sqlx::Error) -> DatabaseError {
    DatabaseError::Damaged { path: PathBuf::from(path), what: error.to_string() }
}
