//! Which records stand for which addresses: read from the headers of records.
//!
//! In: ranges of block and node numbers that are wanted. Out: ids by session, disk and number.
//! Invariant: bounded by [`ENTRIES_MAX`]. A record's origin is where its content came from first,
//! so what is found here is a hint, and never a proof.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gantry_common::extents::{Run, RunSet};
use gantry_common::ids::{BlockId, SessionId};
use gantry_common::manage::RepairReport;
use gantry_common::wire::TaskNumber;

use crate::store::error::StoreError;
use crate::store::footer::read_footer;
use crate::store::index::Location;
use crate::store::layout::PackNumber;
use crate::store::map_node::decode_node;
use crate::store::record::{RECORD_HEAD_BYTES, RecordDecoder, RecordHead, RecordKind};
use crate::store::repo::Repo;
use crate::store::storage::{OpenMode, Storage, StorageFile};

/// Records remembered at once.
const ENTRIES_MAX: usize = 4 << 20;

/// Numbers that are wanted: of the children of nodes of each level.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    by_level: BTreeMap<u8, RunSet>,
}

impl Ranges {
    /// Children of a node of this level.
    pub(super) fn add(&mut self, level: u8, first: u64, count: u64) {
        self.by_level.entry(level).or_default().insert(Run { first, count });
    }

    fn contains(&self, level: u8, number: u64) -> bool {
        self.by_level.get(&level).is_some_and(|numbers| numbers.contains(number))
    }
}

/// A disk of a session, the level of the node whose child it is, and its number.
type Address = (SessionId, TaskNumber, u8, u64);

/// What the headers say.
#[derive(Debug, Default)]
pub(super) struct Origins {
    ids: HashMap<Address, Vec<BlockId>>,
    /// Sessions that no point is of: deleted ones, and those whose progress another took over.
    pub(super) orphans: BTreeSet<SessionId>,
}

impl Origins {
    /// Reads every record's header.
    pub(super) fn read<S: Storage>(
        repo: &Repo<S>,
        ranges: &Ranges,
        sessions: &BTreeSet<SessionId>,
        report: &mut RepairReport,
    ) -> Result<Origins, StoreError> {
        let mut origins = Origins::default();
        let mut decoder = RecordDecoder::new(repo.id_key());
        for pack in repo.packs().into_keys() {
            if origins.ids.len() >= ENTRIES_MAX {
                let note = "more records than are remembered: repair again for the rest";
                report.notes.push(note.into());
                break;
            }
            origins.read_pack(repo, pack, ranges, sessions, &mut decoder)?;
        }
        Ok(origins)
    }

    fn read_pack<S: Storage>(
        &mut self,
        repo: &Repo<S>,
        pack: PackNumber,
        ranges: &Ranges,
        sessions: &BTreeSet<SessionId>,
        decoder: &mut RecordDecoder,
    ) -> Result<(), StoreError> {
        let Ok(file) = repo.storage.open(&pack.path(), OpenMode::Read) else { return Ok(()) };
        let Ok(slots) = read_footer(&file, pack) else { return Ok(()) };
        for (position, slot) in (0..).zip(&slots).filter(|(_, slot)| !slot.is_gone) {
            let mut bytes = [0; RECORD_HEAD_BYTES];
            if file.read_exact_at(slot.offset, &mut bytes).is_err() {
                continue;
            }
            let Ok(head) = RecordHead::decode(&bytes, repo.repository()) else { continue };
            let (origin, at) = (head.origin, Location::of(slot, position, pack));
            let level = match head.kind {
                RecordKind::Block => 0,
                RecordKind::Node => match repo.check_record(decoder, &head.id, &at) {
                    Ok(raw) => {
                        (0..3).find(|level| decode_node(&raw, *level).is_some()).unwrap_or(0) + 1
                    }
                    Err(_) => continue,
                },
            };
            if head.id == slot.id && ranges.contains(level, origin.block) {
                if !sessions.contains(&origin.session) {
                    self.orphans.insert(origin.session);
                }
                let address = (origin.session, origin.task, level, origin.block);
                let ids = self.ids.entry(address).or_default();
                if !ids.contains(&head.id) {
                    ids.push(head.id);
                }
            }
        }
        Ok(())
    }

    /// What a session wrote at a child's number: the newest record last.
    pub(super) fn of(
        &self,
        session: SessionId,
        task: TaskNumber,
        level: u8,
        number: u64,
    ) -> &[BlockId] {
        self.ids.get(&(session, task, level, number)).map_or(&[], Vec::as_slice)
    }
}
