//! Real images for tests: files, the tools that fill them, loop devices that go away by themselves.
//!
//! In: sizes and commands. Out: images, or a printed reason why a test is left out. Must not: leave
//! a loop device or a mount behind.

#![allow(dead_code)]

pub mod ext4;
pub mod host;
pub mod judge;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_guest::Disk;

/// A file as a disk.
pub struct Image(pub File);

impl Image {
    /// Opens it for reading.
    pub fn open(path: &Path) -> Image {
        Image(File::open(path).unwrap())
    }
}

impl Disk for Image {
    fn length(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

/// A sparse file of this length.
pub fn empty(path: &Path, length: u64) {
    File::create(path).unwrap().set_len(length).unwrap();
}

/// Runs a tool that must succeed; its standard output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a tool with this standard input.
pub fn feed(program: &str, arguments: &[&str], input: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("input");
    std::fs::write(&path, input).unwrap();
    let output =
        Command::new(program).args(arguments).stdin(File::open(&path).unwrap()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

/// Whether these tools are here and, where that matters, whether this is root; prints what is not.
pub fn can(root: bool, tools: &[&str]) -> bool {
    let missing = tools.iter().find(|tool| {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
        !found.is_ok_and(|found| found.status.success())
    });
    if let Some(tool) = missing {
        println!("left out: {tool} is not installed");
        return false;
    }
    let me = Command::new("id").arg("-u").output().unwrap();
    if root && me.stdout != b"0\n" {
        println!("left out: it needs root, for loop devices and mounts");
        return false;
    }
    true
}

/// How many seeds a test runs: `GANTRY_SEEDS`, or the few that the default is.
pub fn seeds(few: u64) -> u64 {
    std::env::var("GANTRY_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(few)
}

/// A loop device over a file or a part of it, detached on drop.
pub struct Loop(pub PathBuf);

impl Loop {
    /// Over the whole file.
    pub fn whole(path: &Path) -> Loop {
        Loop::part(path, 0, 0)
    }

    /// Over `length` bytes from `start`; a length of 0 means to the end.
    pub fn part(path: &Path, start: u64, length: u64) -> Loop {
        let (start, length) = (start.to_string(), length.to_string());
        let arguments = [
            "--find",
            "--show",
            "--offset",
            &start,
            "--sizelimit",
            &length,
            path.to_str().unwrap(),
        ];
        Loop(run("losetup", &arguments).trim().into())
    }

    /// Over the whole file, past its cache.
    pub fn direct(path: &Path) -> Loop {
        let arguments = ["--find", "--show", "--direct-io=on", path.to_str().unwrap()];
        Loop(run("losetup", &arguments).trim().into())
    }

    /// Its path, for commands.
    pub fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// A mount, undone on drop.
pub struct Mount(pub PathBuf);

impl Mount {
    /// Mounts with `-o options` on a folder that is made.
    pub fn new(source: &Path, on: &Path, options: &str) -> Mount {
        std::fs::create_dir_all(on).unwrap();
        run("mount", &["-o", options, source.to_str().unwrap(), on.to_str().unwrap()]);
        Mount(on.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
