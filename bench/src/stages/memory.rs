//! The stages that only look at memory: zero scan, block id, checksum of stored bytes.
//!
//! In: the sample. Out: a [`Stage`] each. The references work on the same memory.

use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use gantry_common::ids::{IdKey, StoredChecksum};
use gantry_common::units::Compression;
use gantry_dataplane::filter::is_zero;

use super::{Bench, stored};
use crate::blocks::Load;
use crate::measure::{Contender, Cost, STAGE_BAR, Stage, Stopwatch, race};

/// Zero bytes that are scanned: far beyond any cache.
const ZERO_BYTES: usize = 256 << 20;

/// Real blocks: the scan ends at the first bytes that are not zero.
pub(super) fn scan_data(bench: &mut Bench<'_>) -> Result<Stage> {
    let blocks = bench.sample.blocks();
    let load = Load::calibrate(&blocks, bench.seconds_max(), scan);
    let ours = || Ok(timed(load, &blocks, scan));
    race("scan data", None, bench.runs(), vec![Contender::new("is_zero", ours)])
}

/// Zeros out of the cache, beside what memcmp reads.
pub(super) fn scan_zero(bench: &mut Bench<'_>) -> Result<Stage> {
    // Written, so that each page exists: fresh zeros are all one page of the kernel's, which stays
    // in the cache.
    let mut zeros = black_box(vec![1u8; ZERO_BYTES]);
    zeros.fill(0);
    let blocks: Vec<&[u8]> = zeros.chunks_exact(bench.block_bytes()).collect();
    let load = Load::calibrate(&blocks, bench.seconds_max(), scan);
    let ours = || Ok(timed(load, &blocks, scan));
    let compare = || {
        Ok(timed(load, &blocks, |block| {
            let (left, right) = black_box(block).split_at(block.len() / 2);
            black_box(left == right);
        }))
    };
    let contenders =
        vec![Contender::new("is_zero", ours), Contender::new("memcmp of both halves", compare)];
    race("scan zero", None, bench.runs(), contenders)
}

fn scan(block: &[u8]) {
    black_box(is_zero(black_box(block)));
}

/// The block id: BLAKE3 with the repository's key.
pub(super) fn hash(bench: &mut Bench<'_>) -> Result<Stage> {
    let blocks = bench.sample.blocks();
    let key = IdKey([7; 32]);
    let work = |block: &[u8]| {
        black_box(key.block_id(black_box(block)));
    };
    let load = Load::calibrate(&blocks, bench.seconds_max(), work);
    let ours = || Ok(timed(load, &blocks, work));
    let library = || Ok(timed(load, &blocks, plain_hash));
    let mut contenders =
        vec![Contender::new("IdKey", ours), Contender::new("blake3 crate, hash()", library)];
    let file = bench.work.path().join("hash.blocks");
    if on_path("b3sum") {
        std::fs::write(&file, bench.sample.first(load.blocks))?;
        contenders.push(Contender::new("b3sum, of a file", move || b3sum(&file)));
    }
    race("hash", Some(STAGE_BAR), bench.runs(), contenders)
}

/// The checksum of stored bytes: BLAKE3 without a key, cut.
pub(super) fn checksum(bench: &mut Bench<'_>) -> Result<Stage> {
    let stored = stored::compress(bench.sample, Compression::Optimal, bench.seconds_max())?;
    let blocks: Vec<&[u8]> = stored.iter().map(|block| block.bytes.as_ref()).collect();
    let work = |block: &[u8]| {
        black_box(StoredChecksum::of(black_box(block)));
    };
    let load = Load::calibrate(&blocks, bench.seconds_max(), work);
    let contenders = vec![
        Contender::new("StoredChecksum", || Ok(timed(load, &blocks, work))),
        Contender::new("blake3 crate, hash()", || Ok(timed(load, &blocks, plain_hash))),
    ];
    race("checksum", Some(STAGE_BAR), bench.runs(), contenders)
}

fn plain_hash(block: &[u8]) {
    black_box(blake3::hash(black_box(block)));
}

/// What the work costs over the whole load.
fn timed(load: Load, blocks: &[&[u8]], work: impl FnMut(&[u8])) -> Cost {
    let bytes = load.bytes(blocks);
    let stopwatch = Stopwatch::start();
    load.run(blocks, work);
    stopwatch.cost(bytes)
}

fn on_path(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn b3sum(file: &Path) -> Result<Cost> {
    let bytes = std::fs::metadata(file)?.len();
    let stopwatch = Stopwatch::start();
    let status = Command::new("b3sum")
        .args(["--num-threads", "1"])
        .arg(file)
        .stdout(Stdio::null())
        .status()
        .context("b3sum")?;
    ensure!(status.success(), "b3sum failed");
    Ok(Cost { cpu_seconds: None, ..stopwatch.cost(bytes) })
}
