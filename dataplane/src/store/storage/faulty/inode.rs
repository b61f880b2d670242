//! One file of the simulated disk: what a reader sees, what is on the platter, and what stands
//! between them.
//!
//! In: changes, syncs, a crash. Out: contents. Invariant: `durable` and the log, replayed in order,
//! give `now`, unless a failed sync dropped changes: then the page cache shows what the disk lost.

use std::collections::HashMap;
use std::sync::Arc;

use fastrand::Rng;

use super::content::{Content, PAGE};

/// What a disk writes whole or not at all.
const SECTOR: u64 = 512;

/// A change of a file.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write { offset: u64, bytes: Arc<[u8]> },
    SetLen(u64),
    Allocate(u64),
    Punch { offset: u64, bytes: u64 },
}

#[derive(Debug, Clone)]
struct Logged {
    /// When it was done, or, while it is under way, when it was submitted.
    at: u64,
    change: Change,
    in_flight: bool,
}

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    pub(super) now: Content,
    durable: Content,
    log: Vec<Logged>,
    /// A sync failed and dropped changes that the page cache still shows.
    diverged: bool,
    /// Bytes that an allocation holds.
    reserved: u64,
}

/// How much of what was not synced a crash leaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaves {
    /// Of writes, 0 to 1.
    pub(super) writes: f64,
    /// Of the writes that are left: torn ones.
    pub(super) torn: f64,
    /// Of lengths and names; between 0 and 1 a random prefix of the changes.
    pub(super) lengths: f64,
    /// See `lengths`.
    pub(super) names: f64,
}

impl Leaves {
    /// Nothing that was not synced.
    pub(super) const NOTHING: Leaves = Leaves { writes: 0.0, torn: 0.0, lengths: 0.0, names: 0.0 };

    /// A mixture drawn for one crash: from nothing to everything, each kind for itself.
    pub(super) fn draw(random: &mut Rng) -> Leaves {
        let mut share = || [0.0, 0.1, 0.5, 0.9, 1.0][random.usize(0..5)];
        Leaves { writes: share(), lengths: share(), names: share(), torn: share() / 2.0 }
    }
}

/// How many of `count` ordered changes are left.
pub(super) fn prefix(count: usize, share: f64, random: &mut Rng) -> usize {
    match share {
        0.0 => 0,
        1.0 => count,
        _ => random.usize(0..=count),
    }
}

fn apply(content: &mut Content, change: &Change) {
    match change {
        Change::Write { offset, bytes } => content.write(*offset, bytes),
        Change::SetLen(len) => content.set_len(*len),
        Change::Allocate(len) => content.len = content.len.max(*len),
        Change::Punch { offset, bytes } => content.punch(*offset, *bytes),
    }
}

/// The sectors of a write that a crash leaves.
fn torn_sectors(offset: u64, len: usize, random: &mut Rng) -> Vec<u64> {
    let sectors = offset / SECTOR..(offset + len as u64).div_ceil(SECTOR);
    let (first, last) = (sectors.start, sectors.end);
    match random.u8(0..3) {
        0 => (first..random.u64(first..last)).collect(),
        1 => (random.u64(first..last)..last).collect(),
        _ => sectors.filter(|_| random.bool()).collect(),
    }
}

impl Inode {
    /// A change that is done at once.
    pub(super) fn change(&mut self, at: u64, change: Change) {
        match &change {
            Change::Allocate(bytes) => self.reserved = self.reserved.max(*bytes),
            Change::SetLen(bytes) => self.reserved = self.reserved.min(*bytes),
            // A hole also gives back what was reserved for it.
            Change::Punch { bytes, .. } => self.reserved = self.reserved.saturating_sub(*bytes),
            Change::Write { .. } => {}
        }
        apply(&mut self.now, &change);
        self.log.push(Logged { at, change, in_flight: false });
    }

    /// A write that is on its way to the disk: a crash may leave any part of it.
    pub(super) fn submit(&mut self, at: u64, offset: u64, bytes: &[u8]) {
        let change = Change::Write { offset, bytes: bytes.into() };
        self.log.push(Logged { at, change, in_flight: true });
    }

    /// The write that was submitted at `submitted` is done.
    pub(super) fn complete(&mut self, submitted: u64, at: u64) {
        let is_it = |logged: &Logged| logged.in_flight && logged.at == submitted;
        if let Some(position) = self.log.iter().position(is_it) {
            let logged = self.log.remove(position);
            self.change(at, logged.change);
        }
    }

    /// Makes durable what was done by `until`.
    pub(super) fn sync(&mut self, until: u64) {
        let durable = &mut self.durable;
        self.log.retain(|logged| {
            let covered = !logged.in_flight && logged.at <= until;
            if covered {
                apply(durable, &logged.change);
            }
            !covered
        });
    }

    /// A sync that fails as Linux does it: what was dirty counts as clean from now on, though some
    /// of it never reached the disk. Lengths and allocations are metadata, which the file system's
    /// own journal brings to the disk later.
    pub(super) fn fail_sync(&mut self, random: &mut Rng) {
        let durable = &mut self.durable;
        let mut dropped = false;
        self.log.retain(|logged| {
            if logged.in_flight {
                return true;
            }
            match &logged.change {
                Change::Write { offset, bytes } if random.bool() => {
                    durable.set_len(durable.len.max(offset + bytes.len() as u64));
                    dropped = true;
                }
                change => apply(durable, change),
            }
            false
        });
        self.diverged |= dropped;
    }

