//! Two hosts of a scenario: identities that trust each other, a repository, its mover.
//!
//! In: nothing. Out: a [`Site`] with a private folder, and [`Server`]s over its repository, which
//! can be killed and started again at the same address.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::backup::BackupRun;
use crate::program::{Outcome, Running, mover};
use crate::restore::RestoreRun;
use crate::scratch::Scratch;

/// Ports that the system hands to nobody: below the ephemeral range of Linux.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// Identities, trust and a repository in a private folder.
#[derive(Debug)]
pub struct Site {
    /// The folder.
    pub scratch: Scratch,
    /// The repository's folder; may be moved elsewhere before the first use.
    pub repository: PathBuf,
    /// Identity of the source mover.
    pub source: Party,
    /// Identity of the repository mover.
    pub target: Party,
    /// File of the pins that may look after the repository, if not all may.
    pub managers: Option<PathBuf>,
}

/// An identity and the list of pins that it trusts.
#[derive(Debug, Clone)]
pub struct Party {
    /// File with key and certificate.
    pub identity: PathBuf,
    /// File of pins.
    pub trust: PathBuf,
    /// Its own pin.
    pub pin: String,
}

impl Site {
    /// A site whose two movers trust each other.
    pub fn new() -> Site {
        let scratch = Scratch::new();
        let [source, target] = ["source", "target"].map(|name| Party::new(&scratch, name));
        std::fs::write(&source.trust, format!("{}\n", target.pin)).expect("writable");
        std::fs::write(&target.trust, format!("{}\n", source.pin)).expect("writable");
        let repository = scratch.join("repository");
        Site { repository, scratch, source, target, managers: None }
    }

    /// Runs `gantry-mover` with these arguments.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Outcome {
        Running::start(self.scratch.path(), Command::new(mover()).args(arguments)).wait()
    }

    /// Runs `gantry-mover repo COMMAND DIR --json`.
    pub fn repo(&self, command: &str) -> Outcome {
        let folder = self.repository.as_os_str();
        self.run(&["repo".as_ref(), command.as_ref(), folder, "--json".as_ref()])
    }

    /// Asserts that `repo verify` finds nothing wrong.
    #[track_caller]
    pub fn verify(&self) {
        self.repo("verify").ok();
    }

    /// Ids of all points in the repository folder, as `repo list` gives them.
    #[track_caller]
    pub fn points(&self) -> Vec<String> {
        ids(&self.repo("list").ok().json())
    }

    /// Ids of the points that a server lists, oldest first; of all VMs if `name` is empty.
    #[track_caller]
    pub fn points_at(&self, server: &Server, name: &str) -> Vec<String> {
        let mut command = Command::new(mover());
        command.args(["point", "list", "--json", "--repo", &server.url(), "--name", name]);
        command.arg("--identity").arg(&self.source.identity);
        command.arg("--peer").arg(&self.source.trust);
        let listed = Running::start(self.scratch.path(), &mut command).wait().ok().json();
        ids(&listed)
    }

    /// Runs `gantry-mover` with these arguments and the source's credentials, for `gantry://`.
    pub fn run_as_source<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Outcome {
        self.run_as(&self.source, arguments)
    }

    /// Runs `gantry-mover` with these arguments and a party's credentials.
    pub fn run_as<S: AsRef<std::ffi::OsStr>>(&self, party: &Party, arguments: &[S]) -> Outcome {
        let mut command = Command::new(mover());
        command.args(arguments).arg("--identity").arg(&party.identity);
        command.arg("--peer").arg(&party.trust);
        Running::start(self.scratch.path(), &mut command).wait()
    }

    /// Starts the repository mover on a port of its own.
    pub fn serve(&self) -> Server {
        self.serve_at(free_port())
    }

    /// Starts the repository mover at a known port.
    pub fn serve_at(&self, port: u16) -> Server {
        Server::start(self, port)
    }

    /// A backup of `name` into the folder itself.
    pub fn backup_local(&self, name: &str) -> BackupRun {
        BackupRun::new(self.scratch.path(), &self.repository.display().to_string(), name)
    }

    /// A backup of `name` over QUIC.
    pub fn backup(&self, server: &Server, name: &str) -> BackupRun {
        self.backup_by("quic", server, name)
    }

    /// A backup of `name` over a transport.
    pub fn backup_by(&self, transport: &str, server: &Server, name: &str) -> BackupRun {
        let run = BackupRun::new(self.scratch.path(), &server.url(), name);
        run.credentials(&self.source).args(["--transport", transport])
    }

    /// A restore of `name` from the folder itself.
    pub fn restore_local(&self, name: &str) -> RestoreRun {
        RestoreRun::new(self.scratch.path(), &self.repository.display().to_string(), name)
    }

    /// A restore of `name` over QUIC.
    pub fn restore(&self, server: &Server, name: &str) -> RestoreRun {
        let run = RestoreRun::new(self.scratch.path(), &server.url(), name);
        run.credentials(&self.source).args(["--transport", "quic"])
    }

    /// Bytes that the repository's files take.
    pub fn stored_bytes(&self) -> u64 {
        files_below(&self.repository).iter().map(|path| allocated_bytes(path)).sum()
    }
}

