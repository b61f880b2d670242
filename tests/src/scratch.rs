//! A private folder for each scenario, on a real disk, gone afterwards.
//!
//! In: nothing. Out: a [`Scratch`]. It stands in the target folder and not in `/tmp`, which may be
//! memory, where O_DIRECT means nothing.

use std::fs;
use std::path::{Path, PathBuf};

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    /// A new, empty folder.
    pub fn new() -> Scratch {
        let parent = target_folder().join("tmp");
        fs::create_dir_all(&parent).expect("the target folder is writable");
        let folder = tempfile::Builder::new().prefix("scenario-").tempdir_in(parent);
        Scratch { folder: folder.expect("a folder can be made") }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path within it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file within it and gives its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).expect("a file can be written");
        path
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

/// `target/`: two above the folder of the running test program (`target/debug/deps`).
pub fn target_folder() -> PathBuf {
    profile_folder().parent().expect("target/").to_owned()
}

/// `target/debug` or `target/release`.
pub fn profile_folder() -> PathBuf {
    let program = std::env::current_exe().expect("this program has a path");
    program.ancestors().nth(2).expect("target/debug").to_owned()
}
