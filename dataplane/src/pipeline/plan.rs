//! Decides what of a disk must be read, before anything is read.
//!
//! In: the disk's size, the target's answer about the base, the person's options. Out: a [`Plan`]
//! (mode, the reason for the session log, the read set). Pure: no I/O. Invariant: every block is
//! either in the read set or provably as in the base; any doubt puts it into the read set.

use std::fmt;
use std::sync::Arc;

use gantry_common::extents::{Extent, Run, RunSet, blocks_touched};
use gantry_common::ids::PointId;
use gantry_common::limits::MASK_RANGES_MAX;
use gantry_common::units::BlockSize;
use gantry_common::wire::{BaseAnswer, MaskRange};
use gantry_guest::FilterMap;
use serde::Serialize;

use super::audit::{self, AuditOptions};

/// How a disk is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadMode {
    /// Everything is read and nothing compared.
    Full,
    /// Only changed extents (and what must join them) are read.
    Extents,
    /// Everything is read; blocks with the base's id are not sent.
    Compare,
}

impl fmt::Display for ReadMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReadMode::Full => "full",
            ReadMode::Extents => "incremental by changed extents",
            ReadMode::Compare => "incremental by compare",
        })
    }
}

/// Extents are rounded outwards by who reports them, by no more than this.
const EXTENT_GRAIN: u64 = 1 << 20;

/// What the person (or gantryd) asked for one disk.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Read everything, whatever the base.
    pub force_full: bool,
    /// Changed extents since `extents_base`, as vSphere returns them.
    pub changed_extents: Option<Vec<Extent>>,
    /// The point that the extents are relative to.
    pub extents_base: Option<PointId>,
    /// All that is allocated, as vSphere returns it: what lies outside reads as zeros.
    pub allocated_extents: Option<Vec<Extent>>,
    /// How much of what the extents leave out is read and compared nevertheless.
    pub audit: Option<AuditOptions>,
    /// What of the disk is neither read nor kept, of at most [`MASK_RANGES_MAX`] ranges; nothing: no
    /// filter is on.
    pub mask: Option<Arc<FilterMap>>,
}

/// What to read of one disk, and why.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The mode.
    pub mode: ReadMode,
    /// For the session log.
    pub reason: String,
    /// Blocks to read; all others are `zero`, or as in the base.
    pub read: RunSet,
    /// Blocks that are zeros: not allocated, or covered.
    pub zero: RunSet,
    /// Blocks outside `read` that are compared first, with what they are said to be.
    pub audit: RunSet,
    /// Blocks to send even if their id is the base's: the base's copy is damaged.
    pub heal: RunSet,
    /// Blocks that the base has; no id can be fetched beyond.
    pub base_blocks: u64,
    /// Blocks of which nothing is kept: not read, and zeros.
    pub covered: RunSet,
    /// What is zeroed of blocks that are read.
    pub mask: Arc<FilterMap>,
    /// What the base has zeroed; empty where blocks are not taken over from it without being read.
    pub base_mask: Arc<FilterMap>,
    /// What the point's content has zeroed in the end.
    pub effective: Arc<FilterMap>,
}

impl Plan {
    /// The plan after an audit found a block that is not what it was called: everything is read.
    pub fn distrust(self, blocks: u64) -> Plan {
        let mode = if self.base_blocks > 0 { ReadMode::Compare } else { ReadMode::Full };
        let mut read: RunSet = [Run { first: 0, count: blocks }].into_iter().collect();
        self.covered.iter().for_each(|run| read.remove(run));
        let (zero, effective) = (self.covered.clone(), Arc::clone(&self.mask));
        Plan { mode, read, zero, effective, audit: RunSet::new(), ..self }
    }
}

