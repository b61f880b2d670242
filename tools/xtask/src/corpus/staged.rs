//! File systems made without mounting: the road of users who are not root.
//!
//! In: a staged folder and the edits that led to it. Out: the volume's region holds a file system
//! with that content, made by mke2fs, debugfs, mkfs.xfs or ntfscp. Weaker than a mount in two
//! ways: NTFS is flat and keeps what should be deleted, and a changed XFS is made anew over its
//! older self.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::layout::{Region, create_sparse};
use super::sparse;
use super::volume::{Edit, FileSystem, Volume};
use crate::shell;

/// Formats the region with the staged content; removals come after everything was written.
///
/// # Errors
/// When a tool fails or the content does not fit.
pub fn create(volume: &Volume, stage: &Path, edits: &[Edit]) -> Result<()> {
    let part = part_file(volume);
    create_sparse(&part, volume.region.length)?;
    let target = part.to_string_lossy().into_owned();
    match volume.kind {
        FileSystem::Ext4 => {
            let mut command = shell::command("mkfs.ext4");
            command.args(["-q", "-F", "-U", &volume.uuid(), "-d"]).arg(stage);
            shell::output(command.arg(&target))?;
            let folders: BTreeSet<&str> =
                edits.iter().flat_map(|edit| folders(edit.name())).collect();
            std::fs::write(folder_list(volume), Vec::from_iter(folders).join("\n"))?;
            removals(edits).try_for_each(|name| remove_staged(stage, name))?;
            edit_ext4(volume, stage, &part, &only_removals(edits))?;
        }
        FileSystem::Xfs => {
            make_xfs(volume, stage, &part)?;
            removals(edits).try_for_each(|name| remove_staged(stage, name))?;
            make_xfs(volume, stage, &part)?;
        }
        FileSystem::Ntfs => {
            volume.format(&target)?;
            put_ntfs(stage, &part, edits)?;
        }
    }
    splice(volume, &part)
}

/// Brings later edits into the volume.
///
/// # Errors
/// When a tool fails or the content does not fit.
pub fn change(volume: &Volume, stage: &Path, edits: &[Edit]) -> Result<()> {
    let part = part_file(volume);
    if volume.kind != FileSystem::Ntfs {
        removals(edits).try_for_each(|name| remove_staged(stage, name))?;
    }
    match volume.kind {
        FileSystem::Ext4 => edit_ext4(volume, stage, &part, edits)?,
        FileSystem::Xfs => make_xfs(volume, stage, &part)?,
        FileSystem::Ntfs => put_ntfs(stage, &part, edits)?,
    }
    splice(volume, &part)
}

fn part_file(volume: &Volume) -> PathBuf {
    volume.work.join(format!("{}.part", volume.name))
}

fn removals(edits: &[Edit]) -> impl Iterator<Item = &str> {
    edits.iter().filter_map(|edit| match edit {
        Edit::Remove(name) => Some(name.as_str()),
        Edit::Put(_) => None,
    })
}

fn only_removals(edits: &[Edit]) -> Vec<Edit> {
    edits.iter().filter(|edit| matches!(edit, Edit::Remove(_))).cloned().collect()
}

fn remove_staged(stage: &Path, name: &str) -> Result<()> {
    Ok(std::fs::remove_file(stage.join(name))?)
}

/// Puts the partition file into the image, in place of what was there.
fn splice(volume: &Volume, part: &Path) -> Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let (from, to) = (sparse::open(part)?, sparse::open_write(volume.image)?);
    let Region { start, length } = volume.region;
    fallocate(&to, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, length)?;
    sparse::copy_region(&from, Region { start: 0, length }, &to, start)
}

/// Where we note an ext4's folders: debugfs damages a file system when told to make one again.
fn folder_list(volume: &Volume) -> PathBuf {
    volume.work.join(format!("{}.folders", volume.name))
}

/// The folders above a file, outermost first.
fn folders(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').map(|(end, _)| &name[..end])
}

/// Replays edits by debugfs. A file that was put again is removed first: its blocks move, as they
/// do for programs that write a new file and rename it.
fn edit_ext4(volume: &Volume, stage: &Path, part: &Path, edits: &[Edit]) -> Result<()> {
    let known = std::fs::read_to_string(folder_list(volume))?;
    let mut known: BTreeSet<&str> = known.lines().collect();
    let mut script = String::new();
    for edit in edits {
        let name = edit.name();
        writeln!(script, "rm /{name}")?;
        if let Edit::Put(name) = edit
            && stage.join(name).exists()
        {
            let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
            for new in folders(name).filter(|folder| !known.contains(folder)) {
                // Relative to the root: "mkdir /name" would make it in the current folder.
                writeln!(script, "cd /\nmkdir {new}")?;
            }
            known.extend(folders(name));
            writeln!(script, "cd /{folder}\nwrite {} {file}", stage.join(name).display())?;
        }
    }
    let commands = volume.work.join(format!("{}.debugfs", volume.name));
    std::fs::write(&commands, script)?;
    std::fs::write(folder_list(volume), Vec::from_iter(known).join("\n"))?;
    // Removing what is not there fails harmlessly, but debugfs hides all failures: ask e2fsck.
    shell::output(shell::command("debugfs").arg("-w").arg("-f").arg(&commands).arg(part))?;
    shell::output(shell::command("e2fsck").args(["-f", "-n"]).arg(part)).map(drop)
}

fn make_xfs(volume: &Volume, stage: &Path, part: &Path) -> Result<()> {
    let prototype = volume.work.join(format!("{}.proto", volume.name));
    let mut text = String::from("/dev/null\n0 0\nd--755 0 0\n");
    describe_folder(stage, &mut text)?;
    std::fs::write(&prototype, text)?;
    let mut command = shell::command("mkfs.xfs");
    command.args(["-q", "-f", "-K", "-m", &format!("uuid={}", volume.uuid()), "-p"]);
    shell::output(command.arg(prototype).arg(part)).map(drop)
}

/// One folder in the prototype language of mkfs.xfs(8), ending with its `$`.
fn describe_folder(folder: &Path, text: &mut String) -> Result<()> {
    let mut entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            writeln!(text, "{name} d--755 0 0")?;
            describe_folder(&entry.path(), text)?;
        } else {
            writeln!(text, "{name} ---644 0 0 {}", entry.path().display())?;
        }
    }
    writeln!(text, "$")?;
    Ok(())
}

fn put_ntfs(stage: &Path, part: &Path, edits: &[Edit]) -> Result<()> {
    for edit in edits {
        if let Edit::Put(name) = edit
            && stage.join(name).exists()
        {
            let mut command = shell::command("ntfscp");
            command.args(["--quiet", "--force"]).arg(part).arg(stage.join(name));
            shell::output(command.arg(name.replace('/', "_")))?;
        }
    }
    Ok(())
}
