//! What the command line asks of a repository: make one, list, show, count, rebuild the index.
//!
//! In: a folder. Out: structures for tables and JSON. Must not: print.

use std::path::Path;

use gantry_common::ids::{IdKey, PointId, RepositoryId};
use gantry_common::wire::PointSummary;
use serde::Serialize;

use super::ballast;
use super::engine::{DIRS, Store, take_lock};
use super::error::StoreError;
use super::layout::{INDEX, INDEX_DIR, SUPERBLOCKS};
use super::manifest::Manifest;
use super::reader::{ListedPoint, StoreReader};
use super::storage::Storage;
use super::storage::kernel::KernelStorage;
use super::superblock::Superblock;

/// A new repository.
#[derive(Debug, Clone, Serialize)]
pub struct Initialised {
    /// Its id.
    pub repository: String,
    /// Its folder.
    pub place: String,
}

/// A point as listed.
#[derive(Debug, Clone, Serialize)]
pub struct PointLine {
    /// VM name.
    pub name: String,
    /// The point.
    pub point: String,
    /// What it is, if its manifest can be read.
    pub summary: Option<PointSummary>,
    /// Bytes that its run added to the repository.
    pub bytes_stored: u64,
    /// Why its manifest cannot be read.
    pub unreadable: Option<String>,
}

/// What rebuilding the index did.
#[derive(Debug, Clone, Serialize)]
pub struct IndexRebuilt {
    /// Packs read.
    pub packs: u64,
    /// Blocks found.
    pub blocks: u64,
    /// For a person.
    pub notes: Vec<String>,
}

fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| StoreError::Refused(format!("no random numbers: {error}")))?;
    Ok(bytes)
}

/// Makes an empty repository in `dir`, which may exist if it is empty.
///
/// # Errors
/// [`StoreError::Usage`] if something is there already.
pub fn init(dir: &Path, created_ms: u64) -> Result<Initialised, StoreError> {
    let place = dir.display().to_string();
    let fail = |action| {
        let place = place.clone();
        move |source| StoreError::io(action, place, source)
    };
    std::fs::create_dir_all(dir).map_err(fail("create"))?;
    let storage = KernelStorage::new(dir);
    let there = storage.list("").map_err(fail("list"))?;
    if there.iter().any(|entry| SUPERBLOCKS.contains(&entry.name.as_str())) {
        return Err(StoreError::Usage(format!("{place} is a repository already")));
    }
    if let Some(entry) = there.iter().find(|entry| entry.name != "lost+found") {
        return Err(StoreError::Usage(format!(
            "{place} is not empty ('{}'): give an empty or a new folder",
            entry.name
        )));
    }
    let superblock = Superblock::new(RepositoryId(random()?), IdKey(random()?), created_ms);
    init_storage(&storage, &superblock)?;
    if let Some(parent) = storage.dir().parent() {
        std::fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail("sync"))?;
    }
    Ok(Initialised { repository: superblock.repository.to_string(), place })
}

/// Makes an empty repository on any storage.
///
/// # Errors
/// [`StoreError::Io`].
pub fn init_storage<S: Storage>(storage: &S, superblock: &Superblock) -> Result<(), StoreError> {
    for dir in DIRS.into_iter().chain([INDEX_DIR]) {
        let made = storage.create_dir(dir);
        made.map_err(|source| StoreError::io("create", storage.place(dir), source))?;
    }
    ballast::put(storage);
    // The superblock last: without it there is no repository.
    superblock.write(storage)
}

/// Lists the points of a name, or of all names, oldest first.
///
/// # Errors
/// [`StoreError`] of the folder; unreadable points are listed as such.
pub fn list<S: Storage>(
    reader: &StoreReader<S>,
    name: Option<&str>,
) -> Result<Vec<PointLine>, StoreError> {
    let points = match name {
        Some(name) => reader.points(name)?,
        None => reader.all_points()?,
    };
    Ok(points.into_iter().map(|listed| line(listed, name)).collect())
}

/// As [`list`], those that were deleted since the last collection.
///
/// # Errors
/// As [`list`].
pub fn list_deleted<S: Storage>(
    reader: &StoreReader<S>,
    name: Option<&str>,
) -> Result<Vec<PointLine>, StoreError> {
    let points = match name {
        Some(name) => reader.deleted_points(name)?,
        None => reader.all_deleted_points()?,
    };
    Ok(points.into_iter().map(|listed| line(listed, name)).collect())
}

fn line(listed: ListedPoint, name: Option<&str>) -> PointLine {
    let point = listed.point.to_string();
    match listed.manifest {
        Ok(manifest) => PointLine {
            name: manifest.name.clone(),
            point,
            summary: Some(PointSummary { is_deleted: listed.is_deleted, ..manifest.summary() }),
            bytes_stored: manifest.disks.iter().map(|disk| disk.bytes_stored).sum(),
            unreadable: None,
        },
        Err(error) => PointLine {
            name: name.unwrap_or("?").to_owned(),
            point,
            summary: None,
            bytes_stored: 0,
            unreadable: Some(error.to_string()),
        },
    }
}

/// Everything that a point's manifest says; the newest point without an id.
///
/// # Errors
/// As [`StoreReader::manifest`].
pub fn show<S: Storage>(
    reader: &StoreReader<S>,
    name: &str,
    point: Option<PointId>,
) -> Result<Manifest, StoreError> {
    reader.manifest(name, point)
}

/// Throws the index away and builds it again from the packs.
///
/// # Errors
/// [`StoreError::Locked`] while a writer holds the repository; the folder fails.
pub fn rebuild_index<S: Storage>(storage: S) -> Result<IndexRebuilt, StoreError> {
    {
        let _lock = take_lock(&storage, true)?;
        Superblock::read(&storage)?;
        match storage.remove(INDEX) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            result => {
                result.map_err(|source| StoreError::io("remove", storage.place(INDEX), source))?
            }
        }
    }
    let mut store = Store::open(storage)?;
    let rows = store.reader().repo().packs();
    store.shut_down();
    Ok(IndexRebuilt {
        packs: rows.len() as u64,
        blocks: rows.values().map(|row| u64::from(row.blocks)).sum(),
        notes: store.notes().to_vec(),
    })
}
