//! `cargo xtask demo`: the whole product, as an administrator would set it up, on this machine.
//!
//! In: nothing but this machine. Out: a simulated vCenter with three machines on real disk images,
//! gantryd, a repository and two proxies, each a process of its own; a full backup, an incremental one
//! by changed block tracking during which a proxy is killed, restores of every disk of every point, each
//! compared bit for bit with what the disk held at its snapshot while its guest went on writing; a
//! report. Leaves nothing behind: processes, mounts, files.

mod days;
mod images;
pub mod programs;
mod report;
pub mod site;

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::cleanup::{Guard, Undo};
use crate::{packages, shell};
use programs::Programs;
use site::Site;

/// Runs the demonstration, with the programs of a folder instead of a fresh build if given.
///
/// # Errors
/// When anything fails or a restored disk differs.
pub fn run(programs: Option<PathBuf>) -> Result<()> {
    shell::step("packages", || packages::ensure(packages::Task::Demo))?;
    let programs = match programs {
        Some(folder) => Programs::of(&std::path::absolute(folder)?),
        None => shell::step("build gantryd, gantry, gantry-mover, gantry-sim (release)", || {
            build(&["gantry-dataplane", "gantry-control", "gantry-sim"])
        })?,
    };
    let parent = crate::root().join("target");
    std::fs::create_dir_all(&parent)?;
    let folder = tempfile::Builder::new().prefix("demo-").tempdir_in(&parent)?.keep();
    let guard = Guard::new(Undo::RemoveFolder(folder.clone()));
    let begun = std::time::Instant::now();
    let machines = shell::step("three machines' disk images", || images::build(&folder))?;
    let mut site = shell::step("vCenter, gantryd, repository, two proxies", || {
        Site::start(&programs, &folder, &machines)
    })?;
    let result = days::pass(&mut site, &machines);
    let days = result.inspect_err(|_| eprintln!("{}", site.last_words()))?;
    shell::step("stop everything", || site.stop())?;
    report::print(&machines, &days);
    drop(guard);
    let wrong = days.iter().flat_map(|day| &day.restores).filter(|one| !one.identical).count();
    ensure!(wrong == 0, "{wrong} restored disks differ from what their machines held");
    let disks: usize = days.iter().map(|day| day.restores.len()).sum();
    println!(
        "All {disks} disks of {} restore points came back bit for bit; no snapshot was left, the \
         repository is sound. {:.0} s.",
        days.len() * machines.len(),
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Builds the programs of these packages.
///
/// # Errors
/// When they do not compile.
pub fn build(packages: &[&str]) -> Result<Programs> {
    let root = crate::root();
    let mut command = shell::cargo(&root);
    command.args(["build", "--release", "--bins"]);
    command.args(packages.iter().flat_map(|package| ["--package", *package]));
    shell::show(&mut command)?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    Ok(Programs::of(&root.join(target).join("release")))
}
