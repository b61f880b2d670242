//! The packs that one task is writing, and what waits in them to become durable.
//!
//! In: record heads. Out: places in a pack file, footers. A pack goes Open → Closing (no more
//! records; writes and their sync under way) → Footed (footer written, its sync under way) → sealed
//! and gone from here. Invariants: a block is reported durable only out of `synced`, after the sync
//! that was submitted when its write had completed; a footer is written only when all that it lists
//! is durable.

use std::collections::{BTreeMap, HashMap};
use std::io;

use gantry_common::ids::{BlockId, RepositoryId, SessionId};
use gantry_common::limits;

use super::error::StoreError;
use super::footer::{PACK_HEAD_BYTES, PackHead, Slot, encode_footer};
use super::layout::{ALIGN, PACKS, PackNumber};
use super::record::RecordHead;
use super::storage::{OpenMode, Storage, StorageFile};

/// "No space left on device", errno(3) of Linux.
const ENOSPC: i32 = 28;

/// Hands out pack numbers under one epoch.
#[derive(Debug)]
pub struct PackNumbers {
    /// The writer's epoch.
    pub epoch: u32,
    next: u32,
}

impl PackNumbers {
    /// From the first number of `epoch`.
    pub fn new(epoch: u32) -> PackNumbers {
        PackNumbers { epoch, next: 0 }
    }

    fn take(&mut self) -> Result<PackNumber, StoreError> {
        self.next = self.next.checked_add(1).ok_or_else(|| {
            StoreError::Refused("pack numbers of this epoch are used up: restart the mover".into())
        })?;
        Ok(PackNumber::new(self.epoch, self.next))
    }
}

/// Where a pack stands on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackPhase {
    /// Takes records.
    Open,
    /// Waits for its writes, and for their sync.
    Closing,
    /// Waits for its last sync; the file has this many bytes.
    Footed(u64),
}

/// A pack that is being written.
#[derive(Debug)]
pub struct OpenPack<F> {
    /// Its number.
    pub number: PackNumber,
    /// Its file.
    pub file: F,
    /// For messages.
    pub place: String,
    /// Its records, in order.
    pub slots: Vec<Slot>,
    /// Where it stands.
    pub phase: PackPhase,
    end: u64,
    /// Records end here: what was reserved.
    room_end: u64,
    by_id: HashMap<BlockId, u32>,
    /// Slots whose write is under way, with the block addresses that wait for it.
    writing: BTreeMap<u32, Vec<u64>>,
    /// Addresses whose records are written, for the next sync.
    written: Vec<(u64, BlockId)>,
    /// Addresses that the sync under way makes durable.
    syncing: Option<Vec<(u64, BlockId)>>,
    /// Slots that the sync under way makes durable.
    slots_syncing: Vec<u32>,
    /// Slots that are durable, and whether a block in them was reported so.
    slots_durable: Vec<u32>,
    is_acknowledged: bool,
    /// Something was written that no sync covers.
    is_dirty: bool,
}

impl<F: StorageFile> OpenPack<F> {
    fn create<S: Storage<File = F>>(
        storage: &S,
        repository: RepositoryId,
        session: SessionId,
        number: PackNumber,
        record_bytes: u64,
    ) -> Result<OpenPack<F>, StoreError> {
        let place = storage.place(&number.path());
        let fail = |action| {
            let place = place.clone();
            move |source| StoreError::io(action, place, source)
        };
        let free = storage.free_bytes().map_err(fail("find space for"))?;
        let room_end = room(free, PACK_HEAD_BYTES + record_bytes)
            .ok_or_else(|| io::Error::from_raw_os_error(ENOSPC))
            .map_err(fail("reserve space for"))?;
        storage.create_dir(&number.dir()).map_err(fail("create the folder of"))?;
        storage.sync_dir(PACKS).map_err(fail("sync the folder of"))?;
        let file = storage.open(&number.path(), OpenMode::CreatePack).map_err(fail("create"))?;
        match file.allocate(room_end) {
            // Without the reservation, writes say themselves when the disk is full.
            Err(error) if can_go_without(&error) => {}
            result => result.map_err(fail("reserve space for"))?,
        }
        let head = PackHead { repository, number, session };
        file.write_at(0, &head.encode()).map_err(fail("write"))?;
        storage.sync_dir(&number.dir()).map_err(fail("sync the folder of"))?;
        Ok(OpenPack {
            number,
            file,
            place,
            slots: Vec::new(),
            phase: PackPhase::Open,
            end: PACK_HEAD_BYTES,
            room_end,
            by_id: HashMap::new(),
            writing: BTreeMap::new(),
            written: Vec::new(),
            syncing: None,
            slots_syncing: Vec::new(),
            slots_durable: Vec::new(),
            is_acknowledged: false,
            is_dirty: true,
        })
    }

