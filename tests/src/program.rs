//! Programs as child processes that never outlive the scenario.
//!
//! In: a command. Out: [`Running`] (killed on drop) and [`Outcome`] (exit code, output). Output
//! goes to files, so that no full pipe can stop a program.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scratch::profile_folder;

/// Longest that any program of a scenario may take; beyond, it is killed and the test fails.
const TOOK_MAX: Duration = Duration::from_secs(240);

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// `gantry-mover`, or what `GANTRY_MOVER` names instead.
pub fn mover() -> PathBuf {
    let named = std::env::var_os("GANTRY_MOVER").map(PathBuf::from);
    let program = named.unwrap_or_else(|| profile_folder().join("gantry-mover-under-test"));
    assert!(program.exists(), "{} is not built: cargo build --workspace", program.display());
    program
}

/// `gantry`, or what `GANTRY_CONTROL` names instead.
pub fn control() -> PathBuf {
    let named = std::env::var_os("GANTRY_CONTROL").map(PathBuf::from);
    let program = named.unwrap_or_else(|| profile_folder().join("gantry-under-test"));
    assert!(program.exists(), "{} is not built: cargo build --workspace", program.display());
    program
}

/// `gantryd`, or what `GANTRY_DAEMON` names instead.
pub fn daemon() -> PathBuf {
    let named = std::env::var_os("GANTRY_DAEMON").map(PathBuf::from);
    let program = named.unwrap_or_else(|| profile_folder().join("gantryd-under-test"));
    assert!(program.exists(), "{} is not built: cargo build --workspace", program.display());
    program
}

/// A child process; killed (SIGKILL) and reaped when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    line: String,
    out: PathBuf,
    err: PathBuf,
    began: Instant,
}

/// What a finished program left.
#[derive(Debug)]
pub struct Outcome {
    /// The command, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output; empty if it is no text.
    pub out: String,
    /// The file that holds it.
    pub out_file: PathBuf,
    /// Standard error.
    pub err: String,
    /// How long it ran.
    pub took: Duration,
}

impl Running {
    /// Starts `command`, whose output goes to files in `folder`.
    pub fn start(folder: &Path, command: &mut Command) -> Running {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let [out, err] = ["out", "err"].map(|kind| folder.join(format!("program-{number}.{kind}")));
        let file = |path: &Path| File::create(path).expect("an output file");
        command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
        let line = format!("{command:?}");
        let child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        Running { child, line, out, err, began: Instant::now() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Standard output so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// Standard error so far.
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// Waits until standard output holds a line that begins with `start`; gives its rest.
    pub fn wait_for_line(&mut self, start: &str) -> String {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let text = self.output();
            let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(rest) = lines.find_map(|line| line.strip_prefix(start)) {
                return rest.trim().to_owned();
            }
            let ended = self.is_over();
            assert!(
                !ended && Instant::now() < until,
                "{}: no line '{start}' (ended: {ended}); it said: {text}{}",
                self.line,
                self.errors()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it has ended by itself.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_some()
    }

    /// `kill -9`, and gone when this returns.
    pub fn kill_hard(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be reaped");
    }

    /// Halts it, or lets it go on.
    pub fn halt(&self, halt: bool) {
        use rustix::process::{Pid, Signal, kill_process};
        let signal = if halt { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.child), signal).expect("it is ours");
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let id = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
    }

    /// A line of `/proc/PID/status` in bytes, such as `VmHWM`.
    pub fn memory_bytes(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.expect("the program runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("no {field} in {status}")) * 1024
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Outcome {
        let until = self.began + TOOK_MAX;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                break status;
            }
            if Instant::now() > until {
                self.kill_hard();
                panic!("{} took too long; it said: {}{}", self.line, self.output(), self.errors());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = self.began.elapsed();
        let (out, err) = (self.output(), self.errors());
        let (line, out_file) = (self.line.clone(), self.out.clone());
        Outcome { line, status, out, out_file, err, took }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let output: String = self.output().chars().take(400).collect();
            eprintln!("--- {}\n{output}\n{}", self.line, self.errors());
        }
    }
}

impl Outcome {
    /// The exit code; a signal counts as 128 and its number.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        self.fails_with(0)
    }

    /// Asserts an exit code. A failure must say something, and no program may panic.
    #[track_caller]
    pub fn fails_with(self, code: i32) -> Outcome {
        let Outcome { line, out, err, .. } = &self;
        assert_eq!(self.code(), code, "{line} ended otherwise:\n{out}\n{err}");
        assert!(code == 0 || !err.trim().is_empty(), "{line} failed without a word");
        // The index catches redb's assertions on damage; the hook prints them all the same.
        let mut panics = err.lines().filter(|line| line.contains("panicked at"));
        assert!(panics.all(|line| line.contains("/redb-")), "{line} panicked: {err}");
        self
    }

    /// Asserts that standard error holds each of these words, whatever their case.
    #[track_caller]
    pub fn saying(self, words: &[&str]) -> Outcome {
        let text = self.err.to_lowercase();
        for word in words {
            let found = text.contains(&word.to_lowercase());
            assert!(found, "{}: its error does not name '{word}':\n{}", self.line, self.err);
        }
        self
    }

    /// Standard output as one JSON value; null if it is none.
    pub fn json_or_null(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or(Value::Null)
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{}: {error} in:\n{}{}", self.line, self.out, self.err))
    }
}

/// Runs a real counterpart (cmp, qemu-img, e2fsck …) and asserts that it agrees.
#[track_caller]
pub fn agrees(program: &str, arguments: &[&std::ffi::OsStr]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
