//! Servers of disks that Gantry did not write: nbdkit and qemu-nbd.
//!
//! In: a program, its options. Out: a [`DiskServer`] at a socket, ended when dropped; with nbdkit's
//! stats filter, how many bytes were read from it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::program::Running;

/// A running server.
#[derive(Debug)]
pub struct DiskServer {
    running: Running,
    socket: PathBuf,
    stats: PathBuf,
}

impl DiskServer {
    /// nbdkit with these options after its own; counts what is read.
    pub fn nbdkit(folder: &Path, name: &str, options: &[&str]) -> DiskServer {
        let stats = folder.join(format!("{name}.stats"));
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-r", "--filter=stats"]).args(options);
        command.arg(format!("statsfile={}", stats.display()));
        DiskServer::start(folder, name, command, "-U", stats)
    }

    /// qemu-nbd of an image for four clients.
    pub fn qemu(folder: &Path, name: &str, format: &str, image: &Path) -> DiskServer {
        let mut command = Command::new("qemu-nbd");
        command.args(["-r", "-t", "-e", "4", "-f", format]).arg(image);
        DiskServer::start(folder, name, command, "-k", PathBuf::new())
    }

    fn start(
        folder: &Path,
        name: &str,
        mut command: Command,
        at: &str,
        stats: PathBuf,
    ) -> DiskServer {
        let socket = folder.join(format!("{name}.socket"));
        let running = Running::start(folder, command.arg(at).arg(&socket));
        let began = Instant::now();
        while !socket.exists() {
            let late = began.elapsed() > Duration::from_secs(20);
            assert!(!late, "{name} does not listen: {}", running.errors());
            std::thread::sleep(Duration::from_millis(10));
        }
        DiskServer { running, socket, stats }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Ends it; bytes that were read, as nbdkit rounds them (three digits).
    #[track_caller]
    pub fn stop(self) -> f64 {
        self.running.terminate();
        self.running.wait();
        let text = std::fs::read_to_string(&self.stats).expect("nbdkit counts");
        let Some(line) = text.lines().find(|line| line.starts_with("read:")) else { return 0.0 };
        // read: 24 ops, 0.002 s, 21.00 MiB, 8.5 GiB/s op, ...
        let field = line.split(", ").nth(2).expect("bytes");
        let (number, unit) = field.split_once(' ').expect("number and unit");
        let number: f64 = number.parse().expect("a number");
        let unit = ["bytes", "KiB", "MiB", "GiB"].iter().position(|name| *name == unit);
        number * 1024f64.powi(unit.expect("a unit") as i32)
    }
}
