//! A walk along the disk that remembers, for each link, the run that it found last.
//!
//! In: a place on the disk. Out: a [`Piece`]: bytes that come from one place. Invariant: walking
//! forward looks at each entry of each link's tables once, however the links' runs interleave.
//! Must not: read data.

use crate::error::VmdkError;
use crate::link::{Body, Extent, Link};
use crate::sparse::{Purpose, Run, State};
use crate::tables::TableCache;

/// Bytes of the disk that come from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) link: usize,
    pub(super) extent: usize,
    /// Where the place begins on the disk; may be before what was asked for.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) state: State,
}

/// What each link had where it was looked at last, in bytes of the disk.
#[derive(Debug)]
pub(super) struct Cursor {
    purpose: Purpose,
    runs: Vec<Option<(usize, Run)>>,
}

impl Cursor {
    pub(super) fn new(links: usize, purpose: Purpose) -> Cursor {
        Cursor { purpose, runs: vec![None; links] }
    }

    /// Where the bytes from `at` on come from, up to `end` at most.
    pub(super) fn piece(
        &mut self,
        links: &[Link],
        tables: &TableCache,
        at: u64,
        end: u64,
    ) -> Result<Piece, VmdkError> {
        let mut end = end;
        for (number, link) in links.iter().enumerate() {
            if at >= link.size_bytes {
                break;
            }
            end = end.min(link.size_bytes);
            let (extent, run) = self.run(number, link, tables, at, end)?;
            end = end.min(run.end);
            if run.state != State::Unallocated {
                return Ok(Piece { link: number, extent, start: run.start, end, state: run.state });
            }
        }
        Ok(Piece { link: 0, extent: 0, start: at, end, state: State::Zero })
    }

    fn run(
        &mut self,
        number: usize,
        link: &Link,
        tables: &TableCache,
        at: u64,
        end: u64,
    ) -> Result<(usize, Run), VmdkError> {
        if let Some((extent, run)) = self.runs[number]
            && run.start <= at
            && at < run.end
        {
            return Ok((extent, run));
        }
        let index = link.extents.partition_point(|extent| extent.end <= at);
        let extent = &link.extents[index];
        let mut run = look_up(extent, tables, at, end.min(extent.end), self.purpose)?;
        run.end = run.end.min(extent.end);
        self.runs[number] = Some((index, run));
        Ok((index, run))
    }
}

/// The run of `extent` at `at`, in bytes of the disk.
fn look_up(
    extent: &Extent,
    tables: &TableCache,
    at: u64,
    end: u64,
    purpose: Purpose,
) -> Result<Run, VmdkError> {
    let (start, within) = (extent.start, at - extent.start);
    match &extent.body {
        Body::Zero => Ok(Run { start: at, end: extent.end, state: State::Zero }),
        Body::Flat(_, offset) if purpose == Purpose::Read => {
            Ok(Run { start, end: extent.end, state: State::Data(*offset) })
        }
        Body::Flat(file, offset) => {
            let place = offset + within;
            let (end, data) = file.data_or_hole(place)?;
            let state = if data { State::Data(place) } else { State::Zero };
            Ok(Run { start: at, end: at + (end - place), state })
        }
        Body::Sparse(sparse) => {
            let run = sparse.look_up(tables, within, end - start, purpose)?;
            Ok(Run { start: start + run.start, end: start + run.end, state: run.state })
        }
    }
}