/// Makes the plan (DESIGN §4, "Incremental").
pub fn plan(
    disk_bytes: u64,
    block_size: BlockSize,
    base: &BaseAnswer,
    options: &PlanOptions,
) -> Plan {
    let mask = match &options.mask {
        Some(mask) if mask.disk_bytes() == disk_bytes => Arc::clone(mask),
        _ => Arc::new(FilterMap::new(disk_bytes, Vec::new(), Vec::new())),
    };
    let mut plan = by_base(disk_bytes, block_size, base, options, &mask);
    if plan.mode != ReadMode::Extents
        && let Some(extents) = &options.allocated_extents
    {
        read_allocated(&mut plan, extents, disk_bytes, block_size);
    }
    for run in plan.covered.iter().collect::<Vec<_>>() {
        plan.read.remove(run);
        plan.zero.insert(run);
    }
    if let Some(options) = &options.audit {
        let mut certain = plan.read.clone();
        plan.covered.iter().for_each(|run| {
            certain.insert(run);
        });
        plan.audit = audit::sample(options, block_size.block_count(disk_bytes), &certain);
    }
    plan
}

/// Blocks that a mask covers as a whole.
fn covered(mask: &FilterMap, disk_bytes: u64, block_size: BlockSize) -> RunSet {
    let bytes = u64::from(block_size.bytes());
    let mut covered = RunSet::new();
    for range in mask.joined() {
        let end = range.start + range.length;
        let first = range.start.div_ceil(bytes);
        let after = if end == disk_bytes { end.div_ceil(bytes) } else { end / bytes };
        if after > first {
            covered.insert(Run { first, count: after - first });
        }
    }
    covered
}

/// A mask as a point keeps it.
pub fn stored_mask(mask: &FilterMap) -> Vec<MaskRange> {
    let range = |(reason, start, length)| MaskRange { reason, start, length };
    mask.to_mask_ranges().map(range).collect()
}

/// Leaves out what is not allocated. A list that does not fit the disk is not used.
fn read_allocated(plan: &mut Plan, extents: &[Extent], disk_bytes: u64, block_size: BlockSize) {
    let end = extents.iter().map(|extent| extent.start.saturating_add(extent.length)).max();
    if end.is_some_and(|end| end > disk_bytes.next_multiple_of(EXTENT_GRAIN)) {
        plan.reason.push_str("; the allocated extents reach beyond the disk and are not used");
        return;
    }
    let blocks = block_size.block_count(disk_bytes);
    let mut read = blocks_touched(extents.iter().copied(), block_size, disk_bytes);
    read.remove(Run { first: blocks, count: u64::MAX - blocks });
    plan.zero = read.gaps(blocks).into_iter().collect();
    plan.read = read;
    plan.reason.push_str("; only what is allocated is read");
}

