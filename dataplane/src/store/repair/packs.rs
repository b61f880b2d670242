//! Packs whose header or footer is damaged: sealed again from their self-describing records.
//!
//! In: the folder. Out: packs with a whole header and footer. The damaged footer's bytes stay
//! where they are, and the new one follows them. Records that a collection had given up may come
//! back into the list so; they are whole, and the next collection gives them up again.

use gantry_common::ids::SessionId;
use gantry_common::manage::RepairReport;

use crate::store::error::StoreError;
use crate::store::footer::{PackFault, PackHead, read_footer};
use crate::store::layout::PackNumber;
use crate::store::pack_scan::{scan_pack, seal_scanned};
use crate::store::reconcile::packs_on_disk;
use crate::store::storage::{OpenMode, Storage, StorageFile};
use crate::store::superblock::Superblock;

pub(super) fn seal_again<S: Storage>(
    storage: &S,
    superblock: &Superblock,
    report: &mut RepairReport,
) -> Result<(), StoreError> {
    for pack in packs_on_disk(storage)? {
        let place = storage.place(&pack.path());
        if let Some(note) = seal_pack(storage, superblock, pack, report)? {
            report.notes.push(format!("pack {place}: {note}"));
        }
    }
    Ok(())
}

/// What a person should know, if anything was wrong.
fn seal_pack<S: Storage>(
    storage: &S,
    superblock: &Superblock,
    pack: PackNumber,
    report: &mut RepairReport,
) -> Result<Option<String>, StoreError> {
    let fail = |action| {
        let place = storage.place(&pack.path());
        move |source| StoreError::io(action, place, source)
    };
    let file = storage.open(&pack.path(), OpenMode::ReadUncached).map_err(fail("open"))?;
    let head = PackHead::read(&file, superblock.repository, pack);
    let footer = read_footer(&file, pack);
    for fault in [head.as_ref().err(), footer.as_ref().err()].into_iter().flatten() {
        if let PackFault::Io(error) = fault {
            // Unreadable now is not damaged: nothing is written over it.
            return Ok(Some(format!("{error}; it is left as it is")));
        }
    }
    let kept = PackHead {
        repository: superblock.repository,
        number: pack,
        session: head.as_ref().map_or(SessionId([0; 16]), |head| head.session),
    };
    let what = match (&head, &footer) {
        (Ok(_), Ok(_)) => return Ok(None),
        (Err(fault), Ok(_)) => {
            if !report.dry_run {
                let file = storage.open(&pack.path(), OpenMode::Write).map_err(fail("open"))?;
                file.write_at(0, &kept.encode()).map_err(fail("write"))?;
                file.sync_data().map_err(fail("sync"))?;
            }
            format!("{fault}; written anew")
        }
        (_, Err(fault)) => {
            let scan = scan_pack(&file, superblock.repository).map_err(fail("scan"))?;
            if scan.slots.is_empty() {
                return Ok(Some(format!("{fault}, nor any whole record; it is left as it is")));
            }
            if !report.dry_run {
                let file = storage.open(&pack.path(), OpenMode::Write).map_err(fail("open"))?;
                seal_scanned(&file, &scan, &kept).map_err(fail("seal"))?;
            }
            report.packs_sealed += 1;
            return Ok(Some(format!("{fault}; sealed again with {} records", scan.slots.len())));
        }
    };
    report.packs_sealed += 1;
    Ok(Some(what))
}
