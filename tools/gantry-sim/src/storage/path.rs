//! Datastore paths: `[datastore] folder/file.vmdk` and where that lies under the simulator's root.
//!
//! In: text from requests, which is hostile. Out: a checked path, never outside its datastore.
//! It does no I/O.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Result, StorageError};

/// Longest datastore path taken from a request, in bytes (ESXi's own limit is lower).
const PATH_BYTES_MAX: usize = 1024;

/// A file on a datastore, as vSphere writes it: `[ds1] vm/vm.vmdk`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatastorePath {
    datastore: String,
    file: String,
}

impl DatastorePath {
    /// Joins and checks the two parts; `file` is relative to the datastore, with `/` between parts.
    pub fn new(datastore: &str, file: &str) -> Result<DatastorePath> {
        let refuse = |why: &str| {
            Err(StorageError::Invalid(format!("datastore path [{datastore}] {file}: {why}")))
        };
        if datastore.len() + file.len() > PATH_BYTES_MAX {
            return refuse("too long");
        }
        if datastore.is_empty() || datastore.starts_with('.') || datastore.contains(['/', ']']) {
            return refuse("that is no name of a datastore");
        }
        if datastore.contains(char::is_control) || file.contains(char::is_control) {
            return refuse("control characters");
        }
        if file.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return refuse("empty, `.` or `..` in the file's path");
        }
        Ok(DatastorePath { datastore: datastore.to_owned(), file: file.to_owned() })
    }

    /// The datastore's name.
    pub fn datastore(&self) -> &str {
        &self.datastore
    }

    /// The path within the datastore: `vm/vm.vmdk`.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The file's own name: `vm.vmdk`.
    pub fn file_name(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or(&self.file)
    }

    /// A file of another name in the same folder. The caller gives a plain file name.
    pub(super) fn sibling(&self, file_name: &str) -> DatastorePath {
        let file = match self.file.rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/{file_name}"),
            None => file_name.to_owned(),
        };
        DatastorePath { datastore: self.datastore.clone(), file }
    }

    /// `vm.vmdk` without `.vmdk`.
    pub(super) fn stem(&self) -> &str {
        let name = self.file_name();
        name.strip_suffix(".vmdk").unwrap_or(name)
    }

    /// Where the file lies under the simulator's root.
    pub fn under(&self, root: &Path) -> PathBuf {
        root.join(&self.datastore).join(&self.file)
    }
}

impl fmt::Display for DatastorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.datastore, self.file)
    }
}

impl FromStr for DatastorePath {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<DatastorePath> {
        let parts = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let Some((datastore, file)) = parts else {
            return Err(StorageError::Invalid(format!(
                "{:?} is no datastore path like `[datastore] folder/file.vmdk`",
                text.chars().take(80).collect::<String>()
            )));
        };
        DatastorePath::new(datastore, file.trim_start())
    }
}

impl TryFrom<String> for DatastorePath {
    type Error = StorageError;

    fn try_from(text: String) -> Result<DatastorePath> {
        text.parse()
    }
}

impl From<DatastorePath> for String {
    fn from(path: DatastorePath) -> String {
        path.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_within_their_datastore() {
        let path: DatastorePath = "[ds 1] vm/vm.vmdk".parse().unwrap();
        assert_eq!(path.under(Path::new("/r")), Path::new("/r/ds 1/vm/vm.vmdk"));
        assert_eq!(path.sibling("vm-flat.vmdk").to_string(), "[ds 1] vm/vm-flat.vmdk");
        assert_eq!((path.stem(), path.file_name()), ("vm", "vm.vmdk"));
        for bad in [
            "vm.vmdk",
            "[ds]",
            "[] a",
            "[..] a",
            "[.state] a",
            "[a/b] c",
            "[ds] ../x",
            "[ds] a//b",
            "[ds] /etc/passwd",
            "[ds] a/./b",
            "[ds] a\0b",
        ] {
            assert!(bad.parse::<DatastorePath>().is_err(), "{bad:?} was taken");
        }
    }
}
