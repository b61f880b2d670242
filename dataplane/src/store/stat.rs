//! Counting what a repository holds, without reading packs: `repo stat`.
//!
//! In: a reader. Out: a [`StatReport`]. May run beside a store, on any thread; figures that change
//! meanwhile are of slightly different moments. Must not: modify anything.

use std::collections::BTreeMap;

use gantry_common::ids::SessionId;
use gantry_common::manage::{LISTED_MAX, PointFlags, StatReport, Unfinished};

use super::error::StoreError;
use super::journal::list_journals;
use super::manifest::Manifest;
use super::reader::StoreReader;
use super::storage::Storage;

/// Counts.
///
/// # Errors
/// [`StoreError`] of the folder; points that cannot be read are noted.
pub fn stat<S: Storage>(reader: &StoreReader<S>) -> Result<StatReport, StoreError> {
    let repo = reader.repo();
    let mut stat = StatReport {
        repository: repo.repository().to_string(),
        names: reader.names()?.len() as u64,
        suspect: repo.index.is_suspect(),
        ..StatReport::default()
    };
    for listed in reader.all_points()? {
        stat.points += 1;
        stat.notes.extend(listed.fault.map(|fault| format!("{fault}; its copy serves")));
        match listed.manifest {
            Ok(manifest) => count_point(&manifest, &mut stat),
            Err(error) => stat.notes.push(error.to_string()),
        }
    }
    for listed in reader.all_deleted_points()? {
        stat.points_deleted += 1;
        let disks = listed.manifest.iter().flat_map(|manifest| &manifest.disks);
        stat.bytes_deleted += disks.map(|disk| disk.bytes_stored).sum::<u64>();
    }
    count_packs(reader, &mut stat);
    let collected = repo.index.collected()?.unwrap_or_default();
    (stat.collected_ms, stat.bytes_dead_left) = (collected.at_ms, collected.bytes_dead_left);
    stat.bytes_free = repo
        .storage
        .free_bytes()
        .map_err(|source| StoreError::io("measure", repo.storage.place(""), source))?;
    stat.unfinished = unfinished(&repo.storage)?;
    stat.notes.truncate(LISTED_MAX);
    Ok(stat)
}

fn count_point(manifest: &Manifest, stat: &mut StatReport) {
    stat.points_protected += u64::from(manifest.flags.has(PointFlags::PROTECTED));
    for disk in &manifest.disks {
        stat.bytes_protected += disk.size_bytes;
        stat.bytes_content += disk.size_bytes.saturating_sub(disk.totals.bytes_zero);
    }
}

fn count_packs<S: Storage>(reader: &StoreReader<S>, stat: &mut StatReport) {
    for row in reader.repo().packs().values() {
        stat.packs += 1;
        stat.blocks += u64::from(row.blocks);
        stat.nodes += u64::from(row.nodes);
        stat.bytes_stored += row.file_bytes.saturating_sub(row.hole_bytes);
        stat.bytes_holes += row.hole_bytes;
        stat.bytes_raw += row.raw_bytes;
        match (row.checked_ms, stat.checked_oldest_ms) {
            (0, _) => stat.packs_unchecked += 1,
            (checked, 0) => stat.checked_oldest_ms = checked,
            (checked, oldest) => stat.checked_oldest_ms = oldest.min(checked),
        }
        stat.checked_newest_ms = stat.checked_newest_ms.max(row.checked_ms);
    }
}

/// Sessions with journals: what they name stays, whatever is collected.
fn unfinished<S: Storage>(storage: &S) -> Result<Vec<Unfinished>, StoreError> {
    let mut sessions: BTreeMap<SessionId, Unfinished> = BTreeMap::new();
    for head in list_journals(storage)?.into_iter().filter_map(|(_, head)| head) {
        let session = sessions.entry(head.session).or_insert_with(|| Unfinished {
            name: head.offer.name.clone(),
            session: head.session.to_string(),
            disks: 0,
            created_ms: head.offer.created_ms,
        });
        session.disks += 1;
    }
    Ok(sessions.into_values().take(LISTED_MAX).collect())
}
