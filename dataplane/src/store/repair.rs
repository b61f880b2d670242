//! Repairing a repository that nobody serves: saves what can be saved, says what cannot.
//!
//! In: a folder. Out: a report. Order: superblock, packs, manifests, index; then everything is
//! read, good copies take the place of bad ones, lost map nodes are built again. Invariants:
//! nothing is written over that could still be of use; a rebuilt node is taken only if its id
//! proves it. A trial run opens the folder to read and changes nothing.

use gantry_common::manage::{RepairReport, VerifyOptions, VerifyReport};

use super::engine::{Store, take_lock};
use super::error::StoreError;
use super::index::Walked;
use super::layout::INDEX;
use super::lost::LostBlocks;
use super::reader::StoreReader;
use super::storage::Storage;
use super::superblock::Superblock;
use super::verify::{OnProgress, hits_of_point, index_differences, verify};

mod candidates;
mod manifests;
mod nodes;
mod origins;
mod packs;

pub use self::nodes::BuiltNode;

/// Repairs the repository, or says what a repair would do. `on_progress` hears of the reading.
///
/// # Errors
/// [`StoreError::Locked`] if somebody works on it; no copy of the superblock; the folder fails.
/// What was done before an error stands, and repairing again is right.
pub fn repair<S: Storage>(
    storage: &S,
    dry_run: bool,
    now_ms: u64,
    on_progress: &mut OnProgress<'_>,
) -> Result<RepairReport, StoreError> {
    let mut report = RepairReport { dry_run, ..RepairReport::default() };
    {
        let _lock = take_lock(storage, !dry_run)?;
        let faults = Superblock::faults(storage);
        let (superblock, _) = Superblock::read(storage)?;
        report.superblocks_written = faults.len() as u64;
        report.notes.extend(faults.into_iter().map(|(place, what)| format!("{place}: {what}")));
        if report.superblocks_written > 0 && !dry_run {
            superblock.write(storage)?;
        }
        packs::seal_again(storage, &superblock, &mut report)?;
        manifests::restore(storage, superblock.repository, &mut report)?;
        if report.packs_sealed > 0 {
            remove_index(storage, &mut report)?;
        }
    }
    match dry_run {
        true => {
            let (reader, notes) = StoreReader::open(storage.clone())?;
            report.notes.extend(notes);
            let found = read_all(&reader, now_ms, on_progress)?;
            take_in(&mut report, &found);
            let lost = nodes::rebuild(&reader, &mut |_| Ok(()), &mut report)?;
            report.nodes_given_up = lost.len() as u64;
            report.hits = found.hits;
            Ok(report)
        }
        false => repair_open(storage, now_ms, report, on_progress),
    }
}

fn remove_index<S: Storage>(storage: &S, report: &mut RepairReport) -> Result<(), StoreError> {
    report.index_rebuilt = true;
    if report.dry_run {
        return Ok(());
    }
    match storage.remove(INDEX) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| StoreError::io("remove", storage.place(INDEX), source)),
    }
}

fn read_all<S: Storage>(
    reader: &StoreReader<S>,
    now_ms: u64,
    on_progress: &mut OnProgress<'_>,
) -> Result<VerifyReport, StoreError> {
    verify(reader, &VerifyOptions::default(), now_ms, on_progress)
}

fn take_in(report: &mut RepairReport, found: &VerifyReport) {
    report.records_good = found.records_good;
    report.damages = found.damages;
    report.damaged = found.damaged.clone();
    for note in &found.notes {
        if !report.notes.contains(note) {
            report.notes.push(note.clone());
        }
    }
}

fn repair_open<S: Storage>(
    storage: &S,
    now_ms: u64,
    mut report: RepairReport,
    on_progress: &mut OnProgress<'_>,
) -> Result<RepairReport, StoreError> {
    let read = match open_and_read(storage, now_ms, &mut report, on_progress) {
        Ok((mut store, found)) if found.index_wrong > 0 && !report.index_rebuilt => {
            store.shut_down();
            None
        }
        Err(error @ StoreError::Index { .. }) if !report.index_rebuilt => {
            report.notes.push(error.to_string());
            None
        }
        read => Some(read?),
    };
    let (mut store, found) = match read {
        Some(read) => read,
        None => {
            {
                let _lock = take_lock(storage, true)?;
                remove_index(storage, &mut report)?;
            }
            open_and_read(storage, now_ms, &mut report, on_progress)?
        }
    };
    take_in(&mut report, &found);
    let reader = store.reader();
    let lost = nodes::rebuild(&reader, &mut |built| store.write_nodes(built), &mut report)?;
    reader.repo().index.give_up(&lost)?;
    report.nodes_given_up = lost.len() as u64;
    walk_again(&reader, &found, &mut report)?;
    store.shut_down();
    Ok(report)
}

/// Opens the store, reads everything, and lets good copies take the place of bad ones.
fn open_and_read<S: Storage>(
    storage: &S,
    now_ms: u64,
    report: &mut RepairReport,
    on_progress: &mut OnProgress<'_>,
) -> Result<(Store<S>, VerifyReport), StoreError> {
    let mut store = Store::open(storage.clone())?;
    report.notes.extend(store.notes().iter().cloned());
    let reader = store.reader();
    let mut found = read_all(&reader, now_ms, on_progress)?;
    while !reader.repo().inquiries.is_empty() {
        store.poll(0);
        store.run_checks();
    }
    store.poll(0);
    if found.index_wrong > 0 {
        let wrong = found.index_wrong;
        report.notes.push(format!("the index differed from the packs in {wrong} places"));
        // Differences that are none any more need no new index.
        found.index_wrong = index_differences(&reader)?;
    }
    Ok((store, found))
}

/// What stays hit, and the rows from which the store answers it.
fn walk_again<S: Storage>(
    reader: &StoreReader<S>,
    found: &VerifyReport,
    report: &mut RepairReport,
) -> Result<(), StoreError> {
    let repo = reader.repo();
    let generation = repo.index.damage_generation()?;
    let mut walk = LostBlocks::new(repo, &|_| false);
    let mut rows = Vec::new();
    for listed in reader.all_points()? {
        if let Ok(manifest) = &listed.manifest {
            hits_of_point(&mut walk, manifest, &mut report.hits, &mut rows)?;
        }
    }
    // Damage that hits no point: known of, though no tree shows it.
    let hits_nobody = repo.index.is_suspect() && found.hits.is_empty();
    let all = Some(hits_nobody || !report.hits.is_empty());
    repo.index.keep_walked(&Walked { rows, all }, generation).map(drop)
}
