//! Giving back: removes packs in which nothing is live, makes holes where enough is dead.
//!
//! In: complete marks. Out: space. In steps of a few packs each. Order of a step: the intent is
//! durable; entries of dead records leave the index, durably; only then packs are removed, or
//! footers are written that mark dead records as gone, made durable, and then holes are made.
//! Packs that are worth rewriting come after all others. Invariant: the marks do not change any
//! more. Must not: give up a record that is the only good copy of something that is needed.

use std::collections::BTreeSet;

use gantry_common::limits;
use gantry_common::manage::{CollectOptions, CollectReport};

use super::intent::{self, Footer, PackIntent, punch};
use super::plan::{Plan, judge_pack};
use super::policy::{Action, Means, decide};
use super::rewrite::Rewrite;
use super::{Shared, locked};
use crate::store::error::StoreError;
use crate::store::footer::{encode_footer, footer_bytes};
use crate::store::index::PackChange;
use crate::store::live_map::PackBits;
use crate::store::pack::PackNumbers;
use crate::store::repo::Repo;
use crate::store::storage::{OpenMode, Storage, StorageFile};

/// Where giving back stands.
#[derive(Debug)]
pub(super) struct Sweep<S: Storage> {
    next: usize,
    total: usize,
    means: Means,
    /// Something that is needed was not found: a record without an entry may be it.
    has_lost: bool,
    rewrite: Rewrite<S>,
}

impl<S: Storage> Sweep<S> {
    pub(super) fn new(
        repo: &Repo<S>,
        shared: &Shared<S>,
        options: &CollectOptions,
        has_lost: bool,
    ) -> Sweep<S> {
        let stored: u64 =
            repo.packs().values().map(|row| row.file_bytes.saturating_sub(row.hole_bytes)).sum();
        let means = Means {
            can_punch: can_punch(&repo.storage),
            rewrite_bytes: options
                .rewrite_bytes_max
                .unwrap_or(stored / limits::COLLECT_REWRITE_PARTS),
        };
        let total = locked(&shared.live).packs().len();
        Sweep { next: 0, total, means, has_lost, rewrite: Rewrite::new(means, has_lost) }
    }

    pub(super) fn progress(&self) -> (u64, u64) {
        (self.next as u64, self.total as u64)
    }

    /// Looks at the next packs, then rewrites; true when everything is done.
    pub(super) fn step(
        &mut self,
        repo: &Repo<S>,
        shared: &Shared<S>,
        numbers: &mut PackNumbers,
        report: &mut CollectReport,
    ) -> Result<bool, StoreError> {
        if self.next >= self.total {
            return self.rewrite.step(repo, shared, numbers, report);
        }
        let mut plans = Vec::new();
        let mut slots = 0;
        for _ in 0..limits::COLLECT_COUNTED_PACKS_MAX {
            let is_full = plans.len() >= limits::COLLECT_BATCH_PACKS_MAX
                || slots >= limits::COLLECT_BATCH_SLOTS_MAX;
            let bits = locked(&shared.live).packs().get(self.next).copied();
            let Some(bits) = bits.filter(|_| !is_full) else { break };
            self.next += 1;
            if let Some(plan) = self.look(bits, repo, shared, report)? {
                slots += plan.slots.len();
                plans.push(plan);
            }
        }
        if !plans.is_empty() && !report.dry_run {
            carry_out(plans, repo, report)?;
        }
        Ok(false)
    }

    /// Removes what was begun and serves nothing yet.
    pub(super) fn abandon(&mut self, repo: &Repo<S>) {
        self.rewrite.abandon(repo);
    }

    /// What is to be done with a pack now; nothing if it stays as it is for the moment. A pack in
    /// which nothing died costs a look at its bits.
    fn look(
        &mut self,
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
        let Some(mut plan) = judge_pack(bits, self.has_lost, repo, shared, report)? else {
            return Ok(None);
        };
        let pack_use = plan.pack_use();
        plan.action = decide(&pack_use, &self.means);
        if plan.action != Action::Rewrite || report.dry_run {
            plan.count_as(plan.action, report);
        }
        if report.dry_run {
            plan.estimate(report);
        }
        match plan.action {
            Action::Punch | Action::Remove => return Ok(Some(plan)),
            Action::Keep => {}
            Action::Rewrite => {
                self.means.rewrite_bytes -= pack_use.live_bytes;
                if !report.dry_run {
                    self.rewrite.push(bits);
                }
                return Ok(None);
            }
        }
        if plan.change.kept.is_empty() {
            return Ok(None);
        }
        plan.change = plan.only_kept();
        Ok(Some(plan))
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
pub(super) fn carry_out<S: Storage>(
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
