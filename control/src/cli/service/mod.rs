//! Commands over gantryd's REST API.
//!
//! In: what a person typed, a log-in file. Out: tables or JSON, live progress, exit codes. `records`
//! keeps configuration, `sessions` begins, watches and stops, `other` does the rest, `table` prints.
//! Invariant: no token and no password is an argument; they come from files.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use gantry_common::failure::Failure;
use gantry_common::secret::Secret;
use gantry_common::units::Rate;
use serde_json::Value;

use super::{say_json, usage};
use crate::client::{Client, Login};

mod other;
mod records;
mod restore;
mod sessions;
mod table;

pub(super) use other::{completion, login, manual};
use records::Kind;
pub(super) use restore::{RestoreCommand, run as restore};

/// Bytes of a file or of standard input that are taken.
const INPUT_BYTES_MAX: u64 = 4 << 20;

/// What every command over the API takes.
#[derive(Debug, Clone, Args)]
pub(super) struct Asked {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// File that 'gantry login' has written; usually ~/.config/gantry/login.json.
    #[arg(long, value_name = "FILE", env = "GANTRY_LOGIN")]
    login: Option<PathBuf>,
}

impl Asked {
    fn client(&self) -> Result<Client, Failure> {
        Client::new(&Login::load(&login_path(self.login.clone())?)?)
    }
}

/// Where a log-in is kept.
fn login_path(named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return Ok(path);
    }
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let folder = of("XDG_CONFIG_HOME").or_else(|| of("HOME").map(|home| home.join(".config")));
    let folder = folder.ok_or_else(|| usage("there is no HOME: give --login FILE"))?;
    Ok(folder.join("gantry/login.json"))
}

#[derive(Debug, Args)]
pub(super) struct LoginArguments {
    /// gantryd: https://HOST:PORT.
    url: String,
    /// File with the authority's certificate (ca.pem of gantryd's state folder).
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// File with the token; '-' reads standard input.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// File to write; usually ~/.config/gantry/login.json.
    #[arg(long, value_name = "FILE", env = "GANTRY_LOGIN")]
    login: Option<PathBuf>,
}

