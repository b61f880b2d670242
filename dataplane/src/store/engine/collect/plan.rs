//! What a collection finds about one pack: which of its records go, which must stay.
//!
//! In: complete marks, the pack's footer, what the index names. Out: a [`Plan`]. Invariant: a record
//! goes only if it is not marked, and if the index names it or another place that can be used.
//! Must not: change anything.

use gantry_common::ids::BlockId;
use gantry_common::manage::CollectReport;

use super::policy::{Action, PackUse};
use super::{Shared, locked};
use crate::store::error::StoreError;
use crate::store::footer::{Slot, read_footer};
use crate::store::index::{Location, PackChange, PackRow};
use crate::store::live_map::PackBits;
use crate::store::repo::Repo;
use crate::store::storage::{Storage, StorageFile};

/// Notes of a report about single packs; more are only logged.
const NOTES_MAX: usize = 100;

/// What is to be done with a pack.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) action: Action,
    pub(super) change: PackChange,
    /// Its row as it was.
    row: PackRow,
    /// Its records, those that are given up among them.
    pub(super) slots: Vec<Slot>,
    /// Records that are given up now.
    pub(super) gone: Vec<Slot>,
}

fn bytes(slot: &Slot) -> u64 {
    slot.end() - slot.offset
}

impl Plan {
    /// Records that stay, by position.
    pub(super) fn live(&self) -> impl Iterator<Item = (u32, &Slot)> {
        (0..).zip(&self.slots).filter(|(_, slot)| !slot.is_gone)
    }

    /// What the policy asks.
    pub(super) fn pack_use(&self) -> PackUse {
        PackUse {
            file_bytes: self.row.file_bytes,
            live: self.live().count() as u32,
            live_bytes: self.live().map(|(_, slot)| bytes(slot)).sum(),
            dead_bytes: self.gone.iter().map(bytes).sum(),
            is_damaged: self.row.damaged > 0,
        }
    }

    /// Decides, counts what is done, and fills in the pack's row after it.
    pub(super) fn count_as(&mut self, action: Action, report: &mut CollectReport) {
        self.action = action;
        if action == Action::Keep {
            report.bytes_dead_left += self.pack_use().dead_bytes;
            return;
        }
        report.records_dead += self.gone.len() as u64;
        match action {
            Action::Keep | Action::Rewrite => {}
            Action::Punch => {
                report.packs_punched += 1;
                let row = PackRow::of(&self.slots, self.row.file_bytes);
                self.change.row = Some(PackRow { checked_ms: self.row.checked_ms, ..row });
            }
            Action::Remove => report.packs_removed += 1,
        }
    }

    /// Counts what a trial run cannot measure.
    pub(super) fn estimate(&self, report: &mut CollectReport) {
        let pack_use = self.pack_use();
        let whole = self.row.file_bytes.saturating_sub(self.row.hole_bytes);
        report.bytes_freed += match self.action {
            Action::Keep => 0,
            Action::Punch => pack_use.dead_bytes,
            Action::Rewrite => {
                report.packs_rewritten += 1;
                report.bytes_rewritten += pack_use.live_bytes;
                whole.saturating_sub(pack_use.live_bytes)
            }
            Action::Remove => whole,
        };
    }

    /// Only what the index must learn: entries that named places that cannot be used.
    pub(super) fn only_kept(&self) -> PackChange {
        let (row, kept) = (Some(self.row), self.change.kept.clone());
        PackChange { pack: self.change.pack, row, gone: Vec::new(), kept }
    }

    /// The removal of the whole pack, whose live records stand elsewhere by now.
    pub(super) fn whole(mut self) -> Plan {
        let there = self.slots.iter().map(|slot| (slot.id, slot.offset));
        self.change.gone = there.collect();
        self.change.kept = Vec::new();
        self.change.row = None;
        self.action = Action::Remove;
        self
    }
}

/// Adds a note about a pack to a report.
pub(super) fn note_pack(report: &mut CollectReport, note: String) {
    tracing::warn!("{note}");
    if report.notes.len() < NOTES_MAX {
        report.notes.push(note);
    }
}

/// Reads a pack's footer and judges its records; nothing if the pack must be left as it is, which
/// the report then says.
pub(super) fn judge_pack<S: Storage>(
    bits: PackBits,
    has_lost: bool,
    repo: &Repo<S>,
    shared: &Shared<S>,
    report: &mut CollectReport,
) -> Result<Option<Plan>, StoreError> {
    let Some(row) = repo.pack_row(bits.pack) else { return Ok(None) };
    let place = repo.storage.place(&bits.pack.path());
    let footer = repo.open_pack(bits.pack).and_then(|file| {
        let len = file.len().map_err(|source| StoreError::io("measure", &*place, source))?;
        let slots = read_footer(&file, bits.pack);
        let fault = |fault: crate::store::footer::PackFault| {
            StoreError::damaged(place.clone(), 0, fault.to_string(), "run repo repair")
        };
        Ok((slots.map_err(fault)?, len))
    });
    let left = match footer {
        Ok((slots, len)) if slots.len() == bits.slots as usize && len == row.file_bytes => {
            match judge(bits, row, slots, has_lost, repo, shared)? {
                Ok(plan) => return Ok(Some(plan)),
                Err(what) => what,
            }
        }
        Ok((slots, len)) => format!(
            "it has {len} bytes and {} records, the index knows of {} and {}: run repo \
             rebuild-index",
            slots.len(),
            row.file_bytes,
            bits.slots
        ),
        Err(error) => error.to_string(),
    };
    note_pack(report, format!("pack {place} is left as it is: {left}"));
    Ok(None)
}

/// Which records of a pack are given up. The inner error says why the pack must be left.
fn judge<S: Storage>(
    bits: PackBits,
    row: PackRow,
    mut slots: Vec<Slot>,
    has_lost: bool,
    repo: &Repo<S>,
    shared: &Shared<S>,
) -> Result<Result<Plan, String>, StoreError> {
    let mut dead = Vec::new();
    {
        let mut live = locked(&shared.live);
        for (position, _) in (0..).zip(&slots).filter(|(_, slot)| !slot.is_gone) {
            let is_live = live.is_live(bits.pack, position);
            if is_live.map_err(|fault| shared.fault(fault))? == Some(false) {
                dead.push(position);
            }
        }
    }
    let ids: Vec<BlockId> = dead.iter().map(|at: &u32| slots[*at as usize].id).collect();
    let named = repo.index.find(&ids)?;
    let (pack, gone, kept) = (bits.pack, Vec::new(), Vec::new());
    let mut change = PackChange { pack, row: None, gone, kept };
    let mut gone = Vec::new();
    for (position, named) in dead.into_iter().zip(named) {
        let slot = &mut slots[position as usize];
        let own = Location::of(slot, position, bits.pack);
        let must_stay = match named {
            Some(at) if at.is_same_place(&own) => {
                if at.slot != position {
                    return Ok(Err(format!(
                        "record {position} of its footer is record {} of the index: run repo \
                         rebuild-index",
                        at.slot
                    )));
                }
                false
            }
            // What the index names cannot be used, so this copy is worth more than its space.
            Some(at) => at.damaged || !repo.has_pack(at.pack),
            None => has_lost,
        };
        if must_stay {
            change.kept.push((slot.id, own));
        } else {
            slot.is_gone = true;
            change.gone.push((slot.id, slot.offset));
            gone.push(*slot);
        }
    }
    Ok(Ok(Plan { action: Action::Keep, change, row, slots, gone }))
}
