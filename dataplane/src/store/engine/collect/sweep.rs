//! Giving back: removes packs in which nothing is live, makes holes where enough is dead.
//!
//! In: complete marks. Out: space. In steps of a few packs each. Order of a step: the intent is
//! durable; entries of dead records leave the index, durably; only then packs are removed, or
//! footers are written that mark dead records as gone, made durable, and then holes are made.
//! Invariant: the marks do not change any more. Must not: give up a record that is the only good
//! copy of something that is needed.

use std::collections::BTreeSet;

use gantry_common::ids::BlockId;
use gantry_common::limits;
use gantry_common::manage::{CollectOptions, CollectReport};

use super::intent::{self, Footer, PackIntent, punch};
use super::policy::{Action, Means, PackUse, decide};
use super::{Shared, locked};
use crate::store::error::StoreError;
use crate::store::footer::{Slot, encode_footer, footer_bytes, read_footer};
use crate::store::index::{Location, PackChange, PackRow};
use crate::store::live_map::PackBits;
use crate::store::repo::Repo;
use crate::store::storage::{OpenMode, Storage, StorageFile};

/// Notes of a report about single packs; more are only counted.
const NOTES_MAX: usize = 100;

/// Where giving back stands.
#[derive(Debug)]
pub(super) struct Sweep {
    next: usize,
    total: usize,
    means: Means,
    /// Something that is needed was not found: a record without an entry may be it.
    has_lost: bool,
}

/// What is to be done with a pack.
#[derive(Debug)]
struct Plan {
    action: Action,
    change: PackChange,
    /// Its records, those that are given up among them.
    slots: Vec<Slot>,
    /// Records that are given up now.
    gone: Vec<Slot>,
}

impl Sweep {
    pub(super) fn new<S: Storage>(
        repo: &Repo<S>,
        shared: &Shared<S>,
        _options: &CollectOptions,
    ) -> Result<Sweep, StoreError> {
        let means = Means { can_punch: can_punch(&repo.storage), rewrite_bytes: 0 };
        let total = locked(&shared.live).packs().len();
        Ok(Sweep { next: 0, total, means, has_lost: false })
    }

    /// Whether records without an entry are to be kept.
    pub(super) fn conservative(self, has_lost: bool) -> Sweep {
        Sweep { has_lost, ..self }
    }

    pub(super) fn progress(&self) -> (u64, u64) {
        (self.next as u64, self.total as u64)
    }

    /// Looks at the next packs; true after the last.
    pub(super) fn step<S: Storage>(
        &mut self,
        repo: &Repo<S>,
        shared: &Shared<S>,
        report: &mut CollectReport,
    ) -> Result<bool, StoreError> {
        let mut plans = Vec::new();
        let mut slots = 0;
        for _ in 0..limits::COLLECT_COUNTED_PACKS_MAX {
            let is_full = plans.len() >= limits::COLLECT_BATCH_PACKS_MAX
                || slots >= limits::COLLECT_BATCH_SLOTS_MAX;
            let bits = locked(&shared.live).packs().get(self.next).copied();
            let Some(bits) = bits.filter(|_| !is_full) else { break };
            self.next += 1;
            if let Some(plan) = self.plan(bits, repo, shared, report)? {
                slots += plan.slots.len();
                plans.push(plan);
            }
        }
        if !plans.is_empty() && !report.dry_run {
            carry_out(plans, repo, report)?;
        }
        Ok(self.next >= self.total)
    }

    /// What is to be done with a pack; nothing if it stays as it is. A pack in which nothing died
    /// costs a look at its bits.
    fn plan<S: Storage>(
        &self,
        bits: PackBits,
        repo: &Repo<S>,
        shared: &Shared<S>,
        report: &mut CollectReport,
    ) -> Result<Option<Plan>, StoreError> {
        let Some(row) = repo.pack_row(bits.pack) else { return Ok(None) };
        let live = locked(&shared.live).live_count(bits).map_err(|fault| shared.fault(fault))?;
        report.records_live += u64::from(live);
        if live + row.gone == bits.slots && live > 0 || bits.slots == 0 {
            return Ok(None);
        }
        let place = repo.storage.place(&bits.pack.path());
        let mut leave = |what: String| {
            let note = format!("pack {place} is left as it is: {what}");
            note_once(report, note);
            Ok(None)
        };
        let footer = repo.open_pack(bits.pack).and_then(|file| {
            let fault = |fault: crate::store::footer::PackFault| {
                StoreError::damaged(place.clone(), 0, fault.to_string(), "run repo repair")
            };
            let len = file.len().map_err(|source| StoreError::io("measure", &*place, source))?;
            Ok((read_footer(&file, bits.pack).map_err(fault)?, len))
        });
        let slots = match footer {
            Ok((slots, len)) if slots.len() == bits.slots as usize && len == row.file_bytes => {
                slots
            }
            Ok((slots, _)) => {
                let known = bits.slots;
                return leave(format!(
                    "its footer has {} records, the index {known}: run repo rebuild-index",
                    slots.len()
                ));
            }
            Err(error) => return leave(error.to_string()),
        };
        let judged = match self.judge(bits, slots, repo, shared)? {
            Ok(judged) => judged,
            Err(what) => return leave(what),
        };
        Ok(self.decide(&row, judged, report))
    }

