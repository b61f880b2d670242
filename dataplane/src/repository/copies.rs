//! Copies of gantryd's database, in the repository's folder: what a lost gantryd is rebuilt from.
//!
//! In: a copy's bytes. Out: `gantryd/TIME.copy`, durable, mode 0600, the newest few. Must not: look into
//! a copy (gantryd's secrets in it are sealed with a key that is never here).

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::limits::{COPIES_KEPT, COPY_BYTES_MAX};

use crate::transport::durable_file;

const FOLDER: &str = "gantryd";
const SUFFIX: &str = ".copy";

/// Keeps a copy, and lets the oldest go.
///
/// # Errors
/// `Target`: it is too large or cannot be written; older copies stand.
pub(crate) fn keep(repository: &Path, created_ms: u64, bytes: &[u8]) -> Result<(), Failure> {
    let folder = repository.join(FOLDER);
    let failed = |why: String| {
        let text = format!("a copy of gantryd's database in {}: {why}", folder.display());
        Failure::new(FailureKind::Target, text)
    };
    if bytes.len() > COPY_BYTES_MAX {
        return Err(failed(format!("{} bytes are more than {COPY_BYTES_MAX}", bytes.len())));
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.map_err(|error| failed(error.to_string()))?;
    let path = folder.join(format!("{created_ms:016x}{SUFFIX}"));
    durable_file::replace(&path, bytes).map_err(|error| failed(error.to_string()))?;
    let known = list(&folder).map_err(|error| failed(error.to_string()))?;
    for (_, older) in known.iter().rev().skip(COPIES_KEPT) {
        // It goes the next time.
        if let Err(error) = std::fs::remove_file(older) {
            tracing::warn!("{}: {error}", older.display());
        }
    }
    Ok(())
}

/// What is there, the oldest first.
fn list(folder: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut known = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let time = name.strip_suffix(SUFFIX).and_then(|time| u64::from_str_radix(time, 16).ok());
        known.extend(time.map(|time| (time, path)));
    }
    known.sort_unstable();
    Ok(known)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_newest_copies_stay_and_nobody_else_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let count = COPIES_KEPT as u64 + 3;
        for time in 0..count {
            keep(folder.path(), 1000 + time, format!("copy {time}").as_bytes()).unwrap();
        }
        let inside = folder.path().join(FOLDER);
        std::fs::write(inside.join("else.txt"), "not ours").unwrap();
        let known = list(&inside).unwrap();
        assert_eq!(known.len(), COPIES_KEPT);
        let (time, newest) = known.last().unwrap();
        assert_eq!(*time, 1000 + count - 1);
        assert_eq!(std::fs::read_to_string(newest).unwrap(), format!("copy {}", count - 1));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inside), mode(newest)), (0o700, 0o600));
        let failure = keep(folder.path(), 1, &vec![0; COPY_BYTES_MAX + 1]).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Target);
    }
}
