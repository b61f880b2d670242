//! `gantry-mover` as a person runs it: commands that answer, and one that serves.
//!
//! In: the program's path and a folder for its files. Out: its answers, parsed. Whatever is still
//! running when we leave is killed.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::cleanup::{Guard, Undo, checkpoint};
use crate::shell;

/// How long a repository mover may take to listen, and to drain.
const PATIENCE: Duration = Duration::from_secs(30);

/// The one JSON object at the end of `backup --json`; more fields than these are welcome.
#[derive(Debug, Clone, Deserialize)]
pub struct BackupFigures {
    /// The restore point's id.
    pub point: String,
    /// Bytes that had a fate: read or skipped.
    pub bytes_processed: u64,
    /// Read from the source.
    pub bytes_read: u64,
    /// In zero blocks.
    pub bytes_zero: u64,
    /// In blocks that are as the base has them.
    pub bytes_unchanged: u64,
    /// In blocks that the repository had from elsewhere.
    pub bytes_duplicate: u64,
    /// Over the wire.
    pub bytes_transferred: u64,
    /// Growth of the repository.
    pub bytes_stored: u64,
    /// Seconds.
    pub wall_seconds: f64,
    /// CPU seconds of the source mover.
    pub cpu_seconds: f64,
    /// Peak memory of the source mover.
    pub peak_rss_bytes: u64,
    /// Where the time went, in percent.
    pub bottleneck: Bottleneck,
}

/// Shares in percent.
#[derive(Debug, Clone, Deserialize)]
pub struct Bottleneck {
    /// Reading the source.
    pub source: f64,
    /// Work on this host.
    pub proxy: f64,
    /// The wire.
    pub network: f64,
    /// The repository.
    pub target: f64,
}

/// The program, and where its files are.
pub struct Mover {
    program: PathBuf,
    folder: PathBuf,
}

/// The two ends' credentials and where the repository listens.
pub struct Link {
    /// `gantry://…`
    pub repository: String,
    identity: PathBuf,
    peer: PathBuf,
}

/// A repository mover process.
pub struct Server {
    child: Child,
    guard: Guard,
    log: PathBuf,
}

impl Mover {
    /// Uses this program, with its files in that folder.
    pub fn new(program: PathBuf, folder: &Path) -> Mover {
        Mover { program, folder: folder.to_owned() }
    }

    fn command(&self) -> Command {
        checkpoint();
        let mut command = Command::new(&self.program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs to the end; returns standard output.
    ///
    /// # Errors
    /// When it fails: with its exit code and what it wrote.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        let line = shell::line(command);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("cannot start {line}"))?;
        let guard = Guard::new(Undo::Kill(child.id()));
        let done = child.wait_with_output();
        checkpoint();
        guard.disarm();
        let done = done?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            bail!("{line} failed ({}): {}", done.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Makes an identity; returns its file and its pin.
    ///
    /// # Errors
    /// When the command fails or prints nothing.
    fn create_identity(&self, name: &str) -> Result<(PathBuf, String)> {
        let file = self.folder.join(format!("{name}.pem"));
        let said = self.run(self.command().args(["identity", "create"]).arg(&file))?;
        let pin = said.split_whitespace().last().context("identity create printed no pin")?;
        Ok((file, pin.to_owned()))
    }

    /// Makes a repository and both identities, and starts a mover that serves it.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn serve(&self, repository: &Path) -> Result<(Server, Link)> {
        self.run(self.command().args(["repo", "init"]).arg(repository))?;
        let (source_identity, source_pin) = self.create_identity("source")?;
        let (target_identity, target_pin) = self.create_identity("target")?;
        let [trust, peer] = ["source.pin", "target.pin"].map(|name| self.folder.join(name));
        std::fs::write(&trust, source_pin + "\n")?;
        std::fs::write(&peer, target_pin + "\n")?;
        let port = free_port()?;
        let config = self.folder.join("repository.toml");
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:{port}\"\n\n[repository]\npath = {:?}\n\n\
             [identity]\nfile = {:?}\n\n[trust]\nfile = {:?}\n",
            repository, target_identity, trust
        );
        std::fs::write(&config, text)?;
        let server = self.start(&config)?;
        let repository = format!("gantry://127.0.0.1:{port}");
        Ok((server, Link { repository, identity: source_identity, peer }))
    }

    fn start(&self, config: &Path) -> Result<Server> {
        let log = self.folder.join("repository.log");
        let mut command = self.command();
        command.args(["serve", "--config"]).arg(config);
        command.stdout(Stdio::piped()).stderr(std::fs::File::create(&log)?);
        let mut child = command.spawn()?;
        let guard = Guard::new(Undo::Kill(child.id()));
        let output = child.stdout.take().context("no pipe from the mover")?;
        let server = Server { child, guard, log };
        match until_listening(output) {
            Ok(()) => Ok(server),
            Err(error) => Err(error.context(server.last_words())),
        }
    }

    fn reach(&self, verb: &str, link: &Link) -> Command {
        let mut command = self.command();
        command.args([verb, "--repo", &link.repository, "--name", "demo", "--json"]);
        command.arg("--identity").arg(&link.identity).arg("--peer").arg(&link.peer);
        command
    }

    /// Backs the disk up.
    ///
    /// # Errors
    /// When it fails or its answer is not the agreed one.
    pub fn backup(
        &self,
        link: &Link,
        disk: &Path,
        since: Option<(&str, &Path)>,
    ) -> Result<BackupFigures> {
        let mut command = self.reach("backup", link);
        command.arg(disk).args(["--disk-id", "demo-disk-0"]);
        if let Some((base, extents)) = since {
            command.args(["--base", base, "--changed-extents"]).arg(extents);
        }
        let answer = self.run(&mut command)?;
        serde_json::from_str(answer.trim()).with_context(|| format!("unexpected answer: {answer}"))
    }

    /// Restores a point's only disk to a new file; returns the seconds it took.
    ///
    /// # Errors
    /// When it fails.
    pub fn restore(&self, link: &Link, point: &str, to: &Path) -> Result<f64> {
        let begun = Instant::now();
        let mut command = self.reach("restore", link);
        self.run(command.args(["--point", point, "--disk", "0", "--to"]).arg(to))?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Lets the program check the repository.
    ///
    /// # Errors
    /// When it finds damage.
    pub fn verify(&self, repository: &Path) -> Result<()> {
        self.run(self.command().args(["repo", "verify"]).arg(repository)).map(drop)
    }
}

impl Server {
    /// Asks it to drain and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time, or ends badly.
    pub fn stop(mut self) -> Result<()> {
        use rustix::process::{Pid, Signal, kill_process};
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                let words = self.last_words();
                self.guard.disarm();
                ensure!(status.success(), "the repository mover ended with {status}; {words}");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the repository mover did not drain in time; {}", self.last_words());
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(10);
        format!("the repository mover's last words: {}", lines[from..].join(" | "))
    }
}

/// Waits for the line that says so; keeps reading afterwards, so that the pipe never fills.
fn until_listening(output: ChildStdout) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if line.contains("listening") {
                let _ = sender.send(());
            }
        }
    });
    receiver.recv_timeout(PATIENCE).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => anyhow::anyhow!("the repository mover does not listen"),
        mpsc::RecvTimeoutError::Disconnected => anyhow::anyhow!("the repository mover ended early"),
    })
}

/// A port of the loopback interface that nobody uses now, for UDP and TCP alike.
fn free_port() -> Result<u16> {
    for _ in 0..20 {
        let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1")
}