    /// Gives a record its place; its write is under way until [`OpenPack::handle_written`].
    pub fn place(&mut self, head: &RecordHead, address: Option<u64>) -> (u32, u64) {
        let (slot, offset) = (self.slots.len() as u32, self.end);
        self.slots.push(Slot::of(head, offset));
        self.by_id.insert(head.id, slot);
        self.writing.insert(slot, address.into_iter().collect());
        self.end += head.record_bytes();
        (slot, offset)
    }

    /// A record's write has completed.
    pub fn handle_written(&mut self, slot: u32) {
        let Some(addresses) = self.writing.remove(&slot) else { return };
        self.is_dirty = true;
        let id = self.slots[slot as usize].id;
        self.written.extend(addresses.into_iter().map(|address| (address, id)));
    }

    /// Lets one more address wait for a record that is here; false if the id is not.
    pub fn attach(&mut self, id: &BlockId, address: u64) -> bool {
        let Some(slot) = self.by_id.get(id) else { return false };
        if let Some(addresses) = self.writing.get_mut(slot) {
            addresses.push(address);
        } else if let (PackPhase::Footed(_), Some(syncing)) = (self.phase, &mut self.syncing) {
            // Every write had completed before this sync was submitted.
            syncing.push((address, *id));
        } else {
            self.written.push((address, *id));
        }
        true
    }

    /// Whether a sync is under way.
    pub fn is_syncing(&self) -> bool {
        self.syncing.is_some()
    }

    /// Whether a write is under way.
    pub fn is_writing(&self) -> bool {
        !self.writing.is_empty()
    }

    /// Whether its next step is due: it takes no more records, and nothing is under way.
    pub fn is_closing_idle(&self) -> bool {
        self.phase == PackPhase::Closing && !self.is_writing() && !self.is_syncing()
    }

    /// Whether something was written that no sync covers yet.
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Whether a sync would make anything durable that is waited for.
    pub fn wants_sync(&self) -> bool {
        !self.written.is_empty() && self.syncing.is_none()
    }

    /// Addresses that are not durable yet.
    pub fn waiting_count(&self) -> usize {
        self.written.len() + self.syncing.as_ref().map_or(0, Vec::len)
    }

    /// The caller submits a sync now.
    pub fn begin_sync(&mut self) {
        debug_assert!(self.syncing.is_none());
        self.syncing = Some(std::mem::take(&mut self.written));
        self.is_dirty = false;
        let slots = 0..self.slots.len() as u32;
        self.slots_syncing = slots.filter(|slot| !self.writing.contains_key(slot)).collect();
    }

    /// The sync is done: these addresses are durable.
    pub fn synced(&mut self) -> Vec<(u64, BlockId)> {
        let durable = self.syncing.take().unwrap_or_default();
        self.is_acknowledged |= !durable.is_empty();
        self.slots_durable = std::mem::take(&mut self.slots_syncing);
        durable
    }

    /// Whether a block in it was reported durable: then its file must stay, whatever fails.
    pub fn is_acknowledged(&self) -> bool {
        self.is_acknowledged
    }

    /// Seals a pack whose task has failed, so that what was reported durable serves again: with a
    /// footer of just those records that a sync had made durable before. What a later sync lost is
    /// not in it. Every write must have completed. Gives the slots and the file's bytes.
    ///
    /// # Errors
    /// [`StoreError::Io`]: the pack stays as it is, for the next opening to read.
    pub fn rescue(&self) -> Result<(Vec<Slot>, u64), StoreError> {
        let slots = self.slots_durable.iter().filter_map(|slot| self.slots.get(*slot as usize));
        let slots: Vec<Slot> = slots.copied().collect();
        let bytes = self.put_footer(&slots)?;
        let synced = self.file.sync_data();
        synced.map_err(|source| StoreError::io("sync", self.place.clone(), source))?;
        Ok((slots, bytes))
    }