fn by_base(
    disk_bytes: u64,
    block_size: BlockSize,
    base: &BaseAnswer,
    options: &PlanOptions,
    mask: &Arc<FilterMap>,
) -> Plan {
    let blocks = block_size.block_count(disk_bytes);
    let covered = covered(mask, disk_bytes, block_size);
    let everything: RunSet = [Run { first: 0, count: blocks }].into_iter().collect();
    let full = |reason: String| Plan {
        mode: ReadMode::Full,
        reason,
        read: everything.clone(),
        zero: RunSet::new(),
        audit: RunSet::new(),
        heal: RunSet::new(),
        base_blocks: 0,
        covered: covered.clone(),
        mask: Arc::clone(mask),
        base_mask: Arc::default(),
        effective: Arc::clone(mask),
    };
    if options.force_full {
        return full("a full was asked for".into());
    }
    let (point, size_bytes, damaged, held, fallback) = match base {
        BaseAnswer::NotAsked => return full("there is no base to build on".into()),
        BaseAnswer::Unusable { reason } => return full(format!("no base can serve: {reason}")),
        BaseAnswer::Usable { point, size_bytes, damaged, mask, fallback_reason, .. } => {
            (*point, *size_bytes, damaged, mask, fallback_reason)
        }
    };
    let heal: RunSet = damaged.iter().copied().collect();
    let base_blocks = block_size.block_count(size_bytes);
    let compare = |reason: String| Plan {
        mode: ReadMode::Compare,
        heal: heal.clone(),
        base_blocks,
        ..full(reason)
    };
    let Some(extents) = &options.changed_extents else {
        return compare(format!("no changed extents were given: compared with point {point}"));
    };
    if let Some(reason) = fallback {
        return compare(format!(
            "the changed extents are of no use ({reason}): compared with point {point}"
        ));
    }
    if options.extents_base != Some(point) {
        return compare(format!(
            "the changed extents do not name point {point} as their base: compared with it"
        ));
    }
    let end = extents.iter().map(|extent| extent.start.saturating_add(extent.length)).max();
    let largest = disk_bytes.max(size_bytes).next_multiple_of(EXTENT_GRAIN);
    if end.is_some_and(|end| end > largest) {
        return compare(format!(
            "the changed extents reach beyond the disk, so they are another disk's or wrong: \
             compared with point {point}"
        ));
    }
    let mut read = blocks_touched(extents.iter().copied(), block_size, disk_bytes);
    heal.iter().for_each(|run| {
        read.insert(run);
    });
    read_resized(&mut read, disk_bytes, size_bytes, block_size);
    let held = held.iter().map(|range| (range.reason, range.start, range.length));
    let base_mask = match FilterMap::from_mask_ranges(size_bytes, held) {
        Ok(held) => held,
        Err(refused) => return compare(format!("{refused}: compared with point {point}")),
    };
    // What the base holds as zeros and nothing masks today: no change tracking reports it.
    let unmasked = FilterMap::subtract(&base_mask, mask);
    let unmasked =
        unmasked.iter().map(|&gantry_guest::Extent { start, length }| Extent { start, length });
    for run in blocks_touched(unmasked, block_size, disk_bytes).iter() {
        read.insert(run);
    }
    read.remove(Run { first: blocks, count: u64::MAX - blocks });
    let effective =
        mask.with_untouched(&base_mask, &untouched(&read, &covered, blocks, block_size));
    if effective.ranges().len() > MASK_RANGES_MAX {
        return compare(format!(
            "what is masked is in too many pieces: compared with point {point}"
        ));
    }
    Plan {
        mode: ReadMode::Extents,
        read,
        base_mask: Arc::new(base_mask),
        effective: Arc::new(effective),
        ..compare(format!("changed extents since point {point}"))
    }
}

/// Bytes of the blocks that are taken over from the base as they are.
fn untouched(
    read: &RunSet,
    covered: &RunSet,
    blocks: u64,
    block_size: BlockSize,
) -> Vec<gantry_guest::Extent> {
    let mut touched = read.clone();
    covered.iter().for_each(|run| {
        touched.insert(run);
    });
    let bytes = u64::from(block_size.bytes());
    let extent =
        |run: &Run| gantry_guest::Extent { start: run.first * bytes, length: run.count * bytes };
    touched.gaps(blocks).iter().map(extent).collect()
}

