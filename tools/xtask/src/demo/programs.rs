//! Gantry's programs: commands that answer, and services.
//!
//! In: the folder with the programs. Out: what they print, parsed. Whatever is still running when we
//! leave is killed.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cleanup::{Guard, Undo, checkpoint};
use crate::shell;

/// How long a service may take to be ready, to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

/// A program that runs until it is stopped.
pub struct Service {
    name: String,
    child: Child,
    guard: Guard,
    log: PathBuf,
    lines: mpsc::Receiver<String>,
}

impl Programs {
    /// Those of this folder.
    pub fn of(folder: &Path) -> Programs {
        Programs { folder: folder.to_owned() }
    }

    /// One of them.
    pub fn command(&self, program: &str) -> Command {
        checkpoint();
        let mut command = Command::new(self.folder.join(program));
        command.stdin(Stdio::null());
        command
    }
}

/// Runs to the end; gives what it printed.
///
/// # Errors
/// When it fails: with its exit code and what it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let child = start(command)?;
    child.finish(None)
}

/// The same with `input`, which may be secret, on its standard input.
///
/// # Errors
/// As [`run`].
pub fn feed(command: &mut Command, input: &str) -> Result<String> {
    let child = start(command.stdin(Stdio::piped()))?;
    child.finish(Some(input))
}

/// A command that has begun.
pub struct Begun {
    line: String,
    child: Child,
    guard: Guard,
}

/// Begins a command.
///
/// # Errors
/// It cannot be started.
pub fn start(command: &mut Command) -> Result<Begun> {
    let line = shell::line(command);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| format!("cannot start {line}"))?;
    let guard = Guard::new(Undo::Kill(child.id()));
    Ok(Begun { line, child, guard })
}

impl Begun {
    /// Whether it has ended.
    ///
    /// # Errors
    /// Of the system.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end; gives what it printed.
    ///
    /// # Errors
    /// As [`run`].
    pub fn finish(self, input: Option<&str>) -> Result<String> {
        let Begun { line, mut child, guard } = self;
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
            // One that ends early says more by its exit code.
            let _ = pipe.write_all(input.as_bytes());
        }
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
}

impl Service {
    /// Starts it, and waits for the first line that `is_ready` takes.
    ///
    /// # Errors
    /// When it ends, or says nothing of the kind in time.
    pub fn start(
        name: &str,
        command: &mut Command,
        log: &Path,
        is_ready: impl Fn(&str) -> bool,
    ) -> Result<(Service, String)> {
        let log = log.join(format!("{name}.log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut child = command.stdout(Stdio::piped()).stderr(file).spawn()?;
        let guard = Guard::new(Undo::Kill(child.id()));
        let output = child.stdout.take().context("no pipe from a service")?;
        let (sender, lines) = mpsc::channel();
        // It reads to the end, so that the pipe never fills.
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(line)));
        });
        let service = Service { name: name.to_owned(), child, guard, log, lines };
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match service.lines.recv_timeout(left) {
                Ok(line) if is_ready(&line) => return Ok((service, line)),
                Ok(_) => {}
                Err(_) => bail!("{name} is not ready; {}", service.last_words()),
            }
        }
    }

    /// Its standard input, once.
    pub fn input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The next line that it prints, as JSON.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn answer(&self) -> Result<Value> {
        let line = self.lines.recv_timeout(PATIENCE);
        let line = line.with_context(|| format!("{} does not answer", self.name))?;
        serde_json::from_str(&line).with_context(|| format!("{} answered {line}", self.name))
    }

    /// Kills it at once, as a power cut would.
    ///
    /// # Errors
    /// Of the system.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.guard.disarm();
        Ok(())
    }

    /// Asks it to end, and waits for that.
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
                ensure!(status.success(), "{} ended with {status}; {words}", self.name);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("{} does not end; {}", self.name, self.last_words());
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(10);
        format!("last words of {}: {}", self.name, lines[from..].join(" | "))
    }
}
