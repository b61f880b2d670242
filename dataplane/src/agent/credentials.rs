//! Files with the credentials of tasks: `PRIVATE/TASK/NAME`, mode 0600 in folders of mode 0700.
//!
//! In: names and secrets from gantryd. Out: files that are replaced as a whole. Invariant: they go with
//! their task, and all of them at a start: no credential outlives its use. Must not: leave the folder,
//! whatever a name says.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use gantry_common::ids::TaskId;
use gantry_common::secret::Secret;

use crate::transport::durable_file;

/// Bytes of a credential's name.
const NAME_BYTES_MAX: usize = 64;
/// Bytes of a credential.
const CONTENT_BYTES_MAX: usize = 64 << 10;
/// Credentials of one task.
const FILES_MAX: usize = 64;

/// The private folder.
#[derive(Debug)]
pub(super) struct CredentialFiles {
    folder: PathBuf,
}

impl CredentialFiles {
    /// Makes the folder, and removes what an earlier run left in it.
    pub(super) fn open(folder: &Path) -> io::Result<CredentialFiles> {
        make_private(folder)?;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let is_task = entry.file_name().to_str().is_some_and(|n| n.parse::<TaskId>().is_ok());
            // Only what was made here: the folder is named by a configuration.
            if is_task && entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(CredentialFiles { folder: folder.to_owned() })
    }

    /// Writes a credential, in the place of an earlier one of its name.
    pub(super) fn set(&self, task: TaskId, name: &str, content: &Secret) -> Result<(), String> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
            return Err("its name is not made of letters, digits, - and _".into());
        }
        if content.reveal().len() > CONTENT_BYTES_MAX {
            return Err(format!("it is longer than {CONTENT_BYTES_MAX} bytes"));
        }
        let folder = self.folder.join(task.to_string());
        make_private(&folder).map_err(|error| error.to_string())?;
        let path = folder.join(name);
        let files = std::fs::read_dir(&folder).map_err(|error| error.to_string())?.count();
        if files >= FILES_MAX && !path.exists() {
            return Err(format!("its task has {FILES_MAX} credentials already"));
        }
        durable_file::replace(&path, content.reveal().as_bytes()).map_err(|error| error.to_string())
    }

    /// Removes a task's.
    pub(super) fn forget(&self, task: TaskId) {
        let removed = std::fs::remove_dir_all(self.folder.join(task.to_string()));
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(%task, "its credentials cannot be removed: {error}");
        }
    }
}

fn make_private(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn credentials_are_private_stay_in_their_folder_and_go_with_their_task() {
        let folder = tempfile::tempdir().unwrap();
        let private = folder.path().join("private");
        let files = CredentialFiles::open(&private).unwrap();
        let [one, two] = [1, 2].map(|byte| TaskId([byte; 16]));
        for content in ["old", "new"] {
            files.set(one, "cookie", &Secret::new(content)).unwrap();
        }
        files.set(two, "cookie", &Secret::new("other")).unwrap();
        let path = private.join(one.to_string()).join("cookie");
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(
            (mode(&path), mode(path.parent().unwrap()), mode(&private)),
            (0o600, 0o700, 0o700)
        );
        for name in ["", "../x", "a/b", "a.b", "a\0", &"x".repeat(65)] {
            assert!(files.set(one, name, &Secret::new("x")).is_err(), "{name}");
        }
        assert!(files.set(one, "long", &Secret::new("x".repeat(CONTENT_BYTES_MAX + 1))).is_err());
        files.forget(one);
        assert!(!path.parent().unwrap().exists());
        std::fs::write(private.join("keep"), b"not ours").unwrap();
        CredentialFiles::open(&private).unwrap();
        let left: Vec<_> = std::fs::read_dir(&private).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
