//! Verifying packs: header, footer, every record.
//!
//! In: packs, those first that were not read for the longest time. Out: damaged places, marks.
//! A record given up by a collection is no damage, nor is a pack that it removed: where something
//! is wrong, the footer is read once more to learn that.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use gantry_common::ids::BlockId;

use super::recheck::Wrong;
use super::{BAD_REMEMBERED_MAX, Verifier};
use crate::store::error::StoreError;
use crate::store::footer::{PackHead, Slot, read_footer};
use crate::store::index::{Finding, Location, PackRow};
use crate::store::inquiries::Inquiry;
use crate::store::layout::PackNumber;
use crate::store::pack_scan::{PackBytes, scan_pack};
use crate::store::record::RecordFault;
use crate::store::storage::{OpenMode, Storage, StorageFile};

/// Bytes between two looks at the pace.
const PACE_BYTES: u64 = 8 << 20;
/// A footer that is being written anew is whole again after this.
const FOOTER_PAUSE: Duration = Duration::from_millis(50);

/// The packs to read, with the bytes that stand in each: never read first, then oldest first, until
/// they are the wanted share of all.
pub(super) fn choose(packs: &BTreeMap<PackNumber, PackRow>, percent: u8) -> Vec<(PackNumber, u64)> {
    let bytes = |row: &PackRow| row.file_bytes.saturating_sub(row.hole_bytes);
    let total: u64 = packs.values().map(bytes).sum();
    let wanted = u128::from(total) * u128::from(percent.min(100));
    let mut order: Vec<_> = packs.iter().collect();
    order.sort_by_key(|(number, row)| (row.checked_ms, **number));
    let mut chosen = Vec::new();
    let mut sum = 0;
    for (number, row) in order {
        if percent < 100 && u128::from(sum) * 100 >= wanted {
            break;
        }
        sum += bytes(row);
        chosen.push((*number, bytes(row)));
    }
    chosen
}

/// A pack's records as its footer, or else a look at every page, lists them.
struct Listed {
    slots: Vec<Slot>,
    /// From a footer: positions are those that the index knows.
    is_footer: bool,
}

