//! What a collection changes in the index: entries of records that it gives up, rows of packs.
//!
//! In: changes by pack. Out: one durable transaction. Invariant: an entry goes only if it names
//! exactly the record that is given up; where it names another place, it stays.

use gantry_common::ids::BlockId;
use redb::ReadableTable;

use super::{BLOCKS, Index, Location, PACKS, PackRow};
use crate::store::error::StoreError;
use crate::store::layout::PackNumber;

/// What a collection changes about a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackChange {
    /// The pack.
    pub pack: PackNumber,
    /// Its row from now on; nothing if the pack goes.
    pub row: Option<PackRow>,
    /// Records that are given up: id and offset.
    pub gone: Vec<(BlockId, u64)>,
    /// Records whose entries named a place that cannot be used, and name these from now on.
    pub kept: Vec<(BlockId, Location)>,
}

/// A record that stands at another place from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Its id.
    pub id: BlockId,
    /// Where it stood: pack and offset.
    pub from: (PackNumber, u64),
    /// Where it stands.
    pub to: Location,
}

impl Index {
    /// Lets entries name the new places of records that were copied, durably. An entry that names
    /// another place than the old one stays; what is known of a record goes with it.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn move_records(&self, moves: &[Move]) -> Result<(), StoreError> {
        self.transact(true, |txn| {
            let mut blocks = txn.open_table(BLOCKS)?;
            for Move { id, from, to } in moves {
                let at = blocks.get(&id.0)?.and_then(|row| Location::decode(row.value()));
                if let Some(at) = at.filter(|at| (at.pack, at.offset) == *from) {
                    let to = Location { verified: at.verified, damaged: at.damaged, ..*to };
                    blocks.insert(&id.0, &to.encode())?;
                }
            }
            Ok(())
        })
    }

    /// Makes these changes, and every earlier one, durable.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn change_packs(&self, changes: &[PackChange]) -> Result<(), StoreError> {
        self.transact(true, |txn| {
            let mut has_kept = false;
            {
                let mut blocks = txn.open_table(BLOCKS)?;
                let mut packs = txn.open_table(PACKS)?;
                for change in changes {
                    for (id, offset) in &change.gone {
                        let at = blocks.get(&id.0)?.and_then(|row| Location::decode(row.value()));
                        if at.is_some_and(|at| (at.pack, at.offset) == (change.pack, *offset)) {
                            blocks.remove(&id.0)?;
                        }
                    }
                    for (id, at) in &change.kept {
                        blocks.insert(&id.0, &at.encode())?;
                        has_kept = true;
                    }
                    match &change.row {
                        Some(row) => packs.insert(change.pack.0, &row.encode()).map(drop)?,
                        None => packs.remove(change.pack.0).map(drop)?,
                    }
                }
            }
            if has_kept { Index::forget_healed(txn) } else { Ok(()) }
        })
    }
}
