//! Reads and writes through a chain of links, and merges a link into its parent.
//!
//! In: a link and a range of the disk. Out: what a guest sees at that link. Invariant: a merge is a
//! plain copy of what the child holds, so that one that was killed can be done again. It must not
//! decide who may be written to; that is the snapshots' business.

use std::ops::Range;

use super::error::{Result, StorageError, missing};
use super::flat::FlatExtent;
use super::sparse::{Grain, Run, SECTOR_BYTES, SparseExtent};
use super::state::{LinkId, LinkKind, LinkState};
use super::world::World;

/// Most bytes copied at once.
const COPY_BYTES_MAX: u64 = 1 << 20;

/// An open extent of a link.
#[derive(Debug)]
pub(super) enum Extent {
    Flat(FlatExtent),
    Sparse(SparseExtent),
}

impl Extent {
    fn runs(&self, range: Range<u64>) -> Vec<Run> {
        match self {
            Extent::Flat(_) => vec![flat_run(range)],
            Extent::Sparse(extent) => extent.runs(range),
        }
    }

    fn present(&self, end: u64) -> Result<Vec<Run>> {
        match self {
            Extent::Flat(extent) => Ok(extent.allocated(end)?.into_iter().map(flat_run).collect()),
            Extent::Sparse(extent) => Ok(extent.present(end)),
        }
    }

    fn read_file(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match self {
            Extent::Flat(extent) => extent.read(offset, buf),
            Extent::Sparse(extent) => extent.read_file(offset, buf),
        }
    }

    fn grain_bytes(&self) -> u64 {
        match self {
            Extent::Flat(_) => SECTOR_BYTES,
            Extent::Sparse(extent) => extent.grain_bytes(),
        }
    }
}

fn flat_run(range: Range<u64>) -> Run {
    Run { offset: range.start, length: range.end - range.start, grain: Grain::At(range.start) }
}

/// A range in parts of at most `COPY_BYTES_MAX`, cut at multiples of it.
pub(super) fn parts(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = ((at / COPY_BYTES_MAX + 1) * COPY_BYTES_MAX).min(range.end);
        let part = at..end;
        (at < range.end).then(|| {
            at = end;
            part
        })
    })
}

impl World {
    /// Opens a link's extent as the state describes it.
    pub(super) fn open_extent(&self, link: &LinkState) -> Result<Extent> {
        let path = link.extent_file().under(&self.root);
        let capacity_bytes = self.state.disk(link.disk)?.capacity_bytes;
        Ok(match link.kind {
            LinkKind::Flat => Extent::Flat(FlatExtent::open(&path)?),
            LinkKind::Delta(format) => {
                Extent::Sparse(SparseExtent::open(&path, format, capacity_bytes)?)
            }
        })
    }

    fn extent(&self, link: LinkId) -> Result<&Extent> {
        self.extents.get(&link).ok_or_else(|| missing("open extent", link))
    }

    /// Reads what a guest sees at `link`.
    pub(super) fn read_link(&self, link: LinkId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let extent = self.extent(link)?;
        let parent = self.state.link(link)?.parent;
        for run in extent.runs(offset..offset + buf.len() as u64) {
            let start = (run.offset - offset) as usize;
            let part = &mut buf[start..start + run.length as usize];
            match (run.grain, parent) {
                (Grain::At(at), _) => extent.read_file(at, part)?,
                (Grain::Absent, Some(parent)) => self.read_link(parent, run.offset, part)?,
                (Grain::Zero, _) | (Grain::Absent, None) => part.fill(0),
            }
        }
        Ok(())
    }

    /// Writes to one link of a chain; what a grain holds besides `bytes` is taken from the view.
    pub(super) fn write_link(&mut self, link: LinkId, offset: u64, bytes: &[u8]) -> Result<()> {
        let grain_bytes = self.extent(link)?.grain_bytes();
        let end = offset + bytes.len() as u64;
        let outer = offset - offset % grain_bytes..end.next_multiple_of(grain_bytes);
        if outer == (offset..end) {
            return self.write_grains(link, offset, bytes);
        }
        let mut whole = vec![0; (outer.end - outer.start) as usize];
        self.read_link(link, outer.start, &mut whole)?;
        let start = (offset - outer.start) as usize;
        whole[start..start + bytes.len()].copy_from_slice(bytes);
        self.write_grains(link, outer.start, &whole)
    }

    fn write_grains(&mut self, link: LinkId, offset: u64, bytes: &[u8]) -> Result<()> {
        match self.extents.get_mut(&link) {
            Some(Extent::Flat(extent)) => extent.write(offset, bytes),
            Some(Extent::Sparse(extent)) => extent.write(offset, bytes),
            None => Err(missing("open extent", link)),
        }
    }

    /// Makes a range read as zeros at `link`, without taking space where the layout can.
    pub(super) fn zero_link(&mut self, link: LinkId, range: Range<u64>) -> Result<()> {
        let grain_bytes = self.extent(link)?.grain_bytes();
        let inner = range.start.next_multiple_of(grain_bytes)..range.end - range.end % grain_bytes;
        if inner.start >= inner.end {
            return self.write_zeros(link, range);
        }
        let done = match self.extents.get_mut(&link) {
            Some(Extent::Flat(extent)) => {
                extent.punch(inner.start, inner.end - inner.start)?;
                true
            }
            Some(Extent::Sparse(extent)) => extent.zero(inner.start, inner.end - inner.start)?,
            None => return Err(missing("open extent", link)),
        };
        if !done {
            return self.write_zeros(link, range);
        }
        self.write_zeros(link, range.start..inner.start)?;
        self.write_zeros(link, inner.end..range.end)
    }

    fn write_zeros(&mut self, link: LinkId, range: Range<u64>) -> Result<()> {
        for part in parts(range) {
            let zeros = vec![0; (part.end - part.start) as usize];
            self.write_link(link, part.start, &zeros)?;
        }
        Ok(())
    }

    /// Copies all that `child` holds into its parent. The child stays as it is.
    pub(super) fn copy_into_parent(&mut self, child: LinkId) -> Result<()> {
        let link = self.state.link(child)?;
        let (capacity_bytes, parent) = (self.state.disk(link.disk)?.capacity_bytes, link.parent);
        let parent =
            parent.ok_or_else(|| StorageError::Invalid(format!("{} has no parent", link.file)))?;
        for run in self.extent(child)?.present(capacity_bytes)? {
            let range = run.offset..run.offset + run.length;
            let Grain::At(at) = run.grain else {
                self.zero_link(parent, range)?;
                continue;
            };
            for part in parts(range) {
                let mut buf = vec![0; (part.end - part.start) as usize];
                self.extent(child)?.read_file(at + part.start - run.offset, &mut buf)?;
                self.write_link(parent, part.start, &buf)?;
            }
        }
        Ok(())
    }

    /// The ranges that some link of the chain holds, in order and joined; all else reads as zeros.
    pub(super) fn allocated(&self, link: LinkId) -> Result<Vec<Range<u64>>> {
        let capacity_bytes = self.state.disk(self.state.link(link)?.disk)?.capacity_bytes;
        let mut ranges = Vec::new();
        for link in self.state.chain(link)? {
            let runs = self.extent(link)?.present(capacity_bytes)?;
            ranges.extend(runs.iter().map(|run| run.offset..run.offset + run.length));
        }
        Ok(join(ranges))
    }
}

/// Sorts ranges and joins those that touch or overlap.
pub(super) fn join(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
