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
mod vm;

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
    /// Look at a vCenter or ESXi.
    Vcenter {
        #[command(subcommand)]
        command: VcenterCommand,
    },
    /// List virtual machines, back them up.
    Vm {
        #[command(subcommand)]
        command: VmCommand,
    },
    /// Undo what an interrupted backup left in vCenter: attached disks, snapshots, leases. Every
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
        match command {
            Command::Vcenter { command: VcenterCommand::Probe(arguments) } => {
                probe::run(&arguments).await
            }
            Command::Vm { command: VmCommand::List(arguments) } => vm::list(&arguments).await,
            Command::Vm { command: VmCommand::Backup(arguments) } => vm::backup(&arguments).await,
            Command::Cleanup(arguments) => vm::cleanup(&arguments).await,
        }
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
