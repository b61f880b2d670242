//! A file system of the tests' own, on which a copy of an image is one moment of it.
//!
//! In: images that may be in use. Out: copies by FICLONE. XFS locks the file against writes while it
//! clones, and writes its cached pages out first: the copy has every write that the loop device above
//! had acknowledged, none out of order, as a hypervisor's snapshot has it. Nothing is synced above.

use std::path::{Path, PathBuf};

use super::{Loop, Mount, empty, run};

/// A folder on an XFS of its own, where copies of images are instant.
pub struct Host {
    _mount: Mount,
    _device: Loop,
    /// For what need not be cloned.
    pub folder: tempfile::TempDir,
}

impl Host {
    /// Makes and mounts it.
    pub fn new() -> Host {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host");
        empty(&path, 16 << 30);
        run("mkfs.xfs", &["-q", path.to_str().unwrap()]);
        let device = Loop::whole(&path);
        let mount = Mount::new(&device.0, &folder.path().join("on"), "nouuid");
        Host { _mount: mount, _device: device, folder }
    }

    /// A path on it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("on").join(name)
    }

    /// A copy of a file on it as it is at one moment.
    pub fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        run("cp", &["--reflink=always", from.to_str().unwrap(), to.to_str().unwrap()]);
        to
    }
}
