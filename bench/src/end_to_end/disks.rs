//! Files around the measurement: comparing disks, copying and sizing a repository, page cache.
//!
//! In: paths. Out: answers. Must not: change a disk.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use gantry_dataplane::disk::Disk;
use rustix::fs::{Advice, fadvise};

const CHUNK_BYTES: u64 = 1 << 20;

fn file_of(disk: &Disk) -> Result<File> {
    Ok(File::from(disk.descriptor(0)?.context("a file or device")?))
}

/// Compares two disks byte for byte; what is a hole in both is not read.
///
/// # Errors
/// They differ (where is said), or cannot be read.
pub(super) fn ensure_same(left: &Path, right: &Path) -> Result<()> {
    let (one, two) = (Disk::open(left, false)?, Disk::open(right, false)?);
    let size = one.size_bytes();
    ensure!(
        size == two.size_bytes(),
        "{} has {size} bytes, {} has {}",
        left.display(),
        right.display(),
        two.size_bytes()
    );
    let [one_file, two_file] = [file_of(&one)?, file_of(&two)?];
    let mut buffers = (vec![0; CHUNK_BYTES as usize], vec![0; CHUNK_BYTES as usize]);
    let mut offset = 0;
    loop {
        let data = [one.next_data(offset)?, two.next_data(offset)?];
        let Some(start) = data.iter().flatten().map(|data| data.0).min() else { return Ok(()) };
        let start = start.max(offset) / CHUNK_BYTES * CHUNK_BYTES;
        let len = CHUNK_BYTES.min(size - start) as usize;
        let (a, b) = (&mut buffers.0[..len], &mut buffers.1[..len]);
        one_file.read_exact_at(a, start)?;
        two_file.read_exact_at(b, start)?;
        if let Some(at) = a.iter().zip(&*b).position(|(a, b)| a != b) {
            let at = start + at as u64;
            bail!("{} and {} differ at byte {at}", left.display(), right.display());
        }
        offset = start + len as u64;
        if offset >= size {
            return Ok(());
        }
    }
}

/// Every file below a folder.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            } else {
                all.push(entry.path());
            }
        }
    }
    Ok(all)
}

/// Bytes that a folder takes on the disk, everything in it counted.
pub(super) fn bytes_on_disk(folder: &Path) -> Result<u64> {
    // What goes away meanwhile takes nothing.
    let sizes = files(folder)?.into_iter().filter_map(|path| path.symlink_metadata().ok());
    Ok(sizes.map(|data| data.blocks() * 512).sum())
}

/// Copies a folder of files.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    std::fs::set_permissions(to, std::fs::metadata(from)?.permissions())?;
    Ok(())
}

/// Takes files out of the page cache, and everything else if we may; tells whether we may.
pub(super) fn drop_page_cache(paths: &[PathBuf]) -> bool {
    rustix::fs::sync();
    for path in paths {
        if let Ok(file) = File::open(path) {
            // A hint: the kernel may keep what it wants.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
    let all = File::options().write(true).open("/proc/sys/vm/drop_caches");
    match (paths.is_empty(), all) {
        (true, all) => all.is_ok(),
        (false, Ok(mut all)) => all.write_all(b"3").is_ok(),
        (false, Err(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK_BYTES, bytes_on_disk, copy, ensure_same};
    use std::os::unix::fs::FileExt;

    #[test]
    fn disks_are_compared_whatever_their_holes() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, writes: &[(u64, &[u8])]| {
            let path = folder.path().join(name);
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(5 * CHUNK_BYTES + 1000).unwrap();
            writes.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
            path
        };
        let end = 5 * CHUNK_BYTES + 999;
        let one = make("one", &[(70_000, b"x"), (end, b"y")]);
        let zeros = vec![0; 1 << 20];
        let same = make("same", &[(2 * CHUNK_BYTES, &zeros), (70_000, b"x"), (end, b"y")]);
        ensure_same(&one, &same).unwrap();
        ensure_same(&same, &one).unwrap();
        let other = make("other", &[(70_000, b"x"), (end, b"z")]);
        let text = ensure_same(&one, &other).unwrap_err().to_string();
        assert!(text.contains(&format!("byte {end}")), "{text}");
        let less = make("less", &[(70_000, b"x")]);
        assert!(ensure_same(&one, &less).is_err() && ensure_same(&less, &one).is_err());
    }

    #[test]
    fn a_copied_folder_takes_as_much() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        std::fs::create_dir_all(from.join("deep")).unwrap();
        std::fs::write(from.join("deep/file"), vec![1; 10_000]).unwrap();
        let to = folder.path().join("to");
        copy(&from, &to).unwrap();
        assert_eq!(std::fs::read(to.join("deep/file")).unwrap(), vec![1; 10_000]);
        assert!(bytes_on_disk(&to).unwrap() >= 10_000);
    }
}
