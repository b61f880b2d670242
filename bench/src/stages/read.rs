//! The read stage: io_uring, O_DIRECT, queue depth 4, registered; beside plain pread.
//!
//! In: the image's data blocks, ascending. Out: a [`Stage`]. No library claims a figure for this,
//! so there is no bar.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use gantry_uring::buffer::BufferPool;

use super::Bench;
use crate::blocks::{QUEUE_DEPTH, take};
use crate::measure::{Contender, Stage, Stopwatch, race};

pub(super) fn measure(bench: &mut Bench<'_>) -> Result<Stage> {
    let source = bench.source;
    let stopwatch = Stopwatch::start();
    let stop = || stopwatch.wall_seconds() > bench.seconds_max();
    let count = source.read(&source.data_blocks, stop, |_| {})?.max(1);
    let blocks = &source.data_blocks[..count];
    let bytes = (count * source.block_bytes()) as u64;
    let ring = || {
        let stopwatch = Stopwatch::start();
        source.read(
            blocks,
            || false,
            |block| {
                std::hint::black_box(block);
            },
        )?;
        Ok(stopwatch.cost(bytes))
    };
    let pool = BufferPool::new(1, source.block_bytes())?;
    let plain = || {
        let stopwatch = Stopwatch::start();
        let file = std::fs::File::from(source.disk.descriptor(0)?.context("a file or device")?);
        let mut buf = take(&pool)?;
        let len = source.block_bytes();
        for block in blocks {
            file.read_exact_at(&mut buf[..len], block * len as u64)?;
        }
        Ok(stopwatch.cost(bytes))
    };
    let name = format!("io_uring, depth {QUEUE_DEPTH}");
    let contenders =
        vec![Contender::new(name, ring), Contender::new("pread, one at a time", plain)];
    race("read", None, bench.runs(), contenders)
}
