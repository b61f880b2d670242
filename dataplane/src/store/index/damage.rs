//! What the index remembers of damage: is any known, which blocks of which trees are lost, which
//! nodes were given up for good.
//!
//! In: records found good or bad, results of walks over trees. Out: whether a base must be looked
//! through, and what is lost below a root. Invariant: a row of lost blocks never names too few of
//! those that are known to be lost: new damage drops all rows in the same transaction. Everything
//! here may be lost with the index: then damage is presumed until a verification of everything.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use gantry_common::extents::Run;
use gantry_common::ids::BlockId;
use gantry_common::limits;
use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{BLOCKS, Index, Location, META, META_SUSPECT, PACKS, PackRow, guarded};
use crate::store::error::StoreError;
use crate::store::fields::Fields;
use crate::store::layout::PackNumber;

/// Lost blocks below a root, as runs of two `u64`; a row without runs: none are.
const LOST: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("lost");
/// Nodes that no repair could bring back.
const GIVEN_UP: TableDefinition<&[u8; 32], ()> = TableDefinition::new("given_up");
const META_EPOCH: &str = "epoch";
const META_GENERATION: &str = "damage generation";
const RUN_BYTES: usize = 16;

/// What was found at a record's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It decodes to what its id says.
    Good,
    /// It is not what was written.
    Damaged,
}

/// What a walk over trees found, all at once.
#[derive(Debug, Default)]
pub struct Walked {
    /// Lost blocks by root.
    pub rows: Vec<(BlockId, Vec<Run>)>,
    /// Every tree that there is was walked: rows of other trees are stale. Then also says whether
    /// damage is still known.
    pub all: Option<bool>,
}

impl Index {
    pub(super) fn open_damage_tables(txn: &WriteTransaction) -> Result<(), redb::TableError> {
        txn.open_table(LOST)?;
        txn.open_table(GIVEN_UP).map(drop)
    }