    /// What is read past the page cache.
    pub(super) fn read_uncached(&self, offset: u64, bytes: &mut [u8]) -> usize {
        if self.diverged { self.below().read(offset, bytes) } else { self.now.read(offset, bytes) }
    }

    /// What the disk has or still gets from the page cache.
    fn below(&self) -> Content {
        let mut below = self.durable.clone();
        let done = self.log.iter().filter(|logged| !logged.in_flight);
        done.for_each(|logged| apply(&mut below, &logged.change));
        below
    }

    /// The file after a power cut: a sector has the contents that some of the writes to it left,
    /// with all earlier ones; lengths end at some point of their history.
    pub(super) fn power_cut(&self, leaves: Leaves, random: &mut Rng) -> Inode {
        let metadata_kept = prefix(self.log.len(), leaves.lengths, random);
        let mut newest: HashMap<u64, usize> = HashMap::new();
        for (position, logged) in self.log.iter().enumerate() {
            let Change::Write { offset, bytes } = &logged.change else { continue };
            if random.f64() < leaves.writes {
                let kept = match random.f64() < leaves.torn {
                    true => torn_sectors(*offset, bytes.len(), random),
                    false => {
                        (offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR)).collect()
                    }
                };
                newest.extend(kept.into_iter().map(|sector| (sector, position)));
            }
        }
        let mut content = self.durable.clone();
        let mut len = content.len;
        let mut len_now = content.len;
        for (position, logged) in self.log.iter().enumerate() {
            match &logged.change {
                Change::Write { offset, bytes } => {
                    len_now = len_now.max(offset + bytes.len() as u64);
                    write_sectors(&mut content, *offset, bytes, |sector| {
                        newest.get(&sector).is_some_and(|newest| position <= *newest)
                    });
                }
                Change::SetLen(bytes) => len_now = *bytes,
                Change::Allocate(bytes) => len_now = len_now.max(*bytes),
                Change::Punch { .. } => {}
            }
            if position < metadata_kept {
                len = len_now;
            }
            if matches!(logged.change, Change::Write { .. }) {
                continue;
            }
            if position < metadata_kept {
                apply(&mut content, &logged.change);
            } else {
                // A sector is written whole: what was zeroed before a write that is left is zero.
                let later = newest.iter().filter(|(_, newest)| **newest > position);
                later.for_each(|(sector, _)| zero_in_sector(&mut content, *sector, &logged.change));
            }
        }
        content.set_len(len);
        Inode { reserved: self.reserved.min(len), ..Inode::of(content) }
    }

    /// The file after its writer was killed: the page cache stays, what was under way may be done,
    /// half done or not; what a failed sync dropped may leave the page cache now.
    pub(super) fn kill(&mut self, at: u64, random: &mut Rng) {
        let (under_way, done) = self.log.drain(..).partition(|logged| logged.in_flight);
        self.log = done;
        let under_way: Vec<Logged> = under_way;
        for Logged { change, .. } in under_way {
            let Change::Write { offset, bytes } = change else { continue };
            match random.u8(0..3) {
                0 => {}
                1 => self.change(at, Change::Write { offset, bytes }),
                _ => {
                    for sector in torn_sectors(offset, bytes.len(), random) {
                        let from = (sector * SECTOR).max(offset);
                        let to = ((sector + 1) * SECTOR).min(offset + bytes.len() as u64);
                        let part = &bytes[(from - offset) as usize..(to - offset) as usize];
                        self.change(at, Change::Write { offset: from, bytes: part.into() });
                    }
                }
            }
        }
        if self.diverged && random.bool() {
            self.now = self.below();
            self.diverged = false;
        }
    }

    /// A file whose contents are durable.
    fn of(content: Content) -> Inode {
        Inode { now: content.clone(), durable: content, ..Inode::default() }
    }

    /// Bytes that it takes of the disk.
    pub(super) fn used_bytes(&self) -> u64 {
        self.now.allocated_bytes().max(self.reserved)
    }

    /// Bytes more that it takes after a write.
    pub(super) fn growth(&self, offset: u64, len: u64) -> u64 {
        let new = self.now.absent_pages(offset, len) * PAGE as u64;
        (self.now.allocated_bytes() + new).max(self.reserved) - self.used_bytes()
    }

    /// Changes one byte on the platter and in the page cache.
    pub(super) fn flip(&mut self, offset: u64, mask: u8) {
        for content in [&mut self.now, &mut self.durable] {
            let mut byte = [0];
            if content.read(offset, &mut byte) == 1 {
                content.write(offset, &[byte[0] ^ mask]);
            }
        }
    }
}

/// Does to one sector what a cut or a punch does.
fn zero_in_sector(content: &mut Content, sector: u64, change: &Change) {
    let (from, to) = match change {
        Change::SetLen(len) => (*len, u64::MAX),
        Change::Punch { offset, bytes } => (*offset, offset + bytes),
        Change::Write { .. } | Change::Allocate(_) => return,
    };
    let from = from.max(sector * SECTOR);
    let to = to.min((sector + 1) * SECTOR).min(content.len);
    if from < to {
        content.write(from, &vec![0; (to - from) as usize]);
    }
}

fn write_sectors(
    content: &mut Content,
    offset: u64,
    bytes: &[u8],
    mut is_kept: impl FnMut(u64) -> bool,
) {
    let end = offset + bytes.len() as u64;
    for sector in offset / SECTOR..end.div_ceil(SECTOR) {
        if is_kept(sector) {
            let (from, to) = ((sector * SECTOR).max(offset), ((sector + 1) * SECTOR).min(end));
            content.write(from, &bytes[(from - offset) as usize..(to - offset) as usize]);
        }
    }
}