impl Default for Site {
    fn default() -> Site {
        Site::new()
    }
}

impl Party {
    /// A new identity in `scratch` that trusts nobody yet.
    pub fn new(scratch: &Scratch, name: &str) -> Party {
        let identity = scratch.join(format!("{name}.pem"));
        let mut command = Command::new(mover());
        command.args(["identity", "create"]).arg(&identity);
        let made = Running::start(scratch.path(), &mut command).wait().ok();
        let pin = made.out.split_whitespace().next().expect("identity create prints the pin");
        let trust = scratch.write(&format!("{name}.trust"), "");
        Party { identity, trust, pin: pin.to_owned() }
    }
}

/// A repository mover; killed when dropped.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub process: Running,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    fn start(site: &Site, port: u16) -> Server {
        let mut text = String::new();
        let quote = |path: &Path| format!("{:?}", path.display().to_string());
        let _ = writeln!(text, "[drain]\nseconds = 5");
        let _ = writeln!(text, "[listen]\naddress = \"127.0.0.1:{port}\"");
        let _ = writeln!(text, "[identity]\nfile = {}", quote(&site.target.identity));
        let _ = writeln!(text, "[trust]\nfile = {}", quote(&site.target.trust));
        if let Some(managers) = &site.managers {
            let _ = writeln!(text, "managers = {}", quote(managers));
        }
        let _ = writeln!(text, "[repository]\npath = {}\ncreate = true", quote(&site.repository));
        let config = site.scratch.write(&format!("mover-{port}.toml"), text);
        let mut command = Command::new(mover());
        command.args(["serve", "--config"]).arg(config);
        let mut process = Running::start(site.scratch.path(), &mut command);
        let address = process.wait_for_line("listening on ");
        Server { process, address: address.parse().expect("an address") }
    }

    /// `gantry://…`.
    pub fn url(&self) -> String {
        format!("gantry://{}", self.address)
    }

    /// Ends it by SIGTERM and asserts that it went well, so that the folder can be used directly.
    #[track_caller]
    pub fn stop(self) {
        self.process.terminate();
        self.process.wait().ok();
    }

    /// Asserts that it still runs and has not panicked.
    #[track_caller]
    pub fn is_well(&mut self) {
        let over = self.process.is_over();
        let errors = self.process.errors();
        assert!(!over && !errors.contains("panicked at"), "the repository mover died: {errors}");
    }
}

/// Ids of listed points, in their order.
#[track_caller]
pub fn ids(listed: &Value) -> Vec<String> {
    let points = listed.as_array().expect("a list of points");
    let id = |point: &Value| point["point"].as_str().expect("a point has an id").to_owned();
    points.iter().map(id).collect()
}

/// A port that is free for UDP and TCP, and that nobody is given by chance.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(PORTS);
        let address = ("127.0.0.1", port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return port;
        }
    }
}

/// Every file below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut waiting) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder { waiting.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort();
    found
}

/// Bytes that a file takes on its disk.
pub fn allocated_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |facts| facts.blocks() * 512)
}

/// Waits until `done`, for at most `limit`.
#[track_caller]
pub fn wait_until(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + limit;
    while !done() {
        assert!(std::time::Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
