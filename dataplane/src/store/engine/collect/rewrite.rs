//! Emptying packs that are mostly dead: their live records move to a new pack, and they go.
//!
//! In: packs that were judged, a budget. Out: new packs, sealed and durable; the index names the
//! new places; then the old packs are removed like any other that is wholly dead. Records are
//! copied as they are, after their headers and checksums were found right; in steps of
//! [`limits::COLLECT_COPY_BYTES`]. Must not: remove a pack from which a restore may still read, or
//! one with a live record that is damaged.

use std::collections::VecDeque;

use gantry_common::ids::SessionId;
use gantry_common::limits;
use gantry_common::manage::CollectReport;

use super::Shared;
use super::plan::{Plan, judge_pack, note_pack};
use super::policy::{Action, Means, decide};
use super::sweep::carry_out;
use crate::store::error::StoreError;
use crate::store::footer::Slot;
use crate::store::index::{Location, Move};
use crate::store::inquiries::Inquiry;
use crate::store::layout::PackNumber;
use crate::store::live_map::PackBits;
use crate::store::pack::{PackNumbers, PackSet};
use crate::store::pack_scan::PackBytes;
use crate::store::repo::Repo;
use crate::store::storage::{OpenMode, Storage, StorageFile};

/// Packs of collections belong to no session.
const NO_SESSION: SessionId = SessionId([0; 16]);

/// A pack whose live records are checked and then copied.
#[derive(Debug)]
struct Source<F> {
    plan: Plan,
    file: F,
    /// Its live records, by position.
    live: Vec<(u32, Slot)>,
    /// The next of them.
    next: usize,
    /// All of them were found right.
    is_checked: bool,
    moves: Vec<Move>,
}

/// Where rewriting stands.
#[derive(Debug)]
pub(super) struct Rewrite<S: Storage> {
    waiting: VecDeque<PackBits>,
    source: Option<Source<S::File>>,
    out: PackSet<S::File>,
    /// Copied whole, waiting for the new pack to be sealed.
    copied: Vec<Source<S::File>>,
    copied_bytes: u64,
    means: Means,
    has_lost: bool,
}

impl<S: Storage> Rewrite<S> {
    pub(super) fn new(means: Means, has_lost: bool) -> Rewrite<S> {
        Rewrite {
            means,
            has_lost,
            waiting: VecDeque::new(),
            source: None,
            out: PackSet::new(),
            copied: Vec::new(),
            copied_bytes: 0,
        }
    }

    pub(super) fn push(&mut self, bits: PackBits) {
        self.waiting.push_back(bits);
    }

    /// A piece of work; true when nothing is left.
    pub(super) fn step(
        &mut self,
        repo: &Repo<S>,
        shared: &Shared<S>,
        numbers: &mut PackNumbers,
        report: &mut CollectReport,
    ) -> Result<bool, StoreError> {
        let Some(mut source) = self.source.take() else {
            if self.copied_bytes < limits::PACK_BYTES_TARGET
                && let Some(bits) = self.waiting.pop_front()
            {
                self.source = self.begin(bits, repo, shared, report)?;
                return Ok(false);
            }
            if !self.copied.is_empty() {
                self.finish(repo, report)?;
            }
            return Ok(self.waiting.is_empty());
        };
        let is_over = match source.is_checked {
            false => source.check(repo, report)?,
            true => source.copy(repo, &mut self.out, numbers)?,
        };
        match is_over {
            Progress::More => self.source = Some(source),
            Progress::Over => {
                self.copied_bytes += source.live_bytes();
                self.copied.push(source);
            }
            Progress::Left => source.plan.count_as(Action::Keep, report),
        }
        Ok(false)
    }

    /// Removes what was begun and serves nothing yet.
    pub(super) fn abandon(&mut self, repo: &Repo<S>) {
        for pack in self.out.packs.drain(..) {
            let _ = repo.storage.remove(&pack.number.path());
        }
    }

    /// Judges a pack once more and opens it; nothing if it is left, or gets holes instead.
    fn begin(
        &self,
        bits: PackBits,
        repo: &Repo<S>,
        shared: &Shared<S>,
        report: &mut CollectReport,
    ) -> Result<Option<Source<S::File>>, StoreError> {
        let judged = judge_pack(bits, self.has_lost, repo, shared, report)?;
        let Some(mut plan) = judged else { return Ok(None) };
        let live_bytes = plan.pack_use().live_bytes;
        let fail = |action| {
            let place = repo.storage.place(&bits.pack.path());
            move |source| StoreError::io(action, place, source)
        };
        let free = repo.storage.free_bytes().map_err(fail("measure space for"))?;
        let has_room = free >= live_bytes + 2 * limits::REPOSITORY_FREE_BYTES_MIN;
        if !has_room || !repo.pinned_points().is_empty() {
            // No room, or a restore may know the old places: holes give back nearly as much.
            let means = Means { rewrite_bytes: 0, ..self.means };
            let action = decide(&plan.pack_use(), &means);
            plan.count_as(action, report);
            if action != Action::Keep {
                carry_out(vec![plan], repo, report)?;
            }
            return Ok(None);
        }
        if !plan.change.kept.is_empty() {
            let change = plan.only_kept();
            repo.index.change_packs(&[change])?;
        }
        let ids: Vec<_> = plan.live().map(|(_, slot)| slot.id).collect();
        let named = repo.index.find(&ids)?;
        // What the index names elsewhere is not needed here.
        let live = plan
            .live()
            .zip(named)
            .filter(|((position, slot), named)| {
                let own = Location::of(slot, *position, bits.pack);
                named.is_some_and(|at| at.is_same_place(&own))
            })
            .map(|((position, slot), _)| (position, *slot))
            .collect();
        let file = repo.storage.open(&bits.pack.path(), OpenMode::Read).map_err(fail("open"))?;
        Ok(Some(Source { plan, file, live, next: 0, is_checked: false, moves: Vec::new() }))
    }