    /// Seals a pack whose writes have all completed, waiting for the disk; the file's bytes.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn seal_waiting(&mut self) -> Result<u64, StoreError> {
        let place = self.place.clone();
        let file = self.file.clone();
        let sync = || {
            let synced = file.sync_data();
            synced.map_err(|source| StoreError::io("sync", place.clone(), source))
        };
        self.phase = PackPhase::Closing;
        self.begin_sync();
        sync()?;
        self.synced();
        let bytes = self.write_footer()?;
        sync().map(|()| bytes)
    }

    /// Writes the footer and cuts what was reserved; the caller submits the last sync.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write_footer(&mut self) -> Result<u64, StoreError> {
        assert!(
            self.is_closing_idle() && !self.is_dirty,
            "a footer before its records are durable"
        );
        let bytes = self.put_footer(&self.slots)?;
        self.phase = PackPhase::Footed(bytes);
        Ok(bytes)
    }

    fn put_footer(&self, slots: &[Slot]) -> Result<u64, StoreError> {
        let footer = encode_footer(slots, self.end, self.number);
        let bytes = self.end + footer.len() as u64;
        let fail = |action| {
            let place = self.place.clone();
            move |source| StoreError::io(action, place, source)
        };
        self.file.write_at(self.end, &footer).map_err(fail("write the footer of"))?;
        self.file.set_len(bytes).map_err(fail("cut"))?;
        Ok(bytes)
    }
}

/// How long a pack may get: its target, or what is free beyond what must stay free; nothing if
/// not even `bytes_min` fit.
fn room(free: u64, bytes_min: u64) -> Option<u64> {
    let usable = free.saturating_sub(limits::REPOSITORY_FREE_BYTES_MIN);
    let room = usable.min(limits::PACK_BYTES_TARGET) / ALIGN * ALIGN;
    (room >= bytes_min).then_some(room)
}

fn can_go_without(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Unsupported | io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    ) || error.raw_os_error() == Some(95)
}

/// All packs that a task is writing: the newest may be open, older ones are on their way out.
#[derive(Debug)]
pub struct PackSet<F> {
    /// Oldest first.
    pub packs: Vec<OpenPack<F>>,
    /// Bytes of packs sealed so far, and of records in the others.
    pub bytes_stored: u64,
}

impl<F: StorageFile> PackSet<F> {
    /// No pack yet.
    pub fn new() -> PackSet<F> {
        PackSet { packs: Vec::new(), bytes_stored: 0 }
    }

    /// The pack of this number.
    pub fn get_mut(&mut self, number: PackNumber) -> Option<&mut OpenPack<F>> {
        self.packs.iter_mut().find(|pack| pack.number == number)
    }

    /// Lets an address wait for a record that one of the packs holds; false if none does.
    pub fn attach(&mut self, id: &BlockId, address: u64) -> bool {
        self.packs.iter_mut().any(|pack| pack.attach(id, address))
    }

    /// Whether one of the packs holds the record.
    pub fn holds(&self, id: &BlockId) -> bool {
        self.packs.iter().any(|pack| pack.by_id.contains_key(id))
    }

    /// The open pack with room for this record; begins a new one if need be.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a pack cannot be created.
    pub fn room_for<S: Storage<File = F>>(
        &mut self,
        storage: &S,
        repository: RepositoryId,
        session: SessionId,
        numbers: &mut PackNumbers,
        head: &RecordHead,
    ) -> Result<&mut OpenPack<F>, StoreError> {
        if let Some(open) = self.packs.last_mut()
            && open.phase == PackPhase::Open
            && open.end + head.record_bytes() > open.room_end
        {
            open.phase = PackPhase::Closing;
        }
        if !self.packs.last().is_some_and(|pack| pack.phase == PackPhase::Open) {
            let number = numbers.take()?;
            let bytes = head.record_bytes();
            self.packs.push(OpenPack::create(storage, repository, session, number, bytes)?);
        }
        self.bytes_stored += head.record_bytes();
        let last = self.packs.len() - 1;
        Ok(&mut self.packs[last])
    }

    /// Takes no more records: every pack is on its way to be sealed.
    pub fn close(&mut self) {
        for pack in &mut self.packs {
            if pack.phase == PackPhase::Open {
                pack.phase = PackPhase::Closing;
            }
        }
    }

    /// Whether a write is under way in any pack.
    pub fn is_writing(&self) -> bool {
        self.packs.iter().any(OpenPack::is_writing)
    }
}

impl<F: StorageFile> Default for PackSet<F> {
    fn default() -> PackSet<F> {
        PackSet::new()
    }
}

#[cfg(test)]
mod tests {
    use super::room;
    use gantry_common::limits::{PACK_BYTES_TARGET, REPOSITORY_FREE_BYTES_MIN};

    #[test]
    fn packs_leave_room_for_what_is_no_pack() {
        assert_eq!(room(u64::MAX, 8192), Some(PACK_BYTES_TARGET));
        assert_eq!(room(REPOSITORY_FREE_BYTES_MIN + 100_000, 8192), Some(98_304));
        assert_eq!(room(REPOSITORY_FREE_BYTES_MIN + 8000, 8192), None);
        assert_eq!(room(0, 8192), None);
    }
}
