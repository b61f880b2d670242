//! Manifests and their copies: the one that is whole is written over the one that is not.
//!
//! In: the folders of points. Out: two whole files a point. Where neither is whole, both are set
//! aside under another name, so that the point is not listed and a collection does not stop at it.
//! Must not: touch what a newer Gantry wrote, or what cannot be read only now.

use gantry_common::ids::{PointId, RepositoryId};
use gantry_common::limits;
use gantry_common::manage::RepairReport;

use crate::store::error::StoreError;
use crate::store::layout::{POINTS, PointFile};
use crate::store::manifest::list_files;
use crate::store::points::{copy_fault, read_point};
use crate::store::storage::Storage;
use crate::store::superblock::{read_small, write_file};

pub(super) fn restore<S: Storage>(
    storage: &S,
    repository: RepositoryId,
    report: &mut RepairReport,
) -> Result<(), StoreError> {
    let listed = storage.list(POINTS);
    let entries = listed.map_err(|source| StoreError::io("list", storage.place(POINTS), source))?;
    for entry in entries.into_iter().filter(|entry| entry.is_dir) {
        let dir = format!("{POINTS}/{}", entry.name);
        for file in [PointFile::Manifest, PointFile::Deleted] {
            for point in list_files(storage, &dir, file)? {
                restore_point(storage, &dir, point, file, repository, report)?;
            }
        }
    }
    Ok(())
}

fn restore_point<S: Storage>(
    storage: &S,
    dir: &str,
    point: PointId,
    file: PointFile,
    repository: RepositoryId,
    report: &mut RepairReport,
) -> Result<(), StoreError> {
    let (from, to, fault) = match read_point(storage, dir, point, file, repository) {
        Ok(None) => return Ok(()),
        Ok(Some(found)) => match (found.fault, copy_fault(storage, dir, &found.manifest)) {
            (Some(fault), _) => (PointFile::Copy, file, fault),
            (None, Some(fault)) => (file, PointFile::Copy, fault),
            (None, None) => return Ok(()),
        },
        Err(fault @ StoreError::Damaged { .. }) => {
            return set_aside(storage, dir, point, file, &fault, report);
        }
        Err(error) => {
            report.notes.push(format!("point {point}: {error}; it is left as it is"));
            return Ok(());
        }
    };
    report.manifests_restored += 1;
    report.notes.push(format!("{fault}; written anew from the other copy"));
    if report.dry_run {
        return Ok(());
    }
    let bytes = read_small(storage, &from.path(dir, point), limits::MANIFEST_BYTES_MAX)?;
    write_file(storage, &to.path(dir, point), &bytes)
}

fn set_aside<S: Storage>(
    storage: &S,
    dir: &str,
    point: PointId,
    file: PointFile,
    fault: &StoreError,
    report: &mut RepairReport,
) -> Result<(), StoreError> {
    let path = file.path(dir, point);
    report.manifests_set_aside.push(storage.place(&path));
    report.notes.push(format!("{fault}; neither copy is whole: set aside, never removed"));
    if report.dry_run {
        return Ok(());
    }
    // The copy first: without it the manifest is still what it was.
    for path in [PointFile::Copy.path(dir, point), path] {
        match storage.rename(&path, &format!("{path}.damaged")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            result => {
                result.map_err(|source| StoreError::io("rename", storage.place(&path), source))?;
            }
        }
    }
    storage.sync_dir(dir).map_err(|source| StoreError::io("sync", storage.place(dir), source))
}