impl<S: Storage> Verifier<'_, S> {
    pub(super) fn pack(&mut self, pack: PackNumber) -> Result<(), StoreError> {
        let storage = &self.reader.repo().storage;
        let place = storage.place(&pack.path());
        let file = match storage.open(&pack.path(), OpenMode::ReadUncached) {
            Ok(file) => file,
            Err(error) => {
                if self.reader.repo().has_pack(pack) {
                    self.report.damage(&place, 0, error);
                }
                return Ok(());
            }
        };
        self.report.packs += 1;
        if let Err(fault) = PackHead::read(&file, self.reader.repository(), pack) {
            self.report.damage(&place, 0, fault);
        }
        let Some(listed) = self.list(pack, &file)? else { return Ok(()) };
        let fail = |source| StoreError::io("read", place.clone(), source);
        let mut bytes = PackBytes::new(&file).map_err(fail)?;
        let mut checked = Vec::with_capacity(listed.slots.len());
        let (before, mut told) = (self.report.bytes_read, 0);
        for (position, slot) in (0..).zip(&listed.slots).filter(|(_, slot)| !slot.is_gone) {
            let result = self.record(&mut bytes, slot);
            checked.push((Location::of(slot, position, pack), *slot, result.err()));
            if bytes.bytes_read >= told + PACE_BYTES {
                told = bytes.bytes_read;
                self.pace.read(before + told);
                if self.pace.is_stopped {
                    break;
                }
            }
        }
        self.report.bytes_read += bytes.bytes_read;
        self.pace.read(self.report.bytes_read);
        self.settle_pack(pack, &file, &listed, checked)
    }

    fn record(
        &mut self,
        bytes: &mut PackBytes<'_, S::File>,
        slot: &Slot,
    ) -> Result<(), RecordFault> {
        let (head, stored) = bytes.record(slot.offset, self.reader.repository())?;
        if !slot.matches(&head) {
            return Err(RecordFault::Other { wanted: slot.id, found: head.id });
        }
        match self.options.checksums_only {
            true => Ok(()),
            false => self.decoder.raw(&head, stored).map(drop),
        }
    }

    /// The pack's list; nothing if the pack has been removed meanwhile.
    fn list(&mut self, pack: PackNumber, file: &S::File) -> Result<Option<Listed>, StoreError> {
        let mut read = read_footer(file, pack);
        if read.is_err() && self.reader.is_beside_writer() {
            std::thread::sleep(FOOTER_PAUSE);
            read = read_footer(file, pack);
        }
        let place = self.reader.repo().storage.place(&pack.path());
        match read {
            Ok(slots) => Ok(Some(Listed { slots, is_footer: true })),
            Err(_) if !self.reader.repo().has_pack(pack) => Ok(None),
            Err(fault) => {
                self.report.damage(&place, file.len().unwrap_or(0), fault);
                let scan = scan_pack(file, self.reader.repository())
                    .map_err(|source| StoreError::io("read", place.clone(), source))?;
                for (offset, fault) in scan.damaged {
                    self.report.damage(&place, offset, fault);
                }
                Ok(Some(Listed { slots: scan.slots, is_footer: false }))
            }
        }
    }

    /// Sorts out what was found in a pack: damage, or given up meanwhile; and remembers it.
    fn settle_pack(
        &mut self,
        pack: PackNumber,
        file: &S::File,
        listed: &Listed,
        checked: Vec<(Location, Slot, Option<RecordFault>)>,
    ) -> Result<(), StoreError> {
        let repo = self.reader.repo();
        let place = repo.storage.place(&pack.path());
        let has_fault = checked.iter().any(|(_, _, fault)| fault.is_some());
        let now = match has_fault && listed.is_footer {
            true => read_footer(file, pack).ok(),
            false => None,
        };
        if has_fault && !repo.has_pack(pack) {
            return Ok(());
        }
        let is_gone = |at: &Location| {
            now.as_ref()
                .and_then(|slots| slots.get(at.slot as usize))
                .is_some_and(|now| now.is_gone)
        };
        let mut found = Vec::with_capacity(checked.len());
        for (at, slot, fault) in checked {
            match fault {
                None => {
                    self.report.records_good += 1;
                    found.push((slot.id, at, Finding::Good));
                }
                Some(_) if is_gone(&at) => {}
                Some(fault) => {
                    if self.bad.len() < BAD_REMEMBERED_MAX {
                        self.bad.insert((pack, slot.offset));
                    }
                    self.report.damage(&place, slot.offset, fault);
                    found.push((slot.id, at, Finding::Damaged));
                }
            }
        }
        self.compare_index(pack, &found)?;
        if !listed.is_footer && !self.pace.is_stopped {
            let there: HashSet<u64> = listed.slots.iter().map(|slot| slot.offset).collect();
            let strays = repo.index.strays(pack, &there)?;
            if !strays.is_empty() {
                let what = format!("{} records that stood in it are not there", strays.len());
                self.report.damage(&place, 0, what);
            }
            found.extend(strays.into_iter().map(|(id, at)| (id, at, Finding::Damaged)));
        }
        let damaged = found.iter().filter(|(_, _, finding)| *finding == Finding::Damaged).count();
        let damaged = u32::try_from(damaged).unwrap_or(u32::MAX);
        if listed.is_footer && !self.pace.is_stopped {
            let bytes = file.len().map_err(|source| StoreError::io("measure", place, source))?;
            let known = repo.packs().get(&pack).copied().unwrap_or_default();
            if !known.is_alike(&PackRow::of(&listed.slots, bytes)) {
                self.note_wrong(Wrong::Row { pack });
            }
        }
        if self.options.checksums_only || !repo.index.is_writable() {
            // That the id is right was not looked at; or what is kept in memory shall be little.
            found.retain(|(_, _, finding)| *finding == Finding::Damaged);
        }
        repo.mark(&found)?;
        if repo.index.is_writable() && !self.pace.is_stopped {
            repo.set_checked(pack, self.now_ms, damaged)?;
        }
        Ok(())
    }

    /// An entry that names this pack must name the record's own place in it; a good record whose
    /// id has no good place is offered to the store.
    fn compare_index(&mut self, pack: PackNumber, found: &[Found]) -> Result<(), StoreError> {
        let repo = self.reader.repo();
        let ids: Vec<BlockId> = found.iter().map(|(id, _, _)| *id).collect();
        let known = repo.index.find(&ids)?;
        for ((id, at, finding), known) in found.iter().zip(known) {
            let serves = |known: &Location| {
                let same = Location { verified: known.verified, damaged: known.damaged, ..*at };
                match known.is_same_place(at) {
                    true => *known == same && *finding == Finding::Good,
                    // The same id twice in one pack: the index names one of them.
                    false if known.pack == pack => found
                        .iter()
                        .any(|(other, there, _)| other == id && known.is_same_place(there)),
                    false => !known.damaged && repo.has_pack(known.pack),
                }
            };
            let is_wrongly_held =
                known.is_some_and(|known| known.is_same_place(at) && known.damaged);
            self.found_whole += u64::from(is_wrongly_held && *finding == Finding::Good);
            match finding {
                Finding::Good if !known.is_some_and(|known| serves(&known)) => {
                    repo.inquiries.push(Inquiry::Copy(*id, *at));
                    self.note_wrong(Wrong::Entry { id: *id, at: *at });
                }
                Finding::Damaged
                    if self.unresolved.len() < BAD_REMEMBERED_MAX
                        && !known.is_some_and(|known| serves(&known)) =>
                {
                    self.unresolved.insert(*id);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A record that was read.
type Found = (BlockId, Location, Finding);
