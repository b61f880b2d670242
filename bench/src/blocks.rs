//! Real blocks of a disk in memory, and the ring that reads them.
//!
//! In: a disk. Out: the numbers of its data blocks, their reads at queue depth [`QUEUE_DEPTH`],
//! and a [`Sample`] of those that are not zero, in an order in which every beginning is a fair
//! choice of the whole. Must not: write to the disk.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use gantry_common::units::BlockSize;
use gantry_dataplane::disk::Disk;
use gantry_dataplane::filter::is_zero;
use gantry_uring::buffer::{BufferPool, PooledBuf};
use gantry_uring::files::FileSlot;
use gantry_uring::ring::{Ring, RingConfig};

use crate::measure::Stopwatch;

/// Reads in flight.
pub const QUEUE_DEPTH: usize = 4;
/// The order of the sample, the same in every run.
const SEED: u64 = 2026;

/// A disk and its blocks that are no holes.
pub struct Source {
    /// The disk, open for reading past the page cache where that is possible.
    pub disk: Disk,
    /// Block size.
    pub block_size: BlockSize,
    /// Numbers of the whole blocks with data, ascending.
    pub data_blocks: Vec<u64>,
}

impl Source {
    /// Opens a disk and finds its data.
    ///
    /// # Errors
    /// It is no disk, or has no whole block of data.
    pub fn open(path: &Path, block_size: BlockSize) -> Result<Source> {
        let disk = Disk::open(path, true)?;
        let bytes = u64::from(block_size.bytes());
        let whole_blocks = disk.size_bytes() / bytes;
        let mut data_blocks = Vec::new();
        let mut offset = 0;
        while let Some((start, end)) = disk.next_data(offset)? {
            let first = data_blocks.last().map_or(0, |last| last + 1).max(start / bytes);
            data_blocks.extend(first..end.div_ceil(bytes).min(whole_blocks));
            offset = end;
        }
        ensure!(!data_blocks.is_empty(), "{} has no whole block of data", path.display());
        Ok(Source { disk, block_size, data_blocks })
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.block_size.bytes() as usize
    }

    /// Reads these blocks as the source mover does (io_uring, registered buffers and file) and
    /// hands each over. Ends early when `stop` says so.
    ///
    /// # Errors
    /// Of the ring, or a read that fails or is short.
    pub fn read(
        &self,
        blocks: &[u64],
        mut stop: impl FnMut() -> bool,
        mut take: impl FnMut(&[u8]),
    ) -> Result<usize> {
        let len = self.block_bytes();
        let pool = BufferPool::new(QUEUE_DEPTH, len).context("read buffers")?;
        let mut ring = Ring::new(&RingConfig::new(QUEUE_DEPTH as u32))?;
        // Unregistered works too, and costs what it costs there.
        let _ = ring.register_pool(&pool);
        let _ = ring.register_files(1)?;
        ring.set_file(FileSlot(0), self.disk.descriptor(0)?.context("a file or device")?)?;
        let mut waiting = blocks.iter();
        let mut done = 0;
        loop {
            while let Some(buf) = pool.try_take() {
                let Some(&block) = waiting.next().filter(|_| !stop()) else { break };
                ring.read(FileSlot(0), block * len as u64, len, buf, block)
                    .map_err(|error| anyhow!("reading block {block}: {error}"))?;
            }
            if ring.in_flight() == 0 {
                return Ok(done);
            }
            ring.wait(1, None)?;
            for completion in ring.completions() {
                let block = completion.user;
                let read = completion.result.with_context(|| format!("reading block {block}"))?;
                ensure!(read as usize == len, "block {block}: {read} of {len} bytes");
                if let Some(buf) = completion.buf {
                    take(&buf[..len]);
                }
                done += 1;
            }
        }
    }
}

/// Non-zero blocks in memory.
pub struct Sample {
    bytes: Vec<u8>,
    block_bytes: usize,
}

impl Sample {
    /// Reads up to `bytes_max` of non-zero blocks, spread evenly over the disk.
    ///
    /// # Errors
    /// A read fails, or every block is zero.
    pub fn read(source: &Source, bytes_max: u64) -> Result<Sample> {
        let block_bytes = source.block_bytes();
        let count_max = usize::try_from(bytes_max)?.div_ceil(block_bytes).max(1);
        let all = &source.data_blocks;
        let count = all.len().min(count_max);
        let mut chosen: Vec<u64> = (0..count).map(|at| all[at * all.len() / count]).collect();
        fastrand::Rng::with_seed(SEED).shuffle(&mut chosen);
        let mut bytes = Vec::with_capacity(count * block_bytes);
        source.read(
            &chosen,
            || false,
            |block| {
                if !is_zero(block) {
                    bytes.extend_from_slice(block);
                }
            },
        )?;
        let path = source.disk.label();
        ensure!(!bytes.is_empty(), "{path} holds nothing but zeros: nothing to measure");
        Ok(Sample { bytes, block_bytes })
    }

    /// Every block.
    pub fn blocks(&self) -> Vec<&[u8]> {
        self.bytes.chunks_exact(self.block_bytes).collect()
    }

    /// Bytes of it.
    pub fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The first `count` blocks as one.
    pub fn first(&self, count: usize) -> &[u8] {
        &self.bytes[..(count * self.block_bytes).min(self.bytes.len())]
    }
}

/// How much of a sample a measurement takes: so many blocks from its beginning, so many times.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Blocks of a pass.
    pub blocks: usize,
    /// Passes.
    pub passes: usize,
}

impl Load {
    /// What keeps `work` busy for a while but not beyond `seconds_max`; it has run once then.
    pub fn calibrate(blocks: &[&[u8]], seconds_max: f64, mut work: impl FnMut(&[u8])) -> Load {
        let stopwatch = Stopwatch::start();
        let mut count = 0;
        for block in blocks {
            work(block);
            count += 1;
            if stopwatch.wall_seconds() > seconds_max {
                break;
            }
        }
        let passes = 0.3 * seconds_max / stopwatch.wall_seconds().max(1e-6);
        Load { blocks: count, passes: (passes as usize).clamp(1, 1000) }
    }

    /// Bytes that go through a measurement.
    pub fn bytes(&self, blocks: &[&[u8]]) -> u64 {
        let pass: usize = blocks.iter().take(self.blocks).map(|block| block.len()).sum();
        (pass * self.passes) as u64
    }

    /// Gives the work every block of the load.
    pub fn run(&self, blocks: &[&[u8]], mut work: impl FnMut(&[u8])) {
        for _ in 0..self.passes {
            blocks.iter().take(self.blocks).for_each(|block| work(block));
        }
    }
}

/// Takes a buffer that must be free.
///
/// # Errors
/// It is not.
pub fn take(pool: &BufferPool) -> Result<PooledBuf> {
    pool.try_take().context("a buffer pool is empty")
}
