//! `gantry-bench stages`: what each stage costs on an image's real blocks.
//!
//! In: an image. Out: a [`StagesReport`]. Stages stand in the order in which a block travels.
//! Must not: compare with figures of another run.

mod read;
mod memory;
mod compress;
mod zstd_program;
mod stored;
mod network;
mod gantry_link;
mod bare_tls;
mod bare_quinn;
mod bare_certificates;
mod write;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use gantry_common::units::Compression;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::arguments::{SampleArguments, StagesArguments};
use crate::blocks::{Sample, Source};
use crate::machine::Machine;
use crate::measure::Stage;

/// What `stages` found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StagesReport {
    /// Where.
    pub machine: Machine,
    /// On what.
    pub image: PathBuf,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Bytes of the sample in memory.
    pub sample_bytes: u64,
    /// How the image was read: direct, or through the page cache and why.
    pub read_mode: String,
    /// Rounds of each measurement.
    pub runs: usize,
    /// Every stage.
    pub stages: Vec<Stage>,
    /// What makes figures doubtful, what was left out and why.
    pub notes: Vec<String>,
}

impl StagesReport {
    /// A stage by its name.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}

/// Name of a level's compression stage.
pub fn compress_name(level: Compression) -> String {
    format!("compress {level}")
}

/// Name of a level's decompression stage.
pub fn decompress_name(level: Compression) -> String {
    format!("decompress {level}")
}

/// What every stage needs.
struct Bench<'a> {
    sample: &'a Sample,
    source: &'a Source,
    arguments: &'a SampleArguments,
    work: TempDir,
    notes: Vec<String>,
}

impl Bench<'_> {
    fn runs(&self) -> usize {
        self.arguments.runs
    }

    fn block_bytes(&self) -> usize {
        self.source.block_bytes()
    }

    fn seconds_max(&self) -> f64 {
        self.arguments.seconds_max
    }

    /// Keeps a note, once.
    fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|old| old == note) {
            self.notes.push(note.to_owned());
        }
    }
}

type Measure = fn(&mut Bench<'_>) -> Result<Stage>;

/// Measures every stage that `only` names; all without it.
///
/// # Errors
/// The image cannot be read, or a measurement fails.
pub fn run(arguments: &StagesArguments) -> Result<StagesReport> {
    let machine = Machine::here();
    let given = &arguments.sample;
    ensure!(given.seconds_max > 0.0 && given.runs > 0, "seconds and runs must be more than 0");
    let source = Source::open(&given.image, given.block_size)?;
    let sample = Sample::read(&source, given.sample)?;
    let access = source.disk.access().context("a file or device")?;
    let read_mode = match (&access.note, access.direct) {
        (_, true) => "past the page cache (O_DIRECT)".to_owned(),
        (note, false) => format!("through the page cache: {}", note.as_deref().unwrap_or("")),
    };
    let work = work_folder(given)?;
    let notes = machine.warnings();
    let mut bench = Bench { sample: &sample, source: &source, arguments: given, work, notes };
    let wanted = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|word| name.contains(word.as_str()))
    };
    let mut stages = Vec::new();
    for (name, measure) in ALL {
        if wanted(name) {
            stages.push(measure(&mut bench).with_context(|| format!("stage {name}"))?);
        }
    }
    for level in Compression::ALL {
        let names = [compress_name(level), decompress_name(level)];
        if names.iter().any(|name| wanted(name)) {
            let both = compress::measure(&mut bench, level);
            let both = both.with_context(|| format!("stage {}", names[0]))?;
            stages.extend(both.into_iter().filter(|stage| wanted(&stage.name)));
        }
    }
    for (name, measure) in AFTER_COMPRESSION {
        if wanted(name) {
            stages.push(measure(&mut bench).with_context(|| format!("stage {name}"))?);
        }
    }
    Ok(StagesReport {
        machine,
        image: given.image.clone(),
        block_bytes: given.block_size.bytes(),
        sample_bytes: sample.len_bytes(),
        read_mode,
        runs: given.runs,
        stages,
        notes: bench.notes,
    })
}

const ALL: [(&str, Measure); 4] = [
    ("read", read::measure),
    ("scan data", memory::scan_data),
    ("scan zero", memory::scan_zero),
    ("hash", memory::hash),
];

const AFTER_COMPRESSION: [(&str, Measure); 5] = [
    ("checksum", memory::checksum),
    ("quic 1452", network::quic_1452),
    ("quic", network::quic),
    ("tcp", network::tcp),
    ("write", write::measure),
];

/// A folder of our own in the one that was given; gone at the end.
///
/// # Errors
/// It cannot be made.
pub fn work_folder(arguments: &SampleArguments) -> Result<TempDir> {
    let parent = arguments.work.clone().unwrap_or_else(std::env::temp_dir);
    let made = tempfile::Builder::new().prefix("gantry-bench-").tempdir_in(&parent);
    made.with_context(|| format!("a work folder in {}", parent.display()))
}
