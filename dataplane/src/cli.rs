//! The commands of `gantry-mover`: arguments in, library calls, results for people or programs out.
//!
//! In: parsed arguments. Out: text or one JSON object on standard output, progress on standard
//! error, a [`Failure`] for the exit code. It decides nothing about data.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use gantry_common::failure::{Failure, FailureKind};
use serde::Serialize;

pub mod arguments;
mod backup;
mod display;
mod enroll;
mod gc;
mod inspect;
mod job;
mod point;
mod repair;
mod repo;
mod restore;
mod stat;
mod verify;
mod work;

use crate::connect::{Connector, Credentials, LocalRepository, RepositoryAddress};
use crate::serve;
use crate::transport::{Identity, TransportKind, Trust};
use arguments::{AccessArguments, Command, IdentityCommand, TransportChoice};

/// Carries a command out.
///
/// # Errors
/// Its failure, with the kind that decides the exit code.
pub fn run(command: Command) -> Result<(), Failure> {
    carry_out(command)?;
    if OUTPUT_LOST.load(Ordering::Relaxed) {
        let text =
            "the command did its work, but its result could not be written to standard output";
        return Err(Failure::new(FailureKind::Internal, text));
    }
    Ok(())
}

fn carry_out(command: Command) -> Result<(), Failure> {
    match command {
        Command::Backup(arguments) => backup::run(*arguments),
        Command::Work(arguments) => work::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Repo { command } => repo::run(command),
        Command::Point { command } => point::run(command),
        Command::Serve { config } => {
            let config = serve::load(&config)?;
            let control = config.control.as_ref().map(|control| control.address.clone());
            serve::run(config, |address| {
                if let Some(address) = address {
                    say(&format!("listening on {address}"));
                } else if let Some(control) = control {
                    say(&format!("at the service of gantryd at {control}"));
                }
            })
        }
        Command::Identity { command } => identity(command),
        Command::Enroll(arguments) => enroll::run(&arguments),
    }
}

fn usage(text: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Usage, text.to_string())
}

/// Whether a result could not be written.
static OUTPUT_LOST: AtomicBool = AtomicBool::new(false);

/// Writes a line to standard output at once. A reader that has gone away is no error; anything
/// else is told at the command's end.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    if written.is_err_and(|error| error.kind() != std::io::ErrorKind::BrokenPipe) {
        OUTPUT_LOST.store(true, Ordering::Relaxed);
    }
}

/// Writes the one JSON object of a command.
fn say_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("writing JSON: {error}")))?;
    say(&text);
    Ok(())
}

fn identity(command: IdentityCommand) -> Result<(), Failure> {
    match command {
        IdentityCommand::Create { file, name } => {
            let identity = Identity::generate(&name).map_err(usage)?;
            identity.save(&file).map_err(usage)?;
            say(&identity.pin().to_string());
        }
        IdentityCommand::Show { file } => {
            say(&Identity::load(&file).map_err(usage)?.pin().to_string());
        }
    }
    Ok(())
}

/// A single-threaded runtime: the network thread is the one that calls.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Failure::new(FailureKind::Internal, format!("starting tokio failed: {error}"))
    })
}

/// What a command does with a repository that is a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Changes it.
    Write,
    /// Only reads it.
    Read,
    /// Changes it if it can be changed.
    WriteIfPossible,
}

/// The way to the repository that the arguments name.
fn connector(repo: &str, access: &AccessArguments, use_: Use) -> Result<Connector, Failure> {
    let address = match repo.parse()? {
        RepositoryAddress::Folder(dir) => {
            let local = match use_ {
                Use::Write => LocalRepository::open(&dir),
                Use::Read => LocalRepository::open_read_only(&dir),
                Use::WriteIfPossible => LocalRepository::open_if_possible(&dir),
            };
            return Ok(Connector::Local(local?));
        }
        RepositoryAddress::Remote(address) => address,
    };
    let credentials = Credentials { identity: identity_of(access)?, trust: trust_of(access)? };
    let kind = match access.transport {
        TransportChoice::Auto => TransportKind::Auto,
        TransportChoice::Quic => TransportKind::Quic,
        TransportChoice::Tcp => TransportKind::Tcp,
    };
    Ok(Connector::Remote { address, credentials: Box::new(credentials), kind })
}

fn needed<'a>(file: &'a Option<PathBuf>, option: &str, what: &str) -> Result<&'a Path, Failure> {
    file.as_deref().ok_or_else(|| usage(format!("gantry:// needs {option} FILE: {what}")))
}

fn identity_of(access: &AccessArguments) -> Result<Identity, Failure> {
    let what = "this mover's identity, made by 'gantry-mover identity create FILE'";
    Identity::load(needed(&access.identity, "--identity", what)?).map_err(usage)
}

fn trust_of(access: &AccessArguments) -> Result<Trust, Failure> {
    let what = "the pin that 'gantry-mover identity show' prints on the repository host";
    Trust::load(needed(&access.peer, "--peer", what)?).map_err(usage)
}

/// Reads a file of the person's, with its name in the error.
fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| usage(format!("{}: {error}", path.display())))
}
