//! The two movers: the repository's service, and the commands that talk to it.
//!
//! In: the built program and a folder. Out: a running [`Server`], [`Finished`] commands.
//! Invariant: a server that was started is ended, whatever happens.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::arguments::EndToEndArguments;
use crate::process::{self, Finished};

/// How long a server may take to drain before it is killed.
const DRAIN_MAX: Duration = Duration::from_secs(60);
const NAME: &str = "bench";

/// Where the program is.
pub(crate) fn program(given: Option<&Path>) -> Result<PathBuf> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("gantry-mover"));
    let path = given.map(Path::to_owned).or_else(beside).context("no path of gantry-mover")?;
    ensure!(
        path.is_file(),
        "{} is not there: cargo build --release -p gantry-dataplane, or give --mover PATH",
        path.display()
    );
    Ok(path)
}

/// Identities of both movers, and the program.
pub(super) struct Movers {
    program: PathBuf,
    folder: PathBuf,
    transport: &'static str,
}

impl Movers {
    /// Makes the identities and lets each trust the other.
    pub(super) fn new(
        program: &Path,
        folder: &Path,
        arguments: &EndToEndArguments,
    ) -> Result<Movers> {
        let movers = Movers {
            program: program.to_owned(),
            folder: folder.to_owned(),
            transport: arguments.transport.name(),
        };
        for (own, other) in [("source", "target"), ("target", "source")] {
            let file = movers.file(own, "pem");
            plain(Command::new(program).args(["identity", "create"]).arg(&file))?;
            let pin = plain(Command::new(program).args(["identity", "show"]).arg(&file))?;
            std::fs::write(movers.file(other, "peer"), pin)?;
        }
        Ok(movers)
    }

    fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.folder.join(format!("{name}.{kind}"))
    }

    /// Makes an empty repository.
    pub(super) fn init(&self, repository: &Path) -> Result<()> {
        plain(Command::new(&self.program).args(["repo", "init"]).arg(repository)).map(drop)
    }

    /// Starts the service of a repository.
    pub(super) fn serve(&self, repository: &Path) -> Result<Server> {
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let config = self.folder.join("serve.toml");
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:0\"\n[identity]\nfile = {}\n[trust]\nfile = {}\n\
             [repository]\npath = {}\n",
            quoted(&self.file("target", "pem")),
            quoted(&self.file("target", "peer")),
            quoted(repository),
        );
        std::fs::write(&config, text)?;
        Server::start(Command::new(&self.program).args(["serve", "--config"]).arg(&config))
    }

    /// Backs `source` up; `more` options decide how.
    pub(super) fn backup(
        &self,
        server: &Server,
        source: &Path,
        arguments: &EndToEndArguments,
        more: &[&str],
    ) -> Result<Finished> {
        let mut command = Command::new(&self.program);
        command.arg("backup").arg(source).args(["--disk-id", "bench-disk", "--json"]);
        command.args(["--block-size", &arguments.sample.block_size.to_string()]);
        command.args(["--compression", arguments.compression.name()]).args(more);
        if let Some(workers) = arguments.workers {
            command.args(["--workers", &workers.to_string()]);
        }
        process::run(self.to_server(&mut command, server))
    }

    /// Restores the newest point to a file.
    pub(super) fn restore(&self, server: &Server, to: &Path) -> Result<Finished> {
        let mut command = Command::new(&self.program);
        command.args(["restore", "--json", "--to"]).arg(to);
        process::run(self.to_server(&mut command, server))
    }

    fn to_server<'c>(&self, command: &'c mut Command, server: &Server) -> &'c mut Command {
        command.args(["--name", NAME, "--transport", self.transport]);
        command.arg("--repo").arg(format!("gantry://{}", server.address));
        command.arg("--identity").arg(self.file("source", "pem"));
        command.arg("--peer").arg(self.file("source", "peer"))
    }
}

/// Runs a program to its end; gives what it printed.
fn plain(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}\n{text}{errors}", output.status);
    Ok(text)
}

/// A running repository mover.
pub(super) struct Server {
    child: Child,
    address: String,
    /// Kept open: a service must not lose its output.
    _output: BufReader<ChildStdout>,
}

impl Server {
    fn start(command: &mut Command) -> Result<Server> {
        let shown = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().with_context(|| shown.clone())?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        loop {
            line.clear();
            if output.read_line(&mut line)? == 0 {
                bail!("{shown} ended before it listened: {}", child.wait()?);
            }
            if let Some(address) = line.trim().strip_prefix("listening on ") {
                let address = address.to_owned();
                return Ok(Server { child, address, _output: output });
            }
        }
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and waits.
    pub(super) fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < DRAIN_MAX {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the repository mover ended with {status}");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the repository mover did not end within {} s", DRAIN_MAX.as_secs())
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Gone already: nothing to end.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After a good stop, both find it gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
