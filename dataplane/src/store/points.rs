//! The life of a restore point on the disk: its two files, and how it is deleted and brought back.
//!
//! In: a VM's folder, points. Out: manifests, found right in one of their two copies; names that
//! changed durably. Invariant: a point exists exactly while `POINT.manifest` has its name; the copy
//! serves only beside it (or beside `POINT.deleted`). A copy alone is what a crash within a commit
//! or a purge left: [`remove_orphaned_copies`], called by a collection, takes it away.

use std::io;

use gantry_common::ids::{PointId, RepositoryId};
use gantry_common::limits;
use gantry_common::manage::PointFlags;

use super::error::{REMEDY_MANIFEST, StoreError};
use super::layout::{POINTS, PointFile, points_dir};
use super::manifest::{Manifest, is_whole, list_files};
use super::retention::Candidate;
use super::storage::Storage;
use super::superblock::{read_small, write_file};

/// A manifest, and what is wrong with its first copy if the second had to serve.
#[derive(Debug)]
pub struct ReadPoint {
    /// The point.
    pub manifest: Manifest,
    /// The damage.
    pub fault: Option<StoreError>,
}

fn is_absent(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Reads one file of a point; it must be that point's.
fn read_file<S: Storage>(
    storage: &S,
    dir: &str,
    point: PointId,
    file: PointFile,
    repository: RepositoryId,
) -> Result<Manifest, StoreError> {
    let path = file.path(dir, point);
    let manifest = Manifest::read(storage, &path, repository)?;
    if manifest.point == point {
        return Ok(manifest);
    }
    let what = format!("it is that of restore point {}", manifest.point);
    Err(StoreError::damaged(storage.place(&path), 0, what, REMEDY_MANIFEST))
}

/// Reads a point of a VM's folder; `None` if `file` is not there. Where it is there and damaged,
/// the copy serves.
///
/// # Errors
/// [`StoreError::Damaged`], [`StoreError::Newer`], [`StoreError::Io`] of the manifest, if the copy
/// is no better.
pub fn read_point<S: Storage>(
    storage: &S,
    dir: &str,
    point: PointId,
    file: PointFile,
    repository: RepositoryId,
) -> Result<Option<ReadPoint>, StoreError> {
    let fault = match read_file(storage, dir, point, file, repository) {
        Ok(manifest) => return Ok(Some(ReadPoint { manifest, fault: None })),
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => error,
    };
    if matches!(fault, StoreError::Newer { .. }) {
        // A later program's manifest stands above a copy of ours; a rotten version does not.
        let bytes = read_small(storage, &file.path(dir, point), limits::MANIFEST_BYTES_MAX)?;
        if is_whole(&bytes) {
            return Err(fault);
        }
    }
    match read_file(storage, dir, point, PointFile::Copy, repository) {
        Ok(manifest) => {
            tracing::warn!("{fault}; its copy serves");
            Ok(Some(ReadPoint { manifest, fault: Some(fault) }))
        }
        Err(_) => Err(fault),
    }
}

impl Manifest {
    /// Finds a point by its VM's name; `None` if there is no such point, or it is deleted.
    ///
    /// # Errors
    /// As [`read_point`].
    pub fn find<S: Storage>(
        storage: &S,
        name: &str,
        point: PointId,
        repository: RepositoryId,
    ) -> Result<Option<Manifest>, StoreError> {
        let found = read_point(storage, &points_dir(name), point, PointFile::Manifest, repository)?;
        Ok(found.map(|found| found.manifest))
    }

    /// As [`Manifest::find`], deleted points too.
    ///
    /// # Errors
    /// As [`read_point`].
    pub fn find_even_deleted<S: Storage>(
        storage: &S,
        name: &str,
        point: PointId,
        repository: RepositoryId,
    ) -> Result<Option<Manifest>, StoreError> {
        let found = Manifest::find(storage, name, point, repository)?;
        if found.is_some() {
            return Ok(found);
        }
        let found = read_point(storage, &points_dir(name), point, PointFile::Deleted, repository)?;
        Ok(found.map(|found| found.manifest))
    }

    /// Commits the point: the copy first, then the manifest, whose name is the commit. After this
    /// returns the point exists, whatever happens.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the point may then exist or not, and committing again is right.
    pub fn commit<S: Storage>(&self, storage: &S) -> Result<(), StoreError> {
        let bytes = encode(self)?;
        let dir = points_dir(&self.name);
        let fail = |action| {
            let place = storage.place(&dir);
            move |source| StoreError::io(action, place, source)
        };
        storage.create_dir(&dir).map_err(fail("create"))?;
        storage.sync_dir(POINTS).map_err(fail("sync the folder of"))?;
        write_file(storage, &PointFile::Copy.path(&dir, self.point), &bytes)?;
        write_file(storage, &PointFile::Manifest.path(&dir, self.point), &bytes)
    }
}

/// What is wrong with the copy of a point whose manifest is `manifest`; nothing if it may serve in
/// its place.
pub fn copy_fault<S: Storage>(storage: &S, dir: &str, manifest: &Manifest) -> Option<StoreError> {
    let path = PointFile::Copy.path(dir, manifest.point);
    match read_file(storage, dir, manifest.point, PointFile::Copy, manifest.repository) {
        // Flags differ where a crash came between the two files.
        Ok(copy) if Manifest { flags: manifest.flags, ..copy.clone() } == *manifest => None,
        Ok(_) => {
            let what = "it says something else than the manifest";
            Some(StoreError::damaged(storage.place(&path), 0, what, REMEDY_COPY))
        }
        // Both went this moment: the point was purged.
        Err(error) if is_absent(&error) && !is_anywhere(storage, dir, manifest.point) => None,
        Err(error) => Some(error),
    }
}

fn is_anywhere<S: Storage>(storage: &S, dir: &str, point: PointId) -> bool {
    [PointFile::Manifest, PointFile::Deleted].into_iter().any(|file| {
        // Where the folder cannot be read the copy's absence stays a fault.
        list_files(storage, dir, file).map_or(true, |points| points.contains(&point))
    })
}

/// Remedy for a damaged copy.
const REMEDY_COPY: &str = "the manifest itself is whole: run repo repair to write its copy anew";

fn encode(manifest: &Manifest) -> Result<Vec<u8>, StoreError> {
    let bytes = manifest.encode();
    if bytes.len() <= limits::MANIFEST_BYTES_MAX {
        return Ok(bytes);
    }
    Err(StoreError::Refused(format!(
        "manifest of {} has {} bytes, {} are allowed: its VM configuration is too large",
        manifest.name,
        bytes.len(),
        limits::MANIFEST_BYTES_MAX
    )))
}

/// Sets a point's flags in both files. The one that serves now is replaced last, so that at every
/// moment one of them is whole on the disk.
///
/// # Errors
/// [`StoreError::Io`]; the flags are then the old or the new ones.
pub fn set_flags<S: Storage>(
    storage: &S,
    found: &ReadPoint,
    flags: PointFlags,
) -> Result<(), StoreError> {
    let manifest = Manifest { flags, ..found.manifest.clone() };
    let bytes = encode(&manifest)?;
    let dir = points_dir(&manifest.name);
    let mut files = [PointFile::Copy, PointFile::Manifest];
    if found.fault.is_some() {
        files.reverse();
    }
    files.iter().try_for_each(|file| write_file(storage, &file.path(&dir, manifest.point), &bytes))
}

/// Renames points of a folder from one state to another, durably.
///
/// # Errors
/// [`StoreError::Io`]: some may have changed already; asking again is right.
pub fn rename<S: Storage>(
    storage: &S,
    dir: &str,
    points: &[PointId],
    from: PointFile,
    to: PointFile,
) -> Result<(), StoreError> {
    for point in points {
        let path = from.path(dir, *point);
        let renamed = storage.rename(&path, &to.path(dir, *point));
        renamed.map_err(|source| StoreError::io("rename", storage.place(&path), source))?;
    }
    if points.is_empty() {
        return Ok(());
    }
    let synced = storage.sync_dir(dir);
    synced.map_err(|source| StoreError::io("sync", storage.place(dir), source))
}

/// Takes deleted points away for good: first their manifests, durably, then their copies.
///
/// # Errors
/// [`StoreError::Io`]: some may be gone already; asking again is right.
pub fn purge<S: Storage>(storage: &S, dir: &str, points: &[PointId]) -> Result<(), StoreError> {
    for file in [PointFile::Deleted, PointFile::Copy] {
        for point in points {
            let path = file.path(dir, *point);
            match storage.remove(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", storage.place(&path), source));
                }
                _ => {}
            }
        }
        let synced = storage.sync_dir(dir);
        synced.map_err(|source| StoreError::io("sync", storage.place(dir), source))?;
    }
    Ok(())
}

