//! Swap space in use: a valid header, and pages that were somebody's memory.
//!
//! In: a region of an image. Out: swap space whose pages came out of a real process where the
//! machine lets us swap on a loop device (one process in a memory-limited control group, so that
//! its pages go there and nobody else's need to), else pages written in their manner. The
//! header is mkswap's and stays as it made it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::content::{HostFile, MemoryPages, PAGE};
use super::device::LoopDevice;
use super::layout::{MIB, Region, create_sparse, fixed_uuid};
use super::sparse;
use crate::cleanup::{Guard, Undo};
use crate::shell;

/// What the process in the control group may keep in memory.
const RESIDENT_BYTES: u64 = 24 * MIB;
/// Preferred to every other swap space of the machine while we fill ours.
const PRIORITY: &str = "32767";

/// How the pages came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The kernel swapped a process out.
    Kernel,
    /// Written by us.
    Written,
}

/// A swap partition of an image.
pub struct Swap<'a> {
    /// The image.
    pub image: &'a Path,
    /// Where in it.
    pub region: Region,
    /// The image's name, from which the UUID follows.
    pub name: &'a str,
    /// Folder for temporary files.
    pub work: &'a Path,
}

/// Environment variable that lets the kernel itself swap a process out onto the image. Not the
/// default: while the device is on, the kernel may put any process's pages there.
const KERNEL_SWAP: &str = "GANTRY_CORPUS_KERNEL_SWAP";

impl Swap<'_> {
    /// Writes the header (mkswap on a file of the same size, so that no root is needed).
    ///
    /// # Errors
    /// When mkswap fails.
    pub fn format(&self) -> Result<()> {
        let part = self.work.join(format!("{}.swap", self.name));
        create_sparse(&part, self.region.length)?;
        std::fs::set_permissions(&part, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let mut command = shell::command("mkswap");
        command.args(["--uuid", &fixed_uuid(self.name, 101), "--label", "swap"]);
        shell::output(command.arg(&part))?;
        let whole = Region { start: 0, length: self.region.length };
        let image = sparse::open_write(self.image)?;
        sparse::copy_region(&sparse::open(&part)?, whole, &image, self.region.start)?;
        Ok(std::fs::remove_file(part)?)
    }

    /// Brings about `bytes` of pages drawn from `files` into the space.
    ///
    /// # Errors
    /// When the image cannot be written or there are no files to draw from.
    pub fn fill(&self, bytes: u64, files: &[HostFile], seed: u64) -> Result<Origin> {
        ensure!(bytes < self.region.length * 9 / 10, "more pages than fit into the swap space");
        if crate::is_root() && std::env::var_os(KERNEL_SWAP).is_some() {
            match self.swap_out(bytes, files, seed) {
                Ok(used) if used >= bytes / 2 => return Ok(Origin::Kernel),
                Ok(used) => println!("    {}: only {used} bytes were swapped out", self.name),
                Err(error) => println!("    {}: no swapping here ({error:#})", self.name),
            }
        }
        self.write(bytes, files, seed)?;
        Ok(Origin::Written)
    }

    fn write(&self, bytes: u64, files: &[HostFile], seed: u64) -> Result<()> {
        let image = sparse::open_write(self.image)?;
        let mut pages = MemoryPages::new(files, seed)?;
        let mut buffer = vec![0; MIB as usize];
        for number in 0..bytes / MIB {
            pages.fill(&mut buffer);
            let at = self.region.start + PAGE as u64 + number * MIB;
            image.write_all_at(&buffer, at)?;
        }
        Ok(())
    }

    /// Swaps a process out; returns how many bytes the kernel says are in use at the end.
    fn swap_out(&self, bytes: u64, files: &[HostFile], seed: u64) -> Result<u64> {
        let device = LoopDevice::attach(self.image, self.region)?;
        let group = ControlGroup::new(RESIDENT_BYTES)?;
        shell::output(shell::command("swapon").args(["--priority", PRIORITY, device.name()]))?;
        let _in_use = Guard::new(Undo::SwapOff(device.name().to_owned()));
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.arg("hold-memory").arg(&group.folder);
        command.args([(bytes + RESIDENT_BYTES).to_string(), seed.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let _holder = Guard::new(Undo::Kill(child.id()));
        let mut orders = child.stdin.take().context("no pipe to the child")?;
        for file in files {
            writeln!(orders, "{}", file.path.display())?;
        }
        writeln!(orders)?;
        let mut answer = String::new();
        let answers = child.stdout.take().context("no pipe from the child")?;
        BufReader::new(answers).read_line(&mut answer)?;
        ensure!(answer.trim() == "held", "the process that held memory ended early");
        used_bytes(device.name())
    }
}

/// Bytes in use of one swap space, by the kernel's own table (sizes there are in KiB).
fn used_bytes(device: &str) -> Result<u64> {
    let table = std::fs::read_to_string("/proc/swaps")?;
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(device));
    let used = line.and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
    Ok(used.context("our swap space is not in the kernel's table")? * 1024)
}

/// A memory-limited control group, of either version of that interface.
struct ControlGroup {
    folder: PathBuf,
    _guard: Guard,
}

impl ControlGroup {
    fn new(limit_bytes: u64) -> Result<ControlGroup> {
        let first = Path::new("/sys/fs/cgroup/memory");
        let old = first.join("memory.limit_in_bytes").exists();
        let parent = if old { first } else { Path::new("/sys/fs/cgroup") };
        if !old {
            std::fs::write(parent.join("cgroup.subtree_control"), "+memory")
                .context("no memory control groups")?;
        }
        let name = format!("gantry-corpus-{}-{}", std::process::id(), fastrand::u32(..));
        let folder = parent.join(name);
        std::fs::create_dir(&folder)?;
        let guard = Guard::new(Undo::RemoveGroup(folder.clone()));
        let limit = if old { "memory.limit_in_bytes" } else { "memory.high" };
        std::fs::write(folder.join(limit), limit_bytes.to_string())?;
        Ok(ControlGroup { folder, _guard: guard })
    }
}

/// The hidden command of the child: joins the group, reads paths until an empty line, holds
/// `bytes` of pages drawn from them, says so, and waits until its input closes.
///
/// # Errors
/// When the group refuses it or no file opens.
pub fn hold_memory(group: &Path, bytes: u64, seed: u64) -> Result<()> {
    let mut members = File::options().write(true).open(group.join("cgroup.procs"))?;
    write!(members, "{}", std::process::id())?;
    let mut files = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let path = PathBuf::from(line);
        let bytes = std::fs::metadata(&path).map_or(0, |facts| facts.len());
        files.push(HostFile { path, bytes });
    }
    let mut pages = MemoryPages::new(&files, seed)?;
    let mut held = vec![0_u8; usize::try_from(bytes)?];
    held.chunks_mut(MIB as usize).for_each(|part| pages.fill(part));
    println!("held");
    std::io::stdout().flush()?;
    let mut rest = String::new();
    std::io::stdin().read_line(&mut rest)?;
    drop(held);
    Ok(())
}
