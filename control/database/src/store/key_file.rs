//! The file with the key of the secrets: `secrets.key` in the database's folder, mode 0600.
//!
//! A line a key, the current one first: `gantry-secrets-1 HEX`. There are two only while secrets are
//! encrypted anew. Invariant: the key is in no error and no `Debug`; a file that others can read is
//! refused; a key is durable before anything is encrypted with it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use sqlx::sqlite::SqlitePool;

use super::rows;
use crate::error::DatabaseError;
use gantry_transport::durable_file;

const FILE: &str = "secrets.key";
const WORD: &str = "gantry-secrets-1 ";
const KEY_BYTES: usize = 32;
const FILE_BYTES_MAX: u64 = 1024;

/// A key.
#[derive(Clone)]
pub(super) struct Key {
    /// Tells keys apart; says nothing of the key.
    pub(super) id: String,
    pub(super) bytes: [u8; KEY_BYTES],
}

/// The keys of the file.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) current: Key,
    pub(super) older: Option<Key>,
}

impl Key {
    fn new(bytes: [u8; KEY_BYTES]) -> Key {
        let known = digest(&SHA256, &[b"gantry secrets key id", &bytes[..]].concat());
        Key { id: rows::hex(&known.as_ref()[..8]), bytes }
    }

    /// A new one, of the system's random source.
    pub(super) fn draw() -> Result<Key, DatabaseError> {
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| DatabaseError::KeyFile {
            path: PathBuf::from(FILE),
            what: format!("the system's random source fails: {error}"),
        })?;
        Ok(Key::new(bytes))
    }
}

impl Keys {
    /// The key of this id.
    pub(super) fn of(&self, id: &str) -> Option<&Key> {
        [Some(&self.current), self.older.as_ref()].into_iter().flatten().find(|key| key.id == id)
    }
}

/// Reads the file, or makes it where there is neither a file nor a secret.
pub(super) async fn open(folder: &Path, pool: &SqlitePool) -> Result<Keys, DatabaseError> {
    let used: Vec<(String,)> =
        sqlx::query_as("SELECT DISTINCT key_id FROM secrets").fetch_all(pool).await?;
    let path = folder.join(FILE);
    let Some(keys) = read(folder)? else {
        if !used.is_empty() {
            let what = "is missing, and there are secrets: restore it, or rebuild the database \
                        from a copy without it";
            return Err(DatabaseError::KeyFile { path, what: what.to_owned() });
        }
        let keys = Keys { current: Key::draw()?, older: None };
        write(folder, &keys)?;
        return Ok(keys);
    };
    if used.iter().any(|(id,)| keys.of(id).is_none()) {
        let what = "is the key of another database: restore the right one";
        return Err(DatabaseError::KeyFile { path, what: what.to_owned() });
    }
    Ok(keys)
}

/// Reads the file, if there is one.
pub(super) fn read(folder: &Path) -> Result<Option<Keys>, DatabaseError> {
    let path = folder.join(FILE);
    let io = |error| DatabaseError::Io { path: path.clone(), error };
    let wrong = |what: String| DatabaseError::KeyFile { path: path.clone(), what };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mode = file.metadata().map_err(io)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(wrong(format!("can be read by others (mode {mode:o}): chmod 600 it")));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(io)?;
    let keys: Option<Vec<Key>> = text.lines().map(parse).collect();
    match keys.as_deref() {
        Some([current]) => Ok(Some(Keys { current: current.clone(), older: None })),
        Some([current, older]) => {
            Ok(Some(Keys { current: current.clone(), older: Some(older.clone()) }))
        }
        _ => Err(wrong("is no key file: restore it".to_owned())),
    }
}

fn parse(line: &str) -> Option<Key> {
    let bytes = rows::unhex(line.strip_prefix(WORD)?)?;
    Some(Key::new(bytes.try_into().ok()?))
}

/// Replaces the file, durably.
pub(super) fn write(folder: &Path, keys: &Keys) -> Result<(), DatabaseError> {
    let line = |key: &Key| format!("{WORD}{}\n", rows::hex(&key.bytes));
    let text: String =
        [Some(&keys.current), keys.older.as_ref()].into_iter().flatten().map(line).collect();
    let path = folder.join(FILE);
    durable_file::replace(&path, text.as_bytes()).map_err(|error| DatabaseError::Io { path, error })
}
