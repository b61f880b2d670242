//! `cargo xtask demo`: a real disk through two movers, changed, again, restored, compared.
//!
//! In: nothing but this machine. Out: a report, and success only if every restored disk is bit for
//! bit the one that was backed up. Leaves nothing behind: processes, mounts, files.

mod mover;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::cleanup::{Guard, Undo};
use crate::corpus::content::HostFiles;
use crate::corpus::layout::MIB;
use crate::corpus::sparse;
use crate::corpus::system_disk::{LinuxDisk, Share, Site};
use crate::{corpus, packages, shell};
use mover::{BackupFigures, Link, Mover};
use report::Line;

/// The kinds of backup, in order of the days.
const KINDS: [&str; 3] = ["full", "changed extents", "compare by ids"];

/// Runs the demonstration, with `program` instead of a fresh build of gantry-mover if given.
///
/// # Errors
/// When anything fails or a restored disk differs.
pub fn run(program: Option<PathBuf>) -> Result<()> {
    shell::step("packages", || packages::ensure(packages::Task::Demo))?;
    let program = match program {
        Some(program) => std::path::absolute(program)?,
        None => shell::step("build gantry-mover (release)", build)?,
    };
    let parent = crate::root().join("target");
    std::fs::create_dir_all(&parent)?;
    let folder = tempfile::Builder::new().prefix("demo-").tempdir_in(&parent)?.keep();
    let guard = Guard::new(Undo::RemoveFolder(folder.clone()));
    let mover = Mover::new(program, &folder);
    let repository = folder.join("repository");
    let (server, link) = shell::step("start a repository mover", || mover.serve(&repository))?;
    let result = days(&mover, &link, &folder);
    let lines = result.inspect_err(|_| eprintln!("{}", server.last_words()))?;
    shell::step("stop the repository mover", || server.stop())?;
    shell::step("verify the repository", || mover.verify(&repository))?;
    report::print("GPT, ext4 with this machine's files, used swap, 320 MiB", &lines);
    drop(guard);
    ensure!(lines.iter().all(|line| line.identical), "a restored disk differs from its source");
    println!("All {} restore points came back bit for bit; the repository is sound.", lines.len());
    Ok(())
}

fn build() -> Result<PathBuf> {
    let root = crate::root();
    let mut command = shell::cargo(&root);
    command.args(["build", "--release", "--package", "gantry-dataplane", "--bin", "gantry-mover"]);
    shell::show(&mut command)?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    Ok(root.join(target).join("release/gantry-mover"))
}

/// Three days of one disk: a backup a day, then the restores.
fn days(mover: &Mover, link: &Link, folder: &Path) -> Result<Vec<Line>> {
    let work = folder.join("work");
    std::fs::create_dir(&work)?;
    let site = Site { folder, work: &work, seed: corpus::SEED };
    let disk = site.first("disk");
    let mut files = HostFiles::list(&["/usr".into()], site.seed)?;
    let share = Share::take(&mut files, 112 * MIB, 5 * MIB);
    let third_day = files.mixture(5 * MIB);
    let mut linux = shell::step("build a disk image", || LinuxDisk::create(site, &disk, &share))?;
    let kept = [1, 2, 3].map(|day| folder.join(format!("day-{day}.raw")));
    let mut figures: Vec<BackupFigures> = Vec::new();

    sparse::copy_sparse(&disk, &kept[0])?;
    figures.push(shell::step("day 1: full backup", || mover.backup(link, &disk, None))?);

    shell::step("day 2: change files", || linux.pass_day(&disk, &share.new, 2))?;
    sparse::copy_sparse(&disk, &kept[1])?;
    let extents = folder.join("changed.json");
    std::fs::write(&extents, serde_json::to_string(&sparse::changed_extents(&kept[0], &disk)?)?)?;
    let since = Some((figures[0].point.as_str(), extents.as_path()));
    let second =
        shell::step("day 2: backup of changed extents", || mover.backup(link, &disk, since))?;
    figures.push(second);

    shell::step("day 3: change files", || linux.pass_day(&disk, &third_day, 3))?;
    sparse::copy_sparse(&disk, &kept[2])?;
    figures.push(shell::step("day 3: backup by comparison", || mover.backup(link, &disk, None))?);

    let mut lines = Vec::new();
    for ((kind, figures), source) in KINDS.into_iter().zip(figures).zip(&kept) {
        let restored = folder.join("restored.raw");
        let (restore_seconds, identical) =
            shell::step(&format!("restore and compare: {kind}"), || {
                let seconds = mover.restore(link, &figures.point, &restored)?;
                Ok((seconds, is_identical(source, &restored)?))
            })?;
        std::fs::remove_file(&restored)?;
        lines.push(Line { kind, figures, restore_seconds, identical });
    }
    Ok(lines)
}

/// Whether two disks are the same in size and every byte (holes read as zeros).
fn is_identical(one: &Path, two: &Path) -> Result<bool> {
    let size = |path: &Path| std::fs::metadata(path).map(|facts| facts.len());
    Ok(size(one)? == size(two)? && sparse::changed_extents(one, two)?.is_empty())
}
