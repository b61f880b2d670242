//! A file system inside an image: made, filled and changed by real file operations.
//!
//! In: a region of an image and a closure that works on a [`Tree`]. Out: the region holds the
//! result, cleanly unmounted. As root the kernel's own file system does it on a loop device;
//! otherwise (or where the kernel lacks the file system) `staged` does it by the tools alone.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::content::HostFile;
use super::device::{LoopDevice, Mount};
use super::layout::{Region, fixed_uuid};
use super::staged;
use crate::shell;

/// File systems that images hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// Linux, journalled.
    Ext4,
    /// Linux, journalled, allocation groups.
    Xfs,
    /// Windows.
    Ntfs,
}

/// One step of what happened to a tree, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// The file at this relative path was created or changed.
    Put(String),
    /// The file at this relative path was removed.
    Remove(String),
}

impl Edit {
    /// The relative path.
    pub fn name(&self) -> &str {
        let (Edit::Put(name) | Edit::Remove(name)) = self;
        name
    }
}

/// A file as it was put into a tree.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Its relative path.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// A folder tree that is (or will become) the content of a file system.
pub struct Tree {
    root: PathBuf,
    staged: bool,
    flat: bool,
    edits: Vec<Edit>,
}

impl Tree {
    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    fn prepare(&self, relative: &str) -> Result<PathBuf> {
        crate::cleanup::checkpoint();
        let path = self.path(relative);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        Ok(path)
    }

    /// Copies a file of this machine to the same place in the tree; nothing when the file is not
    /// readable.
    ///
    /// # Errors
    /// When the tree cannot be written.
    pub fn put(&mut self, file: &HostFile) -> Result<Option<Placed>> {
        let Ok(mut source) = File::open(&file.path) else { return Ok(None) };
        let mut relative = file.path.to_string_lossy().trim_start_matches('/').to_owned();
        if self.flat {
            relative = relative.replace('/', "_");
        }
        let path = self.prepare(&relative)?;
        let mut target = File::create(&path).with_context(|| path.display().to_string())?;
        let copied = std::io::copy(&mut source, &mut target);
        let bytes = copied.with_context(|| path.display().to_string())?;
        self.edits.push(Edit::Put(relative.clone()));
        Ok(Some(Placed { name: relative, bytes }))
    }

    /// Copies files; returns those that were readable.
    ///
    /// # Errors
    /// As [`Tree::put`].
    pub fn put_all(&mut self, files: &[HostFile]) -> Result<Vec<Placed>> {
        let mut names = Vec::with_capacity(files.len());
        for file in files {
            names.extend(self.put(file)?);
        }
        Ok(names)
    }

    /// Creates or replaces a file with these bytes.
    ///
    /// # Errors
    /// When the tree cannot be written.
    pub fn write(&mut self, relative: &str, bytes: &[u8]) -> Result<()> {
        let path = self.prepare(relative)?;
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        self.edits.push(Edit::Put(relative.to_owned()));
        Ok(())
    }

    /// Adds bytes at a file's end.
    ///
    /// # Errors
    /// When the file does not exist or cannot grow.
    pub fn append(&mut self, relative: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(relative);
        let file = std::fs::OpenOptions::new().append(true).open(&path);
        file.with_context(|| path.display().to_string())?.write_all(bytes)?;
        self.edits.push(Edit::Put(relative.to_owned()));
        Ok(())
    }

    /// Writes bytes into a file in place.
    ///
    /// # Errors
    /// When the file does not exist.
    pub fn overwrite(&mut self, relative: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let path = self.path(relative);
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        file.with_context(|| path.display().to_string())?.write_all_at(bytes, offset)?;
        self.edits.push(Edit::Put(relative.to_owned()));
        Ok(())
    }