    /// Seals the new packs, lets the index name them, and removes the old ones.
    fn finish(&mut self, repo: &Repo<S>, report: &mut CollectReport) -> Result<(), StoreError> {
        self.copied_bytes = 0;
        let mut sealed = Vec::new();
        for pack in &mut self.out.packs {
            sealed.push(pack.seal_waiting()?);
        }
        for (pack, bytes) in std::mem::take(&mut self.out.packs).iter().zip(&sealed) {
            repo.add_pack(pack.number, &pack.slots, *bytes, &|_| true, false)?;
        }
        let new_bytes: u64 = sealed.iter().sum();
        let copied = std::mem::take(&mut self.copied);
        let moves: Vec<Move> = copied.iter().flat_map(|source| source.moves.clone()).collect();
        repo.index.move_records(&moves)?;
        report.bytes_rewritten += new_bytes;
        report.packs_rewritten += copied.len() as u64;
        let is_read = !repo.pinned_points().is_empty();
        for mut source in copied {
            source.plan.count_as(Action::Rewrite, report);
            if is_read {
                // A restore that began meanwhile may know the old places.
                let place = repo.storage.place(&source.pack().path());
                let why = "a restore may still read it";
                note_pack(report, format!("pack {place} goes with the next collection: {why}"));
            } else {
                carry_out(vec![source.plan.whole()], repo, report)?;
            }
        }
        report.bytes_freed = report.bytes_freed.saturating_sub(new_bytes);
        Ok(())
    }
}

enum Progress {
    More,
    Over,
    Left,
}

impl<F: StorageFile> Source<F> {
    fn pack(&self) -> PackNumber {
        self.plan.change.pack
    }

    fn live_bytes(&self) -> u64 {
        self.live.iter().map(|(_, slot)| slot.end() - slot.offset).sum()
    }

    /// Finds the next records right.
    fn check<S: Storage<File = F>>(
        &mut self,
        repo: &Repo<S>,
        report: &mut CollectReport,
    ) -> Result<Progress, StoreError> {
        let pack = self.pack();
        let place = repo.storage.place(&pack.path());
        let fail = |source| StoreError::io("read", place.clone(), source);
        let mut bytes = PackBytes::new(&self.file).map_err(fail)?;
        let mut done = 0;
        while let Some((position, slot)) = self.live.get(self.next) {
            if done >= limits::COLLECT_COPY_BYTES {
                return Ok(Progress::More);
            }
            let read = bytes.record(slot.offset, repo.repository());
            if !read.is_ok_and(|(head, _)| slot.matches(&head)) {
                let (at, id) = (Location::of(slot, *position, pack), slot.id);
                let note = format!(
                    "pack {place} is left as it is: its record at byte {} is damaged; run repo \
                     verify",
                    slot.offset
                );
                note_pack(report, note);
                repo.inquiries.push(Inquiry::Doubt(id, at));
                return Ok(Progress::Left);
            }
            done += slot.end() - slot.offset;
            self.next += 1;
        }
        (self.next, self.is_checked) = (0, true);
        Ok(Progress::More)
    }

    /// Copies the next records, and lets the disk have them, so that sealing need not wait long.
    fn copy<S: Storage<File = F>>(
        &mut self,
        repo: &Repo<S>,
        out: &mut PackSet<F>,
        numbers: &mut PackNumbers,
    ) -> Result<Progress, StoreError> {
        let progress = self.copy_next(repo, out, numbers)?;
        if let Some(pack) = out.packs.last() {
            let synced = pack.file.sync_data();
            synced.map_err(|source| StoreError::io("sync", pack.place.clone(), source))?;
        }
        Ok(progress)
    }

    fn copy_next<S: Storage<File = F>>(
        &mut self,
        repo: &Repo<S>,
        out: &mut PackSet<F>,
        numbers: &mut PackNumbers,
    ) -> Result<Progress, StoreError> {
        let old = self.pack();
        let place = repo.storage.place(&old.path());
        let mut bytes = PackBytes::new(&self.file)
            .map_err(|source| StoreError::io("read", place.clone(), source))?;
        let mut done = 0;
        while let Some((_, slot)) = self.live.get(self.next) {
            if done >= limits::COLLECT_COPY_BYTES {
                return Ok(Progress::More);
            }
            let damaged = |what: String| {
                let remedy = "run repo verify, then collect again";
                StoreError::damaged(place.clone(), slot.offset, what, remedy)
            };
            let head = bytes.record(slot.offset, repo.repository()).map(|(head, _)| head);
            let head = head.map_err(|fault| damaged(fault.to_string()))?;
            let len = (slot.end() - slot.offset) as usize;
            let record = bytes.at(slot.offset, len);
            if record.len() != len {
                return Err(damaged("the file ends within the record".to_owned()));
            }
            let (storage, repository) = (&repo.storage, repo.repository());
            let pack = out.room_for(storage, repository, NO_SESSION, numbers, &head)?;
            let (position, offset) = pack.place(&head, None);
            pack.file
                .write_at(offset, record)
                .map_err(|source| StoreError::io("write", pack.place.clone(), source))?;
            pack.handle_written(position);
            let to = Location::of(&Slot { offset, ..*slot }, position, pack.number);
            self.moves.push(Move { id: slot.id, from: (old, slot.offset), to });
            done += len as u64;
            self.next += 1;
        }
        Ok(Progress::Over)
    }
}