/// What can be done with every kind of record.
#[derive(Debug, Subcommand)]
pub(super) enum RecordCommand {
    /// List them.
    List {
        #[command(flatten)]
        asked: Asked,
    },
    /// Show one; its JSON is what 'add --file' and 'edit --file' take.
    Show {
        /// Name or id.
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// Make one.
    Add {
        /// Its name.
        name: String,
        #[command(flatten)]
        fields: Fields,
        #[command(flatten)]
        asked: Asked,
    },
    /// Change fields of one; what is not named stays.
    Edit {
        /// Name or id.
        name: String,
        #[command(flatten)]
        fields: Fields,
        #[command(flatten)]
        asked: Asked,
    },
    /// Delete one, unless something uses it.
    Remove {
        /// Name or id.
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
}

/// A record's fields.
#[derive(Debug, Args)]
pub(super) struct Fields {
    /// JSON of the record, as 'show --json' prints it; '-' reads standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A field and its value (JSON, or text), such as `url=https://vcenter.example`,
    /// `selection.patterns=["web*"]`, `schedule.kind=daily`, `proxies={"kind":"chosen","proxies":["p1"]}`.
    /// Other records are named by name or id. The fields are those of the OpenAPI document (/api/v1/openapi.json).
    #[arg(long = "set", short = 's', value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// File with the password of a vCenter or credential; '-' reads standard input.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum VcenterMore {
    /// Log in with the kept credentials and look.
    Test {
        /// Name or id.
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// List its virtual machines.
    Vms {
        /// Name or id.
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RepositoryCommand {
    #[command(flatten)]
    Record(RecordCommand),
    /// Count what it holds.
    Stat {
        /// Name or id.
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// Read and check what it holds, as a session.
    Verify {
        /// Name or id.
        name: String,
        /// Share of the stored bytes to read, percent; what was checked longest ago comes first.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
        percent: u8,
        /// Check the stored checksums only, without decoding.
        #[arg(long)]
        checksums_only: bool,
        /// Limit of the rate of reading, such as 50MB/s.
        #[arg(long)]
        rate: Option<Rate>,
        #[command(flatten)]
        asked: Asked,
    },
    /// Give back what no restore point needs, as a session.
    Collect {
        /// Name or id.
        name: String,
        /// Only say what would be given back.
        #[arg(long)]
        dry_run: bool,
        /// Bytes that may be copied to empty packs that are mostly dead; usually a tenth.
        #[arg(long, value_name = "BYTES")]
        rewrite_max: Option<u64>,
        /// Give up the progress of interrupted backups, too; they then start over.
        #[arg(long)]
        abandon_unfinished: bool,
        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    #[command(flatten)]
    Record(RecordCommand),
    /// Run it now.
    Start {
        /// Name or id.
        name: String,
        /// Read everything that is allocated, whatever changed.
        #[arg(long)]
        full: bool,
        /// Only this one of its machines; may be given several times.
        #[arg(long, value_name = "VM")]
        vm: Vec<String>,
        /// Show its progress until it ends; the exit code is its result.
        #[arg(long, short)]
        watch: bool,
        #[command(flatten)]
        asked: Asked,
    },
    /// Stop its session, after the machines that are being backed up.
    Stop {
        /// Name or id.
        name: String,
        /// At once: what is durable stays and is not sent again.
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        asked: Asked,
    },
    /// Let its schedule start it.
    Enable {
        /// Name or id.
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// Do not let its schedule start it.
    Disable {
        /// Name or id.
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// List the machines that it takes now.
    Vms {
        /// Name or id.
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SessionCommand {
    /// List sessions, the newest first.
    List {
        /// Only of this job.
        #[arg(long)]
        job: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        #[command(flatten)]
        asked: Asked,
    },
    /// Show one with its machines and disks.
    Show {
        /// Id; 'last' is the newest.
        id: String,
        /// Show what each stage of the road took, too: from the read of a block to its durability.
        #[arg(long)]
        stages: bool,
        #[command(flatten)]
        asked: Asked,
    },
    /// Follow one to its end; the exit code is its result: 0, or 3 if it failed.
    Watch {
        /// Id; 'last' is the newest.
        id: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// Print its log.
    Events {
        /// Id; 'last' is the newest.
        id: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// Stop one, after the machines that are being backed up.
    Stop {
        /// Id; 'last' is the newest.
        id: String,
        /// At once.
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum MoverCommand {
    /// List movers and how they stand.
    List {
        #[command(flatten)]
        asked: Asked,
    },
    /// Invite a mover: the line goes to 'gantry-mover enroll' on its host, and lets in once.
    Invite {
        /// Its name.
        name: String,
        /// What it will be for.
        #[arg(long, value_enum)]
        role: MoverRole,
        /// Hours in which it must enrol.
        #[arg(long, default_value_t = 24)]
        hours: u64,
        #[command(flatten)]
        asked: Asked,
    },
    /// List invitations, used ones too, without what could be used.
    Invitations {
        #[command(flatten)]
        asked: Asked,
    },
    /// Withdraw a mover's invitations that were not used.
    Withdraw {
        /// The mover's name.
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// Lock a mover out for good.
    Revoke {
        /// Name or pin.
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum MoverRole {
    Proxy,
    Repository,
}

#[derive(Debug, Subcommand)]
pub(super) enum PointCommand {
    /// List restore points.
    List {
        /// Only of this repository.
        #[arg(long)]
        repository: Option<String>,
        /// Only of this name.
        #[arg(long)]
        name: Option<String>,
        /// Deleted ones, which can be brought back until a collection.
        #[arg(long)]
        deleted: bool,
        #[command(flatten)]
        asked: Asked,
    },
    /// Show one.
    Show(PointArguments),
    /// Print the machine's configuration that it keeps.
    Config(PointArguments),
    /// Delete it; it can be brought back until a collection.
    Delete {
        /// Also if its machine then has no point left.
        #[arg(long)]
        last_too: bool,
        #[command(flatten)]
        point: PointArguments,
    },
    /// Bring it back.
    Undelete(PointArguments),
    /// Keep it from deleting and retention.
    Protect(PointArguments),
    /// No longer.
    Unprotect(PointArguments),
}

#[derive(Debug, Args)]
pub(super) struct PointArguments {
    /// Its id, 32 hexadecimal digits.
    point: String,
    /// Its repository; not needed where there is one.
    #[arg(long)]
    repository: Option<String>,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// List tokens, without what could be used.
    List {
        #[command(flatten)]
        asked: Asked,
    },
    /// Make one; its text is written to a new file that nobody else can read.
    Create {
        /// Whose it is.
        name: String,
        /// What it may do.
        #[arg(long, value_enum)]
        role: TokenRole,
        /// Days that it holds; without it for ever.
        #[arg(long)]
        days: Option<u64>,
        /// New file for the token.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        asked: Asked,
    },
    /// Delete one: it lets nobody in from now on.
    Remove {
        /// Name or id.
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum TokenRole {
    Admin,
    Operator,
    Viewer,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// List settings of the service.
    List {
        #[command(flatten)]
        asked: Asked,
    },
    /// Set one.
    Set {
        /// Its name.
        name: String,
        /// Its value: JSON, or text.
        value: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// Print the whole configuration, without secrets.
    Export {
        #[command(flatten)]
        asked: Asked,
    },
}

/// A command over the API.
#[derive(Debug)]
pub(super) enum ServiceCommand {
    Vcenter(RecordCommand),
    VcenterMore(VcenterMore),
    Proxy(RecordCommand),
    Repository(RepositoryCommand),
    Job(JobCommand),
    Traffic(RecordCommand),
    Credential(RecordCommand),
    Session(SessionCommand),
    Mover(MoverCommand),
    Point(PointCommand),
    Token(TokenCommand),
    Config(ConfigCommand),
}

/// Carries it out.
pub(super) async fn run(command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::Vcenter(command) => records::run(Kind::Vcenter, command).await,
        ServiceCommand::Proxy(command) => records::run(Kind::Proxy, command).await,
        ServiceCommand::Traffic(command) => records::run(Kind::Traffic, command).await,
        ServiceCommand::Credential(command) => records::run(Kind::Credential, command).await,
        ServiceCommand::Repository(RepositoryCommand::Record(command)) => {
            records::run(Kind::Repository, command).await
        }
        ServiceCommand::Job(JobCommand::Record(command)) => records::run(Kind::Job, command).await,
        ServiceCommand::VcenterMore(command) => other::vcenter(command).await,
        ServiceCommand::Repository(command) => other::repository(command).await,
        ServiceCommand::Job(command) => sessions::job(command).await,
        ServiceCommand::Session(command) => sessions::session(command).await,
        ServiceCommand::Mover(command) => other::mover(command).await,
        ServiceCommand::Point(command) => other::point(command).await,
        ServiceCommand::Token(command) => other::token(command).await,
        ServiceCommand::Config(command) => other::config(command).await,
    }
}

/// Prints an answer: as JSON, or as the table that `columns` make of it.
fn show(asked: &Asked, answer: &Value, columns: &[table::Column]) -> Result<(), Failure> {
    if asked.json {
        return say_json(answer);
    }
    let one = [answer.clone()];
    let items = answer["items"].as_array().map_or(&one[..], Vec::as_slice);
    table::lines(items, columns).iter().for_each(|line| super::say(line));
    Ok(())
}

/// A text that was given in a file, or on standard input as '-'.
fn read_text(path: &std::path::Path) -> Result<String, Failure> {
    use std::io::Read as _;
    let mut text = String::new();
    let take = |from: &mut dyn std::io::Read, text: &mut String| {
        from.take(INPUT_BYTES_MAX + 1).read_to_string(text).map(drop)
    };
    let read = match path.as_os_str() == "-" {
        true => take(&mut std::io::stdin().lock(), &mut text),
        false => std::fs::File::open(path).and_then(|mut file| take(&mut file, &mut text)),
    };
    read.map_err(|error| usage(format!("{}: {error}", path.display())))?;
    match text.len() as u64 {
        ..=INPUT_BYTES_MAX => Ok(text),
        _ => Err(usage(format!("{}: more than {INPUT_BYTES_MAX} bytes", path.display()))),
    }
}

/// A password or token from a file that nobody else can read, or from standard input as '-'; without
/// the line's end.
fn read_secret(path: &std::path::Path) -> Result<Secret, Failure> {
    let text = match path.as_os_str() == "-" {
        true => read_text(path)?,
        false => String::from_utf8(gantry_transport::read_secret(path)?)
            .map_err(|_| usage(format!("{} is no text", path.display())))?,
    };
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}
