//! `gantry-bench end-to-end`: the whole road between two real mover processes.
//!
//! In: an image, perhaps its second version with the list of changes, a built `gantry-mover`.
//! Out: an [`EndToEndReport`]: each phase's time, CPU, memory and bytes, beside the sum of the
//! stages measured in the same run. Invariant: what was restored was compared byte for byte, or
//! the run failed. Must not: end processes that it did not start.
//!
//! ```text
//! a run:  new repository ── full v1 ──┬── copy ── incremental by extents to v2 ── restore, compare
//!                                     └────────── incremental by compare to v2 ── restore, compare
//! ```

mod mover;
mod disks;
mod expected;
mod rounds;

pub(crate) use self::mover::program as mover_program;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::arguments::{EndToEndArguments, StagesArguments};
use crate::machine::Machine;
use crate::measure::Spread;
use crate::stages::{self, StagesReport, compress_name, decompress_name, work_folder};

/// What `end-to-end` found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndToEndReport {
    /// Where.
    pub machine: Machine,
    /// On what.
    pub image: PathBuf,
    /// `quic` or `tcp`.
    pub transport: String,
    /// Level.
    pub compression: String,
    /// Workers that were asked for.
    pub workers: Option<usize>,
    /// Whether the page cache was dropped before each phase, and how.
    pub cache: String,
    /// Rounds.
    pub runs: usize,
    /// Full, incrementals, restore.
    pub phases: Vec<Phase>,
    /// The stages' costs that `expected` is made of.
    pub stages: StagesReport,
    /// What makes figures doubtful.
    pub notes: Vec<String>,
}

/// One phase over all rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Phase {
    /// `full`, `incremental by extents`, `incremental by compare`, `restore`.
    pub name: String,
    /// From the start of the client process to its end.
    pub wall_seconds: Spread,
    /// Of the process that backs up or restores.
    pub cpu_seconds_client: Spread,
    /// Of the repository mover meanwhile.
    pub cpu_seconds_server: Spread,
    /// Largest in any round.
    pub rss_bytes_client: u64,
    /// Largest in any round.
    pub rss_bytes_server: u64,
    /// Of the last round.
    pub bytes: Bytes,
    /// What the repository takes on the disk afterwards, everything counted.
    pub repository_bytes: u64,
    /// What the stages alone would cost; nothing if one of them was not measured.
    pub expected: Option<Expected>,
}

/// What went through a phase, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Bytes {
    /// Read from the source (restore: stored bytes read from packs).
    pub read: u64,
    /// In blocks that are not zero, raw: hashed.
    pub content: u64,
    /// Of them compressed or decompressed.
    pub coded: u64,
    /// Stored bytes over the network.
    pub transferred: u64,
    /// Growth of the repository (restore: bytes written to the disk).
    pub stored: u64,
}

/// The sum of the stages.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Expected {
    /// Each stage's share.
    pub parts: Vec<Part>,
    /// All of them.
    pub cpu_seconds: f64,
    /// The same over the machine's cores.
    pub wall_seconds: f64,
    /// What the phase took for each second of that.
    pub ratio: Spread,
    /// Largest ratio that is good enough; nothing if there is no bar for this phase.
    pub ratio_max: Option<f64>,
}

/// One stage's share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Part {
    /// The stage.
    pub stage: String,
    /// Bytes through it.
    pub bytes: u64,
    /// What they cost at the stage's own price.
    pub cpu_seconds: f64,
}

/// Measures everything.
///
/// # Errors
/// A mover fails, a restored disk differs, or a measurement fails.
pub fn run(arguments: &EndToEndArguments) -> Result<EndToEndReport> {
    let machine = Machine::here();
    ensure!(arguments.sample.runs > 0, "runs must be more than 0");
    let mover = mover::program(arguments.mover.as_deref())?;
    let mut folder = work_folder(&arguments.sample)?;
    folder.disable_cleanup(arguments.keep);
    let stages = stage_costs(arguments)?;
    let mut notes = machine.warnings();
    let cache = match (arguments.cold, disks::drop_page_cache(&[])) {
        (false, _) => "page cache left as it is",
        (true, true) => "page cache dropped before each phase",
        (true, false) => "page cache of the files in use dropped before each phase",
    };
    if arguments.keep {
        notes.push(format!("kept: {}", folder.path().display()));
    }
    let rounds = rounds::run(arguments, &mover, folder.path())?;
    let phases = expected::phases(arguments, &machine, &stages, &rounds);
    Ok(EndToEndReport {
        machine,
        image: arguments.sample.image.clone(),
        transport: arguments.transport.name().to_owned(),
        compression: arguments.compression.to_string(),
        workers: arguments.workers,
        cache: cache.to_owned(),
        runs: arguments.sample.runs,
        phases,
        stages,
        notes,
    })
}

/// From the file, or measured now.
fn stage_costs(arguments: &EndToEndArguments) -> Result<StagesReport> {
    if let Some(file) = &arguments.stages {
        let read = std::fs::read(file).with_context(|| format!("stages in {}", file.display()))?;
        let what = || format!("{} is not what stages --json prints", file.display());
        return serde_json::from_slice(&read).with_context(what);
    }
    let only = [
        "read".to_owned(),
        "scan".to_owned(),
        "hash".to_owned(),
        "checksum".to_owned(),
        compress_name(arguments.compression),
        decompress_name(arguments.compression),
        arguments.transport.name().to_owned(),
        "write".to_owned(),
    ];
    stages::run(&StagesArguments { sample: arguments.sample.clone(), only: only.into() })
}
