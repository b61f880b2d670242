//! The disks of the three machines: a Linux server with a second disk, a file server, a database.
//!
//! In: files of this machine. Out: raw images with partitions, file systems, used swap, a page file,
//! deleted files; two are built at a time.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::corpus;
use crate::corpus::content::HostFiles;
use crate::corpus::layout::MIB;
use crate::corpus::small;
use crate::corpus::system_disk::{LinuxDisk, Share, Site};

/// A machine and its disks' images.
pub struct Machine {
    /// Its name in vCenter.
    pub name: &'static str,
    /// What it is, for the report.
    pub what: &'static str,
    /// Writes of its guest a second, on each disk.
    pub writes_per_second: u32,
    /// Its disks, in order.
    pub disks: Vec<PathBuf>,
}

/// Builds all of them.
///
/// # Errors
/// When a tool fails.
pub fn build(folder: &Path) -> Result<Vec<Machine>> {
    let (images, work) = (folder.join("images"), folder.join("work"));
    std::fs::create_dir(&images)?;
    std::fs::create_dir(&work)?;
    let site = Site { folder: &images, work: &work, seed: corpus::SEED };
    let mut files = HostFiles::list(&["/usr".into()], site.seed)?;
    let [linux_share, windows_share, xfs_share] =
        [112, 48, 40].map(|fill| Share::take(&mut files, fill * MIB, MIB));
    let linux = site.first("linux");
    std::thread::scope(|scope| {
        let others = scope.spawn(|| -> Result<()> {
            small::create_windows(site, &windows_share)?;
            small::create_xfs(site, &xfs_share).map(drop)
        });
        LinuxDisk::create(site, &linux, &linux_share)?;
        others.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    Ok(vec![
        Machine {
            name: "web01",
            what: "Linux: GPT, ext4 with this machine's files, used swap",
            writes_per_second: 100,
            disks: vec![linux],
        },
        Machine {
            name: "files01",
            what: "Windows: GPT, NTFS, a page file",
            writes_per_second: 20,
            disks: vec![site.first("windows")],
        },
        Machine {
            name: "db01",
            what: "Linux: XFS, and an empty disk",
            writes_per_second: 50,
            disks: vec![site.first("xfs"), empty(&images.join("empty.raw"))?],
        },
    ])
}

/// A disk on which nobody has written yet.
fn empty(path: &Path) -> Result<PathBuf> {
    corpus::layout::create_sparse(path, 64 * MIB)?;
    Ok(path.to_owned())
}
