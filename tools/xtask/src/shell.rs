//! Other programs: finding them, running them, saying what they said when they fail.
//!
//! In: a command. Out: its output, or an error with the command line and what it wrote. Also the
//! printing of timed steps. Must not hide a failure of a child.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Where system tools live that a normal user's PATH may lack.
const SYSTEM_PATHS: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin"];

/// The program's full path, if the machine has it.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_PATHS.map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// A command in the C locale, found also where PATH does not look. Not while we are leaving.
pub fn command(program: &str) -> Command {
    crate::cleanup::checkpoint();
    undo_command(program)
}

/// The same for undoing, which goes on while we are leaving.
pub fn undo_command(program: &str) -> Command {
    let mut command = Command::new(find(program).unwrap_or_else(|| PathBuf::from(program)));
    command.env("LC_ALL", "C");
    command
}

/// The cargo that runs us, at the repository's root, without the variables that `cargo run` adds
/// (they would make build scripts run again).
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let added = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
        if added.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command.current_dir(root);
    command
}

/// The command line as a person would type it.
pub fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs quietly; returns standard output.
///
/// # Errors
/// When it cannot start or fails; the message holds what it wrote.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", line(command)))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let also = String::from_utf8_lossy(&done.stdout);
        bail!("{} failed ({}): {} {}", line(command), done.status, said.trim(), also.trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs quietly with `input` on standard input.
///
/// # Errors
/// As [`output`].
pub fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", line(command)))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A child that fails early closes its end; its exit status tells more than our error.
        let _ = pipe.write_all(input.as_bytes());
    }
    let done = child.wait_with_output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("{} failed ({}): {}", line(command), done.status, said.trim());
    }
    Ok(())
}

/// Runs with our own standard output and error.
///
/// # Errors
/// When it cannot start or fails.
pub fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", line(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// Prints a step's name before it and its time after it.
///
/// # Errors
/// The step's own, with its name.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {name}");
    let begun = Instant::now();
    let result = work().with_context(|| name.to_owned());
    let word = if result.is_ok() { "done" } else { "FAILED" };
    println!("    {word}: {name}, {:.1} s", begun.elapsed().as_secs_f64());
    result
}
