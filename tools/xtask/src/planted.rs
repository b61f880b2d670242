//! Planted bugs: the crash suite must find each of them.
//!
//! In: `tests/planted/*.patch`, the sources as committed. Out: a table of bugs and what found them;
//! an error if one goes unfound. Works in `target/planted` alone: a copy of the sources, an own
//! target folder. Must not: touch the sources that it was started in.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Random histories that the suite may take to find a bug.
const RUNS: u64 = 3000;

/// Plants every bug in turn.
///
/// # Errors
/// A patch does not apply or build, the suite fails without one, or does not with one.
pub fn run(only: Option<&str>) -> Result<()> {
    let root = crate::root();
    let folder = root.join("target/planted");
    let sources = folder.join("sources");
    let mut patches: Vec<PathBuf> = std::fs::read_dir(root.join("tests/planted"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "patch"))
        .filter(|path| only.is_none_or(|only| path.to_string_lossy().contains(only)))
        .collect();
    patches.sort();
    ensure!(!patches.is_empty(), "no planted bug has that name");
    std::fs::create_dir_all(&folder)?;
    if !sources.exists() {
        git(&folder, &["clone", "--quiet", "--shared", &root.to_string_lossy(), "sources"])?;
    }
    let head = git(&root, &["rev-parse", "HEAD"])?;
    git(&sources, &["fetch", "--quiet"])?;
    git(&sources, &["checkout", "--quiet", "--force", head.trim()])?;
    let (passes, said) = suite(&sources, &folder)?;
    ensure!(passes, "the crash suite fails without a planted bug:\n{said}");
    println!("{:<40} not found, as it must be", "(none)");
    let mut unfound = Vec::new();
    for patch in patches {
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        git(&sources, &["apply", &patch.to_string_lossy()])
            .with_context(|| format!("{name} does not apply: write it anew"))?;
        let (passes, said) = suite(&sources, &folder)?;
        git(&sources, &["checkout", "--quiet", "--force", "."])?;
        ensure!(!said.contains("could not compile"), "{name} does not compile:\n{said}");
        if passes {
            unfound.push(name.clone());
        }
        println!("{name:<40} {}", if passes { "NOT FOUND".into() } else { found(&said) });
    }
    if unfound.is_empty() { Ok(()) } else { bail!("not found: {}", unfound.join(", ")) }
}

fn git(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").current_dir(folder).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "git {arguments:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the crash suite passes, and what it said.
fn suite(sources: &Path, folder: &Path) -> Result<(bool, String)> {
    let output = Command::new("cargo")
        .current_dir(sources)
        .args(["test", "--quiet", "-p", "gantry-dataplane", "--test", "crash_suite"])
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .env("GANTRY_CRASH_RUNS", RUNS.to_string())
        .env("RUST_BACKTRACE", "0")
        .output()?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), said))
}

/// The first thing that the suite held against it.
fn found(said: &str) -> String {
    let mut lines = said.lines().skip_while(|line| !line.contains("panicked at"));
    let place = lines.next().unwrap_or_default();
    let place = place.rsplit_once("panicked at ").map_or(place, |(_, place)| place);
    format!("found: {place} {}", lines.next().unwrap_or_default())
}
