//! `cargo xtask fuzz-api`: gantryd's REST API against schemathesis, by gantryd's own document.
//!
//! In: seconds, a seed. Out: an error if any answer is not as the document says, is a 5xx that it does
//! not name, or if somebody is let in who should not be. gantryd runs with an empty state folder on the
//! loopback interface; `drive.py` is the run, `hooks.py` what is particular to this API. Needs the
//! package index of Python for the first run; leaves an environment under `target/`, nothing else.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::cleanup::{Guard, Undo};
use crate::demo::programs::Programs;
use crate::demo::{self, site};
use crate::{packages, shell};

/// What the environment holds, every package by its version.
const REQUIREMENTS: &str = include_str!("fuzz/requirements.txt");

/// Runs it.
///
/// # Errors
/// When an answer is wrong, or something cannot be started.
pub fn run(seconds: u64, seed: Option<u32>, programs: Option<PathBuf>) -> Result<()> {
    shell::step("packages", || packages::ensure(packages::Task::Fuzz))?;
    let programs = match programs {
        Some(folder) => Programs::of(&std::path::absolute(folder)?),
        None => shell::step("build gantryd (release)", || demo::build(&["gantry-control"]))?,
    };
    let parent = crate::root().join("target");
    std::fs::create_dir_all(&parent)?;
    let python = shell::step("schemathesis", || environment(&parent.join("fuzz-api")))?;
    let folder = tempfile::Builder::new().prefix("fuzz-api-").tempdir_in(&parent)?.keep();
    let guard = Guard::new(Undo::RemoveFolder(folder.clone()));
    let seed = seed.unwrap_or_else(|| fastrand::u32(..));
    let (gantryd, ready) = site::start_gantryd(&programs, &folder)?;
    let api = ready["ready"]["api"].as_str().context("gantryd does not tell its address")?;
    let state = folder.join("gantryd");
    let facts = json!({
        "api": format!("https://{api}"),
        "ca": state.join("ca.pem"),
        "token_file": state.join("admin.token"),
        "folder": folder,
        "seconds": seconds,
        "seed": seed,
    });
    let file = folder.join("fuzz.json");
    std::fs::write(&file, facts.to_string())?;
    println!("    {seconds} s, seed {seed} (again: cargo xtask fuzz-api --seed {seed})");
    let script = crate::root().join("tools/xtask/src/fuzz/drive.py");
    let mut drive = shell::command(&python.to_string_lossy());
    let driven = shell::step("requests", || shell::show(drive.arg(script).arg(&file)));
    let driven = driven.inspect_err(|_| eprintln!("{}", gantryd.last_words()));
    let stopped = gantryd.stop();
    drop(guard);
    driven?;
    stopped.context("after the requests")
}

/// The Python of an environment with everything in [`REQUIREMENTS`]; made once.
fn environment(folder: &Path) -> Result<PathBuf> {
    let python = folder.join("bin/python");
    let mark = folder.join("requirements.txt");
    if std::fs::read_to_string(&mark).is_ok_and(|made| made == REQUIREMENTS) {
        return Ok(python);
    }
    let make = ["-m", "venv", "--clear"];
    shell::output(shell::command("python3").args(make).arg(folder))?;
    // Written when the rest is there: an environment that is made in part is made again.
    let wanted = folder.join("wanted.txt");
    std::fs::write(&wanted, REQUIREMENTS)?;
    let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--requirement"];
    shell::output(shell::command(&python.to_string_lossy()).args(install).arg(&wanted))?;
    std::fs::rename(&wanted, &mark)?;
    Ok(python)
}
