//! Files that hold a secret: written at once or not at all, mode 0600, and read only if nobody else
//! can read them.
//!
//! In: a path and bytes. Out: bytes. Must not: overwrite a file, follow a secret that others can
//! read, or show a secret in an error.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gantry_common::failure::{Failure, FailureKind};

/// Longest key, certificate or peer file that is read.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// A key, certificate or peer file that cannot serve. Always the person's to repair.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file stands already.
    #[error("{} exists already; it is never overwritten, remove it first", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Others can read or change the secret.
    #[error(
        "{} has mode {mode:04o}, so that others can reach the secret in it: run chmod 600 {}",
        path.display(), path.display()
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content is not what it should be.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file, or where the material came from.
        path: PathBuf,
        /// What is wrong and what was expected.
        what: String,
    },
    /// Making a key or certificate failed.
    #[error("cannot make a {what}: {cause}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        cause: String,
    },
}

impl CredentialError {
    pub(super) fn io(path: &Path, source: io::Error) -> CredentialError {
        CredentialError::Io { path: path.to_owned(), source }
    }

    pub(super) fn content(path: &Path, what: impl Into<String>) -> CredentialError {
        CredentialError::Content { path: path.to_owned(), what: what.into() }
    }

    pub(super) fn make(what: &'static str, cause: impl ToString) -> CredentialError {
        CredentialError::Make { what, cause: cause.to_string() }
    }
}

impl From<CredentialError> for Failure {
    fn from(error: CredentialError) -> Failure {
        Failure::new(FailureKind::Usage, error.to_string())
    }
}

/// Writes a secret to a new file of mode 0600: complete under its name, or not there.
///
/// # Errors
/// [`CredentialError::Exists`], or an I/O error.
pub fn write_secret(path: &Path, secret: &[u8]) -> Result<(), CredentialError> {
    let io = |error| CredentialError::io(path, error);
    let name = path.file_name().ok_or_else(|| CredentialError::content(path, "is no file name"))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut draft_name = std::ffi::OsString::from(".");
    draft_name.push(name);
    draft_name.push(format!(".{}.draft", std::process::id()));
    let draft = folder.join(draft_name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(secret)?;
        file.sync_all()?;
        // Unlike a rename, a link never replaces what stands under the name.
        fs::hard_link(&draft, path)
    })();
    let removed = fs::remove_file(&draft);
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.exists() => {
            return Err(CredentialError::Exists { path: path.to_owned() });
        }
        other => other.and(removed).map_err(io)?,
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

/// Reads a secret.
///
/// # Errors
/// [`CredentialError::TooOpen`] unless only the owner can reach it, or an I/O error.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, CredentialError> {
    let file = File::open(path).map_err(|error| CredentialError::io(path, error))?;
    let metadata = file.metadata().map_err(|error| CredentialError::io(path, error))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(CredentialError::TooOpen { path: path.to_owned(), mode });
    }
    read_bounded(path, file)
}

/// Reads a file that is no secret.
pub(super) fn read_public(path: &Path) -> Result<Vec<u8>, CredentialError> {
    let file = File::open(path).map_err(|error| CredentialError::io(path, error))?;
    read_bounded(path, file)
}

fn read_bounded(path: &Path, file: File) -> Result<Vec<u8>, CredentialError> {
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| CredentialError::io(path, error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(CredentialError::content(path, "is too long for a key or certificate file"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{CredentialError, read_secret, write_secret};
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn secrets_are_private_complete_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write_secret(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(read_secret(&path).unwrap(), b"secret");
        assert!(matches!(write_secret(&path, b"other"), Err(CredentialError::Exists { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
        assert_eq!(read_secret(&path).unwrap(), b"secret");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write_secret(&path, b"secret").unwrap();
        for mode in [0o644, 0o640, 0o660, 0o604] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let text = read_secret(&path).unwrap_err().to_string();
            assert!(text.contains("chmod 600"), "{text}");
        }
    }
}