/// Where the disk's size differs from the base's: the grown range, the base's short tail block,
/// and the disk's own short tail block are read.
fn read_resized(read: &mut RunSet, disk_bytes: u64, base_bytes: u64, block_size: BlockSize) {
    if disk_bytes == base_bytes {
        return;
    }
    let blocks = block_size.block_count(disk_bytes);
    let first_grown = base_bytes / u64::from(block_size.bytes());
    if first_grown < blocks {
        read.insert(Run { first: first_grown, count: blocks - first_grown });
    }
    if !disk_bytes.is_multiple_of(u64::from(block_size.bytes())) && blocks > 0 {
        read.insert(Run { first: blocks - 1, count: 1 });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{AuditOptions, PlanOptions, ReadMode, plan, stored_mask};
    use gantry_common::extents::{Extent, Run};
    use gantry_common::ids::PointId;
    use gantry_common::units::BlockSize;
    use gantry_common::wire::{BaseAnswer, MaskRange};
    use gantry_guest::FilterMap;

    const MIB: u64 = 1 << 20;

    fn base(size_bytes: u64, damaged: Vec<Run>, fallback: Option<&str>) -> BaseAnswer {
        BaseAnswer::Usable {
            point: PointId([1; 16]),
            size_bytes,
            change_id: None,
            damaged,
            mask: Vec::new(),
            fallback_reason: fallback.map(str::to_owned),
        }
    }

    fn options(extents: &[(u64, u64)], point: u8) -> PlanOptions {
        let changed = extents.iter().map(|&(start, length)| Extent { start, length }).collect();
        PlanOptions {
            force_full: false,
            changed_extents: Some(changed),
            extents_base: Some(PointId([point; 16])),
            ..PlanOptions::default()
        }
    }

    fn runs(disk: u64, base: &BaseAnswer, options: &PlanOptions) -> (ReadMode, Vec<(u64, u64)>) {
        let plan = plan(disk, BlockSize::M1, base, options);
        (plan.mode, plan.read.iter().map(|run| (run.first, run.count)).collect())
    }

    #[test]
    fn extents_are_used_only_with_their_own_base() {
        let good = base(10 * MIB, vec![], None);
        let changed = options(&[(MIB, 1), (5 * MIB - 1, 2)], 1);
        assert_eq!(runs(10 * MIB, &good, &changed), (ReadMode::Extents, vec![(1, 1), (4, 2)]));
        let all = vec![(0, 10)];
        let other = options(&[(MIB, 1)], 2);
        assert_eq!(runs(10 * MIB, &good, &other), (ReadMode::Compare, all.clone()));
        let fallen = base(10 * MIB, vec![], Some("gone"));
        assert_eq!(runs(10 * MIB, &fallen, &changed), (ReadMode::Compare, all.clone()));
        let none = BaseAnswer::Unusable { reason: "other block size".into() };
        assert_eq!(runs(10 * MIB, &none, &changed), (ReadMode::Full, all.clone()));
        let full = PlanOptions { force_full: true, ..changed };
        assert_eq!(runs(10 * MIB, &good, &full), (ReadMode::Full, all));
    }

    #[test]
    fn what_is_not_allocated_is_zero_unless_the_list_is_another_disks() {
        let allocated = |extents: &[(u64, u64)]| PlanOptions {
            allocated_extents: Some(
                extents.iter().map(|&(start, length)| Extent { start, length }).collect(),
            ),
            ..PlanOptions::default()
        };
        let none = BaseAnswer::NotAsked;
        let made = plan(10 * MIB, BlockSize::M1, &none, &allocated(&[(MIB - 1, 2), (9 * MIB, 1)]));
        let runs = |set: &super::RunSet| -> Vec<(u64, u64)> {
            set.iter().map(|run| (run.first, run.count)).collect()
        };
        assert_eq!((runs(&made.read), runs(&made.zero)), (vec![(0, 2), (9, 1)], vec![(2, 7)]));
        let beyond = plan(10 * MIB, BlockSize::M1, &none, &allocated(&[(11 * MIB, MIB)]));
        assert_eq!((runs(&beyond.read), runs(&beyond.zero)), (vec![(0, 10)], vec![]));
        let compared = plan(
            10 * MIB,
            BlockSize::M1,
            &base(10 * MIB, vec![Run { first: 5, count: 1 }], None),
            &allocated(&[(0, MIB)]),
        );
        assert_eq!((compared.mode, runs(&compared.zero)), (ReadMode::Compare, vec![(1, 9)]));
        // After a block that was not zero: everything is read.
        let distrusted = compared.distrust(10);
        assert_eq!(runs(&distrusted.read), [(0, 10)]);
        assert!(distrusted.zero.is_empty());
        // Changed extents say all that is to be read.
        let mut both = options(&[(MIB, 1)], 1);
        both.allocated_extents = Some(vec![]);
        let both = plan(10 * MIB, BlockSize::M1, &base(10 * MIB, vec![], None), &both);
        assert_eq!((both.mode, runs(&both.read)), (ReadMode::Extents, vec![(1, 1)]));
    }

    #[test]
    fn damaged_grown_and_tail_blocks_join_the_read_set() {
        let changed = options(&[], 1);
        let damaged = base(10 * MIB, vec![Run { first: 7, count: 2 }], None);
        assert_eq!(runs(10 * MIB, &damaged, &changed).1, [(7, 2)]);
        let short_tail = base(10 * MIB - 5, vec![], None);
        assert_eq!(runs(12 * MIB, &short_tail, &changed).1, [(9, 3)]);
        assert_eq!(runs(10 * MIB, &base(12 * MIB, vec![], None), &changed).1, []);
        assert_eq!(runs(10 * MIB - 9, &base(12 * MIB, vec![], None), &changed).1, [(9, 1)]);
        let beyond = options(&[(11 * MIB, MIB)], 1);
        assert_eq!(runs(10 * MIB, &base(12 * MIB, vec![], None), &beyond).1, []);
        let absurd = options(&[(11 * MIB, 4 * MIB)], 1);
        assert_eq!(runs(10 * MIB, &base(12 * MIB, vec![], None), &absurd).0, ReadMode::Compare);
    }

    fn mask(ranges: &[(u64, u64)], disk: u64) -> FilterMap {
        let extent = |&(start, length): &(u64, u64)| gantry_guest::Extent { start, length };
        let ranges = ranges.iter().map(|range| (extent(range), gantry_guest::Reason::Deleted));
        FilterMap::new(disk, ranges.collect(), Vec::new())
    }

    fn masked_base(held: Vec<MaskRange>) -> BaseAnswer {
        let mut answer = base(10 * MIB, vec![], None);
        if let BaseAnswer::Usable { mask, .. } = &mut answer {
            *mask = held;
        }
        answer
    }

    #[test]
    fn what_the_base_masks_and_nothing_does_today_is_read_again() {
        let k64 = 64 << 10;
        let held = mask(&[(0, MIB), (2 * MIB + k64, k64), (5 * MIB + k64, k64)], 10 * MIB);
        let base = masked_base(stored_mask(&held));
        assert_eq!(runs(10 * MIB, &base, &options(&[], 1)).1, [(0, 1), (2, 1), (5, 1)]);
        // Today: block 0 as before, block 2 not, of block 5 more, of block 7 something, all of block 8.
        let ranges = [(0, MIB), (5 * MIB, 3 * k64), (7 * MIB, k64), (8 * MIB, MIB)];
        let today = mask(&ranges, 10 * MIB);
        let mut with = options(&[], 1);
        with.mask = Some(Arc::new(today.clone()));
        with.audit = Some(AuditOptions { per_million: 1_000_000, blocks_min: 1, seed: 1 });
        let made = plan(10 * MIB, BlockSize::M1, &base, &with);
        let list = |set: &super::RunSet| -> Vec<(u64, u64)> {
            set.iter().map(|run| (run.first, run.count)).collect()
        };
        assert_eq!((made.mode, list(&made.read)), (ReadMode::Extents, vec![(2, 1)]));
        assert_eq!(list(&made.zero), [(0, 1), (8, 1)]);
        assert_eq!(list(&made.audit), [(1, 1), (3, 5), (9, 1)]);
        // Blocks 5 and 7 are as in the base.
        let kept = mask(&[(0, MIB), (5 * MIB + k64, k64), (8 * MIB, MIB)], 10 * MIB);
        assert_eq!(made.effective.ranges(), kept.ranges());
        let distrusted = made.distrust(10);
        assert_eq!(list(&distrusted.read), [(1, 7), (9, 1)]);
        assert_eq!(list(&distrusted.zero), [(0, 1), (8, 1)]);
        assert_eq!(distrusted.effective.ranges(), today.ranges());
    }

    #[test]
    fn a_base_of_which_nobody_knows_what_is_masked_is_compared() {
        let base = masked_base(vec![MaskRange::UNKNOWN]);
        assert_eq!(runs(10 * MIB, &base, &options(&[], 1)), (ReadMode::Compare, vec![(0, 10)]));
    }
}