    /// Which records of a pack are given up. The inner error says why the pack must be left.
    fn judge<S: Storage>(
        &self,
        bits: PackBits,
        mut slots: Vec<Slot>,
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
        let row = None;
        let mut change = PackChange { pack: bits.pack, row, gone: Vec::new(), kept: Vec::new() };
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
                None => self.has_lost,
            };
            if must_stay {
                change.kept.push((slot.id, own));
            } else {
                slot.is_gone = true;
                change.gone.push((slot.id, slot.offset));
                gone.push(*slot);
            }
        }
        Ok(Ok(Plan { action: Action::Keep, change, slots, gone }))
    }

    /// Fills in what is done with the pack, and counts it.
    fn decide(&self, row: &PackRow, mut plan: Plan, report: &mut CollectReport) -> Option<Plan> {
        let bytes = |slot: &Slot| slot.end() - slot.offset;
        let live = || plan.slots.iter().filter(|slot| !slot.is_gone);
        let dead_bytes: u64 = plan.gone.iter().map(bytes).sum();
        let pack_use = PackUse {
            file_bytes: row.file_bytes,
            live: live().count() as u32,
            live_bytes: live().map(bytes).sum(),
            dead_bytes,
        };
        plan.action = decide(&pack_use, &self.means);
        let count = plan.gone.len() as u64;
        match plan.action {
            Action::Keep | Action::Rewrite => {
                report.bytes_dead_left += dead_bytes;
                if plan.change.kept.is_empty() {
                    return None;
                }
                // Only what the index must learn.
                plan.change.gone = Vec::new();
                plan.gone = Vec::new();
                plan.change.row = Some(*row);
                return Some(plan);
            }
            Action::Punch => {
                report.packs_punched += 1;
                let checked_ms = row.checked_ms;
                plan.change.row =
                    Some(PackRow { checked_ms, ..PackRow::of(&plan.slots, row.file_bytes) });
            }
            Action::Remove => report.packs_removed += 1,
        }
        report.records_dead += count;
        if report.dry_run {
            let whole = row.file_bytes.saturating_sub(row.hole_bytes);
            report.bytes_freed += if plan.action == Action::Remove { whole } else { dead_bytes };
        }
        Some(plan)
    }
}

fn note_once(report: &mut CollectReport, note: String) {
    tracing::warn!("{note}");
    if report.notes.len() < NOTES_MAX {
        report.notes.push(note);
    }
}

/// Whether files can have holes here; if it cannot be tried, it is presumed: making them then says
/// itself that it cannot, and nothing is lost but the space.
fn can_punch<S: Storage>(storage: &S) -> bool {
    let tried =
        storage.open("scratch", OpenMode::Scratch).and_then(|file| file.punch_hole(0, 4096));
    !tried.is_err_and(|error| error.kind() == std::io::ErrorKind::Unsupported)
}

/// Changes the index and then the disk, as the module's text says.
fn carry_out<S: Storage>(
    plans: Vec<Plan>,
    repo: &Repo<S>,
    report: &mut CollectReport,
) -> Result<(), StoreError> {
    let mut intents = Vec::new();
    for plan in &plans {
        let pack = plan.change.pack;
        match plan.action {
            Action::Remove => intents.push(PackIntent { pack, footer: None }),
            Action::Punch => {
                let bytes = plan.change.row.map_or(0, |row| row.file_bytes);
                let offset = bytes.saturating_sub(footer_bytes(plan.slots.len()));
                let bytes = encode_footer(&plan.slots, offset, pack);
                intents.push(PackIntent { pack, footer: Some(Footer { offset, bytes }) });
            }
            Action::Keep | Action::Rewrite => {}
        }
    }
    if !intents.is_empty() {
        intent::write(&repo.storage, repo.repository(), intents.clone())?;
    }
    let changes: Vec<PackChange> = plans.iter().map(|plan| plan.change.clone()).collect();
    repo.index.change_packs(&changes)?;
    for change in &changes {
        repo.set_pack_row(change.pack, change.row);
    }
    let mut dirs = BTreeSet::new();
    for plan in &plans {
        if plan.action == Action::Remove {
            report.bytes_freed += remove_pack(repo, plan)?;
            dirs.insert(plan.change.pack.dir());
        }
    }
    for dir in dirs {
        let synced = repo.storage.sync_dir(&dir);
        synced.map_err(|source| StoreError::io("sync", repo.storage.place(&dir), source))?;
    }
    for (plan, footer) in plans
        .iter()
        .filter(|plan| plan.action == Action::Punch)
        .zip(intents.iter().filter_map(|intent| intent.footer.as_ref()))
    {
        report.bytes_freed += punch_pack(repo, plan, footer)?;
    }
    Ok(())
}

/// Removes a pack; how many bytes it took on the disk.
fn remove_pack<S: Storage>(repo: &Repo<S>, plan: &Plan) -> Result<u64, StoreError> {
    let path = plan.change.pack.path();
    let fail = |action| {
        let place = repo.storage.place(&path);
        move |source| StoreError::io(action, place, source)
    };
    let file = repo.storage.open(&path, OpenMode::Read).map_err(fail("open"))?;
    let bytes = file.allocated_bytes().map_err(fail("measure"))?;
    drop(file);
    repo.storage.remove(&path).map_err(fail("remove"))?;
    Ok(bytes)
}

/// Marks dead records as gone in the footer, durably, and makes holes of them; how many bytes
/// that gave.
fn punch_pack<S: Storage>(repo: &Repo<S>, plan: &Plan, footer: &Footer) -> Result<u64, StoreError> {
    let path = plan.change.pack.path();
    let fail = |action| {
        let place = repo.storage.place(&path);
        move |source| StoreError::io(action, place, source)
    };
    let file = repo.storage.open(&path, OpenMode::Write).map_err(fail("open"))?;
    let before = file.allocated_bytes().map_err(fail("measure"))?;
    file.write_at(footer.offset, &footer.bytes).map_err(fail("write the footer of"))?;
    file.sync_data().map_err(fail("sync"))?;
    punch(&file, &plan.gone).map_err(fail("make holes in"))?;
    let after = file.allocated_bytes().map_err(fail("measure"))?;
    Ok(before.saturating_sub(after))
}
