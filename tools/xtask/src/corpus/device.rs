//! Loop devices and mounts, each undone however the build ends.
//!
//! In: a region of a file. Out: a device or a mounted folder that lasts as long as its guard.
//! Only for root. Must not touch a device that it did not attach.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::layout::Region;
use super::volume::FileSystem;
use crate::cleanup::{Guard, Undo};
use crate::shell;

/// A loop device over one region of a file.
pub struct LoopDevice {
    name: String,
    _guard: Guard,
}

impl LoopDevice {
    /// Attaches the next free loop device to the region.
    ///
    /// # Errors
    /// When the machine has no loop devices or does not let us.
    pub fn attach(file: &Path, region: Region) -> Result<LoopDevice> {
        let mut command = shell::command("losetup");
        command.args(["--find", "--show", "--offset", &region.start.to_string()]);
        command.args(["--sizelimit", &region.length.to_string()]).arg(file);
        let name = shell::output(&mut command)?.trim().to_owned();
        let guard = Guard::new(Undo::Detach(name.clone()));
        Ok(LoopDevice { name, _guard: guard })
    }

    /// The device's path.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A mounted file system; unmounted (and with that written out) on drop.
pub struct Mount {
    folder: PathBuf,
    // Order matters: fields drop top down, and the device is busy while it is mounted.
    _mounted: Guard,
    _made: Guard,
    _device: LoopDevice,
}

impl Mount {
    /// Mounts the region's file system on a new folder `at`.
    ///
    /// # Errors
    /// When mounting fails: mostly a kernel without that file system.
    pub fn new(file: &Path, region: Region, kind: FileSystem, at: &Path) -> Result<Mount> {
        let device = LoopDevice::attach(file, region)?;
        std::fs::create_dir_all(at).with_context(|| at.display().to_string())?;
        let made = Guard::new(Undo::RemoveEmptyFolder(at.to_owned()));
        let mut command = mount_command(kind);
        shell::output(command.arg(device.name()).arg(at))?;
        let mounted = Guard::new(Undo::Unmount(at.to_owned()));
        Ok(Mount { folder: at.to_owned(), _mounted: mounted, _made: made, _device: device })
    }

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// No discard anywhere, so that deleted files' content stays on the disk, as on real ones.
fn mount_command(kind: FileSystem) -> Command {
    match kind {
        FileSystem::Ext4 => {
            let mut command = shell::command("mount");
            command.args(["-t", "ext4", "-o", "nodiscard,noinit_itable"]);
            command
        }
        FileSystem::Xfs => {
            let mut command = shell::command("mount");
            command.args(["-t", "xfs", "-o", "nodiscard,nouuid"]);
            command
        }
        FileSystem::Ntfs => {
            let mut command = shell::command("ntfs-3g");
            command.args(["-o", "big_writes"]);
            command
        }
    }
}