/// Removes copies beside which there is neither a manifest nor a deleted one. Only for the store's
/// own thread: within a commit the copy stands alone for a moment. Returns how many went.
///
/// # Errors
/// [`StoreError::Io`].
pub fn remove_orphaned_copies<S: Storage>(storage: &S, dir: &str) -> Result<u64, StoreError> {
    let mut living = list_files(storage, dir, PointFile::Manifest)?;
    living.extend(list_files(storage, dir, PointFile::Deleted)?);
    let mut removed = 0;
    for point in list_files(storage, dir, PointFile::Copy)? {
        if !living.contains(&point) {
            let path = PointFile::Copy.path(dir, point);
            let gone = storage.remove(&path);
            gone.map_err(|source| StoreError::io("remove", storage.place(&path), source))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Makes every point's name durable. A killed process may have left names that a power cut would
/// still take; an opening that answers for them calls this first.
///
/// # Errors
/// [`StoreError::Io`].
pub fn sync_points<S: Storage>(storage: &S) -> Result<(), StoreError> {
    let entries = storage
        .list(POINTS)
        .map_err(|source| StoreError::io("list", storage.place(POINTS), source))?;
    let folders = entries.iter().filter(|entry| entry.is_dir);
    let folders = folders.map(|entry| format!("{POINTS}/{}", entry.name));
    for dir in [POINTS.to_owned()].into_iter().chain(folders) {
        let synced = storage.sync_dir(&dir);
        synced.map_err(|source| StoreError::io("sync", storage.place(&dir), source))?;
    }
    Ok(())
}

/// The points of a folder as retention sees them.
///
/// # Errors
/// [`StoreError::Io`] of the folder.
pub fn candidates<S: Storage>(
    storage: &S,
    dir: &str,
    repository: RepositoryId,
) -> Result<Vec<Candidate>, StoreError> {
    let mut candidates = Vec::new();
    for point in list_files(storage, dir, PointFile::Manifest)? {
        let read = read_point(storage, dir, point, PointFile::Manifest, repository);
        let flags = match read {
            Ok(Some(found)) => Some(found.manifest.flags),
            Ok(None) => continue,
            Err(_) => None,
        };
        candidates.push(Candidate { point, flags });
    }
    Ok(candidates)
}

#[cfg(test)]
mod tests;
