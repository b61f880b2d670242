//! A disk to one that was made for it and is attached to this host.
//!
//! In: the path of a device that reads as zeros but for what this restore has written (a simulator shows
//! a file instead). Out: the whole disk on it, durable. Must not: believe what an earlier restore has
//! noted about a device: device names and numbers are used again for other disks.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use gantry_common::failure::Failure;
use gantry_common::wire::RestoreOffer;

use super::client::{RestoreOptions, RestoreRequest, restore};
use super::report::{Progress, RestoreReport};
use super::resume::sidecar_path;
use super::target::{Destination, source_failure};
use super::to_file::remove_if_there;
use crate::transport::Connection;

/// Its record of what has come, which nobody goes on from.
struct Record<'a>(&'a Path);

impl Drop for Record<'_> {
    fn drop(&mut self) {
        remove_if_there(&sidecar_path(self.0));
    }
}

/// Restores a disk to a new one.
///
/// # Errors
/// As [`restore`]; `Source` if there is no such device. What has come is on the device, and no record
/// of it.
pub async fn restore_to_new_device<C, F>(
    connect: C,
    offer: RestoreOffer,
    device: &Path,
    options: RestoreOptions,
    progress: Arc<Progress>,
) -> Result<RestoreReport, Failure>
where
    C: FnMut() -> F,
    F: Future<Output = Result<Connection, Failure>>,
{
    // Links of udev lead to the device; whether it is mounted is asked of the device.
    let device = device.canonicalize().map_err(|error| source_failure(device, error))?;
    let record = Record(&device);
    remove_if_there(&sidecar_path(&device));
    let request = RestoreRequest { offer, destination: Destination::of(&device) };
    let options = RestoreOptions { force: true, reads_zeros: true, ..options };
    let report = restore(connect, request, options, progress).await;
    drop(record);
    report
}

#[cfg(test)]
mod tests {
    use gantry_common::failure::FailureKind;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_noted_of_another_disk_under_this_name_is_not_believed_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, link) = (folder.path().join("disk"), folder.path().join("6000"));
        std::fs::write(&disk, b"zeros").unwrap();
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        std::fs::write(sidecar_path(&disk), b"everything is there").unwrap();
        let offer = || RestoreOffer { name: "vm".into(), point: None, disk: 0 };
        let refused = || async { Err(Failure::new(FailureKind::Refused, "no")) };
        let to = |path: std::path::PathBuf| async move {
            let options = RestoreOptions::default();
            restore_to_new_device(refused, offer(), &path, options, Arc::default()).await
        };
        // It would say that the record is none, if it had read it.
        assert_eq!(to(link).await.unwrap_err().kind, FailureKind::Refused);
        assert!(!sidecar_path(&disk).exists() && disk.exists());
        let nothing = to(folder.path().join("none")).await.unwrap_err();
        assert_eq!(nothing.kind, FailureKind::Source);
    }
}
