//! Compression and decompression at every level, beside `zstd -b` and the linked library.
//!
//! In: the sample. Out: two [`Stage`]s a level. The references get exactly the blocks that
//! Gantry's way got within its time. The level `none` copies; so does its reference.

use std::cell::RefCell;

use anyhow::{Result, anyhow};
use gantry_common::units::Compression;
use gantry_common::wire::Codec;
use gantry_dataplane::compress::{Compressor, Decompressor};
use zstd_safe::{CCtx, CParameter, DCtx};

use super::stored::{self, Stored};
use super::zstd_program::{self, Program, Speeds};
use super::{Bench, compress_name, decompress_name};
use crate::blocks::Load;
use crate::measure::{Contender, Cost, STAGE_BAR, Stage, Stopwatch, race};

pub(super) fn measure(bench: &mut Bench<'_>, level: Compression) -> Result<[Stage; 2]> {
    let mut blocks = bench.sample.blocks();
    let mut compressor = Compressor::new(level)?;
    let mut out = vec![0; bench.block_bytes()];
    let load = Load::calibrate(&blocks, bench.seconds_max(), |block| {
        compressor.compress(block, &mut out);
    });
    blocks.truncate(load.blocks);
    let program = Program::find();
    if program.is_none() {
        bench.note("zstd is not installed: its own benchmark is left out");
    }
    let speeds = RefCell::new(Vec::new());
    let compress = compress(bench, level, &blocks, program.as_ref(), &speeds)?;
    let decompress = decompress(bench, level, blocks.len(), program.as_ref(), &speeds.take())?;
    Ok([compress, decompress])
}

fn compress(
    bench: &Bench<'_>,
    level: Compression,
    blocks: &[&[u8]],
    program: Option<&Program>,
    all_speeds: &RefCell<Vec<Speeds>>,
) -> Result<Stage> {
    let block_bytes = bench.block_bytes();
    let bytes = (blocks.len() * block_bytes) as u64;
    let mut compressor = Compressor::new(level)?;
    let mut out = vec![0; block_bytes];
    let ours = || {
        let stopwatch = Stopwatch::start();
        let stored = blocks.iter().map(|block| compressor.compress(block, &mut out).len);
        let stored: usize = stored.sum();
        Ok((stopwatch.cost(bytes), Some(format!("stored {:.4}", stored as f64 / bytes as f64))))
    };
    let mut contenders = vec![Contender::noting("Compressor", ours)];
    let Some(zstd_level) = level.zstd_level() else {
        contenders.push(Contender::new("memory copy", move || Ok(copy(blocks))));
        return race(&compress_name(level), None, bench.runs(), contenders);
    };
    let file = bench.work.path().join("zstd.blocks");
    if let Some(program) = program {
        std::fs::write(&file, bench.sample.first(blocks.len()))?;
        contenders.push(Contender::noting(program.name(zstd_level), move || {
            let speeds = program.benchmark(&file, zstd_level, block_bytes)?;
            all_speeds.borrow_mut().push(speeds);
            let cost = zstd_program::cost(bytes, speeds.compress);
            Ok((cost, Some(format!("stored {:.4}", 1.0 / speeds.ratio))))
        }));
    }
    let mut context = CCtx::create();
    context.set_parameter(CParameter::CompressionLevel(zstd_level)).map_err(zstd_error)?;
    let mut room = vec![0; zstd_safe::compress_bound(block_bytes)];
    contenders.push(Contender::new(library_name(), move || {
        let stopwatch = Stopwatch::start();
        for block in blocks {
            context.compress2(&mut room[..], block).map_err(zstd_error)?;
        }
        Ok(stopwatch.cost(bytes))
    }));
    race(&compress_name(level), Some(STAGE_BAR), bench.runs(), contenders)
}

/// The way back of the same blocks; zstd's program has measured it along with its compression.
fn decompress(
    bench: &Bench<'_>,
    level: Compression,
    count: usize,
    program: Option<&Program>,
    speeds: &[Speeds],
) -> Result<Stage> {
    let mut all = stored::compress(bench.sample, level, bench.seconds_max())?;
    all.truncate(count);
    let bytes = (all.len() * bench.block_bytes()) as u64;
    let mut decompressor = Decompressor::new()?;
    let mut out = vec![0; bench.block_bytes()];
    let ours = || {
        let stopwatch = Stopwatch::start();
        for Stored { head, bytes } in &all {
            decompressor.decompress(head, bytes, &mut out)?;
        }
        Ok(stopwatch.cost(bytes))
    };
    let mut contenders = vec![Contender::new("Decompressor", ours)];
    let Some(zstd_level) = level.zstd_level() else {
        let copied = || Ok(copy(&all.iter().map(|block| &block.bytes[..]).collect::<Vec<_>>()));
        contenders.push(Contender::new("memory copy", copied));
        return race(&decompress_name(level), None, bench.runs(), contenders);
    };
    let mut rounds = speeds.iter().cycle();
    if let Some(program) = program {
        contenders.push(Contender::new(program.name(zstd_level), move || {
            let speeds = rounds.next().ok_or_else(|| anyhow!("zstd printed no figure"))?;
            Ok(zstd_program::cost(bytes, speeds.decompress))
        }));
    }
    let mut context = DCtx::create();
    let mut room = vec![0; bench.block_bytes()];
    let stored = &all;
    contenders.push(Contender::new(library_name(), move || {
        let stopwatch = Stopwatch::start();
        for Stored { head, bytes } in stored {
            match head.codec {
                Codec::Raw => room.copy_from_slice(bytes),
                Codec::Zstd => {
                    context.decompress(&mut room[..], bytes).map_err(zstd_error)?;
                }
            }
        }
        Ok(stopwatch.cost(bytes))
    }));
    race(&decompress_name(level), Some(STAGE_BAR), bench.runs(), contenders)
}

fn library_name() -> String {
    format!("libzstd {} as linked", zstd_safe::version_string())
}

fn zstd_error(code: usize) -> anyhow::Error {
    anyhow!("zstd: {}", zstd_safe::get_error_name(code))
}

fn copy(blocks: &[&[u8]]) -> Cost {
    let mut out = vec![0; blocks.first().map_or(0, |block| block.len())];
    let bytes: usize = blocks.iter().map(|block| block.len()).sum();
    let stopwatch = Stopwatch::start();
    for block in blocks {
        std::hint::black_box(&mut out[..]).copy_from_slice(block);
    }
    stopwatch.cost(bytes as u64)
}
