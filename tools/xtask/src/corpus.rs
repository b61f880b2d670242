//! `cargo xtask corpus`: disk images with real content, in two versions each.
//!
//! In: a size and a folder. Out: the folder holds the images, their changed extents and
//! `corpus.json`, complete or not at all: everything is built beside it and renamed. A second call
//! finds the description and returns.
//!
//! Same machine, same seed: same files, same layout, same identifiers. What the kernel's file
//! systems and swap decide by time (time stamps, order of swapped pages) may differ, so the
//! description holds a hash of what was built.

pub mod changes;
pub mod compact;
pub mod content;
pub mod describe;
pub mod device;
pub mod large;
pub mod layout;
pub mod small;
pub mod sparse;
pub mod staged;
pub mod swap;
pub mod system_disk;
pub mod volume;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::cleanup::{Guard, Undo};
use crate::packages;
use describe::Corpus;
use system_disk::Site;

/// The usual seed: everyone's corpus is alike unless asked otherwise.
pub const SEED: u64 = 1;

/// Which corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// Four disks up to 320 MiB, for tests.
    Small,
    /// One disk of 20 GiB, for benchmarks.
    Large,
}

impl Size {
    fn name(self) -> &'static str {
        match self {
            Size::Small => "small",
            Size::Large => "large",
        }
    }

    /// Free space without which we do not begin.
    fn free_bytes_min(self) -> u64 {
        match self {
            Size::Small => 2 << 30,
            Size::Large => 20 << 30,
        }
    }
}

/// What to build and where.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which corpus.
    pub size: Size,
    /// Where; `target/corpus/SIZE` if not said.
    pub folder: Option<PathBuf>,
    /// Seed of every random choice.
    pub seed: u64,
    /// Keep second versions as differences only; a later request without this makes them whole.
    pub compact: bool,
}

/// The default place of a corpus.
pub fn default_folder(size: Size) -> PathBuf {
    crate::root().join("target/corpus").join(size.name())
}

/// Builds the corpus unless it is there; returns its absolute path.
///
/// # Errors
/// When tools, space or permissions are missing, or a tool fails. Nothing is left behind.
pub fn build(request: &Request) -> Result<PathBuf> {
    let folder = request.folder.clone().unwrap_or_else(|| default_folder(request.size));
    let folder = std::path::absolute(folder)?;
    if let Some(corpus) = describe::read(&folder) {
        ensure!(corpus.size == request.size.name(), "{} is another corpus", folder.display());
        println!("    {} is complete", folder.display());
        settle(&folder, &corpus, request.compact)?;
        return Ok(folder);
    }
    packages::ensure(packages::Task::Corpus)?;
    let parent = folder.parent().context("the corpus needs a parent folder")?;
    std::fs::create_dir_all(parent)?;
    check_space(parent, request.size.free_bytes_min())?;
    remove_outdated(&folder)?;

    let begun = Instant::now();
    println!("    building {} with seed {}", folder.display(), request.seed);
    let temporary = tempfile::Builder::new().prefix(".corpus-").tempdir_in(parent)?;
    let path = temporary.keep();
    let guard = Guard::new(Undo::RemoveFolder(path.clone()));
    let (images, work) = (path.join("images"), path.join("work"));
    std::fs::create_dir(&images)?;
    std::fs::create_dir(&work)?;
    let site = Site { folder: &images, work: &work, seed: request.seed };
    let built = match request.size {
        Size::Small => small::build(site)?,
        Size::Large => vec![large::build(site)?],
    };
    let corpus = Corpus {
        stamp: describe::STAMP.into(),
        size: request.size.name().into(),
        seed: request.seed,
        images: built,
    };
    describe::write(&images, &corpus)?;
    publish(&images, &folder)?;
    drop(guard);
    settle(&folder, &corpus, request.compact)?;
    describe::print(&corpus);
    println!("    built in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(folder)
}

/// Gives second versions the form that was asked for.
fn settle(folder: &Path, corpus: &Corpus, as_differences: bool) -> Result<()> {
    if as_differences { compact::pack(folder, corpus) } else { compact::unpack(folder, corpus) }
}

/// Renames the finished corpus; if somebody else was faster with the same one, theirs stays.
fn publish(images: &Path, folder: &Path) -> Result<()> {
    match std::fs::rename(images, folder) {
        Err(_) if describe::read(folder).is_some() => Ok(()),
        other => other.with_context(|| format!("cannot create {}", folder.display())),
    }
}

/// Removes a corpus of an older stamp, and nothing that is not one.
fn remove_outdated(folder: &Path) -> Result<()> {
    if folder.join(describe::FILE_NAME).exists() {
        println!("    {} is of an older kind; building it anew", folder.display());
        std::fs::remove_dir_all(folder)?;
    } else if folder.exists() && std::fs::read_dir(folder)?.next().is_some() {
        bail!("{} exists and is no corpus", folder.display());
    }
    Ok(())
}

fn check_space(folder: &Path, needed: u64) -> Result<()> {
    let facts = rustix::fs::statvfs(folder)?;
    let free = facts.f_bavail * facts.f_frsize;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let place = folder.display();
    ensure!(free >= needed, "{place}: {:.1} GiB free, {:.1} needed", gib(free), gib(needed));
    Ok(())
}
