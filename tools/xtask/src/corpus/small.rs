//! The small corpus: four disks that together take seconds to build.
//!
//! In: a folder, a seed. Out: `linux`, `windows`, `xfs` and `mixed-tail`, each in two versions.

use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;

use super::content::{HostFile, HostFiles, MemoryPages};
use super::describe::{self, Image};
use super::layout::{MIB, PartitionType, Region, create_partitioned, create_sparse};
use super::sparse;
use super::system_disk::{LinuxDisk, Share, Site, change, fill, origin_name};
use super::volume::{FileSystem, Placed, Volume};

/// Size of `mixed-tail`: no multiple of anything but sectors.
const MIXED_BYTES: u64 = 100 * MIB + 4608;

const WINDOWS_RESERVED: Region = Region::mib(1, 16);
const WINDOWS: Region = Region::mib(17, 208);
const XFS: Region = Region::mib(1, 304);

/// Builds all four, two at a time.
///
/// # Errors
/// The first image's that failed.
pub fn build(site: Site) -> Result<Vec<Image>> {
    let mut files = HostFiles::list(&["/usr".into()], site.seed)?;
    let linux_share = Share::take(&mut files, 112 * MIB, 6 * MIB);
    let windows_share = Share::take(&mut files, 64 * MIB, 4 * MIB);
    let xfs_share = Share::take(&mut files, 56 * MIB, 4 * MIB);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| -> Result<Vec<Image>> {
            Ok(vec![windows(site, &windows_share)?, mixed_tail(site, &xfs_share.fill)?])
        });
        let mut images = vec![linux(site, &linux_share)?, xfs(site, &xfs_share)?];
        match others.join() {
            Ok(more) => images.extend(more?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(images)
    })
}

fn linux(site: Site, share: &Share) -> Result<Image> {
    let first = site.first("linux");
    let mut disk = LinuxDisk::create(site, &first, share)?;
    let second = site.second("linux");
    sparse::copy_sparse(&first, &second)?;
    disk.pass_day(&second, &share.new, 2)?;
    sparse::copy_full(&first, &site.folder.join("linux.full.raw"))?;
    describe::image(site.folder, "linux", Some(origin_name(disk.swap_origin)))
}

/// The Windows disk as it is on its first day; its files.
///
/// # Errors
/// When a tool fails.
pub fn create_windows(site: Site, share: &Share) -> Result<Vec<Placed>> {
    let (name, path) = ("windows", site.first("windows"));
    let partitions =
        [(WINDOWS_RESERVED, PartitionType::WindowsReserved), (WINDOWS, PartitionType::WindowsData)];
    create_partitioned(&path, name, 256 * MIB, &partitions)?;
    let volume = windows_volume(site, &path);
    let mut files = fill(&volume, &share.fill)?;
    let mut pages = MemoryPages::new(&share.fill, site.seed)?;
    let mut memory = vec![0; 24 * MIB as usize];
    pages.fill(&mut memory);
    volume.change(|tree| tree.write("pagefile.sys", &memory))?;
    // It is the likeliest file to be rewritten, as in life.
    let page_file = Placed { name: "pagefile.sys".into(), bytes: memory.len() as u64 };
    files.extend(std::iter::repeat_n(page_file, 8));
    Ok(files)
}

fn windows_volume<'a>(site: Site<'a>, image: &'a Path) -> Volume<'a> {
    let (kind, name) = (FileSystem::Ntfs, "windows");
    Volume { image, region: WINDOWS, kind, name, work: site.work }
}

fn windows(site: Site, share: &Share) -> Result<Image> {
    let mut files = create_windows(site, share)?;
    let (name, second) = ("windows", site.second("windows"));
    sparse::copy_sparse(&site.first(name), &second)?;
    change(&windows_volume(site, &second), &mut files, &share.new, site.seed)?;
    describe::image(site.folder, name, None)
}

/// The XFS disk as it is on its first day; its files.
///
/// # Errors
/// When a tool fails.
pub fn create_xfs(site: Site, share: &Share) -> Result<Vec<Placed>> {
    let path = site.first("xfs");
    create_partitioned(&path, "xfs", 308 * MIB, &[(XFS, PartitionType::LinuxData)])?;
    fill(&xfs_volume(site, &path), &share.fill)
}

fn xfs_volume<'a>(site: Site<'a>, image: &'a Path) -> Volume<'a> {
    Volume { image, region: XFS, kind: FileSystem::Xfs, name: "xfs", work: site.work }
}

fn xfs(site: Site, share: &Share) -> Result<Image> {
    let mut files = create_xfs(site, share)?;
    let (name, second) = ("xfs", site.second("xfs"));
    sparse::copy_sparse(&site.first(name), &second)?;
    change(&xfs_volume(site, &second), &mut files, &share.new, site.seed)?;
    describe::image(site.folder, name, None)
}

/// No file system at all: text, random bytes, written zeros, holes, and a tail of half a sector
/// more than a page; every kind of block that a reader meets, the last one short.
fn mixed_tail(site: Site, files: &[HostFile]) -> Result<Image> {
    let (name, path) = ("mixed-tail", site.first("mixed-tail"));
    let mut random = fastrand::Rng::with_seed(site.seed);
    let file = create_sparse(&path, MIXED_BYTES)?;
    let text: Vec<u8> =
        (0..300_000).flat_map(|n| format!("line {n} of some text\n").into_bytes()).collect();
    file.write_all_at(&text, 0)?;
    let mut noise = vec![0; 12 * MIB as usize];
    random.fill(&mut noise);
    file.write_all_at(&noise, 16 * MIB + 1234)?;
    file.write_all_at(&vec![0; 8 * MIB as usize], 40 * MIB)?;
    let mut at = 56 * MIB;
    for host in files.iter().filter(|host| host.bytes >= MIB).take(10) {
        let Ok(bytes) = std::fs::read(&host.path) else { continue };
        let end = bytes.len().min((98 * MIB - at) as usize);
        file.write_all_at(&bytes[..end], at)?;
        at += end as u64;
    }
    let mut tail = vec![0; 5000];
    random.fill(&mut tail);
    file.write_all_at(&tail, MIXED_BYTES - 5000)?;

    let second = site.second(name);
    sparse::copy_sparse(&path, &second)?;
    let file = sparse::open_write(&second)?;
    for _ in 0..30 {
        let length = random.usize(1..100_000);
        random.fill(&mut noise[..length]);
        let offset = random.u64(0..MIXED_BYTES - length as u64);
        file.write_all_at(&noise[..length], offset)?;
    }
    file.write_all_at(&vec![0; 2 * MIB as usize], 20 * MIB)?;
    file.write_all_at(b"end", MIXED_BYTES - 3)?;
    describe::image(site.folder, name, None)
}
