//! The ordinary Linux disk: GPT, an ext4 root, used swap, free space at the end, deleted files.
//!
//! In: files of this machine. Out: an image that can live through days. Also the steps that the
//! other small disks share with it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::changes::{self, Day};
use super::content::{HostFile, HostFiles, MemoryPages};
use super::layout::{MIB, PartitionType, Region, create_partitioned};
use super::swap::{Origin, Swap};
use super::volume::{FileSystem, Placed, Volume};

const NAME: &str = "linux";
const DISK_BYTES: u64 = 320 * MIB;
const ROOT: Region = Region::mib(1, 208);
const SWAP: Region = Region::mib(209, 64);
const DAY: Day =
    Day { appends: 12, rewrites: 16, rewrite_pages_max: 40, rewrite_pages_min: 1, removals: 12 };
/// Where images are built, and from what.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The corpus folder in the making.
    pub folder: &'a Path,
    /// Temporary files and mount points.
    pub work: &'a Path,
    /// Seed of this image's choices.
    pub seed: u64,
}

impl Site<'_> {
    /// Version 1's path.
    pub fn first(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.raw"))
    }

    /// Version 2's path.
    pub fn second(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.v2.raw"))
    }
}

/// Files of one image: those it is filled with, and those that come on the second day.
pub struct Share {
    /// On the first day.
    pub fill: Vec<HostFile>,
    /// On later days.
    pub new: Vec<HostFile>,
}

impl Share {
    /// Takes both, in bytes.
    pub fn take(files: &mut HostFiles, fill: u64, new: u64) -> Share {
        Share { fill: files.mixture(fill), new: files.mixture(new) }
    }
}

/// The disk and what is known of its content.
pub struct LinuxDisk<'a> {
    site: Site<'a>,
    files: Vec<Placed>,
    /// How its swap came to be used.
    pub swap_origin: Origin,
}

fn root_volume<'a>(site: Site<'a>, image: &'a Path) -> Volume<'a> {
    Volume { image, region: ROOT, kind: FileSystem::Ext4, name: NAME, work: site.work }
}

fn swap_space<'a>(site: Site<'a>, image: &'a Path) -> Swap<'a> {
    Swap { image, region: SWAP, name: NAME, work: site.work }
}

impl<'a> LinuxDisk<'a> {
    /// Makes the disk as it is on its first day.
    ///
    /// # Errors
    /// When a tool fails or the content does not fit.
    pub fn create(site: Site<'a>, image: &Path, share: &Share) -> Result<LinuxDisk<'a>> {
        let partitions = [(ROOT, PartitionType::LinuxData), (SWAP, PartitionType::LinuxSwap)];
        create_partitioned(image, NAME, DISK_BYTES, &partitions)?;
        let files = fill(&root_volume(site, image), &share.fill)?;
        let swap = swap_space(site, image);
        swap.format()?;
        let swap_origin = swap.fill(40 * MIB, &share.fill, site.seed)?;
        Ok(LinuxDisk { site, files, swap_origin })
    }

    /// Lets day `number` pass on `image`, which holds the disk as the day before left it.
    ///
    /// # Errors
    /// When a tool fails or the content does not fit.
    pub fn pass_day(&mut self, image: &Path, new: &[HostFile], number: u64) -> Result<()> {
        let seed = self.site.seed + number;
        change(&root_volume(self.site, image), &mut self.files, new, seed)?;
        swap_space(self.site, image).fill(8 * MIB, new, seed).map(drop)
    }
}

/// Fills a volume and deletes every eighth file again; returns what is left.
///
/// # Errors
/// When the content does not fit or the file system refuses.
pub fn fill(volume: &Volume, files: &[HostFile]) -> Result<Vec<Placed>> {
    let mut left = Vec::new();
    volume.create(|tree| {
        let placed = tree.put_all(files)?;
        tree.write("etc/hostname", format!("{}\n", volume.name).as_bytes())?;
        let (mut gone, mut rest) = (Vec::new(), Vec::new());
        for (number, file) in placed.into_iter().enumerate() {
            if number % 8 == 7 { gone.push(file) } else { rest.push(file) }
        }
        left = rest;
        tree.remove_all(&gone)
    })?;
    Ok(left)
}

/// Lets a day pass in a volume.
///
/// # Errors
/// When the file system refuses or becomes full.
pub fn change(volume: &Volume, files: &mut Vec<Placed>, new: &[HostFile], seed: u64) -> Result<()> {
    let mut pages = MemoryPages::new(new, seed)?;
    let mut random = fastrand::Rng::with_seed(seed);
    volume.change(|tree| changes::pass(tree, files, new, DAY, &mut pages, &mut random))
}

/// As `corpus.json` writes it.
pub fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::Kernel => "kernel",
        Origin::Written => "written",
    }
}
