//! What each task needs from the machine: Debian packages, a C compiler, cargo-nextest.
//!
//! In: a task. Out: everything it needs is there, or an error that holds the one line to type.
//! Installs only as root, only from the machine's own package sources, and only what is missing.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Package lists older than this are fetched again before an installation.
const LIST_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What is about to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Building disk images.
    Corpus,
    /// The whole test suite (needs the corpus too).
    Test,
    /// The demonstration (compiles, and builds one image).
    Demo,
    /// The API against schemathesis (compiles).
    Fuzz,
}

/// A command and the Debian package that brings it.
struct Need {
    command: &'static str,
    package: &'static str,
}

const fn need(command: &'static str, package: &'static str) -> Need {
    Need { command, package }
}

/// To compile crates with C inside (zstd, ring).
const COMPILER: &[Need] = &[need("cc", "gcc libc6-dev")];

/// To partition, format, mount and change disk images.
const IMAGES: &[Need] = &[
    need("sfdisk", "fdisk"),
    need("mkfs.ext4", "e2fsprogs"),
    need("debugfs", "e2fsprogs"),
    need("mkfs.xfs", "xfsprogs"),
    need("mkntfs", "ntfs-3g"),
    need("ntfscp", "ntfs-3g"),
    need("ntfs-3g", "ntfs-3g"),
    need("losetup", "mount"),
    need("mkswap", "util-linux"),
];

/// Counterparts that tests hold Gantry against: qemu's reader and writer of disk images, NBD
/// servers, and what builds vcsim, the vCenter that others wrote. A library has no command to look
/// for: its folder is named instead.
const COUNTERPARTS: &[Need] = &[
    need("qemu-img", "qemu-utils"),
    need("qemu-io", "qemu-utils"),
    need("qemu-nbd", "qemu-utils"),
    need("nbdkit", "nbdkit"),
    need("nbdfuse", "libnbd-bin"),
    need("go", "golang-go"),
    need(
        "/usr/share/gocode/src/github.com/vmware/govmomi/simulator",
        "golang-github-vmware-govmomi-dev",
    ),
];

fn needs(task: Task) -> impl Iterator<Item = &'static Need> {
    let compiler = if task == Task::Corpus { &[] } else { COMPILER };
    let images = if task == Task::Fuzz { &[] } else { IMAGES };
    let counterparts = if task == Task::Test { COUNTERPARTS } else { &[] };
    compiler.iter().chain(images).chain(counterparts)
}

/// Whether a command, or a folder named by its path, is there.
fn is_present(name: &str) -> bool {
    if name.starts_with('/') { Path::new(name).exists() } else { shell::find(name).is_some() }
}

/// The missing packages' names, each once, in the order of the needs.
fn missing<'a>(
    needs: impl Iterator<Item = &'a Need>,
    present: impl Fn(&str) -> bool,
) -> Vec<&'a str> {
    let mut packages = Vec::new();
    for need in needs {
        if !present(need.command) {
            for package in need.package.split(' ') {
                if !packages.contains(&package) {
                    packages.push(package);
                }
            }
        }
    }
    packages
}

/// Makes sure that the task has what it needs.
///
/// # Errors
/// When something is missing and cannot be installed: the message is the line to type.
pub fn ensure(task: Task) -> Result<()> {
    let mut packages = missing(needs(task), is_present);
    if matches!(task, Task::Test | Task::Fuzz) && !python_makes_environments() {
        packages.extend(["python3", "python3-venv"]);
    }
    if !packages.is_empty() {
        install(&packages)?;
    }
    if task == Task::Test && shell::find("cargo-nextest").is_none() && !nextest_answers() {
        println!("    cargo-nextest is missing; installing it");
        let root = crate::root();
        shell::show(shell::cargo(&root).args(["install", "cargo-nextest", "--locked"]))?;
    }
    Ok(())
}

/// Whether Python can make a virtual environment, in which clients of others' making are tested.
/// Debian splits that off into a package without any command of its own.
fn python_makes_environments() -> bool {
    shell::output(shell::command("python3").args(["-c", "import venv, ensurepip"])).is_ok()
}

/// Whether cargo finds nextest by its own ways (its folder need not be in PATH).
fn nextest_answers() -> bool {
    shell::output(shell::cargo(&crate::root()).args(["nextest", "--version"])).is_ok()
}

fn install(packages: &[&str]) -> Result<()> {
    let line = format!("sudo apt-get install --yes {}", packages.join(" "));
    if !crate::is_root() || shell::find("apt-get").is_none() {
        bail!("this machine lacks some tools; please run: {line}");
    }
    println!("    installing {}", packages.join(" "));
    let fresh = lists_are_fresh();
    if !fresh {
        update()?;
    }
    let first = apt_install(packages);
    if first.is_err() && fresh {
        update()?;
        return apt_install(packages).with_context(|| format!("try it by hand: {line}"));
    }
    first.with_context(|| format!("try it by hand: {line}"))
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let mut command = shell::command("apt-get");
    command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(packages);
    shell::output(command.env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}

fn update() -> Result<()> {
    shell::output(shell::command("apt-get").args(["update", "--quiet"])).map(drop)
}

/// Whether the package lists were fetched lately (an empty folder counts as never).
fn lists_are_fresh() -> bool {
    let Ok(entries) = std::fs::read_dir(Path::new("/var/lib/apt/lists")) else { return false };
    let lists = entries.flatten().filter(|e| e.file_name().to_string_lossy().contains("_Packages"));
    let newest = lists.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max();
    newest
        .and_then(|time| SystemTime::now().duration_since(time).ok())
        .is_some_and(|age| age < LIST_AGE_MAX)
}

#[cfg(test)]
mod tests {
    use super::{Task, missing, needs};

    #[test]
    fn a_missing_command_names_its_packages_once() {
        let packages = missing(needs(Task::Test), |command| command == "losetup");
        assert_eq!(
            packages,
            [
                "gcc",
                "libc6-dev",
                "fdisk",
                "e2fsprogs",
                "xfsprogs",
                "ntfs-3g",
                "util-linux",
                "qemu-utils",
                "nbdkit",
                "libnbd-bin",
                "golang-go",
                "golang-github-vmware-govmomi-dev"
            ]
        );
        assert!(missing(needs(Task::Corpus), |_| true).is_empty());
        assert!(!missing(needs(Task::Corpus), |_| false).contains(&"gcc"));
    }
}
