//! A disk to a new file that has its name only once all of it is there.
//!
//! In: the name of a file that does not exist. Out: the whole disk under that name, durable, or nothing:
//! until the end it stands beside it under a name that says so, which is removed when the restore fails
//! or is given up. Must not: overwrite anything, or take up what another restore left.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::wire::RestoreOffer;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::client::{RestoreOptions, RestoreRequest, restore};
use super::report::{Progress, RestoreReport};
use super::resume::sidecar_path;
use super::target::{Destination, source_failure, sync_directory};
use crate::transport::Connection;

/// Where a disk goes.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// Its name in the end.
    pub file: PathBuf,
    /// Its name until then, in the same folder.
    pub unfinished: PathBuf,
}

impl NewFile {
    /// # Errors
    /// `Usage`: something has one of its names, or they are no absolute paths in one folder.
    fn check(&self) -> Result<(), Failure> {
        let usage = |text: String| Err(Failure::new(FailureKind::Usage, text));
        if !self.file.is_absolute() || self.file.parent() != self.unfinished.parent() {
            return usage(format!("{}: name a file by an absolute path", self.file.display()));
        }
        for path in [&self.file, &self.unfinished, &sidecar_path(&self.unfinished)] {
            // A link that leads nowhere is something, too.
            if path.symlink_metadata().is_ok() {
                let text = "exists: restores overwrite nothing; name another folder, or move it";
                return usage(format!("{}: {text}", path.display()));
            }
        }
        Ok(())
    }
}

/// Removes what is not finished, unless it was.
struct Unfinished<'a> {
    path: &'a Path,
    is_finished: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        [self.path.to_owned(), sidecar_path(self.path)]
            .iter()
            .for_each(|path| remove_if_there(path));
    }
}

/// Removes a file; one that cannot be removed is for a person.
pub(super) fn remove_if_there(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!("{} is left, remove it: {error}", path.display());
        }
        _ => {}
    }
}

/// Restores a disk to a new file. Dropped in the middle, it removes what it has made.
///
/// # Errors
/// As [`restore`]; `Usage` if something stands in its way, `Source` if it cannot get its name.
pub async fn restore_to_file<C, F>(
    connect: C,
    offer: RestoreOffer,
    to: &NewFile,
    options: RestoreOptions,
    progress: Arc<Progress>,
) -> Result<RestoreReport, Failure>
where
    C: FnMut() -> F,
    F: Future<Output = Result<Connection, Failure>>,
{
    to.check()?;
    let mut unfinished = Unfinished { path: &to.unfinished, is_finished: false };
    let destination = Destination::SparseFile(to.unfinished.clone());
    let request = RestoreRequest { offer, destination };
    let options = RestoreOptions { force: false, ..options };
    let report = restore(connect, request, options, progress).await?;
    let fail = |error: io::Error| {
        let text = format!("is restored, but cannot get its name: {error}");
        source_failure(&to.file, text)
    };
    rename(&to.unfinished, &to.file).map_err(fail)?;
    unfinished.is_finished = true;
    sync_directory(&to.file).map_err(fail)?;
    Ok(report)
}

/// Gives a file another name, which nothing else has.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // NFS and others do not know the flag; a second name never replaces anything either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_file(folder: &Path) -> NewFile {
        let [file, unfinished] = ["d.raw", "d.raw.unfinished"].map(|name| folder.join(name));
        NewFile { file, unfinished }
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let to = new_file(folder.path());
        to.check().unwrap();
        for path in [&to.file, &to.unfinished, &sidecar_path(&to.unfinished)] {
            std::fs::write(path, b"precious").unwrap();
            assert!(to.check().unwrap_err().message.contains("exists"));
            std::fs::remove_file(path).unwrap();
        }
        std::os::unix::fs::symlink("/nowhere/at/all", &to.file).unwrap();
        assert!(to.check().is_err());
        std::fs::write(&to.unfinished, b"new").unwrap();
        assert_eq!(
            rename(&to.unfinished, &to.file).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        let relative = NewFile { file: "d.raw".into(), unfinished: "d.raw.x".into() };
        assert!(relative.check().is_err());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_restore_that_fails_or_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let to = new_file(folder.path());
        let offer = RestoreOffer { name: "vm".into(), point: None, disk: 0 };
        let left = || std::fs::read_dir(folder.path()).unwrap().count();
        let refused = || async { Err(Failure::new(FailureKind::Refused, "no")) };
        let options = RestoreOptions::default();
        let failed = restore_to_file(refused, offer, &to, options, Arc::default()).await;
        assert_eq!(failed.unwrap_err().kind, FailureKind::Refused);
        assert_eq!(left(), 0);
        std::fs::write(&to.unfinished, b"half").unwrap();
        std::fs::write(sidecar_path(&to.unfinished), b"half").unwrap();
        drop(Unfinished { path: &to.unfinished, is_finished: false });
        assert_eq!(left(), 0);
        std::fs::write(&to.unfinished, b"whole").unwrap();
        rename(&to.unfinished, &to.file).unwrap();
        assert_eq!(std::fs::read(&to.file).unwrap(), b"whole");
    }
}