    /// Whether a node was given up: no repair could bring it back, and a collection need not stop
    /// because it is missing. Ask only for nodes that cannot be read: one that was written anew
    /// stays in the table.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn given_up(&self, id: &BlockId) -> Result<bool, StoreError> {
        guarded(&self.place, || {
            let txn = self.db.begin_read().map_err(|error| self.fault(error))?;
            let table = txn.open_table(GIVEN_UP).map_err(|error| self.fault(error))?;
            Ok(table.get(&id.0).map_err(|error| self.fault(error))?.is_some())
        })
    }

    /// Gives nodes up, durably.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn give_up(&self, nodes: &[BlockId]) -> Result<(), StoreError> {
        self.transact(true, |txn| {
            let mut table = txn.open_table(GIVEN_UP)?;
            for id in nodes {
                table.insert(&id.0, ())?;
            }
            Ok(())
        })
    }

    /// Remembers that these records, at these places, were found good or damaged; true if damage
    /// came to light that was not known. An entry that names another place is left alone.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn mark(&self, checked: &[(BlockId, Location, Finding)]) -> Result<bool, StoreError> {
        let has_damage = checked.iter().any(|(_, _, finding)| *finding == Finding::Damaged);
        let is_new = self.transact(has_damage, |txn| {
            let mut is_new = false;
            {
                let mut blocks = txn.open_table(BLOCKS)?;
                for (id, at, finding) in checked {
                    let found =
                        blocks.get(&id.0)?.and_then(|value| Location::decode(value.value()));
                    let Some(found) = found.filter(|found| found.is_same_place(at)) else {
                        continue;
                    };
                    let damaged = *finding == Finding::Damaged;
                    is_new |= damaged && !found.damaged;
                    if found.verified == damaged || found.damaged != damaged {
                        let marked = Location { verified: !damaged, damaged, ..found };
                        blocks.insert(&id.0, &marked.encode())?;
                    }
                }
            }
            if is_new { self.suspect_in(txn).map(|()| true) } else { Ok(false) }
        })?;
        Ok(is_new)
    }

    /// Entries that name places of a pack at which there is no record, as far as they are not known
    /// to be damaged: what a footer that is lost had listed, and no look at the pack finds. Walks the
    /// whole index: only for a pack whose footer cannot be read.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn strays(
        &self,
        pack: PackNumber,
        there: &HashSet<u64>,
    ) -> Result<Vec<(BlockId, Location)>, StoreError> {
        guarded(&self.place, || {
            let txn = self.db.begin_read().map_err(|error| self.fault(error))?;
            let table = txn.open_table(BLOCKS).map_err(|error| self.fault(error))?;
            let mut strays = Vec::new();
            for row in table.iter().map_err(|error| self.fault(error))? {
                let (id, row) = row.map_err(|error| self.fault(error))?;
                let at = Location::decode(row.value()).filter(|at| at.pack == pack && !at.damaged);
                if let Some(at) = at.filter(|at| !there.contains(&at.offset)) {
                    strays.push((BlockId(*id.value()), at));
                }
            }
            Ok(strays)
        })
    }

    /// Notes when every record of a pack was last read, and how many were damaged.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn set_checked(
        &self,
        pack: PackNumber,
        checked_ms: u64,
        damaged: u32,
    ) -> Result<(), StoreError> {
        self.transact(false, |txn| {
            let mut packs = txn.open_table(PACKS)?;
            let row = packs.get(pack.0)?.and_then(|row| PackRow::decode(row.value()));
            if let Some(row) = row {
                packs.insert(pack.0, &PackRow { checked_ms, damaged, ..row }.encode())?;
            }
            Ok(())
        })
    }

    /// Points ids to good copies where they have no place, one in a pack that is not there (as
    /// `is_live` says), or a damaged one; true for each that now points to its copy.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn point_to_copies(
        &self,
        copies: &[(BlockId, Location)],
        is_live: &dyn Fn(PackNumber) -> bool,
    ) -> Result<Vec<bool>, StoreError> {
        self.transact(false, |txn| {
            let mut pointed = Vec::with_capacity(copies.len());
            {
                let mut blocks = txn.open_table(BLOCKS)?;
                for (id, copy) in copies {
                    let old = blocks.get(&id.0)?.and_then(|value| Location::decode(value.value()));
                    // The right place under wrong lengths is no place.
                    let same = |old: &Location| {
                        *old == Location { verified: old.verified, damaged: false, ..*copy }
                    };
                    let serves = old.is_some_and(|old| {
                        let here = old.is_same_place(copy);
                        !old.damaged && is_live(old.pack) && (!here || same(&old))
                    });
                    if !serves {
                        blocks.insert(&id.0, &copy.encode())?;
                    }
                    pointed.push(!serves);
                }
            }
            if pointed.contains(&true) {
                Index::forget_healed(txn)?;
            }
            Ok(pointed)
        })
    }

    /// Whether records are known to be damaged or missing, or might be, so that a base must be
    /// looked through before anything is taken over from it unread.
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Grows with each piece of damage that was not known before.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn damage_generation(&self) -> Result<u64, StoreError> {
        guarded(&self.place, || {
            let txn = self.db.begin_read().map_err(|error| self.fault(error))?;
            let meta = txn.open_table(META).map_err(|error| self.fault(error))?;
            generation_in(&meta).map_err(|error| self.fault(error))
        })
    }

    /// Notes that there may be damage nobody has looked for yet: packs are gone, or the index that
    /// knew of it is.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn set_suspect(&self) -> Result<(), StoreError> {
        self.transact(true, |txn| self.suspect_in(txn))
    }

    fn suspect_in(&self, txn: &WriteTransaction) -> Result<(), redb::Error> {
        let mut meta = txn.open_table(META)?;
        meta.insert(META_SUSPECT, [1u8].as_slice())?;
        // In the transaction: whoever sees the old number has not seen the damage either.
        let generation = generation_in(&meta)? + 1;
        meta.insert(META_GENERATION, generation.to_le_bytes().as_slice())?;
        txn.open_table(LOST)?.retain(|_, _| false)?;
        self.suspect.store(true, Ordering::Release);
        Ok(())
    }

    /// Blocks that are lost below this root; nothing if nobody has walked it since damage was last
    /// found. Of no meaning unless [`Index::is_suspect`].
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn lost_blocks(&self, root: &BlockId) -> Result<Option<Vec<Run>>, StoreError> {
        guarded(&self.place, || {
            let txn = self.db.begin_read().map_err(|error| self.fault(error))?;
            let table = txn.open_table(LOST).map_err(|error| self.fault(error))?;
            let row = table.get(&root.0).map_err(|error| self.fault(error))?;
            Ok(row.map(|row| decode_runs(row.value())))
        })
    }

    /// Takes in what a walk found; false if damage came to light since `generation`, so that it is
    /// not the whole truth and was thrown away.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn keep_walked(&self, walked: &Walked, generation: u64) -> Result<bool, StoreError> {
        let suspect = walked.all;
        let kept = self.transact(suspect.is_some(), |txn| {
            if generation_in(&txn.open_table(META)?)? != generation {
                return Ok(false);
            }
            let mut table = txn.open_table(LOST)?;
            if suspect.is_some() {
                table.retain(|_, _| false)?;
            }
            for (root, runs) in &walked.rows {
                table.insert(&root.0, encode_runs(runs).as_slice())?;
            }
            if let Some(suspect) = suspect {
                let mut meta = txn.open_table(META)?;
                match suspect {
                    true => meta.insert(META_SUSPECT, [1u8].as_slice()).map(drop)?,
                    false => meta.remove(META_SUSPECT).map(drop)?,
                }
                self.suspect.store(suspect, Ordering::Release);
            }
            Ok(true)
        })?;
        Ok(kept)
    }

    /// Lost blocks may have come back: rows that name some are forgotten, and walked anew when
    /// they are asked for.
    pub(super) fn forget_healed(txn: &WriteTransaction) -> Result<(), redb::Error> {
        txn.open_table(LOST)?.retain(|_, runs| runs.is_empty())?;
        Ok(())
    }

    /// The newest epoch that it was opened under, or that a pack which it knows is of: entries of
    /// packs that are gone stay, so no later epoch may be one of these again.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn newest_epoch(&self) -> Result<u32, StoreError> {
        let newest = self.packs()?.last_key_value().map_or(0, |(pack, _)| pack.epoch());
        guarded(&self.place, || {
            let txn = self.db.begin_read().map_err(|error| self.fault(error))?;
            let meta = txn.open_table(META).map_err(|error| self.fault(error))?;
            let value = meta.get(META_EPOCH).map_err(|error| self.fault(error))?;
            let noted = value.and_then(|value| Fields::new(value.value()).u32()).unwrap_or(0);
            Ok(newest.max(noted))
        })
    }

    /// Notes the epoch that it is opened under.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn note_epoch(&self, epoch: u32) -> Result<(), StoreError> {
        self.transact(false, |txn| {
            txn.open_table(META)?.insert(META_EPOCH, epoch.to_le_bytes().as_slice())?;
            Ok(())
        })
    }

    pub(super) fn transact<T>(
        &self,
        durable: bool,
        act: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        guarded(&self.place, || {
            let mut txn = self.db.begin_write().map_err(|error| self.fault(error))?;
            let durability = if durable { Durability::Immediate } else { Durability::None };
            txn.set_durability(durability).map_err(|error| self.fault(error))?;
            // An opening after a crash then need not walk the whole tree.
            txn.set_quick_repair(durable && self.writable);
            let result = act(&txn).map_err(|error| self.fault(error))?;
            txn.commit().map_err(|error| self.fault(error))?;
            Ok(result)
        })
    }
}

fn generation_in(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<u64, redb::StorageError> {
    let value = meta.get(META_GENERATION)?;
    Ok(value.and_then(|value| Fields::new(value.value()).u64()).unwrap_or(0))
}

fn encode_runs(runs: &[Run]) -> Vec<u8> {
    let mut out = Vec::with_capacity(runs.len() * RUN_BYTES);
    for run in runs {
        out.extend(run.first.to_le_bytes());
        out.extend(run.count.to_le_bytes());
    }
    out
}

fn decode_runs(bytes: &[u8]) -> Vec<Run> {
    let run = |bytes| {
        let mut fields = Fields::new(bytes);
        Some(Run { first: fields.u64()?, count: fields.u64()? })
    };
    bytes.chunks_exact(RUN_BYTES).take(limits::RUNS_MAX).filter_map(run).collect()
}
