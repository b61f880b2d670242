//! `cargo xtask test`: everything that continuous integration asks for, in order of cost.
//!
//! In: an optional filter. Out: success only when every step succeeded; the first failure ends it.

use std::path::Path;

use anyhow::Result;

use crate::corpus::{self, Size};
use crate::{packages, shell};

/// Runs the suite; with a filter only the tests whose name holds it, after the same checks.
///
/// # Errors
/// The first step that failed.
pub fn test(filter: Option<&str>) -> Result<()> {
    let root = crate::root();
    shell::step("packages", || packages::ensure(packages::Task::Test))?;
    let request =
        corpus::Request { size: Size::Small, folder: None, seed: corpus::SEED, compact: false };
    let images = shell::step("disk images", || corpus::build(&request))?;
    shell::step("format", || shell::show(shell::cargo(&root).args(["fmt", "--all", "--check"])))?;
    shell::step("lints", || {
        let mut clippy = shell::cargo(&root);
        clippy.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
        shell::show(&mut clippy)
    })?;
    shell::step("tests", || {
        let mut nextest = shell::cargo(&root);
        nextest.args(["nextest", "run", "--workspace"]).args(filter);
        nextest.env("GANTRY_CORPUS", &images);
        shell::show(&mut nextest)
    })?;
    if filter.is_none() && has_doc_tests(&root) {
        shell::step("doc-tests", || {
            shell::show(shell::cargo(&root).args(["test", "--workspace", "--doc", "--quiet"]))
        })?;
    }
    Ok(())
}

/// Runs every scenario that draws its faults from a seed, with `seeds` of them.
///
/// # Errors
/// The first scenario that failed; it has printed its seed.
pub fn soak(seeds: u64) -> Result<()> {
    packages::ensure(packages::Task::Test)?;
    let mut nextest = shell::cargo(&crate::root());
    nextest.args(["nextest", "run", "--package", "gantry-tests", "--profile", "soak"]);
    nextest.env("GANTRY_SEEDS", seeds.to_string());
    shell::show(&mut nextest)
}

/// Makes a golden repository in tests/golden.
///
/// # Errors
/// One of that name is there, or what was made does not restore.
pub fn golden(name: &str) -> Result<()> {
    let mut nextest = shell::cargo(&crate::root());
    nextest.args(["nextest", "run", "--package", "gantry-tests", "--test", "golden"]);
    nextest.args(["--run-ignored", "only", "make"]).env("GANTRY_GOLDEN", name);
    shell::show(&mut nextest)
}

/// Whether a library's comment holds a code fence that rustdoc would compile.
fn has_doc_tests(root: &Path) -> bool {
    let folders = ["common", "dataplane", "control", "bench"].map(|name| root.join(name));
    let mut waiting: Vec<_> = folders.into();
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|e| e == "rs")
                && std::fs::read_to_string(&path).is_ok_and(|text| opens_doc_test(&text))
            {
                return true;
            }
        }
    }
    false
}

fn opens_doc_test(text: &str) -> bool {
    let mut inside = false;
    for line in text.lines() {
        let line = line.trim_start();
        let Some(body) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else {
            inside = false;
            continue;
        };
        if let Some(language) = body.trim_start().strip_prefix("```") {
            if !inside && matches!(language.trim(), "" | "rust" | "no_run" | "should_panic") {
                return true;
            }
            inside = !inside;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::opens_doc_test;

    #[test]
    fn drawings_are_not_doc_tests() {
        assert!(!opens_doc_test("//! ```text\n//! a -> b\n//! ```\nfn f() {}\n"));
        assert!(opens_doc_test("/// ```\n/// let a = 1;\n/// ```\nfn f() {}\n"));
    }
}