    /// Removes files, after their content has reached the disk: it stays there as deleted content.
    ///
    /// # Errors
    /// When one does not exist.
    pub fn remove_all(&mut self, files: &[Placed]) -> Result<()> {
        if !self.staged {
            rustix::fs::syncfs(File::open(&self.root)?)?;
        }
        for Placed { name, .. } in files {
            if !self.staged {
                let path = self.path(name);
                std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
            self.edits.push(Edit::Remove(name.clone()));
        }
        Ok(())
    }
}

/// A file system in a region of an image.
#[derive(Debug, Clone, Copy)]
pub struct Volume<'a> {
    /// The image.
    pub image: &'a Path,
    /// Where in it.
    pub region: Region,
    /// Which file system.
    pub kind: FileSystem,
    /// Name of the image, from which the file system's UUID follows.
    pub name: &'a str,
    /// Folder for mount points and staging; the caller removes it.
    pub work: &'a Path,
}

impl Volume<'_> {
    /// The UUID that the file system gets.
    pub fn uuid(&self) -> String {
        fixed_uuid(self.name, 100)
    }

    fn stage(&self) -> PathBuf {
        self.work.join(format!("{}.stage", self.name))
    }

    /// Formats the region and fills it.
    ///
    /// # Errors
    /// When formatting fails, the content does not fit, or the closure fails.
    pub fn create(&self, fill: impl FnOnce(&mut Tree) -> Result<()>) -> Result<()> {
        if crate::is_root() {
            match self.format_and_mount() {
                Ok(mount) => return self.on_mount(&mount, fill),
                Err(error) => println!("    {}: no mount ({error:#}); tools only", self.name),
            }
        }
        std::fs::create_dir_all(self.stage())?;
        let edits = self.on_stage(fill)?;
        staged::create(self, &self.stage(), &edits)
    }

    /// Changes the file system through its own operations.
    ///
    /// # Errors
    /// When it does not mount, becomes full, or the closure fails.
    pub fn change(&self, change: impl FnOnce(&mut Tree) -> Result<()>) -> Result<()> {
        if self.stage().exists() {
            let edits = self.on_stage(change)?;
            return staged::change(self, &self.stage(), &edits);
        }
        let mount = self.mount()?;
        self.on_mount(&mount, change)
    }

    fn mount(&self) -> Result<Mount> {
        let at = self.work.join(format!("{}.mount", self.name));
        Mount::new(self.image, self.region, self.kind, &at)
    }

    fn format_and_mount(&self) -> Result<Mount> {
        let device = LoopDevice::attach(self.image, self.region)?;
        self.format(device.name())?;
        drop(device);
        self.mount()
    }

    /// Formats a device or a file of the region's size.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn format(&self, target: &str) -> Result<()> {
        let uuid = self.uuid();
        let mut command = match self.kind {
            FileSystem::Ext4 => {
                let mut command = shell::command("mkfs.ext4");
                command.args(["-q", "-F", "-U", &uuid, "-E", &format!("hash_seed={uuid}")]);
                command
            }
            FileSystem::Xfs => {
                let mut command = shell::command("mkfs.xfs");
                command.args(["-q", "-f", "-m", &format!("uuid={uuid}")]);
                command
            }
            FileSystem::Ntfs => {
                let mut command = shell::command("mkntfs");
                command.args(["--quick", "--quiet", "--force", "--label", "System"]);
                command.args(["--partition-start", "2048", "--heads", "255"]);
                command.args(["--sectors-per-track", "63"]);
                command
            }
        };
        shell::output(command.arg(target)).map(drop)
    }

    fn on_mount(&self, mount: &Mount, work: impl FnOnce(&mut Tree) -> Result<()>) -> Result<()> {
        let root = mount.folder().to_owned();
        let mut tree = Tree { root, staged: false, flat: false, edits: Vec::new() };
        work(&mut tree).with_context(|| format!("in {}'s file system", self.name))
    }

    fn on_stage(&self, work: impl FnOnce(&mut Tree) -> Result<()>) -> Result<Vec<Edit>> {
        let flat = self.kind == FileSystem::Ntfs;
        let mut tree = Tree { root: self.stage(), staged: true, flat, edits: Vec::new() };
        work(&mut tree)?;
        Ok(tree.edits)
    }
}
