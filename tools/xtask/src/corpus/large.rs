//! The large corpus: one disk of 20 GiB for benchmarks, with at least 7 GB of real data.
//!
//! In: a folder, a seed. Out: `linux.raw` and `linux.v2.raw`. The second version has about two
//! thousand changed 1 MiB blocks, of which a good half of the 64 KiB pieces changed: what a busy
//! server does in a day.

use anyhow::{Result, ensure};

use super::changes::{self, Day};
use super::content::{HostFile, HostFiles, MemoryPages, usual_folders};
use super::describe::{self, Image};
use super::layout::{MIB, PartitionType, Region, create_partitioned};
use super::sparse;
use super::swap::Swap;
use super::system_disk::{Site, origin_name};
use super::volume::{FileSystem, Placed, Volume};

const NAME: &str = "linux";
const DISK_BYTES: u64 = 20 << 30;
const ROOT: Region = Region::mib(1, 18 << 10);
const SWAP: Region = Region::mib(1 + (18 << 10), 1152);
/// What is put into the file system. With slack, metadata and swap that makes about 8.1 GB of
/// non-zero 1 MiB blocks, the amount that other programs were measured with.
const FILL_BYTES: u64 = 6_200_000_000;
/// With less the image would not be what benchmarks say it is.
const FILL_BYTES_MIN: u64 = 5_500_000_000;
/// Of that, what is deleted again.
const DELETED_BYTES: u64 = 400_000_000;
const SWAPPED_BYTES: u64 = 1 << 30;
/// What comes on the second day.
const NEW_BYTES: u64 = 500_000_000;
const SWAPPED_AGAIN_BYTES: u64 = 160 * MIB;
const DAY: Day =
    Day { appends: 60, rewrites: 1250, rewrite_pages_max: 80, rewrite_pages_min: 16, removals: 40 };

/// Builds both versions.
///
/// # Errors
/// When the machine has too few files to fill it with, or a tool fails.
pub fn build(site: Site) -> Result<Image> {
    let (new, fill) = choose(site.seed)?;
    let path = site.first(NAME);
    let partitions = [(ROOT, PartitionType::LinuxData), (SWAP, PartitionType::LinuxSwap)];
    create_partitioned(&path, NAME, DISK_BYTES, &partitions)?;
    let volume =
        Volume { image: &path, region: ROOT, kind: FileSystem::Ext4, name: NAME, work: site.work };
    println!("    filling the root file system");
    let mut files = fill_root(&volume, &fill)?;
    println!("    using swap");
    let swap = Swap { image: &path, region: SWAP, name: NAME, work: site.work };
    swap.format()?;
    let origin = swap.fill(SWAPPED_BYTES, &fill, site.seed)?;

    println!("    letting a day pass");
    let second = site.second(NAME);
    sparse::copy_sparse(&path, &second)?;
    let mut pages = MemoryPages::new(&new, site.seed)?;
    let mut random = fastrand::Rng::with_seed(site.seed);
    Volume { image: &second, ..volume }
        .change(|tree| changes::pass(tree, &mut files, &new, DAY, &mut pages, &mut random))?;
    Swap { image: &second, ..swap }.fill(SWAPPED_AGAIN_BYTES, &new, site.seed + 1)?;
    println!("    comparing");
    describe::image(site.folder, NAME, Some(origin_name(origin)))
}

/// Files for the second day, then files for the first; every file at most once.
fn choose(seed: u64) -> Result<(Vec<HostFile>, Vec<HostFile>)> {
    let mut folders = usual_folders();
    // A developer's machine has these in plenty, should it have little else.
    folders.push(crate::root().join("target/release/deps"));
    folders.push(crate::root().join("target/debug/deps"));
    let mut files = HostFiles::list(&folders, seed)?;
    let new = files.mixture(NEW_BYTES);
    let fill = files.take(1..=1 << 30, FILL_BYTES);
    let sum: u64 = fill.iter().map(|file| file.bytes).sum();
    println!("    {:.2} GB in {} files of this machine", sum as f64 / 1e9, fill.len());
    ensure!(sum >= FILL_BYTES_MIN, "this machine has only {sum} bytes of files to fill the disk");
    Ok((new, fill))
}

fn fill_root(volume: &Volume, fill: &[HostFile]) -> Result<Vec<Placed>> {
    let mut left = Vec::new();
    volume.create(|tree| {
        let mut placed = tree.put_all(fill)?;
        let mut deleted = 0;
        let mut gone = Vec::new();
        while deleted < DELETED_BYTES
            && let Some(file) = placed.pop()
        {
            deleted += file.bytes;
            gone.push(file);
        }
        left = placed;
        tree.remove_all(&gone)
    })?;
    Ok(left)
}
