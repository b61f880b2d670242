//! Loop devices and small file systems, for sources, destinations and full disks.
//!
//! In: files. Out: guards that detach and unmount when dropped. Only root may; a scenario asks
//! [`is_root`] first and says so when it leaves something out.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scratch::Scratch;

/// Whether loop devices and mounts are possible; says so if not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("left out: only root can attach loop devices and mount");
    }
    root
}

#[track_caller]
fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A loop device over a file; detached when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `file`.
    pub fn attach(file: &Path, read_only: bool) -> LoopDevice {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]);
        if read_only {
            command.arg("--read-only");
        }
        LoopDevice { path: output_of(command.arg(file)).into() }
    }

    /// Attaches a part of `file`, read-only.
    pub fn attach_part(file: &Path, start: u64, bytes: u64) -> LoopDevice {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--read-only", "--offset", &start.to_string()]);
        command.args(["--sizelimit", &bytes.to_string()]);
        LoopDevice { path: output_of(command.arg(file)).into() }
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// A mounted file system of a fixed size; unmounted when dropped.
#[derive(Debug)]
pub struct Volume {
    mount: PathBuf,
    // Dropped after the unmounting below.
    _device: LoopDevice,
}

impl Volume {
    /// An ext4 of `bytes`, mounted within `scratch`.
    pub fn ext4(scratch: &Scratch, bytes: u64) -> Volume {
        let image = scratch.write("volume.img", b"");
        let file = std::fs::File::options().write(true).open(&image).expect("an image");
        file.set_len(bytes).expect("an image grows");
        output_of(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-F"]).arg(&image));
        let device = LoopDevice::attach(&image, false);
        let mount = scratch.join("volume");
        std::fs::create_dir(&mount).expect("a mount point");
        output_of(Command::new("mount").arg(device.path()).arg(&mount));
        Volume { mount, _device: device }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        unmount(&self.mount);
    }
}

/// A mounted ext4 on a device of a certain speed, in memory; unmounted when dropped.
#[derive(Debug)]
pub struct SlowVolume {
    mount: PathBuf,
    rate: PathBuf,
    device: Option<LoopDevice>,
    fuse: PathBuf,
    server: Option<std::process::Child>,
}

impl SlowVolume {
    /// Of `bytes`, as fast as it can be at first: nbdkit's memory plugin below its rate filter, shown
    /// as a file by nbdfuse, under a loop device.
    pub fn ext4(scratch: &Scratch, bytes: u64) -> SlowVolume {
        let [fuse, mount] = ["slow-device", "slow-volume"].map(|name| scratch.join(name));
        std::fs::create_dir(&fuse).expect("a folder");
        std::fs::create_dir(&mount).expect("a mount point");
        let rate = scratch.write("slow-rate", UNLIMITED);
        let mut server = Command::new("nbdfuse");
        server.arg(fuse.join("disk")).args(["--command", "nbdkit", "-s", "--filter=rate"]);
        server.arg("memory").arg(format!("size={bytes}"));
        server
            .arg(format!("rate={UNLIMITED}"))
            .arg("burstiness=0.05")
            .arg(format!("rate-file={}", rate.display()));
        let server = server.spawn().expect("nbdfuse (package libnbd-bin) runs");
        let mut volume = SlowVolume { mount, rate, device: None, fuse, server: Some(server) };
        let disk = volume.fuse.join("disk");
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !disk.exists() {
            assert!(std::time::Instant::now() < until, "nbdfuse shows no disk");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        output_of(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-F"]).arg(&disk));
        let device = LoopDevice::attach(&disk, false);
        output_of(Command::new("mount").arg(device.path()).arg(&volume.mount));
        volume.device = Some(device);
        volume
    }

    /// From now on it takes so many bytes a second.
    pub fn limit(&self, bytes_per_second: Option<u64>) {
        let text = bytes_per_second.map_or(UNLIMITED.to_owned(), |rate| (rate * 8).to_string());
        std::fs::write(&self.rate, text).expect("writable");
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }
}

/// Bits a second.
const UNLIMITED: &str = "1000000000000";

impl Drop for SlowVolume {
    fn drop(&mut self) {
        self.limit(None);
        unmount(&self.mount);
        drop(self.device.take());
        unmount(&self.fuse);
        if let Some(mut server) = self.server.take() {
            let _ = server.wait();
        }
    }
}

/// A file system in memory, where files may be larger than ext4 allows; unmounted when dropped.
#[derive(Debug)]
pub struct Memory {
    mount: PathBuf,
}

impl Memory {
    /// A tmpfs that holds up to `bytes`, mounted within `scratch`.
    pub fn mount(scratch: &Scratch, bytes: u64) -> Memory {
        let mount = scratch.join("memory");
        std::fs::create_dir(&mount).expect("a mount point");
        let size = format!("size={bytes}");
        output_of(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&mount));
        Memory { mount }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        unmount(&self.mount);
    }
}

/// Files of a ring are released some time after its process has ended, so it may take a while.
fn unmount(mount: &Path) {
    for _ in 0..100 {
        let output = Command::new("umount").arg(mount).output();
        if output.is_ok_and(|output| output.status.success()) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let _ = Command::new("umount").arg("--lazy").arg(mount).status();
}
