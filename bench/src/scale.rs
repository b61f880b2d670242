//! `gantry-bench scale`: what looking after a repository costs as it grows.
//!
//! In: numbers of blocks. Out: a [`ScaleReport`]: for each, a repository of that many blocks is
//! made (see [`synthetic`]) and a real `gantry-mover` opens it, counts it and collects in it; time,
//! CPU and peak memory of that process. Invariant: every figure is of the product's own code on a
//! real index, real map nodes and real footers; only the blocks' own bytes are holes.

mod synthetic;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::arguments::ScaleArguments;
use crate::end_to_end::mover_program;
use crate::machine::Machine;
use crate::process::{self, Finished};

/// What `scale` found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScaleReport {
    /// Where.
    pub machine: Machine,
    /// One for each number of blocks.
    pub sizes: Vec<Size>,
    /// What makes figures doubtful.
    pub notes: Vec<String>,
}

/// One repository.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Size {
    /// Blocks in it.
    pub blocks: u64,
    /// Pack files.
    pub packs: u64,
    /// Map leaves that its points have, each counted once.
    pub leaves: u64,
    /// Bytes of the index file.
    pub index_bytes: u64,
    /// Seconds that making it took.
    pub made_seconds: f64,
    /// What was done with it.
    pub steps: Vec<Step>,
}

/// One run of the program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    /// What was run.
    pub name: String,
    /// From its start to its end.
    pub wall_seconds: f64,
    /// All threads.
    pub cpu_seconds: f64,
    /// Largest resident set.
    pub rss_bytes: u64,
    /// What it reported, as far as it matters here.
    pub said: Value,
}

/// Measures everything.
///
/// # Errors
/// A repository cannot be made, or the program fails or says something else than what was made.
pub fn run(arguments: &ScaleArguments) -> Result<ScaleReport> {
    let machine = Machine::here();
    let mover = mover_program(arguments.mover.as_deref())?;
    let mut sizes = Vec::new();
    for &blocks in &arguments.blocks {
        sizes.push(size(arguments, &mover, blocks)?);
    }
    Ok(ScaleReport { notes: machine.warnings(), machine, sizes })
}

fn size(arguments: &ScaleArguments, mover: &Path, blocks: u64) -> Result<Size> {
    ensure!(blocks >= 100_000, "a repository of {blocks} blocks tells nothing: 100000 or more");
    let parent = arguments.work.clone().unwrap_or_else(std::env::temp_dir);
    let made = tempfile::Builder::new().prefix("gantry-scale-").tempdir_in(&parent);
    let mut folder = made.with_context(|| format!("a work folder in {}", parent.display()))?;
    folder.disable_cleanup(arguments.keep);
    let dir = folder.path().join("repository");
    let started = std::time::Instant::now();
    let made = synthetic::make(&dir, blocks)?;
    let made_seconds = started.elapsed().as_secs_f64();
    let index_bytes = std::fs::metadata(dir.join("index/index.redb"))?.len();
    let mut steps = Vec::new();
    let keep = |value: &Value, names: &[&str]| -> Value {
        names.iter().map(|name| ((*name).to_owned(), value[*name].clone())).collect()
    };
    let stat = program(mover, &["repo", "stat"], &dir)?;
    let counted = keep(&stat.json, &["blocks", "packs", "points"]);
    ensure!(counted["blocks"] == blocks, "{counted} counted, {blocks} made");
    steps.push(step("open and count", stat, counted));
    const COLLECTED: [&str; 8] = [
        "nodes_visited",
        "records_live",
        "records_dead",
        "packs_removed",
        "packs_punched",
        "packs_rewritten",
        "ms_mark",
        "ms_sweep",
    ];
    for (name, dry_run) in [("collect, dry run", true), ("collect", false)] {
        let words = if dry_run { vec!["repo", "gc", "--dry-run"] } else { vec!["repo", "gc"] };
        let collected = program(mover, &words, &dir)?;
        let said = keep(&collected.json, &COLLECTED);
        ensure!(said["records_live"] == made.records_live, "{said}, but {made:?}");
        steps.push(step(name, collected, said));
    }
    let again = program(mover, &["repo", "gc"], &dir)?;
    let said = keep(&again.json, &COLLECTED);
    ensure!(said["records_live"] == made.records_live, "{said}, but {made:?}");
    steps.push(step("collect, nothing to do", again, said));
    let (packs, leaves) = (made.packs, made.leaves);
    Ok(Size { blocks, packs, leaves, index_bytes, made_seconds, steps })
}

fn program(mover: &Path, words: &[&str], dir: &Path) -> Result<Finished> {
    process::run(Command::new(mover).args(words).arg(dir).arg("--json"))
}

fn step(name: &str, finished: Finished, said: Value) -> Step {
    let Finished { wall_seconds, cpu_seconds, rss_bytes, .. } = finished;
    Step { name: name.to_owned(), wall_seconds, cpu_seconds, rss_bytes, said }
}
