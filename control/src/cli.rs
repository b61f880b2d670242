//! Arguments in, library calls, text or JSON out.
//!
//! In: what a person typed. Out: results on standard output, errors on standard error with what to
//! do next, exit codes by the kind of failure. Invariant: no secret is ever an argument.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use gantry_common::failure::{Failure, FailureKind};
use serde::Serialize;

use crate::config::{Config, VCenterConfig};
use crate::transport::ProxyFacts;
use crate::vcenter::VCenter;

mod probe;
mod service;
mod vm;

use self::service::{
    ConfigCommand, JobCommand, LoginArguments, MoverCommand, PointCommand, RecordCommand,
    RepositoryCommand, RestoreCommand, ServiceCommand, SessionCommand, TokenCommand, VcenterMore,
};

/// Gantry: backs up vSphere virtual machines without agents, and brings them back.
#[derive(Debug, Parser)]
#[command(name = "gantry", version, max_term_width = 100)]
struct Arguments {
    /// What to log on standard error: error, warn, info, debug, trace.
    #[arg(long, global = true, default_value = "warn", env = "GANTRY_LOG")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Log in to gantryd; all commands but vm, cleanup and vcenter probe go to it.
    Login(LoginArguments),
    /// vCenters and ESXi hosts.
    Vcenter {
        #[command(subcommand)]
        command: VcenterCommand,
    },
    /// Movers: invite them, see how they stand, lock them out.
    Mover {
        #[command(subcommand)]
        command: MoverCommand,
    },
    /// Proxies: hosts that read disks.
    Proxy {
        #[command(subcommand)]
        command: RecordCommand,
    },
    /// Repositories: what they hold, verifying, collecting.
    Repository {
        #[command(subcommand)]
        command: RepositoryCommand,
    },
    /// Jobs: what is backed up, where to, when; start and stop them.
    Job {
        #[command(subcommand)]
        command: JobCommand,
    },
    /// Sessions: what runs and what has run.
    Session {
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// Restore points.
    Point {
        #[command(subcommand)]
        command: PointCommand,
    },
    /// Restore a machine or disks of a point.
    Restore {
        #[command(subcommand)]
        command: RestoreCommand,
    },
    /// Rules that limit the rate between networks.
    Traffic {
        #[command(subcommand)]
        command: RecordCommand,
    },
    /// Credentials for scripts in guests.
    Credential {
        #[command(subcommand)]
        command: RecordCommand,
    },
    /// Tokens: who may use the API.
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Settings of the service, and the whole configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print a completion script for a shell.
    Completion {
        /// Which.
        shell: clap_complete::Shell,
    },
    /// Write manual pages of gantry and gantryd.
    Man {
        /// Folder.
        folder: PathBuf,
    },
    /// Without gantryd: list virtual machines, back them up from this host.
    Vm {
        #[command(subcommand)]
        command: VmCommand,
    },
    /// Without gantryd: undo what an interrupted backup left in vCenter: attached disks, snapshots, leases. Every
    /// backup begins with it.
    Cleanup(ConfigArguments),
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// List the virtual machines of the vCenter.
    List(ConfigArguments),
    /// Back up virtual machines, one after the other: snapshot, changed blocks, copy, clean-up.
    Backup(BackupArguments),
}

#[derive(Debug, Args)]
struct ConfigArguments {
    /// Configuration file (TOML; see docs/operations.md).
    #[arg(long, value_name = "FILE", env = "GANTRY_CONFIG")]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct BackupArguments {
    /// Names of the virtual machines.
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
    /// Read everything that is allocated, whatever changed.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    config: ConfigArguments,
}

#[derive(Debug, Subcommand)]
enum VcenterCommand {
    #[command(flatten)]
    Record(RecordCommand),
    #[command(flatten)]
    More(VcenterMore),
    /// Report versions, privileges, disks, CBT, transport modes and read speed. Changes nothing.
    Probe(ProbeArguments),
}

#[derive(Debug, Args)]
struct ProbeArguments {
    /// The vCenter or ESXi: https://HOST[:PORT]. Not needed with --config.
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    url: Option<String>,
    /// Configuration file with vCenter and proxy.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// User to log in as.
    #[arg(long, required_unless_present = "config")]
    user: Option<String>,
    /// File with the password; only its owner may read it.
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    password_file: Option<PathBuf>,
    /// SHA-256 of the endpoint's certificate. Without it, and without --ca-file, the error says
    /// which one the endpoint shows.
    #[arg(long)]
    thumbprint: Option<String>,
    /// PEM file with the authority that signed the certificate.
    #[arg(long, value_name = "FILE", conflicts_with = "thumbprint")]
    ca_file: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl ProbeArguments {
    fn target(&self) -> Result<(VCenterConfig, ProxyFacts), Failure> {
        if let Some(file) = &self.config {
            let config = Config::load(file)?;
            return Ok((config.vcenter, config.proxy));
        }
        let (Some(url), Some(user), Some(password_file)) =
            (self.url.clone(), self.user.clone(), self.password_file.clone())
        else {
            return Err(usage("give URL, --user and --password-file, or --config FILE"));
        };
        // A thumbprint that fits nobody: the refusal then tells the one that is shown.
        let unknown = self.thumbprint.is_none() && self.ca_file.is_none();
        let thumbprint = self.thumbprint.clone().or(unknown.then(|| "00".repeat(32)));
        let ca_file = self.ca_file.clone();
        let vcenter = VCenterConfig { url, user, password_file, thumbprint, ca_file };
        Ok((vcenter, ProxyFacts::default()))
    }
}

/// Parses, runs, and gives the exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&arguments.log)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "gantry: {failure}");
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::new(FailureKind::Internal, format!("starting tokio: {error}")))?;
    runtime.block_on(async {
        let command = match command {
            Command::Login(arguments) => return service::login(&arguments).await,
            Command::Completion { shell } => {
                service::completion(shell);
                return Ok(());
            }
            Command::Restore { command } => return service::restore(command).await,
            Command::Man { folder } => return service::manual(&folder),
            Command::Vcenter { command: VcenterCommand::Probe(arguments) } => {
                return probe::run(&arguments).await;
            }
            Command::Vm { command: VmCommand::List(arguments) } => {
                return vm::list(&arguments).await;
            }
            Command::Vm { command: VmCommand::Backup(arguments) } => {
                return vm::backup(&arguments).await;
            }
            Command::Cleanup(arguments) => return vm::cleanup(&arguments).await,
            Command::Vcenter { command: VcenterCommand::Record(command) } => {
                ServiceCommand::Vcenter(command)
            }
            Command::Vcenter { command: VcenterCommand::More(command) } => {
                ServiceCommand::VcenterMore(command)
            }
            Command::Mover { command } => ServiceCommand::Mover(command),
            Command::Proxy { command } => ServiceCommand::Proxy(command),
            Command::Repository { command } => ServiceCommand::Repository(command),
            Command::Job { command } => ServiceCommand::Job(command),
            Command::Session { command } => ServiceCommand::Session(command),
            Command::Point { command } => ServiceCommand::Point(command),
            Command::Traffic { command } => ServiceCommand::Traffic(command),
            Command::Credential { command } => ServiceCommand::Credential(command),
            Command::Token { command } => ServiceCommand::Token(command),
            Command::Config { command } => ServiceCommand::Config(command),
        };
        service::run(command).await
    })
}

fn connect(vcenter: &VCenterConfig) -> Result<VCenter, Failure> {
    VCenter::new(vcenter.settings()?).map_err(|error| error.failure())
}

fn usage(text: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Usage, text.to_string())
}

/// Writes a line to standard output; a reader that has gone away is no error.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn say_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("writing JSON: {error}")))?;
    say(&text);
    Ok(())
}
