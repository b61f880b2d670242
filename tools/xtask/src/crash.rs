//! `cargo xtask crash` and `cargo xtask planted`: the crash suite at length, and against bugs that
//! were planted to see whether it sees.
//!
//! In: counts; the patches of `dataplane/tests/planted`. Out: counts of runs and crashes; for each
//! planted bug the assertion and the seed that caught it. Planted bugs live in a copy of the
//! sources under `target/`: the tree itself is never touched.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Where the planted bugs stand, relative to the root.
const PLANTED: &str = "dataplane/tests/planted";

/// Runs the crash suite with so many seeds, and a crash at each operation of its scripts, built
/// with optimisation.
///
/// # Errors
/// If a seed fails: its number and all that it did are printed.
pub fn run(runs: u64, threads: Option<u64>) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let mut cargo = shell::cargo(&crate::root());
    cargo.args(["test", "--release", "--package", "gantry-dataplane", "--test", "crash_suite"]);
    cargo.args(["--", "--nocapture"]);
    cargo.env("GANTRY_CRASH_RUNS", runs.to_string());
    cargo.env("GANTRY_CRASH_THREADS", threads.unwrap_or(cores).to_string());
    cargo.env("GANTRY_CRASH_LONG", "1");
    shell::show(&mut cargo)
}

/// Plants each bug in a copy of the sources, and demands that the crash suite fails.
///
/// # Errors
/// If a bug goes unnoticed, or its patch does not apply any more.
pub fn planted(only: Option<&str>, runs: u64) -> Result<()> {
    let root = crate::root();
    let copy = root.join("target/planted/source");
    let mut patches: Vec<PathBuf> = std::fs::read_dir(root.join(PLANTED))
        .with_context(|| format!("cannot list {PLANTED}"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .collect();
    patches.sort();
    let mut unnoticed = Vec::new();
    println!("{:<44} {:>7}  caught by", "planted bug", "seconds");
    for patch in patches {
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        copy_sources(&root, &copy)?;
        let mut apply = shell::command("git");
        apply.args(["apply", "--directory=target/planted/source"]).arg(&patch);
        shell::output(apply.current_dir(&root))
            .with_context(|| format!("{name}: the patch does not apply any more: renew it"))?;
        let begun = Instant::now();
        let caught = suite_fails(&root, &copy, runs).with_context(|| name.clone())?;
        let seconds = begun.elapsed().as_secs();
        println!("{name:<44} {seconds:>7}  {}", caught.as_deref().unwrap_or("NOTHING"));
        if caught.is_none() {
            unnoticed.push(name);
        }
    }
    if unnoticed.is_empty() { Ok(()) } else { bail!("unnoticed: {}", unnoticed.join(", ")) }
}

/// Copies what git knows of the tree, as it stands; unchanged files keep their times, so that only
/// what a patch touches is built anew.
fn copy_sources(root: &Path, copy: &Path) -> Result<()> {
    let listed = {
        let mut list = shell::command("git");
        list.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
        shell::output(list.current_dir(root))?
    };
    for file in listed.lines() {
        let (from, to) = (root.join(file), copy.join(file));
        let Ok(bytes) = std::fs::read(&from) else { continue };
        if std::fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

/// Runs the suite on the copy: what it says first, if it fails as it should.
fn suite_fails(root: &Path, copy: &Path, runs: u64) -> Result<Option<String>> {
    let target = root.join("target/planted/target");
    let suite = |arguments: &[&str]| {
        let mut cargo = shell::cargo(copy);
        cargo.args(["test", "--package", "gantry-dataplane", "--test", "crash_suite"]);
        cargo.args(arguments).env("CARGO_TARGET_DIR", &target);
        cargo.env("GANTRY_CRASH_RUNS", runs.to_string()).env("RUST_BACKTRACE", "0");
        cargo
    };
    shell::output(&mut suite(&["--no-run"])).context("it does not build")?;
    let mut run: Command = suite(&["--", "--nocapture", "random_histories"]);
    let done = run.output().context("cannot start cargo")?;
    if done.status.success() {
        return Ok(None);
    }
    let said =
        String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
    let after = |mark: &str| {
        let mut lines = said.lines().skip_while(|line| !line.contains(mark));
        lines.next().map(str::to_owned).zip(lines.next().map(str::to_owned))
    };
    let assertion = after("panicked at").map(|(_, assertion)| assertion);
    let seed = after("GANTRY_CRASH_SEED=").map(|(line, _)| line);
    let (Some(assertion), Some(seed)) = (assertion, seed) else {
        bail!("it fails, but not in a run: {said}");
    };
    let seed = seed.split_whitespace().next().unwrap_or_default().to_owned();
    let short: String = assertion.chars().take(110).collect();
    Ok(Some(format!("{seed}: {short}")))
}
